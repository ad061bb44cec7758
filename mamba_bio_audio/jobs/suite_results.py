"""What `mba evaluate --suite` finds: typed, as text and as tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mamba_bio_audio.jobs.contract import Result
from mamba_bio_audio.pipelines.scores import Found
from mamba_bio_audio.text import cell

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COLUMNS = ("suite", "task", "model", "seed", "part", "count", "mcc", "auroc", "accuracy", "balanced_accuracy", "chosen")
MACHINE = ("device", "torch", "mamba_bio_audio", "commit", "started")


class PartScores(Found):
    """Scores on the test split, or on part of it."""

    count: int
    mcc: float
    auroc: float | None
    accuracy: float
    balanced_accuracy: float


class SeedScores(Found):
    """Scores of one training: on the test split as it is, and without what is also in train."""

    seed: int
    all: PartScores
    clean: PartScores | None


class ModelScores(Found):
    """One model on one task.

    Attributes:
        chosen: what was chosen on validation, in words.
        candidates: what it was chosen from.
    """

    name: str
    chosen: str
    candidates: list[dict[str, Any]]
    seeds: list[SeedScores]

    def mean(self, metric: str, part: str = "all") -> float | None:
        """Mean over the seeds; None where it is not defined."""
        values = [getattr(getattr(seed, part), metric) for seed in self.seeds if getattr(seed, part) is not None]
        return None if not values or None in values else sum(values) / len(values)

    def shown(self, metric: str, part: str = "all") -> str:
        """Mean over the seeds, and half the range."""
        mean = self.mean(metric, part)
        if mean is None:
            return "-"
        values = [getattr(getattr(seed, part), metric) for seed in self.seeds]
        return f"{mean:.3f}" + (f" ±{(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else "")


class Gain(Found):
    """Area under the ROC curve of one model minus that of another, with its paired interval over test sequences."""

    model: str
    against: str
    value: float
    low: float | None
    high: float | None
    verdict: str


class Faults(Found):
    """What is wrong with the data of a task."""

    valid_dropped: int
    test_equal: int
    test_near: int
    two_labels: int
    ceiling: float | None

    def text(self) -> str:
        """One line; empty where there is none."""
        said = []
        if self.valid_dropped:
            said.append(f"{self.valid_dropped:,} of dev are also in train and were left out")
        if self.test_equal or self.test_near:
            said.append(f"{self.test_equal:,} of test are also in train and {self.test_near:,} nearly")
        if self.two_labels:
            said.append(
                f"{self.two_labels:,} sequences have two labels (highest accuracy {100 * (self.ceiling or 1):.2f} %)"
            )
        return "; ".join(said)


class TaskResult(Found):
    """One task of a suite.

    Attributes:
        metric: the official one.
        sizes: sequences by split; those of validation without what was left out.
        published: model -> value, and what the values are.
        test_opened: when the test split was read, which is once unless a run was interrupted then.
    """

    task: str
    metric: str
    stranded: bool
    classes: list[str]
    length: int
    sizes: dict[str, int]
    faults: Faults
    models: list[ModelScores]
    gains: list[Gain]
    published: dict[str, float]
    published_as: str
    test_opened: list[str]

    def lines(self, names: list[str], width: int) -> list[str]:
        """A line for each metric, and the cleaned test split where it differs."""
        found = {model.name: model for model in self.models}
        rows = [
            ("AUROC", "auroc", "all"),
            (self.metric.upper() if self.metric == "mcc" else self.metric, self.metric, "all"),
        ]
        if any(seed.clean is not None and seed.clean != seed.all for model in self.models for seed in model.seeds):
            rows.append(("AUROC cleaned", "auroc", "clean"))
        lines = []
        for at, (shown, metric, part) in enumerate(rows):
            cells = [found[name].shown(metric, part) if name in found else "-" for name in names]
            published = "  ".join(f"{name} {value:.3f}" for name, value in self.published.items()) if not at else ""
            line = (
                f"{self.task if not at else '':<18}{shown:<15}"
                + "".join(f"{text:<{width}}" for text in cells)
                + published
            )
            lines.append(line.rstrip())
        return lines


class SuiteResult(Result):
    """Every task of a suite.

    Attributes:
        stopped_by: name of the signal that ended it early; the same command continues.
        shown_again: it was finished before this call, which only read it.
    """

    suite: str
    out: str
    seeds: list[int]
    recipe: str
    overrides: list[str]
    pretrained: list[str]
    machine: dict[str, Any]
    tasks: list[TaskResult]
    stopped_by: str | None = None
    unfinished: list[str] = Field(default_factory=list)
    shown_again: bool = Field(False, exclude=True)

    def text(self) -> str:
        """Tables for people."""
        names = list(dict.fromkeys(model.name for task in self.tasks for model in task.models))
        width = max([16, *(len(name) + 2 for name in names)])
        published = next((task.published_as for task in self.tasks if task.published), "")
        header = f"{'task':<18}{'test':<15}" + "".join(f"{name:<{width}}" for name in names)
        header += f"published, other protocol ({published})" if published else ""
        lines = [header.rstrip()]
        for task in self.tasks:
            lines += task.lines(names, width)
        faults = [f"  {task.task}: {text}" for task in self.tasks if (text := task.faults.text())]
        lines += ["", "faults of the data:", *faults] if faults else []
        opened = [f"{task.task} {len(task.test_opened)} times" for task in self.tasks if len(task.test_opened) > 1]
        lines += ["", f"The test split was opened more than once: {', '.join(opened)}"] if opened else []
        lines += self._compared()
        lines += ["", f"written: {self.out}"]
        return "\n".join(lines)

    def _compared(self) -> list[str]:
        pairs = dict.fromkeys((gain.model, gain.against) for task in self.tasks for gain in task.gains)
        lines = ["", "AUROC, paired over test sequences; differences below .02 do not count:"] if pairs else []
        for model, against in pairs:
            verdicts = [
                g.verdict for task in self.tasks for g in task.gains if (g.model, g.against) == (model, against)
            ]
            counts = ", ".join(f"{verdicts.count(word)} {word}" for word in ("better", "worse", "not separated"))
            lines.append(f"  {model} against {against}: {counts}")
        return lines

    def table(self) -> str:
        """A row for each task, model, seed and part of the test split, as CSV."""
        text = io.StringIO()
        writer = csv.DictWriter(text, (*COLUMNS, *MACHINE), lineterminator="\n")
        writer.writeheader()
        machine = {name: self.machine.get(name) for name in MACHINE}
        for task in self.tasks:
            for model in task.models:
                for seed in model.seeds:
                    for part in ("all", "clean"):
                        scores = getattr(seed, part)
                        if scores is None:
                            continue
                        row = {
                            "suite": self.suite,
                            "task": cell(task.task),
                            "model": cell(model.name),
                            "seed": seed.seed,
                        }
                        numbers = {
                            name: round(value, 6) if isinstance(value, float) else value
                            for name, value in scores.model_dump().items()
                        }
                        writer.writerow(row | {"part": part} | numbers | {"chosen": model.chosen} | machine)
        return text.getvalue()

    def notes(self) -> str:
        """How to continue, or that nothing was done."""
        if self.shown_again:
            return f"{self.out} is finished and was shown; --force does it again"
        if self.stopped_by is None:
            return ""
        return f"stopped by {self.stopped_by}; {', '.join(self.unfinished)} not done. Continue with the same command"

    @property
    def exit_code(self) -> int:
        """130 after a signal."""
        return 130 if self.stopped_by else 0


def predictions_table(
    found: Mapping[str, Mapping[int, NDArray[np.float64]]],
    y: NDArray[np.int64],
    clean: NDArray[np.bool_],
    groups: NDArray[np.int64],
    classes: Sequence[str],
) -> str:
    """What every model says of every test sequence, as CSV, in their order: anything can be compared later.

    Columns: the class, whether the sequence is also in train, a number that nearly equal ones share, and
    `MODEL, seed S, p CLASS`, of two classes only the second.

    Args:
        found: model -> seed -> probabilities (n, K).
        y, clean, groups: (n,) classes, sequences that are not in train, and numbers that nearly equal ones share.
        classes: their names (K,).
    """
    shown = range(1 if len(classes) == 2 else 0, len(classes))
    columns = [
        (f"{model}, seed {seed}, p {classes[at]}", p[:, at])
        for model, seeds in found.items()
        for seed, p in seeds.items()
        for at in shown
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", "in_train", "group", *(cell(name) for name, _ in columns)])
    for at, label in enumerate(y.tolist()):
        own = [cell(classes[label]), int(not clean[at]), int(groups[at])]
        writer.writerow([*own, *(f"{p[at]:.6g}" for _, p in columns)])
    return text.getvalue()
