"""Windows of one length drawn from labelled regions, for training by number and for evaluation once.

Class, uniformly; then a start, uniformly over the class's sequence (contigs "length") or over one of its records drawn
uniformly ("uniform"). "length" is the default, because under "uniform" a short scaffold is read far more often, for its
length, than a chromosome. All windows have one length, because the length of a record alone can tell its species. Sample i
depends on (seed, stage, i) alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.corpus import Sample
from mamba_bio_audio.pipelines.dna.labelled import Labelled
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.pipelines.draws import Draws
from mamba_bio_audio.pipelines.spans import Region

ATTEMPTS = 100


class WindowSampler:
    """Draws training windows of `length` bases.

    Args:
        labelled: with splits; regions of "train" that are long enough are drawn from.
        length: bases per window.
        contigs: "length" or "uniform".
        matched: successive samples are the same place of the same record in every class in turn.
        max_unknown: largest share of unknown bases; windows with more are drawn again.
    """

    def __init__(
        self,
        labelled: Labelled,
        length: int,
        *,
        contigs: str = "length",
        matched: bool = False,
        max_unknown: float = 1.0,
    ) -> None:
        self.labelled = labelled
        self.length = length
        self.matched = matched
        self.max_unknown = max_unknown
        self.codec = DnaTokenizer()
        regions = [region for region in labelled.regions if region.split == "train"]
        long = [region for region in regions if len(region) >= length]
        self.short = len(regions) - len(long)
        self.by_class: list[list[Region]] = [[] for _ in labelled.classes]
        for region in long:
            self.by_class[region.label].append(region)
        for name, own in zip(labelled.classes, self.by_class, strict=True):
            if not own:
                most = max((len(region) for region in regions if labelled.classes[region.label] == name), default=0)
                raise InputError(
                    f"class {name!r} has no training stretch of {length:,} bases, the longest is {most:,} (splits: "
                    f"{labelled.origin}); lower train.length, or change the splits"
                )
        if matched:
            self._match()
        self._cumulative = [self._weights(own, contigs) for own in self.by_class]

    def __len__(self) -> int:
        """Number of windows that fit side by side, which is what an epoch is."""
        return sum(len(region) // self.length for own in self.by_class for region in own)

    def _match(self) -> None:
        """Keep the records that every class has, in one order."""
        tables: list[dict[str, Region]] = []
        for own in self.by_class:
            table: dict[str, Region] = {}
            for region in own:
                name = self._bare(region)
                if name in table:
                    raise InputError(
                        f"data.matched: record {name!r} of class {self.labelled.classes[region.label]!r} has several "
                        f"training stretches; matched windows need one record of that name in each class"
                    )
                table[name] = region
            tables.append(table)
        common = sorted(set.intersection(*(set(table) for table in tables)))
        if not common:
            raise InputError(
                f"data.matched: the classes share no record name with {self.length:,} or more training bases; set it to false"
            )
        self.by_class = [[table[name] for name in common] for table in tables]

    def _bare(self, region: Region) -> str:
        genomes = self.labelled.genomes
        return genomes[region.source].bare_name(region.record) if genomes else region.record

    def _weights(self, own: Sequence[Region], contigs: str) -> NDArray[np.float64]:
        starts = np.array([len(region) - self.length + 1 for region in own], dtype=np.float64)
        if contigs == "uniform":
            totals: dict[tuple[int, str], float] = defaultdict(float)
            for region, count in zip(own, starts, strict=True):
                totals[region.source, region.record] += count
            starts = starts / np.array([totals[region.source, region.record] for region in own])
        return np.cumsum(starts) / starts.sum()

    def window(self, sample: Sample) -> tuple[Region, NDArray[np.uint8]]:
        """A training window and its bases (L,), read forwards."""
        classes = len(self.by_class)
        draw, label = divmod(sample.number, classes) if self.matched else (sample.number, -1)
        for attempt in range(ATTEMPTS):
            random = Draws.CLASS_WINDOW.random(sample.seed, draw, sample.stage, attempt)
            which, place, within = random.random(3).tolist()
            chosen = label if self.matched else int(which * classes)
            # In matched windows one class decides the place, so that all take the same record.
            cumulative = self._cumulative[0 if self.matched else chosen]
            region = self.by_class[chosen][min(int(np.searchsorted(cumulative, place, "right")), len(cumulative) - 1)]
            start = region.start + int(within * (len(region) - self.length + 1))
            window = replace(region, start=start, end=start + self.length)
            ids = self.labelled.fetch(window)
            if self.codec.count_unknown(ids) <= self.max_unknown * self.length:
                return window, ids
        raise InputError(
            f"class {self.labelled.classes[chosen]!r}: {ATTEMPTS} windows in a row have more than "
            f"{self.max_unknown:.0%} bases other than A, C, G, T; raise data.max_unknown, or give intervals without gaps"
        )

    def strand_draw(self, sample: Sample) -> int:
        """Number by which the strand is drawn; matched windows are read from the same strand."""
        return sample.number // len(self.by_class) if self.matched else sample.number


def draw_evaluation_windows(
    labelled: Labelled, split: str, length: int, *, per_class: int, seed: int, max_unknown: float
) -> list[Region]:
    """Up to `per_class` windows of each class of a split, none overlapping another; the same at every call.

    Each region is tiled from a start drawn by the seed, and of all tiles of a class some are drawn. Regions shorter than
    a window give none.
    """
    codec = DnaTokenizer()
    chosen: list[Region] = []
    by_class: list[list[Region]] = [[] for _ in labelled.classes]
    for region in labelled.regions:
        if region.split == split and len(region) >= length:
            by_class[region.label].append(region)
    for label in range(len(labelled.classes)):
        key = int.from_bytes(split.encode()[:4], "big")
        random = Draws.CLASS_EVALUATION.random(seed, label, key)
        tiles = []
        for region in by_class[label]:
            first = region.start + int(random.integers(0, len(region) % length + 1))
            tiles += [
                replace(region, start=at, end=at + length) for at in range(first, region.end - length + 1, length)
            ]
        kept = []
        for at in random.permutation(len(tiles)).tolist():
            window = tiles[at]
            ids = labelled.fetch(window)
            if codec.count_unknown(ids) <= max_unknown * length:
                kept.append(at)
            if len(kept) == per_class:
                break
        chosen += [tiles[at] for at in sorted(kept)]
    return chosen
