"""Output head and cross entropy in one, without all logits."""

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.kernels.loss.cpu import loss_torch
from mamba_bio_audio.kernels.loss.reference import loss_reference
from mamba_bio_audio.ops.calls import check, choose, shape_of, tracing
from mamba_bio_audio.ops.operators import register, state_dtype


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = -100, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Applies the output head and sums the cross entropy, without holding the logits of all positions.

        loss = sum_i -log softmax(weight x_i)[target_i]        over positions with target_i != ignore_index

    Args:
        x: Features (..., D).
        weight: Output head (V, D).
        targets: Class of each position (...), integers in [0, V) or `ignore_index`.
        ignore_index: Target of positions that are not scored.
        backend: "auto", "triton", "torch" or "reference".

    Returns:
        (loss, count): summed loss in nats, a 0-dimensional fp32 tensor (fp64 if an input is fp64), and the
        number of scored positions, a 0-dimensional int64 tensor.

    Raises:
        InputError: Shapes, dtypes, devices or targets that do not fit, or an unknown or unavailable backend.
    """
    where = "linear_cross_entropy"
    if x.ndim < 1 or x.shape[-1] < 1:
        raise InputError(f"{where}: x must be (..., D), not {shape_of(x)}")
    if weight.ndim != 2 or weight.shape[1] != x.shape[-1] or weight.shape[0] < 1:
        raise InputError(f"{where}: weight must be (V, D={x.shape[-1]}), not {shape_of(weight)}")
    check(where, x, "x", x.shape, x)
    check(where, weight, "weight", weight.shape, x)
    if targets.shape != x.shape[:-1]:
        raise InputError(f"{where}: targets must be {tuple(x.shape[:-1])} for x {shape_of(x)}, not {shape_of(targets)}")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise InputError(f"{where}: targets must be integers, not {targets.dtype}")
    if targets.device != x.device:
        raise InputError(f"{where}: targets are on {targets.device}, x is on {x.device}")
    if tracing(backend):
        with torch.autocast(x.device.type, enabled=False):
            return _operator(x, weight, targets, ignore_index)  # type: ignore[no-any-return]
    # A large vocabulary is no reason for a notice: there the products bind and the torch path is as good.
    choice = choose(where, backend, x, lambda: _kernels().unsupported_reason(x, weight), announce=False)
    if targets.device.type == "cpu":
        wrong = ((targets < 0) | (targets >= weight.shape[0])) & (targets != ignore_index)
        if wrong.any():
            raise InputError(
                f"{where}: target {int(targets[wrong][0])} is outside [0, {weight.shape[0]}) "
                f"and is not ignore_index={ignore_index}"
            )
    run = loss_reference if choice == "reference" else loss_torch
    if choice == "triton":
        run = _kernels().loss_triton
    with torch.autocast(x.device.type, enabled=False):
        return run(x, weight, targets, ignore_index)


@cache
def _kernels() -> ModuleType:
    from mamba_bio_audio.kernels.loss import gpu

    return gpu


_operator = register(
    "linear_cross_entropy",
    linear_cross_entropy,
    "(Tensor, Tensor)",
    ["Tensor g"],
    lambda x, weight, targets, ignore_index: linear_cross_entropy(x, weight, targets, ignore_index=ignore_index),
    lambda x, weight, targets, _: (
        x.new_empty((), dtype=state_dtype(x, weight)),
        targets.new_empty((), dtype=torch.int64),
    ),
)
