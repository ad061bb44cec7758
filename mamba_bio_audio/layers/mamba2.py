"""The Mamba-2 layer: one projection, causal convolution and the state space dual (Dao & Gu 2024, arXiv 2405.21060, section 7).

    z, xBC, dt = split(in_proj(input))
    x, B, C = split(silu(conv1d(xBC)))                       depthwise, causal
    dt = softplus(dt + dt_bias); A = -exp(A_log)             one number per head
    y = ssd(x, exp(dt A), B, C, dt) + D x
    output = out_proj(norm(y * silu(z)))

Legend: B batch, L length, D model channels, E = expand * D inner channels, H = E / P heads of P channels, G groups of B and
C, N states, W convolution width. Parameters have the names that mamba_ssm and Hugging Face use.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils._pytree import _register_namedtuple

from mamba_bio_audio.layers.contract import Flops, MixerConfig, mixer
from mamba_bio_audio.layers.norm import RMSNorm
from mamba_bio_audio.layers.wide import kept_wide
from mamba_bio_audio.ops import Mamba2Weights, mamba2_mixer

_CHUNK = 64  # positions whose products the operation takes together in bf16
_WIDEST_HEAD = 64  # of those that "auto" makes


@mixer("mamba2")
class Mamba2Config(MixerConfig):
    """Shape and initialisation of one Mamba-2 layer."""

    d_state: int = Field(
        64,
        ge=1,
        le=1024,
        description="states per channel; published language models have 128, more than which have no kernel on a GPU",
    )
    d_conv: int = Field(4, ge=2, le=8, description="width of the causal depthwise convolution")
    expand: int = Field(2, ge=1, le=1024, description="inner channels per model channel")
    head_dim: Annotated[int, Field(ge=1, le=1 << 20)] | Literal["auto"] = Field(
        "auto", description="channels of a head; auto means 64, or all inner channels where those are fewer"
    )
    groups: int = Field(
        1, ge=1, le=1 << 20, description="groups of heads that share B and C, and of the norm's channels"
    )
    a_min: float = Field(1.0, gt=0, description="smallest initial -A")
    a_max: float = Field(16.0, gt=0, description="largest initial -A")
    dt_min: float = Field(1e-3, gt=0, description="smallest initial step size")
    dt_max: float = Field(0.1, gt=0, description="largest initial step size")
    dt_floor: float = Field(1e-4, gt=0, description="initial step sizes are clamped to at least this")
    dt_limit: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]] | None = Field(
        None, description="step sizes are clamped to this range; null: not at all"
    )
    norm_eps: float = Field(1e-5, gt=0, description="epsilon of the gated norm")
    conv_bias: bool = Field(True, description="give the convolution a bias")
    proj_bias: bool = Field(False, description="give the input and output projections biases")

    def head_channels(self, width: int) -> int:
        """Channels P of a head."""
        return min(_WIDEST_HEAD, self.expand * width) if self.head_dim == "auto" else self.head_dim

    def check_width(self, width: int) -> None:
        """Heads divide the inner channels, and groups the heads."""
        inner, channels = self.expand * width, self.head_channels(width)
        if inner % channels:
            raise ValueError(
                f"head_dim: {inner} inner channels are not a multiple of {channels}; change head_dim or the width"
            )
        if inner // channels % self.groups:
            raise ValueError(f"groups: {inner // channels} heads are not a multiple of {self.groups} groups")

    def layers(self, width: int, residuals: int) -> list[nn.Module]:
        """One Mamba-2 layer."""
        return [Mamba2Layer(width, self, residuals)]

    def num_parameters(self, width: int) -> int:
        """Parameters of `Mamba2Layer`, in the order in which it makes them."""
        inner = self.expand * width
        heads, mixed = inner // self.head_channels(width), inner + 2 * self.groups * self.d_state
        count = (width + self.proj_bias) * (inner + mixed + heads)  # in_proj
        count += mixed * (self.d_conv + self.conv_bias)
        count += 3 * heads + inner  # dt_bias, A_log, D, norm
        return count + inner * width + self.proj_bias * width  # out_proj

    def flops(self, width: int, length: int) -> Flops:
        """Maps; the convolution, and products within chunks of 64 positions and with the state between them."""
        inner = self.expand * width
        heads, mixed = inner // self.head_channels(width), inner + 2 * self.groups * self.d_state
        maps = 2 * width * (2 * inner + mixed + heads)
        within = 2 * _CHUNK * (self.groups * self.d_state + inner)
        return Flops(maps, 2 * self.d_conv * mixed + within + 4 * self.d_state * inner)


class Mamba2State(NamedTuple):
    """State of a Mamba-2 layer: its entire memory of earlier positions."""

    tail: Tensor  # (B, W-1, E + 2 G N), the last inputs of the convolution, in their dtype
    ssm: Tensor  # (B, H, P, N), fp32, or fp64 for fp64 models


# torch.export.save refers to structures by name.
_register_namedtuple(Mamba2State, serialized_type_name="mamba_bio_audio.Mamba2State")


class Mamba2Layer(nn.Module):
    """One Mamba-2 mixer.

    Args:
        d_model: channels D of input and output.
        config: shape and initialisation.
        num_layers: residual branches of the network; `out_proj` is initialised scaled by 1/sqrt(num_layers).
    """

    streaming = "constant"
    resets = True

    def __init__(self, d_model: int, config: Mamba2Config, num_layers: int = 1) -> None:
        super().__init__()
        config.check_width(d_model)
        self.config = config
        self.d_model = d_model
        self.d_inner = config.expand * d_model
        self.heads = self.d_inner // config.head_channels(d_model)
        mixed = self.d_inner + 2 * config.groups * config.d_state
        self.in_proj = nn.Linear(d_model, self.d_inner + mixed + self.heads, bias=config.proj_bias)
        # Holds weight (E + 2 G N, 1, W) and bias under the names that other implementations use; `forward` never calls it.
        self.conv1d = nn.Conv1d(mixed, mixed, config.d_conv, groups=mixed, bias=config.conv_bias)
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = RMSNorm(self.d_inner, config.norm_eps)  # its weight alone is used
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=config.proj_bias)
        for parameter in self._fp32_parameters():
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self.reset_parameters(num_layers)

    def reset_parameters(self, num_layers: int) -> None:
        """Initialise as the released code does (mamba_ssm `mamba2.py`)."""
        config = self.config
        with torch.no_grad():
            for linear in (self.in_proj, self.out_proj):
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
            self.out_proj.weight.div_(math.sqrt(num_layers))
            # softplus(bias) log-uniform in [dt_min, dt_max]; the inverse of softplus is x + log(1 - exp(-x)).
            low, high = math.log(config.dt_min), math.log(config.dt_max)
            step = torch.exp(torch.rand(self.heads) * (high - low) + low).clamp(min=config.dt_floor)
            self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))
            self.A_log.copy_(torch.log(torch.empty(self.heads).uniform_(config.a_min, config.a_max)))

    def _fp32_parameters(self) -> list[nn.Parameter]:
        return [self.A_log, self.D, self.dt_bias]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Mamba2Layer:
        # The recurrence is sensitive to rounding here.
        with kept_wide(self._fp32_parameters):
            super()._apply(fn, recurse)
        return self

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> Mamba2State:
        """Zero state; `dtype` is the activation dtype."""
        ssm_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        heads, states = self.heads, self.config.d_state
        return Mamba2State(
            torch.zeros(batch, self.config.d_conv - 1, self.conv1d.in_channels, device=device, dtype=dtype),
            torch.zeros(batch, heads, self.d_inner // heads, states, device=device, dtype=ssm_dtype),
        )

    def forward(
        self, x: Tensor, state: Mamba2State | None = None, *, reset: Tensor | None = None
    ) -> tuple[Tensor, Mamba2State]:
        """Apply the layer to a span.

        Args:
            x: (B, L, D), any L >= 1.
            state: state at the end of the preceding span; None means zeros.
            reset: bool (B, L), the state is zeroed before these positions.

        Returns:
            y (B, L, D) and the state at the end of the span.
        """
        tail, h0 = (None, None) if state is None else state
        config = self.config
        y, tail, h = mamba2_mixer(
            x,
            self.weights(),
            groups=config.groups,
            eps=self.norm.eps,
            dt_limit=config.dt_limit,
            tail=tail,
            h0=h0,
            reset=reset,
        )
        return y, Mamba2State(tail, h)

    def weights(self) -> Mamba2Weights:
        """The layer's parameters, as `ops.mamba2_mixer` takes them."""
        in_proj, conv, out_proj = self.in_proj, self.conv1d, self.out_proj
        return Mamba2Weights(
            in_proj=in_proj.weight,
            in_bias=in_proj.bias,
            conv=conv.weight.squeeze(1),
            conv_bias=conv.bias,
            dt_bias=self.dt_bias,
            A_log=self.A_log,
            D=self.D,
            norm=self.norm.weight,
            out_proj=out_proj.weight,
            out_bias=out_proj.bias,
        )

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, heads={self.heads}, d_state={self.config.d_state}"
