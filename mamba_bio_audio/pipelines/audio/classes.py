"""Batches of labelled recordings: a folder per class, each clip one example.

    data/zero/a.wav   data/zero/b.wav   data/one/a.wav   ...        the last folder of a file's path is its class
    data/train/zero/a.wav   data/test/zero/b.wav   ...              folders called after splits are splits

Splits are those of a list of files (`pipelines/audio/splits.py`), of the folders, else the last clips of each class.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio.classes_config import AudioClassesConfig
from mamba_bio_audio.pipelines.audio.datamodule import AudioDataModule
from mamba_bio_audio.pipelines.audio.files import AudioFile
from mamba_bio_audio.pipelines.audio.splits import split_by_share
from mamba_bio_audio.pipelines.dna.class_tags import splits_of
from mamba_bio_audio.pipelines.dna.classes import ClassDataset, ClassStream, fingerprint
from mamba_bio_audio.pipelines.spans import Region, Span
from mamba_bio_audio.pipelines.split_names import SPLITS, is_split_word, refuse_split_names
from mamba_bio_audio.pipelines.stream import StagedStream, Stretch, loader, share

_REMEDY = (
    "Accepted: a folder per class; folders train, valid and test with a folder per class, or the other way round; or name "
    "the split of every file in data.intervals"
)


def _class_and_tags(file: AudioFile) -> tuple[str, dict[str, str]]:
    """The class of a recording, its last folder that is not called after a split, and the splits its folders name."""
    folders = PurePosixPath(file.name).parent.parts
    words = [name for name in folders if is_split_word(name)]
    names = [name for name in folders if not is_split_word(name)]
    if words and not names:
        raise InputError(f"{file.path}: {words[-1]!r} is the name of a split, and no folder names a class. {_REMEDY}")
    # Absolute: `t0.wav` and `../t0.wav` name no folder.
    name = names[-1] if words else os.path.basename(os.path.dirname(os.path.abspath(file.path)))
    return name, {f"folder {word}": word for word in words}


class LabelledClips:
    """Clips as regions that have a class, read as levels behind the zero level that inputs begin with.

    Attributes:
        classes: names in the order of their numbers.
        regions: one per clip.
        examples, genomes: as of labelled DNA.
    """

    examples = True
    genomes: tuple[()] = ()

    def __init__(self, module: AudioClassesDataModule, classes: tuple[str, ...], regions: list[Region]) -> None:
        self.recordings = module.recordings
        self.classes = classes
        self.regions = regions
        self.length = module.length
        self.fill = module.config.pad_target == "silence"

    def fetch(self, region: Region) -> NDArray[Any]:
        """Zero level and levels of a clip, at most as many as the training length."""
        ids = self.recordings.ids(Span(region.record, region.start, min(region.end, region.start + self.length - 1)))
        zero = self.recordings.codec.zero_level
        ids = np.concatenate([np.full(1, zero, ids.dtype), ids])
        return np.pad(ids, (0, self.length - len(ids)), constant_values=zero) if self.fill else ids


class AudioClassesDataModule(AudioDataModule):
    """Training batches and evaluation clips of labelled recordings; arguments as `AudioDataModule`.

    Attributes:
        labelled: set by `setup()`.
    """

    labelled: LabelledClips
    config: AudioClassesConfig

    def setup(self, stage: str | None = None) -> None:
        """Read the files' headers and classes, read or make the splits."""
        if self._ready:
            return
        super().setup(stage)
        files = self.recordings.files
        named = self._intervals()
        names, said = zip(*(_class_and_tags(file) for file in files), strict=True)
        class_of = {file.name: name for file, name in zip(files, names, strict=True)}
        classes = tuple(self.config.classes or sorted(set(names)))
        unknown = [name for name in classes if name not in names]
        if unknown:
            raise InputError(f"data.classes: no folder {unknown[0]!r} with recordings; there are {sorted(set(names))}")
        if len(classes) < 2:
            raise InputError(
                f"data.path: one class only, {classes[0]}; a classifier needs two or more, each a folder of recordings"
            )
        refuse_split_names(classes, "data.path", _REMEDY)
        if named is None:
            own = [number for number, name in enumerate(names) if name in classes]
            splits = splits_of(((files[at].path, said[at]) for at in own), "recordings", _REMEDY)
            self._split_files(dict(zip((files[at].name for at in own), splits, strict=True)), class_of, classes)
        regions = [
            Region(span.record, span.start, span.end, classes.index(class_of[span.record]), split, span.record)
            for split in SPLITS
            for span in self.spans[split]
            if class_of[span.record] in classes
        ]
        for region in regions:
            if len(region) >= self.length:
                raise InputError(
                    f"{region.record}: {len(region):,} samples, and train.length {self.length:,} leaves room for "
                    f"{self.length - 1:,}; set train.length={len(region) + 1} or more, or data.max_duration_s"
                )
        self.labelled = LabelledClips(self, classes, regions)

    def _split_files(self, splits: dict[str, str | None], class_of: Mapping[str, str], classes: Sequence[str]) -> None:
        """Set `spans` and `split_source` by the folders' splits, and draw what they leave open.

        Args:
            splits: of each file that has a class; None for all where the folders name none.
            class_of: class of every file.
            classes: that there are.
        """
        given = any(splits.values())
        valid, test = self.config.valid_fraction, self.config.test_fraction
        drawn = {None} if not given else set() if valid == 0 or "valid" in splits.values() else {"train"}
        self.spans = {split: [] for split in SPLITS}
        for file, split in splits.items():
            if split is not None and split not in drawn:
                self.spans[split].append(Span(file, 0, self._size(file)))
        # By class: the order of names would put whole classes into one split.
        for name in classes:
            own = [file for file, split in splits.items() if class_of[file] == name and split in drawn]
            if not own:
                continue
            made, how = split_by_share({file: self._size(file) for file in own}, valid, 0 if given else test)
            for split, spans in made.items():
                self.spans[split] += spans
        if given:
            self.split_source = "the folders" + (f"; {valid:.0%} of their train is validation, {how}" if drawn else "")
        else:
            self.split_source = f"{how}, class by class"

    def _size(self, name: str) -> int:
        config, file = self.config, self.recordings.files[self.recordings.number[name]]
        size = file.num_samples(config.sample_rate_hz)
        return (
            size if config.max_duration_s is None else min(size, round(config.max_duration_s * config.sample_rate_hz))
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their numbers."""
        self.setup()
        return self.labelled.classes

    @property
    def pad_id(self) -> int:
        """What batches are padded with."""
        return self.codec.zero_level

    def training_windows(self, length: int) -> list[Region]:  # type: ignore[override]
        """The training clips."""
        self.setup()
        if length != self.length:
            raise InputError("train.length_warmup: clips have the length that they have; leave it empty")
        return [region for region in self.labelled.regions if region.split == "train"]

    def train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """Endless batches of int64 tokens (B, L) and targets (B, L), the class where the clip ends."""
        self.setup()
        stretches = self.stretches or [Stretch(self.length, self.batch_size, start_sample=self.start_sample)]
        streams = [
            (
                ClassStream(
                    self.training_windows(stretch.length),
                    self.labelled,
                    length=stretch.length,
                    pad_id=self.pad_id,
                    reverse_complement=False,
                    batch_size=stretch.batch_size,
                    seed=self.seed,
                    start_sample=stretch.start_sample,
                    rank=self.rank,
                    world_size=self.world_size,
                    stage=stretch.stage,
                ),
                stretch.batches,
            )
            for stretch in stretches
        ]
        return loader(StagedStream(streams), None, self.config.num_workers)

    def evaluation_dataset(self, split: str, max_tokens: int | None = None) -> ClassDataset:  # type: ignore[override]
        """The clips of a split, always the same."""
        self.setup()
        if split not in SPLITS:
            raise InputError(f"split is one of {', '.join(SPLITS)}, not {split!r}.")
        own = sorted((r for r in self.labelled.regions if r.split == split), key=lambda r: r.label)
        lacking = set(range(len(self.classes))) - {region.label for region in own}
        if lacking:
            raise InputError(
                f"the {split} split has no clip of class {self.classes[min(lacking)]!r} ({self.split_source})"
            )
        if max_tokens is not None:
            step = max(1, -(-len(own) * self.length // max_tokens))
            own = own[::step]
        return ClassDataset(self.labelled, own, self.length, self.pad_id)

    def evaluation_dataloader(
        self, split: str, batch_size: int | None = None, max_tokens: int | None = None
    ) -> DataLoader[dict[str, torch.Tensor]]:
        """Batches of a split in fixed order; this rank's share of them."""
        dataset = self.evaluation_dataset(split, max_tokens)
        return loader(
            share(dataset, self.rank, self.world_size), batch_size or self.batch_size, self.config.num_workers
        )

    def strata(self, split: str) -> dict[str, NDArray[np.bool_]]:
        """None."""
        return {}

    def splits_fingerprint(self) -> str:
        """SHA-256 of the clips, their classes and splits."""
        self.setup()
        return fingerprint(f"{r.record}\t{r.start}\t{r.end}\t{r.split}\t{r.label}" for r in self.labelled.regions)

    def summary(self) -> dict[str, Any]:
        """The data set in numbers, ready for JSON."""
        found = super().summary()
        for split, row in found["splits"].items():
            counts = Counter(r.label for r in self.labelled.regions if r.split == split)
            row["classes"] = {name: counts[i] for i, name in enumerate(self.classes)}
        return found | {"classes": list(self.classes), "training_windows": len(self.training_windows(self.length))}
