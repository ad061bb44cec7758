"""Lays out training windows in the training intervals, by named rules of published pipelines.

For an interval [s, e) and windows of L inputs (and one more base, the last target):

| policy       | e - s >= L                   | e - s < L                                    | rule of        |
|--------------|------------------------------|----------------------------------------------|----------------|
| `tile`       | s, s + L, s + 2L, ...        | the interval, padded                         |                |
| `random`     | as `tile`, each read moved by up to L / 2 within the interval   | the same  |                |
| `head`       | only the one at s            | the interval, padded                         |                |
| `grow-both`  | only the one at s            | one, grown equally on both sides             | HyenaDNA       |
| `grow-ends`  | as `tile`                    | two: one starts at s, one ends at e          | Mamba, E.3.1   |
| `grow-right` | [s, s + 2^20) tiled; longer intervals as `tile`             | the same      | Caduceus       |

A window that extends beyond an end of its record slides inside; only a record shorter than L + 1 gives a shorter window.
Grown windows can reach bases of validation and test: these are counted after growth, and `data.shared_bases` decides what
happens to windows that contain some.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.coverage import Coverage
from mamba_bio_audio.pipelines.dna.config import Policy, SharedBases
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.spans import Interval, Span
from mamba_bio_audio.pipelines.split_names import SPLITS
from mamba_bio_audio.pipelines.windows import Windows, rows_by_record, tile, union_of, with_room

GROW_TO = 1 << 20


@dataclass(frozen=True)
class TrainingWindows:
    """Windows to train on, and what became of the others.

    Attributes:
        windows: windows to train on.
        laid_out: number of windows of the policy, before any were left out.
        slid: number of windows moved back inside their record.
        shared_bases: bases that the laid-out windows share with each other split, {"train/valid": ..., "train/test": ...}.
        shared_windows: number of laid-out windows that contain such bases.
        dropped: number of these that were left out.
        trimmed: number of these that were shortened to their longest piece outside the other splits.
        too_unknown: number left out for too many bases other than A, C, G, T.
        too_lower: number left out for too many lower-case bases.
    """

    windows: Windows
    laid_out: int
    slid: int
    shared_bases: dict[str, int]
    shared_windows: int
    dropped: int
    trimmed: int
    too_unknown: int
    too_lower: int

    @property
    def clean(self) -> int:
        """Number of laid-out windows without a base of another split."""
        return self.laid_out - self.shared_windows


def training_windows(
    intervals: Sequence[Interval],
    genome: Genome,
    length: int,
    *,
    policy: Policy = "tile",
    grow_to: int = GROW_TO,
    shared: SharedBases = "drop",
    max_unknown: float = 1.0,
    max_lower: float = 1.0,
) -> TrainingWindows:
    """Lay out and select the windows to train on.

    Args:
        intervals: intervals of all splits; those of train are laid out, the others are kept out.
        genome: genome of the intervals.
        length: L, in bases.
        policy: see the module.
        grow_to: width to which `grow-right` grows an interval.
        shared: what to do with windows that contain bases of validation or test: `drop` them, `trim` them to their
            longest piece without such bases, raise an `error`, or `allow` them.
        max_unknown, max_lower: largest shares of a window that may be other than A, C, G, T, or lower case.

    Raises:
        InputError: there are shared bases with `error`, or the length does not divide `grow_to`.
    """
    own = {split: [interval for interval in intervals if interval.split == split] for split in SPLITS}
    windows, slid = lay_out(own["train"], genome.records, length, policy, grow_to)
    laid_out = len(windows)
    covered = union_of(windows)
    counts = {f"train/{split}": Coverage(own[split]).shared(covered) for split in SPLITS[1:]}
    held_out = Coverage([*own["valid"], *own["test"]])
    touched = held_out.in_windows(windows) > 0 if any(counts.values()) else np.zeros(laid_out, dtype=bool)
    shared_windows = int(touched.sum())
    dropped = trimmed = 0
    if shared_windows and shared == "error":
        named = ", ".join(f"{count:,} of {pair[6:]}" for pair, count in counts.items() if count)
        raise InputError(
            f"data.intervals: with data.windows={policy}, training windows of {length:,} bases contain bases of other splits "
            f"({named}), so a model would be tested on what it was trained on; correct the intervals, or set "
            "data.shared_bases to drop, trim or allow"
        )
    if windows.back is not None and windows.ahead is not None and shared != "allow" and held_out:
        # A window that could reach held-out bases by moving is not moved.
        near = held_out.in_windows(windows, back=windows.back, ahead=windows.ahead) > 0
        windows.back[near] = windows.ahead[near] = 0
    if shared_windows and shared == "trim":
        cut = held_out.longest_free(windows.select(touched), genome.records)
        windows.start[touched], windows.size[touched] = cut.start, cut.size
        trimmed = int((cut.size >= 2).sum())
        dropped = shared_windows - trimmed
        windows = windows.select(windows.size >= 2)
    elif shared_windows and shared == "drop":
        dropped = shared_windows
        windows = windows.select(~touched)
    unknown = count_unknown(windows, genome)
    # At least two known bases, so that there is a target on either strand, whatever the limit.
    known = (unknown <= max_unknown * windows.size) & (windows.size - unknown >= 2)
    kept = windows.select(known)
    upper = np.ones(len(kept), dtype=bool)
    if max_lower < 1:
        upper = count_lower(kept, genome) <= max_lower * kept.size
        kept = kept.select(upper)
    return TrainingWindows(
        kept,
        laid_out,
        slid,
        counts,
        shared_windows,
        dropped,
        trimmed,
        int((~known).sum()),
        int((~upper).sum()),
    )


def lay_out(
    intervals: Iterable[Interval],
    records: Mapping[str, int],
    length: int,
    policy: Policy = "tile",
    grow_to: int = GROW_TO,
) -> tuple[Windows, int]:
    """Lay out intervals under a policy; returns the windows, and how many had to slide inside their record.

    Args:
        intervals: intervals to lay out, each by itself, in this order.
        records: length of every record.
        length: L, in bases.
        policy: see the module.
        grow_to: width to which `grow-right` grows an interval; a multiple of L.
    """
    if policy == "grow-right" and grow_to % length:
        raise InputError(
            f"data.windows=grow-right cuts data.grow_to={grow_to:,} bases into equal windows, but train.length={length:,} "
            "does not divide it; choose another train.length or data.grow_to"
        )
    spans: list[Span] = []
    for interval in intervals:
        record, start, end = interval.record, interval.start, interval.end
        missing = length + 1 - (end - start)
        grows = end - start < length
        if policy == "grow-right" and end - start < grow_to:
            spans.append(Span(record, start, start + grow_to))
        elif policy == "grow-ends" and grows:
            spans += [Span(record, start, end + missing), Span(record, start - missing, end)]
        elif policy == "grow-both" and grows:
            spans.append(Span(record, start - missing // 2, end + missing - missing // 2))
        elif policy in ("head", "grow-both"):
            spans.append(Span(record, start, min(end, start + length + 1)))
        else:
            spans.append(Span(record, start, end))
    if policy == "random":
        return with_room(spans, length), 0
    return _slide(tile(spans, length), records)


def _slide(windows: Windows, records: Mapping[str, int]) -> tuple[Windows, int]:
    """Move windows inside their records; returns them, and how many were moved."""
    ends = np.array([records[record] for record in windows.records], dtype=np.int64)
    end = ends[windows.record] if len(windows) else np.zeros(0, dtype=np.int64)
    size = np.minimum(windows.size, end).astype(np.int32)
    start = np.clip(windows.start, 0, end - size)
    slid = int(((start != windows.start) | (size != windows.size)).sum())
    return Windows(windows.records, windows.record, start, size, windows.length), slid


def count_unknown(windows: Windows, genome: Genome) -> NDArray[np.int64]:
    """Number of bases other than A, C, G, T in each window."""
    unknown = np.zeros(len(windows), dtype=np.int64)
    for record, rows in rows_by_record(windows):
        if genome.statistics(record).unknown:
            unknown[rows] = genome.count_unknown(record, windows.start[rows], windows.start[rows] + windows.size[rows])
    return unknown


def count_lower(windows: Windows, genome: Genome) -> NDArray[np.int64]:
    """Number of lower-case bases in each window."""
    lower = np.zeros(len(windows), dtype=np.int64)
    for record, rows in rows_by_record(windows):
        if genome.statistics(record).counts["lower"]:
            lower[rows] = genome.count_lower(record, windows.start[rows], windows.start[rows] + windows.size[rows])
    return lower
