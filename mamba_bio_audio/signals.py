"""Signals that ask a command to stop: Ctrl-C, SIGTERM, SIGHUP (a lost terminal) and SIGUSR1 (SLURM's notice).

What can be continued is saved (`StopSignal`); everywhere else the signal becomes an exception, so that whatever is half
made is cleaned up (`interrupt_on_signals`). A signal that was ignored when the process started, as nohup does with SIGHUP,
stays ignored.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

# Windows has the first two only.
STOPPING = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if name in signal.Signals.__members__
)


class Interrupted(BaseException):
    """A stopping signal came where nothing can be continued; not an `Exception`, so that nobody handles it by accident.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def _heeded() -> list[signal.Signals]:
    return [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """A stopping signal raises `Interrupted` in the main thread; later ones do not disturb the cleaning up.

    In another thread than the main one, where Python allows no handlers, this does nothing.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        _leave_lost_terminal(number)
        for other in before:
            # A second Ctrl-C is an impatient user; the others are often sent twice by machines.
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
    """After SIGHUP every write to the terminal fails, and would end what is about to be saved: write to nowhere instead."""
    if number != getattr(signal, "SIGHUP", None):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        with suppress(OSError):
            # A terminal that is gone no longer says that it is one.
            if stat.S_ISCHR(os.fstat(stream).st_mode):
                os.dup2(nowhere, stream)
    os.close(nowhere)


def _say(text: str) -> None:
    """A message that does not end the saving where nobody reads it any more, as when Ctrl-C has ended `tee` too."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)


class StopSignal:
    """Context in which the first stopping signal is noted; Ctrl-C or SIGTERM after it end the process at once, code 130.

    Attributes:
        number: of the first signal; None while there was none.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        self._before = {number: signal.getsignal(number) for number in _heeded()}
        self.install()
        return self

    def install(self) -> None:
        """Take the signals, again after somebody else did: Lightning's trainer adds handlers of its own."""
        for number in self._before:
            signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        _leave_lost_terminal(number)
        if self.number is not None:
            if number not in (signal.SIGINT, signal.SIGTERM):
                # Sent along with another: a closed terminal, or SLURM's notice repeated.
                return
            # Lightning would turn an exception here into its own exit code; nothing is being asked to wait any more.
            _say("\nstopped at once; --resume continues from the last checkpoint")
            os._exit(130)
        self.number = number
        _say("\nstopping after this step; again to stop at once")
