"""The Hyena operator of order 2, with the filter of HyenaDNA (Poli et al. 2023, arXiv 2302.10866; Nguyen et al. 2023).

    x0, x1, v = split(conv1d(in_proj(x)))                  depthwise, causal, 3 taps
    w = x1 * v;   y_t = sum_(s <= t) h_(t-s) w_s + F w_t   F one number a channel
    output = out_proj(x0 * y)

The filter h is as long as the longest sequence: an MLP with sines gives it at each position l from t = l / (max_length - 1)
and cosines and sines of it, times exp(-t |delta|) with a delta for each channel. Both depend on max_length, so the same
weights with another one are another filter.

It is computed with FFTs in fp32 whatever the activations are. They mix all positions before rounding, so an output moves with
later inputs by rounding: up to about 1e-7 of the largest product times log2 L. The filter has full rank and no finite state:
the layer cannot carry one.

Legend: B batch, L length, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.layers.config import WithMlp
from mamba_bio_audio.layers.contract import Flops, Streaming, mixer
from mamba_bio_audio.layers.wide import kept_wide
from mamba_bio_audio.ops import causal_conv1d

# exp(-t |delta|) is this at t = 0.3 in the channel that forgets fastest, and at 1.5, beyond the end, in the slowest.
_TARGET, _FASTEST, _SLOWEST = 1e-2, 0.3, 1.5
_LOWEST_BAND = 1e-4


@mixer("hyena", mlp="gelu")
class HyenaConfig(WithMlp):
    """Shape of a Hyena block; the MLP is that of a transformer."""

    max_length: int = Field(
        1024,
        ge=2,
        le=1 << 30,
        description="longest sequence, which sets the scale of the filter; weights belong to one value",
    )
    d_conv: int = Field(3, ge=1, le=8, description="width of the short convolution")
    emb_dim: int = Field(
        5, ge=3, le=1025, description="inputs of the filter's MLP: the position, and pairs of waves; odd"
    )
    filter_width: int = Field(64, ge=1, le=1 << 16, description="inner channels of the filter's MLP")
    frequency: float = Field(10.0, gt=0, description="initial frequency of its sines")

    @property
    def streaming(self) -> Streaming:
        """It cannot carry a state."""
        return "none"

    @property
    def longest(self) -> int:
        """Positions of a sequence at most."""
        return self.max_length

    def check_width(self, width: int) -> None:
        """The inputs of the filter are one and pairs."""
        if self.emb_dim % 2 == 0:
            raise ValueError(
                f"emb_dim: {self.emb_dim} is even; it counts the position and pairs of waves, so choose an odd"
            )

    def layers(self, width: int, residuals: int) -> list[nn.Module]:
        """Hyena, and the MLP that follows it."""
        return [HyenaLayer(width, self, residuals), *self.mlp_layers(width, residuals)]

    def num_parameters(self, width: int) -> int:
        """Projections and short convolution with biases, the filter, and the MLP."""
        inner = self.filter_width
        mlp = (self.emb_dim + 1) * inner + 2 * (inner + 1) * inner + inner * width + inner
        count = 4 * width * (width + 1) + 3 * width * (self.d_conv + 1) + width + mlp
        return count + self.mlp_parameters(width)

    def flops(self, width: int, length: int) -> Flops:
        """Four maps; two FFTs of length 2 L at 2.5 n log2 n, and the short convolution. The filter is made once a batch."""
        fft = 10 * math.log2(2 * length) + 6
        return Flops(8 * width * width + self.mlp_flops(width), width * (fft + 6 * self.d_conv))


class HyenaFilter(nn.Module):
    """The long filter (l, D).

    Args:
        width: channels D.
        config: shape.
    """

    def __init__(self, width: int, config: HyenaConfig) -> None:
        super().__init__()
        self.width, self.max_length, self.emb_dim = width, config.max_length, config.emb_dim
        inner = config.filter_width
        self.first = nn.Linear(config.emb_dim, inner)
        self.hidden = nn.ModuleList(nn.Linear(inner, inner) for _ in range(2))
        self.last = nn.Linear(inner, width, bias=False)
        self.frequency = nn.Parameter(torch.full((inner,), config.frequency))
        for parameter in self.parameters():
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HyenaFilter:
        # Rounded weights would give another filter.
        with kept_wide(lambda: list(self.parameters())):
            super()._apply(fn, recurse)
        return self

    def forward(self, length: int) -> Tensor:
        """The first `length` taps (length, D), in fp32 or fp64."""
        weight = self.last.weight
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        with torch.autocast(weight.device.type, enabled=False):
            t = torch.arange(length, device=weight.device, dtype=torch.float64)[:, None] / (self.max_length - 1)
            bands = (self.emb_dim - 1) // 2
            # In fp64: the products are rounded once, as angles.
            waves = torch.linspace(_LOWEST_BAND, bands - 1, bands, device=weight.device, dtype=torch.float64)
            angles = 2 * math.pi * t * ((self.max_length - 1) / self.max_length) * waves
            x = torch.cat([t, angles.cos(), -angles.sin()], 1).to(wide)
            frequency = self.frequency.to(wide)
            for layer in (self.first, *self.hidden):
                assert isinstance(layer, nn.Linear)
                x = torch.sin(frequency * F.linear(x, layer.weight.to(wide), layer.bias.to(wide)))
            h = F.linear(x, weight.to(wide))
            slowest, fastest = (math.log(_TARGET) / at for at in (_SLOWEST, _FASTEST))
            delta = torch.linspace(slowest, fastest, self.width, device=weight.device, dtype=torch.float64)
            return h * (t * delta).exp().to(wide)


class HyenaLayer(nn.Module):
    """One Hyena mixer of order 2; a state or a reset raises `ValueError`.

    Args:
        d_model: channels D of input and output.
        config: shape.
        num_layers: residual branches of the network; `out_proj` is initialised scaled by 1/sqrt(num_layers).
    """

    streaming = "none"
    resets = False

    def __init__(self, d_model: int, config: HyenaConfig, num_layers: int = 1) -> None:
        super().__init__()
        config.check_width(d_model)
        self.max_length = config.max_length
        self.in_proj = nn.Linear(d_model, 3 * d_model)
        # Holds weight (3 D, 1, W) and bias; `forward` never calls it.
        self.conv1d = nn.Conv1d(3 * d_model, 3 * d_model, config.d_conv, groups=3 * d_model)
        self.filter = HyenaFilter(d_model, config)
        self.skip = nn.Parameter(torch.randn(d_model))
        self.skip._no_weight_decay = True  # type: ignore[attr-defined]
        self.out_proj = nn.Linear(d_model, d_model)
        with torch.no_grad():
            self.out_proj.weight.div_(math.sqrt(num_layers))

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> tuple[()]:
        """Empty: there is no state, and `forward` takes none."""
        return ()

    def forward(
        self, x: Tensor, state: tuple[()] | None = None, *, reset: Tensor | None = None
    ) -> tuple[Tensor, tuple[()]]:
        """Apply the layer to a whole sequence.

        Args:
            x: (B, L, D), at most `max_length` positions.
            state, reset: None.

        Returns:
            y (B, L, D), and an empty state.

        Raises:
            ValueError: a state or a reset.
            InputError: a longer sequence.
        """
        if state is not None:
            raise ValueError("a Hyena layer cannot carry a state: state= must be None, so give it whole sequences")
        if reset is not None:
            raise ValueError("a Hyena layer cannot start a sequence inside a span: reset= must be None")
        length = x.shape[1]
        if length > self.max_length:
            raise InputError(
                f"a sequence of {length:,} positions, and the filters of this Hyena model are for {self.max_length:,} "
                "(model.options.max_length); give shorter ones, or train with a larger value"
            )
        conv = self.conv1d
        x0, x1, v = causal_conv1d(self.in_proj(x), conv.weight.squeeze(1), conv.bias, activation=None).chunk(3, -1)
        w = x1 * v
        y = long_convolution(w, self.filter(length), self.skip)
        return self.out_proj(x0 * y), ()

    def extra_repr(self) -> str:
        return f"max_length={self.max_length}"


def long_convolution(u: Tensor, taps: Tensor, skip: Tensor) -> Tensor:
    """`y_t = sum_(s <= t) taps_(t-s) u_s + skip u_t` by FFTs of length 2 L in fp32 (fp64 for fp64 inputs).

    Args:
        u: (B, L, D).
        taps: (L, D).
        skip: (D,).

    Returns:
        (B, L, D) in the dtype of u.
    """
    length = u.shape[1]
    wide = torch.float64 if u.dtype == torch.float64 else torch.float32
    with torch.autocast(u.device.type, enabled=False):
        # The transform runs along the last axis, where neighbours are neighbours in memory.
        size = _fast_size(2 * length)
        inputs, taps = u.to(wide).mT, taps.to(wide).mT
        product = torch.fft.rfft(inputs, n=size) * torch.fft.rfft(taps, n=size)
        y = torch.fft.irfft(product, n=size)[..., :length].mT
        return (y + skip.to(wide) * u.to(wide)).to(u.dtype)


def _fast_size(least: int) -> int:
    """The smallest length from `least` on that is 2^k, 3 * 2^k or 5 * 2^k, which FFT libraries are fast at."""
    return min(factor << max(0, math.ceil(math.log2(least / factor))) for factor in (1, 3, 5))
