"""Accuracy of a classifier on held-out sequences, beside a k-mer baseline trained on the same sequences."""

from __future__ import annotations

import csv
import datetime
import io
import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.evaluation.classification import (
    bootstrap_mean,
    classification_report,
    describe_classification,
)
from mamba_bio_audio.evaluation.figures import confusion_picture
from mamba_bio_audio.evaluation.kmers import KmerBaseline, fit_kmers
from mamba_bio_audio.files import write_json, write_text
from mamba_bio_audio.inference.classify import Strand, classify
from mamba_bio_audio.pipelines.audio.classes import AudioClassesDataModule
from mamba_bio_audio.pipelines.dna.classes import ClassDataset, DnaClassesDataModule
from mamba_bio_audio.text import cell

# Training sequences of the k-mer baseline: at most this many, and at most this many bases.
BASELINE_SEQUENCES, BASELINE_BASES = 20_000, 1 << 26


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
                device=device,
                narrow=narrow,
                chunk=chunk,
            )
        )
        if progress is not None:
            progress(min(len(rows), low + per_batch), len(rows))
    probabilities = np.concatenate(found)
    loci = [window.region.locus for window in dataset.windows]
    result: dict[str, Any] = {
        "task": "classification",
        "split": split,
        "length": data.length,
        "unit": data.codec.unit,
        "strand": strand,
        "positions": sum(map(len, rows)),
        "model": _scores(probabilities, targets, data.classes, loci, data.strata(split)),
    }
    if baselines and isinstance(data, DnaClassesDataModule):
        fitted = kmer_baseline(data)
        bar = fitted.probabilities(rows)
        result["kmers"] = fitted.to_dict() | _scores(bar, targets, data.classes, loci, data.strata(split))
        result["gain"] = _gain(probabilities, bar, targets, data.classes, loci)
    return result | {"predictions": _predictions(dataset, probabilities, data.classes)}


def kmer_baseline(data: DnaClassesDataModule) -> KmerBaseline:
    """Fitted on the first sequences of the training stream, chosen on the validation windows."""
    stream = data.stream()
    there = len(data.training_windows(data.length))
    count = max(50 * len(data.classes), min(BASELINE_SEQUENCES, BASELINE_BASES // data.length, 20 * there))
    if data.labelled.examples:
        count = min(count, there)
    examples = [stream.example(sample) for sample in range(count)]
    valid, valid_labels = sequences(data.evaluation_dataset("valid"))
    labels = np.array([label for _, label in examples], dtype=np.int64)
    return fit_kmers([ids for ids, _ in examples], labels, valid, valid_labels, len(data.classes))


def sequences(dataset: ClassDataset) -> tuple[list[NDArray[np.uint8]], NDArray[np.int64]]:
    """Token ids and classes of evaluation sequences."""
    rows = [dataset.labelled.fetch(window.region, window.start, window.end) for window in dataset.windows]
    return rows, np.array([window.region.label for window in dataset.windows], dtype=np.int64)


def _scores(
    p: NDArray[np.float64],
    y: NDArray[np.int64],
    classes: tuple[str, ...],
    loci: list[str],
    strata: dict[str, NDArray[np.bool_]],
) -> dict[str, Any]:
    """The report, and how well each two classes are told apart when it can only be one of them."""
    report = classification_report(p, y, classes, groups=loci, strata=strata)
    pairs = {}
    if len(classes) > 2:
        for a, b in combinations(range(len(classes)), 2):
            inside = (y == a) | (y == b)
            if inside.any():
                own = np.asarray(loci)[inside]
                name = f"{classes[a]} against {classes[b]}"
                pairs[name] = bootstrap_mean(_right(p, y, (a, b))[inside], own).to_dict()
    return report | {"pairs": pairs}


def _right(p: NDArray[np.float64], y: NDArray[np.int64], among: tuple[int, ...]) -> NDArray[np.float64]:
    """1 where the most probable class among some is the true one."""
    return (np.asarray(among)[p[:, among].argmax(1)] == y).astype(np.float64)


def _gain(
    model: NDArray[np.float64],
    bar: NDArray[np.float64],
    y: NDArray[np.int64],
    classes: tuple[str, ...],
    loci: list[str],
) -> dict[str, Any]:
    """Accuracy of the model minus that of the baseline on the same sequences, overall and for each two classes."""
    everything = tuple(range(len(classes)))
    gain = {"all": bootstrap_mean(_right(model, y, everything) - _right(bar, y, everything), loci).to_dict()}
    if len(classes) > 2:
        for a, b in combinations(everything, 2):
            inside = (y == a) | (y == b)
            if inside.any():
                difference = _right(model, y, (a, b)) - _right(bar, y, (a, b))
                gain[f"{classes[a]} against {classes[b]}"] = bootstrap_mean(
                    difference[inside], np.asarray(loci)[inside]
                ).to_dict()
    return gain


def _predictions(dataset: ClassDataset, p: NDArray[np.float64], classes: tuple[str, ...]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(
        ["class", "record", "start0", "end", "locus", "predicted", *(cell(f"p_{name}") for name in classes)]
    )
    for window, row in zip(dataset.windows, p, strict=True):
        region = window.region
        values = [f"{value:.6f}" for value in row]
        predicted = classes[int(row.argmax())]
        names = [cell(name) for name in (classes[region.label], region.record, region.locus, predicted)]
        writer.writerow([*names[:2], window.start, window.end, *names[2:], *values])
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
    if "kmers" in result:
        kmers = result["kmers"]
        lines += [
            "",
            f"{kmers['k']}-mer logistic regression (best of 3 to 6 on validation, {kmers['trained_on']:,} training "
            f"sequences): {_interval(kmers['accuracy'])}",
            "",
            f"{'accuracy':<34}{'model':>9}{'k-mers':>9}   model minus k-mers, 95% interval",
        ]
        rows = {"all": (result["model"]["accuracy"], kmers["accuracy"])}
        rows |= {name: (row, kmers["pairs"][name]) for name, row in result["model"]["pairs"].items()}
        for name, (own, bar) in rows.items():
            gain = result["gain"][name]
            lines.append(
                f"{name:<34}{own['value']:>9.1%}{bar['value']:>9.1%}   {gain['value']:+.1%} "
                f"({gain['low']:+.1%} to {gain['high']:+.1%})"
            )
        gain = result["gain"]["all"]
        verdict = "clears" if gain["low"] > 0 else "does not clear"
        lines += ["", f"The model {verdict} the k-mer bar beyond the interval."]
    count = len(result.get("evaluations", []))
    if count > 1 and result["split"] == "test":
        lines += [
            "",
            f"The test split of this run was evaluated {count} times. It is meant to be run once: choose on validation",
        ]
    return "\n".join(lines)


def _interval(row: dict[str, Any]) -> str:
    return f"{row['value']:.1%} ({row['low']:.1%} to {row['high']:.1%})"
