"""Batches of labelled DNA for training, fixed windows for evaluation, and the numbers that describe them.

The target of a row is its class at its last real position and -100 elsewhere: what a classifier says of the sequence that
ends there (`models/heads.py`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence, Sized
from typing import Any, Self

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.class_duplicates import MAX_TRAIN_BASES, label_conflicts, windows_in_train
from mamba_bio_audio.pipelines.dna.class_regions import shares_inside
from mamba_bio_audio.pipelines.dna.class_rows import Progress
from mamba_bio_audio.pipelines.dna.class_splits import assign_splits, prepared_file, refuse_duplicates
from mamba_bio_audio.pipelines.dna.class_windows import WindowSampler, evaluation_windows
from mamba_bio_audio.pipelines.dna.classes_config import DnaClassesConfig
from mamba_bio_audio.pipelines.dna.label_leaks import leak_rows, leaks_of
from mamba_bio_audio.pipelines.dna.labelled import Labelled, leave_out_unknown, open_labelled
from mamba_bio_audio.pipelines.dna.tokenizer import PAD, DnaTokenizer
from mamba_bio_audio.pipelines.draws import Draws
from mamba_bio_audio.pipelines.spans import Region
from mamba_bio_audio.pipelines.split_names import SPLITS
from mamba_bio_audio.pipelines.stream import (
    StagedStream,
    Stretch,
    TrainingStream,
    loader,
    share,
)
from mamba_bio_audio.pipelines.windows import evenly_spaced

IGNORED = -100


class ClassStream(TrainingStream):
    """Training sequences with their classes; what sample i is depends on (seed, stage, i) alone.

    Args:
        source: draws windows; or the examples, which are taken in a new order in every epoch.
        labelled: reads the bases.
        length: longest sequence, the width of the batch.
        reverse_complement: read from the opposite strand with probability 0.5.
        pad_id: what shorter rows are filled with.
    """

    def __init__(
        self,
        source: WindowSampler | list[Region],
        labelled: Any,
        *,
        length: int,
        reverse_complement: bool,
        pad_id: int = PAD,
        **stream: int,
    ) -> None:
        super().__init__(source, **stream)
        self.source = source
        self.labelled = labelled
        self.length = length
        self.reverse_complement = reverse_complement
        self.pad_id = pad_id
        self.codec = DnaTokenizer()

    def example(self, sample: int) -> tuple[NDArray[np.uint8], int]:
        """Token ids and class of sample number i."""
        strand = sample
        if isinstance(self.source, WindowSampler):
            region, ids = self.source.window(sample)
            strand = self.source.strand_draw(sample)
        else:
            region = self.source[self.window_index(sample)]
            ids = self.labelled.fetch(region)
        if self.reverse_complement and Draws.STRAND.bits(self.seed, strand, self.stage).random_raw() & 1:
            ids = self.codec.reverse_complement(ids)
        return ids, region.label

    def read(self, samples: range) -> dict[str, torch.Tensor]:
        """Tokens and targets, (B, L)."""
        return class_batch([self.example(sample) for sample in samples], self.length, self.pad_id)


class ClassDataset(Dataset[dict[str, torch.Tensor]]):
    """Evaluation sequences one by one, tokens (L,) and targets (L,).

    Attributes:
        windows: what they are, in order.
    """

    def __init__(self, labelled: Any, windows: Sequence[Region], length: int, pad_id: int = PAD) -> None:
        self.labelled = labelled
        self.pad_id = pad_id
        self.windows = list(windows)
        self.length = length

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        window = self.windows[index]
        batch = class_batch([(self.labelled.fetch(window), window.label)], self.length, self.pad_id)
        return {name: rows[0] for name, rows in batch.items()}


class DnaClassesDataModule(LightningDataModule):
    """Training batches and evaluation windows of labelled DNA; arguments as `DnaDataModule`.

    Attributes:
        codec: the tokeniser.
        labelled: set by `setup()`.
        stretches: lengths to train at one after another; empty is `length` throughout, from `start_sample` on.
    """

    labelled: Labelled
    pad_id = PAD

    def __init__(
        self,
        config: DnaClassesConfig,
        *,
        length: int,
        batch_size: int,
        seed: int,
        start_sample: int = 0,
        rank: int = 0,
        world_size: int = 1,
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.progress = progress
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.start_sample = start_sample
        self.rank = rank
        self.world_size = world_size
        self.codec = DnaTokenizer()
        self.stretches: Sequence[Stretch] = ()
        self._windows: dict[str, list[Region]] = {}
        self._conflicts: dict[str, Any] | None = None
        self._ready = False

    @property
    def corpus(self) -> Self:
        """What is read; batching will part from it."""
        return self

    def setup(self, stage: str | None = None) -> None:
        """Read or index the files, choose the splits, read genomes of moderate size, before workers start."""
        if self._ready:
            return
        self.labelled = open_labelled(self.config, self.progress)
        if self.labelled.examples:
            leave_out_unknown(self.labelled, self.config.max_unknown)
        assign_splits(self.labelled, self.config, self.length)
        if self.labelled.examples:
            longest = max(self.labelled.regions, key=len)
            if len(longest) > self.length:
                raise InputError(
                    f"example {longest.record!r} has {len(longest):,} bases, more than train.length {self.length:,}; "
                    f"set train.length={len(longest)} or more, or data.sampling=windows"
                )
        self.labelled.load()
        if not self.labelled.examples:
            self.labelled.between = windows_in_train(
                self.labelled, {split: self._choose_windows(split) for split in SPLITS[1:]}
            )
            if self.config.shared_bases == "error":
                refuse_duplicates(self.labelled)
        # It belongs to this process and goes to no worker.
        self.labelled.progress = self.progress = None
        self._ready = True

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their numbers."""
        self.setup()
        return self.labelled.classes

    def training_windows(self, length: int) -> Sized:
        """What one epoch of training at some length is counted by."""
        self.setup()
        return self._source(length, 0)

    def _source(self, length: int, stage: int) -> WindowSampler | list[Region]:
        if self.labelled.examples:
            return [region for region in self.labelled.regions if region.split == "train"]
        config = self.config
        return WindowSampler(
            self.labelled,
            length,
            seed=self.seed,
            contigs=config.contigs,
            matched=config.matched,
            max_unknown=config.max_unknown,
            stage=stage,
        )

    def stream(self, stretch: Stretch | None = None) -> ClassStream:
        """Training sequences of a stretch; None is the first one at full length."""
        self.setup()
        stretch = stretch or Stretch(self.length, self.batch_size, start_sample=self.start_sample)
        return ClassStream(
            self._source(stretch.length, stretch.stage),
            self.labelled,
            length=stretch.length,
            reverse_complement=self.config.reverse_complement,
            batch_size=stretch.batch_size,
            seed=self.seed,
            start_sample=stretch.start_sample,
            rank=self.rank,
            world_size=self.world_size,
            stage=stretch.stage,
        )

    def train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """Endless batches of int64 tokens (B, L) and targets (B, L)."""
        self.setup()
        stretches = self.stretches or [Stretch(self.length, self.batch_size, start_sample=self.start_sample)]
        streams = [(self.stream(stretch), stretch.batches) for stretch in stretches]
        return loader(StagedStream(streams), None, self.config.num_workers)

    def evaluation_windows(self, split: str) -> list[Region]:
        """The sequences that a split is evaluated on."""
        self.setup()
        if split not in SPLITS:
            raise InputError(f"split is one of {', '.join(SPLITS)}, not {split!r}.")
        return self._choose_windows(split)

    def _choose_windows(self, split: str) -> list[Region]:
        if split not in self._windows:
            if self.labelled.examples:
                self._windows[split] = [region for region in self.labelled.regions if region.split == split]
            else:
                self._windows[split] = evaluation_windows(
                    self.labelled,
                    split,
                    self.length,
                    per_class=self.config.evaluation_windows,
                    seed=self.config.split_seed,
                    max_unknown=self.config.max_unknown,
                )
        return self._windows[split]

    def strata(self, split: str) -> dict[str, NDArray[np.bool_]]:
        """Masks over the sequences of a split: mostly inside and mostly outside `data.regions`; none without."""
        table = self.config.regions or prepared_file(self.config, "regions.tsv")
        if table is None:
            return {}
        inside = shares_inside(self.labelled, self.evaluation_windows(split), table) > 0.5
        return {"inside regions": inside, "outside regions": ~inside}

    def label_conflicts(self) -> dict[str, Any]:
        """Equal examples under several labels (`class_duplicates.label_conflicts`); {} for windows."""
        self.setup()
        if self._conflicts is None:
            self._conflicts = label_conflicts(self.labelled) if self.labelled.examples else {}
        return self._conflicts

    def evaluation_dataset(self, split: str, max_tokens: int | None = None) -> ClassDataset:
        """Sequences of a split, always the same; `max_tokens` keeps evenly spaced ones."""
        windows = self.evaluation_windows(split)
        present = {window.label for window in windows}
        lacking = [name for i, name in enumerate(self.labelled.classes) if i not in present]
        if lacking:
            own = [len(region) for region in self.labelled.regions if region.split == split]
            if not own:
                raise InputError(
                    f"the {split} split is empty (splits: {self.labelled.origin}); give more data, or larger "
                    f"data.valid_fraction and data.test_fraction, or name the splits in the data"
                )
            raise InputError(
                f"the {split} split has no window of {self.length:,} bases for class {lacking[0]!r} (longest stretch of "
                f"the split: {max(own):,}; splits: {self.labelled.origin})"
            )
        if max_tokens is not None:
            kept = evenly_spaced(len(windows), max(1, max_tokens // self.length))
            windows = [windows[at] for at in kept.tolist()]
        return ClassDataset(self.labelled, windows, self.length)

    def evaluation_dataloader(
        self, split: str, batch_size: int | None = None, max_tokens: int | None = None
    ) -> DataLoader[dict[str, torch.Tensor]]:
        """Batches of a split in fixed order; this rank's share of them."""
        dataset = self.evaluation_dataset(split, max_tokens)
        return loader(
            share(dataset, self.rank, self.world_size), batch_size or self.batch_size, self.config.num_workers
        )

    def summary(self) -> dict[str, Any]:
        """The data set in numbers, ready for JSON."""
        self.setup()
        labelled = self.labelled
        splits: dict[str, dict[str, Any]] = {}
        for split in SPLITS:
            own = [region for region in labelled.regions if region.split == split]
            windows = self.evaluation_windows(split)
            bases, regions, evaluated = Counter[int](), Counter[int](), Counter[int]()
            for region in own:
                bases[region.label] += len(region)
                regions[region.label] += 1
            evaluated.update(window.label for window in windows)
            splits[split] = {
                "regions": len(own),
                "bases": sum(bases.values()),
                "loci": len({region.locus for region in own}),
                "evaluation_windows": len(windows),
                "evaluation_loci": len({window.locus for window in windows}),
                "evaluation_sha256": fingerprint(
                    f"{w.source}\t{w.record}\t{w.start}\t{w.end}\t{w.label}" for w in windows
                ),
                "classes": {
                    name: {"regions": regions[i], "bases": bases[i], "evaluation_windows": evaluated[i]}
                    for i, name in enumerate(labelled.classes)
                },
            }
        return {
            "files": [
                {"name": file.name, "path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256}
                for file in labelled.files
            ],
            "classes": list(labelled.classes),
            "sampling": "examples" if labelled.examples else "windows",
            "split_source": labelled.origin,
            "splits": splits,
            "splits_sha256": fingerprint(
                f"{r.source}\t{r.record}\t{r.start}\t{r.end}\t{r.split}\t{r.label}" for r in labelled.regions
            ),
            "left_out": {"regions": len(labelled.left_out), "names": [r.record for r in labelled.left_out[:5]]},
            "max_unknown": self.config.max_unknown,
            "shared_sequences": {pair: row["equal"] for pair, row in labelled.between.items()},
            "near_sequences": {pair: row["near"] for pair, row in labelled.between.items()},
            "label_conflicts": self.label_conflicts(),
            "label_leaks": [leak.to_dict() for leak in leaks_of(labelled)],
            "length": self.length,
            "training_windows": len(self.training_windows(self.length)),
            "reverse_complement": self.config.reverse_complement,
        }


def summary_rows(described: dict[str, Any]) -> list[tuple[str, str]]:
    """A summary as (what, value) lines for people."""
    rows = [
        ("classes", f"{len(described['classes'])}: {', '.join(described['classes'])}"),
        ("splits", described["split_source"]),
    ]
    examples = described["sampling"] == "examples"
    for split, row in described["splits"].items():
        what = "sequences" if examples else f"windows of {described['length']:,}"
        rows.append(
            (
                split,
                f"{row['bases']:,} bases in {row['regions']:,} regions; evaluated on {row['evaluation_windows']:,} "
                f"{what} of {row['evaluation_loci']:,} loci",
            )
        )
    # Manifests of older versions lack what follows.
    if left_out := described.get("left_out", {}).get("regions", 0):
        names = ", ".join(described["left_out"]["names"]) + (
            ", ..." if left_out > len(described["left_out"]["names"]) else ""
        )
        rows.append(
            (
                "left out",
                f"{left_out:,} with more than {described['max_unknown']:.0%} bases other than A, C, G, T: {names}",
            )
        )
    for key, how in (("shared_sequences", "the same"), ("near_sequences", "nearly the same")):
        shared = {pair: count for pair, count in described.get(key, {}).items() if count}
        if shared:
            listed = ", ".join(f"{count:,} of {pair}" for pair, count in shared.items())
            what = "sequences" if examples else "windows"
            rows.append(("in two splits", f"{listed} {what} are {how}: scores on them say nothing"))
    if not examples and described.get("near_sequences") == {}:
        rows.append(("in two splits", f"not compared: train has more than {MAX_TRAIN_BASES:,} bases"))
    if text := conflict_text(described.get("label_conflicts", {}), "all"):
        rows.append(("two labels", text))
    return rows + leak_rows(described["label_leaks"])


def conflict_text(conflicts: Mapping[str, Any], split: str) -> str | None:
    """`label_conflicts` for people, with the ceiling of a split; None without conflicts there."""
    ceiling = conflicts.get("ceiling", {}).get(split)
    if ceiling is None or ceiling == 1:
        return None
    name, label, other, other_label = conflicts["example"]
    count = conflicts["sequences"]
    return (
        f"{count:,} sequence{'s stand' if count > 1 else ' stands'} under several labels, on one strand or the other, in "
        f"{conflicts['regions']:,} examples ({name}: {label}, {other}: {other_label}): accuracy on "
        f"{'all examples' if split == 'all' else split} cannot exceed {100 * ceiling:.2f} %"
    )


def class_batch(
    rows: Sequence[tuple[NDArray[np.uint8], int]], length: int, pad_id: int = PAD
) -> dict[str, torch.Tensor]:
    """Tokens and targets, int64 (B, L), of (ids, class) rows of up to L ids, padded on the right."""
    tokens = np.full((len(rows), length), pad_id, dtype=np.int64)
    targets = np.full((len(rows), length), IGNORED, dtype=np.int64)
    for i, (ids, label) in enumerate(rows):
        tokens[i, : len(ids)] = ids
        targets[i, len(ids) - 1] = label
    return {"tokens": torch.from_numpy(tokens), "targets": torch.from_numpy(targets)}


def fingerprint(lines: Any) -> str:
    """SHA-256 of sorted lines."""
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
