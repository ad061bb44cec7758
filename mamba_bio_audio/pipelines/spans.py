"""Stretches of sequences, and the arithmetic of their unions. Coordinates are 0-based half-open.

A `Span` is a stretch of a record (a chromosome, a contig, a recording); an `Interval` is a span that belongs to a split;
other modules add what they need (a class, a locus). Whatever takes spans takes all of these.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from mamba_bio_audio.pipelines.split_names import SPLITS


@dataclass(frozen=True, order=True, slots=True)
class Span:
    """The symbols [start, end) of a record; unpacks into record, start, end."""

    record: str
    start: int
    end: int

    def __iter__(self) -> Iterator[Any]:
        return iter((self.record, self.start, self.end))

    def __len__(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        return f"{self.record}:[{self.start:,}, {self.end:,})"


@dataclass(frozen=True, order=True, slots=True)
class Interval(Span):
    """A span and the split that it belongs to; at least one symbol."""

    split: str

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"an interval needs 0 <= start < end, not [{self.start}, {self.end})")
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {self.split!r}")

    def __str__(self) -> str:
        return f"{Span.__str__(self)} {self.split}"


@dataclass(frozen=True, slots=True)
class Region(Span):
    """A span of one class.

    Attributes:
        label: number of the class; 0 where there is no single class.
        split: train, valid or test; None until one is chosen.
        locus: what is drawn anew in a bootstrap; regions of one locus resemble each other, also in other classes.
        source: which of the readers has the record, where there are several.
        reverse: it is read from the opposite strand.
        row: which row of the labels is its own, where they are no single class; -1 otherwise.
    """

    label: int
    split: str | None
    locus: str
    source: int = 0
    reverse: bool = False
    row: int = -1


S = TypeVar("S", bound=Span)


def size_of(spans: Iterable[Span]) -> int:
    """Number of symbols in the spans; a symbol in two of them counts twice."""
    return sum(map(len, spans))


def merge(spans: Iterable[Span | tuple[str, int, int]], *, adjacent: bool = True) -> list[Span]:
    """Union of spans: records in order of first appearance, the spans of each sorted and disjoint; empty ones vanish.

    Args:
        spans: spans, in any order.
        adjacent: also join spans that only touch.
    """
    by_record: dict[str, list[tuple[int, int]]] = {}
    for record, start, end in spans:
        if start < end:
            by_record.setdefault(record, []).append((start, end))
    union: list[Span] = []
    for record, pairs in by_record.items():
        pairs.sort()
        start, end = pairs[0]
        for next_start, next_end in pairs[1:]:
            if next_start > end or (next_start == end and not adjacent):
                union.append(Span(record, start, end))
                start, end = next_start, next_end
            end = max(end, next_end)
        union.append(Span(record, start, end))
    return union


def subtract(spans: Iterable[S], taken: Iterable[Span]) -> list[S]:
    """Spans without the symbols of `taken`, in their order; the pieces keep everything else (split, class) of their span."""
    by_record: dict[str, list[Span]] = {}
    for span in merge(taken):
        by_record.setdefault(span.record, []).append(span)
    ends = {record: [span.end for span in own] for record, own in by_record.items()}
    left: list[S] = []
    for span in spans:
        start = span.start
        others = by_record.get(span.record, [])
        for at in range(bisect_right(ends[span.record], start) if others else 0, len(others)):
            other = others[at]
            if other.start >= span.end:
                break
            if other.start > start:
                left.append(replace(span, start=start, end=other.start))
            start = other.end
        if start < span.end:
            left.append(replace(span, start=start))
    return left


def shared_symbols(intervals: Sequence[Interval]) -> dict[str, int]:
    """Number of symbols that two splits have in common, for each pair: {"train/valid": 0, ...}.

    Such symbols leak: a model is tested on what it was trained on.
    """
    shared = {}
    unions = {split: merge(interval for interval in intervals if interval.split == split) for split in SPLITS}
    for index, first in enumerate(SPLITS):
        for second in SPLITS[index + 1 :]:
            # |A and B| = |A| + |B| - |A or B|
            both = merge([*unions[first], *unions[second]])
            shared[f"{first}/{second}"] = size_of(unions[first]) + size_of(unions[second]) - size_of(both)
    return shared
