"""Oracle of the short depthwise causal convolution over time, with its state.

    pre_t = bias + sum_k weight[:, k] x_(t - W + 1 + k)        out_t = silu(pre_t)

x (B, L, D) channels last, weight (D, W); `tail` (B, W-1, D) holds the inputs before the span (zeros if None).
A tap that would reach across a reset reads zero. Sums in fp32, fp64 for fp64 inputs. Mamba (arXiv 2312.00752)
section 3.4, figure 3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def conv_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = "silu",
    tail: Tensor | None = None,
    reset: Tensor | None = None,
) -> Tensor:
    """Differentiable oracle: one output position at a time, one tap at a time."""
    dtype = torch.float64 if torch.float64 in (x.dtype, weight.dtype) else torch.float32
    batch, length, channels = x.shape
    width = weight.shape[1]
    before = torch.zeros(batch, width - 1, channels, dtype=dtype, device=x.device) if tail is None else tail.to(dtype)
    inputs = torch.cat([before, x.to(dtype)], dim=1)
    outs = []
    for t in range(length):
        out = torch.zeros(batch, channels, dtype=dtype, device=x.device)
        for lag in range(width):
            value = inputs[:, t + width - 1 - lag]
            if reset is not None:
                crossed = reset[:, max(t - lag + 1, 0) : t + 1].any(1, keepdim=True)
                value = torch.where(crossed, torch.zeros_like(value), value)
            out = out + weight[:, width - 1 - lag].to(dtype) * value
        if bias is not None:
            out = out + bias.to(dtype)
        outs.append(F.silu(out) if activation == "silu" else out)
    return torch.stack(outs, dim=1).to(x.dtype)
