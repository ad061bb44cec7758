"""Assigns samples of recordings to train, valid and test."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.spans import Span
from mamba_bio_audio.pipelines.split_names import SPLITS

INTERVALS_NAME, MANIFEST_NAME = "intervals.tsv", "manifest.json"
_COLUMNS = ("file", "split")


def split_by_share(sizes: Mapping[str, int], valid: float, test: float) -> tuple[dict[str, list[Span]], str]:
    """Splits without a list, and how they were made.

    Files are kept whole: in natural order, the first are for training, the next for validation, the last for the test,
    by integer truncation as in SaShiMi. Where that leaves a wanted split empty, each file is cut in time instead.

    Args:
        sizes: samples of each file, by its name, in natural order.
        valid, test: shares of validation and test.
    """
    names, count = list(sizes), len(sizes)
    # The tolerance keeps 0.94 * 50 = 46.99999... at 47.
    edges = [0, int((1 - valid - test) * count + 1e-9), int((1 - test) * count + 1e-9), count]
    wanted = (1 - valid - test > 0, valid > 0, test > 0)
    if all(high > low or not want for low, high, want in zip(edges, edges[1:], wanted, strict=False)):
        spans = {
            split: [Span(name, 0, sizes[name]) for name in names[edges[i] : edges[i + 1]]]
            for i, split in enumerate(SPLITS)
        }
        return spans, "whole files in natural order"
    cut: dict[str, list[Span]] = {split: [] for split in SPLITS}
    for name, size in sizes.items():
        points = [0, int((1 - valid - test) * size + 1e-9), int((1 - test) * size + 1e-9), size]
        for split, low, high in zip(SPLITS, points, points[1:], strict=False):
            if high > low:
                cut[split].append(Span(name, low, high))
    return cut, f"the last parts of each of {count} file{'s' if count > 1 else ''}"


def read_splits(path: str, sizes: Mapping[str, int], rate_hz: int) -> dict[str, list[Span]]:
    """Splits from a TSV with the header file, split and optionally start0, end, rate_hz; other columns are ignored.

    `rate_hz` is the rate at which start0 and end count samples, by default that of the model. A file is named as in the data
    folder, or by its last component where that is unique. `val` is `valid`. Files that are not listed belong to no split.

    Args:
        path: path of the list.
        sizes: samples of each file, by its name.
        rate_hz: sample rate of the model, at which `sizes` and the result count.

    Raises:
        InputError: naming the line, for unknown files and splits, bad numbers, and samples in more than one split.
    """
    last: dict[str, list[str]] = {}
    for name in sizes:
        last.setdefault(os.path.basename(name), []).append(name)
    spans: dict[str, list[Span]] = {split: [] for split in SPLITS}
    # Quotes belong to names.
    rows = csv.DictReader(_text(path), delimiter="\t", quoting=csv.QUOTE_NONE)
    if not set(_COLUMNS) <= set(rows.fieldnames or ()):
        raise InputError(f"{path}: the first line must name the columns file and split, separated by tabs")
    if "rate_hz" not in (rows.fieldnames or ()):
        _refuse_other_rate(path, rate_hz)
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        name, split = row["file"] or "", {"val": "valid"}.get(row["split"] or "", row["split"] or "")
        if split not in SPLITS:
            raise InputError(f"{where}: split must be one of {', '.join(SPLITS)}, not {split!r}")
        alike = [name] if name in sizes else last.get(name, [])
        if len(alike) != 1:
            text = "is not in data.path" if not alike else f"could be {len(alike)} files; give its folder too"
            raise InputError(f"{where}: {name} {text}")
        size = sizes[alike[0]]
        try:
            counted = int(row.get("rate_hz") or rate_hz)
            if counted < 1:
                raise ValueError
            # Rounded up, as the sizes of resampled recordings are.
            start, end = (
                -(-int(row[name]) * rate_hz // counted) if row.get(name) else whole
                for name, whole in (("start0", 0), ("end", size))
            )
        except ValueError:
            raise InputError(f"{where}: start0, end and rate_hz must be whole numbers, and rate_hz above 0") from None
        if not 0 <= start < end <= size:
            raise InputError(f"{where}: samples {start} to {end} do not lie in {name}, which has {size}")
        spans[split].append(Span(alike[0], start, end))
    _refuse_overlaps(path, spans)
    return spans


def _refuse_other_rate(path: str, rate_hz: int) -> None:
    """Of lists that do not say their rate, the manifest does, which `mba prepare` writes beside them."""
    try:
        manifest = json.loads((Path(path).parent / MANIFEST_NAME).read_text(encoding="utf-8"))
        counted = int(manifest["sample_rate_hz"]) if "mamba_bio_audio" in manifest else rate_hz
    except (OSError, ValueError, TypeError, KeyError):
        return
    if counted != rate_hz:
        raise InputError(
            f"{path}: counts samples at {counted:,} Hz, by {MANIFEST_NAME} beside it, but data.sample_rate_hz is {rate_hz:,}; "
            f"set data.sample_rate_hz={counted}, prepare the recordings again, or give the list a column rate_hz of {counted}"
        )


def _text(path: str) -> io.StringIO:
    data = Path(path).read_bytes()
    try:
        # Not `splitlines`, which ends lines at U+2028 and form feeds too.
        return io.StringIO(data.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: not UTF-8 text; save the list as UTF-8") from None


def has_split_columns(path: str) -> bool:
    """Whether a file is a list of splits of recordings."""
    with open(path, encoding="utf-8-sig", errors="replace") as stream:
        # With other separators, too, so that `read_splits` can say what is wrong with them.
        return set(_COLUMNS) <= set(re.findall(r"\w+", stream.readline()))


def _refuse_overlaps(path: str, spans: dict[str, list[Span]]) -> None:
    everything = sorted((span, split) for split, listed in spans.items() for span in listed)
    for (one, split), (other, other_split) in itertools.pairwise(everything):
        if one.record == other.record and other.start < one.end:
            raise InputError(
                f"{path}: samples {other.start} to {min(one.end, other.end)} of {one.record} are listed "
                f"twice, for {split} and for {other_split}"
            )
