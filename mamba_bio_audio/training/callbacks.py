"""What happens around the training steps: metrics, checkpoints, progress, interrupts.

All of it acts at the end of an optimiser step, never inside an accumulation, so that a saved state is a whole step.
"""

from __future__ import annotations

import csv
import io
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors.torch import save_file

from mamba_bio_audio.files import atomic_path, write_text
from mamba_bio_audio.training.config import TrainConfig
from mamba_bio_audio.training.module import LanguageModelModule

METRICS = (
    "step",
    "tokens",
    "lr",
    "grad_norm",
    "train_nats",
    "valid_nats",
    "valid_bits",
    "valid_perplexity",
)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints appear whole or not at all, also when the process is killed while writing."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        """Write beside `path`, then rename."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(Path(path)) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)


class NonFiniteLoss(RuntimeError):
    """The loss is no longer a number; the last checkpoint is from before."""


class StepCallback(L.Callback):
    """Calls `on_step` once per optimiser step."""

    def __init__(self, config: TrainConfig, accumulate: int) -> None:
        self.config = config
        self.accumulate = accumulate

    def validation_due(self, step: int) -> bool:
        """Whether a validation follows this step."""
        return step % self.config.validate_every == 0 or step == self.config.steps

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Forward the last micro-batch of each step to `on_step`."""
        if (batch_idx + 1) % self.accumulate == 0:
            assert isinstance(pl_module, LanguageModelModule)
            self.on_step(trainer, pl_module, trainer.global_step)

    def on_step(self, trainer: L.Trainer, module: LanguageModelModule, step: int) -> None:
        """After optimiser step number `step` (1-based)."""


class Metrics(StepCallback):
    """Rows of `metrics.csv` and TensorBoard; the file continues after a resume without duplicate steps.

    The file holds nothing that depends on the clock, so that a resumed run's file equals an uninterrupted one's.
    """

    def __init__(self, config: TrainConfig, accumulate: int, path: Path) -> None:
        super().__init__(config, accumulate)
        self.path = path
        self.row: dict[str, Any] = {}
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The training loss since the last row."""
        return {"nats": self._module.train_nats.cpu(), "count": self._module.train_count.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Taken up when training starts."""
        self._restored = state_dict

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remember the module whose sums are saved."""
        assert isinstance(pl_module, LanguageModelModule)
        self._module = pl_module

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop rows after the step that training continues from."""
        if self._restored is not None:
            self._module.train_nats = self._restored["nats"]
            self._module.train_count = self._restored["count"]
        if not trainer.is_global_zero:
            return
        rows = []
        if trainer.global_step and self.path.exists():
            with self.path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) <= trainer.global_step]
        text = io.StringIO()
        writer = csv.DictWriter(text, METRICS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())

    def on_step(self, trainer: L.Trainer, module: LanguageModelModule, step: int) -> None:
        """Log the mean training loss since the last row."""
        due = self.validation_due(step)
        if step % self.config.log_every and not due:
            return
        train_nats = (module.train_nats / module.train_count.clamp(min=1)).item()
        module.reset_train_sums()
        if not math.isfinite(train_nats):
            raise NonFiniteLoss(
                f"the training loss is {train_nats} at step {step}; lower train.lr, "
                f"then start again or go on from the last checkpoint with --resume"
            )
        # The scheduler has already moved on to the next step's rate.
        self.row = {
            "step": step,
            "tokens": step * self.config.tokens_per_step,
            "lr": f"{self._rate(trainer, step):.6g}",
            "grad_norm": f"{float(module.grad_norm):.6g}",
            "train_nats": f"{train_nats:.9g}",
        }
        if not due:
            self._write(trainer)

    @staticmethod
    def _rate(trainer: L.Trainer, step: int) -> float:
        scheduler: Any = trainer.lr_scheduler_configs[0].scheduler
        return scheduler.base_lrs[0] * scheduler.lr_lambdas[0](step - 1)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Complete the row of the step that was just validated."""
        if trainer.sanity_checking or not self.row:
            return
        nats = self._module.valid_nats_per_symbol
        assert nats is not None
        self.row |= {
            "valid_nats": f"{nats:.9g}",
            "valid_bits": f"{nats / math.log(2):.9g}",
            "valid_perplexity": f"{math.exp(nats):.9g}",
        }
        self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        row, self.row = self.row, {}
        if not trainer.is_global_zero:
            return
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, METRICS, lineterminator="\n").writerow(row)
        if trainer.logger is not None:
            values = {k: float(v) for k, v in row.items() if k != "step"}
            trainer.logger.log_metrics(values, step=row["step"])


class Checkpoints(StepCallback):
    """`last.ckpt` every so many steps and after every validation; the best weights when validation improves.

    The best are kept as `best.ckpt` (with the optimiser) and as `model.safetensors`.
    """

    def __init__(self, config: TrainConfig, accumulate: int, out: Path) -> None:
        super().__init__(config, accumulate)
        self.out = out
        self.best = math.inf
        self.best_step = 0

    def state_dict(self) -> dict[str, Any]:
        """The best validation so far."""
        return {"best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best validation so far."""
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]

    def on_step(self, trainer: L.Trainer, module: LanguageModelModule, step: int) -> None:
        """Save, unless a validation at this step will."""
        if step % self.config.checkpoint_every == 0 and not self.validation_due(step):
            self.save_last(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, and keep the best."""
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, LanguageModelModule)
        nats = pl_module.valid_nats_per_symbol
        assert nats is not None
        improved = nats < self.best
        if improved:
            self.best, self.best_step = nats, trainer.global_step
            trainer.save_checkpoint(self.out / "checkpoints" / "best.ckpt")
            if trainer.is_global_zero:
                with atomic_path(self.out / "model.safetensors") as temporary:
                    save_weights(pl_module.model, temporary)
        self.save_last(trainer)

    def save_last(self, trainer: L.Trainer) -> None:
        """Write `checkpoints/last.ckpt`."""
        trainer.save_checkpoint(self.out / "checkpoints" / "last.ckpt")


def save_weights(model: Any, path: Path) -> None:
    """Write the weights as safetensors, a shared tensor once, under its first name."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.detach().cpu().contiguous()
    save_file(tensors, path, metadata={"format": "pt"})


class StopOnSignal(StepCallback):
    """SIGINT and SIGTERM end training after the current step, with everything saved; a second one ends it at once."""

    def __init__(self, config: TrainConfig, accumulate: int, checkpoints: Checkpoints) -> None:
        super().__init__(config, accumulate)
        self.checkpoints = checkpoints
        self.signal: int | None = None
        self._old: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals from Lightning's own handlers."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        if self.signal is not None:
            self.restore()
            raise KeyboardInterrupt
        self.signal = number
        print("\nstopping after this step; again to stop at once", file=sys.stderr, flush=True)

    def on_step(self, trainer: L.Trainer, module: LanguageModelModule, step: int) -> None:
        """Save and stop when a signal came."""
        stop = trainer.strategy.reduce_boolean_decision(self.signal is not None, all=False)
        if stop and step < self.config.steps:
            self.signal = self.signal or signal.SIGTERM
            self.checkpoints.save_last(trainer)
            trainer.should_stop = True

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}


class Progress(StepCallback):
    """One line per log interval, or a live line on a terminal: losses, tokens/s of the interval, time left."""

    def __init__(self, config: TrainConfig, accumulate: int, quiet: bool, unit: str) -> None:
        super().__init__(config, accumulate)
        self.quiet = quiet
        self.unit = unit
        self.seconds = 0.0
        self.tokens = 0
        self._train: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._start = self._last_print = time.perf_counter()
        self._live = sys.stderr.isatty()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validation does not count as training time."""
        self._paused = time.perf_counter()

    def on_step(self, trainer: L.Trainer, module: LanguageModelModule, step: int) -> None:
        """Count, and print when it is time."""
        now = time.perf_counter()
        self.seconds += now - self._start
        self._start = now
        self.tokens += self.config.tokens_per_step
        if not self.quiet and (now - self._last_print > (0.5 if self._live else 10.0)):
            self._last_print = now
            self._print(module, step)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the validation."""
        if trainer.sanity_checking:
            return
        self._start = time.perf_counter()
        if not self.quiet:
            assert isinstance(pl_module, LanguageModelModule)
            nats = pl_module.valid_nats_per_symbol
            assert nats is not None
            self._line(
                f"step {trainer.global_step:,}/{self.config.steps:,}  valid {nats:.4f} nats  "
                f"{nats / math.log(2):.4f} bits  perplexity {math.exp(nats):.4f}  {self._speed()}",
                final=True,
            )

    @property
    def tokens_per_second(self) -> float:
        """Sustained over all training steps of this process, data loading included, validation not."""
        return self.tokens / self.seconds if self.seconds else math.nan

    def _speed(self) -> str:
        return f"{self.tokens_per_second:,.0f} {self.unit}/s" if self.tokens else ""

    def _print(self, module: LanguageModelModule, step: int) -> None:
        count = int(module.train_count)
        if count:
            self._train = float(module.train_nats) / count
        loss = "" if self._train is None else f"  train {self._train:.4f} nats"
        left = (self.config.steps - step) * self.config.tokens_per_step / self.tokens_per_second
        self._line(f"step {step:,}/{self.config.steps:,}{loss}  {self._speed()}  {duration(left)} left")

    def _line(self, text: str, final: bool = False) -> None:
        if self._live:
            sys.stderr.write("\r\x1b[K" + text + ("\n" if final else ""))
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the live line."""
        if self._live and not self.quiet:
            sys.stderr.write("\r\x1b[K")


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
