"""Causal self-attention with rotary positions, and the MLP that follows it in a transformer block.

    y_t = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s,   s <= t;   q and k rotated by angles t w_i (Su et al. 2021)

Positions enter only as differences t - s, so a sequence that starts in the middle of a span gives the same output as one
that starts with it. The state holds every key and value so far and grows with the length. Models with such a layer are
therefore not streamed in training, and their memory grows during generation.

Legend: B batch, L positions of the span, D channels, T positions so far with the span, H heads, d channels per head.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from mamba_bio_audio.layers.config import AttentionConfig


_LONGEST_PERIOD = 10_000.0


class AttentionState(NamedTuple):
    """Keys and values of all positions so far, in the activation dtype; zero before a row's last reset."""

    keys: Tensor  # (B, T, H, d), rotated by their positions
    values: Tensor  # (B, T, H, d)
    seen: Tensor  # (B, T): 1 within the row's current sequence, 0 before it


class AttentionLayer(nn.Module):
    """Multi-head attention to each position itself and all earlier ones.

    Args:
        d_model: channels D of input and output.
        config: heads; each has an even number of channels.
        num_layers: residual branches of the network; `out_proj` is initialised scaled by 1/sqrt(num_layers).
    """

    streaming = "growing"
    resets = True

    def __init__(self, d_model: int, config: AttentionConfig, num_layers: int = 1) -> None:
        super().__init__()
        config.check_width(d_model)
        self.d_model = d_model
        self.heads = config.heads
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        with torch.no_grad():
            self.out_proj.weight.div_(math.sqrt(num_layers))

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> AttentionState:
        """Empty state, T = 0; `dtype` is the activation dtype."""
        none = torch.zeros(batch, 0, self.heads, self.d_model // self.heads, device=device, dtype=dtype)
        return AttentionState(none, none.clone(), none.new_zeros(batch, 0))

    def forward(
        self, x: Tensor, state: AttentionState | None = None, *, reset: Tensor | None = None
    ) -> tuple[Tensor, AttentionState]:
        """Apply the layer to a span.

        Args:
            x: (B, L, D), any L >= 1.
            state: state at the end of the preceding span; None at the start.
            reset: bool (B, L), from these positions on nothing earlier is attended to.

        Returns:
            y (B, L, D) and the state at the end of the span.
        """
        length, past = x.shape[1], 0 if state is None else state.keys.shape[1]
        queries, keys, values = self.in_proj(x).unflatten(2, (3, self.heads, -1)).unbind(2)  # (B, L, H, d) each
        cos, sin = self._angles(past, length, x)
        queries, keys = (_turn(part, cos, sin) for part in (queries, keys))
        seen = keys.new_ones(keys.shape[:2])
        if state is not None and past:
            keys = torch.cat([state.keys.to(keys.dtype), keys], 1)
            values = torch.cat([state.values.to(values.dtype), values], 1)
            seen = torch.cat([state.seen.to(seen.dtype), seen], 1)
        q, k, v = (part.transpose(1, 2) for part in (queries, keys, values))
        mask = None
        if past or reset is not None:
            at = torch.arange(past + length, device=x.device)
            mask = (at <= at[past:, None]) & (seen > 0)[:, None]  # (B, L, T)
        if reset is not None:
            number = reset.cumsum(1)  # index of the sequence in the row; 0 is the one that precedes the span
            owner = F.pad(number, (past, 0))
            assert mask is not None
            mask = mask & (owner[:, None] == number[:, :, None])
            seen = seen * (owner == number[:, -1:])
            keys, values = keys * seen[:, :, None, None], values * seen[:, :, None, None]
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=None if mask is None else mask[:, None], is_causal=mask is None
        )
        return self.out_proj(y.transpose(1, 2).flatten(2)), AttentionState(keys, values, seen)

    def _angles(self, start: int, length: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine (L, 1, d / 2) of position times frequency."""
        half = self.d_model // self.heads // 2
        # In fp64: far from the start, the error of an fp32 angle exceeds the layer's tolerance.
        rates = _LONGEST_PERIOD ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
        angles = (torch.arange(start, start + length, device=x.device, dtype=torch.float64)[:, None] * rates)[:, None]
        wide = x.dtype if x.dtype == torch.float64 else torch.float32
        return angles.cos().to(wide), angles.sin().to(wide)

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, heads={self.heads}"


class MlpLayer(nn.Module):
    """`y = W2 gelu(W1 x)` at each position; the state is empty.

    Args:
        d_model: channels D of input and output.
        expand: inner channels per model channel.
        num_layers: as for `AttentionLayer`.
    """

    streaming = "constant"
    resets = True

    def __init__(self, d_model: int, expand: int, num_layers: int = 1) -> None:
        super().__init__()
        self.in_proj = nn.Linear(d_model, expand * d_model, bias=False)
        self.out_proj = nn.Linear(expand * d_model, d_model, bias=False)
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
        return self.out_proj(F.gelu(self.in_proj(x))), ()


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of channels (i, i + d / 2) of x (B, L, H, d) by their angles; returns the dtype of x."""
    a, b = x.to(cos.dtype).chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)
