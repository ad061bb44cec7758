"""What `mba doctor` reports: versions, devices, compiler, and each operation against its sequential reference."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mamba_bio_audio import __version__, ops

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "lightning",
    "pydantic",
    "pyfaidx",
    "biopython",
    "soundfile",
    "torchaudio",
)
# Largest error of the self-test in fp32, relative to the largest value.
TOLERANCE = 1e-5


def diagnose() -> dict[str, Any]:
    """Everything as plain values for JSON."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return {
        "mamba_bio_audio": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu_threads": torch.get_num_threads(),
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "c_compiler": next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None),
        "backend": {device: ops.live_backend(device) for device in devices},
        "self_test": [test for device in devices for test in _self_test(device)],
    }


def describe(result: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"mamba-bio-audio {result['mamba_bio_audio']}, Python {result['python']}, {result['platform']}"]
    lines += [f"  {name:<12} {version or 'not installed'}" for name, version in result["packages"].items()]
    lines.append(f"CPU threads: {result['cpu_threads']}")
    lines.append(f"CUDA devices: {', '.join(result['cuda']) or 'none'}")
    lines.append(f"C compiler: {result['c_compiler'] or 'none (Triton needs one on a GPU)'}")
    for device, backend in result["backend"].items():
        lines.append(f"kernels on {device}: {backend}")
    lines.append("self-test against the sequential reference, fp32, error of the largest value:")
    for test in result["self_test"]:
        word = "ok" if test["passed"] else "WRONG"
        lines.append(f"  {test['device']:<5} {test['operation']:<22} {test['error']:.1e}  {word}")
    return "\n".join(lines)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _self_test(device: str) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    B, L, D, N = 2, 77, 24, 16
    u, dt, z, b, c = draw(B, L, D), draw(B, L, D), draw(B, L, D), draw(B, L, N), draw(B, L, N)
    A = -torch.rand(D, N, generator=generator).to(device) * N
    A_complex = torch.stack([-torch.full((D, N), 0.5, device=device), draw(D, N)], -1)
    b_complex, c_complex, skip = draw(B, L, N, 2), draw(B, L, N, 2), draw(D)
    targets = torch.randint(16, (B, L), generator=generator).to(device)
    weight, head = draw(D, 4), draw(16, D)
    cases: dict[str, Callable[[Any], Tensor]] = {
        "selective_scan": lambda backend: ops.selective_scan(u, dt, A, b, c, skip, z=z, backend=backend),
        "selective_scan complex": lambda backend: ops.selective_scan(
            u, dt, A_complex, b_complex, c_complex, skip, z=z, backend=backend
        ),
        "selective_scan time-invariant": lambda backend: ops.selective_scan(
            u, skip, A_complex, A_complex, A_complex, skip, z=z, exact_zoh=True, backend=backend
        ),
        "causal_conv1d": lambda backend: ops.causal_conv1d(u, weight, skip, backend=backend),
        "rms_norm": lambda backend: ops.rms_norm(u, skip, residual=z, backend=backend)[0],
        "linear_cross_entropy": lambda backend: ops.linear_cross_entropy(u, head, targets, backend=backend)[0],
    }
    tests = []
    for name, call in cases.items():
        inputs = [u.requires_grad_(), z.requires_grad_()]
        results = []
        for backend in ("auto", "reference"):
            y = call(backend)
            grads = torch.autograd.grad(y.square().sum(), inputs, allow_unused=True)
            results.append([y.detach(), *[g for g in grads if g is not None]])
        error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*results, strict=True))
        tests.append({"device": device, "operation": name, "error": error, "passed": error <= TOLERANCE})
    return tests
