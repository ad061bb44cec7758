"""Length warm-up: shorter sequences first, at a constant number of positions per step (Gu & Dao 2023, section E.3.3).

Steps and micro-batches of all stages cover the same number of positions: halving the length doubles the number of
sequences. Memory, accumulation and the learning-rate schedule are therefore those of training at a single length. With
`length_warmup_keeps: sequences` the number of sequences stays constant instead, and shorter stages cost less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.stream import Stretch
from mamba_bio_audio.training.config import TrainConfig


class Stage(NamedTuple):
    """Steps `start` to `stop` (0-based, half-open) at one length."""

    length: int
    start: int
    stop: int
    sequences_per_step: int
    windows: int  # windows of the training split at this length, which make an epoch

    def describe(self) -> dict[str, Any]:
        """The stage as plain numbers for JSON."""
        steps = self.stop - self.start
        epochs = round(steps * self.sequences_per_step / self.windows, 6)
        return self._asdict() | {"steps": steps, "epochs": epochs}


def length_stages(train: TrainConfig, count_windows: Callable[[int], int]) -> list[Stage]:
    """The stages of a training run, the last one at full length; only that one without warm-up.

    Args:
        train: optimisation settings.
        count_windows: number of training windows at a length. A stage given in epochs ends with the step that completes
            them.

    Raises:
        InputError: the warm-up leaves no step at full length, or there are no windows.
    """
    stages: list[Stage] = []
    step = 0
    for stage in train.length_warmup:
        windows, sequences = count_windows(stage.length), train.sequences_per_step
        if train.length_warmup_keeps == "positions":
            sequences = train.tokens_per_step // stage.length
        if not windows:
            raise InputError(
                f"train.length_warmup: the training split has no window of length {stage.length:,}; choose another length"
            )
        steps = stage.steps or math.ceil(stage.epochs * windows / sequences)  # type: ignore[operator]
        stages.append(Stage(stage.length, step, step + steps, sequences, windows))
        step += steps
    if step >= train.steps:
        listed = ", ".join(f"{stage.stop - stage.start:,} at {stage.length:,}" for stage in stages)
        raise InputError(
            f"train.length_warmup takes {step:,} steps ({listed}) and train.steps is {train.steps:,}, so none are left "
            f"at full length; raise train.steps above {step:,} or shorten the stages"
        )
    windows = count_windows(train.length)
    return [*stages, Stage(train.length, step, train.steps, train.sequences_per_step, windows)]


def length_at(stages: Sequence[Stage], step: int) -> int:
    """Positions per sequence in optimiser step `step`, counted from 1."""
    return next(stage.length for stage in stages if step <= stage.stop)


def positions_until(stages: Sequence[Stage], step: int) -> int:
    """Total positions of the first `step` optimiser steps."""
    return sum(
        max(0, min(step, stage.stop) - stage.start) * stage.sequences_per_step * stage.length for stage in stages
    )


def stretches(stages: Sequence[Stage], train: TrainConfig, step: int, device: str) -> list[Stretch]:
    """The stretches of the training stream that remain after `step` optimiser steps.

    Args:
        device: "cpu" or "cuda"; determines the micro-batch if the configuration leaves it open.
    """
    micro_batch = train.micro_batch_for(device)
    accumulate = train.accumulate(device)
    parts = []
    for number, stage in enumerate(stages):
        last = number == len(stages) - 1
        if step >= stage.stop and not last:
            continue
        done = max(0, step - stage.start)
        parts.append(
            Stretch(
                stage.length,
                # A micro-batch is the same share of every step.
                micro_batch * stage.sequences_per_step // train.sequences_per_step,
                number,
                done * stage.sequences_per_step,
                None if last else (stage.stop - stage.start - done) * accumulate,
            )
        )
    return parts
