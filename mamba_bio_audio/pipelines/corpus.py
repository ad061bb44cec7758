"""What a corpus is: an opened data set, whatever its domain. The data module (`pipelines/data.py`) makes batches of any."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.spans import Span, size_of
from mamba_bio_audio.pipelines.split_names import SPLITS
from mamba_bio_audio.pipelines.windows import EvaluationWindows, evaluation_windows, evenly_spaced, tile

Ids = NDArray[Any]


class Stored(Protocol):
    """Records of files that are read in pieces, so that their length costs no memory."""

    @property
    def records(self) -> Mapping[str, int]:
        """Length of each record, in symbols, by its name; in the order of the files."""

    def fetch(self, record: str, start: int, end: int) -> Ids:
        """Token ids of the symbols [start, end) of a record, shape (end - start,)."""

    def resolve(self, name: str) -> str:
        """The record that a user means by a name.

        Raises:
            InputError: there is none; the message says which there are.
        """

    def contents(self) -> Sequence[Mapping[str, str]]:
        """Name and SHA-256 of every file, by which it is known that they are still the same."""


class Sample(NamedTuple):
    """A training sample: all that the random draws of its reading depend on.

    Attributes:
        seed: random seed of the training.
        stage: stage of the length warm-up.
        number: index of the sample in its stage, counted over all ranks.
        order: sample number -> position among the training windows.
    """

    seed: int
    stage: int
    number: int
    order: Callable[[int], int]

    @property
    def window(self) -> int:
        """Which training window it is."""
        return self.order(self.number)


class Example(NamedTuple):
    """A window as it is read.

    Attributes:
        ids: symbols (n,). Without a label each is the target of the one before it.
        label: None where there are none. Of the whole window: the number of its class, or numbers float32 (K,), NaN where one
            is not known; it becomes the target of the last symbol. Of every symbol: numbers of classes int64 (n,), -100 where
            there is none, or float32 (n, K); a symbol's target is what stands beside it.
        unscored: bool (n,), symbols that are no targets; None: all are.
        shift: added to ids as inputs, by which a model knows the class of a sequence (`models/inputs.py`).
        inputs: ids (n,) that are read in place of `ids`, which stay the targets; None: `ids`.
    """

    ids: Ids
    label: int | NDArray[Any] | None = None
    unscored: NDArray[np.bool_] | None = None
    shift: int = 0
    inputs: Ids | None = None


def begun(ids: Ids, start_id: int | None) -> Ids:
    """Ids (n,) after the one that inputs begin with, if there is one; in a wider type where theirs cannot hold it."""
    if start_id is None:
        return ids
    kind = ids.dtype if start_id <= np.iinfo(ids.dtype).max else np.int64
    return np.concatenate([np.full(1, start_id, kind), ids])


class Corpus(ABC):
    """A data set that has been opened: spans of symbols in splits, and how training and evaluation windows are read.

    A corpus needs `spans` and `fetch`; everything else has a default: windows that tile the spans, read as they are.

    Args:
        codec: of the domain: `start_id` (what inputs begin with, or None), `unit`, `pad_id` (fills short windows on the right).
        length: L, length of evaluation windows, and of training windows outside a length warm-up.

    Attributes:
        classes: names of what is predicted, in order: classes, labels, numbers; None: there are no labels, and the next symbol
            is predicted.
        outputs: what these are: "classes", "labels" or "numbers" (`models/tasks.py`).
        conditions: names of the classes that windows show as inputs; empty where they show none.
        groups: names of the parts of a split, such as genomes, whose loss is also given apart.
        files: paths of everything that windows are read from.
        split_source: where the splits come from, in words.
        on_device: whether training batches can be made on any device (`batch`).
        answers: targets of every sequence, where they are few; None: all positions can be scored.
    """

    classes: tuple[str, ...] | None = None
    outputs: str = "classes"
    conditions: tuple[str, ...] = ()
    groups: Sequence[str] = ("all",)
    files: Sequence[str] = ()
    split_source: str = ""
    on_device: bool = False
    answers: int | None = None

    def __init__(self, codec: Any, length: int) -> None:
        self.codec = codec
        self.length = length
        self._evaluation: dict[str, EvaluationWindows] = {}

    @abstractmethod
    def spans(self, split: str) -> list[Span]:
        """Disjoint spans of a split: train, valid or test."""

    @abstractmethod
    def fetch(self, span: Any) -> Ids:
        """Ids (len(span),) of a span. A file that is shorter than it was when it was opened is an error."""

    def condition(self, classes: Sequence[str] | str) -> None:
        """Show the class of each window from now on.

        Args:
            classes: names in the order of their numbers, or "folders" for all that the data have.

        Raises:
            InputError: the data have no such classes.
        """
        raise InputError("model.classes needs recordings in a folder per class, data.kind=audio; set it to null")

    # Training.

    def windows(self, length: int) -> Any:
        """Windows of the training split at some length; anything that has a size."""
        return tile(self.spans("train"), length, shared=self._shared)

    def longest(self, windows: Any, length: int) -> int:
        """Positions of the longest of the training windows of a length, to which batches are padded; at most `length`."""
        return length

    def shares(self, windows: Any) -> list[tuple[NDArray[np.int32], int]]:
        """Where parts of the training windows have shares of their own in an epoch: their windows, and how many it takes."""
        return []

    def example(self, windows: Any, sample: Sample) -> Example:
        """A training sample. It may depend on `sample` in any way, and on nothing else that changes."""
        return self.read(windows[sample.window])

    def examples(self, windows: Any, samples: Sequence[Sample]) -> list[Example]:
        """Training samples of one batch, each what `example` gives; for corpora that make many as quickly as one."""
        return [self.example(windows, sample) for sample in samples]

    def batch(self, seed: int, stage: int, numbers: Any, length: int) -> tuple[Any, Any]:
        """Tokens and targets (B, length) of training samples, made where their numbers lie; only where `on_device`.

        Args:
            seed: of the training.
            stage: of the length warm-up.
            numbers: int64 tensor (B,).
            length: of the sequences.
        """
        raise NotImplementedError

    def check_training(self) -> None:
        """Raise `InputError` when there is nothing to train on."""
        if not len(self.windows(self.length)):
            raise InputError(f"data.path: no window to train on; check the files and the splits ({self.split_source})")

    # Evaluation.

    def evaluation_windows(self, split: str) -> EvaluationWindows:
        """Windows that score each symbol of a split once, or with labels the windows that a split is evaluated on."""
        if split not in SPLITS:
            raise InputError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
        if split not in self._evaluation:
            self._evaluation[split] = self.lay_out(split)
        return self._evaluation[split]

    def lay_out(self, split: str) -> EvaluationWindows:
        """The evaluation windows of a split, made anew."""
        return evaluation_windows(self.spans(split), self.length, shared=self._shared)

    def read(self, window: Any) -> Example:
        """An evaluation window as it is read."""
        return Example(begun(self.fetch(window), self.codec.start_id))

    def group(self, window: Any) -> int:
        """Which of `groups` a window belongs to."""
        return 0

    def spread(self, windows: int, max_tokens: int) -> NDArray[np.int64]:
        """Positions of evaluation windows, spread evenly: at least one, at most `max_tokens` tokens in all."""
        return evenly_spaced(windows, max(1, max_tokens // self.length))

    def check_evaluation(self, split: str) -> None:
        """Raise `InputError` when there is nothing to evaluate on."""
        if not len(self.evaluation_windows(split).windows):
            raise InputError(
                f"the {split} split has no {self.codec.unit} that can be scored; check {self.split_source}"
            )

    # Only with labels.

    def strata(self, split: str) -> dict[str, NDArray[np.bool_]]:
        """Masks over the evaluation windows of a split, by name, whose accuracy is also given apart."""
        return {}

    def label_statistics(self) -> dict[str, Any]:
        """Of the labels in training: `mean`, `scale` (standard deviation) and `least` of numbers, `counts` of classes.

        Raises:
            InputError: a number never changes in training, so that there is nothing to learn.
        """
        return {}

    def label_conflicts(self) -> dict[str, Any]:
        """Equal windows under several labels, ready for JSON; {} where they are not looked for."""
        return {}

    # Description.

    def fingerprint(self) -> str:
        """SHA-256 of the splits, whatever the length of the windows."""
        rows = sorted(f"{s.record}\t{s.start}\t{s.end}\t{split}\n" for split in SPLITS for s in self.spans(split))
        return hashlib.sha256("".join(rows).encode()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """The data set in numbers, ready for JSON; at least these."""
        splits = {
            split: {
                "symbols": size_of(self.spans(split)),
                "evaluation_windows": len(self.evaluation_windows(split).windows),
            }
            for split in SPLITS
        }
        return {
            "files": [hashed_file(path) for path in self.files],
            "split_source": self.split_source,
            "splits": splits,
            "splits_sha256": self.fingerprint(),
            "length": self.length,
            "training_windows": len(self.windows(self.length)),
        }

    @property
    def _shared(self) -> int:
        """Symbols that neighbouring windows share: none where inputs begin with an id of the codec's own."""
        return int(self.codec.start_id is None)


def hash_of(lines: Iterable[str]) -> str:
    """SHA-256 of sorted lines."""
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def hashed_file(path: str) -> dict[str, Any]:
    """Name, path, size and SHA-256 of a file, ready for JSON."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": Path(path).name, "path": path, "size_bytes": Path(path).stat().st_size, "sha256": digest}
