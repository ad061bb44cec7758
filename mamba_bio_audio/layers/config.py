"""Configuration of the layers (torch-free)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class SsmConfig(BaseModel):
    """Shape and parameterisation of one Mamba layer (Gu & Dao 2023, sections 3.4 and 3.6)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    d_state: int = Field(16, ge=1, le=256, description="states per channel; complex modes when complex")
    d_conv: int = Field(4, ge=2, le=8, description="width of the causal depthwise convolution")
    expand: int = Field(2, ge=1, le=1024, description="inner channels per model channel")
    dt_rank: Annotated[int, Field(ge=1, le=1 << 20)] | Literal["auto"] = Field(
        "auto", description="rank of the delta projection; auto is ceil(d_model / 16)"
    )
    complex: bool | None = Field(None, description="complex modes; null takes it from model.mixer")
    selective: bool | Literal["bc", "dt"] | None = Field(
        None,
        description="which parameters depend on the input: true both, false none (LTI), bc only B and C, "
        "dt only delta; null takes it from model.mixer",
    )
    complex_init: Literal["n", "pi n"] = Field("n", description="imaginary part of A: -1/2 + i n or i pi n")
    exact_zoh: bool = Field(False, description="exact zero-order hold of B instead of the released code's Euler")
    precise: bool = Field(False, description="decay by expm1, for memories beyond 10,000 steps")
    dt_min: float = Field(1e-3, gt=0, description="smallest initial step size")
    dt_max: float = Field(0.1, gt=0, description="largest initial step size")
    dt_floor: float = Field(1e-4, gt=0, description="clamp of the initial step size")
    conv_bias: bool = Field(True, description="bias of the convolution")
    proj_bias: bool = Field(False, description="biases of the input and output projections")


class AttentionConfig(BaseModel):
    """A transformer block: causal attention with rotary positions, then an MLP."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    heads: int = Field(
        4, ge=1, le=1 << 20, description="attention heads; the width is a multiple of twice their number"
    )
    mlp_expand: int = Field(1, ge=1, le=1024, description="inner channels of the MLP per model channel")
