"""Which samples of which file belong to train, valid and test."""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio.files import AudioFile

SPLITS = ("train", "valid", "test")
INTERVALS_NAME = "intervals.tsv"
_COLUMNS = ("file", "split")


class Span(NamedTuple):
    """Samples [start, stop) of file number `file`, at the model's rate."""

    file: int
    start: int
    stop: int


def split_by_share(sizes: Sequence[int], valid: float, test: float) -> tuple[dict[str, list[Span]], str]:
    """Splits without a list, and how they were made.

    Files are kept whole: in natural order, the first are for training, the next for validation, the last for the test,
    by integer truncation as in SaShiMi. Where that leaves a wanted split empty, each file is cut in time instead.
    """
    count = len(sizes)
    # The tolerance keeps 0.94 * 50 = 46.99999... at 47.
    edges = [0, int((1 - valid - test) * count + 1e-9), int((1 - test) * count + 1e-9), count]
    wanted = (1 - valid - test > 0, valid > 0, test > 0)
    if all(high > low or not want for low, high, want in zip(edges, edges[1:], wanted, strict=False)):
        spans = {
            split: [Span(file, 0, sizes[file]) for file in range(edges[i], edges[i + 1])]
            for i, split in enumerate(SPLITS)
        }
        return spans, "whole files in natural order"
    cut: dict[str, list[Span]] = {split: [] for split in SPLITS}
    for file, size in enumerate(sizes):
        points = [0, int((1 - valid - test) * size + 1e-9), int((1 - test) * size + 1e-9), size]
        for split, low, high in zip(SPLITS, points, points[1:], strict=False):
            if high > low:
                cut[split].append(Span(file, low, high))
    return cut, f"the last parts of each of {count} file{'s' if count > 1 else ''}"


def read_splits(path: str, files: Sequence[AudioFile], sizes: Sequence[int]) -> dict[str, list[Span]]:
    """Splits from a TSV with the header file, split and optionally start0, end; other columns are ignored.

    A file is named as in the data folder, or by its last component where that is unique. `val` is `valid`. Files that
    are not listed belong to no split.

    Raises:
        InputError: naming the line, for unknown files and splits, bad numbers, and samples in more than one split.
    """
    names = {file.name: number for number, file in enumerate(files)}
    last: dict[str, list[int]] = {}
    for number, file in enumerate(files):
        last.setdefault(os.path.basename(file.name), []).append(number)
    spans: dict[str, list[Span]] = {split: [] for split in SPLITS}
    # Quotes belong to names.
    rows = csv.DictReader(_text(path), delimiter="\t", quoting=csv.QUOTE_NONE)
    if not set(_COLUMNS) <= set(rows.fieldnames or ()):
        raise InputError(f"{path}: the first line must name the columns file and split, separated by tabs.")
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        name, split = row["file"] or "", {"val": "valid"}.get(row["split"] or "", row["split"] or "")
        if split not in SPLITS:
            raise InputError(f"{where}: split is one of {', '.join(SPLITS)}, not {split!r}.")
        alike = [names[name]] if name in names else last.get(name, [])
        if len(alike) != 1:
            text = "is not in data.path" if not alike else f"could be {len(alike)} files; give its folder too"
            raise InputError(f"{where}: {name} {text}.")
        size = sizes[alike[0]]
        try:
            start, stop = int(row.get("start0") or 0), int(row.get("end") or size)
        except ValueError:
            raise InputError(f"{where}: start0 and end are whole numbers of samples.") from None
        if not 0 <= start < stop <= size:
            raise InputError(f"{where}: samples {start} to {stop} do not lie in {name}, which has {size}.")
        spans[split].append(Span(alike[0], start, stop))
    _refuse_overlaps(path, spans, files)
    return spans


def _text(path: str) -> io.StringIO:
    data = Path(path).read_bytes()
    try:
        # Not `splitlines`, which ends lines at U+2028 and form feeds too.
        return io.StringIO(data.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: not UTF-8 text; save the list as UTF-8.") from None


def has_split_columns(path: str) -> bool:
    """Is this a list of splits of recordings?"""
    with open(path, encoding="utf-8-sig", errors="replace") as stream:
        return set(_COLUMNS) <= set(stream.readline().rstrip("\r\n").split("\t"))


def _refuse_overlaps(path: str, spans: dict[str, list[Span]], files: Sequence[AudioFile]) -> None:
    everything = sorted((span, split) for split, listed in spans.items() for span in listed)
    for (one, split), (other, other_split) in itertools.pairwise(everything):
        if one.file == other.file and other.start < one.stop:
            raise InputError(
                f"{path}: samples {other.start} to {min(one.stop, other.stop)} of {files[one.file].name} are listed "
                f"twice, for {split} and for {other_split}."
            )
