"""Configuration of a classification head (torch-free)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class HeadConfig(BaseModel):
    """Classification head on a backbone, and where the initial weights come from."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    pool: Literal["mean", "max", "last"] = Field(
        "mean",
        description="how the head pools the hidden states: mean over all positions so far, largest value of each "
        "channel so far, or the last position alone (the paper's great-apes task)",
    )
    classes: tuple[str, ...] | None = Field(
        None, min_length=2, description="class names in output order; null takes them from the data"
    )
    pretrained: str | None = Field(
        None,
        description="model that supplies the initial backbone and its architecture, the section model, and the head too if it "
        "has one with the same outputs: a run, an export, a packaged name, Hugging Face or mamba_ssm weights; null starts "
        "from random weights",
    )
    freeze: bool = Field(False, description="freeze the backbone and train only the head")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the target spread evenly over all classes, in training only"
    )
