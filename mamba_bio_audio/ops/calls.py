"""What every operation does with a call: checks its arguments and chooses its path."""

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from mamba_bio_audio.errors import InputError

BACKENDS = ("auto", "triton", "torch", "reference")
# Whether "auto" leaves Triton alone. For the process, not the thread: backward passes run in threads of autograd's.
_plain = False
_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def shape_of(t: Tensor) -> str:
    """The shape of a tensor as messages show it."""
    return str(tuple(t.shape))


def check(where: str, t: Tensor | None, name: str, shape: tuple[int, ...], like: Tensor) -> None:
    """Raises `InputError` where a tensor has another shape, is not floating-point, or is on another device than `like`."""
    if t is None:
        return
    if t.shape != shape:
        raise InputError(f"{where}: {name} must be {tuple(shape)}, not {shape_of(t)}")
    if t.dtype not in _FLOATS:
        raise InputError(f"{where}: {name} must be a floating-point tensor, not {t.dtype}")
    if t.device != like.device:
        raise InputError(f"{where}: {name} is on {t.device}, the input is on {like.device}")


def check_reset(where: str, reset: Tensor | None, shape: tuple[int, int], like: Tensor) -> None:
    """Raises `InputError` where a mask of resets is not bool, of another shape, or on another device than `like`."""
    if reset is None:
        return
    if reset.dtype != torch.bool or reset.shape != shape:
        raise InputError(f"{where}: reset must be bool (B, L) = {shape}, not {reset.dtype} {shape_of(reset)}")
    if reset.device != like.device:
        raise InputError(f"{where}: reset is on {reset.device}, the input is on {like.device}")


def tracing(backend: str) -> bool:
    """Whether torch.compile or torch.export is tracing, so that an operation must call its operator (`operators.py`)."""
    return backend == "auto" and torch.compiler.is_compiling()


def choose(
    where: str, backend: str, x: Tensor, cannot: Callable[[], str | None], *, announce: bool = True
) -> Literal["triton", "torch", "reference"]:
    """The path of one call; "auto" takes Triton wherever it can run it, and says once where it cannot.

    Args:
        where: name of the operation.
        backend: what the caller asks for.
        x: the input, for its device.
        cannot: why the Triton kernel cannot run this call, or None; asked only where Triton is usable.
        announce: whether falling back on a GPU deserves a notice.

    Raises:
        InputError: The backend is unknown, or is "triton" and cannot run this call.
    """
    if backend not in BACKENDS:
        raise InputError(f"{where}: unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    if backend in ("torch", "reference"):
        return backend  # type: ignore[return-value]
    if backend == "auto" and (_plain or x.device.type != "cuda"):
        return "torch"
    of_device = no_triton(x.device)
    reason = of_device or cannot()
    if reason is None:
        return "triton"
    if backend == "triton":
        raise InputError(f'{where}: backend "triton" cannot run this call: {reason}; use "auto" or "torch"')
    if announce:
        # What is true of the device is said once, not once for each operation.
        _say_once(f"{'everything' if of_device else where} runs on the plain PyTorch path: {reason}")
    return "torch"


@contextmanager
def plain_torch() -> Iterator[None]:
    """Within it "auto" is the plain PyTorch path on every device, for comparisons with the Triton kernels."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


def plain() -> bool:
    """Whether "auto" is the plain PyTorch path by `plain_torch`."""
    return _plain


@cache
def no_triton(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on a device, or None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device.type != "cuda":
        return f"tensors are on {device.type}"
    if torch.version.hip is not None:
        return "the kernels are written for NVIDIA GPUs"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    if not (os.environ.get("CC") or any(shutil.which(name) for name in ("gcc", "clang"))):
        return "Triton needs a C compiler and there is none (install gcc, or set CC)"
    return None


@cache
def _say_once(message: str) -> None:
    # The caller of the operation, past `choose` and the operation's own two functions.
    warnings.warn(message, RuntimeWarning, stacklevel=5)


def live_backend(device: str) -> str:
    """What "auto" stands for on "cpu" or "cuda", in words."""
    if device != "cuda":
        return "torch"
    reason = "asked for" if _plain else no_triton(torch.device("cuda", torch.cuda.current_device()))
    return f"torch ({reason})" if reason else "triton (mixer, scan, convolution, norm, loss), torch for the rest"
