"""Which evaluation windows lie in satellites, or in any other regions of a table.

Satellite arrays and subterminal heterochromatin mark a species trivially in complete assemblies, so accuracy over all
windows flatters; it is told inside and outside them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.class_rows import numbered_lines
from mamba_bio_audio.pipelines.dna.class_windows import ClassWindow
from mamba_bio_audio.pipelines.dna.labelled import Labelled

COLUMNS = ("class", "record", "start0", "end")


def shares_inside(labelled: Labelled, windows: Sequence[ClassWindow], path: str) -> NDArray[np.float64]:
    """Share of each window's bases in the regions of a table, (n,).

    Args:
        labelled: what the windows are of.
        windows: any.
        path: TSV with the header class, record, start0, end; regions may overlap.
    """
    spans: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    lines = list(numbered_lines(Path(path).expanduser()))
    header = lines[0][1].split("\t") if lines else []
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise InputError(f"{path}: the header lacks {', '.join(missing)}; it must name {', '.join(COLUMNS)}")
    for number, line in lines[1:]:
        row = dict(zip(header, (field.strip() for field in line.split("\t")), strict=False))
        start, end = row.get("start0", ""), row.get("end", "")
        if not (start.isdecimal() and end.isdecimal() and int(start) < int(end)):
            raise InputError(f"{path}: line {number:,}: start0 and end must be whole numbers, the first one smaller")
        spans[row["class"], row["record"]].append((int(start), int(end)))
    merged = {key: _merge(found) for key, found in spans.items()}
    shares = np.zeros(len(windows))
    known = False
    for i, window in enumerate(windows):
        region = window.region
        bare = labelled.genomes[region.source].bare_name(region.record) if labelled.genomes else region.record
        key = (labelled.classes[region.label], bare)
        known = known or key in merged
        inside = sum(max(0, min(end, window.end) - max(start, window.start)) for start, end in merged.get(key, ()))
        shares[i] = inside / (window.end - window.start)
    if windows and not known:
        name, record = next(iter(merged), ("none", "none"))
        raise InputError(
            f"{path}: no window lies on a record of the table (its first is {record!r} of class {name!r}, the data has "
            f"{key[1]!r} of {key[0]!r}); classes and records must have the names of the data"
        )
    return shares


def _merge(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
