"""Windows of one length as columns, and the tiling of spans into them.

A span [s, e) is cut at s, s + L, s + 2L, ... Where a model predicts the next symbol of what it reads, a window reads L + 1
symbols, L inputs and one place later L targets, and neighbouring windows share one symbol: the last target of one and the
first input of the next. So every symbol of the span but its first is a target exactly once. Where the input before the first
target is not read but known (audio: the zero level), a window reads L symbols and neighbours share none. The last window of
a span may be shorter; it is padded later.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.pipelines.spans import Region, Span, size_of


@dataclass(frozen=True)
class Windows:
    """Windows as columns, 16 bytes each, so that the 4.4 million of a human genome at L = 1024 take 70 MB.

    Attributes:
        records: names that `record` points into.
        record: int32 (n,).
        start: int64 (n,), 0-based.
        size: int32 (n,), symbols in the window, at most L + `shared`.
        length: L.
        back, ahead: int32 (n,), symbols by which a window may be moved to the left and to the right when it is read;
            None: it stays.
        shared: symbols that neighbouring windows of a span share.
    """

    records: tuple[str, ...]
    record: NDArray[np.int32]
    start: NDArray[np.int64]
    size: NDArray[np.int32]
    length: int
    back: NDArray[np.int32] | None = None
    ahead: NDArray[np.int32] | None = None
    shared: int = 1

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
        return replace(
            self, record=self.record[keep], start=self.start[keep], size=self.size[keep], back=back, ahead=ahead
        )

    def fingerprint(self) -> str:
        """SHA-256 of the windows in their order."""
        digest = hashlib.sha256("\n".join(self.records).encode())
        for column in (self.record, self.start, self.size):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    @property
    def targets(self) -> int:
        """Number of targets, unknown symbols included."""
        return int(self.size.sum(dtype=np.int64)) - self.shared * len(self)


@dataclass(frozen=True)
class EvaluationWindows:
    """Windows that score each symbol of a split once.

    Attributes:
        windows: the windows, in order.
        symbols: number of symbols in the split.
        first_of_record: of these, symbols that nothing precedes, which cannot be scored.
        unknown: others that are not scored because they are unknown (bases other than A, C, G, T).
        scored: all the others.
    """

    windows: Windows | list[Region] | list[Span]
    symbols: int
    first_of_record: int = 0
    unknown: int = 0

    @property
    def scored(self) -> int:
        """Symbols that are scored: symbols - first_of_record - unknown."""
        return self.symbols - self.first_of_record - self.unknown


def evaluation_windows(
    spans: Sequence[Span], length: int, *, shared: int = 1, unknown: Callable[[Span], int] = lambda span: 0
) -> EvaluationWindows:
    """Windows that score each symbol of disjoint spans once.

    Args:
        spans: spans, in order.
        length: L.
        shared: as for `tile`. With 1, a span [a, b) with a > 0 is read from a - 1: that symbol is context only. The symbols
            before a target in its window are its context; nothing is carried from window to window.
        unknown: number of symbols in a span that are not scored.
    """
    if not shared:
        return EvaluationWindows(tile(spans, length, shared=0), size_of(spans), 0, sum(map(unknown, spans)))
    wider = [Span(span.record, max(span.start - 1, 0), span.end) for span in spans]
    return EvaluationWindows(
        tile(wider, length),
        size_of(spans),
        sum(span.start == 0 for span in spans),
        sum(int(unknown(Span(span.record, max(span.start, 1), span.end))) for span in spans),
    )


def tile(spans: Iterable[Span], length: int, *, shared: int = 1) -> Windows:
    """Cut spans into windows of up to length + shared symbols; a span of `shared` symbols gives none."""
    if length < 1:
        raise ValueError(f"length is at least 1, not {length}")
    spans = list(spans)
    names = {record: index for index, record in enumerate(dict.fromkeys(span.record for span in spans))}
    begin = np.array([span.start for span in spans], dtype=np.int64)
    end = np.array([span.end for span in spans], dtype=np.int64)
    code = np.array([names[span.record] for span in spans], dtype=np.int32)
    counts = -(-(end - begin - shared) // length)
    first = np.cumsum(counts) - counts
    # Position of each window within its span.
    within = np.arange(counts.sum(), dtype=np.int64) - np.repeat(first, counts)
    start = np.repeat(begin, counts) + within * length
    size = np.minimum(length + shared, np.repeat(end, counts) - start).astype(np.int32)
    return Windows(tuple(names), np.repeat(code, counts), start, size, length, shared=shared)


def with_room(spans: Sequence[Span], length: int, *, shared: int = 1) -> Windows:
    """Tiles that may be moved by up to half a window within their span; the last one is whole if possible."""
    windows = tile(spans, length, shared=shared)
    counts = [-(-(span.end - span.start - shared) // length) for span in spans]
    begin = np.repeat(np.array([span.start for span in spans], dtype=np.int64), counts)
    end = np.repeat(np.array([span.end for span in spans], dtype=np.int64), counts)
    start = np.maximum(begin, np.minimum(windows.start, end - (length + shared)))
    size = np.minimum(length + shared, end - start)
    back = np.minimum(start - begin, length // 2).astype(np.int32)
    ahead = np.minimum(end - start - size, length // 2).astype(np.int32)
    return replace(windows, start=start, size=size.astype(np.int32), back=back, ahead=ahead)


def move(windows: Windows, index: int, draws: np.random.Generator) -> Span:
    """A window of `with_room`, moved at random."""
    assert windows.back is not None
    assert windows.ahead is not None
    span = windows[index]
    shift = int(draws.integers(-int(windows.back[index]), int(windows.ahead[index]), endpoint=True))
    return Span(span.record, span.start + shift, span.end + shift)


def rows_by_record(windows: Windows) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Each record with the positions of its windows."""
    # Windows of a record mostly stand together, and a stable sort of what is nearly sorted is quick.
    order = np.argsort(windows.record, kind="stable")
    edges = np.searchsorted(windows.record[order], np.arange(len(windows.records) + 1))
    for at in np.flatnonzero(np.diff(edges)).tolist():
        yield windows.records[at], order[edges[at] : edges[at + 1]]


def union_of(windows: Windows) -> list[Span]:
    """`merge` for windows as columns, of which there may be millions: disjoint spans, sorted within each record."""
    spans: list[Span] = []
    for record, rows in rows_by_record(windows):
        order = rows[np.argsort(windows.start[rows], kind="stable")]
        start = windows.start[order]
        reach = np.maximum.accumulate(start + windows.size[order])
        first = np.concatenate([[0], np.flatnonzero(start[1:] > reach[:-1]) + 1])
        last = np.append(first[1:], len(order)) - 1
        spans += [Span(record, a, b) for a, b in zip(start[first].tolist(), reach[last].tolist(), strict=True)]
    return spans


def evenly_spaced(count: int, wanted: int) -> NDArray[np.int64]:
    """`wanted` of the positions 0 .. count - 1, spread evenly; all of them if there are no more."""
    wanted = min(wanted, count)
    return (np.arange(wanted, dtype=np.int64) * 2 + 1) * count // max(2 * wanted, 1)
