"""Configuration of a classification head (torch-free)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class HeadConfig(BaseModel):
    """What turns a backbone into a classifier, and how its weights begin."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    pool: Literal["mean", "max", "last"] = Field(
        "mean",
        description="what the head reads of the hidden states: mean over all positions so far, largest value of each "
        "channel so far, or the last position (the paper's great apes)",
    )
    classes: tuple[str, ...] | None = Field(
        None, min_length=2, description="class names in the order of the outputs; null takes them from the data"
    )
    pretrained: str | None = Field(
        None,
        description="run or export whose backbone the training begins with; of a classifier of the same classes the "
        "head too; null begins from random weights",
    )
    freeze: bool = Field(False, description="train the head alone")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the target spread over all classes, in training only"
    )
