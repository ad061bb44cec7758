"""Describes the software and the machine, for manifests and benchmarks."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mamba_bio_audio import __version__, ops


def environment(device: str) -> dict[str, Any]:
    """Versions, machine and commit, for manifests and benchmarks."""
    return {
        "mamba_bio_audio": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "triton": installed("triton"),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def precision_settings(device: str, precision: str) -> dict[str, Any]:
    """The current torch settings that determine how training rounds and whether it is reproducible bit for bit.

    Args:
        device: "cpu" or "cuda".
        precision: precision of the activations, "fp32" or "bf16".
    """
    backends: Any = torch.backends
    return {
        "autocast": "bfloat16" if precision == "bf16" else None,
        "parameters": "float32",
        "kernels": ops.live_backend(device),
        "tf32_matmul": _is_tf32(backends.cuda.matmul),
        "tf32_cudnn": _is_tf32(backends.cudnn.conv),
        "float32_matmul_precision": _float32_matmul_precision(),
        "bf16_reduced_precision_reduction": backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": backends.cudnn.deterministic,
        "cudnn_benchmark": backends.cudnn.benchmark,
    }


def _is_tf32(of: Any) -> bool:
    # "none" means the global setting applies. The older flags raise if both interfaces were used; this one does not.
    everywhere: Any = torch.backends
    return bool((of if of.fp32_precision != "none" else everywhere).fp32_precision == "tf32")


def _float32_matmul_precision() -> str | None:
    """highest, high or medium; None if settings of the newer interface contradict each other in the older one."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def installed(package: str) -> str | None:
    """Version of an installed package; None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the source tree that the package runs from, marked if it was changed; None if it is installed.

    A copy without git's folder has `.device/COMMIT` (`git rev-parse HEAD HEAD:mamba_bio_audio`): where the package is
    that of the commit, the commit is named, otherwise git's name for the package's folder as it stands.
    """
    package = Path(__file__).parents[1]
    root = package.parent
    if not (root / ".git").exists():
        return _copied_commit(package, root / ".device" / "COMMIT")
    try:
        head = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root,
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    return head.stdout.strip() or None


def _copied_commit(package: Path, note: Path) -> str | None:
    if not note.is_file():
        return None
    commit, tree = note.read_text(encoding="utf-8").split()
    found = tree_name(package).hex()
    return commit[:12] if found == tree else f"package {found[:12]}"


def tree_name(folder: Path) -> bytes:
    """Git's name (SHA-1) for a folder with everything in it but what Python compiled; empty folders do not count."""
    entries: list[tuple[bytes, bytes]] = []
    for path in folder.iterdir():
        name = path.name.encode()
        if path.is_symlink():
            entries.append((name, b"120000 " + name + b"\0" + _git_name(b"blob", str(path.readlink()).encode())))
        elif path.is_dir():
            if path.name != "__pycache__" and (inside := tree_name(path)) != _git_name(b"tree", b""):
                # Folders stand where their name with a slash would.
                entries.append((name + b"/", b"40000 " + name + b"\0" + inside))
        elif path.suffix != ".pyc":
            mode = b"100755" if path.stat().st_mode & 0o100 else b"100644"
            entries.append((name, mode + b" " + name + b"\0" + _git_name(b"blob", path.read_bytes())))
    return _git_name(b"tree", b"".join(entry for _, entry in sorted(entries)))


def _git_name(kind: bytes, content: bytes) -> bytes:
    return hashlib.sha1(kind + b" %d\0" % len(content) + content, usedforsecurity=False).digest()
