"""The state of the causal convolution: its last W - 1 inputs, (B, W-1, D)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def segments(reset: Tensor) -> Tensor:
    """Number of resets up to and including each position, (B, L)."""
    return reset.cumsum(1)


def next_tail(x: Tensor, tail: Tensor | None, width: int, reset: Tensor | None) -> Tensor:
    """The last W-1 inputs (B, W-1, D) in x.dtype; zeros before the start and before a reset."""
    batch, length, channels = x.shape
    if length >= width - 1:
        out = x[:, length - (width - 1) :]
        if reset is None:
            return out.clone()
    else:
        before = x.new_zeros(batch, width - 1, channels) if tail is None else tail.to(x.dtype)
        out = torch.cat([before[:, length:], x], dim=1)
    kept = kept_in_tail(reset, width, length)
    return out if kept is None else torch.where(kept, out, torch.zeros_like(out))


def kept_in_tail(reset: Tensor | None, width: int, length: int) -> Tensor | None:
    """Which of the last W-1 inputs (B, W-1, 1) no reset cuts off; None where all are kept."""
    if reset is None or width == 1:
        return None
    seen = F.pad(segments(reset), (max(width - 1 - length, 0), 0))[:, -(width - 1) :]
    return (seen == seen[:, -1:]).unsqueeze(2)
