"""Describes the software and the machine, for manifests and benchmarks."""

from __future__ import annotations

import datetime
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
    """Commit of the source tree that the package runs from, marked if it was changed; None if it is installed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
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
