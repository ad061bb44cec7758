"""Linear head and cross entropy in vectorised PyTorch, on any device: the CPU path, which never holds all logits.

Equation as in `reference.py`. Logits, loss and gradients of a block of positions are made together, in fp32 (fp64 for fp64
inputs), blocks in a fixed order: results do not change from run to run.
"""

import torch
from torch import Tensor

from mamba_bio_audio.kernels.loss.gradients import apply_loss
from mamba_bio_audio.kernels.loss.reference import compute_dtype

_BLOCK_LOGITS = 1 << 20  # logits held at a time
_BLOCK_LOGITS_CUDA = 1 << 24  # the same on a GPU, which the host must keep busy


def loss_torch(x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Returns (summed loss, number of scored targets)."""
    return apply_loss(_blocks, x, weight, targets, ignore_index)


def _blocks(
    x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    dtype = compute_dtype(x, weight)
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
