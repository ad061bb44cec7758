"""Configuration of the models (torch-free)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mamba_bio_audio.layers.config import SsmConfig

# mixer name -> (complex, selective)
MIXERS: dict[str, tuple[bool, bool]] = {
    "mamba": (False, True),
    "mamba-complex": (True, True),
    "s4d": (True, False),
    "s4d-real": (False, False),
}


class ModelConfig(BaseModel):
    """A language model over a small alphabet."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    backbone: Literal["isotropic"] = Field("isotropic", description="arrangement of the layers")
    mixer: Literal["mamba", "mamba-complex", "s4d", "s4d-real"] = Field(
        "mamba", description="preset of ssm.complex and ssm.selective"
    )
    d_model: int = Field(ge=1, le=1 << 20, description="width of the residual stream")
    num_layers: int = Field(ge=1, le=10_000, description="Mamba layers (the paper's DNA 'blocks' are two layers each)")
    ssm: SsmConfig = Field(default_factory=lambda: SsmConfig(), description="state space layer")
    vocab_size: int | None = Field(None, ge=2, le=1 << 24, description="symbols; null takes it from the data's codec")
    vocab_multiple: int = Field(8, ge=1, le=1 << 20, description="the embedding is padded to a multiple of this")
    norm_eps: float = Field(1e-5, gt=0, description="epsilon of the RMS norms")
    tie_embeddings: bool = Field(True, description="the head shares the embedding's weights")

    def model_post_init(self, context: Any, /) -> None:
        """Fill in what the mixer's name implies, so that a saved configuration says everything."""
        is_complex, selective = MIXERS[self.mixer]
        update: dict[str, Any] = {}
        if self.ssm.complex is None:
            update["complex"] = is_complex
        if self.ssm.selective is None:
            update["selective"] = selective
        if update:
            # Frozen after validation; this is still part of it.
            object.__setattr__(self, "ssm", self.ssm.model_copy(update=update))
