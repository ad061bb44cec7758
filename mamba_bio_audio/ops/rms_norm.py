"""Root-mean-square normalisation, with the residual stream."""

from functools import cache
from types import ModuleType
from typing import overload

import torch
from torch import Tensor

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.kernels.norm.cpu import norm_torch
from mamba_bio_audio.kernels.norm.reference import norm_reference
from mamba_bio_audio.ops.calls import check, choose, shape_of, tracing
from mamba_bio_audio.ops.operators import register, state_dtype


@overload
def rms_norm(
    x: Tensor, weight: Tensor, eps: float = 1e-5, *, residual: Tensor, backend: str = "auto"
) -> tuple[Tensor, Tensor]: ...
@overload
def rms_norm(
    x: Tensor, weight: Tensor, eps: float = 1e-5, *, residual: None = None, backend: str = "auto"
) -> Tensor: ...
def rms_norm(
    x: Tensor, weight: Tensor, eps: float = 1e-5, *, residual: Tensor | None = None, backend: str = "auto"
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalises channels by their root mean square, after adding the residual stream if one is given.

        r = x + residual        y = r / sqrt(mean(r^2) + eps) weight

    Zhang and Sennrich (arXiv 1910.07467); pre-norm with an fp32 residual stream as in Mamba.

    Args:
        x: (..., D).
        weight: (D,).
        eps: Added to the mean square.
        residual: Residual stream (..., D), same shape as `x`, usually fp32.
        backend: "auto", "triton", "torch" or "reference".

    Returns:
        y (..., D) in the dtype of `x`; with `residual`, (y, r) where r is fp32 (fp64 if an input is fp64).

    Raises:
        InputError: Shapes, dtypes or devices that do not fit, or an unknown or unavailable backend.
    """
    y, *stream = _normalise(x, weight, residual, eps, backend)
    return (y, stream[0]) if stream else y


def _normalise(x: Tensor, weight: Tensor, residual: Tensor | None, eps: float, backend: str = "auto") -> list[Tensor]:
    """[y], or [y, stream] with a residual."""
    if x.ndim < 1 or x.shape[-1] < 1:
        raise InputError(f"rms_norm: x must be (..., D), not {shape_of(x)}")
    check("rms_norm", x, "x", x.shape, x)
    check("rms_norm", weight, "weight", x.shape[-1:], x)
    check("rms_norm", residual, "residual", x.shape, x)
    if tracing(backend):
        return _operator(x, weight, residual, eps)  # type: ignore[no-any-return]
    choice = choose("rms_norm", backend, x, lambda: _kernels().unsupported_reason(x, weight, residual))
    run = norm_reference if choice == "reference" else norm_torch
    if choice == "triton":
        run = _kernels().norm_triton
    y, stream = run(x, weight, eps, residual)
    return [y] if residual is None else [y, stream]


def norm_of_stream(stream: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, backend: str = "auto") -> Tensor:
    """The y that `rms_norm` gave in `dtype` with this residual stream as its r; without gradients.

    On a GPU the sum of squares may be added up in another order.

    Args:
        stream: r (..., D), fp32, or fp64 where an input was.
        weight: (D,).
        eps: as of `rms_norm`.
        dtype: of the activations.
        backend: as of `rms_norm`.
    """
    with torch.no_grad():
        if choose("rms_norm", backend, stream, lambda: _kernels().unsupported_reason(stream, weight, None)) == "triton":
            return _kernels().norm_of_stream(stream, weight, eps, dtype)  # type: ignore[no-any-return]
        return rms_norm(stream, weight, eps, backend=backend).to(dtype)


@cache
def _kernels() -> ModuleType:
    from mamba_bio_audio.kernels.norm import gpu

    return gpu


def _fake(x: Tensor, weight: Tensor, residual: Tensor | None, eps: float) -> list[Tensor]:
    y = x.new_empty(x.shape)
    return [y] if residual is None else [y, x.new_empty(x.shape, dtype=state_dtype(x, residual))]


_operator = register("rms_norm", _normalise, "Tensor[]", ["Tensor? g_y", "Tensor? g_stream"], _normalise, _fake)
