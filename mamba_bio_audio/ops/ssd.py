"""State space dual: the recurrence of Mamba-2, RetNet and linear attention, as products of matrices within chunks."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any, Literal, overload

import torch
from torch import Tensor

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.kernels.ssd.cpu import ssd_torch
from mamba_bio_audio.kernels.ssd.inputs import SsdInputs
from mamba_bio_audio.kernels.ssd.reference import ssd_reference
from mamba_bio_audio.ops.calls import check, check_reset, choose, shape_of, tracing
from mamba_bio_audio.ops.operators import register


@overload
def ssd(
    x: Tensor, a: Tensor, B: Tensor, C: Tensor, source: Tensor | None = ..., diagonal: Tensor | None = ...,
    D: Tensor | None = ..., *, h0: Tensor | None = ..., return_state: Literal[True], reset: Tensor | None = ...,
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def ssd(
    x: Tensor, a: Tensor, B: Tensor, C: Tensor, source: Tensor | None = ..., diagonal: Tensor | None = ...,
    D: Tensor | None = ..., *, h0: Tensor | None = ..., return_state: Literal[False] = ...,
    reset: Tensor | None = ..., backend: str = ...,
) -> Tensor: ...  # fmt: skip
def ssd(
    x: Tensor,
    a: Tensor,
    B: Tensor,
    C: Tensor,
    source: Tensor | None = None,
    diagonal: Tensor | None = None,
    D: Tensor | None = None,
    *,
    h0: Tensor | None = None,
    return_state: bool = False,
    reset: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Runs a recurrence whose state is a matrix per head that decays by one number per position and head.

        S_t = exp(a_t) S_(t-1) + source_t x_t B_t'      y_t = exp(a_t) S_(t-1) C_t + diagonal_t (B_t . C_t) x_t + D x_t

    Mamba-2 (arXiv 2405.21060) section 6. Mamba-2 has a = dt A and source = dt; retention has a = log gamma; a rule
    that weighs a position otherwise for itself than for later ones sets `diagonal`.

    Args:
        x: Values (B, L, H, P), any L >= 1.
        a: Logarithm of the decay (B, L, H), <= 0 and finite; a decay of 0 is a `reset`.
        B: Keys (B, L, G, N); G divides H, and each group serves H / G heads in a row.
        C: Queries, shape as `B`.
        source: Weight of a position for later ones (B, L, H); None means 1.
        diagonal: Weight of a position for itself (B, L, H); None means `source`, so that y_t = S_t C_t + D x_t.
        D: Skip weight (H,).
        h0: State before the first position (B, H, P, N); None means zeros.
        return_state: Whether to return the state after the last position as well.
        reset: Bool (B, L), True where the state is zeroed before the position (start of a packed sequence).
        backend: "auto", "triton" (up to 128 states, not fp64), "torch" or "reference".

    Returns:
        y (B, L, H, P) in the dtype of `x`, or (y, state) with state (B, H, P, N) in fp32 (fp64 if any input is fp64).

    Raises:
        InputError: Shapes, dtypes or devices that do not fit, or an unknown or unavailable backend.
    """
    y, state = _ssd(SsdInputs(x, a, B, C, source, diagonal, D, h0, reset), backend)
    return (y, state) if return_state else y


def _ssd(inputs: SsdInputs, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """(y (B, L, H, P), last state (B, H, P, N)) by the path of this call."""
    _check(inputs)
    kind = inputs.x.device.type
    if tracing(backend):
        with torch.autocast(kind, enabled=False):
            return _operator(*inputs)  # type: ignore[no-any-return]
    choice = choose("ssd", backend, inputs.x, lambda: _kernels().unsupported_reason(inputs))
    # State and sums stay in fp32 under autocast, in every backend.
    with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
        return _run(choice)(inputs)


@cache
def _run(choice: str) -> Callable[[SsdInputs], tuple[Tensor, Tensor]]:
    if choice == "triton":
        return _kernels().ssd_triton  # type: ignore[no-any-return]
    return ssd_reference if choice == "reference" else ssd_torch


@cache
def _kernels() -> Any:
    from mamba_bio_audio.kernels.ssd import launch

    return launch


def _check(inputs: SsdInputs) -> None:
    where = "ssd"
    x, B = inputs.x, inputs.B
    if x.ndim != 4 or x.shape[1] < 1:
        raise InputError(f"{where}: x must be (B, L, H, P) with L >= 1, not {shape_of(x)}")
    batch, length, heads, channels = x.shape
    if B.ndim != 4 or B.shape[:2] != x.shape[:2] or not B.shape[2] or heads % B.shape[2]:
        raise InputError(
            f"{where}: B must be ({batch}, {length}, G, N), G a divisor of the {heads} heads, not {shape_of(B)}"
        )
    check(where, x, "x", x.shape, x)
    check(where, B, "B", B.shape, x)
    check(where, inputs.C, "C", B.shape, x)
    for name in ("a", "source", "diagonal"):
        check(where, getattr(inputs, name), name, (batch, length, heads), x)
    check(where, inputs.D, "D", (heads,), x)
    check(where, inputs.h0, "h0", (batch, heads, channels, B.shape[3]), x)
    check_reset(where, inputs.reset, (batch, length), x)


def _fake(*inputs: Any) -> tuple[Tensor, Tensor]:
    s = SsdInputs(*inputs)
    batch, _, heads, channels = s.x.shape
    return s.x.new_empty(s.x.shape), s.x.new_empty(batch, heads, channels, s.B.shape[3], dtype=s.state_dtype)


_operator = register(
    "ssd",
    SsdInputs,
    "(Tensor, Tensor)",
    ["Tensor? g_y", "Tensor? g_state"],
    lambda *inputs: _ssd(SsdInputs(*inputs)),
    _fake,
)
