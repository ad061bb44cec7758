"""Scores of what heads predict, by the kind of their outputs (`models/tasks.py`): labels and numbers.

Classes have a report of their own (`classification.py`). What a correlation tells: whether higher is predicted where higher
is; it does not see a wrong scale, which R2 does. A mean over labels hides that rare ones are worse; every label is given.
What is not known (NaN) is not measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional import pearson_corrcoef, r2_score, spearman_corrcoef
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    binary_f1_score,
)

from mamba_bio_audio.evaluation.resampling import (
    Score,
    affordable,
    auroc,
    average_precision,
    bounds,
    matthews,
    mean_defined,
    pearson,
    r2,
    resampled,
    spearman,
)

Values = NDArray[np.float64]


def labels_report(p: Values, y: Values, names: Sequence[str], groups: NDArray[Any]) -> dict[str, Any]:
    """Scores of the probabilities of labels, ready for JSON.

    Args:
        p, y: (n, K), y 1, 0 or NaN.
        names: of the labels.
        groups: (n,) of the rows, resampled as wholes.

    Returns:
        `count`, `labels`, `mean` (scores over all labels that have them: value, low, high, groups) and `outputs`: for each
        label `known`, `there` and its scores, None where they are undefined.
    """

    def more(p: Values, y: Values) -> dict[str, float | None]:
        if not len(y):
            return {"there": None, "f1": None}
        given, target = torch.from_numpy(p), torch.from_numpy(y.astype(np.int64))
        return {"there": float(y.mean()), "f1": float(binary_f1_score(given, target))}

    return _report(p, y, names, groups, _of_labels, more)


def numbers_report(predicted: Values, y: Values, names: Sequence[str], groups: NDArray[Any]) -> dict[str, Any]:
    """Scores of numbers, ready for JSON; arguments and result as for `labels_report`, y NaN where not known.

    R2 is against the mean of these very rows, so a constant right guess reaches 0.
    """

    def more(x: Values, y: Values) -> dict[str, float | None]:
        if not len(y):
            return {"rmse": None, "mae": None, "standard_deviation": None}
        return {
            "rmse": math.sqrt(float(((x - y) ** 2).mean())),
            "mae": float(np.abs(x - y).mean()),
            "standard_deviation": float(y.std()),
        }

    return _report(predicted, y, names, groups, _of_numbers, more)


def gain(kind: str, model: Values, bar: Values, y: Values, groups: NDArray[Any]) -> dict[str, Any]:
    """Scores of a model minus those of another on the same rows, means over the outputs where both have them.

    Args:
        kind: of the outputs, a key of `REPORTS`.
        model, bar, y, groups: as for `labels_report`.

    Returns:
        For each score its difference: value, low, high, groups.
    """
    scores = _of_numbers if kind == "numbers" else _of_labels
    defined: list[tuple[str, float, Score]] = []
    for at in range(y.shape[1]):
        there = ~np.isnan(y[:, at])
        own, other = (scores(rows[there, at], y[there, at]) for rows in (model, bar))
        for key in own:
            if key in other:
                (value, score), (its, bars) = own[key], other[key]
                defined.append((key, value - its, _of(_minus(score, bars), there)))
    found = resampled([score for *_, score in defined], groups, resamples=affordable(y.size))
    count = len(np.unique(groups))
    result: dict[str, Any] = {}
    for key in dict.fromkeys(key for key, *_ in defined):
        own_rows = [(value, sets) for (name, value, _), sets in zip(defined, found, strict=True) if name == key]
        value = float(np.mean([value for value, _ in own_rows]))
        result[key] = bounds(value, mean_defined([sets for _, sets in own_rows]), count).to_dict()
    return result


def _of_labels(p: Values, y: Values) -> dict[str, tuple[float, Score]]:
    """Scores of one label: their values, and how they are of weighted rows; none where only one value is known."""
    true = y > 0.5
    if true.all() or not true.any():
        return {}
    chosen = p >= 0.5
    given, target = torch.from_numpy(p), torch.from_numpy(true.astype(np.int64))
    mcc = matthews(chosen.astype(np.int64), true.astype(np.int64), 2)
    return {
        "auroc": (float(binary_auroc(given, target)), auroc(p, true)),
        "average_precision": (float(binary_average_precision(given, target)), average_precision(p, true)),
        "mcc": (float(mcc(np.ones((1, len(p))))[0]), mcc),
    }


def _of_numbers(x: Values, y: Values) -> dict[str, tuple[float, Score]]:
    """The same of one number."""
    if len(y) < 2 or np.ptp(y) == 0:
        return {}
    given, target = torch.from_numpy(x), torch.from_numpy(y)
    found = {"r2": (float(r2_score(given, target)), r2(x, y))}
    # A constant has no rank.
    if np.ptp(x) > 0:
        found |= {
            "pearson": (float(pearson_corrcoef(given, target)), pearson(x, y)),
            "spearman": (float(spearman_corrcoef(given, target)), spearman(x, y)),
        }
    return found


def _minus(one: Score, other: Score) -> Score:
    return lambda weights: one(weights) - other(weights)


def _report(
    given: Values,
    y: Values,
    names: Sequence[str],
    groups: NDArray[Any],
    scores: Callable[[Values, Values], Mapping[str, tuple[float, Score]]],
    more: Callable[[Values, Values], Mapping[str, float | None]],
) -> dict[str, Any]:
    if given.shape != y.shape or y.shape != (len(groups), len(names)) or not len(y):
        raise ValueError(f"values {given.shape} and {y.shape} do not fit {len(groups)} groups and {len(names)} names")
    if not np.isfinite(given).all():
        raise ValueError("predicted values must be finite")
    outputs: dict[str, Any] = {}
    # Name of the output and of the score, its value, and how it is of weighted rows.
    defined: list[tuple[str, str, float, Score]] = []
    for at, name in enumerate(names):
        there = ~np.isnan(y[:, at])
        x, true = given[there, at], y[there, at]
        outputs[name] = {"known": int(there.sum()), **more(x, true)}
        defined += [(name, key, value, _of(score, there)) for key, (value, score) in scores(x, true).items()]
    found = resampled([score for *_, score in defined], groups, resamples=affordable(y.size))
    count = len(np.unique(groups))
    mean: dict[str, Any] = {}
    for key in dict.fromkeys(key for _, key, *_ in defined):
        own = [(row[2], sets) for row, sets in zip(defined, found, strict=True) if row[1] == key]
        value = float(np.mean([value for value, _ in own]))
        mean[key] = bounds(value, mean_defined([sets for _, sets in own]), count).to_dict()
    for (name, key, value, _), sets in zip(defined, found, strict=True):
        outputs[name][key] = bounds(value, sets, count).to_dict()
    return {"count": len(y), "labels": list(names), "mean": mean, "outputs": outputs}


def _of(score: Score, there: NDArray[np.bool_]) -> Score:
    """A score of some of the rows, as one of all."""
    return score if there.all() else lambda weights: score(weights[:, there])


# By the kind of outputs.
REPORTS: dict[str, Callable[[Values, Values, Sequence[str], NDArray[Any]], dict[str, Any]]] = {
    # Of bases, each class against the rest, because most bases are of one class; y is 1 for the class of a base, 0 elsewhere.
    "classes": labels_report,
    "labels": labels_report,
    "numbers": numbers_report,
}
