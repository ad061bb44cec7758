"""What several jobs share: the device they run on, standard output as a target, progress on a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.training.cores import cores

# Between two lines about a job whose progress is no bar, because its standard error is no terminal.
SECONDS_A_LINE = 60.0


def resolve_device(device: Literal["auto", "cpu", "cuda"]) -> str:
    """`cpu` or `cuda`.

    Raises:
        InputError: cuda was asked for and is not there.
    """
    import torch

    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise InputError("--device cuda: torch sees no CUDA device; use --device cpu, or see mba doctor")
    return "cuda" if available and device != "cpu" else "cpu"


def standard_output(out: Path | None) -> Path | None:
    """None for the `--out` of rows or records that go to standard output: where it is missing, or `-`.

    Raises:
        InputError: standard output is closed.
    """
    if out is not None and str(out) != "-":
        return out
    if sys.stdout is None:
        raise InputError("standard output is closed; give --out FILE")
    return None


def check_inputs(files: Sequence[str]) -> None:
    """Refuse files that are not there or empty, before anything is loaded or written; `-` is standard input.

    Raises:
        InputError: one of them is missing or empty, or standard input is named twice.
    """
    if files.count("-") > 1:
        raise InputError("standard input (-) was given twice; it can be read only once")
    for file in files:
        if file != "-" and not os.path.exists(file):
            raise InputError(f"{file}: there is no such file")
        if os.path.isfile(file) and not os.path.getsize(file):
            raise InputError(f"{file}: empty; leave it out")


def _of_busy_cores() -> str:
    """What to do where other processes use the cores and threads wait for each other; else nothing."""
    import torch

    threads, load = torch.get_num_threads(), os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if threads == 1 or load <= cores():
        return ""
    return (
        f"; the cores are busy (load average {load:.1f}) and {threads} threads wait for each other: OMP_NUM_THREADS=1"
    )


def _lines(console: Any) -> Callable[[str, int, int | None], None]:
    """A progress callback that prints a line now and then to standard error, for the logs of long jobs."""
    last = time.monotonic()

    def tell(what: str, done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_A_LINE:
            last = time.monotonic()
            of = "" if total is None else f" of {total:,}"
            console.print(f"{what}: {done:,}{of}{_of_busy_cores()}", markup=False, highlight=False, soft_wrap=True)

    return tell


@contextmanager
def counters(
    quiet: bool, speed: Callable[[float], str] | None = None
) -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress callback (what, done, total) of a job in parts: on a terminal a bar for each that runs, else a line a minute.

    Args:
        quiet: show nothing.
        speed: what the bar says of so many per second; None says nothing.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn

    class Speed(TextColumn):
        def render(self, task: Task) -> Any:
            rate = task.finished_speed or task.speed
            self.text_format = "" if speed is None or rate is None else speed(rate)
            return super().render(task)

    console = Console(stderr=True)
    if not quiet and not console.is_terminal:
        yield _lines(console)
        return
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    if speed is not None:
        columns.append(Speed("", markup=False))
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:

        def tell(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            # A job may have thousands of parts; only those that run are shown.
            bar.update(tasks[what], completed=done, total=total, visible=total is None or done < total)

        yield tell


@contextmanager
def counter(
    what: str, unit: str, quiet: bool, speed: Callable[[float], str] | None = None
) -> Iterator[Callable[[int, int | None], None]]:
    """A progress callback (done, total) of a job in one part: a bar on a terminal, elsewhere a line a minute."""
    with counters(quiet, speed) as tell:
        yield partial(tell, f"{what} {unit}")
