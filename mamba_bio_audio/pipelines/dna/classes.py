"""Labelled DNA as a corpus: windows of one length that are drawn from regions, or examples as they are.

The target of a window is its class at the last real position and -100 elsewhere: what a classifier says of the sequence that
ends there (`models/heads.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.contract import Progress
from mamba_bio_audio.pipelines.corpus import Corpus, Example, Sample, hash_of
from mamba_bio_audio.pipelines.dna.class_duplicates import (
    MAX_TRAIN_BASES,
    in_train,
    label_conflicts,
    place,
    windows_in_train,
)
from mamba_bio_audio.pipelines.dna.class_regions import shares_inside
from mamba_bio_audio.pipelines.dna.class_splits import assign_splits, prepared_file, refuse_duplicates
from mamba_bio_audio.pipelines.dna.class_windows import WindowSampler, draw_evaluation_windows
from mamba_bio_audio.pipelines.dna.classes_config import DnaClassesConfig
from mamba_bio_audio.pipelines.dna.genome import FileFingerprint
from mamba_bio_audio.pipelines.dna.label_leaks import leak_rows, leaks_of
from mamba_bio_audio.pipelines.dna.label_values import describe_values, value_rows
from mamba_bio_audio.pipelines.dna.labelled import leave_out_unknown, open_labelled
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.pipelines.draws import Draws
from mamba_bio_audio.pipelines.spans import Region, Span, merge, size_of
from mamba_bio_audio.pipelines.split_names import SPLITS
from mamba_bio_audio.pipelines.windows import EvaluationWindows
from mamba_bio_audio.text import some

# Outputs of each task (`models/tasks.py`), and their word for people.
_OUTPUTS = {"classes": "classes", "multilabel": "labels", "regression": "numbers"}
_WORDS = {"multilabel": "labels", "regression": "numbers"}


class DnaClassesCorpus(Corpus):
    """Labelled DNA and its splits.

    Args:
        config: which data, and how windows are drawn from them.
        length: length of windows; the longest example if examples are taken as they are.
        task: what is predicted: classes, multilabel or regression; None is classes.
        progress: called while files are read and sequences compared.

    Attributes:
        labelled: regions with their classes and splits, and the readers of their sequence.
    """

    classes: tuple[str, ...]

    def __init__(
        self, config: DnaClassesConfig, *, length: int, task: str | None = None, progress: Progress | None = None
    ) -> None:
        super().__init__(DnaTokenizer(), length)
        self.config = config
        self.task = task or config.tasks[0]
        self.outputs = _OUTPUTS[self.task]
        self.labelled = open_labelled(config, progress, self.task)
        if self.labelled.examples:
            leave_out_unknown(self.labelled, config.max_unknown)
        assign_splits(self.labelled, config, length)
        if self.labelled.examples:
            longest = max(self.labelled.regions, key=len)
            if len(longest) > length:
                raise InputError(
                    f"example {longest.record!r} has {len(longest):,} bases, more than train.length {length:,}; "
                    f"set train.length={len(longest)} or more, or data.sampling=windows"
                )
        self.labelled.load()
        self.classes = self.labelled.names or self.labelled.classes
        self.files = [file.path for file in self.labelled.files]
        self.split_source = self.labelled.origin
        self._conflicts: dict[str, Any] | None = None
        if not self.labelled.examples:
            self.labelled.between = windows_in_train(
                self.labelled, {split: self._chosen(split) for split in SPLITS[1:]}
            )
            if config.shared_bases != "allow":
                refuse_duplicates(self.labelled)
        # It belongs to this process; workers get a copy of everything else.
        self.labelled.progress = None

    def spans(self, split: str) -> list[Span]:
        """The union of a split's regions; records of different readers that have one name are one here."""
        return merge(self._regions(split))

    def fetch(self, span: Region) -> NDArray[np.uint8]:
        """Token ids of a region."""
        return self.labelled.fetch(span)

    def windows(self, length: int) -> WindowSampler | list[Region]:
        """Draws windows of some length from the training split; or the training examples."""
        if not self.labelled.examples:
            config = self.config
            return WindowSampler(
                self.labelled, length, contigs=config.contigs, matched=config.matched, max_unknown=config.max_unknown
            )
        regions = self._regions("train")
        longest = max(regions, key=len)
        if len(longest) > length:
            raise InputError(
                f"train.length_warmup: example {longest.record!r} has {len(longest):,} bases, more than a stage of "
                f"{length:,}; examples are read whole, so leave it empty"
            )
        return regions

    def longest(self, windows: WindowSampler | list[Region], length: int) -> int:
        """That of the longest example: those of 70 bases are not padded to a recipe's 128."""
        return length if isinstance(windows, WindowSampler) else max(map(len, windows))

    def example(self, windows: WindowSampler | list[Region], sample: Sample) -> Example:
        """A training window or example; its strand is drawn at random."""
        strand = sample.number
        if isinstance(windows, WindowSampler):
            region, ids = windows.window(sample)
            strand = windows.strand_draw(sample)
        else:
            region = windows[sample.window]
            ids = self.fetch(region)
        if self.config.reverse_complement and Draws.STRAND.bits(sample.seed, strand, sample.stage).random_raw() & 1:
            ids = self.codec.reverse_complement(ids)
        return Example(ids, self.label(region))

    def read(self, window: Region) -> Example:
        """A window as it is."""
        return Example(self.fetch(window), self.label(window))

    def label(self, region: Region) -> int | NDArray[np.float32]:
        """Class of a region, or its labels (K,)."""
        return region.label if self.labelled.values is None else self.labelled.values[region.row]

    def lay_out(self, split: str) -> EvaluationWindows:
        """The sequences that a split is evaluated on."""
        if self.labelled.examples:
            windows = self._regions(split)
        else:
            windows = draw_evaluation_windows(
                self.labelled,
                split,
                self.length,
                per_class=self.config.evaluation_windows,
                seed=self.config.split_seed,
                max_unknown=self.config.max_unknown,
            )
        return EvaluationWindows(windows, size_of(windows))

    def _chosen(self, split: str) -> list[Region]:
        windows = self.evaluation_windows(split).windows
        assert isinstance(windows, list)
        # Those of labels have one.
        return cast("list[Region]", windows)

    def _regions(self, split: str) -> list[Region]:
        return [region for region in self.labelled.regions if region.split == split]

    def check_evaluation(self, split: str) -> None:
        """Raise `InputError` when a class has nothing to be evaluated on."""
        present = {window.label for window in self._chosen(split)}
        lacking = [name for i, name in enumerate(self.labelled.classes) if i not in present]
        if not lacking:
            return
        own = self._regions(split)
        if not own:
            raise InputError(
                f"the {split} split is empty (splits: {self.split_source}); provide more data, raise "
                f"data.valid_fraction and data.test_fraction, or name the splits in the data"
            )
        raise InputError(
            f"the {split} split has no window of {self.length:,} bases for class {lacking[0]!r} (longest stretch of "
            f"the split: {max(map(len, own)):,}; splits: {self.split_source})"
        )

    def strata(self, split: str) -> dict[str, NDArray[np.bool_]]:
        """Windows that lie mostly inside `data.regions` and the others; examples that are also in train and the others."""
        masks: dict[str, NDArray[np.bool_]] = {}
        table = self.config.regions or prepared_file(self.config, "regions.tsv")
        if table is not None:
            inside = shares_inside(self.labelled, self._chosen(split), table) > 0.5
            masks |= {"inside regions": inside, "outside regions": ~inside}
        if self.labelled.examples and split != "train":
            known = in_train(self.labelled)
            also = np.array([place(window) in known for window in self._chosen(split)], dtype=bool)
            if also.any():
                masks |= {"also in train": also, "not in train": ~also}
        return masks

    def label_statistics(self) -> dict[str, Any]:
        """Of the training labels; windows of a class are drawn as often as those of any other."""
        values, train = self.labelled.values, self._regions("train")
        if values is None:
            counts = Counter(region.label for region in train) if self.labelled.examples else Counter[int]()
            return {"counts": [counts[label] or 1 for label in range(len(self.classes))]}
        if self.outputs != "numbers":
            return {}
        own = values[[region.row for region in train]].astype(np.float64)
        for name, column in zip(self.classes, own.T, strict=True):
            there = column[~np.isnan(column)]
            if not len(there) or there.min() == there.max():
                what = "has no number" if not len(there) else f"is always {there[0]:g}"
                raise InputError(f"{name!r} {what} in training, so there is nothing to learn; leave it out")
        known = {"mean": np.nanmean(own, 0), "scale": np.nanstd(own, 0), "least": np.nanmin(own, 0)}
        return {key: row.tolist() for key, row in known.items()}

    def label_conflicts(self) -> dict[str, Any]:
        """Equal examples under several labels (`class_duplicates.label_conflicts`); {} for windows."""
        if self._conflicts is None:
            compared = self.labelled.examples and self.labelled.values is None
            self._conflicts = label_conflicts(self.labelled) if compared else {}
        return self._conflicts

    def fingerprint(self) -> str:
        """SHA-256 of the regions, their splits and classes."""
        return hash_of(
            f"{r.source}\t{r.record}\t{r.start}\t{r.end}\t{r.split}\t{r.label}" for r in self.labelled.regions
        )

    def summary(self) -> dict[str, Any]:
        """The data set in numbers, ready for JSON."""
        labelled = self.labelled
        splits: dict[str, dict[str, Any]] = {}
        for split in SPLITS:
            own = [region for region in labelled.regions if region.split == split]
            windows = self._chosen(split)
            bases, regions, evaluated = Counter[int](), Counter[int](), Counter[int]()
            for region in own:
                bases[region.label] += len(region)
                regions[region.label] += 1
            evaluated.update(window.label for window in windows)
            values = labelled.values
            kinds = (
                {
                    "classes": {
                        name: {"regions": regions[i], "bases": bases[i], "evaluation_windows": evaluated[i]}
                        for i, name in enumerate(labelled.classes)
                    }
                }
                if values is None
                else {"outputs": describe_values(labelled.names, values[[region.row for region in own]])}
            )
            splits[split] = {
                "regions": len(own),
                "bases": sum(bases.values()),
                "loci": len({region.locus for region in own}),
                "evaluation_windows": len(windows),
                "evaluation_loci": len({window.locus for window in windows}),
                "evaluation_sha256": hash_of(f"{w.source}\t{w.record}\t{w.start}\t{w.end}\t{w.label}" for w in windows),
            } | kinds
        return {
            "files": [
                {"name": file.name, "path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256}
                for file in labelled.files
            ],
            "task": self.task,
            "classes": list(self.classes),
            "sampling": "examples" if labelled.examples else "windows",
            "split_source": labelled.origin,
            "splits": splits,
            "splits_sha256": self.fingerprint(),
            "left_out": {"regions": len(labelled.left_out), "names": [r.record for r in labelled.left_out[:5]]},
            "dropped_from_valid": labelled.dropped,
            "max_unknown": self.config.max_unknown,
            "shared_sequences": {pair: row["equal"] for pair, row in labelled.between.items()},
            "near_sequences": {pair: row["near"] for pair, row in labelled.between.items()},
            "label_conflicts": self.label_conflicts(),
            "same_files": _same_files(labelled.files),
            "label_leaks": [leak.to_dict() for leak in (leaks_of(labelled) if labelled.values is None else ())],
            "length": self.length,
            "training_windows": len(self.windows(self.length)),
            "reverse_complement": self.config.reverse_complement,
        }


def _same_files(files: Sequence[FileFingerprint]) -> list[tuple[str, str]]:
    """FASTA files of two classes, CLASS/NAME, that hold the same."""
    first: dict[str, str] = {}
    pairs = [(first.setdefault(file.sha256, file.name), file.name) for file in files if "/" in file.name]
    return [(one, other) for one, other in pairs if one.partition("/")[0] != other.partition("/")[0]]


def summary_rows(described: dict[str, Any]) -> list[tuple[str, str]]:
    """A summary as (what, value) lines for people."""
    rows = [
        (
            _WORDS.get(described.get("task", ""), "classes"),
            f"{len(described['classes']):,}: {some(described['classes'])}",
        ),
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
        if "outputs" in row:
            rows += value_rows(split, row["outputs"], described["task"])
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
    if dropped := described.get("dropped_from_valid", 0):
        rows.append(("left out", f"{dropped:,} of validation that are also in train (data.shared_bases=drop)"))
    for key, how in (("shared_sequences", "the same"), ("near_sequences", "nearly the same")):
        shared = {pair: count for pair, count in described.get(key, {}).items() if count}
        if shared:
            listed = ", ".join(f"{count:,} of {pair}" for pair, count in shared.items())
            what = "sequences" if examples else "windows"
            rows.append(("in two splits", f"{listed} {what} are {how}: scores on them mean nothing"))
    if not examples and described.get("near_sequences") == {}:
        rows.append(("in two splits", f"not compared: train has more than {MAX_TRAIN_BASES:,} bases"))
    for one, other in described.get("same_files", ()):
        rows.append(("two labels", f"{one} and {other} are the same sequence, so nothing tells their classes apart"))
    if text := conflict_text(described.get("label_conflicts", {}), "all"):
        rows.append(("two labels", text))
    return rows + leak_rows(described["label_leaks"])


def conflict_text(conflicts: Mapping[str, Any], split: str) -> str | None:
    """`label_conflicts` for people, with the highest possible accuracy on a split; None without conflicts there."""
    ceiling = conflicts.get("ceiling", {}).get(split)
    if ceiling is None or ceiling == 1:
        return None
    name, label, other, other_label = conflicts["example"]
    count = conflicts["sequences"]
    return (
        f"{count:,} sequence{'s have' if count > 1 else ' has'} several labels, on one strand or the other, in "
        f"{conflicts['regions']:,} examples ({name}: {label}, {other}: {other_label}): accuracy on "
        f"{'all examples' if split == 'all' else split} cannot exceed {100 * ceiling:.2f} %"
    )
