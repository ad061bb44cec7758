"""The S4D layer of the literature: a diagonal state space model that no input changes, then GELU and GLU (Gu et al. 2022).

    h_t = exp(dt A) h_(t-1) + (exp(dt A) - 1) / A u_t        y_t = 2 Re(C h_t) + D u_t         N / 2 complex modes a channel
    output = a * sigmoid(b),   (a, b) = W gelu(y) + bias

It is the scan of `ops.selective_scan` with parameters that do not depend on time, held exactly: a recurrence with a state, not
an FFT. The kernel's factor B is one, because C has its place.

Legend: B batch, L length, D channels, N states, of which half are conjugates of the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mamba_bio_audio.layers.config import WithMlp
from mamba_bio_audio.layers.contract import Flops, mixer
from mamba_bio_audio.layers.wide import kept_wide
from mamba_bio_audio.ops import selective_scan


class DiagonalConfig(WithMlp):
    """Shape and initialisation of diagonal state space models that no input changes."""

    d_state: int = Field(
        64, ge=2, le=512, multiple_of=2, description="states per channel, of which half are complex modes"
    )
    dt_min: float = Field(1e-3, gt=0, description="smallest initial step size")
    dt_max: float = Field(0.1, gt=0, description="largest initial step size")

    def diagonal_parameters(self, channels: int) -> int:
        """Parameters of `DiagonalSsm`."""
        return channels * (2 * self.d_state + 2)

    def diagonal_flops(self, channels: int) -> int:
        """Operations of a step: 14 a complex mode."""
        return 7 * self.d_state * channels


@mixer("s4d-glu", mlp="none")
class S4dConfig(DiagonalConfig):
    """Shape of an S4D layer: state space model, GELU, GLU; without an MLP unless one is asked for."""

    def layers(self, width: int, residuals: int) -> list[nn.Module]:
        """One S4D layer, and the MLP where there is one."""
        return [S4dLayer(width, self, residuals), *self.mlp_layers(width, residuals)]

    def num_parameters(self, width: int) -> int:
        """The state space model, the map to both halves of the GLU, and the MLP."""
        return self.diagonal_parameters(width) + 2 * width * (width + 1) + self.mlp_parameters(width)

    def flops(self, width: int, length: int) -> Flops:
        """The map to both halves of the GLU, and the scan."""
        return Flops(4 * width * width + self.mlp_flops(width), self.diagonal_flops(width))


class DiagonalSsm(nn.Module):
    """N / 2 complex modes for each of several channels, S4D-Lin at first: A = -1/2 + i pi n.

    Args:
        channels: D, each with parameters of its own.
        config: number of states, and initial step sizes.
    """

    def __init__(self, channels: int, config: DiagonalConfig) -> None:
        super().__init__()
        modes = config.d_state // 2
        low, high = math.log(config.dt_min), math.log(config.dt_max)
        self.log_dt = nn.Parameter(torch.rand(channels) * (high - low) + low)
        self.A_log = nn.Parameter(torch.full((channels, modes), math.log(0.5)))
        self.A_imag = nn.Parameter(math.pi * torch.arange(modes, dtype=torch.float32).repeat(channels, 1))
        self.C = nn.Parameter(torch.randn(channels, modes, 2) * math.sqrt(0.5))
        self.D = nn.Parameter(torch.randn(channels))
        for parameter in (self.log_dt, self.A_log, self.A_imag, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DiagonalSsm:
        # The recurrence is sensitive to rounding here.
        with kept_wide(lambda: list(self.parameters())):
            super()._apply(fn, recurse)
        return self

    def init_state(self, batch: int, device: torch.device | str | None, dtype: torch.dtype, copies: int = 1) -> Tensor:
        """Zeros (B, copies D, N / 2, 2) in fp32, or fp64 for fp64 activations."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        channels, modes = self.A_log.shape
        return torch.zeros(batch, copies * channels, modes, 2, device=device, dtype=wide)

    def forward(self, u: Tensor, state: Tensor | None, reset: Tensor | None, copies: int = 1) -> tuple[Tensor, Tensor]:
        """Run the recurrence.

        Args:
            u: (B, L, copies D).
            state: before the span; None means zeros.
            reset: bool (B, L), the state is zeroed before these positions.
            copies: so many neighbouring channels share their parameters.

        Returns:
            y (B, L, copies D), and the state at the end.
        """
        parts = torch.stack([-self.A_log.exp(), self.A_imag], -1), self.C, self.log_dt.exp(), self.D
        A, C, dt, D = parts if copies == 1 else (part.repeat_interleave(copies, 0) for part in parts)
        one = torch.stack([torch.ones_like(C[..., 0]), torch.zeros_like(C[..., 0])], -1)
        return selective_scan(
            u, dt, A, one, C, D, dt_softplus=False, h0=state, return_state=True, reset=reset, exact_zoh=True
        )


class S4dLayer(nn.Module):
    """One S4D layer.

    Args:
        d_model: channels D of input and output.
        config: shape and initialisation.
        num_layers: residual branches of the network; `out_proj` is initialised scaled by 1/sqrt(num_layers).
    """

    streaming = "constant"
    resets = True

    def __init__(self, d_model: int, config: S4dConfig, num_layers: int = 1) -> None:
        super().__init__()
        self.ssm = DiagonalSsm(d_model, config)
        self.out_proj = nn.Linear(d_model, 2 * d_model)
        with torch.no_grad():
            self.out_proj.weight.div_(math.sqrt(num_layers))

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Zero state (B, D, N / 2, 2); `dtype` is the activation dtype."""
        return self.ssm.init_state(batch, device, dtype)

    def forward(self, x: Tensor, state: Tensor | None = None, *, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the layer to a span.

        Args:
            x: (B, L, D), any L >= 1.
            state: state at the end of the preceding span; None means zeros.
            reset: bool (B, L), the state is zeroed before these positions.

        Returns:
            y (B, L, D) and the state at the end of the span.
        """
        y, state = self.ssm(x, state, reset)
        return F.glu(self.out_proj(F.gelu(y)), -1), state
