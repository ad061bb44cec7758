"""A genome with labels along it as a corpus: a class or number of every base, or numbers of bins.

A window reads its scored bases, the core, and `data.margin` bases on either side:

    window    [start - m, end + m)        core [start, end), a whole number of bins
    target    of a bin stands at its last base, which is read from both sides (`models/heads.py`)

Beyond the ends of a record is N. Margins may reach into other splits: they are read, and never scored.

Legend: m margin, n symbols of a window, K outputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.contract import Progress
from mamba_bio_audio.pipelines.corpus import Corpus, Example, Sample, hash_of, hashed_file
from mamba_bio_audio.pipelines.dna.config import DnaDataConfig
from mamba_bio_audio.pipelines.dna.corpus import DnaCorpus
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer, N
from mamba_bio_audio.pipelines.dna.track_values import open_tracks
from mamba_bio_audio.pipelines.dna.tracks_config import DnaTracksConfig
from mamba_bio_audio.pipelines.draws import Draws
from mamba_bio_audio.pipelines.spans import Region, Span, size_of
from mamba_bio_audio.pipelines.split_names import SPLITS
from mamba_bio_audio.pipelines.windows import EvaluationWindows, Windows, evenly_spaced, tile
from mamba_bio_audio.text import some

# Keys of the genome that this kind of data shares with data.kind=dna.
_SHARED = ("path", "intervals", "contigs", "valid_fraction", "test_fraction", "split_by", "block_bases", "split_seed")
# Training windows whose labels are looked at for their mean and spread.
_LOOKED_AT = 2000
IGNORED = -100


class DnaTracksCorpus(Corpus):
    """A genome, its splits, and labels along it.

    Args:
        config: which data, and how windows are read.
        length: length of windows, both margins included.
        task: bases or tracks; None is bases.
        progress: called while files are indexed.

    Attributes:
        dna: the genome and its splits.
        values: the labels.
    """

    classes: tuple[str, ...]

    def __init__(
        self, config: DnaTracksConfig, *, length: int, task: str | None = None, progress: Progress | None = None
    ) -> None:
        super().__init__(DnaTokenizer(), length)
        self.config = config
        self.task = task or config.tasks[0]
        self.core(length)
        own = {key: getattr(config, key) for key in _SHARED}
        self.dna = DnaCorpus(DnaDataConfig(**own), length=length, progress=progress)
        self.genome = self.dna.genome
        self.values: Any = open_tracks(config.tracks, self.genome, config)
        self.classes, self.outputs = self.values.names, self.values.outputs
        if self.task == "tracks" and self.outputs == "classes":
            raise InputError(
                "head.task=tracks: data.tracks is a BED file of classes; give bigWig files, or head.task=bases"
            )
        if self.task == "bases" and config.bin > 1:
            raise InputError(f"data.bin is {config.bin}, but head.task=bases predicts every base; set it to 1")
        if config.stranded and self.outputs == "numbers":
            raise InputError("data.stranded is for the classes of a BED file; set it to false")
        self.files = [*self.dna.files, *self.values.files]
        self.split_source = self.dna.split_source

    def core(self, length: int) -> int:
        """Scored bases of a window, a whole number of bins.

        Raises:
            InputError: there are none.
        """
        core = length - 2 * self.config.margin
        if core < self.config.bin or core % self.config.bin:
            raise InputError(
                f"a window of {length:,} bases has {max(0, core):,} between margins of {self.config.margin:,} (data.margin), "
                f"which must be a whole number of bins of {self.config.bin:,} (data.bin); set train.length="
                f"{2 * self.config.margin + max(1, core // self.config.bin) * self.config.bin:,} for example"
            )
        return core

    def spans(self, split: str) -> list[Span]:
        """The union of a split's intervals, cut to whole bins."""
        size = self.config.bin
        cut = [Span(s.record, -(-s.start // size) * size, s.end // size * size) for s in self.dna.spans(split)]
        return [span for span in cut if span.start < span.end]

    def fetch(self, span: Span) -> NDArray[np.uint8]:
        """Token ids of a core and its margins, with N beyond the ends of the record."""
        margin, size = self.config.margin, self.genome.records[span.record]
        low, high = span.start - margin, span.end + margin
        ids = np.full(high - low, N, np.uint8)
        ids[max(0, -low) : min(size, high) - low] = self.genome.fetch(span.record, max(0, low), min(size, high))
        return ids

    def windows(self, length: int) -> Windows:
        """Cores of the training windows, without those that have too many unknown bases."""
        windows = tile(self.spans("train"), self.core(length), shared=0)
        keep = np.array([self._known(window) for window in windows], dtype=bool)
        return windows.select(keep) if len(windows) else windows

    def _known(self, span: Span) -> bool:
        return int(self.genome.count_unknown(*span)) <= self.config.max_unknown * len(span)

    def example(self, windows: Windows, sample: Sample) -> Example:
        """A training window; its strand is drawn at random."""
        turned = (
            self.config.reverse_complement
            and Draws.STRAND.bits(sample.seed, sample.number, sample.stage).random_raw() & 1
        )
        return self._read(windows[sample.window], reverse=bool(turned))

    def read(self, window: Span) -> Example:
        """A window as it is."""
        return self._read(window, reverse=False)

    def _read(self, window: Span, *, reverse: bool) -> Example:
        ids = self.fetch(window)
        found = self.values.fetch(*window, reverse=reverse)
        margin, size = self.config.margin, self.config.bin
        core = ids[margin : len(ids) - margin]
        found[core == N] = IGNORED if self.outputs == "classes" else np.nan
        if size > 1:
            found = _means(found, size)
        if reverse:
            ids, found = self.codec.reverse_complement(ids), found[::-1]
        label: NDArray[Any]
        if self.outputs == "classes":
            label = np.full(len(ids), IGNORED, np.int64)
        else:
            label = np.full((len(ids), found.shape[1]), np.nan, np.float32)
        label[margin + size - 1 : len(ids) - margin : size] = found
        return Example(ids, label)

    def lay_out(self, split: str) -> EvaluationWindows:
        """Cores of a split, spread evenly over it; their locus is the interval that they lie in."""
        spans = self.spans(split)
        kept: list[Region] = []
        for span in spans:
            locus = f"{span.record}:{span.start}-{span.end}"
            for window in tile([span], self.core(self.length), shared=0):
                if self._known(window):
                    kept.append(Region(window.record, window.start, window.end, 0, split, locus))
        chosen = [kept[at] for at in evenly_spaced(len(kept), self.config.evaluation_windows).tolist()]
        return EvaluationWindows(chosen, size_of(chosen))

    def _lacking(self) -> dict[str, list[str]]:
        """Records of the splits that a track says nothing of, by its name."""
        used = dict.fromkeys(span.record for split in SPLITS for span in self.spans(split))
        there = {name: [record for record in used if record not in self.values.has[name]] for name in self.values.has}
        return {name: records for name, records in there.items() if records}

    def label_statistics(self) -> dict[str, Any]:
        """Of the labels of up to 2,000 training windows."""
        windows = self.windows(self.length)
        found: list[Any] = [self.read(windows[at]).label for at in evenly_spaced(len(windows), _LOOKED_AT).tolist()]
        labels: NDArray[Any] = np.concatenate(found)
        if self.outputs == "classes":
            counts = np.bincount(labels[labels != IGNORED], minlength=len(self.classes))
            if not counts[1:].any() and len(windows) <= _LOOKED_AT:
                raise InputError(
                    f"data.tracks: no base of training is {' or '.join(self.classes[1:6])}, so there is nothing to learn; "
                    "check its record names and the splits"
                )
            return {"counts": [int(count) or 1 for count in counts]}
        columns = [column[~np.isnan(column)] for column in labels.T.astype(np.float64)]
        for name, column in zip(self.classes, columns, strict=True):
            if not len(column) or column.min() == column.max():
                what = "has no value" if not len(column) else f"is always {column[0]:g}"
                raise InputError(
                    f"data.tracks: {name!r} {what} in training, so there is nothing to learn; leave it out"
                )
        return {
            "mean": [float(column.mean()) for column in columns],
            "scale": [float(column.std()) for column in columns],
            "least": [float(column.min()) for column in columns],
        }

    def fingerprint(self) -> str:
        """SHA-256 of the splits."""
        return self.dna.fingerprint()

    def summary(self) -> dict[str, Any]:
        """The data set in numbers, ready for JSON."""
        splits: dict[str, dict[str, Any]] = {}
        for split in SPLITS:
            spans, windows = self.spans(split), self.evaluation_windows(split).windows
            splits[split] = {
                "bases": size_of(spans),
                "intervals": len(spans),
                "evaluation_windows": len(windows),
                "evaluation_bases": size_of(windows),
                "evaluation_sha256": hash_of(f"{w.record}\t{w.start}\t{w.end}" for w in windows),
            }
        genome = [
            {"name": file.name, "path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256}
            for file in self.genome.fingerprint()
        ]
        return {
            "files": [*genome, *(hashed_file(path) for path in self.values.files)],
            "task": self.task,
            "classes": list(self.classes),
            "outputs": self.outputs,
            "lacking": self._lacking(),
            "bin": self.config.bin,
            "margin": self.config.margin,
            "split_source": self.split_source,
            "splits": splits,
            "splits_sha256": self.fingerprint(),
            "length": self.length,
            "training_windows": len(self.windows(self.length)),
            "max_unknown": self.config.max_unknown,
            "reverse_complement": self.config.reverse_complement,
        }


def _means(values: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Means (bins, K) of the known values of each bin; NaN where there are none."""
    parts = values.reshape(-1, size, values.shape[1])
    there = ~np.isnan(parts)
    count = there.sum(1)
    sums = np.where(there, parts, 0).sum(1, dtype=np.float64)
    return np.where(count > 0, sums / np.maximum(count, 1), np.nan).astype(np.float32)


def summary_rows(described: dict[str, Any]) -> list[tuple[str, str]]:
    """A summary as (what, value) lines for people."""
    what = "classes of bases" if described["outputs"] == "classes" else "tracks"
    rows = [
        (what, f"{len(described['classes'])}: {', '.join(described['classes'])}"),
        (
            "windows",
            f"{described['length']:,} bases, of which {described['margin']:,} on either side are read and not scored; "
            f"{described['bin']:,} base{'s' * (described['bin'] > 1)} per value",
        ),
        ("splits", described["split_source"]),
    ]
    for name, records in described.get("lacking", {}).items():
        rows.append(("without values", f"{name} names no base of {some(records)}"))
    for split, row in described["splits"].items():
        rows.append(
            (
                split,
                f"{row['bases']:,} bases in {row['intervals']:,} intervals; evaluated on {row['evaluation_windows']:,} "
                f"windows, {row['evaluation_bases']:,} bases",
            )
        )
    return rows
