"""What a training and its dry run return (torch-free)."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

# What stopped a training whose time was up.
OUT_OF_TIME = "--max-time"


class Trained(BaseModel):
    """How a training ended, and what came of it; in the manifest under `result`.

    Attributes:
        run: folder.
        step: last one done.
        steps: steps of the whole training.
        best_step: with the lowest validation loss; its weights are `model.safetensors`.
        valid_nats: that loss, per unit or sequence (`per`), in nats where it is a likelihood; None before the first validation.
        weights_sha256: of the best weights; None in all but the first of several processes.
        valid_bits: the loss in bits; None where it is no likelihood.
        valid_perplexity: exp of the loss in nats; likewise.
        answers_right: share of the answers that were right at that step; None where the data have no answers.
        unit: what a position is: "base", "sample".
        per: what the loss is per.
        best_samples_step: whose samples were closest to recordings; None where none were generated.
        ended_by_patience: whether `train.patience` ended it before `steps`.
        warning: what is wrong with the training as a whole, or None.
        tokens_per_second: positions over all training steps of this process; NaN where there were none.
        stopped_by: name of the signal that stopped it, `OUT_OF_TIME`, or None.
        first_sample: options of `mba sample` to try; empty where it cannot draw from such a model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    step: int
    steps: int
    best_step: int
    valid_nats: float | None
    weights_sha256: str | None
    valid_bits: float | None
    valid_perplexity: float | None
    answers_right: float | None = None
    unit: str
    per: str
    best_samples_step: int | None
    ended_by_patience: bool
    warning: str | None
    tokens_per_second: float
    stopped_by: str | None
    first_sample: str = Field(exclude=True)


class Estimate(BaseModel):
    """Resolved configuration, sizes, and a measured estimate of memory and time.

    Attributes:
        config: resolved.
        device: "cpu" or "cuda".
        precision: "fp32" or "bf16".
        parameters: number of parameters of the model.
        trained: how many of them are trained.
        tokens_per_step: positions per optimiser step, over all devices.
        micro_batch: sequences per device and forward pass.
        accumulate: micro-batches per optimiser step.
        tokens: positions of the whole training.
        length_stages: stages of the length warm-up, then the one at full length.
        stream_chunk_chosen: whether `train.stream_chunk` was "auto".
        memory_bytes: peak per device; None where the system does not tell.
        seconds_per_step: duration of one optimiser step.
        seconds: duration of all steps, without validations.
        data: summary of the data.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: dict[str, Any]
    device: str
    precision: str
    parameters: int
    trained: int
    tokens_per_step: int
    micro_batch: int
    accumulate: int
    tokens: int
    length_stages: list[dict[str, Any]]
    stream_chunk_chosen: bool
    memory_bytes: int | None
    seconds_per_step: float
    seconds: float
    data: dict[str, Any]
