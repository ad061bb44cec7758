"""Checkpoints of a training: what it takes to go on to the last bit, as tensors and plain values.

A checkpoint is one file of `files/tensors.py`, `checkpoints/last.safetensors` in a run folder; `best.safetensors` beside
it is that of the best validation. Whatever follows from the configuration and the number of steps (the rate, the place
in the data, Lightning's counters) is not kept but made anew, so that a resumed run can have more steps or another
micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files.tensors import load_tree

_REMEDY = "the best weights are in model.safetensors, or start again with --force"


def _number(value: int | str) -> int | str:
    float(value)
    return value


def _scalar(value: Tensor) -> Tensor:
    if value.ndim:
        raise ValueError("is not one number")
    return value


Count = Annotated[int, Field(ge=0)]
Scalar = Annotated[Tensor, AfterValidator(_scalar)]


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


class StepsState(_Plain):
    """Where `training/steps.py` stands."""

    best: float
    best_step: Count
    stale: Count = Field(description="validations since the best one")
    best_samples: float
    best_samples_step: Count
    row: dict[str, Annotated[int | str, AfterValidator(_number)]] = Field(description="that waits for its validation")
    nats: Scalar = Field(description="training loss since the last row, over all ranks")
    count: Scalar = Field(description="positions or sequences of it")


class Checkpoint(_Plain):
    """A training after `step` whole optimiser steps."""

    step: Count
    weights: dict[str, Tensor]
    average: dict[str, Tensor] | None = Field(description="of the weights, where one is kept")
    averaged: Count = Field(description="steps in the average")
    optimizer: dict[int, dict[str, Tensor]] = Field(description="state of each parameter, by its number")
    steps: StepsState
    random: dict[str, Tensor] = Field(description="states of torch's generators, by kind of device")


class Position(NamedTuple):
    """Where a run's last checkpoint stands."""

    step: int
    validation_due: bool  # the validation of that step is still to come
    stale: int  # validations since the best one


def last_checkpoint(run: Path) -> Path | None:
    """Path of a run's last checkpoint; None where there is none yet.

    Raises:
        InputError: there is only one of an earlier version of this program.
    """
    path = run / "checkpoints" / "last.safetensors"
    if path.exists():
        return path
    old = path.with_suffix(".ckpt")
    if old.exists():
        raise InputError(
            f"{old}: a checkpoint of an earlier version of this program, a Python pickle. Opening one can run any code "
            f"that somebody put into it, so it is not opened. {_REMEDY[0].upper()}{_REMEDY[1:]}; only the version "
            f"that wrote it can continue it"
        )
    return None


def last_position(run: Path) -> Position:
    """Read where a run's last checkpoint stands; it is checked as `load_checkpoint` does.

    Raises:
        InputError: there is none, or it cannot be used.
    """
    path = last_checkpoint(run)
    if path is None:
        raise InputError(f"{run}: no checkpoints/last.safetensors")
    checkpoint = load_checkpoint(path)
    return Position(checkpoint.step, bool(checkpoint.steps.row), checkpoint.steps.stale)


def load_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint of our own training, with its tensors on the CPU.

    Raises:
        InputError: it is damaged, something else, or holds weights that are not numbers.
    """
    tree = load_tree(path, remedy=_REMEDY)
    try:
        checkpoint = Checkpoint.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))[:200] or "the whole"
        raise InputError(f"{path}: not a checkpoint of this program ({place}: {first['msg']}); {_REMEDY}") from None
    check_finite(checkpoint.weights, path)
    check_finite(checkpoint.average or {}, path)
    for number, state in checkpoint.optimizer.items():
        check_finite({f"optimiser state {number} {name}": tensor for name, tensor in state.items()}, path)
    return checkpoint


def check_fits(checkpoint: Checkpoint, model: nn.Module, averaged: bool, path: Path) -> None:
    """Refuse a checkpoint of another model, or one that lacks the average to be continued.

    Raises:
        InputError: names or shapes are others.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    sets = [checkpoint.weights] + ([] if checkpoint.average is None else [checkpoint.average])
    for tensors in sets:
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        for name in [*wanted, *found]:
            if wanted.get(name) != found.get(name):
                raise InputError(
                    f"{path}: of another model ({name[:200]} is {found.get(name, 'missing')}, in this model "
                    f"{wanted.get(name, 'missing')}); {_REMEDY}"
                )
    if averaged != (checkpoint.average is not None):
        raise InputError(f"{path}: {'lacks' if averaged else 'holds'} a moving average of the weights; {_REMEDY}")


def check_optimizer(state: Mapping[int, Mapping[str, Tensor]], parameters: Sequence[Tensor], path: Path) -> None:
    """Refuse the state of another optimiser than AdamW over these parameters.

    Raises:
        InputError: it is of others.
    """
    shapes = [{"step": torch.Size(), "exp_avg": own.shape, "exp_avg_sq": own.shape} for own in parameters]
    for number, values in state.items():
        found = {name: tensor.shape for name, tensor in values.items()}
        if not 0 <= number < len(shapes) or found != shapes[number]:
            raise InputError(f"{path}: the state of parameter {number} is of another optimiser or model; {_REMEDY}")


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor that holds an infinity or what is not a number; None where there is none."""
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    if not floats:
        return None
    # One answer for all of them, so that a GPU is waited for once.
    sound = torch.stack([torch.isfinite(tensor).all() for tensor in floats.values()]).tolist()
    return None if all(sound) else list(floats)[sound.index(False)]


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that are not numbers.

    Raises:
        InputError: some are infinite or not a number.
    """
    name = not_finite(tensors)
    if name is not None:
        tensor = tensors[name]
        wrong = int((~torch.isfinite(tensor)).sum())
        raise InputError(
            f"{path}: {name} holds {wrong:,} values of {tensor.numel():,} that are infinite or not a number: the "
            f"training diverged, or the file was changed. Use other weights of the run (--which best or last), or train "
            f"again with a lower train.lr"
        )
