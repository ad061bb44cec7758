"""Labelled recordings as a corpus: a folder per class, each clip one example.

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
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio.classes_config import AudioClassesConfig
from mamba_bio_audio.pipelines.audio.corpus import AudioCorpus
from mamba_bio_audio.pipelines.audio.files import AudioFile
from mamba_bio_audio.pipelines.audio.splits import split_by_share
from mamba_bio_audio.pipelines.corpus import Example, Sample, hash_of
from mamba_bio_audio.pipelines.dna.class_tags import splits_of
from mamba_bio_audio.pipelines.spans import Region, Span, size_of
from mamba_bio_audio.pipelines.split_names import SPLITS, is_split_word, refuse_split_names
from mamba_bio_audio.pipelines.windows import EvaluationWindows

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
        raise InputError(f"{file.path}: {words[-1]!r} is the name of a split, but no folder names a class. {_REMEDY}")
    # Absolute: `t0.wav` and `../t0.wav` name no folder.
    name = names[-1] if words else os.path.basename(os.path.dirname(os.path.abspath(file.path)))
    return name, {f"folder {word}": word for word in words}


class AudioClassesCorpus(AudioCorpus):
    """Labelled recordings and their splits; arguments as `AudioCorpus`.

    Attributes:
        regions: the clips, each with its class.
    """

    classes: tuple[str, ...]
    config: AudioClassesConfig

    def __init__(self, config: AudioClassesConfig, *, length: int) -> None:
        super().__init__(config, length=length)
        files = self.recordings.files
        named = self._intervals()
        names, said = zip(*(_class_and_tags(file) for file in files), strict=True)
        class_of = {file.name: name for file, name in zip(files, names, strict=True)}
        classes = self.classes = tuple(self.config.classes or sorted(set(names)))
        unknown = [name for name in classes if name not in names]
        if unknown:
            raise InputError(f"data.classes: no folder {unknown[0]!r} with recordings; there are {sorted(set(names))}")
        if len(classes) < 2:
            raise InputError(
                f"data.path: only one class, {classes[0]}, but a classifier needs two or more, each a folder of recordings"
            )
        refuse_split_names(classes, "data.path", _REMEDY)
        if named is None:
            own = [number for number, name in enumerate(names) if name in classes]
            splits = splits_of(((files[at].path, said[at]) for at in own), "recordings", _REMEDY)
            self._split_files(dict(zip((files[at].name for at in own), splits, strict=True)), class_of, classes)
        self.regions = [
            Region(span.record, span.start, span.end, classes.index(class_of[span.record]), split, span.record)
            for split in SPLITS
            for span in self.spans(split)
            if class_of[span.record] in classes
        ]
        for region in self.regions:
            if len(region) >= length:
                raise InputError(
                    f"{region.record}: {len(region):,} samples, and train.length {length:,} leaves room for "
                    f"{length - 1:,}; set train.length={len(region) + 1} or more, or data.max_duration_s"
                )

    def _split_files(self, splits: dict[str, str | None], class_of: Mapping[str, str], classes: Sequence[str]) -> None:
        """Set the spans and `split_source` from the folders' splits, and draw those that they do not name.

        Args:
            splits: split of each file that has a class; None for all if the folders name none.
            class_of: class of every file.
            classes: names of all classes.
        """
        given = any(splits.values())
        sizes = {file.name: self._size(file) for file in self.recordings.files}
        valid, test = self.config.valid_fraction, self.config.test_fraction
        drawn = {None} if not given else set() if valid == 0 or "valid" in splits.values() else {"train"}
        self._spans = {split: [] for split in SPLITS}
        for file, split in splits.items():
            if split is not None and split not in drawn:
                self._spans[split].append(Span(file, 0, sizes[file]))
        # Class by class, because in the order of names whole classes would be one split.
        for name in classes:
            own = [file for file, split in splits.items() if class_of[file] == name and split in drawn]
            if not own:
                continue
            made, how = split_by_share({file: sizes[file] for file in own}, valid, 0 if given else test)
            for split, spans in made.items():
                self._spans[split] += spans
        if given:
            self.split_source = "the folders" + (f"; {valid:.0%} of their train is validation, {how}" if drawn else "")
        else:
            self.split_source = f"{how}, class by class"

    def windows(self, length: int) -> list[Region]:
        """The training clips."""
        if length != self.length:
            raise InputError("train.length_warmup has no meaning for clips, which are read whole; leave it empty")
        return [region for region in self.regions if region.split == "train"]

    def example(self, windows: list[Region], sample: Sample) -> Example:  # type: ignore[override]
        """A training clip."""
        return self.read(windows[sample.window])

    def read(self, window: Region) -> Example:  # type: ignore[override]
        """Zero level and levels of a clip; with `data.pad_target` silence there is silence up to the training length."""
        end = min(window.end, window.start + self.length - 1)
        found = super().read(Span(window.record, window.start, end))._replace(label=window.label)
        return self.filled(found, self.length) if self.config.pad_target == "silence" else found

    def lay_out(self, split: str) -> EvaluationWindows:
        """The clips of a split, class by class."""
        own = sorted((region for region in self.regions if region.split == split), key=lambda region: region.label)
        return EvaluationWindows(own, size_of(own))

    def spread(self, windows: int, max_tokens: int) -> NDArray[np.int64]:
        """Clips at equal steps."""
        return np.arange(0, windows, max(1, -(-windows * self.length // max_tokens)))

    def check_evaluation(self, split: str) -> None:
        """Raise `InputError` when a class has no clip to be evaluated on."""
        lacking = set(range(len(self.classes))) - {region.label for region in self.regions if region.split == split}
        if lacking:
            raise InputError(
                f"the {split} split has no clip of class {self.classes[min(lacking)]!r} ({self.split_source})"
            )

    def fingerprint(self) -> str:
        """SHA-256 of the clips, their classes and splits."""
        return hash_of(f"{r.record}\t{r.start}\t{r.end}\t{r.split}\t{r.label}" for r in self.regions)

    def summary(self) -> dict[str, Any]:
        """The data set in numbers, ready for JSON."""
        found = super().summary()
        for split, row in found["splits"].items():
            counts = Counter(r.label for r in self.regions if r.split == split)
            row["classes"] = {name: counts[i] for i, name in enumerate(self.classes)}
        return found | {"classes": list(self.classes)}
