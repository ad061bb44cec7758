"""The MLP that follows a mixer in a block.

    y = W2 gelu(W1 x)         or         y = W2 (silu(G x) * (U x)),   (G, U) = W1      (SwiGLU, Shazeer 2020)

Legend: B batch, L length, D channels, F inner channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MlpLayer(nn.Module):
    """A map of each position on its own; the state is empty.

    Args:
        d_model: channels D of input and output.
        inner: inner channels F.
        gated: SwiGLU; `in_proj` then holds the gate's F rows, and the others behind them.
        bias: give both maps biases.
        num_layers: residual branches of the network; `out_proj` is initialised scaled by 1/sqrt(num_layers).
    """

    streaming = "constant"
    resets = True

    def __init__(self, d_model: int, inner: int, gated: bool, bias: bool = False, num_layers: int = 1) -> None:
        super().__init__()
        self.gated = gated
        self.in_proj = nn.Linear(d_model, 2 * inner if gated else inner, bias=bias)
        self.out_proj = nn.Linear(inner, d_model, bias=bias)
        with torch.no_grad():
            self.out_proj.weight.div_(math.sqrt(num_layers))

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> tuple[()]:
        """Empty: the layer has no memory."""
        return ()

    def forward(
        self, x: Tensor, state: tuple[()] | None = None, *, reset: Tensor | None = None
    ) -> tuple[Tensor, tuple[()]]:
        """Apply the layer to a span (B, L, D); state and resets change nothing."""
        inner = self.in_proj(x)
        if self.gated:
            gate, inner = inner.chunk(2, -1)
            inner = F.silu(gate) * inner
        else:
            inner = F.gelu(inner)
        return self.out_proj(inner), ()
