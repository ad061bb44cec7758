"""The selective scan: the state space recurrence of Mamba, real or complex, selective or time-invariant."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from typing import Any, Literal, overload

import torch
from torch import Tensor

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.kernels.scan.cpu import scan_torch
from mamba_bio_audio.kernels.scan.inputs import ScanInputs, unsupported_reason
from mamba_bio_audio.kernels.scan.reference import scan_reference
from mamba_bio_audio.ops.calls import check, check_reset, choose, plain, shape_of, tracing
from mamba_bio_audio.ops.operators import register


@overload
def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None = ..., z: Tensor | None = ..., dt_bias: Tensor | None = ..., *,
    dt_softplus: bool = ..., h0: Tensor | None = ..., return_state: Literal[True], reset: Tensor | None = ...,
    exact_zoh: bool = ..., precise: bool = ..., backend: str = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None = ..., z: Tensor | None = ..., dt_bias: Tensor | None = ..., *,
    dt_softplus: bool = ..., h0: Tensor | None = ..., return_state: Literal[False] = ...,
    reset: Tensor | None = ..., exact_zoh: bool = ..., precise: bool = ..., backend: str = ...,
) -> Tensor: ...  # fmt: skip
def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *,
    dt_softplus: bool = True,
    h0: Tensor | None = None,
    return_state: bool = False,
    reset: Tensor | None = None,
    exact_zoh: bool = False,
    precise: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Runs the diagonal state space recurrence of Mamba over time.

        h_t = exp(dt_t A) h_(t-1) + dt_t B_t u_t      y_t = sum_n C_t h_t + D u_t      out_t = y_t silu(z_t)

    with dt = softplus(dt + dt_bias). Mamba (arXiv 2312.00752) section 3.2 and algorithm 2. Complex exactly
    when `A` has a trailing axis of 2 (real and imaginary part): then y_t = 2 Re(sum_n C_t h_t) + D u_t and
    N counts complex modes.

    Args:
        u: Input (B, L, D), any L >= 1.
        dt: Step size before bias and softplus, (B, L, D), or (D,) if it does not depend on time.
        A: Continuous-time decay (D, N) or (D, N, 2), already negative (real part), not its logarithm.
        B: Input map (B, L, N[, 2]), or (D, N[, 2]) if it does not depend on time.
        C: Readout, shapes as `B` and independent of it.
        D: Skip weight (D,).
        z: Gate (B, L, D), applied as silu(z).
        dt_bias: Bias of the step size (D,).
        dt_softplus: Whether to apply softplus (linear above 20); without it `dt` must be positive already.
        h0: State before the first position (B, D, N[, 2]); None means zeros.
        return_state: Whether to return the state after the last position as well.
        reset: Bool (B, L), True where the state is zeroed before the position (start of a packed sequence).
        exact_zoh: Whether to hold the input exactly, b = (exp(dt A) - 1) / A B u (paper equation 4),
            instead of the first-order b = dt B u.
        precise: Whether to add (exp(dt A) - 1) h to h, so that decays within rounding of 1 keep their value:
            for memories beyond about 1e5 steps.
        backend: "auto", "triton", "torch" or "reference".

    Returns:
        out (B, L, D) in the dtype of `u`, or (out, state) with state (B, D, N[, 2]) in fp32 (fp64 if any
        input is fp64).

    Raises:
        InputError: Shapes, dtypes or devices that do not fit, or an unknown or unavailable backend.
    """
    inputs = ScanInputs(u, dt, A, B, C, D, z, dt_bias, h0, reset, dt_softplus, exact_zoh, precise)
    out, state = _scan(inputs, backend, state=return_state)
    return (out, state) if return_state else out  # type: ignore[return-value]


# What was prepared for calls on a GPU, by everything that decides about one but what is in its tensors and where these lie;
# None for a kind of call that is checked, and goes by PyTorch.
_prepared: dict[Any, Callable[[ScanInputs], tuple[Tensor, Tensor | None] | None] | None] = {}
# So many kinds, then anew: lengths that all differ would pile up.
_MOST = 4096


def _scan(inputs: ScanInputs, backend: str = "auto", *, state: bool = True) -> tuple[Tensor, Tensor | None]:
    """(out (B, L, D), last state (B, D, N[, 2])) by the path of this call; a prepared one has the state if it is wanted."""
    kind = inputs.u.device.type
    compiling = tracing("auto")
    if (kind == "cuda" or backend == "triton") and not compiling and backend in ("auto", "triton") and not plain():
        key = (
            backend,
            state,
            *inputs[10:],
            *[t if t is None else (t.dtype, t.device, t.shape, t.stride()) for t in inputs[:10]],
        )
        if key not in _prepared:
            if len(_prepared) >= _MOST:
                _prepared.clear()
            _prepared[key] = _prepare(inputs, backend, state)
        run = _prepared[key]
        found = None if run is None else run(inputs)
        if found is not None:
            return found
    else:
        _check(inputs)
    if compiling and backend == "auto":
        with torch.autocast(kind, enabled=False):
            return _operator(*inputs)  # type: ignore[no-any-return]
    choice = choose("selective_scan", backend, inputs.u, lambda: unsupported_reason(inputs))
    # State and sums stay in fp32 under autocast, in every backend.
    with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
        return _run(choice)(inputs)


def _prepare(
    inputs: ScanInputs, backend: str, state: bool
) -> Callable[[ScanInputs], tuple[Tensor, Tensor | None] | None] | None:
    """A prepared call of this kind, after its checks; None where it goes by PyTorch."""
    _check(inputs)
    if choose("selective_scan", backend, inputs.u, lambda: unsupported_reason(inputs)) != "triton":
        return None
    from mamba_bio_audio.kernels.scan.autograd import PreparedScan, run_prepared

    return partial(run_prepared, PreparedScan(inputs, last=state))


@cache
def _run(choice: str) -> Callable[[ScanInputs], tuple[Tensor, Tensor]]:
    if choice == "triton":
        from mamba_bio_audio.kernels.scan.autograd import run_scan

        return run_scan
    return scan_reference if choice == "reference" else scan_torch


def _check(inputs: ScanInputs) -> None:
    where = "selective_scan"
    u, A = inputs.u, inputs.A
    if u.ndim != 3 or u.shape[1] < 1:
        raise InputError(f"{where}: u must be (B, L, D) with L >= 1, not {shape_of(u)}")
    batch, length, channels = u.shape
    if A.ndim not in (2, 3) or A.shape[0] != channels or A.shape[1] < 1 or (A.ndim == 3 and A.shape[2] != 2):
        raise InputError(f"{where}: A must be (D={channels}, N) or complex (D={channels}, N, 2), not {shape_of(A)}")
    states = A.shape[1:]
    check(where, u, "u", u.shape, u)
    check(where, A, "A", A.shape, u)
    check(where, inputs.dt, "dt", (channels,) if inputs.dt.ndim == 1 else u.shape, u)
    for name, t in (("B", inputs.B), ("C", inputs.C)):
        selective, fixed = (batch, length, *states), (channels, *states)
        if t.shape not in (selective, fixed):
            kind = "complex A" if A.ndim == 3 else "real A"
            raise InputError(f"{where}: {name} must be {selective}, or {fixed} (LTI), for {kind}, not {shape_of(t)}")
        check(where, t, name, t.shape, u)
    check(where, inputs.D, "D", (channels,), u)
    check(where, inputs.z, "z", u.shape, u)
    check(where, inputs.dt_bias, "dt_bias", (channels,), u)
    check(where, inputs.h0, "h0", (batch, *A.shape), u)
    check_reset(where, inputs.reset, (batch, length), u)


def _fake(*inputs: Any) -> tuple[Tensor, Tensor]:
    u, _, A, *_ = inputs
    return u.new_empty(u.shape), A.new_empty((u.shape[0], *A.shape), dtype=ScanInputs(*inputs).state_dtype)


_operator = register(
    "selective_scan",
    ScanInputs,
    "(Tensor, Tensor)",
    ["Tensor? g_out", "Tensor? g_state"],
    lambda *inputs: _scan(ScanInputs(*inputs)),
    _fake,
)
