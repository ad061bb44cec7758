"""Windows of one length, and the tiling of spans into them.

A window is a span of at most L + 1 bases: L inputs and, one place later, L targets. An interval [s, e) is cut
at s, s + L, s + 2L, ..., and neighbouring windows share one base, the last target of one and the first input
of the next. So every base of the interval but its first is a target exactly once. The last window of an
interval may be shorter; it is padded later.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.intervals import Interval, Span, merge


@dataclass(frozen=True)
class Windows:
    """Windows as columns, 16 bytes each, so that the 4.4 million of a human genome at L = 1024 take 70 MB.

    Attributes:
        records: names that `record` points into.
        record: int32 (n,).
        start: int64 (n,), 0-based.
        size: int32 (n,), bases in the window, 2 to L + 1.
        length: L.
        back, ahead: int32 (n,), bases by which a window may be moved to the left and to the right when it is read;
            None: it stays.
    """

    records: tuple[str, ...]
    record: NDArray[np.int32]
    start: NDArray[np.int64]
    size: NDArray[np.int32]
    length: int
    back: NDArray[np.int32] | None = None
    ahead: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.start)

    def __iter__(self) -> Iterator[Span]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Span:
        start = int(self.start[index])
        return Span(self.records[self.record[index]], start, start + int(self.size[index]))

    def select(self, keep: NDArray[np.bool_] | NDArray[np.int64]) -> "Windows":
        """The windows at these positions, or where the mask is true."""
        back, ahead = (None if room is None else room[keep] for room in (self.back, self.ahead))
        return Windows(self.records, self.record[keep], self.start[keep], self.size[keep], self.length, back, ahead)

    def fingerprint(self) -> str:
        """SHA-256 of the windows in their order."""
        digest = hashlib.sha256("\n".join(self.records).encode())
        for column in (self.record, self.start, self.size):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    @property
    def targets(self) -> int:
        """Number of targets, unknown bases included."""
        return int(self.size.sum(dtype=np.int64)) - len(self)


@dataclass(frozen=True)
class EvaluationWindows:
    """Windows that score each base of a union of spans once.

    Attributes:
        windows: their targets are exactly the bases of the union that have a base before them.
        bases: bases in the union.
        first_of_record: bases of the union without a predecessor, which cannot be scored.
        unknown: bases that have a predecessor but are not A, C, G or T, which are not scored.
        scored: all the others.
    """

    windows: Windows
    bases: int
    first_of_record: int
    unknown: int

    @property
    def scored(self) -> int:
        """Bases that are scored: bases - first_of_record - unknown."""
        return self.bases - self.first_of_record - self.unknown


def tile(spans: Iterable[Interval | Span], length: int) -> Windows:
    """Cut spans into windows of up to length + 1 bases; a span of one base gives none."""
    if length < 1:
        raise ValueError(f"length is at least 1, not {length}")
    spans = list(spans)
    names = {record: index for index, record in enumerate(dict.fromkeys(span.record for span in spans))}
    begin = np.array([span.start for span in spans], dtype=np.int64)
    end = np.array([span.end for span in spans], dtype=np.int64)
    code = np.array([names[span.record] for span in spans], dtype=np.int32)
    counts = -(-(end - begin - 1) // length)
    first = np.cumsum(counts) - counts
    # Position of each window within its span.
    within = np.arange(counts.sum(), dtype=np.int64) - np.repeat(first, counts)
    start = np.repeat(begin, counts) + within * length
    size = np.minimum(length + 1, np.repeat(end, counts) - start).astype(np.int32)
    return Windows(tuple(names), np.repeat(code, counts), start, size, length)


def evaluation_windows(intervals: Iterable[Interval], genome: Genome, length: int) -> EvaluationWindows:
    """Windows that score each base of the union of intervals once.

    A union span [a, b) with a > 0 is read from a - 1: that base is context only. The base before a target in
    the same window and all earlier ones are its context; nothing is carried from window to window.
    """
    union = merge(intervals)
    first = sum(span.start == 0 for span in union)
    spans = [Span(span.record, max(span.start - 1, 0), span.end) for span in union]
    unknown = sum(int(genome.count_unknown(span.record, max(span.start, 1), span.end)) for span in union)
    return EvaluationWindows(tile(spans, length), sum(span.end - span.start for span in union), first, unknown)


def evenly_spaced(count: int, wanted: int) -> NDArray[np.int64]:
    """`wanted` of the positions 0 .. count - 1, spread evenly; all of them if there are no more."""
    wanted = min(wanted, count)
    return (np.arange(wanted, dtype=np.int64) * 2 + 1) * count // max(2 * wanted, 1)
