"""Labelled recordings as a corpus: a folder per class, each clip one example.

    data/zero/a.wav   data/zero/b.wav   data/one/a.wav   ...        the last folder of a file's path is its class
    data/train/zero/a.wav   data/test/zero/b.wav   ...              folders called after splits are splits

Splits are those of a list of files (`pipelines/audio/splits.py`), of the folders, else the last clips of each class.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio.classes_config import AudioClassesConfig
from mamba_bio_audio.pipelines.audio.corpus import AudioCorpus
from mamba_bio_audio.pipelines.audio.labels import REMEDY, class_and_tags, known_classes
from mamba_bio_audio.pipelines.corpus import Example, Sample, hash_of
from mamba_bio_audio.pipelines.spans import Region, Span, size_of
from mamba_bio_audio.pipelines.split_names import SPLITS, refuse_split_names
from mamba_bio_audio.pipelines.windows import EvaluationWindows


class AudioClassesCorpus(AudioCorpus):
    """Labelled recordings and their splits; arguments as `AudioCorpus`.

    Attributes:
        regions: the clips, each with its class.
    """

    classes: tuple[str, ...]
    config: AudioClassesConfig

    def __init__(self, config: AudioClassesConfig, *, length: int) -> None:
        super().__init__(config, length=length)
        class_of = {file.name: class_and_tags(file)[0] for file in self.recordings.files}
        classes = self.classes = known_classes(class_of, self.config.classes, "data.classes")
        if len(classes) < 2:
            raise InputError(
                f"data.path: only one class, {classes[0]}, but a classifier needs two or more, each a folder of recordings"
            )
        refuse_split_names(classes, "data.path", REMEDY)
        if self._intervals() is None:
            self.split_by_class(classes)
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

    def label_statistics(self) -> dict[str, Any]:
        """Training clips of each class."""
        counts = Counter(region.label for region in self.regions if region.split == "train")
        return {"counts": [counts[label] or 1 for label in range(len(self.classes))]}

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
