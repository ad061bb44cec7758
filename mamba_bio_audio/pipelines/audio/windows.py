"""Tiling of recordings into windows of one length.

A span [s, e) is cut at s, s + L, s + 2L, ...; every sample is a target exactly once. The input at a target is the
sample before it in the window, and the zero level at the window's first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.pipelines.audio.splits import Span


@dataclass(frozen=True)
class AudioWindows:
    """Windows as columns.

    Attributes:
        file: int32 (n,), number of the file.
        start: int64 (n,), at the model's rate.
        size: int32 (n,), samples in the window, 1 to L.
        length: L.
    """

    file: NDArray[np.int32]
    start: NDArray[np.int64]
    size: NDArray[np.int32]
    length: int

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, index: int) -> Span:
        start = int(self.start[index])
        return Span(int(self.file[index]), start, start + int(self.size[index]))

    def select(self, keep: NDArray[np.bool_] | NDArray[np.int64]) -> AudioWindows:
        """The windows at these positions, or where the mask is true."""
        return AudioWindows(self.file[keep], self.start[keep], self.size[keep], self.length)

    @property
    def targets(self) -> int:
        """Number of samples, each a target."""
        return int(self.size.sum(dtype=np.int64))


@dataclass(frozen=True)
class EvaluationWindows:
    """Windows that score each sample of a split once.

    Attributes:
        windows: they cover the split.
        samples: of the split.
    """

    windows: AudioWindows
    samples: int

    @property
    def scored(self) -> int:
        """Samples that are scored: all of them, the first of each window without context."""
        return self.samples


def tile(spans: Iterable[Span], length: int) -> AudioWindows:
    """Cut spans into windows of up to `length` samples."""
    if length < 1:
        raise ValueError(f"length is at least 1, not {length}")
    columns = np.array([tuple(span) for span in spans], dtype=np.int64).reshape(-1, 3)
    file, begin, end = columns.T
    counts = -(-(end - begin) // length)
    first = np.cumsum(counts) - counts
    # Position of each window within its span.
    within = np.arange(counts.sum(), dtype=np.int64) - np.repeat(first, counts)
    start = np.repeat(begin, counts) + within * length
    size = np.minimum(length, np.repeat(end, counts) - start).astype(np.int32)
    return AudioWindows(np.repeat(file, counts).astype(np.int32), start, size, length)


def evaluation_windows(spans: Iterable[Span], length: int) -> EvaluationWindows:
    """Windows that score each sample of spans that do not overlap once."""
    windows = tile(spans, length)
    return EvaluationWindows(windows, windows.targets)


def evenly_spaced(count: int, wanted: int) -> NDArray[np.int64]:
    """`wanted` of the positions 0 .. count - 1, spread evenly; all of them if there are no more."""
    wanted = min(wanted, count)
    return (np.arange(wanted, dtype=np.int64) * 2 + 1) * count // max(2 * wanted, 1)
