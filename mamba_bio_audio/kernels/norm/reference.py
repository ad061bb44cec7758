"""Oracle of root-mean-square normalisation over channels, optionally after adding to the residual stream.

    r = x + residual        y = r / sqrt(mean(r^2) + eps) * weight

The residual stream is fp32 (fp64 for fp64 inputs) whatever the activations are. Zhang and Sennrich, arXiv
1910.07467; placement as in Mamba (arXiv 2312.00752) section 3.4.
"""

import torch
from torch import Tensor


def compute_dtype(x: Tensor, residual: Tensor | None) -> torch.dtype:
    """Of the stream and of all sums."""
    is_double = x.dtype == torch.float64 or (residual is not None and residual.dtype == torch.float64)
    return torch.float64 if is_double else torch.float32


def norm_reference(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns (y in x.dtype, residual stream); differentiable to any order."""
    dtype = compute_dtype(x, residual)
    stream = x.to(dtype) if residual is None else x.to(dtype) + residual.to(dtype)
    scale = torch.rsqrt(stream.square().mean(-1, keepdim=True) + eps)
    return (stream * scale * weight.to(dtype)).to(x.dtype), stream
