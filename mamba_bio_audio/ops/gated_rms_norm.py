"""Root-mean-square normalisation of groups of channels with a gate, as Mamba-2 and retention end."""

from functools import cache
from types import ModuleType

from torch import Tensor

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.kernels.norm.gated import gated_norm_reference, gated_norm_torch
from mamba_bio_audio.ops.calls import check, choose, shape_of, tracing
from mamba_bio_audio.ops.operators import register


def gated_rms_norm(
    x: Tensor,
    gate: Tensor,
    weight: Tensor,
    eps: float = 1e-5,
    *,
    groups: int = 1,
    gate_first: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Normalises groups of channels by their root mean square, and gates them before or after.

        y = norm(x silu(gate)) weight        or, with `gate_first=False`,        y = norm(x) weight silu(gate)

    Mamba-2 (arXiv 2405.21060) section 7 gates first; retention (arXiv 2307.08621) gates last and has a group a head.

    Args:
        x: (..., D).
        gate: (..., D).
        weight: (D,).
        eps: Added to the mean squares.
        groups: Channels next to each other that are normalised together are D / groups.
        gate_first: Whether the gate is normalised too.
        backend: "auto", "triton", "torch" or "reference".

    Returns:
        y (..., D) in the dtype of `x`; sums in fp32 (fp64 if x or the gate is fp64).

    Raises:
        InputError: Shapes, dtypes or devices that do not fit, or an unknown or unavailable backend.
    """
    return _normalise(x, gate, weight, eps, groups, gate_first, backend)


def _normalise(
    x: Tensor, gate: Tensor, weight: Tensor, eps: float, groups: int, gate_first: bool, backend: str = "auto"
) -> Tensor:
    where = "gated_rms_norm"
    if x.ndim < 1 or x.shape[-1] < 1 or groups < 1 or x.shape[-1] % groups:
        raise InputError(f"{where}: x must be (..., D) with D a multiple of {groups} groups, not {shape_of(x)}")
    check(where, x, "x", x.shape, x)
    check(where, gate, "gate", x.shape, x)
    check(where, weight, "weight", x.shape[-1:], x)
    if tracing(backend):
        return _operator(x, gate, weight, eps, groups, gate_first)  # type: ignore[no-any-return]
    choice = choose(where, backend, x, lambda: _kernels().unsupported_reason(x, gate, weight, groups))
    run = gated_norm_reference if choice == "reference" else gated_norm_torch
    if choice == "triton":
        run = _kernels().gated_norm_triton
    return run(x, gate, weight, eps, groups, gate_first)


@cache
def _kernels() -> ModuleType:
    from mamba_bio_audio.kernels.norm import gated_gpu

    return gated_gpu


_operator = register(
    "gated_rms_norm", _normalise, "Tensor", ["Tensor g"], _normalise, lambda x, *rest: x.new_empty(x.shape)
)
