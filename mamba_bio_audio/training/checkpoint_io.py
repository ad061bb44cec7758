"""Lets Lightning's trainer save and load our checkpoints; nothing is ever unpickled."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from torch import nn

from mamba_bio_audio.files.tensors import save_tree
from mamba_bio_audio.training.checkpoints import check_fits, load_checkpoint

_PREFIX = "model."  # prefix of the weights' names within the Lightning module


class TreeCheckpointIO(CheckpointIO):
    """Converts Lightning's dict to a `Checkpoint` on disk, written whole or not at all, and back.

    Args:
        model: the model in training; a checkpoint of another one is refused.
        averaged: whether a moving average of its weights is kept.
    """

    def __init__(self, model: nn.Module, averaged: bool) -> None:
        self.model = model
        self.averaged = averaged

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        """Write the values that `Checkpoint` lists."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # An average, where there is one, is what Lightning puts into `state_dict`, with the step's own weights beside it.
        averaged = "current_model_state" in checkpoint
        weights = checkpoint["current_model_state" if averaged else "state_dict"]
        steps = dict(checkpoint["callbacks"]["Steps"])
        tree = {
            "step": checkpoint["global_step"],
            "weights": _without_prefix(weights),
            "average": _without_prefix(checkpoint["state_dict"]) if averaged else None,
            "averaged": int(checkpoint["averaging_state"]["n_averaged"]) if averaged else 0,
            "optimizer": checkpoint["optimizer_states"][0]["state"],
            "random": steps.pop("random"),
            "steps": steps,
        }
        save_tree(Path(path), tree)

    def load_checkpoint(self, path: str | os.PathLike, *_: Any, **__: Any) -> dict[str, Any]:
        """Read a `Checkpoint` as the dict that Lightning restores; `Steps` takes the rest from its own part.

        Raises:
            InputError: the checkpoint cannot be used.
        """
        saved = load_checkpoint(Path(path))
        check_fits(saved, self.model, self.averaged, Path(path))
        steps = dict(saved.steps) | {"step": saved.step, "optimizer": saved.optimizer, "random": saved.random}
        weights = {_PREFIX + name: tensor for name, tensor in saved.weights.items()}
        found: dict[str, Any] = {
            "pytorch-lightning_version": L.__version__,
            "global_step": saved.step,
            "state_dict": weights,
            "callbacks": {"Steps": steps},
            "optimizer_states": [],
            "lr_schedulers": [],
        }
        if saved.average is not None:
            found["state_dict"] = {_PREFIX + name: tensor for name, tensor in saved.average.items()}
            found["current_model_state"] = weights
            found["averaging_state"] = {"n_averaged": torch.tensor(saved.averaged)}
            found["callbacks"]["MovingAverage"] = {"latest_update_step": saved.step}
        return found

    def remove_checkpoint(self, path: str | os.PathLike) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def _without_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}
