"""Settings of the mixers (torch-free), registered under the names that `model.mixer` takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from mamba_bio_audio.layers.contract import Flops, MixerConfig, Streaming, mixer

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
    selective: bool | Literal["bc", "dt", "b", "c"] | None = Field(
        None,
        description="which parameters depend on the input: true all, false none (LTI), bc only B and C, "
        "dt only delta, b only B, c only C (these two with real states, and slowly); null follows model.mixer",
    )
    complex_init: Literal["n", "pi n"] = Field(
        "n", description="initial A of complex modes: -1/2 + i n or -1/2 + i pi n"
    )
    real_init: Literal["n", "1/2", "random"] = Field(
        "n", description="initial A of real states n = 0, 1, ...: -(n + 1), -1/2, or -exp of standard normal numbers"
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

    @model_validator(mode="after")
    def _one_of_two(self) -> SsmConfig:
        return self.check_selection()

    def check_selection(self) -> SsmConfig:
        """Refuse one of B and C alone where states are complex; also for what is filled in by the mixer's name."""
        if self.complex and self.selective in ("b", "c"):
            raise ValueError(f"selective: {self.selective} alone needs real states; set complex=false, or selective=bc")
        return self

    @property
    def selected_bc(self) -> str:
        """Which of B and C depend on the input: "bc", "b", "c" or neither."""
        if self.selective is True:
            return "bc"
        return self.selective if self.selective in ("bc", "b", "c") else ""  # type: ignore[return-value]

    def num_parameters(self, width: int) -> int:
        """Parameters of `MambaLayer`, in the order in which it makes them."""
        inner = self.expand * width
        rank = math.ceil(width / 16) if self.dt_rank == "auto" else self.dt_rank
        bc = self.d_state * (2 if self.complex else 1)
        selective_dt, selective_bc = self.selective in (True, "dt"), self.selected_bc
        count = 2 * inner * width + inner * width  # in_proj, out_proj
        count += (2 * inner + width) if self.proj_bias else 0
        count += inner * (self.d_conv + self.conv_bias)
        count += inner * (rank * selective_dt + bc * len(selective_bc))  # x_proj
        count += inner * (rank + 1) if selective_dt else inner  # dt_proj, or dt
        count += (2 - len(selective_bc)) * inner * bc  # B, C
        return count + inner * bc + inner  # A, D

    def flops(self, width: int, length: int) -> Flops:
        """Maps, convolution, and the scan: a step of a state is 7 operations, 20 if complex, 5 and 14 if LTI."""
        inner = self.expand * width
        rank = math.ceil(width / 16) if self.dt_rank == "auto" else self.dt_rank
        bc = self.d_state * (2 if self.complex else 1)
        selective_dt = self.selective in (True, "dt")
        maps = 3 * inner * width + inner * (2 * rank * selective_dt + bc * len(self.selected_bc))
        # exp(dt A) is one of them, or three with its angle; without a delta of its own each token shares it.
        each = (20 if selective_dt else 14) if self.complex else (7 if selective_dt else 5)
        return Flops(2 * maps, 2 * self.d_conv * inner + each * self.d_state * inner)


class WithMlp(MixerConfig):
    """Settings of a block whose mixer may be followed by an MLP, with a norm and a residual of its own."""

    mlp: Literal["swiglu", "gelu", "none"] = Field(
        "swiglu", description="MLP behind the mixer: W3 (silu(W1 x) * W2 x), W2 gelu(W1 x), or none"
    )
    mlp_expand: float | None = Field(
        None,
        gt=0,
        le=1024,
        description="inner channels of the MLP per model channel; null: 8/3 (swiglu) or 4 (gelu), both 8 weights a "
        "channel and channel; swiglu's are rounded up to a multiple of 8",
    )
    mlp_bias: bool = Field(False, description="give the MLP biases")

    @property
    def residuals(self) -> int:
        """The mixer, and the MLP where there is one."""
        return 1 if self.mlp == "none" else 2

    def mlp_width(self, width: int) -> int:
        """Inner channels of the MLP."""
        if self.mlp == "gelu":
            return max(1, round((self.mlp_expand or 4) * width))
        # In whole numbers: 8/3 of a width must not be rounded up by the last bit of a float.
        exact = -(-8 * width // 3) if self.mlp_expand is None else math.ceil(self.mlp_expand * width)
        return -(-exact // 8) * 8

    def mlp_layers(self, width: int, residuals: int) -> list[nn.Module]:
        """The MLP, freshly initialised; nothing where there is none."""
        if self.mlp == "none":
            return []
        from mamba_bio_audio.layers.mlp import MlpLayer

        return [MlpLayer(width, self.mlp_width(width), self.mlp == "swiglu", self.mlp_bias, residuals)]

    def mlp_parameters(self, width: int) -> int:
        """Parameters of the MLP."""
        if self.mlp == "none":
            return 0
        inner, maps = self.mlp_width(width), 2 if self.mlp == "swiglu" else 1
        return (maps + 1) * inner * width + (maps * inner + width if self.mlp_bias else 0)

    def mlp_flops(self, width: int) -> int:
        """Operations of the MLP's maps."""
        return 0 if self.mlp == "none" else (6 if self.mlp == "swiglu" else 4) * width * self.mlp_width(width)


@mixer("transformer")
class AttentionConfig(WithMlp):
    """Shape of a transformer block: causal attention with rotary positions, then an MLP (by default Transformer++)."""

    heads: int | None = Field(
        None, ge=1, le=1 << 20, description="attention heads; null: as many as are 64 channels wide, or wider"
    )
    window: int | None = Field(
        None,
        ge=2,
        le=1 << 24,
        description="attend to this many positions, the own among them, with a state of constant size; null: to all",
    )
    rope_theta: float | None = Field(
        10_000.0,
        gt=1,
        description="base b of the rotary frequencies b^(-2 i / d); null: no positions, for a hybrid, whose other layers "
        "know the order",
    )
    bias: bool = Field(False, description="give the projections of attention biases")

    @property
    def streaming(self) -> Streaming:
        """Constant with a window."""
        return "growing" if self.window is None else "constant"

    def heads_of(self, width: int) -> int:
        """Number of heads at a width D."""
        if self.heads is not None:
            return self.heads
        return next((heads for heads in range(width // 64, 1, -1) if width % (2 * heads) == 0), 1)

    def check_width(self, width: int) -> None:
        """Each head has an even number of channels."""
        heads = self.heads_of(width)
        if width % (2 * heads):
            raise ValueError(
                f"heads: {heads} heads require a width that is a multiple of {2 * heads}, not {width}; change "
                "the heads or the width"
            )

    def layers(self, width: int, residuals: int) -> list[nn.Module]:
        """Attention, and the MLP that follows it."""
        from mamba_bio_audio.layers.attention import AttentionLayer

        return [AttentionLayer(width, self, residuals), *self.mlp_layers(width, residuals)]

    def num_parameters(self, width: int) -> int:
        """Four projections of attention, and the MLP."""
        return 4 * width * width + 4 * width * self.bias + self.mlp_parameters(width)

    def flops(self, width: int, length: int) -> Flops:
        """Maps, and the products of queries with keys and of weights with values."""
        first = length if self.window is None else min(length, self.window)
        # The first positions reach 1, 2, ...
        reach = (first * (first + 1) / 2 + (length - first) * first) / length
        return Flops(8 * width * width + self.mlp_flops(width), 4 * width * reach)
