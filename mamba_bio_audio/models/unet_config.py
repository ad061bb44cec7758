"""Configuration of the multi-scale audio model (torch-free)."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mamba_bio_audio.layers.config import AttentionConfig, SsmConfig
from mamba_bio_audio.models.config import MIXERS


class StageConfig(BaseModel):
    """The blocks of one stage; what is null is taken from the model."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mixer: Literal["mamba", "mamba-complex", "s4d", "s4d-real", "transformer"] | None = Field(
        None,
        description="preset of ssm.complex and ssm.selective, or transformer (attention and MLP; at the centre only, "
        "the state grows); null takes model.mixer",
    )
    num_layers: int | None = Field(None, ge=1, le=10_000, description="blocks; null takes model.num_layers")
    ssm: SsmConfig = Field(
        default_factory=lambda: SsmConfig(), description="state space layer; keys left out are those of model.ssm"
    )
    attention: AttentionConfig | None = Field(None, description="of mixer transformer; null is the default there")


class UNetConfig(BaseModel):
    """A U-Net over samples (paper section 4.4 and appendix E.4; SaShiMi, Goel et al. 2022).

    Stages are numbered in the order in which a sample passes them: down from fine to coarse, the centre, up from coarse
    to fine; without `down_blocks` the centre is the first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    backbone: Literal["unet"] = Field("unet", description="arrangement of the layers")
    mixer: Literal["mamba", "mamba-complex", "s4d", "s4d-real"] = Field(
        "mamba", description="preset of ssm.complex and ssm.selective for every stage that names none"
    )
    d_model: int = Field(ge=1, le=1 << 20, description="width of the finest stages")
    num_layers: int = Field(ge=1, le=10_000, description="blocks per stage")
    pools: tuple[Annotated[int, Field(le=1 << 16)], ...] = Field(
        (4, 4), min_length=1, max_length=16, description="frames that each pool joins, from the finest; each 2 or more"
    )
    expand: int = Field(2, ge=1, le=1024, description="a pool multiplies the width by this")
    down_blocks: bool = Field(
        True,
        description="blocks before each pool too (the paper's U-Net); false is SaShiMi, which has only pools there",
    )
    ssm: SsmConfig = Field(default_factory=lambda: SsmConfig(), description="state space layer of every stage")
    stages: tuple[StageConfig, ...] = Field(
        (), description="settings of single stages; none or one entry per stage, and saved with everything filled in"
    )
    vocab_size: int | None = Field(None, ge=2, le=1 << 24, description="symbols; null takes it from the data's codec")
    vocab_multiple: int = Field(8, ge=1, le=1 << 20, description="embedding and head are padded to a multiple of this")
    norm_eps: float = Field(1e-5, gt=0, description="epsilon of the RMS norms")

    @property
    def num_stages(self) -> int:
        """Stages with blocks: 2 K + 1 for K pools, K + 1 without blocks on the way down."""
        return (2 if self.down_blocks else 1) * len(self.pools) + 1

    @property
    def centre(self) -> int:
        """Number of the coarsest stage."""
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
    def growing(self) -> bool:
        """Whether the state grows with the length: attention keeps everything that it read."""
        return any(stage.mixer == "transformer" for stage in self.stages)

    @model_validator(mode="after")
    def _consistent(self) -> UNetConfig:
        if any(pool < 2 for pool in self.pools):
            raise ValueError(f"pools join 2 frames or more each, not {list(self.pools)}")
        if self.stages and len(self.stages) != self.num_stages:
            raise ValueError(
                f"stages has {len(self.stages)} entries, but {len(self.pools)} pools "
                f"{'with' if self.down_blocks else 'without'} blocks on the way down make {self.num_stages} stages"
            )
        counts = [stage.num_layers for stage in self._resolved()]
        if self.down_blocks and counts != counts[::-1]:
            raise ValueError(
                f"stages {counts} blocks: a stage on the way up has as many as the one of its width on the way down, "
                "because each block adds the input of its mirror image"
            )
        for number, stage in enumerate(self.stages):
            if stage.attention is not None and stage.mixer != "transformer":
                raise ValueError(f"stages.{number}.attention: is of mixer transformer, and this stage has another")
            if stage.mixer == "transformer" and number != self.centre:
                raise ValueError(
                    f"stages.{number}.mixer: transformer may stand at the centre only, stage {self.centre}: the finer "
                    f"stages are too long for attention"
                )
            if stage.attention is not None and self.widths[-1] % (2 * stage.attention.heads):
                raise ValueError(
                    f"stages.{number}.attention.heads: {stage.attention.heads} heads need a width that is a multiple "
                    f"of {2 * stage.attention.heads}, and the centre's is {self.widths[-1]}"
                )
        return self

    def model_post_init(self, context: Any, /) -> None:
        """Fill in what the names imply, so that a saved configuration says everything."""
        if len(self.stages) in (0, self.num_stages):
            # Frozen after validation; this is still part of it. The stages first: they tell what was given.
            object.__setattr__(self, "stages", self._resolved())
        object.__setattr__(self, "ssm", _with_preset(self.ssm, self.mixer))

    def _resolved(self) -> tuple[StageConfig, ...]:
        """Every stage with nothing left out."""
        resolved = []
        for stage in self.stages or (StageConfig(),) * self.num_stages:  # type: ignore[call-arg]
            given = {name: getattr(stage.ssm, name) for name in stage.ssm.model_fields_set}
            base = self.ssm
            if stage.mixer is not None:
                # The nearer name wins over the farther details: this stage's mixer over the model's complex, selective.
                base = base.model_copy(update={"complex": None, "selective": None})
            mixer = stage.mixer or self.mixer
            num_layers = stage.num_layers or self.num_layers
            if mixer == "transformer":
                attention = stage.attention or AttentionConfig()  # type: ignore[call-arg]
                resolved.append(StageConfig(mixer=mixer, num_layers=num_layers, ssm=stage.ssm, attention=attention))
                continue
            ssm = _with_preset(base.model_copy(update=given), mixer)
            # Kept where it is wrong, so that the check can say so.
            resolved.append(StageConfig(mixer=mixer, num_layers=num_layers, ssm=ssm, attention=stage.attention))
        return tuple(resolved)


def _with_preset(ssm: SsmConfig, mixer: str) -> SsmConfig:
    is_complex, selective = MIXERS[mixer]
    update: dict[str, Any] = {}
    if ssm.complex is None:
        update["complex"] = is_complex
    if ssm.selective is None:
        update["selective"] = selective
    return ssm.model_copy(update=update) if update else ssm
