"""Short depthwise causal convolution."""

from functools import cache
from types import ModuleType
from typing import Literal, overload

from torch import Tensor

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.kernels.conv.cpu import conv_torch
from mamba_bio_audio.kernels.conv.reference import conv_reference
from mamba_bio_audio.kernels.conv.tail import next_tail
from mamba_bio_audio.ops.calls import check, check_reset, choose, shape_of, tracing
from mamba_bio_audio.ops.operators import register

MAX_CONV_WIDTH = 8


@overload
def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = ..., *, activation: str | None = ...,
    tail: Tensor | None = ..., return_tail: Literal[True], reset: Tensor | None = ..., backend: str = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = ..., *, activation: str | None = ...,
    tail: Tensor | None = ..., return_tail: Literal[False] = ...,
    reset: Tensor | None = ..., backend: str = ...,
) -> Tensor: ...  # fmt: skip
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = "silu",
    tail: Tensor | None = None,
    return_tail: bool = False,
    reset: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolves each channel with its own short causal filter.

        out_t = silu(bias + sum_k weight[:, k] x_(t - W + 1 + k))

    Mamba (arXiv 2312.00752) section 3.4, figure 3 (W = 4).

    Args:
        x: Input (B, L, D), any L >= 1.
        weight: Filters (D, W), the last tap on the current position, 1 <= W <= 8.
        bias: (D,).
        activation: "silu" or None.
        tail: The W - 1 inputs before the span (B, W-1, D); None means zeros.
        return_tail: Whether to return the last W - 1 inputs, the `tail` of the span that follows.
        reset: Bool (B, L), True where a packed sequence starts; no tap reaches back across it.
        backend: "auto", "triton", "torch" or "reference".

    Returns:
        out (B, L, D) in the dtype of `x` (sums in fp32, fp64 for fp64), or (out, tail) with tail (B, W-1,
        D) in x.dtype, zeros where an input lies before a missing `tail` or before the last reset.

    Raises:
        InputError: Shapes, dtypes or devices that do not fit, or an unknown or unavailable backend.
    """
    if activation not in ("silu", None):
        raise InputError(f'causal_conv1d: activation must be "silu" or None, not {activation!r}')
    out = _convolve(x, weight, bias, tail, reset, activation == "silu", backend)
    return (out, next_tail(x, tail, weight.shape[1], reset)) if return_tail else out


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tail: Tensor | None,
    reset: Tensor | None,
    silu: bool,
    backend: str = "auto",
) -> Tensor:
    where = "causal_conv1d"
    if x.ndim != 3 or x.shape[1] < 1:
        raise InputError(f"{where}: x must be (B, L, D) with L >= 1, not {shape_of(x)}")
    batch, length, channels = x.shape
    if weight.ndim != 2 or weight.shape[0] != channels or not 1 <= weight.shape[1] <= MAX_CONV_WIDTH:
        raise InputError(f"{where}: weight must be (D={channels}, 1 <= W <= {MAX_CONV_WIDTH}), not {shape_of(weight)}")
    check(where, x, "x", x.shape, x)
    check(where, weight, "weight", weight.shape, x)
    check(where, bias, "bias", (channels,), x)
    check(where, tail, "tail", (batch, weight.shape[1] - 1, channels), x)
    check_reset(where, reset, (batch, length), x)
    if tracing(backend):
        return _operator(x, weight, bias, tail, reset, silu)  # type: ignore[no-any-return]
    choice = choose(where, backend, x, lambda: _kernels().unsupported_reason(x, weight))
    run = conv_reference if choice == "reference" else conv_torch
    if choice == "triton":
        run = _kernels().conv_triton
    return run(x, weight, bias, activation="silu" if silu else None, tail=tail, reset=reset)


@cache
def _kernels() -> ModuleType:
    from mamba_bio_audio.kernels.conv import gpu

    return gpu


_operator = register(
    "causal_conv1d", _convolve, "Tensor", ["Tensor g"], _convolve, lambda x, *rest: x.new_empty(x.shape)
)
