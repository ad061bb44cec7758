"""Intervals of scores: percentiles over resampled groups (cluster bootstrap).

For a score that is no mean, every resampled set of groups is a weight for each row; the score is given as a function of
weights, for many sets at once, and with all weights 1 it is the score itself. What an interval tells, and when it
misleads, is said in `classification.py`.

Legend: R sets, n rows, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

CONFIDENCE = 0.95
# Draws for means, which are cheap, and for other scores.
MEANS, RESAMPLES = 2000, 1000
# Most weights that exist at once.
_WEIGHTS = 1 << 23
# A sum of squares that is this much smaller than what it is the difference of is rounding, and the rows are all alike.
_ROUNDING = 1e-10
Rows = NDArray[np.float64]
# (R, n) weights -> (R,) scores.
Score = Callable[[Rows], Rows]


class Interval(NamedTuple):
    """A mean with its bootstrap interval; the bounds are NaN with fewer than two groups."""

    value: float
    low: float
    high: float
    groups: int

    def to_dict(self) -> dict[str, Any]:
        """The interval as plain numbers for JSON."""
        return self._asdict()


def bootstrap_mean(
    values: ArrayLike,
    groups: Sequence[Any] | NDArray[Any] | None = None,
    *,
    resamples: int = MEANS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Mean of values with a percentile interval over resampled groups (cluster bootstrap).

    With 0 for wrong and 1 for right it is an accuracy. With the differences between two models it is a paired comparison:
    the interval excludes 0 if one is better beyond chance.

    Args:
        values: (n,), one per sequence.
        groups: (n,) names; sequences of one group stay together. None: every sequence is its own group.
        resamples: number of bootstrap draws.
        confidence: share of the draws inside the interval.
        seed: random seed for the draws.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"a mean needs values of shape (n,) with n >= 1, not {values.shape}")
    if groups is None:
        index = np.arange(len(values))
    else:
        if len(groups) != len(values):
            raise ValueError(f"{len(values)} values but {len(groups)} group names")
        index = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    sums, sizes = np.bincount(index, values), np.bincount(index).astype(np.float64)
    count = len(sums)
    mean = float(values.mean())
    if count < 2:
        return Interval(mean, float("nan"), float("nan"), count)
    # Groups of equal size and sum are exchangeable, so it suffices to draw how many of each kind there are: with only
    # right and wrong there are a handful of kinds, however many groups.
    (sums, sizes), alike = np.unique(np.stack([sums, sizes]), axis=1, return_counts=True)
    random = np.random.default_rng(seed)
    means = np.empty(resamples)
    # A limited number of draws at a time: (draws, kinds) could take gigabytes.
    step = max(1, (1 << 22) // len(alike))
    for at in range(0, resamples, step):
        draws = random.multinomial(count, alike / count, size=min(step, resamples - at))
        means[at : at + step] = (draws @ sums) / (draws @ sizes)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean, float(low), float(high), count)


def affordable(size: int) -> int:
    """Resamples for which a score of so many numbers takes seconds; none where a hundred would take minutes."""
    count = min(RESAMPLES, max(100, (1 << 22) // size))
    return count if count * size <= 1 << 28 else 0


def interval(
    value: float, score: Score, groups: Sequence[Any] | NDArray[Any], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """A score with a percentile interval over resampled groups; no bounds from one group, or where the score is undefined.

    Args:
        value: the score of all rows.
        score: of weighted rows.
        groups: (n,) names; rows of one group stay together.
        resamples: number of sets.
        seed: random seed of the draws.
    """
    (found,) = resampled([score], groups, resamples=resamples, seed=seed)
    return bounds(value, found, len(np.unique(np.asarray(groups))))


def resampled(
    scores: Sequence[Score], groups: Sequence[Any] | NDArray[Any], *, resamples: int = RESAMPLES, seed: int = 0
) -> list[Rows]:
    """Several scores (R,) of the same resampled sets; R is 0 where there is only one group."""
    index = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    count = int(index.max()) + 1
    random = np.random.default_rng(seed)
    step = max(1, _WEIGHTS // len(index))
    found: list[list[Rows]] = [[np.empty(0)] for _ in scores]
    for at in range(0, resamples if count > 1 else 0, step):
        draws = random.multinomial(count, np.full(count, 1 / count), size=min(step, resamples - at))
        weights = draws[:, index].astype(np.float64)
        for own, score in zip(found, scores, strict=True):
            own.append(score(weights))
    return [np.concatenate(own) for own in found]


def bounds(value: float, resamples: Rows, groups: int) -> Interval:
    """The percentile interval of a score from what it is of resampled sets, without those where it is undefined."""
    there = resamples[~np.isnan(resamples)]
    if not len(there) or np.isnan(value):
        return Interval(value, float("nan"), float("nan"), groups)
    low, high = np.quantile(there, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value, float(low), float(high), groups)


def matthews(chosen: NDArray[np.int64], y: NDArray[np.int64], classes: int) -> Score:
    """Matthews' correlation coefficient of chosen and true classes (n,); 0 where only one class is chosen, or there."""

    def score(weights: Rows) -> Rows:
        right = weights @ (chosen == y).astype(np.float64)
        total = weights.sum(1)
        # Totals of each class, as it is chosen and as it is.
        said, true = (np.stack([np.bincount(rows, row, classes) for row in weights]) for rows in (chosen, y))
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = (total**2 - (said**2).sum(1)) * (total**2 - (true**2).sum(1))
            return np.where(spread > 0, (right * total - (said * true).sum(1)) / np.sqrt(spread), 0.0)

    return score


def auroc(scores: ArrayLike, y: NDArray[np.bool_]) -> Score:
    """Probability that a positive row scores higher than a negative one; ties count half."""
    order, starts, positive = _ranked(scores, y)

    def score(weights: Rows) -> Rows:
        there, absent = _by_score(weights, order, starts, positive)
        below = absent.cumsum(1) - absent
        with np.errstate(invalid="ignore", divide="ignore"):
            return (there * (below + absent / 2)).sum(1) / (there.sum(1) * absent.sum(1))

    return score


def average_precision(scores: ArrayLike, y: NDArray[np.bool_]) -> Score:
    """Area under precision against recall, as a step function."""
    order, starts, positive = _ranked(-np.asarray(scores, dtype=np.float64), y)

    def score(weights: Rows) -> Rows:
        there, absent = _by_score(weights, order, starts, positive)
        found, said = there.cumsum(1), (there + absent).cumsum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(said > 0, found / said, 0.0)
            return (there * precision).sum(1) / there.sum(1)

    return score


def _ranked(scores: ArrayLike, y: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], Rows]:
    """Rows in the order of their scores, where each distinct score begins, and which of them are positive."""
    values = np.asarray(scores, dtype=np.float64)
    order = values.argsort(kind="stable")
    ranked = values[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    return order, starts, y[order].astype(np.float64)


def _by_score(weights: Rows, order: NDArray[np.int64], starts: NDArray[np.int64], positive: Rows) -> tuple[Rows, Rows]:
    """Weight of positive and of negative rows at each distinct score, (R, scores)."""
    own = weights[:, order]
    return np.add.reduceat(own * positive, starts, 1), np.add.reduceat(own * (1 - positive), starts, 1)


def pearson(x: Rows, y: Rows) -> Score:
    """Correlation of two columns (n,)."""
    x, y = x - x.mean(), y - y.mean()
    columns = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], 1)

    def score(weights: Rows) -> Rows:
        n, sx, sy, sxx, syy, sxy = (weights @ columns).T
        spreads = [_spread(n, *sums) for sums in ((sx, sxx), (sy, syy))]
        with np.errstate(invalid="ignore"):
            return (n * sxy - sx * sy) / np.sqrt(spreads[0] * spreads[1])

    return score


def spearman(x: Rows, y: Rows) -> Score:
    """Correlation of the ranks among all rows."""
    return pearson(rankdata(x), rankdata(y))


def r2(predicted: Rows, y: Rows) -> Score:
    """1 - squared error / squared distance from the mean."""
    centred = y - y.mean()
    columns = np.stack([np.ones_like(y), centred, centred**2, (predicted - y) ** 2], 1)

    def score(weights: Rows) -> Rows:
        n, sums, squares, errors = (weights @ columns).T
        return 1 - n * errors / _spread(n, sums, squares)

    return score


def _spread(n: Rows, sums: Rows, squares: Rows) -> Rows:
    """n times the squared distance from the mean; NaN where all numbers are the same."""
    spread = n * squares - sums**2
    return np.where(spread > _ROUNDING * n * squares, spread, np.nan)


def mean_of(scores: Sequence[Score]) -> Score:
    """Mean of several scores of the same rows; those that are undefined are left out."""
    return lambda weights: mean_defined([one(weights) for one in scores])


def mean_defined(found: Sequence[Rows]) -> Rows:
    """Mean (R,) of several scores (R,) each, without those that are undefined."""
    stacked = np.stack(found)
    there = ~np.isnan(stacked)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Rows = np.where(there, stacked, 0.0).sum(0) / there.sum(0)
    return mean
