"""What `mba evaluate` finds: typed, as text and as JSON. Keys that earlier versions did not write have a default."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, SerializeAsAny, SerializerFunctionWrapHandler, model_serializer

from mamba_bio_audio.jobs.contract import Result
from mamba_bio_audio.pipelines.scores import ClassNotes, Found, LikelihoodNotes, Scores, SplitScores
from mamba_bio_audio.text import printable


class Kept(Result):
    """A result of which something may be kept in a folder.

    Attributes:
        written: files, to be named.
        not_kept: why nothing was written, where something should have been.
    """

    written: tuple[Path, ...] = Field((), exclude=True)
    not_kept: str = Field("", exclude=True)

    def notes(self) -> str:
        """Why nothing was kept."""
        return self.not_kept


class _Beside(Kept):
    """A result with keys of its own and, beside them, those of what a domain says."""

    @model_serializer(mode="wrap")
    def _in_one(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in handler(self).items():
            found |= value if key == "beside" else {key: value}
        return found

    @classmethod
    def read(cls, value: Mapping[str, Any], notes: type[Found]) -> Self:
        """From `to_json`; `notes` says which keys are the domain's."""
        theirs = notes.model_validate({key: row for key, row in value.items() if key in notes.model_fields})
        own = {key: row for key, row in value.items() if key not in notes.model_fields}
        return cls.model_validate({**own, "beside": theirs})


class LikelihoodResult(_Beside):
    """Likelihood of a split, each symbol scored once; what the domain says beside it."""

    run: str = ""
    which: str = "best"
    weights: str
    weights_sha256: str | None = None
    split: str
    length: int
    overrides: tuple[str, ...] = ()
    files: tuple[dict[str, Any], ...] = ()
    split_source: str = ""
    scored: int
    model: Scores
    beside: SerializeAsAny[LikelihoodNotes]
    pictures: tuple[str, ...] = ()

    def headline(self) -> dict[str, Any]:
        """The likelihood is known from the training."""
        return {}

    def text(self) -> str:
        """Tables for people."""
        return self.beside.text(SplitScores(self.split, self.length, self.weights, self.scored, self.model))


class Interval(Found):
    """A mean, and where it lies with 95 % confidence over resampled groups; no bounds from one group."""

    value: float
    low: float | None
    high: float | None
    groups: int

    def short(self) -> str:
        """In percent."""
        return f"{self.value:.1%}" + ("" if self.groups < 2 else f" ({self.low:.1%} to {self.high:.1%})")

    def plain(self) -> str:
        """As a number, with its bounds."""
        if self.groups < 2 or self.low is None or math.isnan(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

    def long(self) -> str:
        """In percent, saying what the bounds are."""
        if self.groups < 2:
            return f"{self.value:.1%} (no interval from one group)"
        return f"{self.value:.1%} (95% interval {self.low:.1%} to {self.high:.1%}, {self.groups:,} groups)"


class ClassScores(Found):
    """Scores of one class; not numbers, or None, where they are not defined."""

    count: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None


class Bin(Found):
    """Predictions of about one confidence."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


class Calibration(Found):
    """Expected calibration error and the table behind it."""

    ece: float
    bins: list[Bin]


class StratumScores(Found):
    """Accuracy of a part of the sequences; None where there are none."""

    count: int
    accuracy: Interval | None


class ClassReport(Found):
    """Everything about a classifier's predictions (`evaluation.classification.classification_report`).

    Attributes:
        pairs: how well two classes are told apart where it can only be one of them, "a against b".
    """

    count: int
    labels: list[str]
    chance: float
    accuracy: Interval
    mcc: Interval | None = None
    auroc: Interval | None = None
    macro_f1: float
    nats: float
    classes: dict[str, ClassScores]
    confusion: list[list[int]]
    calibration: Calibration
    strata: dict[str, StratumScores]
    pairs: dict[str, Interval] = Field(default_factory=dict)

    def text(self) -> str:
        """Tables for people."""
        import numpy as np

        from mamba_bio_audio.evaluation.classification import SHOWN_CLASSES

        lines = [
            f"accuracy {self.accuracy.long()} on {self.count:,} sequences; "
            f"most frequent class alone: {self.chance:.1%}",
            *([] if self.mcc is None else [self._other()]),
            f"macro F1 {self.macro_f1:.3f}, {self.nats:.3f} nats per sequence, "
            f"calibration error {self.calibration.ece:.3f}",
            "",
        ]
        labels = [printable(label) for label in self.labels]
        width = max(18, *map(len, labels)) + 2
        rows = list(zip(labels, self.classes.values(), strict=True))
        many = len(rows) > SHOWN_CLASSES
        if many:
            rows = sorted(rows, key=lambda row: math.inf if _undefined(row[1].f1) else row[1].f1 or 0)[:SHOWN_CLASSES]
            lines.append(f"the classes with the lowest F1 of {len(labels):,} (the JSON has all):")
        lines.append(f"{'class':<{width}}{'count':>8}{'predicted':>11}{'precision':>11}{'recall':>9}{'F1':>8}")
        for label, row in rows:
            scores = f"{_score(row.precision):>11}{_score(row.recall):>9}{_score(row.f1):>8}"
            lines.append(f"{label:<{width}}{row.count:>8,}{row.predicted:>11,}{scores}")
        lines.append("")
        if many:
            counts = np.array(self.confusion)
            np.fill_diagonal(counts, 0)
            worst = np.argsort(-counts, axis=None, kind="stable")[:SHOWN_CLASSES]
            lines.append(f"{'true, most confused':<{width}}{'predicted as':<{width}}{'count':>8}")
            for a, b in zip(*(place.tolist() for place in np.unravel_index(worst, counts.shape)), strict=True):
                if counts[a, b]:
                    lines.append(f"{labels[a]:<{width}}{labels[b]:<{width}}{counts[a, b]:>8,}")
        else:
            lines.append(f"{'true, predicted as':<{width}}" + "".join(f"{name:>14.13}" for name in labels))
            for label, confused in zip(labels, self.confusion, strict=True):
                lines.append(f"{label:<{width}}" + "".join(f"{value:>14,}" for value in confused))
        if self.strata:
            lines.append("")
        for name, part in self.strata.items():
            accuracy = "none" if part.accuracy is None else part.accuracy.long()
            lines.append(f"accuracy {name}: {accuracy} ({part.count:,} sequences)")
        return "\n".join(lines)

    def _other(self) -> str:
        assert self.mcc is not None
        area = "" if self.auroc is None else f", AUROC {self.auroc.plain()}"
        what = "" if self.auroc is None or len(self.labels) == 2 else ", each class against the rest"
        return f"MCC {self.mcc.plain()}{area}{what}"


def _undefined(value: float | None) -> bool:
    """Whether a score is undefined, which is null in JSON and NaN in a report."""
    return value is None or math.isnan(value)


def _score(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


class KmerReport(ClassReport):
    """Scores of logistic regression on k-mers, and how k and penalty were chosen."""

    k: int
    strength: float
    trained_on: int
    candidates: list[dict[str, Any]]
    edges: list[str]
    left_out: list[int]

    def chosen(self) -> str:
        """How it was chosen, and whether it could be better."""
        sizes = sorted({row["k"] for row in self.candidates})
        text = (
            f"{self.k}-mer logistic regression: {self.accuracy.short()}; {self.trained_on:,} training sequences, k from "
            f"{sizes[0]} to {sizes[-1]} and the penalty, 1/{self.strength:g}, chosen on validation loss"
        )
        return text + could_be_better(self.edges, self.left_out)


def could_be_better(edges: list[str], left_out: list[int]) -> str:
    """Why a baseline could be better than it is; a line for each reason, none where it could not."""
    text = ""
    if edges:
        text += f"\nat the edge of the grid, so a better baseline may exist: {', '.join(edges)}"
    if left_out:
        listed = ", ".join(map(str, left_out))
        text += f"\nleft out because they would take too long, so a better baseline may exist: k = {listed}"
    return text


def counted(count: int) -> str:
    """What is said of a test split that was evaluated several times."""
    return (
        f"The test split of this run was evaluated {count} times. It is meant to be used once: make choices on the "
        "validation split"
    )


class ClassesResult(_Beside):
    """Scores of a classifier on the fixed sequences of a split, beside k-mers.

    Attributes:
        pairs_of: how many pairs of classes there are, where not all are compared.
        gain: accuracy of the model minus that of the k-mers on the same sequences, for all and for each pair of classes.
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
    strand: str
    positions: int = 0
    model: ClassReport
    pairs_of: int | None = None
    beside: SerializeAsAny[ClassNotes]
    kmers: KmerReport | None = None
    gain: dict[str, Interval] = Field(default_factory=dict)
    evaluations: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    predictions: str = Field("", exclude=True)

    def headline(self) -> dict[str, Any]:
        """The scores that a training ends with, by name, as plain values."""
        found = {"accuracy": self.model.accuracy, "mcc": self.model.mcc, "auroc": self.model.auroc}
        return {name: row.model_dump() for name, row in found.items() if row is not None}

    def text(self) -> str:
        """Tables for people."""
        lines = [
            f"{self.split} split, sequences of up to {self.length:,} {self.unit}s"
            + (f", strand: {self.strand}" if self.beside.stranded else ""),
            "",
            self.model.text(),
        ]
        if text := self.beside.text(self.split):
            lines += ["", text]
        if self.kmers is not None:
            lines += ["", self.kmers.chosen(), "", *self._beside_kmers(self.kmers)]
        count = len(self.evaluations)
        if count > 1 and self.split == "test":
            lines += ["", counted(count)]
        return "\n".join(lines)

    def _beside_kmers(self, kmers: KmerReport) -> list[str]:
        lines = [f"{'accuracy':<34}{'model':>9}{'k-mers':>9}   model minus k-mers, 95% interval"]
        rows = {"all": (self.model.accuracy, kmers.accuracy)}
        rows |= {name: (row, kmers.pairs[name]) for name, row in self.model.pairs.items()}
        for name, (own, bar) in rows.items():
            gain = self.gain[name]
            bounds = "" if gain.groups < 2 else f" ({gain.low:+.1%} to {gain.high:+.1%})"
            lines.append(f"{name:<34}{own.value:>9.1%}{bar.value:>9.1%}   {gain.value:+.1%}{bounds}")
        if self.pairs_of is not None:
            lines.append(f"(the {len(self.model.pairs):,} pairs that the model confuses most, of {self.pairs_of:,})")
        gain = self.gain["all"]
        better = gain.groups > 1 and gain.low is not None and gain.low > 0
        verdict = "is better than" if better else "is not better than"
        return [*lines, "", f"The model {verdict} the k-mer baseline beyond the interval."]


class ContextRow(Found):
    """Loss of one part of the target bases under one context."""

    kind: str
    stratum: str
    context: int
    count: int
    blocks: int
    nats: float
    bits: float
    perplexity: float | None
    gain_nats: float
    gain_standard_error: float | None


class PositionRow(Found):
    """Loss of the bases that have `first` to `last` bases before them in their window."""

    first: int
    last: int
    count: int
    nats: float
    perplexity: float | None


class ContextResult(Kept):
    """Loss on the same target bases under every context, and by position in the longest window.

    Attributes:
        bar, copied: the model that copies, by name, and its loss on the same bases.
    """

    run: str = ""
    which: str = "best"
    weights_sha256: str | None = None
    split: str
    contexts: list[int]
    block_bases: int
    blocks: int
    target_bases: int
    trained_length: int
    longest_context_inside_split: float
    overrides: tuple[str, ...] = ()
    matched: list[ContextRow]
    bar: str = ""
    copied: list[ContextRow] = Field(default_factory=list)
    by_position: list[PositionRow]
    pictures: tuple[str, ...] = ()

    def text(self) -> str:
        """Tables for people."""
        pieces = self.block_bases > max(1, self.contexts[0] // 4)
        more = "a quarter of it" if pieces else f"{self.block_bases - 1:,} more bases"
        lines = [
            f"{self.split} split: the same {self.target_bases:,} bases in {self.blocks:,} blocks under every context; each "
            f"base has the context and up to {more} before it; "
            f"{self.longest_context_inside_split:.0%} of the longest context lies in the split itself; the model was "
            f"trained at {self.trained_length:,}",
            "",
            f"{'stratum':<28}{'bases':>10}" + "".join(f"{context:>12,}" for context in self.contexts),
        ]
        lines += self._table(self.matched)
        if self.copied:
            lines += ["", self.bar, *self._table(self.copied)]
        last = self.matched[len(self.contexts) - 1]
        error = math.nan if last.gain_standard_error is None else last.gain_standard_error
        lines += [
            "",
            f"From {self.contexts[0]:,} to {last.context:,} bases the loss falls by {last.gain_nats:.4f} nats, "
            f"standard error {error:.4f}.",
            *self._beside_copies(last),
            "",
            f"perplexity by bases of context within windows of {self.contexts[-1]:,}:",
        ]
        lines += [
            f"  {row.first:>10,} to {row.last:>10,}{row.count:>12,} bases{row.perplexity:>10.4f}"
            for row in self.by_position
        ]
        if self.written:
            lines += ["", "written: " + ", ".join(map(str, self.written))]
        return "\n".join(lines)

    def _table(self, rows: list[ContextRow]) -> list[str]:
        """A line for each stratum: its perplexity under every context."""
        by_stratum: dict[tuple[str, str], list[ContextRow]] = {}
        for row in rows:
            by_stratum.setdefault((row.kind, row.stratum), []).append(row)
        lines = []
        for (_, name), own in by_stratum.items():
            cells = "".join(f"{row.perplexity:>12.4f}" for row in own)
            lines.append(f"{name[:27]:<28}{own[0].count:>10,}{cells}")
        return lines

    def _beside_copies(self, last: ContextRow) -> list[str]:
        """The gain as a share of what copying gains."""
        if not self.copied:
            return []
        theirs = self.copied[len(self.contexts) - 1]
        error = math.nan if theirs.gain_standard_error is None else theirs.gain_standard_error
        line = f"That of {self.bar} falls by {theirs.gain_nats:.4f}, standard error {error:.4f}"
        # A share of a gain that could be chance says nothing.
        share = theirs.gain_nats > 2 * error
        return [line + (f": the model gains {last.gain_nats / theirs.gain_nats:.0%} of it." if share else ".")]
