"""Counts the symbols of a window that are in a union of spans, for many windows at once, by bisection."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mamba_bio_audio.pipelines.spans import Span, merge
from mamba_bio_audio.pipelines.windows import Windows, rows_by_record

_NOTHING = np.zeros(0, dtype=np.int64)


class Coverage:
    """A union of spans: how much of any span it holds, and which pieces of a window it leaves free."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self.spans = merge(spans)
        by_record: dict[str, list[Span]] = {}
        for span in self.spans:
            by_record.setdefault(span.record, []).append(span)
        # Per record: sorted starts and ends of disjoint runs, and the number of symbols in the runs before each.
        self._runs: dict[str, tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = {}
        for record, own in by_record.items():
            start = np.array([span.start for span in own], dtype=np.int64)
            end = np.array([span.end for span in own], dtype=np.int64)
            self._runs[record] = (start, end, np.concatenate([[0], np.cumsum(end - start)]))

    def __bool__(self) -> bool:
        return bool(self._runs)

    def count(self, record: str, start: ArrayLike, end: ArrayLike) -> NDArray[np.int64]:
        """Symbols of the union in [start, end); also for arrays of spans."""
        starts, ends, totals = self._runs.get(record, (_NOTHING, _NOTHING, np.zeros(1, dtype=np.int64)))

        def before(position: NDArray[np.int64]) -> NDArray[np.int64]:
            runs = np.searchsorted(starts, position)
            # The run that begins last before the position may reach beyond it.
            beyond = np.maximum(ends[runs - 1] - position, 0) if len(ends) else 0
            return totals[runs] - np.where(runs > 0, beyond, 0)

        return before(np.asarray(end, dtype=np.int64)) - before(np.asarray(start, dtype=np.int64))

    def shared(self, spans: Iterable[Span]) -> int:
        """Symbols in both this union and the union of `spans`."""
        return sum(int(self.count(span.record, span.start, span.end)) for span in merge(spans))

    def in_windows(
        self, windows: Windows, *, back: NDArray[np.int32] | int = 0, ahead: NDArray[np.int32] | int = 0
    ) -> NDArray[np.int64]:
        """Symbols of the union in each window, widened by `back` on the left and `ahead` on the right; int64 (n,)."""
        found = np.zeros(len(windows), dtype=np.int64)
        start, end = windows.start - back, windows.start + windows.size + ahead
        for record, rows in rows_by_record(windows):
            if record in self._runs:
                found[rows] = self.count(record, start[rows], end[rows])
        return found

    def longest_free(self, windows: Windows, records: Mapping[str, int]) -> Windows:
        """Each window cut to the longest piece that the union leaves free, the first of equals; size 0 without any."""
        start, size = windows.start.copy(), np.zeros(len(windows), dtype=np.int64)
        for record, rows in rows_by_record(windows):
            taken_start, taken_end, _ = self._runs.get(record, (_NOTHING, _NOTHING, _NOTHING))
            free_start = np.concatenate([[0], taken_end])
            free_end = np.concatenate([taken_start, [records[record]]])
            begin, end = windows.start[rows], windows.start[rows] + windows.size[rows]
            first = np.searchsorted(free_end, begin, side="right")
            pieces = np.maximum(np.searchsorted(free_start, end, side="left") - first, 0)
            some = pieces > 0
            at = np.cumsum(pieces[some]) - pieces[some]
            if not len(at):
                continue
            owner = np.repeat(np.flatnonzero(some), pieces[some])
            piece = np.repeat(first[some] - at, pieces[some]) + np.arange(len(owner))
            left = np.maximum(free_start[piece], begin[owner])
            length = np.minimum(free_end[piece], end[owner]) - left
            longest = np.maximum.reduceat(length, at)
            is_longest = np.flatnonzero(length == np.repeat(longest, pieces[some]))
            chosen = is_longest[np.searchsorted(is_longest, at)]
            start[rows[some]], size[rows[some]] = left[chosen], longest
        return replace(windows, start=start, size=size.astype(np.int32), back=None, ahead=None)
