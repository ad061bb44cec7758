"""Scores on a task of a benchmark, and whether two models differ there.

Two models are compared on the same test sequences: the difference of their areas under the ROC curve, each the mean over
its seeds, with an interval over resampled sequences (paired bootstrap; sequences that are nearly equal are drawn together).
They are called separated where that interval leaves out zero and the difference is at least `LEAST`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import matthews_corrcoef, recall_score

from mamba_bio_audio.evaluation.resampling import RESAMPLES, Interval, Score, auroc, interval, mean_of

# Differences of the area under the ROC curve below this are not called differences.
LEAST = 0.02
Probabilities = NDArray[np.float64]  # (n, K)


def test_scores(p: Probabilities, y: NDArray[np.int64]) -> dict[str, Any]:
    """Count, MCC, area under the ROC curve (the mean over classes of one against the rest), plain and balanced accuracy.

    The area is None where a class is missing.
    """
    chosen = p.argmax(1)
    complete = len(np.unique(y)) == p.shape[1]
    return {
        "count": len(y),
        "mcc": float(matthews_corrcoef(y, chosen)),
        "auroc": float(area(p, y)(np.ones((1, len(y))))[0]) if complete else None,
        "accuracy": float((chosen == y).mean()),
        "balanced_accuracy": float(recall_score(y, chosen, labels=np.unique(y), average="macro")),
    }


def area(p: Probabilities, y: NDArray[np.int64]) -> Score:
    """Area under the ROC curve of weighted rows: of several classes the mean of one against the rest."""
    labels = (1,) if p.shape[1] == 2 else range(p.shape[1])
    return mean_of([auroc(p[:, label], y == label) for label in labels])


def gain(
    ours: Sequence[Probabilities],
    bar: Sequence[Probabilities],
    y: NDArray[np.int64],
    groups: NDArray[np.int64],
    resamples: int = RESAMPLES,
) -> Interval:
    """Area under the ROC curve of `ours` minus that of `bar`, each the mean over its seeds.

    Args:
        ours, bar: (n, K) of each seed.
        y: (n,) classes.
        groups: (n,) sequences of one group are drawn together.
        resamples: bootstrap draws.
    """
    parts = [(area(p, y), 1 / len(ours)) for p in ours] + [(area(p, y), -1 / len(bar)) for p in bar]

    def difference(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sum([share * score(weights) for score, share in parts], axis=0)

    value = float(difference(np.ones((1, len(y))))[0])
    return interval(value, difference, groups, resamples=resamples)


def verdict(difference: Interval) -> str:
    """`better`, `worse`, or `not separated`."""
    if abs(difference.value) < LEAST or not (difference.low > 0 or difference.high < 0):
        return "not separated"
    return "better" if difference.value > 0 else "worse"
