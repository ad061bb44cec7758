"""Progress of a training for the user: losses, speed, time left."""

from __future__ import annotations

import math
import sys
import time

from mamba_bio_audio.pipelines.scores import perplexity
from mamba_bio_audio.training.config import TrainConfig
from mamba_bio_audio.training.cores import CoreWatch


class Progress:
    """Prints a live line on a terminal, otherwise a line every ten seconds, and a line for every validation.

    Speed is measured over training steps, including data loading but not validation.

    Args:
        config: optimisation settings.
        quiet: print nothing but warnings.
        unit: plural name of a position.
        likelihood: whether losses are nats, which are bits and a perplexity too.
        watch: detects when other processes slow the training down.
    """

    def __init__(
        self,
        config: TrainConfig,
        quiet: bool,
        unit: str,
        watch: CoreWatch | None = None,
        *,
        likelihood: bool = True,
    ) -> None:
        self.config = config
        self.quiet = quiet
        self.unit = unit
        self.watch = watch
        self.likelihood = likelihood
        self.seconds = 0.0
        self.tokens = self._planned = 0
        self._live = sys.stderr.isatty()
        self.start()
        self._printed = self._since

    def start(self) -> None:
        """Start the clock, at the beginning and after anything that does not count."""
        self._since = time.perf_counter()

    def step(self, step: int, tokens: int, train_nats: float | None, length: int | None = None) -> None:
        """Count an optimiser step, and print if `train_nats` is given.

        Args:
            step: number of the step.
            tokens: positions that it read.
            train_nats: mean loss since the last row; None to leave it unread, since reading it waits for the device.
            length: positions per sequence if that changes during the run, else None.
        """
        now = time.perf_counter()
        seconds = now - self._since
        self.seconds += seconds
        self._since = now
        planned = self.config.tokens_per_step
        if length is not None and self.config.length_warmup_keeps == "sequences":
            planned = self.config.sequences_per_step * length
        self.tokens += tokens
        self._planned += planned
        warning = None if self.watch is None else self.watch.step(tokens, seconds, length)
        if warning is not None:
            self._say(warning)
        if train_nats is not None:
            left = (self.config.steps - step) * self.config.tokens_per_step * self.seconds / self._planned
            self._printed = now
            at = "" if length is None else f"length {length:,}  "
            self._line(
                f"step {step:,}/{self.config.steps:,}  {at}train {train_nats:.4f}{self._nats()}  {self._speed()}  "
                f"{duration(left)} left"
            )

    def due(self) -> bool:
        """Whether the next `step` should be given the loss, to be printed."""
        return not self.quiet and time.perf_counter() - self._printed > (0.5 if self._live else 10.0)

    def validation(self, step: int, nats: float, distance: float | None = None, accuracy: float | None = None) -> None:
        """Print a validation loss, and the distance of generated audio from recordings or the share of right answers."""
        heard = "" if distance is None else f"sample distance {distance:.3f}  "
        heard += "" if accuracy is None else f"{accuracy:.2%} right  "
        more = f"  {nats / math.log(2):.4f} bits  perplexity {perplexity(nats):.4f}" if self.likelihood else ""
        self._line(
            f"step {step:,}/{self.config.steps:,}  valid {nats:.4f}{self._nats()}{more}  {heard}{self._speed()}",
            final=True,
        )
        self.start()

    def tell(self, text: str) -> None:
        """Print a line that stays, unless `quiet`."""
        if not self.quiet:
            self._say(text)

    def warn(self, text: str) -> None:
        """Print a warning, even if `quiet`."""
        self._say(f"warning: {text}")

    def _say(self, text: str) -> None:
        """Print a line of its own, replacing the live line."""
        sys.stderr.write(("\r\x1b[K" if self._live and not self.quiet else "") + text + "\n")
        sys.stderr.flush()

    def end(self) -> None:
        """Clear the live line."""
        if self._live and not self.quiet:
            sys.stderr.write("\r\x1b[K")

    @property
    def tokens_per_second(self) -> float:
        """Mean speed over all training steps of this process."""
        return self.tokens / self.seconds if self.seconds else math.nan

    def _nats(self) -> str:
        return " nats" if self.likelihood else ""

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
    """Format seconds as h:mm:ss or m:ss."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
