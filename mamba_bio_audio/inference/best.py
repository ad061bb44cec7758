"""Keeps the best of several samples, by their own likelihood.

    sum over eighths of |b_i - b|     b_i nats of an eighth of a sample at temperature 1, b what an eighth usually has

A sample goes its own way from the first error on. One that drifted into noise or silence is known by its bits, which leave
what is usual: for samples that are drawn the same way, as `mba evaluate --metrics sampling` measures it, or else for
validation data. The whole does not tell, where one eighth is noise and another silence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Parts of a row whose log-likelihood is also given apart.
PARTS = 8


def stray(along: Sequence[Sequence[float]], length: int, usual: float) -> NDArray[np.float64]:
    """By how many nats per symbol each row strays from what is usual (rows,).

    Args:
        along: log-likelihood of equal parts of every row (rows, parts).
        length: symbols of a row; part p begins at the p-th of so many parts, rounded up.
        usual: nats per symbol.
    """
    parts = np.asarray(along, np.float64)
    ends = -(-np.arange(parts.shape[1] + 1) * length // parts.shape[1])
    return np.asarray(np.abs(-parts - usual * np.diff(ends)).sum(1) / length)


def least(strays: Sequence[float] | NDArray[np.float64], each: int) -> list[int]:
    """Of each `each` rows in turn, the one that strays least; of equals the first."""
    return [min(range(low, low + each), key=strays.__getitem__) for low in range(0, len(strays), each)]


def chances(strays: Sequence[float] | NDArray[np.float64], each: int) -> NDArray[np.float64]:
    """How probably each row is the one that is kept, where it is drawn with `each` - 1 of the others (rows,), sum 1."""
    rows = len(strays)
    found = np.empty(rows)
    found[np.argsort(strays, kind="stable")] = [
        math.comb(rows - 1 - rank, each - 1) / math.comb(rows, each) for rank in range(rows)
    ]
    return found
