"""Does this machine run what the package needs? The C compiler, and each operation against its sequential reference."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_bio_audio import ops

# Largest error allowed in the self-test in fp32, relative to the largest value.
TOLERANCE = 1e-5


class Compiler(NamedTuple):
    """The C compiler that Triton uses, and what is wrong with it."""

    path: str | None
    problem: str | None


def c_compiler() -> Compiler:
    """Compile what Triton compiles on first use, a shared library with Python's headers, with the compiler it chooses."""
    path = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if path is None:
        return Compiler(None, "but Triton needs one on a GPU; install gcc or clang, or set CC")
    scheme = sysconfig.get_default_scheme()
    headers = sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <Python.h>\nint probe(void) { return PY_MAJOR_VERSION; }\n")
        command = [path, str(source), "-shared", "-fPIC", f"-I{headers}", "-o", str(Path(folder, "probe.so"))]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            return Compiler(path, f"but it does not run ({error}); Triton needs it on a GPU")
    if not run.returncode:
        return Compiler(path, None)
    if not Path(headers, "Python.h").exists():
        return Compiler(path, f"but {headers}/Python.h is missing; install Python's headers (python3-dev)")
    complaint = next(iter(run.stderr.strip().splitlines()), f"exit code {run.returncode}")
    return Compiler(path, f"but it cannot compile for Triton ({complaint}); install another, or set CC")


def self_test(device: str) -> list[dict[str, Any]]:
    """Each operation on small inputs, values and gradients, against the sequential reference in fp32.

    Returns:
        device, operation, error (relative to the largest value), passed, and what it failed with, of each.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    B, L, D, N = 2, 77, 24, 16
    u, dt, z, b, c = draw(B, L, D), draw(B, L, D), draw(B, L, D), draw(B, L, N), draw(B, L, N)
    A = -torch.rand(D, N, generator=generator).to(device) * N
    A_complex = torch.stack([-torch.full((D, N), 0.5, device=device), draw(D, N)], -1)
    b_complex, c_complex, skip = draw(B, L, N, 2), draw(B, L, N, 2), draw(D)
    targets = torch.randint(16, (B, L), generator=generator).to(device)
    weight, head, h0 = draw(D, 4), draw(16, D), draw(B, D, N)
    reset = torch.zeros(B, L, dtype=torch.bool, device=device)
    reset[0, L // 2] = True
    cases: dict[str, Callable[[Any], Tensor]] = {
        "selective_scan": lambda backend: ops.selective_scan(u, dt, A, b, c, skip, z=z, backend=backend),
        "selective_scan complex": lambda backend: ops.selective_scan(
            u, dt, A_complex, b_complex, c_complex, skip, z=z, backend=backend
        ),
        "selective_scan time-invariant": lambda backend: ops.selective_scan(
            u, skip, A_complex, A_complex, A_complex, skip, z=z, exact_zoh=True, backend=backend
        ),
        "causal_conv1d": lambda backend: ops.causal_conv1d(u, weight, skip, backend=backend),
        "selective_scan with state": lambda backend: _sum_of_parts(
            *ops.selective_scan(
                u, dt, A, b, c, skip, z=z, dt_bias=skip, h0=h0, reset=reset, return_state=True, backend=backend
            )
        ),
        "rms_norm": lambda backend: ops.rms_norm(u, skip, residual=z, backend=backend)[0],
        "linear_cross_entropy": lambda backend: ops.linear_cross_entropy(u, head, targets, backend=backend)[0],
    }
    x, rank = draw(B, L, D // 2), 2
    parameters = [draw(2 * D, D // 2), None, draw(D, 4), draw(D), draw(rank + 2 * N, D), draw(D, rank), draw(D)]
    parameters += [torch.log(-A), skip, draw(D // 2, D), None]
    weights = ops.MixerWeights(
        *(None if w is None else w / max(1, w.shape[-1]) ** 0.5 if w.ndim > 1 else w for w in parameters)  # type: ignore[arg-type]
    )
    cases["mamba_mixer"] = lambda backend: ops.mamba_mixer(u[..., : D // 2] + x, weights, backend=backend)[0]
    tests = []
    for name, call in cases.items():
        inputs = [u.requires_grad_(), z.requires_grad_(), head.requires_grad_()]
        results = []
        failure = None
        try:
            for backend in ("auto", "reference"):
                y = call(backend)
                grads = torch.autograd.grad(y.square().sum(), inputs, allow_unused=True)
                results.append([y.detach(), *[g for g in grads if g is not None]])
            # torch's maximum of a NaN and a number is NaN, so an error of NaN is not lost.
            off = [(a - b).abs().max() / b.abs().max() for a, b in zip(*results, strict=True)]
            error = float(torch.stack(off).max())
        except Exception as problem:  # whatever a broken installation raises is to be reported
            error, failure = math.nan, f"{type(problem).__name__}: {str(problem).strip() or 'no message'}"
        passed = failure is None and error <= TOLERANCE
        tests.append({"device": device, "operation": name, "error": error, "passed": passed, "failure": failure})
    return tests


def _sum_of_parts(out: Tensor, state: Tensor) -> Tensor:
    """One tensor that depends on the output and on the state (B, D, N)."""
    return out + state.sum(-1).unsqueeze(1)
