"""Configuration of the models (torch-free)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mamba_bio_audio.layers.config import SsmConfig
from mamba_bio_audio.layers.contract import MixerConfig, find_mixer


class ModelConfig(BaseModel):
    """Shape of a language model over a small alphabet."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    backbone: Literal["isotropic"] = Field("isotropic", description="arrangement of the layers")
    mixer: str = Field(
        "mamba",
        description="kind of layer: mamba, mamba-complex, s4d, s4d-real (which set ssm.complex and ssm.selective where "
        "those are null), transformer, or any other that is registered",
    )
    d_model: int = Field(ge=1, le=1 << 20, description="width of the residual stream")
    num_layers: int = Field(ge=1, le=10_000, description="Mamba layers (the paper's DNA 'blocks' are two layers each)")
    ssm: SsmConfig = Field(default_factory=lambda: SsmConfig(), description="state space layer, for Mamba and S4D")
    options: dict[str, Any] = Field(
        default_factory=dict, description="settings of other mixers, such as heads and mlp_expand of a transformer"
    )
    vocab_size: int | None = Field(None, ge=2, le=1 << 24, description="symbols; null: as many as the data have")
    vocab_multiple: int = Field(8, ge=1, le=1 << 20, description="the embedding is padded to a multiple of this")
    norm_eps: float = Field(1e-5, gt=0, description="epsilon of the RMS norms")
    tie_embeddings: bool = Field(True, description="share the embedding's weights with the output layer")

    @field_validator("mixer")
    @classmethod
    def _registered(cls, name: str) -> str:
        find_mixer(name)
        return name

    @model_validator(mode="after")
    def _resolved(self) -> ModelConfig:
        """Fill in what the mixer's name implies, so that a saved configuration is complete."""
        of, preset = find_mixer(self.mixer)
        # The configuration is frozen after validation, of which this is still part.
        if of is SsmConfig:
            if self.options:
                raise ValueError(f"model.options are for other mixers; set model.ssm.* for {self.mixer}")
            object.__setattr__(self, "ssm", with_preset(self.ssm, self.mixer))
            return self
        if self.ssm != SsmConfig():
            raise ValueError(f"model.ssm is for Mamba and S4D; set model.options.* for {self.mixer}")
        try:
            options = of(**preset | self.options)
        except ValidationError as error:
            first = error.errors()[0]
            wrong = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
            known = ", ".join(of.model_fields)
            raise ValueError(
                f"options.{'.'.join(map(str, first['loc']))}: {wrong}; keys of {self.mixer}: {known}"
            ) from None
        try:
            options.check_width(self.d_model)
        except ValueError as error:
            raise ValueError(f"options.{error}") from None
        object.__setattr__(self, "options", options.model_dump(mode="json"))
        return self

    @property
    def mixer_config(self) -> MixerConfig:
        """Settings of the mixer."""
        of, _ = find_mixer(self.mixer)
        return self.ssm if of is SsmConfig else of(**self.options)

    @property
    def outline(self) -> str:
        """Kind and size of the layers in words."""
        return f"{self.mixer}, {self.num_layers} layers x {self.d_model}"

    @property
    def growing(self) -> bool:
        """Whether the state grows with the length, or cannot be carried at all."""
        return self.mixer_config.streaming != "constant"


def with_preset(ssm: SsmConfig, mixer: str) -> SsmConfig:
    """`ssm` with what the mixer's name implies for `complex` and `selective` where those are None."""
    missing = {key: value for key, value in find_mixer(mixer).preset.items() if getattr(ssm, key) is None}
    return ssm.model_copy(update=missing) if missing else ssm
