"""Scores of a classifier: accuracy with an interval, per-class scores, confusion, calibration.

    accuracy = correct / n;   interval: percentiles over resampled groups (cluster bootstrap)

What it tells: which share of unseen sequences gets the right class, and how far that number could be from the truth.
Windows of one locus resemble each other, even across species, and so are not independent draws: whole groups (loci,
contigs, speakers) are resampled, because an interval over single windows would be too narrow. It misleads if an accident
of the data separates the classes (`pipelines/dna/label_leaks.py`), or if groups of the test set have relatives in the
training set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torchmetrics.functional.classification import (
    binary_auroc,
    multiclass_calibration_error,
)

from mamba_bio_audio.evaluation.resampling import (
    MEANS,
    Interval,
    affordable,
    auroc,
    bootstrap_mean,
    interval,
    matthews,
    mean_of,
)

BINS = 15
# With up to this many classes, tables show all classes and all confusions; with more, only the worst.
SHOWN_CLASSES = 20


def classification_report(
    probabilities: ArrayLike,
    targets: ArrayLike,
    labels: Sequence[str],
    *,
    groups: Sequence[Any] | NDArray[Any] | None = None,
    strata: Mapping[str, ArrayLike] | None = None,
    bins: int = BINS,
    resamples: int = MEANS,
    seed: int = 0,
) -> dict[str, Any]:
    """All scores of a classifier's predictions on one set of sequences, ready for JSON.

    Args:
        probabilities: (n, C), rows sum to 1.
        targets: (n,) class indices.
        labels: C class names.
        groups: (n,) locus (or contig, speaker) of each sequence, resampled as wholes.
        strata: masks (n,) by name, for example windows inside and outside satellites; accuracy is reported for each.
        bins: number of confidence bins for calibration.
        resamples: number of bootstrap draws.
        seed: random seed for the draws.

    Returns:
        `count`, `labels`, `chance` (share of the most frequent class), `accuracy` (value, low, high, groups),
        `mcc` (Matthews' correlation coefficient) and `auroc` (of the second of two classes; of more, the mean of each against
        the rest; None for a single class) likewise, `macro_f1`, `nats` (mean -log p of the true class), `classes` (per label:
        count, predicted,
        precision, recall, f1; null where undefined), `confusion` (rows true, columns predicted), `calibration`
        (`ece` and per bin: low, high, count, confidence, accuracy), `strata`.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    y = np.asarray(targets, dtype=np.int64)
    size = len(labels)
    if p.shape != (len(y), size) or size < 2 or not len(y):
        raise ValueError(f"probabilities {p.shape} do not fit targets {y.shape} and {size} labels")
    if y.min() < 0 or y.max() >= size:
        raise ValueError(f"targets must be in 0..{size - 1}, found {y.min()}..{y.max()}")
    if not np.isfinite(p).all() or np.abs(p.sum(1) - 1).max() > 1e-3:
        raise ValueError("probabilities must be finite, and every row must sum to 1")
    chosen = p.argmax(1)
    right = (chosen == y).astype(np.float64)
    numbers = list(range(size))
    precision, recall, f1, support = precision_recall_fscore_support(y, chosen, labels=numbers, zero_division=np.nan)
    predicted = np.bincount(chosen, minlength=size)
    own = np.arange(len(y)) if groups is None else np.asarray(groups)
    report: dict[str, Any] = {
        "count": len(y),
        "labels": list(labels),
        "chance": float(support.max() / len(y)),
        "accuracy": bootstrap_mean(right, groups, resamples=resamples, seed=seed).to_dict(),
        "mcc": _mcc(chosen, y, size, own).to_dict(),
        "auroc": None if (area := _auroc(p, y, own)) is None else area.to_dict(),
        "macro_f1": float(np.nanmean(f1)),
        "nats": _nats(p, y),
        "classes": {
            label: {
                "count": int(support[i]),
                "predicted": int(predicted[i]),
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
            }
            for i, label in enumerate(labels)
        },
        "confusion": confusion_matrix(y, chosen, labels=numbers).tolist(),
        "calibration": _calibration(p, y, right, bins),
        "strata": {},
    }
    for name, mask in (strata or {}).items():
        inside = np.asarray(mask, dtype=bool)
        if inside.shape != y.shape:
            raise ValueError(f"the mask of stratum {name!r} has shape {inside.shape}, not {y.shape}")
        row: dict[str, Any] = {"count": int(inside.sum()), "accuracy": None}
        if inside.any():
            row["accuracy"] = bootstrap_mean(right[inside], own[inside], resamples=resamples, seed=seed).to_dict()
        report["strata"][name] = row
    return report


def _mcc(chosen: NDArray[np.int64], y: NDArray[np.int64], classes: int, groups: NDArray[Any]) -> Interval:
    score = matthews(chosen, y, classes)
    return interval(float(score(np.ones((1, len(y))))[0]), score, groups, resamples=affordable(len(y)))


def _auroc(p: NDArray[np.float64], y: NDArray[np.int64], groups: NDArray[Any]) -> Interval | None:
    """None where not even two classes are there."""
    there = np.unique(y).tolist()
    if len(there) < 2:
        return None
    scores, targets = torch.from_numpy(p), torch.from_numpy(y)
    if p.shape[1] == 2:
        return interval(float(binary_auroc(scores[:, 1], targets)), auroc(p[:, 1], y == 1), groups)
    each = [float(binary_auroc(scores[:, label], (targets == label).long())) for label in there]
    score = mean_of([auroc(p[:, label], y == label) for label in there])
    # Of hundreds of classes an interval would take longer than everything else.
    resamples = affordable(len(y) * len(there)) if len(there) <= 100 else 0
    return interval(float(np.mean(each)), score, groups, resamples=resamples)


def most_confused(confusion: ArrayLike, limit: int) -> list[tuple[int, int]]:
    """Pairs of classes (a, b), a < b, of which at least one has a sequence; if more than `limit`, the most confused.

    Args:
        confusion: (C, C) counts, rows true, columns predicted.
        limit: largest number of pairs; only if it is exceeded, the most confused come first.
    """
    counts = np.asarray(confusion)
    a, b = np.triu_indices(len(counts), 1)
    there = counts.sum(1) > 0
    some = there[a] | there[b]
    a, b = a[some], b[some]
    if len(a) > limit:
        order = np.argsort(-(counts[a, b] + counts[b, a]), kind="stable")[:limit]
        a, b = a[order], b[order]
    return list(zip(a.tolist(), b.tolist(), strict=True))


def _nats(p: NDArray[np.float64], y: NDArray[np.int64]) -> float:
    """Mean of -log p of the true class; a certain mistake counts as one by the smallest step from 1."""
    least = float(np.finfo(np.float64).eps)
    own = p[np.arange(len(y)), y] / p.sum(1)
    return float(-np.log(np.clip(own, least, 1 - least)).mean())


def _calibration(p: NDArray[Any], y: NDArray[Any], right: NDArray[Any], bins: int) -> dict[str, Any]:
    """Expected calibration error (Guo et al. 2017, equation 3) and the table behind it."""
    confidence = p.max(1)
    error = multiclass_calibration_error(torch.from_numpy(p), torch.from_numpy(y), p.shape[1], n_bins=bins, norm="l1")
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1)
    table = []
    for i in range(bins):
        inside = place == i
        if inside.any():
            table.append(
                {
                    "low": float(edges[i]),
                    "high": float(edges[i + 1]),
                    "count": int(inside.sum()),
                    "confidence": float(confidence[inside].mean()),
                    "accuracy": float(right[inside].mean()),
                }
            )
    return {"ece": float(error), "bins": table}
