"""What `mba evaluate` finds of a model that predicts labels or numbers: typed, as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from mamba_bio_audio.jobs.evaluate_results import (
    ClassesResult,
    ContextResult,
    Interval,
    Kept,
    LikelihoodResult,
    could_be_better,
    counted,
)
from mamba_bio_audio.jobs.recall_results import RecallResult
from mamba_bio_audio.pipelines.contract import Domain
from mamba_bio_audio.pipelines.scores import Found
from mamba_bio_audio.text import printable

# Scores for people, in the order of the table; what is there of them is shown.
SCORES = {
    "accuracy": "accuracy",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "r2": "R2",
    "auroc": "AUROC",
    "average_precision": "AP",
    "mcc": "MCC",
    "f1": "F1",
    "rmse": "RMSE",
    "mae": "MAE",
    "standard_deviation": "SD",
    "there": "there",
}
SHOWN = 20


class ValuesReport(Found):
    """Scores of each output, and their means (`evaluation/reports.py`).

    Attributes:
        mean: over the outputs that have a score, with intervals over groups.
        outputs: of each; an interval, a number, or None where it is undefined.
    """

    count: int
    labels: list[str]
    mean: dict[str, Interval]
    outputs: dict[str, dict[str, Any]]

    def text(self, what: str) -> str:
        """A table for people; `what` is one row of the data, in the plural."""
        several = len(self.labels) > 1
        groups = next((f"; 95 % intervals over {row.groups:,} groups" for row in self.mean.values()), "")
        lines = [f"{self.count:,} {what}{groups}"]
        for key, row in self.mean.items():
            having = sum(isinstance(own.get(key), dict) for own in self.outputs.values())
            of = "" if having == len(self.outputs) else f", of {having:,} of {len(self.outputs):,}"
            lines.append(f"{'mean ' if several else ''}{SCORES[key]} {row.plain()}{of}")
        if lacking := [
            name for name, own in self.outputs.items() if not any(isinstance(v, dict) for v in own.values())
        ]:
            names = ", ".join(map(printable, lacking[:5])) + (", ..." if len(lacking) > 5 else "")
            lines.append(f"no scores of {names}: what is known here is all the same, or nothing is")
        rows = list(self.outputs.items())
        if len(rows) > SHOWN:
            key = next(iter(self.mean), "")
            rows = sorted(rows, key=lambda row: _value(row[1].get(key), worst=math.inf))[:SHOWN]
            lines.append(
                f"the {SHOWN} lowest of {len(self.outputs):,} by {SCORES.get(key, 'name')} (the JSON has all):"
            )
        keys = [key for key in SCORES if any(key in row for _, row in rows)]
        width = max([8, *(len(printable(name)) for name, _ in rows)]) + 2
        lines += ["", f"{'':<{width}}{'known':>10}" + "".join(f"{SCORES[key]:>10}" for key in keys)]
        for name, own in rows:
            cells = "".join(f"{_cell(own.get(key)):>10}" for key in keys)
            lines.append(f"{printable(name):<{width}}{own['known']:>10,}{cells}")
        return "\n".join(lines)


class KmerValuesReport(ValuesReport):
    """Scores of regression on k-mers, and how k and penalties were chosen."""

    k: int
    strengths: list[float | None]
    trained_on: int
    candidates: list[dict[str, Any]]
    edges: list[str]
    left_out: list[int]

    def beside(self, model: ValuesReport, gain: dict[str, Interval]) -> str:
        """A table of the means of a model and of these, how these were chosen, and which are better."""
        sizes = [row["k"] for row in self.candidates]
        text = (
            f"regression on {self.k}-mers: {self.trained_on:,} training sequences, k from {min(sizes)} to {max(sizes)} and "
            "each penalty chosen on validation loss"
        ) + could_be_better(self.edges, self.left_out)
        lines = [text, "", f"{'':<14}{'model':>9}{'k-mers':>9}   model minus k-mers, 95% interval"]
        for key, row in gain.items():
            bounds = "" if row.low is None or math.isnan(row.low) else f" ({row.low:+.3f} to {row.high:+.3f})"
            own, bar = model.mean[key].value, self.mean[key].value
            lines.append(f"{SCORES[key]:<14}{own:>9.3f}{bar:>9.3f}   {row.value:+.3f}{bounds}")
        if gain:
            key, row = next(iter(gain.items()))
            verdict = "is better than" if row.low is not None and row.low > 0 else "is not better than"
            lines += ["", f"By its {SCORES[key]} the model {verdict} the k-mer baseline beyond the interval."]
        return "\n".join(lines)


def _value(found: Any, worst: float = math.nan) -> float:
    value = found.get("value") if isinstance(found, dict) else found
    return worst if value is None else float(value)


def _cell(found: Any) -> str:
    value = _value(found)
    return "-" if math.isnan(value) else f"{value:.4g}"


class ValuesResult(Kept):
    """Scores of a model of labels or numbers on a split.

    Attributes:
        task: `head.task`.
        strand: that was read; None where there is only one.
        kmers: regression on k-mers of the same sequences; None where there is none, or for bases and bins.
        gain: each mean score of the model minus that of the k-mers.
        evaluations: when this split of this run was evaluated.
        predictions: one row for each sequence, TSV; not part of the JSON.
    """

    run: str = ""
    which: str = "best"
    weights_sha256: str | None = None
    overrides: tuple[str, ...] = ()
    files: tuple[dict[str, Any], ...] = ()
    split_source: str = ""
    task: str
    split: str
    length: int
    unit: str
    strand: str | None
    positions: int = 0
    rows: str = "sequences"
    model: ValuesReport
    kmers: KmerValuesReport | None = None
    gain: dict[str, Interval] = Field(default_factory=dict)
    evaluations: tuple[str, ...] = ()
    predictions: str = Field("", exclude=True)

    def headline(self) -> dict[str, Any]:
        """The scores that a training ends with, by name, as plain values."""
        return {name: row.model_dump() for name, row in self.model.mean.items()}

    def text(self) -> str:
        """Tables for people."""
        strand = "" if self.strand is None else f", strand: {self.strand}"
        # Bases and bins stand in windows of one length.
        where = "of up to" if self.rows == "sequences" else "in windows of"
        lines = [
            f"{self.split} split, {self.task}, {self.rows} {where} {self.length:,} {self.unit}s{strand}",
            "",
            self.model.text(self.rows),
        ]
        if self.kmers is not None:
            lines += ["", self.kmers.beside(self.model, self.gain)]
        count = len(self.evaluations)
        if count > 1 and self.split == "test":
            lines += ["", counted(count)]
        return "\n".join(lines)


Evaluation = LikelihoodResult | ClassesResult | ValuesResult | ContextResult | RecallResult


def read_evaluation(value: Mapping[str, Any], domain: Domain) -> Evaluation:
    """The evaluation in a JSON file of a run.

    Args:
        value: of `evaluate-SPLIT.json`, `evaluate-context-SPLIT.json` or `evaluate-recall-SPLIT.json`.
        domain: of the run's data.

    Raises:
        ValueError: it is none.
    """
    if "contexts" in value:
        return ContextResult.model_validate(value)
    if "recall" in value:
        return RecallResult.model_validate(value)
    if value.get("task") == "classification":
        return ClassesResult.read(value, domain.class_notes)
    if "task" in value:
        return ValuesResult.model_validate(value)
    return LikelihoodResult.read(value, domain.likelihood_notes)
