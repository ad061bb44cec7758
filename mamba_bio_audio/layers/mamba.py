"""The Mamba layer: projections, causal convolution and state space scan (Gu & Dao 2023, sections 3.4-3.6).

    x, z = split(in_proj(input))
    u = silu(conv1d(x))                                 depthwise, causal
    dt, B, C = split(x_proj(u)); dt = dt_proj(dt)       selective; otherwise parameters
    y = scan(u, softplus(dt + bias), A, B, C) + D * u
    output = out_proj(y * silu(z))

Legend: B batch, L length, D model channels, E = expand * D inner channels, N states, W convolution width, R delta rank.
Parameters have the names that mamba_ssm and Hugging Face use, so weights transfer without a mapping.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import _register_namedtuple

from mamba_bio_audio.layers.wide import kept_wide
from mamba_bio_audio.ops import MixerWeights, mamba_mixer

if TYPE_CHECKING:
    from mamba_bio_audio.layers.config import SsmConfig


class MambaState(NamedTuple):
    """State of a Mamba layer: its entire memory of earlier positions."""

    tail: Tensor  # (B, W-1, E), the last inputs of the convolution, in their dtype
    ssm: Tensor  # (B, E, N) or (B, E, N, 2), fp32, or fp64 for fp64 models


# torch.export.save refers to structures by name.
_register_namedtuple(MambaState, serialized_type_name="mamba_bio_audio.MambaState")


class MambaLayer(nn.Module):
    """One Mamba mixer; real or complex, with selective or fixed (LTI) delta and B, C.

    Args:
        d_model: channels D of input and output.
        config: shape and parameterisation; `complex` and `selective` must not be None
            (`models.config.ModelConfig` fills them in from the mixer's name).
        num_layers: layers of the network, each with one residual branch; `out_proj` is initialised scaled by
            1/sqrt(num_layers).
    """

    streaming = "constant"
    resets = True

    def __init__(self, d_model: int, config: SsmConfig, num_layers: int = 1) -> None:
        super().__init__()
        if config.complex is None or config.selective is None:
            raise ValueError("SsmConfig.complex and SsmConfig.selective must be set to build a layer")
        self.config = config
        self.d_model = d_model
        self.d_inner = config.expand * d_model
        self.dt_rank = math.ceil(d_model / 16) if config.dt_rank == "auto" else config.dt_rank
        self.selective_dt = config.selective in (True, "dt")
        selected = config.selected_bc
        self.selective_b, self.selective_c = "b" in selected, "c" in selected
        state_shape = (config.d_state, 2) if config.complex else (config.d_state,)
        self._state_shape = state_shape

        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=config.proj_bias)
        # Holds weight (E, 1, W) and bias under the names that other implementations use; `forward` never calls it.
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, config.d_conv, groups=self.d_inner, bias=config.conv_bias)
        projected = self.dt_rank * self.selective_dt + len(selected) * math.prod(state_shape)
        if projected:
            self.x_proj = nn.Linear(self.d_inner, projected, bias=False)
        if self.selective_dt:
            self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        else:
            self.dt = nn.Parameter(torch.empty(self.d_inner))
        if not self.selective_b:
            self.B = nn.Parameter(torch.empty(self.d_inner, *state_shape))
        if not self.selective_c:
            self.C = nn.Parameter(torch.empty(self.d_inner, *state_shape))
        self.A_log = nn.Parameter(torch.empty(self.d_inner, config.d_state))
        if config.complex:
            self.A_imag = nn.Parameter(torch.empty(self.d_inner, config.d_state))
        self.D = nn.Parameter(torch.empty(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=config.proj_bias)
        for parameter in self._fp32_parameters():
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self.reset_parameters(num_layers)

    def reset_parameters(self, num_layers: int) -> None:
        """Initialise as the released code does (paper section 3.6; mamba_ssm `mamba_simple.py`)."""
        config = self.config
        with torch.no_grad():
            for linear in (self.in_proj, self.out_proj):
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
            self.out_proj.weight.div_(math.sqrt(num_layers))
            if self.conv1d.bias is not None:
                nn.init.zeros_(self.conv1d.bias)

            # softplus(bias) log-uniform in [dt_min, dt_max]; the inverse of softplus is x + log(1 - exp(-x)).
            low, high = math.log(config.dt_min), math.log(config.dt_max)
            step = torch.exp(torch.rand(self.d_inner) * (high - low) + low).clamp(min=config.dt_floor)
            bias = step + torch.log(-torch.expm1(-step))
            if self.selective_dt:
                nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
                self.dt_proj.bias.copy_(bias)
            else:
                self.dt.copy_(bias)
            if not self.selective_b:
                nn.init.zeros_(self.B)
                (self.B[..., 0] if config.complex else self.B).fill_(1.0)
            if not self.selective_c:
                nn.init.normal_(self.C, std=math.sqrt(0.5) if config.complex else 1.0)

            index = torch.arange(config.d_state, dtype=torch.float32)
            if config.complex:
                self.A_log.fill_(math.log(0.5))
                self.A_imag.copy_((index * (math.pi if config.complex_init == "pi n" else 1.0)).expand_as(self.A_log))
            elif config.real_init == "n":
                self.A_log.copy_(torch.log(index + 1).expand_as(self.A_log))
            elif config.real_init == "1/2":
                self.A_log.fill_(math.log(0.5))
            else:
                # Table 8 of the paper; drawn last, so that all else is as with the others.
                self.A_log.normal_()
            nn.init.ones_(self.D)

    def _fp32_parameters(self) -> list[nn.Parameter]:
        parameters = [self.A_log, self.D, self.dt_proj.bias if self.selective_dt else self.dt]
        if self.config.complex:
            parameters.append(self.A_imag)
        parameters += ([] if self.selective_b else [self.B]) + ([] if self.selective_c else [self.C])
        return parameters

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MambaLayer:
        # The recurrence is sensitive to rounding here.
        with kept_wide(self._fp32_parameters):
            super()._apply(fn, recurse)
        return self

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> MambaState:
        """Zero state; `dtype` is the activation dtype."""
        ssm_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        return MambaState(
            torch.zeros(batch, self.config.d_conv - 1, self.d_inner, device=device, dtype=dtype),
            torch.zeros(batch, self.d_inner, *self._state_shape, device=device, dtype=ssm_dtype),
        )

    def forward(
        self, x: Tensor, state: MambaState | None = None, *, reset: Tensor | None = None
    ) -> tuple[Tensor, MambaState]:
        """Apply the layer to a span.

        Args:
            x: (B, L, D), any L >= 1.
            state: state at the end of the preceding span; None means zeros.
            reset: bool (B, L), the state is zeroed before these positions.

        Returns:
            y (B, L, D) and the state at the end of the span.
        """
        tail, ssm = (None, None) if state is None else state
        y, tail, ssm = mamba_mixer(
            x,
            self.weights(),
            tail=tail,
            h0=ssm,
            reset=reset,
            exact_zoh=self.config.exact_zoh,
            precise=self.config.precise,
        )
        return y, MambaState(tail, ssm)

    def weights(self) -> MixerWeights:
        """The layer's parameters, as `ops.mamba_mixer` takes them."""
        # Attribute lookup is most of the time here, and a module's own parts are slow to look up.
        in_proj, conv, out_proj = self.in_proj, self.conv1d, self.out_proj
        dt_proj = self.dt_proj if self.selective_dt else None
        return MixerWeights(
            in_proj=in_proj.weight,
            in_bias=in_proj.bias,
            conv=conv.weight.squeeze(1),
            conv_bias=conv.bias,
            x_proj=self.x_proj.weight if self.selective_dt or self.selective_b or self.selective_c else None,
            dt_proj=None if dt_proj is None else dt_proj.weight,
            dt_bias=self.dt if dt_proj is None else dt_proj.bias,
            A_log=self.A_log,
            D=self.D,
            out_proj=out_proj.weight,
            out_bias=out_proj.bias,
            A_imag=self.A_imag if self.config.complex else None,
            B=None if self.selective_b else self.B,
            C=None if self.selective_c else self.C,
        )

    def extra_repr(self) -> str:
        kind = "complex" if self.config.complex else "real"
        return f"d_model={self.d_model}, d_state={self.config.d_state}, {kind}, selective={self.config.selective}"
