"""Two tasks that need a memory of the whole window, at any length, with fresh data for every batch.

    needle:  .. marker of the class ..   random bases                                      -> class at the last position
    copy:    N X   random bases   N X    -> each base of the second X, which is drawn anew for every row

Needle: one of C fixed markers of 64 bases lies anywhere in the first tenth of the window; nothing else tells the class, so
accuracy is 1 / C without a memory of nine tenths of the window. Copy: the K bases after the first N come again after the
second; without memory their loss is log 4.

Rows depend on (seed, batch, row) alone. Tokens are those of the DNA codec: A, C, G, T are 7 to 10, N is 11.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.draws import Draws

_A, _N = 7, 11
IGNORED = -100


def _bases(random: np.random.Generator, count: int) -> NDArray[np.int64]:
    return random.integers(_A, _A + 4, count)


@dataclass(frozen=True)
class NeedleTask:
    """Class by a marker in the first part of the window.

    Attributes:
        within: share of the window, from its beginning, that the marker lies in. Training draws it for every batch: at one
            place and one length a model learns to read a clock instead.
        decoys: share of the filler, about, that is near hits: pieces of 6 to 24 bases of any marker, and whole markers of which
            50 to 75 % of the bases are drawn anew. Random filler of 2^20 bases holds 12 to 14 bases of some marker in a row,
            which windows of 2^14 do not: with decoys a short window has as many near hits as a long one. For training.
        without: the filler holds nowhere this many bases in a row of any marker; 0 lets chance decide. To tell false hits from
            forgetting.
        dense: the class is the target of every position from the marker's last base on, so that one window trains every
            distance that fits in it. For training: one label per window is too weak a signal.
    """

    classes: int = 4
    marker_bases: int = 64
    seed: int = 0
    within: float = 0.1
    decoys: float = 0.0
    without: int = 0
    dense: bool = False

    def markers(self) -> NDArray[np.int64]:
        """(classes, marker_bases) token ids, the same for every window."""
        return np.stack(
            [_bases(Draws.MARKERS.random(self.seed, 0, 0, 0, i), self.marker_bases) for i in range(self.classes)]
        )

    def batch(self, number: int, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Tokens and targets (rows, length); the class is the target of the last position, or with `dense` of all from the
        marker's last base on. Others are not scored.
        """
        if length < self.marker_bases:
            raise InputError(
                f"a window of {length} bases is too short for a marker of {self.marker_bases}; give a longer one"
            )
        markers = self.markers()
        tokens = np.empty((rows, length), np.int64)
        targets = np.full((rows, length), IGNORED, np.int64)
        for row in range(rows):
            random = Draws.NEEDLE.random(self.seed, 0, 0, number, row)
            # In turn: with a few windows a step, chance would favour a class in most steps.
            label = (number + row) % self.classes
            # In windows too short for that it lies at the very beginning.
            start = int(random.integers(max(0, int(length * self.within) - self.marker_bases) + 1))
            tokens[row] = _bases(random, length)
            if self.decoys:
                self._add_decoys(random, tokens[row], markers)
            if self.without:
                self._remove_hits(random, tokens[row], markers)
            tokens[row, start : start + self.marker_bases] = markers[label]
            scored_from = start + self.marker_bases - 1 if self.dense else length - 1
            targets[row, scored_from:] = label
        return torch.from_numpy(tokens), torch.from_numpy(targets)

    def _add_decoys(self, random: np.random.Generator, filler: NDArray[np.int64], markers: NDArray[np.int64]) -> None:
        """Alternately a gap and a decoy, all pieces at once."""
        bases, length = self.marker_bases, len(filler)
        count = 2 + length // 7
        whole = random.random(count) < 0.15
        sizes = np.where(whole, bases, random.integers(6, 25, count))
        # Decoys are 22 bases long on average.
        gaps = random.geometric(1 / (1 + 22 * (1 - self.decoys) / self.decoys), count)
        starts = np.cumsum(gaps + sizes) - sizes
        kept = starts + sizes <= length
        starts, sizes, whole = starts[kept], sizes[kept], whole[kept]
        count = len(sizes)
        labels = random.integers(self.classes, size=count)
        offsets = random.integers(0, bases - sizes + 1)
        redrawn = np.where(whole, random.uniform(0.5, 0.75, count), 0.0)
        inside = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        places = np.repeat(starts, sizes) + inside
        decoy = markers[np.repeat(labels, sizes), np.repeat(offsets, sizes) + inside]
        filler[places] = np.where(random.random(len(places)) < np.repeat(redrawn, sizes), filler[places], decoy)

    def _remove_hits(self, random: np.random.Generator, filler: NDArray[np.int64], markers: NDArray[np.int64]) -> None:
        """One base of every hit is drawn anew until there is none."""
        size, powers = self.without, 4 ** np.arange(self.without)
        view = np.lib.stride_tricks.sliding_window_view
        if len(filler) < size:
            return
        hits = np.unique((view(markers, size, axis=1) - _A) @ powers)
        if len(hits) > 4**size // 2:
            raise InputError(
                f"almost every word of {size} bases is in some marker, so no filler is left; raise `without`"
            )
        while len(found := np.flatnonzero(np.isin((view(filler, size) - _A) @ powers, hits))):
            filler[found + random.integers(0, size, len(found))] = _bases(random, len(found))


@dataclass(frozen=True)
class CopyTask:
    """The same bases again after a filler."""

    copied_bases: int = 16
    seed: int = 0

    def batch(self, number: int, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Tokens and targets (rows, length); scored are the bases of the second X."""
        size = self.copied_bases
        if length < 2 * size + 1:
            raise InputError(
                f"a window of {length} positions is too short for two copies of {size} bases; give a longer one"
            )
        tokens = np.empty((rows, length), np.int64)
        targets = np.full((rows, length), IGNORED, np.int64)
        for row in range(rows):
            random = Draws.COPY.random(self.seed, 0, 0, number, row)
            copied = _bases(random, size)
            filler = _bases(random, length - 2 * size - 1)
            symbols = np.concatenate([[_N], copied, filler, [_N], copied])
            tokens[row] = symbols[:-1]
            targets[row, -size:] = symbols[-size:]
        return torch.from_numpy(tokens), torch.from_numpy(targets)
