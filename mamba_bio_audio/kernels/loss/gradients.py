"""A loss whose gradients are made together with it, as an autograd function."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mamba_bio_audio.kernels.differentiable_once import refuse_second_order, will_differentiate


def apply_loss(
    compute: Callable[..., Any], x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Loss and count by `compute`, which makes the gradients together with them (`cpu.py` has one)."""
    if will_differentiate(x, weight):
        return _LossFn.apply(compute, x, weight, targets, ignore_index)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        loss, count, _, _ = compute(x, weight, targets, ignore_index, False, False)
    return loss, count


class _LossFn(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, compute: Callable[..., Any], x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int
    ) -> tuple[Tensor, Tensor]:
        need_x, need_weight = ctx.needs_input_grad[1:3]
        with torch.autocast(x.device.type, enabled=False):
            loss, count, g_x, g_weight = compute(x, weight, targets, ignore_index, need_x, need_weight)
        ctx.save_for_backward(g_x, g_weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(count)
        return loss, count

    @staticmethod
    def backward(ctx: Any, g_loss: Tensor, _: Tensor) -> Any:
        g_x, g_weight = ctx.saved_tensors
        with torch.no_grad():
            # New tensors: the saved ones must survive a second backward.
            g_x = None if g_x is None else (g_x * g_loss).to(g_x.dtype)
            g_weight = None if g_weight is None else (g_weight * g_loss).to(ctx.weight_dtype)
        return None, *refuse_second_order("linear_cross_entropy", (g_x, g_weight)), None, None
