"""What `mba sample` says while it reads prompts, compiles and draws."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from mamba_bio_audio.jobs.common import counters
from mamba_bio_audio.text import show

# After so long without a sign of life a GPU is compiling.
SOON_S = 5.0


@contextmanager
def showing(
    unit: str, rate_hz: int | None, quiet: bool, device: str
) -> Iterator[tuple[Callable[[int, int | None], None], Callable[[int, int], None]]]:
    """Progress of a sampling: callbacks (symbols done, symbols in all) for what is drawn and for what is read.

    Args:
        unit: a symbol in words.
        rate_hz: symbols of a second of what they describe; None where they have no duration.
        quiet: show nothing.
        device: "cpu" or "cuda", which may have kernels to compile.
    """
    compiling = "compiling kernels for this model, once: up to a minute"
    waits = device == "cuda" and not quiet
    with counters(quiet, partial(speed_text, unit, rate_hz)) as tell, unless_soon(compiling, SOON_S, waits) as heard:

        def sampling(done: int, total: int | None) -> None:
            heard(True)
            tell(f"sampling {unit}s", done, total)

        def reading(done: int, total: int) -> None:
            heard(False)
            tell(f"reading {unit}s of the prompt", done, total)

        yield sampling, reading


@contextmanager
def unless_soon(text: str, seconds: float, shown: bool = True) -> Iterator[Callable[[bool], None]]:
    """Show a line on standard error, once, if nothing is heard for so long.

    Args:
        text: the line.
        seconds: how long, from the beginning or from the last call.
        shown: False shows nothing.

    Yields:
        A function to call when something is heard: with False to wait again, with True because no more waiting is needed.
    """
    over = not shown
    timer: threading.Timer | None = None

    def begin() -> None:
        nonlocal timer
        timer = threading.Timer(seconds, tell)
        timer.daemon = True
        timer.start()

    def end() -> None:
        if timer is not None:
            timer.cancel()

    def tell() -> None:
        nonlocal over
        over = True
        # Where it is then: a bar on a terminal stands in its place.
        show(text, file=sys.stderr)

    def heard(last: bool) -> None:
        nonlocal over
        end()
        over = over or last
        if not over:
            begin()

    if not over:
        begin()
    try:
        yield heard
    finally:
        end()


def speed_text(unit: str, rate_hz: int | None, rate: float) -> str:
    """So many symbols per second, over all rows, and how that compares with the duration of what they describe."""
    return f"{rate:,.0f} {unit}s/s" + ("" if rate_hz is None else f", {rate / rate_hz:.3g} times real time")


class Rate:
    """Symbols per second after the first block, in which everything warms up."""

    def __init__(self) -> None:
        self.first: tuple[int, float] | None = None
        self.last: tuple[int, float] | None = None

    def count(self, done: int) -> None:
        """Note how many symbols there are now, over all rows."""
        self.last = (done, time.perf_counter())
        self.first = self.first or self.last

    @property
    def per_second(self) -> float | None:
        """Over all rows; None where there was only one block."""
        if self.first is None or self.last is None or self.last[0] == self.first[0]:
            return None
        return (self.last[0] - self.first[0]) / (self.last[1] - self.first[1])
