"""Labels that are no single class: several labels of a sequence, or numbers, from the label columns of a table.

    multilabel   several columns: 1, 0, or empty where it is not known
                 one column: names separated by `;`, or by `|` or `,` where no cell has it; empty where there is none of them
    regression   a number in every column; empty where it is not known

Not known is also what pandas and R write so: NaN and NA.

What is not known is NaN, and is neither trained on nor measured.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.class_rows import Row

_THERE = {"1": 1.0, "1.0": 1.0, "true": 1.0, "yes": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0, "no": 0.0}
_UNKNOWN = ("", "na", "nan", "<na>")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def values_of(
    rows: Sequence[Row], columns: Sequence[str], task: str, where: str
) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Names of the outputs, and their values (rows, outputs).

    Args:
        rows: with the cells of their label columns.
        columns: names of these columns.
        task: multilabel or regression.
        where: file or folder, for messages.

    Raises:
        InputError: a cell is not what the task needs.
    """
    if task == "multilabel" and len(columns) == 1:
        return _names(rows, where)
    read = _known if task == "multilabel" else _number
    values = np.empty((len(rows), len(columns)), np.float32)
    for at, row in enumerate(rows):
        values[at] = [read(cell, name, row.where) for cell, name in zip(_cells(row, columns), columns, strict=True)]
    empty = np.flatnonzero(np.isnan(values).all(0))
    if len(empty):
        raise InputError(f"{where}: column {columns[empty[0]]!r} has no value at all; leave it out of data.columns")
    return tuple(columns), values


def _cells(row: Row, columns: Sequence[str]) -> tuple[str, ...]:
    cells = (row.label, *row.more)
    if len(cells) != len(columns):
        raise InputError(f"{row.where}: has {len(cells)} labels, but there are {len(columns)} label columns")
    return cells


def _names(rows: Sequence[Row], where: str) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    # A name may have the others in it: `DNA repair, excision`.
    sign = next((sign for sign in ";|" if any(sign in row.label for row in rows)), ",")
    sets = [{name.strip() for name in row.label.split(sign) if name.strip()} for row in rows]
    names = tuple(sorted(set().union(*sets)))
    if not names:
        raise InputError(f"{where}: no sequence has a label; write names separated by ; in the column label")
    number = {name: at for at, name in enumerate(names)}
    values = np.zeros((len(rows), len(names)), np.float32)
    for at, own in enumerate(sets):
        values[at, [number[name] for name in own]] = 1
    return names, values


def _known(cell: str, name: str, where: str) -> float:
    text = cell.strip().lower()
    if text in _UNKNOWN:
        return math.nan
    if text not in _THERE:
        raise InputError(f"{where}: column {name!r}: {cell!r} is neither 1 nor 0; leave it empty where it is not known")
    return _THERE[text]


def _number(cell: str, name: str, where: str) -> float:
    text = cell.strip()
    if text.lower() in _UNKNOWN:
        return math.nan
    # Python would read 1_2, the name of a sample, as 12. A 32-bit number holds it.
    if not _NUMBER.fullmatch(text) or abs(float(text)) > 3e38:
        raise InputError(f"{where}: column {name!r}: {cell!r} is not a number; leave it empty where it is not known")
    return float(text)


def describe_values(names: Sequence[str], values: NDArray[np.float32]) -> dict[str, dict[str, Any]]:
    """Each output in numbers, by name, ready for JSON: how many are known, their mean and standard deviation."""
    found = {}
    for name, column in zip(names, values.T.astype(np.float64), strict=True):
        own = column[~np.isnan(column)]
        found[name] = {
            "known": len(own),
            "mean": float(own.mean()) if len(own) else None,
            "standard_deviation": float(own.std()) if len(own) else None,
        }
    return found


def value_rows(split: str, outputs: Mapping[str, Mapping[str, Any]], task: str) -> list[tuple[str, str]]:
    """`describe_values` of a split for people, at most twelve outputs."""
    shown = list(outputs.items())[:12]
    cells = [
        f"{name} {row['known']:,} known"
        + (
            ""
            if row["mean"] is None
            else f", {row['mean']:.1%} there"
            if task == "multilabel"
            else f", {row['mean']:.4g} +- {row['standard_deviation']:.4g}"
        )
        for name, row in shown
    ]
    more = [] if len(outputs) == len(shown) else [f"and {len(outputs) - len(shown):,} more"]
    return [(f"{split} labels", "; ".join([*cells, *more]))]
