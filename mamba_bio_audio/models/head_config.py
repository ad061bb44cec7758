"""Configuration of a head on a backbone (torch-free)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

TaskName = Literal["classes", "multilabel", "regression", "bases", "tracks"]
Positive = Annotated[float, Field(gt=0)]


class HeadConfig(BaseModel):
    """Head on a backbone: what it is asked, and where the initial weights come from."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    task: TaskName = Field(
        "classes",
        description="what is predicted: one class of a sequence, several labels (multilabel), numbers (regression), a class or "
        "number of every base (bases), or numbers of bins (tracks)",
    )
    pool: Literal["mean", "max", "last"] = Field(
        "mean",
        description="how the head pools the hidden states: mean over all positions so far, largest value of each "
        "channel so far, or the last position alone (the paper's great-apes task); bases and tracks are read from their "
        "position",
    )
    classes: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="names of the outputs in their order, such as classes; null takes them from the data",
    )
    outputs: Literal["classes", "labels", "numbers"] | None = Field(
        None, description="kind of the outputs, where the task can have several; null: as the data have"
    )
    loss: Literal["mse", "poisson"] = Field(
        "mse",
        description="loss of numbers: squared errors of standardised numbers, or Poisson, for counts and coverage",
    )
    mean: tuple[float, ...] | None = Field(
        None, description="of each number, added to what the head says; null: that of the training data"
    )
    scale: tuple[Positive, ...] | None = Field(
        None, description="standard deviation of each number; null: that of the training data"
    )
    complement: tuple[int, ...] | None = Field(
        None,
        description="for bases and tracks, which are read from both strands: what each symbol is on the other one, -1 for what "
        "fills a row; null takes it from the data",
    )
    class_weights: Literal["balanced"] | tuple[Positive, ...] | None = Field(
        None,
        description="weight of each class in the loss, in the order of the classes; balanced: 1 / frequency in training, 1 on "
        "average over its sequences; null: all alike",
    )
    pretrained: str | None = Field(
        None,
        description="model that supplies the initial backbone and its architecture, the section model, and the head too if it "
        "has one with the same outputs: a run, an export, a packaged name, Hugging Face or mamba_ssm weights; null starts "
        "from random weights",
    )
    freeze: bool = Field(False, description="freeze the backbone and train only the head")
    lora_rank: int | None = Field(
        None,
        ge=1,
        description="train the head and low-rank updates of the backbone's projections, of this rank (LoRA); its other "
        "weights stay as they are; null trains all of them",
    )
    lora_alpha: float = Field(16.0, gt=0, description="updates are weighted by lora_alpha / lora_rank")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the target spread evenly over all classes, in training only"
    )

    @property
    def readings(self) -> int:
        """How often a row is read: from both strands where every base or bin is predicted."""
        return 2 if self.task in ("bases", "tracks") else 1

    @model_validator(mode="after")
    def _of_the_task(self) -> HeadConfig:
        numbers = self.task in ("regression", "tracks") or (self.task == "bases" and self.outputs != "classes")
        for key, given in (("loss", self.loss != "mse"), ("mean", self.mean), ("scale", self.scale)):
            if given and not numbers:
                raise ValueError(f"{key} is for numbers (head.task regression, tracks, or bases); leave it out")
        if self.class_weights is not None and self.task in ("multilabel", "regression", "tracks"):
            raise ValueError("class_weights is for classes; leave it out")
        if self.freeze and self.lora_rank is not None:
            raise ValueError(
                "lora_rank trains updates of the backbone and freeze leaves it as it is; choose one of them"
            )
        if self.task == "classes" and self.classes is not None and len(self.classes) < 2:
            raise ValueError("classes: name two or more")
        return self

    def resolved(self, **found: Any) -> HeadConfig:
        """With what the data decide, checked again."""
        return HeadConfig.model_validate(self.model_dump() | found)
