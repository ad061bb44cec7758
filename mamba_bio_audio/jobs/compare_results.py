"""What `mba compare` finds: typed, as text and as JSON."""

from __future__ import annotations

import math
from typing import Any

from mamba_bio_audio.jobs.contract import Result
from mamba_bio_audio.pipelines.scores import Found


class RunScores(Found):
    """What one training reached."""

    arm: str
    rate: float
    seed: int
    steps: int
    train_nats: float | None
    valid_nats: float | None
    test_nats: float | None
    valid_right: float | None = None
    test_right: float | None = None
    folder: str


class Spread(Found):
    """A mean over seeds, the least and the largest; None where a training diverged."""

    mean: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: list[float | None]) -> Spread:
        """Of the values of each seed."""
        there = [value for value in values if value is not None]
        if len(there) < len(values):
            return cls(mean=None, low=None, high=None)
        return cls(mean=sum(there) / len(there), low=min(there), high=max(there))

    @property
    def width(self) -> float:
        """Largest less least."""
        return math.nan if self.low is None or self.high is None else self.high - self.low

    def text(self, scale: float = 1, digits: int = 4) -> str:
        """For a table."""
        if self.mean is None or self.low is None or self.high is None:
            return "diverged"
        parts = [f"{scale * value:.{digits}f}" for value in (self.mean, self.low, self.high)]
        return parts[0] if self.low == self.high else f"{parts[0]} ({parts[1]} to {parts[2]})"


class ArmResult(Found):
    """A model at its rate.

    Attributes:
        settings: what it differs by.
        rate: chosen on validation.
        at_edge: whether it is the least or largest that was tried, so that a better one may lie beyond.
        memory_bytes: peak of a training alone; None on a CPU.
        tokens_per_second, seconds: of a training alone, without validations; None where they were not measured.
        valid, test: loss in nats; `valid_right`, `test_right`: share of right answers.
        in_equal_time: validation loss after as much training time as the fastest model takes for all its steps, its schedule
            being what it is; None where there was no validation yet.
        against_best: "best", "worse", "not separated" (the spread of seeds exceeds the gap), "one seed", or "diverged".
    """

    name: str
    settings: tuple[str, ...]
    parameters: int
    rate: float
    at_edge: bool
    memory_bytes: int | None
    tokens_per_second: float | None
    seconds: float | None
    valid: Spread
    test: Spread
    valid_right: Spread | None = None
    test_right: Spread | None = None
    in_equal_time: float | None
    against_best: str


class CompareResult(Result):
    """Models beside each other.

    Attributes:
        equal_seconds: training time of `in_equal_time`.
        unfinished: runs that are to come at least (more may follow while rates are tried); `unmeasured`: models whose speed
            is still to be measured.
        foreign: whether the runs are of a device that is not here, so that nothing was trained.
    """

    recipe: str
    out: str
    overrides: tuple[str, ...]
    device: str
    unit: str
    steps: int
    tokens: int
    seeds: tuple[int, ...]
    sweep_steps: int
    every_rate: bool
    machine: dict[str, Any]
    arms: tuple[ArmResult, ...]
    runs: tuple[RunScores, ...]
    equal_seconds: float | None
    unfinished: int
    unmeasured: int = 0
    foreign: bool = False
    stopped_by: str | None = None

    def text(self) -> str:
        """One table, best model first."""
        lines = []
        if self.unfinished or self.unmeasured:
            why, left = f"stopped by {self.stopped_by or '--max-time'}", f"at least {self.unfinished} are to come"
            where = "from here"
            if not self.unfinished:
                left = f"speeds of {self.unmeasured} models are to be measured"
            if self.foreign:
                why, where = f"nothing was trained, for there is no {self.device} device here", "where there is one"
            lines.append(f"{why}: {len(self.runs)} runs are finished, {left}; the same command goes on {where}")
        if self.arms:
            answered = self.arms[0].test_right is not None
            head = [
                "model",
                "parameters",
                "rate",
                f"{self.unit}s/s",
                "MiB",
                "test nats",
                *(["right %"] if answered else []),
            ]
            rows = [[*head, "in equal time", ""], *(self._row(arm) for arm in self.arms)]
            widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
            lines += [
                "  ".join(
                    cell.ljust(width) if at in (0, len(row) - 1) else cell.rjust(width)
                    for at, (cell, width) in enumerate(zip(row, widths, strict=True))
                ).rstrip()
                for row in rows
            ]
            lines.append(
                f"{self.steps:,} steps, {self.tokens:,} {self.unit}s, {len(self.seeds)} seed{'s' * (len(self.seeds) > 1)}: "
                "mean (least to largest); rates chosen on validation"
            )
            if self.equal_seconds is not None:
                lines.append(
                    f"in equal time: validation loss after {self.equal_seconds:.3g} s of training alone on {self.device}, "
                    "schedules not shortened"
                )
            if any(arm.at_edge for arm in self.arms):
                lines.append("* the least or largest rate that was tried: a better one may lie beyond; give --rates")
        lines.append(f"tables, picture and runs: {self.out}")
        return "\n".join(lines)

    def _row(self, arm: ArmResult) -> list[str]:
        right = [] if arm.test_right is None else [arm.test_right.text(100, 2)]
        return [
            arm.name,
            f"{arm.parameters:,}",
            f"{arm.rate:.3g}" + "*" * arm.at_edge,
            "" if arm.tokens_per_second is None else f"{arm.tokens_per_second:,.0f}",
            "" if arm.memory_bytes is None else f"{arm.memory_bytes / 2**20:,.0f}",
            arm.test.text(),
            *right,
            "" if arm.in_equal_time is None else f"{arm.in_equal_time:.4f}",
            arm.against_best,
        ]

    @property
    def exit_code(self) -> int:
        """130 where a signal stopped it."""
        return 130 if self.stopped_by else 0
