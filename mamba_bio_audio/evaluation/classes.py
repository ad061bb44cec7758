"""Scores of a classifier on held-out sequences, beside those of a simple one that was fitted on the training sequences."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.evaluation.classification import (
    SHOWN_CLASSES,
    classification_report,
    most_confused,
)
from mamba_bio_audio.evaluation.resampling import bootstrap_mean
from mamba_bio_audio.inference.classify import classify
from mamba_bio_audio.inference.streaming import Passes
from mamba_bio_audio.pipelines.contract import Domain, Strand
from mamba_bio_audio.pipelines.scores import labelled_sequences
from mamba_bio_audio.text import cell

# Classes are compared two by two: all pairs of SHOWN_CLASSES classes, or as many pairs of more classes.
MAX_PAIRS = SHOWN_CLASSES * (SHOWN_CLASSES - 1) // 2
# Sequences of either class of a pair.
Rows = dict[tuple[int, int], NDArray[np.int64]]
# The table of predictions has a column for each class, up to so many.
MAX_COLUMNS = 100


def evaluate_classes(
    model: Any,
    data: Any,
    domain: Domain,
    *,
    split: str,
    strand: Strand = "both",
    passes: Passes = Passes(),
    baselines: bool = True,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, Any]:
    """Scores on the fixed sequences of a split (JSON-able), with every prediction as the text of a TSV.

    Args:
        model: classifier in eval mode.
        data: set up with the classes of the model.
        domain: domain of the data.
        split: train, valid or test.
        strand: which strands are read; where sequences have only one, "both" reads that.
        passes: how batches go through the model.
        baselines: also fit the domain's simple classifier, where it has one.
        progress: called with (sequences done, sequences in all).

    Raises:
        InputError: the classes are not those of the model, or the strand does not exist.
    """
    classes = data.corpus.classes
    if tuple(model.labels) != classes:
        raise InputError(
            f"the model tells {', '.join(model.labels)} apart, the data has {', '.join(classes)}; set data.classes"
        )
    symbols = domain.symbols(data.config, data.length)
    dataset = data.evaluation_dataset(split)
    probabilities, targets, rows, strand = predict_split(model, data, domain, dataset, strand, passes, progress)
    names = [window.locus for window in dataset.windows]
    # Numbers, because names are compared once here and not for every pair of classes.
    loci = np.unique(np.asarray(names), return_inverse=True)[1].reshape(-1)
    strata = data.corpus.strata(split)
    report = classification_report(probabilities, targets, classes, groups=loci, strata=strata)
    pairs = most_confused(report["confusion"], MAX_PAIRS) if len(classes) > 2 else []
    rows_of = {pair: np.flatnonzero(np.isin(targets, pair)) for pair in pairs}
    result: dict[str, Any] = {
        "task": "classification",
        "split": split,
        "length": data.length,
        "unit": symbols.unit,
        "strand": strand,
        "positions": sum(map(len, rows)),
        "model": report | {"pairs": _pairs(probabilities, targets, classes, loci, rows_of)},
    }
    if len(classes) > SHOWN_CLASSES:
        result["pairs_of"] = len(classes) * (len(classes) - 1) // 2
    result["beside"] = domain.beside_classes(data)
    yardstick = domain.class_yardstick(data) if baselines else None
    if yardstick is not None:
        bar = yardstick.probabilities(rows)
        scores = classification_report(bar, targets, classes, groups=loci, strata=strata)
        scores["pairs"] = _pairs(bar, targets, classes, loci, rows_of)
        result["kmers"] = yardstick.to_dict() | scores
        result["gain"] = _gain(probabilities, bar, targets, classes, loci, rows_of)
    return result | {"predictions": _predictions(dataset, probabilities, classes)}


def predict_split(
    model: Any,
    data: Any,
    domain: Domain,
    dataset: Any,
    strand: Strand,
    passes: Passes,
    progress: Callable[[int, int | None], None] | None,
) -> tuple[NDArray[np.float64], NDArray[Any], list[NDArray[Any]], Strand]:
    """What a model says of every sequence of a dataset (n, K), what is right, the sequences, and the strand that was read.

    Raises:
        InputError: the strand does not exist.
    """
    symbols = domain.symbols(data.config, data.length)
    if strand == "both":
        strand = symbols.strands[0]
    if strand not in symbols.strands:
        raise InputError(f"--strand {strand} needs sequences with two strands, got {symbols.unit}s; leave it out")
    model.to(passes.device)
    rows, targets = labelled_sequences(dataset)
    per_batch = max(1, (2**14 if passes.device == "cpu" else 2**18) // (passes.chunk or data.length))
    found = []
    for low in range(0, len(rows), per_batch):
        batch = rows[low : low + per_batch]
        found.append(
            classify(model, batch, pad_id=symbols.pad_id, reverse=symbols.reverse, strand=strand, passes=passes)
        )
        if progress is not None:
            progress(min(len(rows), low + per_batch), len(rows))
    return np.concatenate(found), targets, rows, strand


def _pairs(
    p: NDArray[np.float64],
    y: NDArray[np.int64],
    classes: tuple[str, ...],
    loci: NDArray[np.int64],
    rows_of: Rows,
) -> dict[str, Any]:
    """How well each pair of classes is distinguished if only these two are possible."""
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


def _predictions(dataset: Any, p: NDArray[np.float64], classes: tuple[str, ...]) -> str:
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
