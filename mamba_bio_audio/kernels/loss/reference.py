"""Oracle of the linear head with cross entropy.

    logits_i = weight x_i        loss = sum_i (logsumexp(logits_i) - logits_i[target_i])        in nats

Positions whose target is `ignore_index` are not scored. Everything in fp32, fp64 for fp64 inputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """Of logits, loss and gradients."""
    return torch.float64 if torch.float64 in (x.dtype, weight.dtype) else torch.float32


def loss_reference(x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Differentiable oracle with all logits."""
    dtype = compute_dtype(x, weight)
    logits = x.to(dtype).reshape(-1, x.shape[-1]) @ weight.to(dtype).t()
    scored = targets != ignore_index
    loss = F.cross_entropy(logits, targets.flatten().long(), ignore_index=ignore_index, reduction="sum")
    return loss, scored.sum()
