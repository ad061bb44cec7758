"""Linear head and cross entropy in one operation that never holds all logits.

    logits_i = weight x_i        loss = sum_i (logsumexp(logits_i) - logits_i[target_i])        in nats

Positions whose target is `ignore_index` are not scored. Logits, loss and gradients of a block of positions
are made together, in fp32 (fp64 for fp64 inputs), blocks in a fixed order: results do not change from run to
run.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_bio_audio.kernels.differentiable_once import refuse_second_order, will_differentiate

_BLOCK_LOGITS = 1 << 20  # logits held at a time
_BLOCK_LOGITS_CUDA = 1 << 24  # the same on a GPU, which the host must keep busy


def _compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (x.dtype, weight.dtype) else torch.float32


def linear_cross_entropy_ref(x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Differentiable oracle with all logits."""
    dtype = _compute_dtype(x, weight)
    logits = x.to(dtype).reshape(-1, x.shape[-1]) @ weight.to(dtype).t()
    scored = targets != ignore_index
    loss = F.cross_entropy(logits, targets.flatten().long(), ignore_index=ignore_index, reduction="sum")
    return loss, scored.sum()


def linear_cross_entropy_torch(x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Returns (summed loss, number of scored targets)."""
    return apply_loss(_blocks, x, weight, targets, ignore_index)


def apply_loss(
    compute: Callable[..., Any], x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Loss and count by `compute`, which makes the gradients together with them and has the signature of `_blocks`."""
    if will_differentiate(x, weight):
        return _LossFn.apply(compute, x, weight, targets, ignore_index)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        loss, count, _, _ = compute(x, weight, targets, ignore_index, False, False)
    return loss, count


def _blocks(
    x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    dtype = _compute_dtype(x, weight)
    vocabulary, width = weight.shape
    rows, labels = x.reshape(-1, width), targets.reshape(-1).long()
    wide = weight.to(dtype)
    scored = labels != ignore_index
    loss = torch.zeros((), dtype=dtype, device=x.device)
    g_x = torch.empty(rows.shape, dtype=x.dtype, device=x.device) if need_x else None
    g_weight = torch.zeros_like(wide) if need_weight else None
    step = max(1, (_BLOCK_LOGITS_CUDA if x.is_cuda else _BLOCK_LOGITS) // vocabulary)
    for start in range(0, rows.shape[0], step):
        block = slice(start, start + step)
        values = rows[block].to(dtype)
        keep = scored[block].unsqueeze(1)
        label = labels[block].unsqueeze(1).masked_fill(~keep, 0)
        log_p = torch.log_softmax(values @ wide.t(), dim=1)
        loss -= torch.where(keep, log_p.gather(1, label), 0).sum()
        if not need_x and not need_weight:
            continue
        g = log_p.exp_()
        g.scatter_add_(1, label, g.new_full((1, 1), -1).expand_as(label))
        g.masked_fill_(~keep, 0)
        if g_x is not None:
            g_x[block] = g @ wide
        if g_weight is not None:
            g_weight.addmm_(g.t(), values)
    return loss, scored.sum(), None if g_x is None else g_x.view(x.shape), g_weight


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
