"""What a head says along sequences, as files: BED of classes; bigWig and bedGraph of numbers; TSV of either.

    .bed               record, start, end, class, 1000 x its mean probability: stretches of a class that is not the first
    .bw .bedgraph      number of each base or bin; of several tracks OUT.NAME.bw, one file each
    .tsv               record, start, end and a column for each output

A base or bin without a value, because it is of N, has no line in a bedGraph and no value elsewhere.
Coordinates are 0-based, the end is excluded.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import begins_with
from mamba_bio_audio.inference.prediction_table import ours
from mamba_bio_audio.inference.track_files import Bins, write_bedgraph, write_bigwig
from mamba_bio_audio.text import apart, cell, printable

MARK = "#mba predict\n"
TSV = "record\tstart\tend\t"
_BIGWIG = bytes.fromhex("26fc8f88")
_marked = begins_with(MARK, TSV)


class Along(NamedTuple):
    """Values (n, K) of the bases or bins of a record, from its start on."""

    record: str
    values: NDArray[np.float32]


def ours_or_along(path: Path) -> bool:
    """Whether a file is one of predictions, of sequences or along them."""
    with path.open("rb") as file:
        return file.read(4) == _BIGWIG or ours(path) or _marked(path)


def forms(outputs: str) -> dict[str, Callable[..., None]]:
    """Ways to write outputs of a kind, by the suffix of the file."""
    tables: dict[str, Callable[..., None]] = {".tsv": _write_table}
    if outputs == "classes":
        return {".bed": _write_bed} | tables
    return {".bw": _write_numbers, ".bigwig": _write_numbers, ".bedgraph": _write_numbers} | tables


def paths_of(out: Path, outputs: str, names: Sequence[str]) -> list[Path]:
    """The files that predictions go to: `out`, or one for each track beside it.

    Raises:
        InputError: the suffix is none that these outputs are written as, or a name cannot be part of a file's name.
    """
    if out.suffix.lower() not in forms(outputs):
        raise InputError(f"{out}: {outputs} along sequences are written as {', '.join(forms(outputs))}; give --out so")
    if forms(outputs)[out.suffix.lower()] is not _write_numbers or len(names) == 1:
        return [out]
    wrong = next((name for name in names if "/" in name or "\0" in name), None)
    if wrong is not None:
        raise InputError(f"{out}: the track {printable(wrong)!r} cannot be part of a file's name; write .tsv")
    return [out.with_name(f"{out.stem}.{name}{out.suffix}") for name in names]


def write_form(
    path: Path, suffix: str, found: Sequence[Along], lengths: Mapping[str, int], names: Sequence[str], size: int
) -> None:
    """Write one file.

    Args:
        path: file.
        suffix: of the form that is wanted.
        found: the records; for a bigWig in the order of their names.
        lengths: bases of each record.
        names: outputs, in the order of the last axis.
        size: bases per value.
    """
    forms("classes" if suffix == ".bed" else "numbers")[suffix](path, suffix, found, lengths, names, size)


def _write_numbers(
    path: Path,
    suffix: str,
    found: Sequence[Along],
    lengths: Mapping[str, int],
    names: Sequence[str],
    size: int,
) -> None:
    """A number for each bin, of the first output."""

    def bins() -> Iterator[Bins]:
        for record, values in found:
            there = np.flatnonzero(~np.isnan(values[:, 0]))
            starts = there.astype(np.int64) * size
            if len(there):
                yield Bins(
                    record, starts, starts + size, np.ones(len(there), np.int64), values[there, 0].astype(np.float64)
                )

    if suffix == ".bedgraph":
        write_bedgraph(path, bins(), lengths, "base")
        path.write_text(MARK + path.read_text(encoding="utf-8"), encoding="utf-8")
        return
    # The library goes by the suffix.
    named = path.with_name(f"{path.name}.bw")
    try:
        write_bigwig(named, bins(), lengths, "base")
        os.replace(named, path)
    finally:
        named.unlink(missing_ok=True)


def _write_bed(
    path: Path,
    suffix: str,
    found: Sequence[Along],
    lengths: Mapping[str, int],
    names: Sequence[str],
    size: int,
) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(MARK)
        for record, values in found:
            if not len(values):
                continue
            # The first class, none, where there is no value.
            chosen = np.nan_to_num(values, nan=-1.0).argmax(1)
            edges = np.flatnonzero(np.append(True, chosen[1:] != chosen[:-1]))
            for low, high in zip(edges.tolist(), [*edges[1:].tolist(), len(chosen)], strict=True):
                label = int(chosen[low])
                if label:
                    score = round(1000 * float(values[low:high, label].mean()))
                    row = (printable(record), str(low * size), str(high * size), cell(names[label]), str(score))
                    file.write("\t".join(row) + "\n")


def _write_table(
    path: Path,
    suffix: str,
    found: Sequence[Along],
    lengths: Mapping[str, int],
    names: Sequence[str],
    size: int,
) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(TSV + "\t".join(apart([cell(name) for name in names], TSV.split())) + "\n")
        for record, values in found:
            name = cell(record)
            for at, row in enumerate(values.tolist()):
                cells = "\t".join("" if math.isnan(value) else f"{value:.6g}" for value in row)
                file.write(f"{name}\t{at * size}\t{(at + 1) * size}\t{cells}\n")
