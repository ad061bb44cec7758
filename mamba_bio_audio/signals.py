"""Signals that ask a command to stop: Ctrl-C, SIGTERM, SIGHUP (a lost terminal) and SIGUSR1 (SLURM's notice).

Work that can be continued is saved (`StopSignal`); everywhere else the signal becomes an exception, so that unfinished
output is cleaned up (`interrupt_on_signals`). A signal that was ignored when the process started, as SIGHUP is under
nohup, stays ignored.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

# Windows has only the first two.
STOPPING = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if name in signal.Signals.__members__
)


class Interrupted(BaseException):
    """A stopping signal arrived where nothing can be continued; no `Exception`, so that nothing catches it by accident.

    Attributes:
        number: the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def _heeded() -> list[signal.Signals]:
    return [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """Make a stopping signal raise `Interrupted` in the main thread; later signals do not disturb the clean-up.

    Does nothing outside the main thread, where Python allows no handlers.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        _leave_lost_terminal(number)
        for other in before:
            # A second Ctrl-C comes from an impatient user; the other signals are often sent twice by machines.
            signal.signal(other, signal.default_int_handler if other == signal.SIGINT else signal.SIG_IGN)
        raise Interrupted(number)

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in _heeded()}
    try:
        for number in before:
            signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_lost_terminal(number: int) -> None:
    """After SIGHUP, redirect terminal output to nowhere: every write there would fail, and abort the saving."""
    if number != getattr(signal, "SIGHUP", None):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        with suppress(OSError):
            # A lost terminal no longer counts as one (isatty), but is still a character device.
            if stat.S_ISCHR(os.fstat(stream).st_mode):
                os.dup2(nowhere, stream)
    os.close(nowhere)


def _say(text: str) -> None:
    """Print a message; failing to do so, as when Ctrl-C has also ended `tee`, must not abort the saving."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)


class StopSignal:
    """Context that notes the first stopping signal; Ctrl-C or SIGTERM after it ends the process at once with code 130.

    Attributes:
        number: number of the first signal; None until there is one.
        deadline: of `time.monotonic`, from when on to stop as well; None: never.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.number: int | None = None
        self.deadline = deadline
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether to stop: there was a signal, or the time is up."""
        return self.number is not None or (self.deadline is not None and time.monotonic() >= self.deadline)

    def __enter__(self) -> StopSignal:
        self._before = {number: signal.getsignal(number) for number in _heeded()}
        self.install()
        return self

    def install(self) -> None:
        """Install the handlers; call it again after others have replaced them, as Lightning's trainer does."""
        for number in self._before:
            signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        _leave_lost_terminal(number)
        if self.number is not None:
            if number not in (signal.SIGINT, signal.SIGTERM):
                # Sent along with the first: a closed terminal, or SLURM's notice repeated.
                return
            # Lightning would turn an exception here into an exit code of its own.
            _say("\nstopped at once; use --resume to continue from the last checkpoint")
            os._exit(130)
        self.number = number
        _say("\nstopping after this step; repeat to stop at once")
