"""Runs a training to its end, to an interrupt, or to a failure that loses nothing."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mamba_bio_audio.models.build import LanguageModel
from mamba_bio_audio.models.heads import Classifier
from mamba_bio_audio.models.isotropic import set_dropout
from mamba_bio_audio.pipelines.data import DataModule
from mamba_bio_audio.pipelines.domains import domain_of
from mamba_bio_audio.pipelines.stream import stop_workers, without_padding
from mamba_bio_audio.signals import StopSignal
from mamba_bio_audio.training.checkpoint_io import TreeCheckpointIO
from mamba_bio_audio.training.checkpoints import last_checkpoint
from mamba_bio_audio.training.config import TrainConfig, resolve_precision
from mamba_bio_audio.training.cores import watch_cores
from mamba_bio_audio.training.lengths import Stage
from mamba_bio_audio.training.listening import Listening
from mamba_bio_audio.training.module import LanguageModelModule
from mamba_bio_audio.training.parallel import is_main_process
from mamba_bio_audio.training.progress import Progress
from mamba_bio_audio.training.steps import Extras, Steps

# Validation rows that are read once without a class and once as each.
_CLASS_ROWS = 32


class MovingAverage(WeightAveraging):
    """Averages the weights after every step, with one kernel for all of them and without waiting for the device.

    Lightning's own exponential callback launches four kernels per tensor and reads a counter from the device every step.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Create the average; its counter stays on the host."""
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()


class Place(NamedTuple):
    """Device of a training run, and what it knows about the run folder."""

    out: Path  # run folder; receives `metrics.csv`, `checkpoints/`, weights and TensorBoard logs
    device: str  # "cpu" or "cuda"
    resume: bool = False  # continue from `checkpoints/last.safetensors`
    quiet: bool = False  # show no progress
    deadline: float | None = None  # of `time.monotonic`: save and end then


class FitResult(NamedTuple):
    """How a training ended."""

    step: int
    best_step: int
    best_nats: float
    tokens_per_second: float
    signal: int | None  # number of the signal that stopped it, or None
    out_of_time: bool = False  # the deadline did
    exhausted: bool = False  # `train.patience` ended it before `train.steps`
    best_samples_step: int = 0  # 0 where no samples were generated
    warning: str | None = None  # what was wrong with the training as a whole


def fit(
    model: LanguageModel | Classifier,
    data: DataModule,
    config: TrainConfig,
    place: Place,
    stages: Sequence[Stage],
    check_data: Callable[[], None] = lambda: None,
) -> FitResult:
    """Train `model` on `data` into a run folder.

    Args:
        model: on the CPU; left with the weights of the last step, or their average with `ema`.
        data: gives endless training batches, from where the run continues, and validation batches. Its rank and world
            size are set here.
        config: optimisation settings.
        place: run folder and device.
        stages: stages of the length warm-up, then the one at full length.
        check_data: raises `InputError` when the data have changed; called before every checkpoint and at the end.

    Raises:
        InputError: the checkpoint cannot be used, or the data have changed.
        NonFiniteLoss: the loss became infinite or NaN.
    """
    out, device, resume, quiet, deadline = place
    accumulate = config.accumulate(device)
    model.recompute = config.recompute
    set_dropout(model, config.dropout)
    module = LanguageModelModule(model, config, data.corpus.answers)
    watch = watch_cores(torch.get_num_threads()) if device == "cpu" and is_main_process() else None
    progress = Progress(
        config, quiet or not is_main_process(), f"{data.codec.unit}s", watch, likelihood=model.likelihood
    )
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with StopSignal(deadline) as stop, warnings.catch_warnings():
        # Few workers and an endless loader are intended; Lightning warns about both.
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
        trainer = L.Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=config.devices,
            num_nodes=config.nodes,
            strategy="ddp" if config.devices * config.nodes > 1 else "auto",
            precision="bf16-mixed" if resolve_precision(config.precision, device) == "bf16" else "32-true",
            # `Steps` validates and ends the training, so that both can be interrupted and resumed exactly.
            max_steps=-1,
            limit_val_batches=0,
            accumulate_grad_batches=accumulate,
            gradient_clip_val=config.clip,
            plugins=[TreeCheckpointIO(model, config.ema is not None)],
            # Where Lightning looks for checkpoints made on SLURM's signals; elsewhere it might find somebody else's.
            default_root_dir=out,
            logger=TensorBoardLogger(out, name=None, version="tensorboard", default_hp_metric=False),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        # Ranks that share a sequence read the same data.
        data.rank, data.world_size = trainer.global_rank // config.sequence_parallel, config.data_parallel
        valid = data.evaluation_dataloader("valid", max_tokens=config.validation_tokens)
        average = None if config.ema is None else MovingAverage(config.ema)
        if average is not None:
            # Before `Steps`, which validates the average.
            trainer.callbacks.append(average)  # type: ignore[attr-defined]
        listening = None
        if config.listen:
            recorded = data.evaluation_dataset("valid")
            listener = domain_of(data.config.kind).listener(data.codec, config.length, recorded)
            listening = Listening(listener, data.codec, config.listen)
        by_class = None
        if getattr(module.model, "classes", ()) and trainer.is_global_zero:
            # Spread over the split, which is in the order of its folders, and so of the classes.
            rows = data.evaluation_dataset("valid", max_tokens=_CLASS_ROWS * config.length)
            by_class = without_padding([rows[at] for at in range(len(rows))])
        extras = Extras(average, listening, check_data, data.config.answered, by_class)
        steps = Steps(config, accumulate, out, valid, stop, progress, stages, extras)
        trainer.callbacks.append(steps)  # type: ignore[attr-defined]
        last = last_checkpoint(out) if resume else None
        batches = data.train_dataloader()
        # For layers that draw from torch's own generators; a resumed run continues with those of its checkpoint.
        torch.manual_seed(data.seed + trainer.global_rank)
        try:
            trainer.fit(module, batches, ckpt_path=last, weights_only=True)
        finally:
            module.forget_recorded()
            stop_workers(batches)
            stop_workers(valid)
        progress.end()
    complete = (trainer.global_step >= config.steps or steps.exhausted) and not steps.row
    return FitResult(
        step=trainer.global_step,
        best_step=steps.best_step,
        best_nats=steps.best,
        tokens_per_second=progress.tokens_per_second,
        signal=None if complete else stop.number,
        out_of_time=not complete and stop.number is None and stop.asked,
        exhausted=steps.exhausted,
        best_samples_step=steps.best_samples_step,
        warning=steps.warning,
    )
