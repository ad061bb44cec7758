"""Tracks as files: bigWig, bedGraph and TSV, by the suffix of the file; and the table of totals beside them.

    bigWig, bedGraph   log-likelihood, nats, per symbol or the mean of a bin
    TSV                record, start, end, scored symbols, their summed log-likelihood, bits per symbol

Coordinates are 0-based, the end is excluded. What is missing has no entry.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import Maker
from mamba_bio_audio.inference.tracks import DONE_NAME, STATE_NAME, Plan, blocks, totals
from mamba_bio_audio.pipelines.bed import NamedSpan
from mamba_bio_audio.pipelines.scores import perplexity
from mamba_bio_audio.pipelines.spans import Span
from mamba_bio_audio.text import cell, is_utf8, printable

MAKER = Maker("score", ("settings.json", DONE_NAME, STATE_NAME, "*.f32", "track.*", "totals.tsv"))
TOTALS_COLUMNS = ("record", "start", "end", "name", "strand", "scored", "log_likelihood_nats")


class Bins(NamedTuple):
    """Bins of a record in which something was scored, in order.

    Attributes:
        record: name of the record.
        starts, ends: int64 (n,), symbols [start, end) of each.
        scored: int64 (n,), scored symbols in each, at least 1.
        nats: float64 (n,), sum of their log-likelihoods.
    """

    record: str
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    scored: NDArray[np.int64]
    nats: NDArray[np.float64]


def binned(blocks: Iterable[tuple[str, int, NDArray[np.float32]]], size: int = 1) -> Iterator[Bins]:
    """Sum values over bins of `size` symbols, which begin at multiples of it.

    Args:
        blocks: record, first symbol and values (NaN where missing); none cuts a bin, as with `tracks.blocks(multiple=size)`.
        size: symbols per bin; the first and the last of a region may be shorter.
    """
    for record, start, values in blocks:
        there = np.isfinite(values)
        edges = np.arange(start // size * size, start + len(values), size)
        edges[0] = start
        scored = np.add.reduceat(there, edges - start, dtype=np.int64)
        nats = np.add.reduceat(np.where(there, values, 0), edges - start, dtype=np.float64)
        kept = scored > 0
        ends = np.append(edges[1:], start + len(values))
        yield Bins(record, edges[kept], ends[kept], scored[kept], nats[kept])


def write_bigwig(path: Path, bins: Iterable[Bins], lengths: Mapping[str, int], unit: str) -> None:
    """Write a bigWig of the means.

    Args:
        path: ends in .bw; replaced.
        bins: records in the order of their names.
        lengths: length of each record.
        unit: unit of lengths, singular.

    Raises:
        InputError: a name cannot be written, or nothing was scored.
        OSError: the file was not written as a whole.
    """
    import pybigtools

    wrong = next((name for name in lengths if not is_utf8(name)), None)
    if wrong is not None:
        raise InputError(f"the name {printable(wrong)!r} is not UTF-8, which bigWig needs; write .bedgraph or .tsv")
    failed: list[BaseException] = []
    covered = 0

    def entries() -> Iterator[Iterator[tuple[str, int, int, float]]]:
        # The library prints what is raised in here, and goes on as if nothing had happened.
        nonlocal covered
        try:
            for record, starts, ends, scored, nats in bins:
                covered += int((ends - starts).sum())
                yield zip(
                    repeat(record, len(starts)), starts.tolist(), ends.tolist(), (nats / scored).tolist(), strict=True
                )
        except GeneratorExit:
            raise
        except BaseException as error:
            failed.append(error)

    # Chained outside of Python, which would take as long as the writing.
    entry = chain.from_iterable(entries())
    # Without any, the library says so on its own on standard error.
    first = next(entry, None)
    if failed:
        raise failed[0]
    if first is None:
        raise InputError(f"no {unit} was scored, and a bigWig cannot be empty; write .bedgraph or .tsv")
    entry = chain([first], entry)
    pybigtools.open(str(path), "w").write(dict(lengths), entry)  # type: ignore[no-untyped-call]
    if failed:
        raise failed[0]
    try:
        with pybigtools.open(str(path)) as written:  # type: ignore[no-untyped-call]
            complete = written.info()["summary"]["basesCovered"] == covered
    except pybigtools.BBIReadError:
        complete = False
    if not complete:
        raise OSError(f"{path}: not written as a whole; is the disk full?")


def write_bedgraph(path: Path, bins: Iterable[Bins], lengths: Mapping[str, int], unit: str) -> None:
    """Write a bedGraph of the means, without a header; arguments as for `write_bigwig`, in any order of records."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for record, starts, ends, scored, nats in bins:
            name, rows = printable(record), zip(starts.tolist(), ends.tolist(), (nats / scored).tolist(), strict=True)
            file.write("".join(f"{name}\t{start}\t{end}\t{mean:.7g}\n" for start, end, mean in rows))


def write_table(path: Path, bins: Iterable[Bins], lengths: Mapping[str, int], unit: str) -> None:
    """Write a TSV file with a header; arguments as for `write_bigwig`, in any order of records."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(f"record\tstart\tend\tscored\tlog_likelihood_nats\tbits_per_{unit}\n")
        for record, starts, ends, scored, nats in bins:
            name, bits = cell(record), -nats / scored / math.log(2)
            rows = zip(starts.tolist(), ends.tolist(), scored.tolist(), nats.tolist(), bits.tolist(), strict=True)
            file.write(
                "".join(f"{name}\t{a}\t{b}\t{count}\t{sum_:.7g}\t{bit:.6g}\n" for a, b, count, sum_, bit in rows)
            )


class Format(NamedTuple):
    """A way to write tracks, and the suffix that its files need."""

    suffix: str
    write: Callable[[Path, Iterable[Bins], Mapping[str, int], str], None]


# By the suffix of the output.
FORMATS = {
    ".bw": Format(".bw", write_bigwig),
    ".bigwig": Format(".bw", write_bigwig),
    ".bedgraph": Format(".bedgraph", write_bedgraph),
    ".tsv": Format(".tsv", write_table),
}


def track_format(out: Path) -> Format:
    """The format of an output, by its suffix.

    Raises:
        InputError: there is none of that suffix.
    """
    found = FORMATS.get(out.suffix.lower())
    if found is None:
        raise InputError(f"{out}: tracks are written as {', '.join(FORMATS)}; give --out a name that ends so")
    return found


def write_track(
    path: Path | None,
    folder: Path,
    planned: Plan,
    size: int,
    unit: str,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda symbols: None,
) -> dict[str, Any]:
    """Write the track of what `tracks.score` left in a folder.

    Args:
        path: file, of the suffix of its format; None adds up and writes nothing.
        folder, planned: as for `tracks.score`, all of it finished.
        size: symbols per bin.
        unit: unit of lengths, singular.
        stop: True raises `Stopped`.
        progress: called with the number of scored symbols that were written.

    Returns:
        Number of scored symbols, sum and means of their log-likelihoods, by their names in the result of `mba score`.
    """
    scored, nats = 0, 0.0

    def counted() -> Iterator[Bins]:
        nonlocal scored, nats
        for bins in binned(blocks(folder, planned.strand, areas, size, stop), size):
            scored += int(bins.scored.sum())
            nats += float(bins.nats.sum())
            yield bins
            progress(scored)

    areas = planned.areas
    if path is None:
        deque(counted(), maxlen=0)
    else:
        write = track_format(path).write
        if write is write_bigwig:
            # Its index lists records in the order of their names.
            areas = sorted(areas, key=lambda area: (area.record.encode("utf-8", "replace"), area.start))
        write(path, counted(), planned.lengths, unit)
    found: dict[str, Any] = {"scored": scored, "log_likelihood_nats": nats}
    if scored:
        mean = -nats / scored
        found |= {
            "nats_per_symbol": mean,
            "bits_per_symbol": mean / math.log(2),
            "perplexity": perplexity(mean),
        }
    return found


def write_totals(path: Path, folder: Path, planned: Plan, regions: Sequence[NamedSpan] | None, unit: str) -> None:
    """Write the table of totals: a row per region as given, or per record; arguments as for `write_track`."""
    records = (NamedSpan(Span(name, 0, length), "") for name, length in planned.lengths.items())
    given = list(records) if regions is None else regions
    found = totals(folder, planned, (region.span for region in given))
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(TOTALS_COLUMNS) + f"\tbits_per_{unit}\n")
        for ((record, start, end), name), (scored, nats) in zip(given, found, strict=True):
            bits = f"{-nats / scored / math.log(2):.6g}" if scored else ""
            total = f"{nats:.9g}" if scored else ""
            row = (cell(record), str(start), str(end), cell(name), planned.strand, str(scored), total, bits)
            file.write("\t".join(row) + "\n")
