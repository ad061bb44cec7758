"""What a user sees of a training: losses, speed, time left."""

from __future__ import annotations

import math
import sys
import time

from mamba_bio_audio.pipelines.scores import perplexity
from mamba_bio_audio.training.config import TrainConfig
from mamba_bio_audio.training.cores import CoreWatch


class Progress:
    """A live line on a terminal, else a line every ten seconds; every validation gets a line of its own.

    Speed is counted over training steps, data loading included and validation not.

    Args:
        config: of the optimisation.
        quiet: print nothing but warnings.
        unit: what a position is called.
        watch: tells when other processes slow the training down.
    """

    def __init__(self, config: TrainConfig, quiet: bool, unit: str, watch: CoreWatch | None = None) -> None:
        self.config = config
        self.quiet = quiet
        self.unit = unit
        self.watch = watch
        self.seconds = 0.0
        self.tokens = 0
        self._live = sys.stderr.isatty()
        self.start()
        self._printed = self._since

    def start(self) -> None:
        """Start the clock, at the beginning and after what does not count."""
        self._since = time.perf_counter()

    def step(self, step: int, train_nats: float | None, length: int | None = None) -> None:
        """Count an optimiser step, and print when it is time.

        Args:
            step: number of the step.
            train_nats: mean loss since the last row, or None to keep it unread (reading waits for the device).
            length: positions per sequence, where they change; None where they do not.
        """
        now = time.perf_counter()
        seconds = now - self._since
        self.seconds += seconds
        self._since = now
        tokens = self.config.tokens_per_step
        if length is not None and self.config.length_warmup_keeps == "sequences":
            tokens = self.config.sequences_per_step * length
        self.tokens += tokens
        warning = None if self.watch is None else self.watch.step(tokens, seconds, length)
        if warning is not None:
            self._say(warning)
        if train_nats is not None:
            left = (self.config.steps - step) * self.config.tokens_per_step / self.tokens_per_second
            self._printed = now
            at = "" if length is None else f"length {length:,}  "
            self._line(
                f"step {step:,}/{self.config.steps:,}  {at}train {train_nats:.4f} nats  {self._speed()}  "
                f"{duration(left)} left"
            )

    def due(self) -> bool:
        """Whether the next `step` should be given the loss to print."""
        return not self.quiet and time.perf_counter() - self._printed > (0.5 if self._live else 10.0)

    def validation(self, step: int, nats: float, distance: float | None = None) -> None:
        """Print a validation, and how far generated audio is from recordings."""
        heard = "" if distance is None else f"sample distance {distance:.3f}  "
        self._line(
            f"step {step:,}/{self.config.steps:,}  valid {nats:.4f} nats  {nats / math.log(2):.4f} bits  "
            f"perplexity {perplexity(nats):.4f}  {heard}{self._speed()}",
            final=True,
        )
        self.start()

    def warn(self, text: str) -> None:
        """Print what must be seen, also where progress is not."""
        self._say(f"warning: {text}")

    def _say(self, text: str) -> None:
        """Print a line of its own, in the place of the line that progress keeps rewriting."""
        sys.stderr.write(("\r\x1b[K" if self._live and not self.quiet else "") + text + "\n")
        sys.stderr.flush()

    def end(self) -> None:
        """Leave the live line."""
        if self._live and not self.quiet:
            sys.stderr.write("\r\x1b[K")

    @property
    def tokens_per_second(self) -> float:
        """Sustained over all training steps of this process."""
        return self.tokens / self.seconds if self.seconds else math.nan

    def _speed(self) -> str:
        return f"{self.tokens_per_second:,.0f} {self.unit}/s" if self.tokens else ""

    def _line(self, text: str, final: bool = False) -> None:
        if self.quiet:
            return
        if self._live:
            sys.stderr.write("\r\x1b[K" + text + ("\n" if final else ""))
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
