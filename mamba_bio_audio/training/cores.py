"""Detects when other processes take the cores from a training run on the CPU.

A layer hands the OpenMP threads hundreds of small tasks, and each task ends only when the last thread has done its share.
If another process occupies the core of one thread, all others wait, hundreds of times per step: two threads beside one
busy process were measured to be 4 to 100 times slower, where a single thread would lose nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable

SLOW = 1 / 3  # slow means below this share of the best rate
SECONDS = 20.0  # for at least this long


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class CoreWatch:
    """Watches the speed of training steps.

    Args:
        threads: threads of this process.
        num_cores: cores that it may use.
        load: returns the number of processes that run or wait to, averaged over about a minute; None where the system
            does not say.
    """

    def __init__(self, threads: int, num_cores: int, load: Callable[[], float] | None) -> None:
        self.threads, self.num_cores, self.load = threads, num_cores, load
        self._best = self._slow_seconds = 0.0
        self._slow_steps = 0
        self._length: int | None = None
        self._told = threads < 2 or load is None

    def step(self, tokens: int, seconds: float, length: int | None = None) -> str | None:
        """Record a step; returns a warning for the user, at most once in a training run, or None.

        Warns when the rate stays below a third of the best one at this length for 20 s and two steps in a row, while
        more processes want to run than there are cores; a slow disk or a longer sequence is no reason to warn.

        Args:
            tokens: tokens of the step.
            seconds: duration of the step, data loading included.
            length: positions per sequence, if that changes during the run.
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
            f"{load:.1f}, {self.num_cores} cores), and each of {self.threads} threads waits for the others; stop with Ctrl-C, "
            "set OMP_NUM_THREADS=1, and continue with --resume"
        )


def watch_cores(threads: int) -> CoreWatch:
    """Make a `CoreWatch` for this machine."""
    return CoreWatch(threads, cores(), (lambda: os.getloadavg()[0]) if hasattr(os, "getloadavg") else None)
