"""Accuracy of a classifier on held-out sequences, beside a k-mer baseline trained on the same sequences."""

from __future__ import annotations

import csv
import datetime
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.evaluation.classification import (
    SHOWN_CLASSES,
    bootstrap_mean,
    classification_report,
    describe_classification,
    most_confused,
)
from mamba_bio_audio.evaluation.figures import confusion_picture
from mamba_bio_audio.files import write_json, write_text
from mamba_bio_audio.inference.classify import Passes, Strand, classify
from mamba_bio_audio.pipelines.audio.classes import AudioClassesDataModule
from mamba_bio_audio.pipelines.dna.classes import ClassDataset, DnaClassesDataModule, conflict_text
from mamba_bio_audio.pipelines.dna.kmers import KmerBaseline, fit_kmers
from mamba_bio_audio.text import cell

# Training sequences of the k-mer baseline: at most this many, and at most this many bases (0.5 GiB of counts), which takes
# minutes on one core.
BASELINE_SEQUENCES, BASELINE_BASES = 40_000, 1 << 26
# Classes are told apart two by two for all pairs of SHOWN_CLASSES classes, or as many pairs of more.
MAX_PAIRS = SHOWN_CLASSES * (SHOWN_CLASSES - 1) // 2
# Sequences of either class of a pair.
Rows = dict[tuple[int, int], NDArray[np.int64]]
# The table of predictions has a column for each of up to so many classes.
MAX_COLUMNS = 100


def evaluate_classes(
    model: Any,
    data: DnaClassesDataModule | AudioClassesDataModule,
    *,
    split: str,
    device: str,
    narrow: bool,
    chunk: int | None = None,
    strand: Strand = "both",
    baselines: bool = True,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, Any]:
    """Scores on the fixed windows of a split (JSON-able), with every prediction as the text of a TSV.

    Args:
        model: classifier in eval mode.
        data: set up with the classes of the model.
        split: train, valid or test.
        device: "cpu" or "cuda".
        narrow: bf16 autocast.
        chunk: positions per pass.
        strand: which strands are read; recordings have one.
        baselines: also fit logistic regression on k-mers of training sequences (DNA).
        progress: called with (sequences done, sequences in all).
    """
    if tuple(model.labels) != data.classes:
        raise InputError(
            f"the model tells {', '.join(model.labels)} apart, the data has {', '.join(data.classes)}; set data.classes"
        )
    reverse = getattr(data.codec, "reverse_complement", None)
    strand = strand if reverse is not None else "forward"
    dataset = data.evaluation_dataset(split)
    model.to(device)
    rows, targets = sequences(dataset)
    per_batch = max(1, (2**14 if device == "cpu" else 2**18) // (chunk or data.length))
    found = []
    for low in range(0, len(rows), per_batch):
        found.append(
            classify(
                model,
                rows[low : low + per_batch],
                pad_id=data.pad_id,
                reverse=reverse,
                strand=strand,
                passes=Passes(device=device, narrow=narrow, chunk=chunk),
            )
        )
        if progress is not None:
            progress(min(len(rows), low + per_batch), len(rows))
    probabilities = np.concatenate(found)
    names = [window.locus for window in dataset.windows]
    # Numbers, because names are compared once here and not for every pair of classes.
    loci = np.unique(np.asarray(names), return_inverse=True)[1].reshape(-1)
    report = classification_report(probabilities, targets, data.classes, groups=loci, strata=data.strata(split))
    pairs = most_confused(report["confusion"], MAX_PAIRS) if len(data.classes) > 2 else []
    rows_of = {pair: np.flatnonzero(np.isin(targets, pair)) for pair in pairs}
    result: dict[str, Any] = {
        "task": "classification",
        "split": split,
        "length": data.length,
        "unit": data.codec.unit,
        "strand": strand,
        "positions": sum(map(len, rows)),
        "model": report | {"pairs": _pairs(probabilities, targets, data.classes, loci, rows_of)},
    }
    if len(data.classes) > SHOWN_CLASSES:
        result["pairs_of"] = len(data.classes) * (len(data.classes) - 1) // 2
    if isinstance(data, DnaClassesDataModule):
        result["label_conflicts"] = data.label_conflicts()
    if baselines and isinstance(data, DnaClassesDataModule):
        fitted = kmer_baseline(data)
        bar = fitted.probabilities(rows)
        scores = classification_report(bar, targets, data.classes, groups=loci, strata=data.strata(split))
        scores["pairs"] = _pairs(bar, targets, data.classes, loci, rows_of)
        result["kmers"] = fitted.to_dict() | scores
        result["gain"] = _gain(probabilities, bar, targets, data.classes, loci, rows_of)
    return result | {"predictions": _predictions(dataset, probabilities, data.classes)}


def kmer_baseline(data: DnaClassesDataModule) -> KmerBaseline:
    """Fitted on the first sequences of the training stream, chosen on the validation windows."""
    rows, labels = training_sequences(data)
    valid, valid_labels = sequences(data.evaluation_dataset("valid"))
    return fit_kmers(rows, labels, valid, valid_labels, len(data.classes))


def training_sequences(
    data: DnaClassesDataModule, at_most: int = BASELINE_SEQUENCES
) -> tuple[list[NDArray[np.uint8]], NDArray[np.int64]]:
    """Token ids and classes of the first sequences of the training stream, as many as the k-mer baseline takes."""
    stream = data.stream()
    there = len(data.training_windows(data.length))
    count = max(50 * len(data.classes), min(at_most, BASELINE_BASES // data.length, 20 * there))
    if data.labelled.examples:
        count = min(count, there)
    examples = [stream.example(sample) for sample in range(count)]
    return [ids for ids, _ in examples], np.array([label for _, label in examples], dtype=np.int64)


def sequences(dataset: ClassDataset) -> tuple[list[NDArray[np.uint8]], NDArray[np.int64]]:
    """Token ids and classes of evaluation sequences."""
    rows = [dataset.labelled.fetch(window) for window in dataset.windows]
    return rows, np.array([window.label for window in dataset.windows], dtype=np.int64)


def _pairs(
    p: NDArray[np.float64],
    y: NDArray[np.int64],
    classes: tuple[str, ...],
    loci: NDArray[np.int64],
    rows_of: Rows,
) -> dict[str, Any]:
    """How well each two classes are told apart when it can only be one of them."""
    return {
        _against(classes, pair): bootstrap_mean(_right(p[rows], y[rows], pair), loci[rows]).to_dict()
        for pair, rows in rows_of.items()
    }


def _against(classes: tuple[str, ...], pair: tuple[int, int]) -> str:
    return f"{classes[pair[0]]} against {classes[pair[1]]}"


def _right(p: NDArray[np.float64], y: NDArray[np.int64], among: tuple[int, ...]) -> NDArray[np.float64]:
    """1 where the most probable class among some is the true one."""
    return (np.asarray(among)[p[:, among].argmax(1)] == y).astype(np.float64)


def _gain(
    model: NDArray[np.float64],
    bar: NDArray[np.float64],
    y: NDArray[np.int64],
    classes: tuple[str, ...],
    loci: NDArray[np.int64],
    rows_of: Rows,
) -> dict[str, Any]:
    """Accuracy of the model minus that of the baseline on the same sequences, overall and for each two classes."""
    difference = (model.argmax(1) == y).astype(np.float64) - (bar.argmax(1) == y)
    gain = {"all": bootstrap_mean(difference, loci).to_dict()}
    for pair, rows in rows_of.items():
        difference = _right(model[rows], y[rows], pair) - _right(bar[rows], y[rows], pair)
        gain[_against(classes, pair)] = bootstrap_mean(difference, loci[rows]).to_dict()
    return gain


def _predictions(dataset: ClassDataset, p: NDArray[np.float64], classes: tuple[str, ...]) -> str:
    """A table with a row for every sequence; of more than MAX_COLUMNS classes only the predicted and the true one's p."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    many = len(classes) > MAX_COLUMNS
    columns = ["p_predicted", "p_class"] if many else [cell(f"p_{name}") for name in classes]
    writer.writerow(["class", "record", "start0", "end", "locus", "predicted", *columns])
    for region, row in zip(dataset.windows, p, strict=True):
        predicted = classes[int(row.argmax())]
        values = [f"{value:.6f}" for value in ([row.max(), row[region.label]] if many else row)]
        names = [cell(name) for name in (classes[region.label], region.record, region.locus, predicted)]
        writer.writerow([*names[:2], region.start, region.end, *names[2:], *values])
    return text.getvalue()


def write_evaluation(run: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Put an evaluation into the run folder: JSON, picture, predictions. Each evaluation of a split is counted.

    Returns:
        The result without its predictions and with `evaluations`: when this split was evaluated, now included.
    """
    split = result["split"]
    predictions = result["predictions"]
    result = {key: value for key, value in result.items() if key != "predictions"}
    path = run / f"evaluate-{split}.json"
    before: list[str] = []
    if path.exists():
        try:
            before = list(json.loads(path.read_text(encoding="utf-8")).get("evaluations", []))
        except (ValueError, AttributeError):
            raise InputError(f"{path}: damaged; delete it to evaluate again") from None
    result = result | {"evaluations": [*before, datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")]}
    picture = run / f"confusion-{split}.png"
    result |= {"pictures": [picture.name]}
    write_json(path, result)
    write_text(run / f"predictions-{split}.tsv", predictions)
    confusion_picture(result["model"], picture)
    return result


def describe(result: dict[str, Any]) -> str:
    """The evaluation for people."""
    lines = [
        f"{result['split']} split, sequences of up to {result['length']:,} {result['unit']}s"
        + (f", strand: {result['strand']}" if result["unit"] == "base" else ""),
        "",
        describe_classification(result["model"]),
    ]
    if text := conflict_text(result.get("label_conflicts", {}), result["split"]):
        lines += ["", text]
    if "kmers" in result:
        kmers = result["kmers"]
        lines += [
            "",
            describe_kmers(kmers),
            "",
            f"{'accuracy':<34}{'model':>9}{'k-mers':>9}   model minus k-mers, 95% interval",
        ]
        rows = {"all": (result["model"]["accuracy"], kmers["accuracy"])}
        rows |= {name: (row, kmers["pairs"][name]) for name, row in result["model"]["pairs"].items()}
        for name, (own, bar) in rows.items():
            gain = result["gain"][name]
            bounds = "" if gain["groups"] < 2 else f" ({gain['low']:+.1%} to {gain['high']:+.1%})"
            lines.append(f"{name:<34}{own['value']:>9.1%}{bar['value']:>9.1%}   {gain['value']:+.1%}{bounds}")
        if "pairs_of" in result:
            pairs = len(result["model"]["pairs"])
            lines.append(f"(the {pairs:,} pairs that the model confuses most, of {result['pairs_of']:,})")
        gain = result["gain"]["all"]
        verdict = "clears" if gain["groups"] > 1 and gain["low"] > 0 else "does not clear"
        lines += ["", f"The model {verdict} the k-mer bar beyond the interval."]
    count = len(result.get("evaluations", []))
    if count > 1 and result["split"] == "test":
        lines += [
            "",
            f"The test split of this run was evaluated {count} times. It is meant to be run once: choose on validation",
        ]
    return "\n".join(lines)


def describe_kmers(kmers: dict[str, Any]) -> str:
    """How the k-mer bar was chosen, and whether it could be higher."""
    sizes = sorted({row["k"] for row in kmers["candidates"]})
    text = (
        f"{kmers['k']}-mer logistic regression: {_interval(kmers['accuracy'])}; {kmers['trained_on']:,} training sequences, "
        f"k from {sizes[0]} to {sizes[-1]} and the penalty, 1/{kmers['strength']:g}, chosen on validation loss"
    )
    if kmers["edges"]:
        text += f"\nat the edge of the grid, so that the bar may be too low: {', '.join(kmers['edges'])}"
    if kmers["left_out"]:
        left_out = ", ".join(map(str, kmers["left_out"]))
        text += f"\nleft out because they would take too long, so that the bar may be too low: k = {left_out}"
    return text


def _interval(row: dict[str, Any]) -> str:
    return f"{row['value']:.1%}" + ("" if row["groups"] < 2 else f" ({row['low']:.1%} to {row['high']:.1%})")
