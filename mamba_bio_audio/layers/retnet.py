"""Retention, and the MLP that follows it in a block (Sun et al. 2023, arXiv 2307.08621).

    q, k, v, g = split(in_proj(x))        q and k rotated by angles t w_i        S_t = gamma S_(t-1) + v_t k_t'
    y = out_proj(norm_head(S_t q_t / sqrt(K)) silu(g))                           gamma_h = 1 - 2^(-5-h), fixed

It is the state space dual with a decay that no input changes. The paper's xPos is a rotation and a decay of its own; here,
as in other implementations, the rotation alone. Positions enter as differences t - s, so the state is kept as seen from the
position that comes next: it is turned on by the length of each span, holds no position, and is the same wherever a
sequence begins.

Legend: B batch, L length, D channels, H heads, K = D / H channels of keys per head, P = expand * K of values.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils._pytree import _register_namedtuple

from mamba_bio_audio.layers.config import WithMlp
from mamba_bio_audio.layers.contract import Flops, mixer
from mamba_bio_audio.layers.norm import RMSNorm
from mamba_bio_audio.ops import gated_rms_norm, ssd

_CHUNK = 64  # positions whose products the operation takes together in bf16
_LONGEST_PERIOD = 10_000.0
_SHORTEST_MEMORY = 5  # gamma of the first head is 1 - 2^-5


@mixer("retnet", mlp="gelu", mlp_expand=2)
class RetentionConfig(WithMlp):
    """Shape of a block: retention, then an MLP (by default the paper's)."""

    heads: int = Field(4, ge=1, le=64, description="heads; the width must be a multiple of twice their number")
    expand: int = Field(2, ge=1, le=64, description="channels of the values per model channel")
    norm_eps: float = Field(1e-5, gt=0, description="epsilon of the norm of each head")

    def check_width(self, width: int) -> None:
        """Each head has an even number of channels."""
        if width % (2 * self.heads):
            raise ValueError(
                f"heads: {self.heads} heads require a width that is a multiple of {2 * self.heads}, not {width}; change "
                "the heads or the width"
            )

    def layers(self, width: int, residuals: int) -> list[nn.Module]:
        """Retention, and the MLP that follows it."""
        return [RetentionLayer(width, self, residuals), *self.mlp_layers(width, residuals)]

    def num_parameters(self, width: int) -> int:
        """Five projections and the norm of retention, and the MLP."""
        return (2 + 3 * self.expand) * width * width + self.expand * width + self.mlp_parameters(width)

    def flops(self, width: int, length: int) -> Flops:
        """Maps; products within chunks of 64 positions and with the state between them."""
        values = self.expand * width
        maps = 2 * (2 + 3 * self.expand) * width * width + self.mlp_flops(width)
        return Flops(maps, 2 * _CHUNK * (width + values) + 4 * width // self.heads * values)


class RetentionState(NamedTuple):
    """State of a retention layer: its entire memory of earlier positions."""

    memory: Tensor  # (B, H, P, K), keys as seen from the next position; fp32, or fp64 for fp64 models


# torch.export.save refers to structures by name.
_register_namedtuple(RetentionState, serialized_type_name="mamba_bio_audio.RetentionState")


class RetentionLayer(nn.Module):
    """Multi-scale retention.

    Args:
        d_model: channels D of input and output.
        config: heads and widths.
        num_layers: residual branches of the network; `out_proj` is initialised scaled by 1/sqrt(num_layers).
    """

    streaming = "constant"
    resets = True

    def __init__(self, d_model: int, config: RetentionConfig, num_layers: int = 1) -> None:
        super().__init__()
        config.check_width(d_model)
        self.config = config
        self.d_model, self.d_values, self.heads = d_model, config.expand * d_model, config.heads
        self.in_proj = nn.Linear(d_model, 2 * d_model + 2 * self.d_values, bias=False)
        self.norm = RMSNorm(self.d_values, config.norm_eps)  # its weight alone is used
        self.out_proj = nn.Linear(self.d_values, d_model, bias=False)
        with torch.no_grad():
            self.out_proj.weight.div_(math.sqrt(num_layers))

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> RetentionState:
        """Zero state; `dtype` is the activation dtype."""
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        heads = self.heads
        return RetentionState(
            torch.zeros(batch, heads, self.d_values // heads, self.d_model // heads, device=device, dtype=dtype)
        )

    def forward(
        self, x: Tensor, state: RetentionState | None = None, *, reset: Tensor | None = None
    ) -> tuple[Tensor, RetentionState]:
        """Apply the layer to a span.

        Args:
            x: (B, L, D), any L >= 1.
            state: state at the end of the preceding span; None means zeros.
            reset: bool (B, L), the state is zeroed before these positions.

        Returns:
            y (B, L, D) and the state at the end of the span.
        """
        (batch, length, _), width = x.shape, self.d_model
        q, k, v, gate = self.in_proj(x).split([width, width, self.d_values, self.d_values], dim=2)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        cos, sin = self._angles(length + 1, x.device, wide)
        q, k, v = (t.unflatten(2, (self.heads, -1)) for t in (q, k, v))
        q, k = _turned(q, cos[:length], sin[:length]), _turned(k, cos[:length], sin[:length])
        # log1p: gamma itself would be rounded.
        memories = torch.arange(self.heads, device=x.device, dtype=torch.float64) + _SHORTEST_MEMORY
        decay = torch.log1p(-torch.exp2(-memories)).to(wide).expand(batch, length, self.heads)
        h0 = None if state is None else state.memory
        q = q * (width // self.heads) ** -0.5
        y, h = ssd(v, decay, k, q, h0=h0, return_state=True, reset=reset)
        # Seen from the next position, all keys lie `length` further back.
        h = _turned(h, cos[length], -sin[length])
        y = gated_rms_norm(y.flatten(2), gate, self.norm.weight, self.norm.eps, groups=self.heads, gate_first=False)
        return self.out_proj(y), RetentionState(h)

    def _angles(self, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine (length, 1, K / 2) of position times frequency."""
        half = self.d_model // self.heads // 2
        # In fp64: far from the start, the error of an fp32 angle exceeds the layer's tolerance.
        rates = _LONGEST_PERIOD ** (-torch.arange(half, device=device, dtype=torch.float64) / half)
        angles = (torch.arange(length, device=device, dtype=torch.float64)[:, None] * rates)[:, None]
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, heads={self.heads}"


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of channels (i, i + K / 2) of x (..., K) by their angles; returns the dtype of x."""
    first, second = x.to(cos.dtype).chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1).to(x.dtype)
