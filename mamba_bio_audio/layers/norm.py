"""Root mean square normalisation (Zhang & Sennrich 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mamba_bio_audio.ops import rms_norm


class RMSNorm(nn.Module):
    """`y = x / sqrt(mean(x^2) + eps) * weight` over the last axis, optionally fused with the residual add.

    Args:
        size: channels D.
        eps: added to the mean square.
    """

    def __init__(self, size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalise `x + residual`.

        Args:
            x: (B, L, D).
            residual: (B, L, D) fp32 stream (fp64 for fp64 inputs), or None at the first layer.

        Returns:
            y (B, L, D) in the dtype of x, and the new residual stream x + residual.
        """
        if residual is None:
            stream = x if x.dtype == torch.float64 else x.float()
            return rms_norm(x, self.weight, self.eps), stream
        return rms_norm(x, self.weight, self.eps, residual=residual)
