"""Everything around the optimiser steps, in one fixed order: row, checkpoint, stop, validation, best weights.

It all happens at the end of a whole optimiser step, never within an accumulation. The row of a step whose validation is
still to come is saved with the checkpoint, so that a run stopped or killed anywhere, even during a validation, resumes
to the same rows, the same best weights and the same end as an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors.torch import save_file
from torch import nn

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.evaluation.class_worth import ClassWorth, class_worth
from mamba_bio_audio.files import atomic_path
from mamba_bio_audio.files.tensors import not_finite
from mamba_bio_audio.models.answers import answers
from mamba_bio_audio.models.low_rank import merged
from mamba_bio_audio.signals import StopSignal
from mamba_bio_audio.training import metrics
from mamba_bio_audio.training.checkpoints import check_optimizer
from mamba_bio_audio.training.config import TrainConfig
from mamba_bio_audio.training.lengths import Stage, length_at, positions_until
from mamba_bio_audio.training.listening import Listening
from mamba_bio_audio.training.module import LanguageModelModule
from mamba_bio_audio.training.progress import Progress
from mamba_bio_audio.training.schedule import move_to


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient became infinite or NaN; the files on disk are from before."""


class Extras(NamedTuple):
    """Everything that a training run does besides its steps.

    Attributes:
        average: keeps a moving average of the weights, which is then what is validated and kept as the best.
        listening: generates samples after every validation; the weights with the best ones are kept too.
        check_data: raises `InputError` when the data are no longer those that the training began with; called before
            anything is saved, so that what is on disk is from before.
        answered: whether targets are answers, so that validations count how many are right.
        by_class: validation rows of every class, by which it is told what the class is worth; None for models without.
    """

    average: WeightAveraging | None = None
    listening: Listening | None = None
    check_data: Callable[[], None] = lambda: None
    answered: bool = False
    by_class: Mapping[str, torch.Tensor] | None = None


class Steps(L.Callback):
    """Writes rows and checkpoints, validates, shows progress, and ends the training.

    Args:
        config: optimisation settings.
        accumulate: micro-batches per optimiser step.
        out: run folder.
        valid: validation batches, the same at every iteration.
        stop: set by signals, or by the time.
        progress: what the user sees.
        stages: stages of the length warm-up, then the one at full length.
        extras: averaging, listening, and a check of the data.

    Attributes:
        warning: what the user should know about the training as a whole, or None.
    """

    def __init__(
        self,
        config: TrainConfig,
        accumulate: int,
        out: Path,
        valid: Iterable[dict[str, torch.Tensor]],
        stop: StopSignal,
        progress: Progress,
        stages: Sequence[Stage],
        extras: Extras = Extras(),
    ) -> None:
        self.warning: str | None = None
        # Step of the first of consecutive rows that indicate a dead network, and the number of these rows.
        self._dead_since = self._dead_rows = 0
        self.average, self.listening, self.check_data, self.answered, self.by_class = extras
        self.config = config
        self.stages = stages
        self.accumulate = accumulate
        self.out = out
        self.valid = valid
        self.stop = stop
        self.progress = progress
        self.best = math.inf
        self.best_step = 0
        # Validations since the best one.
        self.stale = 0
        # Least distance of generated audio from recordings.
        self.best_samples = math.inf
        self.best_samples_step = 0
        # The row of a step whose validation is still to come.
        self.row: dict[str, Any] = {}
        self._restored: dict[str, Any] = {}
        self._told: set[str] = set()
        # Training loss and count since the last row, and all positions, over all ranks, saved in the checkpoint.
        self._sums = torch.zeros(3, dtype=torch.float64)
        self._read = 0  # positions of this rank before the step

    def state_dict(self) -> dict[str, Any]:
        """Best validation, unfinished row, and training loss since the last row."""
        return {
            "best": self.best,
            "best_step": self.best_step,
            "stale": self.stale,
            "best_samples": self.best_samples,
            "best_samples_step": self.best_samples_step,
            "row": dict(self.row),
            "nats": self._sums[0].cpu(),
            "count": self._sums[1].round().long().cpu(),
            "positions": int(self._sums[2]),
            "random": self._random_states(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state from `TreeCheckpointIO`; the rest is restored when training starts."""
        self.best, self.best_step, self.row = state_dict["best"], state_dict["best_step"], dict(state_dict["row"])
        self.stale = state_dict["stale"]
        self.best_samples, self.best_samples_step = state_dict["best_samples"], state_dict["best_samples_step"]
        self._restored = state_dict
        positions = state_dict.get("positions")
        if positions is None:
            positions = positions_until(self.stages, state_dict["step"]) * self.config.sequence_parallel
        nats = state_dict["nats"].double()
        self._sums = torch.stack([nats, state_dict["count"].double(), torch.full_like(nats, positions)])

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Keep the module, whose sums are saved."""
        assert isinstance(pl_module, LanguageModelModule)
        self._module = pl_module

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Continue the files, and make up for an interrupted validation."""
        self.stop.install()
        module = self._module
        if self._restored:
            self._restore(trainer, module)
        step = trainer.global_step
        if trainer.is_global_zero:
            table = self.out / "metrics.csv"
            last = metrics.start(table, step - bool(self.row))
            if self._restored and step == self.config.steps and not self.row and not _validated(last, step):
                # `train.steps` was lowered to the current step, so that step is validated after all.
                self.row = {
                    "step": step,
                    "tokens": self._positions,
                    "length": length_at(self.stages, step),
                }
                if last.get("step") == str(step):
                    self.row |= {name: value for name, value in last.items() if value} | {"step": step}
                    metrics.start(table, step - 1)
        self.row = trainer.strategy.broadcast(self.row)
        if self.row:
            self._validate(trainer, module)
        self._read = module.positions
        self.progress.start()
        # A row that is still unfinished means that its validation was interrupted again.
        trainer.should_stop = bool(self.row) or trainer.global_step >= self.config.steps or self.exhausted

    def _restore(self, trainer: L.Trainer, module: LanguageModelModule) -> None:
        """Continue after a checkpoint's step, with the optimiser as it was and everything else as now configured."""
        restored, step = self._restored, self._restored["step"]
        optimizer = trainer.optimizers[0]
        schedule: Any = trainer.lr_scheduler_configs[0].scheduler
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        check_optimizer(restored["optimizer"], parameters, self._path("last"))
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": restored["optimizer"], "param_groups": groups})
        move_to(schedule, step)
        # Lightning counts micro-batches from 0 again; only the step number continues.
        trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = step
        if not trainer.is_global_zero:
            return
        # These belong to all ranks together or to the first one, which continues with them.
        module.train_nats, module.train_count = restored["nats"].double(), restored["count"].long()
        module.positions = int(self._sums[2])
        try:
            torch.set_rng_state(restored["random"]["cpu"])
            if module.device.type == "cuda" and "cuda" in restored["random"]:
                torch.cuda.set_rng_state(restored["random"]["cuda"], module.device)
        except (KeyError, RuntimeError, TypeError) as error:
            raise InputError(
                f"{self._path('last')}: its random states cannot be used ({error}); start again with --force"
            ) from None

    def _random_states(self) -> dict[str, torch.Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self._module.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self._module.device)
        return states

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the last micro-batch of a step, do everything else."""
        if (batch_idx + 1) % self.accumulate:
            return
        config, module, step = self.config, self._module, trainer.global_step
        stopped = trainer.strategy.reduce_boolean_decision(self.stop.asked, all=False)
        validate = step % config.validate_every == 0 or step == config.steps
        log = validate or step % config.log_every == 0
        save = validate or step % config.checkpoint_every == 0 or stopped
        due = self.progress.due()
        # Ranks may be summed only at steps where all of them do so; in between, this rank's loss is shown.
        nats = self._train_nats(trainer, step, everywhere=log or save) if log or save or due else None
        length = length_at(self.stages, step)
        if log or due:
            self._tell_what_is_kept(module)
        # The other ranks' batches are about as long.
        read = (module.positions - self._read) * trainer.world_size // config.sequence_parallel
        self._read = module.positions
        self.progress.step(step, read, nats if due else None, length if len(self.stages) > 1 else None)
        if log:
            module.reset_train_sums()
            self.row = {
                "step": step,
                "tokens": self._positions,
                "length": length,
                "lr": f"{self._rate(trainer, step):.6g}",
                "grad_norm": f"{float(module.grad_norm):.6g}",
                "train_nats": f"{nats:.9g}",
            }
            assert nats is not None
            self._look_for_death(trainer, step, nats)
            if not validate:
                self._write(trainer)
        if save:
            self._check_data(trainer)
            self._add_up(trainer, module)
            self._save(trainer, "last")
        if validate and not stopped:
            self._validate(trainer, module)
        trainer.should_stop = stopped or bool(self.row) or step == config.steps or self.exhausted

    def _tell_what_is_kept(self, module: LanguageModelModule) -> None:
        """Say what was chosen by the memory of a GPU, as soon as it was."""
        keepers: list[Any] = [getattr(part, "keeper", None) for part in module.model.modules()]
        chosen = [str(kept) for keeper in keepers if keeper is not None for kept in keeper.chosen.values()]
        for text in dict.fromkeys(chosen):
            if text not in self._told:
                self.progress.tell(f"for backward, layers keep {text}")
                self._told.add(text)

    @property
    def _positions(self) -> int:
        """All positions up to the last sum over ranks, of which those that share a sequence read the same ones."""
        return int(self._sums[2]) // self.config.sequence_parallel

    @property
    def exhausted(self) -> bool:
        """Whether `train.patience` validations in a row were no better than the best."""
        return self.config.patience is not None and self.stale >= self.config.patience

    def _train_nats(self, trainer: L.Trainer, step: int, everywhere: bool) -> float:
        """Mean training loss since the last row, of all ranks or this one; checked to be finite before it is shown."""
        module = self._module
        sums = self._add_up(trainer, module) if everywhere else module.train_sums()
        nats = (sums[0] / sums[1].clamp(min=1)).item()
        norm = float(module.grad_norm)
        # A rank that stopped alone would leave the others waiting; soon they all notice together.
        if not (math.isfinite(nats) and math.isfinite(norm)) and (everywhere or trainer.world_size == 1):
            raise NonFiniteLoss(
                f"at step {step} the training loss is {nats:g} and its gradient norm is {norm:g}; "
                f"lower train.lr and start again"
            )
        return nats

    def _look_for_death(self, trainer: L.Trainer, step: int, nats: float) -> None:
        """Warn once about a network whose output no longer depends on its input and that no gradient can change."""
        model: Any = self._module.model
        labels = model.labels
        outputs = len(labels) if labels else model.embedding.weight.shape[0]
        blind, what = (model.outputs.blind(outputs), model.outputs.name) if labels else (math.log(outputs), "symbols")
        if not float(self._module.grad_norm):
            # A perfect network has no gradient either, but another loss.
            dead = abs(nats - blind) <= 1e-3 * blind
            found = (
                f"the loss has stayed at {nats:.4f} nats, as if all {outputs} {what} were "
                f"guessed with equal probability, and its gradient is 0"
            )
        else:
            dead = _only_bias_learns(model)
            found = f"nothing but the output bias has had a gradient, whatever the input (loss {nats:.4f} nats)"
        if not dead:
            self._dead_rows = 0
            return
        self._dead_since = self._dead_since if self._dead_rows else step
        self._dead_rows += 1
        # A single row may be chance, two are not; and no row follows the last one.
        if self.warning is None and (self._dead_rows > 1 or step == self.config.steps):
            self.warning = (
                f"since step {self._dead_since:,} {found}: the network is dead. "
                f"Start again with a lower train.lr (it was {self.config.lr:g}) or a longer train.warmup; if it was dead "
                f"from the first row on, try lower model.ssm.dt_min and dt_max, or other weights in head.pretrained"
            )
            if trainer.is_global_zero:
                self.progress.warn(self.warning)

    def _check_data(self, trainer: L.Trainer) -> None:
        """Check for changed data on the first rank, and stop all ranks if there are any."""
        problem = None
        if trainer.is_global_zero:
            try:
                self.check_data()
            except InputError as error:
                problem = str(error)
        problem = trainer.strategy.broadcast(problem)
        if problem is not None:
            raise InputError(problem)

    def _add_up(self, trainer: L.Trainer, module: LanguageModelModule) -> torch.Tensor:
        """Sum over all ranks, and keep the result for the checkpoint; all ranks must call this."""
        sums = module.train_sums()
        if trainer.world_size > 1:
            sums = trainer.strategy.reduce(sums, reduce_op="sum")  # type: ignore[assignment]
        self._sums = sums
        return sums

    @staticmethod
    def _rate(trainer: L.Trainer, step: int) -> float:
        # The scheduler itself has already advanced to the next step.
        schedule: Any = trainer.lr_scheduler_configs[0].scheduler
        return schedule.base_lrs[0] * schedule.lr_lambdas[0](step - 1)

    def _validate(self, trainer: L.Trainer, module: LanguageModelModule) -> None:
        """Validate, complete the unfinished row, and keep the best weights; if stopped, leave the row unfinished."""
        step = trainer.global_step
        with self._averaged(trainer, module):
            found = self._validation(trainer, module)
        if found is None:
            return
        nats, accuracy = found
        if not math.isfinite(nats):
            # The last update destroyed the weights; neither they nor this row may be kept.
            raise NonFiniteLoss(f"at step {step} the validation loss is {nats:g}; lower train.lr and start again")
        self._check_data(trainer)
        model: Any = module.model
        self.row |= metrics.validation_fields(nats, likelihood=model.likelihood, accuracy=accuracy)
        distance = self._listen(trainer, module, step)
        if distance is not None:
            self.row["sample_distance"] = f"{distance:.6g}"
        worth = self._class_worth(trainer, module)
        if worth is not None:
            self.row |= {"class_nats": f"{worth.over_none:.6g}", "class_named": f"{worth.named:.6g}"}
        self._write(trainer)
        self.progress.validation(step, nats, distance, accuracy)
        if worth is not None:
            self.progress.tell(str(worth))
        if distance is not None and distance < self.best_samples:
            self.best_samples, self.best_samples_step = distance, step
            self._save_weights(trainer, module, "best_samples.safetensors")
        improved = nats < self.best
        self.stale = 0 if improved else self.stale + 1
        if improved:
            self.best, self.best_step = nats, step
            # Before `last`, which records that this validation is done.
            self._save(trainer, "best")
            self._save_weights(trainer, module, "model.safetensors")
        self._save(trainer, "last")

    def _listen(self, trainer: L.Trainer, module: LanguageModelModule, step: int) -> float | None:
        """Distance of generated audio from recordings; None if none is generated, and on all ranks but the first."""
        if self.listening is None or not trainer.is_global_zero:
            return None
        writer = trainer.logger.experiment if isinstance(trainer.logger, TensorBoardLogger) else None
        with self._averaged(trainer, module):
            return self.listening(module.model, writer, step)

    def _class_worth(self, trainer: L.Trainer, module: LanguageModelModule) -> ClassWorth | None:
        """What the class is worth on some validation rows; None without classes, and on all ranks but the first."""
        if not trainer.is_global_zero or self.by_class is None:
            return None
        module.eval()
        try:
            with self._averaged(trainer, module), trainer.precision_plugin.forward_context():
                return class_worth(module.model, [self.by_class], len(self.by_class["tokens"]))
        finally:
            module.train()

    def _save_weights(self, trainer: L.Trainer, module: LanguageModelModule, name: str) -> None:
        if trainer.is_global_zero:
            with self._averaged(trainer, module), atomic_path(self.out / name) as temporary:
                save_weights(module.model, temporary)

    @contextmanager
    def _averaged(self, trainer: L.Trainer, module: LanguageModelModule) -> Iterator[None]:
        """Context in which the module holds the average of its weights, if one is kept."""
        if self.average is None:
            yield
            return
        self.average.on_validation_epoch_start(trainer, module)
        try:
            yield
        finally:
            self.average.on_validation_epoch_end(trainer, module)

    def _validation(self, trainer: L.Trainer, module: LanguageModelModule) -> tuple[float, float | None] | None:
        """Mean nats per scored position over all ranks, and accuracy of answers; None if a signal arrived before the end."""
        sums = torch.zeros(3, dtype=torch.float64, device=module.device)
        module.eval()
        try:
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                for batch in self.valid:
                    # Ranks must stay together, so only a single one may leave in the middle.
                    if self.stop.asked and trainer.world_size == 1:
                        return None
                    batch = trainer.strategy.batch_to_device(batch, module.device)
                    found = answers(module.model, **batch) if self.answered else module.loss(batch)
                    sums[: len(found)] += torch.stack([value.double() for value in found])
        finally:
            module.train()
        nats, count, correct = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        return nats / max(count, 1), correct / max(count, 1) if self.answered else None

    def _write(self, trainer: L.Trainer) -> None:
        row, self.row = self.row, {}
        if trainer.is_global_zero:
            metrics.append(self.out / "metrics.csv", row)
            if trainer.logger is not None:
                values = {name: float(value) for name, value in row.items() if name != "step"}
                trainer.logger.log_metrics(values, step=row["step"])

    def _save(self, trainer: L.Trainer, name: str) -> None:
        wrong = not_finite(dict(self._module.model.named_parameters()))
        if wrong is not None:
            # The last update destroyed the weights; the files on disk are from before.
            step = trainer.global_step
            raise NonFiniteLoss(f"at step {step} {wrong} is infinite or NaN; lower train.lr and start again")
        trainer.save_checkpoint(self._path(name))

    def _path(self, name: str) -> Path:
        return self.out / "checkpoints" / f"{name}.safetensors"


def _only_bias_learns(model: Any) -> bool:
    """Whether only the output's bias has a gradient: the output layer's input is then 0 for every input."""
    output = getattr(model, "head", getattr(model, "lm_head", None))
    bias = getattr(output, "bias", None)
    if bias is None or bias.grad is None:
        return False
    rest = [p.grad for p in model.parameters() if p is not bias and p.grad is not None]
    # The maximum norm, because squares of small numbers would underflow.
    return bool(rest) and not float(nn.utils.get_total_norm(rest, math.inf))


def _validated(row: dict[str, str], step: int) -> bool:
    return row.get("step") == str(step) and bool(row.get("valid_nats"))


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights as safetensors, updates merged; a shared tensor is written once, under its first name."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in merged(model.state_dict()).items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.detach().cpu().contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
