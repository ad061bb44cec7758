"""Settings of the mixers (torch-free), registered under the names that `model.mixer` takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from mamba_bio_audio.layers.contract import MixerConfig, Streaming, mixer

if TYPE_CHECKING:
    from torch import nn


@mixer("mamba", complex=False, selective=True)
@mixer("mamba-complex", complex=True, selective=True)
@mixer("s4d", complex=True, selective=False)
@mixer("s4d-real", complex=False, selective=False)
class SsmConfig(MixerConfig):
    """Shape and parameterisation of one Mamba layer (Gu & Dao 2023, sections 3.4 and 3.6)."""

    d_state: int = Field(16, ge=1, le=256, description="states per channel; complex modes when complex")
    d_conv: int = Field(4, ge=2, le=8, description="width of the causal depthwise convolution")
    expand: int = Field(2, ge=1, le=1024, description="inner channels per model channel")
    dt_rank: Annotated[int, Field(ge=1, le=1 << 20)] | Literal["auto"] = Field(
        "auto", description="rank of the delta projection; auto means ceil(d_model / 16)"
    )
    complex: bool | None = Field(None, description="complex modes; null follows model.mixer")
    selective: bool | Literal["bc", "dt"] | None = Field(
        None,
        description="which parameters depend on the input: true all, false none (LTI), bc only B and C, "
        "dt only delta; null follows model.mixer",
    )
    complex_init: Literal["n", "pi n"] = Field(
        "n", description="initial A of complex modes: -1/2 + i n or -1/2 + i pi n"
    )
    exact_zoh: bool = Field(False, description="exact zero-order hold of B instead of the released code's Euler")
    precise: bool = Field(False, description="compute the decay with expm1, for memories longer than 10,000 steps")
    dt_min: float = Field(1e-3, gt=0, description="smallest initial step size")
    dt_max: float = Field(0.1, gt=0, description="largest initial step size")
    dt_floor: float = Field(1e-4, gt=0, description="initial step sizes are clamped to at least this")
    conv_bias: bool = Field(True, description="give the convolution a bias")
    proj_bias: bool = Field(False, description="give the input and output projections biases")

    def layers(self, width: int, residuals: int) -> list[nn.Module]:
        """One Mamba layer; `complex` and `selective` must not be None."""
        from mamba_bio_audio.layers.mamba import MambaLayer

        return [MambaLayer(width, self, residuals)]

    def num_parameters(self, width: int) -> int:
        """Parameters of `MambaLayer`, in the order in which it makes them."""
        inner = self.expand * width
        rank = math.ceil(width / 16) if self.dt_rank == "auto" else self.dt_rank
        bc = self.d_state * (2 if self.complex else 1)
        selective_dt, selective_bc = self.selective in (True, "dt"), self.selective in (True, "bc")
        count = 2 * inner * width + inner * width  # in_proj, out_proj
        count += (2 * inner + width) if self.proj_bias else 0
        count += inner * (self.d_conv + self.conv_bias)
        count += inner * (rank * selective_dt + 2 * bc * selective_bc)  # x_proj
        count += inner * (rank + 1) if selective_dt else inner  # dt_proj, or dt
        count += 0 if selective_bc else 2 * inner * bc  # B, C
        return count + inner * bc + inner  # A, D


@mixer("transformer")
class AttentionConfig(MixerConfig):
    """Shape of a transformer block: causal attention with rotary positions, then an MLP."""

    streaming: ClassVar[Streaming] = "growing"
    residuals: ClassVar[int] = 2

    heads: int = Field(
        4, ge=1, le=1 << 20, description="attention heads; the width must be a multiple of twice their number"
    )
    mlp_expand: int = Field(1, ge=1, le=1024, description="inner channels of the MLP per model channel")

    def check_width(self, width: int) -> None:
        """Each head has an even number of channels."""
        if width % (2 * self.heads):
            raise ValueError(
                f"heads: {self.heads} heads require a width that is a multiple of {2 * self.heads}, not {width}; change "
                "the heads or the width"
            )

    def layers(self, width: int, residuals: int) -> list[nn.Module]:
        """Attention, and the MLP that follows it."""
        from mamba_bio_audio.layers.attention import AttentionLayer, MlpLayer

        return [AttentionLayer(width, self, residuals), MlpLayer(width, self.mlp_expand, residuals)]

    def num_parameters(self, width: int) -> int:
        """Four projections of attention, two of the MLP."""
        return (4 + 2 * self.mlp_expand) * width * width
