"""Training checkpoints: everything needed to continue bit for bit, as tensors and plain values.

A checkpoint is one file in the format of `files/tensors.py`: `checkpoints/last.safetensors` in a run folder;
`best.safetensors` beside it belongs to the best validation. Whatever follows from the configuration and the number of
steps (learning rate, position in the data, Lightning's counters) is not stored but derived again, so that a resumed run
can have more steps or another micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files.tensors import load_tree, not_finite

_REMEDY = "use the best weights in model.safetensors, or start again with --force"


def _number(value: int | str) -> int | str:
    float(value)
    return value


def _scalar(value: Tensor) -> Tensor:
    if value.ndim:
        raise ValueError("not a single number")
    return value


Count = Annotated[int, Field(ge=0)]
Scalar = Annotated[Tensor, AfterValidator(_scalar)]


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


class StepsState(_Plain):
    """State of `training/steps.py`."""

    best: float
    best_step: Count
    stale: Count = Field(description="validations since the best one")
    best_samples: float
    best_samples_step: Count
    row: dict[str, Annotated[int | str, AfterValidator(_number)]] = Field(
        description="metrics row whose validation is still to come"
    )
    nats: Scalar = Field(description="training loss since the last row, summed over all ranks")
    count: Scalar = Field(description="positions or sequences in that sum")
    positions: Count | None = Field(None, description="read so far, by all ranks; earlier versions do not say")


class Checkpoint(_Plain):
    """A training run after `step` whole optimiser steps."""

    step: Count
    weights: dict[str, Tensor]
    average: dict[str, Tensor] | None = Field(description="moving average of the weights, if one is kept")
    averaged: Count = Field(description="number of steps in the average")
    optimizer: dict[int, dict[str, Tensor]] = Field(description="state of each parameter, by its index")
    steps: StepsState
    random: dict[str, Tensor] = Field(description="states of torch's random generators, by kind of device")


class Position(NamedTuple):
    """How far a run's last checkpoint has come."""

    step: int
    validation_due: bool  # whether the validation of that step is still to come
    stale: int  # validations since the best one


def last_checkpoint(run: Path) -> Path | None:
    """Path of a run's last checkpoint; None if there is none yet.

    Raises:
        InputError: the only one was written by an earlier version of this program.
    """
    path = run / "checkpoints" / "last.safetensors"
    if path.exists():
        return path
    old = path.with_suffix(".ckpt")
    if old.exists():
        raise InputError(
            f"{old}: a Python pickle, written by an earlier version of this program. Opening a pickle can run any code "
            f"hidden in it, so it is not opened. {_REMEDY[0].upper()}{_REMEDY[1:]}; only the version that wrote the "
            f"checkpoint can continue from it"
        )
    return None


def last_position(run: Path) -> Position:
    """Read how far a run's last checkpoint has come; it is checked as by `load_checkpoint`.

    Raises:
        InputError: there is none, or it cannot be used.
    """
    path = last_checkpoint(run)
    if path is None:
        raise InputError(f"{run}: has no checkpoints/last.safetensors to continue from; start it without --resume")
    checkpoint = load_checkpoint(path)
    return Position(checkpoint.step, bool(checkpoint.steps.row), checkpoint.steps.stale)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint; its tensors are on the CPU.

    Raises:
        InputError: it is damaged, not a checkpoint of this program, or contains infinite values or NaN.
    """
    tree = load_tree(path, remedy=_REMEDY)
    try:
        checkpoint = Checkpoint.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))[:200] or "top level"
        raise InputError(f"{path}: not a checkpoint of this program ({place}: {first['msg']}); {_REMEDY}") from None
    check_finite(checkpoint.weights, path)
    check_finite(checkpoint.average or {}, path)
    for number, state in checkpoint.optimizer.items():
        check_finite({f"optimiser state {number} {name}": tensor for name, tensor in state.items()}, path)
    return checkpoint


def check_fits(checkpoint: Checkpoint, model: nn.Module, averaged: bool, path: Path) -> None:
    """Refuse a checkpoint of another model, or one without the average to be continued.

    Raises:
        InputError: names or shapes differ, or an average is missing or unexpected.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    sets = [checkpoint.weights] + ([] if checkpoint.average is None else [checkpoint.average])
    for tensors in sets:
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        for name in [*wanted, *found]:
            if wanted.get(name) != found.get(name):
                raise InputError(
                    f"{path}: belongs to another model ({name[:200]} is {found.get(name, 'missing')}, in this model "
                    f"{wanted.get(name, 'missing')}); {_REMEDY}"
                )
    if averaged != (checkpoint.average is not None):
        raise InputError(
            f"{path}: {'lacks' if averaged else 'contains'} a moving average of the weights (train.ema); {_REMEDY}"
        )


def check_optimizer(state: Mapping[int, Mapping[str, Tensor]], parameters: Sequence[Tensor], path: Path) -> None:
    """Refuse an optimiser state that is not one of AdamW over these parameters.

    Raises:
        InputError: it belongs to another optimiser or model.
    """
    shapes = [{"step": torch.Size(), "exp_avg": own.shape, "exp_avg_sq": own.shape} for own in parameters]
    for number, values in state.items():
        found = {name: tensor.shape for name, tensor in values.items()}
        if not 0 <= number < len(shapes) or found != shapes[number]:
            raise InputError(
                f"{path}: the state of parameter {number} belongs to another optimiser or model; {_REMEDY}"
            )


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that are infinite or NaN.

    Raises:
        InputError: some of them are.
    """
    name = not_finite(tensors)
    if name is not None:
        tensor = tensors[name]
        wrong = int((~torch.isfinite(tensor)).sum())
        raise InputError(
            f"{path}: {wrong:,} of {tensor.numel():,} values of {name} are infinite or not a number: the training "
            f"diverged, or the file was changed. Use other weights of the run (--which best or last), or train again "
            f"with a lower train.lr"
        )
