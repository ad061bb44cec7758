"""H3: two state space models between three projections (Fu et al. 2023, arXiv 2212.14052).

    q, k, v = split(in_proj(x))
    k' = shift(k) + S k                                    S one number a channel
    y = diagonal(k' v')                                    of every pair of channels of k' and v within a head
    output = out_proj(q' y)                                summed over the head's channels of q

The shift model moves its N states on by one place each step, adds B k_t to them and reads C s_t. It is a filter of N taps,
tap l = sum_n B_n C_(n+l), and its state is the last N - 1 of k. The diagonal one is the scan of `ops.selective_scan` with
parameters that do not depend on time: a recurrence with a state, not an FFT.

Legend: B batch, L length, D channels, P channels of a head, N states.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mamba_bio_audio.layers.contract import Flops, mixer
from mamba_bio_audio.layers.s4d import DiagonalConfig, DiagonalSsm


@mixer("h3", mlp="gelu")
class H3Config(DiagonalConfig):
    """Shape of an H3 block; by default with an MLP, as in its language models."""

    d_shift: int = Field(64, ge=1, le=512, description="states of the shift model: taps of its filter")
    head_dim: int = Field(
        1,
        ge=1,
        le=64,
        description="channels of a head, each of which meets each; the diagonal model has as many times D",
    )

    def check_width(self, width: int) -> None:
        """Heads divide the channels."""
        if width % self.head_dim:
            raise ValueError(f"head_dim: {width} channels are not a multiple of {self.head_dim}; change one of them")

    def layers(self, width: int, residuals: int) -> list[nn.Module]:
        """H3, and the MLP that follows it."""
        return [H3Layer(width, self, residuals), *self.mlp_layers(width, residuals)]

    def num_parameters(self, width: int) -> int:
        """Four projections with biases, both models, and the MLP."""
        shift = width * (2 * self.d_shift + 1)
        both = shift + self.diagonal_parameters(width // self.head_dim)
        return 4 * width * (width + 1) + both + self.mlp_parameters(width)

    def flops(self, width: int, length: int) -> Flops:
        """Four maps; the filter, and the scan of every pair of channels of a head."""
        rest = 2 * self.d_shift * width + self.diagonal_flops(width * self.head_dim)
        return Flops(8 * width * width + self.mlp_flops(width), rest)


class H3State(NamedTuple):
    """State of an H3 layer: its entire memory of earlier positions."""

    tail: Tensor  # (B, d_shift - 1, D), the last k, in the activation dtype
    ssm: Tensor  # (B, P D, N / 2, 2), fp32, or fp64 for fp64 models


class H3Layer(nn.Module):
    """One H3 mixer.

    Args:
        d_model: channels D of input and output.
        config: shape and initialisation.
        num_layers: residual branches of the network; `out_proj` is initialised scaled by 1/sqrt(num_layers).
    """

    streaming = "constant"
    resets = True

    def __init__(self, d_model: int, config: H3Config, num_layers: int = 1) -> None:
        super().__init__()
        config.check_width(d_model)
        self.d_model, self.d_shift, self.head_dim = d_model, config.d_shift, config.head_dim
        self.in_proj = nn.Linear(d_model, 3 * d_model)
        first = torch.zeros(d_model, config.d_shift)
        first[:, 0] = 1.0
        self.shift_B = nn.Parameter(first)
        self.shift_C = nn.Parameter(torch.empty(d_model, config.d_shift).uniform_(-1, 1) / math.sqrt(config.d_shift))
        self.shift_D = nn.Parameter(torch.randn(d_model))
        self.shift_D._no_weight_decay = True  # type: ignore[attr-defined]
        self.ssm = DiagonalSsm(d_model // config.head_dim, config)
        self.out_proj = nn.Linear(d_model, d_model)
        with torch.no_grad():
            self.out_proj.weight.div_(math.sqrt(num_layers))

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> H3State:
        """Zero state; `dtype` is the activation dtype."""
        tail = torch.zeros(batch, self.d_shift - 1, self.d_model, device=device, dtype=dtype)
        return H3State(tail, self.ssm.init_state(batch, device, dtype, self.head_dim**2))

    def forward(
        self, x: Tensor, state: H3State | None = None, *, reset: Tensor | None = None
    ) -> tuple[Tensor, H3State]:
        """Apply the layer to a span.

        Args:
            x: (B, L, D), any L >= 1.
            state: state at the end of the preceding span; None means zeros.
            reset: bool (B, L), the state is zeroed before these positions.

        Returns:
            y (B, L, D) and the state at the end of the span.
        """
        q, k, v = self.in_proj(x).chunk(3, -1)
        if state is None:
            state = self.init_state(len(x), x.device, k.dtype)
        keys = torch.cat([state.tail.to(k.dtype), k], 1)
        shifted = _filter(keys, self.taps(), x.shape[1], reset).to(k.dtype)
        pairs = shifted.unflatten(2, (-1, self.head_dim, 1)) * v.unflatten(2, (-1, 1, self.head_dim))
        y, ssm = self.ssm(pairs.flatten(2), state.ssm, reset, self.head_dim**2)
        y = (y.unflatten(2, (-1, self.head_dim, self.head_dim)) * q.unflatten(2, (-1, self.head_dim, 1))).sum(3)
        tail = keys[:, x.shape[1] :]
        if reset is not None:
            # Nothing before the last reset.
            number = F.pad(reset.cumsum(1), (self.d_shift - 1, 0))[:, x.shape[1] :]
            tail = tail * (number == reset.sum(1, keepdim=True))[..., None]
        return self.out_proj(y.flatten(2)), H3State(tail, ssm)

    def taps(self) -> Tensor:
        """The shift model's filter with the skip (D, N), tap 0 first."""
        windows = F.pad(self.shift_C, (0, self.d_shift - 1)).unfold(1, self.d_shift, 1)  # (D, l, n): C_(l+n)
        taps = (windows * self.shift_B[:, None]).sum(2)
        return torch.cat([taps[:, :1] + self.shift_D[:, None], taps[:, 1:]], 1)


def _filter(keys: Tensor, taps: Tensor, length: int, reset: Tensor | None) -> Tensor:
    """Each channel through its filter.

    Args:
        keys: (B, N - 1 + L, D), the span and what precedes it.
        taps: (D, N), tap 0 on the position itself.
        length: L.
        reset: bool (B, L), no tap reaches back across these positions.

    Returns:
        (B, L, D) in fp32, or fp64.
    """
    wide = torch.float64 if keys.dtype == torch.float64 else torch.float32
    keys, taps = keys.to(wide), taps.to(wide)
    count = taps.shape[1]
    if reset is None:
        with torch.autocast(keys.device.type, enabled=False):
            return F.conv1d(keys.mT, taps.flip(1)[:, None], groups=len(taps)).mT
    owner = F.pad(reset.cumsum(1), (count - 1, 0))
    y = torch.zeros_like(keys[:, :length])
    for tap in range(count):
        low = count - 1 - tap
        same = owner[:, low : low + length] == owner[:, count - 1 :]
        y = y + taps[:, tap] * keys[:, low : low + length].masked_fill(~same[..., None], 0)
    return y
