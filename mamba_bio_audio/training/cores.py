"""Tells when other processes take the cores from a training on the CPU.

A layer gives the OpenMP threads hundreds of small pieces of work, and each ends when the last thread has done its share. If
another process holds the core of one of them, all the others wait, hundreds of times in a step: two threads beside one
busy process have been seen 4 to 100 times slower, where one thread would lose nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable

SLOW = 1 / 3  # of the best rate
SECONDS = 20.0  # so long


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class CoreWatch:
    """Watches the rate of training steps.

    Args:
        threads: of this process.
        num_cores: that it may use.
        load: processes that run or want to, averaged over about a minute; None where the system does not tell.
    """

    def __init__(self, threads: int, num_cores: int, load: Callable[[], float] | None) -> None:
        self.threads, self.num_cores, self.load = threads, num_cores, load
        self._best = self._slow_seconds = 0.0
        self._slow_steps = 0
        self._length: int | None = None
        self._told = threads < 2 or load is None

    def step(self, tokens: int, seconds: float, length: int | None = None) -> str | None:
        """What to tell the user after a step, once in a training; else None.

        Slow is below a third of the best rate at this length, for 20 s and two steps in a row, while more wants to run than
        there are cores: a slow disk or a longer sequence is no reason.

        Args:
            tokens: of the step.
            seconds: that it took, data included.
            length: positions per sequence, where they change.
        """
        if self._told or seconds <= 0:
            return None
        if length != self._length:
            self._length, self._best, self._slow_seconds, self._slow_steps = length, 0.0, 0.0, 0
        rate = tokens / seconds
        self._best = max(self._best, rate)
        if rate >= SLOW * self._best:
            self._slow_seconds, self._slow_steps = 0.0, 0
            return None
        self._slow_seconds += seconds
        self._slow_steps += 1
        if self._slow_seconds < SECONDS or self._slow_steps < 2:
            return None
        assert self.load is not None
        load = self.load()
        if load <= self.num_cores:
            return None
        self._told = True
        return (
            f"training runs at {rate / self._best:.0%} of its best rate: other processes are using the cores (load average "
            f"{load:.1f}, {self.num_cores} cores), and each of {self.threads} threads waits for the others. Stop with Ctrl-C, "
            "set OMP_NUM_THREADS=1, and go on with --resume"
        )


def watch_cores(threads: int) -> CoreWatch:
    """For this machine."""
    return CoreWatch(threads, cores(), (lambda: os.getloadavg()[0]) if hasattr(os, "getloadavg") else None)
