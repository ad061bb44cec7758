"""Scores on a task of a benchmark, and whether two models differ there.

Two models are compared on the same test sequences: the difference of their areas under the ROC curve, each the mean over
its seeds, with an interval over resampled sequences (paired bootstrap; sequences that are nearly equal are drawn together).
They are called separated where that interval leaves out zero and the difference is at least `LEAST`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import matthews_corrcoef, recall_score

from mamba_bio_audio.evaluation.resampling import CONFIDENCE, Interval

# Differences of the area under the ROC curve below this are not called differences.
LEAST = 0.02
RESAMPLES = 1000
Probabilities = NDArray[np.float64]  # (n, K)


def test_scores(p: Probabilities, y: NDArray[np.int64]) -> dict[str, Any]:
    """Count, MCC, area under the ROC curve (the mean over classes of one against the rest), plain and balanced accuracy.

    The area is None where a class is missing.
    """
    chosen = p.argmax(1)
    area = Ranks(p, y).area(np.ones(len(y)))
    return {
        "count": len(y),
        "mcc": float(matthews_corrcoef(y, chosen)),
        "auroc": area if np.isfinite(area) else None,
        "accuracy": float((chosen == y).mean()),
        "balanced_accuracy": float(recall_score(y, chosen, labels=np.unique(y), average="macro")),
    }


class _Order(NamedTuple):
    order: NDArray[np.int64]  # rows by rising score
    starts: NDArray[np.int64]  # where equal scores begin in it
    positive: NDArray[np.float64]  # 1 for rows of the class, in that order


class Ranks:
    """Rows in the order of their scores, from which the area under the ROC curve follows for any weights.

    Args:
        p: (n, K) probabilities.
        y: (n,) classes.
    """

    def __init__(self, p: Probabilities, y: NDArray[np.int64]) -> None:
        self._orders = []
        for label in (1,) if p.shape[1] == 2 else range(p.shape[1]):
            order = np.argsort(p[:, label], kind="stable")
            scores = p[order, label]
            starts = np.flatnonzero(np.concatenate([[True], scores[1:] != scores[:-1]]))
            self._orders.append(_Order(order, starts, (y[order] == label).astype(np.float64)))

    def area(self, weights: NDArray[np.float64]) -> float:
        """Share of pairs of a row of the class and another one that are in order, ties half; NaN where there are none."""
        areas = []
        for order, starts, positive in self._orders:
            own = weights[order]
            inside = np.add.reduceat(own * positive, starts)
            outside = np.add.reduceat(own * (1 - positive), starts)
            below = np.cumsum(outside) - outside / 2
            pairs = inside.sum() * outside.sum()
            areas.append(float((inside * below).sum() / pairs) if pairs > 0 else float("nan"))
        return float(np.mean(areas))


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
    seeds = [(Ranks(p, y), 1 / len(ours)) for p in ours] + [(Ranks(p, y), -1 / len(bar)) for p in bar]
    index = np.unique(groups, return_inverse=True)[1].reshape(-1)
    count = int(index.max()) + 1

    def difference(weights: NDArray[np.float64]) -> float:
        return float(sum(share * ranks.area(weights) for ranks, share in seeds))

    random = np.random.default_rng(0)
    draws = [
        difference(random.multinomial(count, np.full(count, 1 / count))[index].astype(np.float64))
        for _ in range(resamples)
    ]
    whole = [draw for draw in draws if np.isfinite(draw)]
    value = difference(np.ones(len(y)))
    if count < 2 or not whole:
        return Interval(value, float("nan"), float("nan"), count)
    low, high = np.quantile(whole, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value, float(low), float(high), count)


def verdict(difference: Interval) -> str:
    """`better`, `worse`, or `not separated`."""
    if abs(difference.value) < LEAST or not (difference.low > 0 or difference.high < 0):
        return "not separated"
    return "better" if difference.value > 0 else "worse"
