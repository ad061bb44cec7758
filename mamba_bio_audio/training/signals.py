"""SIGINT and SIGTERM end a training after the step at hand, with everything saved."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any


class StopSignal:
    """Context in which the first SIGINT or SIGTERM is noted and a second one ends the process at once, code 130.

    Attributes:
        number: of the first signal; None while there was none.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.getsignal(number)
        self.install()
        return self

    def install(self) -> None:
        """Take the signals, again after somebody else did: Lightning's trainer adds a handler of its own."""
        for number in self._before:
            signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            # Lightning would turn an exception here into its own exit code; nothing is being asked to wait any more.
            sys.stderr.write("\nstopped at once; --resume continues from the last checkpoint\n")
            sys.stderr.flush()
            os._exit(130)
        self.number = number
        sys.stderr.write("\nstopping after this step; again to stop at once\n")
        sys.stderr.flush()
