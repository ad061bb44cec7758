"""Finds the evaluation windows that lie in satellites, or in other regions that a table lists.

Satellite arrays and subterminal heterochromatin mark a species trivially in complete assemblies, so accuracy over all
windows flatters; it is also given inside and outside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.coverage import Coverage
from mamba_bio_audio.pipelines.dna.class_rows import numbered_lines
from mamba_bio_audio.pipelines.dna.labelled import Labelled
from mamba_bio_audio.pipelines.spans import Region, Span

COLUMNS = ("class", "record", "start0", "end")


def shares_inside(labelled: Labelled, windows: Sequence[Region], path: str) -> NDArray[np.float64]:
    """Share of each window's bases in the regions of a table, (n,).

    Args:
        labelled: what the windows belong to.
        windows: whose shares are wanted.
        path: TSV with the header class, record, start0, end; regions may overlap.
    """
    spans: list[Span] = []
    lines = list(numbered_lines(Path(path).expanduser()))
    header = lines[0][1].split("\t") if lines else []
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise InputError(f"{path}: the header lacks {', '.join(missing)}; it must name {', '.join(COLUMNS)}")
    for number, line in lines[1:]:
        row = dict(zip(header, (field.strip() for field in line.split("\t")), strict=False))
        start, end = row.get("start0", ""), row.get("end", "")
        if not (start.isdecimal() and end.isdecimal() and int(start) < int(end)):
            raise InputError(f"{path}: line {number:,}: start0 and end must be whole numbers with start0 < end")
        spans.append(Span(f"{row['class']}\t{row['record']}", int(start), int(end)))
    coverage, records = Coverage(spans), {span.record for span in spans}
    shares = np.zeros(len(windows))
    known = False
    for i, window in enumerate(windows):
        bare = labelled.genomes[window.source].bare_name(window.record) if labelled.genomes else window.record
        name = labelled.classes[window.label]
        key = f"{name}\t{bare}"
        known = known or key in records
        shares[i] = coverage.count(key, window.start, window.end) / len(window)
    if windows and not known:
        first, _, record = (spans[0].record if spans else "none\tnone").partition("\t")
        raise InputError(
            f"{path}: no window lies on a record of the table (its first is {record!r} of class {first!r}, the data has "
            f"{bare!r} of {name!r}); use the names of classes and records of the data"
        )
    return shares
