"""Runs one training to its end, an interrupt, or a failure that loses nothing."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from mamba_bio_audio.models.isotropic import IsotropicModel
from mamba_bio_audio.pipelines.dna.datamodule import DnaDataModule
from mamba_bio_audio.training.callbacks import (
    AtomicCheckpointIO,
    Checkpoints,
    Metrics,
    Progress,
    StopOnSignal,
)
from mamba_bio_audio.training.config import TrainConfig
from mamba_bio_audio.training.module import LanguageModelModule


class FitResult(NamedTuple):
    """How a training ended."""

    step: int
    best_step: int
    best_nats: float
    tokens_per_second: float
    signal: int | None  # that stopped it, or None


def resolve_precision(precision: str, device: str) -> str:
    """`auto` is bf16 on CUDA and fp32 on the CPU."""
    if precision == "auto":
        return "bf16" if device == "cuda" else "fp32"
    return precision


def last_step(run: Path) -> int:
    """Optimiser steps in a run's last checkpoint."""
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=False, mmap=True)
    return int(checkpoint["global_step"])


def fit(
    model: IsotropicModel,
    data: DnaDataModule,
    config: TrainConfig,
    *,
    out: Path,
    device: str,
    resume: bool = False,
    quiet: bool = False,
    unit: str = "tokens",
) -> FitResult:
    """Train `model` on `data` into the run folder `out`.

    Args:
        model: on the CPU; left with the weights of the last step.
        data: gives endless training batches, beginning where the run is to go on, and validation batches.
            Its rank and world size are set here.
        config: of the optimisation.
        out: run folder; receives `metrics.csv`, `checkpoints/`, `model.safetensors` and TensorBoard logs.
        device: "cpu" or "cuda".
        resume: continue from `checkpoints/last.ckpt`.
        quiet: no progress on standard error.
        unit: what a position is called in messages.

    Raises:
        NonFiniteLoss: when the loss is no longer a number.
    """
    micro_batch = config.micro_batch_for(device)
    accumulate = config.sequences_per_step // (micro_batch * config.devices)
    model.recompute = config.recompute
    module = LanguageModelModule(model, config)
    checkpoints = Checkpoints(config, accumulate, out)
    stop = StopOnSignal(config, accumulate, checkpoints)
    progress = Progress(config, accumulate, quiet, unit)
    # Metrics first: a checkpoint must hold what was written. Signals last: they save what the others did.
    callbacks: list[L.Callback] = [
        Metrics(config, accumulate, out / "metrics.csv"),
        checkpoints,
        progress,
        stop,
    ]
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # Few workers and an endless loader are what we want here; Lightning warns of both.
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
        trainer = L.Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=config.devices,
            strategy=config.strategy,
            precision="bf16-mixed" if resolve_precision(config.precision, device) == "bf16" else "32-true",
            max_steps=config.steps,
            max_epochs=-1,
            accumulate_grad_batches=accumulate,
            gradient_clip_val=config.clip,
            val_check_interval=config.validate_every * accumulate,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            logger=TensorBoardLogger(out, name=None, version="tensorboard", default_hp_metric=False),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        try:
            last = out / "checkpoints" / "last.ckpt" if resume else None
            data.rank, data.world_size = trainer.global_rank, trainer.world_size
            valid = data.evaluation_dataloader("valid", max_tokens=config.validation_tokens)
            trainer.fit(module, data.train_dataloader(), valid, ckpt_path=last, weights_only=False)
            if stop.signal is None and trainer.global_step % config.validate_every:
                trainer.validate(module, valid, verbose=False)
        finally:
            stop.restore()
    return FitResult(
        step=trainer.global_step,
        best_step=checkpoints.best_step,
        best_nats=checkpoints.best,
        tokens_per_second=progress.tokens_per_second,
        signal=stop.signal if trainer.global_step < config.steps else None,
    )
