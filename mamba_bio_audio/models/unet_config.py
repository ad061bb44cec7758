"""Configuration of the multi-scale audio model (torch-free)."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mamba_bio_audio.layers.config import SsmConfig
from mamba_bio_audio.layers.contract import MixerConfig
from mamba_bio_audio.models.config import (
    Classes,
    Inputs,
    MixerName,
    Reads,
    first_unstreamed,
    of_family,
    resolved_options,
    settings_of,
    with_preset,
)


class StageConfig(BaseModel):
    """The blocks of one stage; null values follow the model."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mixer: MixerName | None = Field(
        None,
        description="kind of layer, as model.mixer; only the centre may have one whose state grows, such as a "
        "transformer; null follows model.mixer",
    )
    num_layers: int | None = Field(None, ge=1, le=10_000, description="blocks; null follows model.num_layers")
    ssm: SsmConfig = Field(
        default_factory=lambda: SsmConfig(), description="state space layer; keys left out follow model.ssm"
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="settings of other mixers; keys left out follow model.options where the mixer is the model's",
    )

    @model_validator(mode="before")
    @classmethod
    def _attention(cls, values: Any) -> Any:
        """Until December 2026 a stage had `attention`, of which the MLP was gelu."""
        if not isinstance(values, dict) or "attention" not in values:
            return values
        values = dict(values)
        attention = values.pop("attention")
        if attention is None:
            return values
        if not isinstance(attention, dict) or values.get("options"):
            raise ValueError("attention: is called options now; set these")
        return values | {"options": {"heads": 4, "mlp": "gelu", "mlp_expand": 1} | attention}

    @property
    def mixer_config(self) -> MixerConfig:
        """Settings of the blocks' mixer."""
        assert self.mixer is not None
        return settings_of(self.mixer, self.ssm, self.options)


class UNetConfig(Reads, BaseModel):
    """Shape of a U-Net over samples (paper section 4.4 and appendix E.4; SaShiMi, Goel et al. 2022).

    Stages are numbered in the order in which a sample passes through them: down from fine to coarse, the centre, up from
    coarse to fine; without `down_blocks` the centre comes first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    backbone: Literal["unet"] = Field("unet", description="arrangement of the layers")
    mixer: MixerName = Field(
        "mamba",
        description="kind of layer of every stage that names none; sets ssm.complex and ssm.selective where null",
    )
    d_model: int = Field(ge=1, le=1 << 20, description="width of the finest stages")
    num_layers: int = Field(ge=1, le=10_000, description="blocks per stage")
    pools: tuple[Annotated[int, Field(le=1 << 16)], ...] = Field(
        (4, 4), min_length=1, max_length=16, description="frames joined by each pool, finest first; each at least 2"
    )
    expand: int = Field(2, ge=1, le=1024, description="factor by which each pool widens the channels")
    down_blocks: bool = Field(
        True,
        description="also put blocks before each pool (the paper's U-Net); false is SaShiMi, with only pools there",
    )
    ssm: SsmConfig = Field(default_factory=lambda: SsmConfig(), description="state space layer of every stage")
    options: dict[str, Any] = Field(
        default_factory=dict, description="settings of another mixer, for the stages that have the model's"
    )
    stages: tuple[StageConfig, ...] = Field(
        (), description="settings of individual stages: none, or one entry per stage; saved with everything filled in"
    )
    vocab_size: int | None = Field(None, ge=2, le=1 << 24, description="symbols; null: as many as the data have")
    inputs: Inputs = None
    classes: Classes = None
    vocab_multiple: int = Field(8, ge=1, le=1 << 20, description="embedding and head are padded to a multiple of this")
    norm_eps: float = Field(1e-5, gt=0, description="epsilon of the RMS norms")

    @property
    def num_stages(self) -> int:
        """Stages with blocks: 2 K + 1 for K pools, K + 1 without blocks on the way down."""
        return (2 if self.down_blocks else 1) * len(self.pools) + 1

    @property
    def centre(self) -> int:
        """Index of the coarsest stage."""
        return self.num_stages - 1 - len(self.pools)

    @property
    def period(self) -> int:
        """Product of the pools: samples per frame of the centre."""
        return math.prod(self.pools)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each tier, from the finest to the centre."""
        return tuple(self.d_model * self.expand**tier for tier in range(len(self.pools) + 1))

    @property
    def tiers(self) -> tuple[int, ...]:
        """The tier of each stage, 0 for the finest."""
        up = tuple(reversed(range(len(self.pools) + 1)))
        return up if not self.down_blocks else (*reversed(up[1:]), *up)

    @property
    def outline(self) -> str:
        """Kinds, number and widths of the blocks in words."""
        counts = [stage.num_layers or 0 for stage in self.stages]
        mixers = dict.fromkeys(stage.mixer or self.mixer for stage in self.stages)
        return (
            f"U-Net of {' and '.join(mixers)}, {sum(counts)} blocks ({' + '.join(map(str, counts))}) x "
            f"{self.widths[0]} to {self.widths[-1]}, pools of {', '.join(map(str, self.pools))}"
        )

    @property
    def unstreamed(self) -> str | None:
        """The mixer whose state grows with the length; None where there is none."""
        return first_unstreamed((stage.mixer or self.mixer, stage.mixer_config) for stage in self.stages)

    @model_validator(mode="after")
    def _consistent(self) -> UNetConfig:
        if any(pool < 2 for pool in self.pools):
            raise ValueError(f"each pool must join at least 2 frames, not {list(self.pools)}")
        if self.stages and len(self.stages) != self.num_stages:
            raise ValueError(
                f"stages has {len(self.stages)} entries, but {len(self.pools)} pools "
                f"{'with' if self.down_blocks else 'without'} blocks on the way down make {self.num_stages} stages"
            )
        counts = [stage.num_layers for stage in self._resolved()]
        if self.down_blocks and counts != counts[::-1]:
            raise ValueError(
                f"stages have {counts} blocks: a stage on the way up needs as many as the stage of the same width on the "
                "way down, because each block adds the input of its mirror image"
            )
        # Also where every stage names a mixer of its own.
        resolved_options(self.mixer, self.options, self.widths[-1])
        for number, stage in enumerate(self._resolved()):
            streaming = stage.mixer_config.streaming
            if streaming == "none":
                raise ValueError(
                    f"stages.{number}.mixer: {stage.mixer} cannot carry a state, and a U-Net's pools pass one from call to "
                    "call; choose another"
                )
            if streaming == "growing" and number != self.centre:
                raise ValueError(
                    f"stages.{number}.mixer: {stage.mixer} is allowed only at the centre, stage {self.centre}; the finer "
                    "stages are too long for a state that grows"
                )
        return self

    def model_post_init(self, context: Any, /) -> None:
        """Fill in what the names imply, so that a saved configuration is complete."""
        if len(self.stages) in (0, self.num_stages):
            # The model is frozen after validation, of which this is still part. The stages come first, because
            # resolving them needs model.ssm as it was given.
            object.__setattr__(self, "stages", self._resolved())
        if of_family(self.mixer):
            object.__setattr__(self, "ssm", with_preset(self.ssm, self.mixer))

    def _resolved(self) -> tuple[StageConfig, ...]:
        """Every stage with all values filled in.

        Raises:
            ValueError: options that the mixer does not have, or that do not suit the width.
        """
        resolved = []
        stages = self.stages or (StageConfig(),) * self.num_stages  # type: ignore[call-arg]
        for number, (stage, tier) in enumerate(zip(stages, self.tiers, strict=True)):
            given = {name: getattr(stage.ssm, name) for name in stage.ssm.model_fields_set}
            base = self.ssm
            if stage.mixer is not None:
                # The stage's own mixer takes precedence over the model's complex and selective.
                base = base.model_copy(update={"complex": None, "selective": None})
            mixer = stage.mixer or self.mixer
            ssm = stage.ssm
            if of_family(mixer):
                ssm = with_preset(base.model_copy(update=given), mixer)
            options = (self.options if mixer == self.mixer else {}) | stage.options
            try:
                options = resolved_options(mixer, options, self.widths[tier])
            except ValueError as error:
                where = f"stages.{number}." if stage.options or stage.mixer is not None else ""
                raise ValueError(f"{where}{error}") from None
            num_layers = stage.num_layers or self.num_layers
            resolved.append(StageConfig(mixer=mixer, num_layers=num_layers, ssm=ssm, options=options))
        return tuple(resolved)
