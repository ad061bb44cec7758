"""The corpus of a synthetic task: nothing is stored, every sequence is made when it is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.corpus import Corpus, Example, Sample
from mamba_bio_audio.pipelines.spans import Span
from mamba_bio_audio.pipelines.split_names import SPLITS
from mamba_bio_audio.pipelines.synthetic.config import SyntheticConfig
from mamba_bio_audio.pipelines.synthetic.tasks import Samples
from mamba_bio_audio.pipelines.windows import EvaluationWindows

# More than any training reads.
ENDLESS = 1 << 40


class SymbolCodec:
    """Codec between ids and their numbers as text.

    >>> SymbolCodec(16).encode("3 15 0")
    array([ 3, 15,  0])
    >>> SymbolCodec(16).decode([3, 15, 0])
    '3 15 0'
    """

    name = "synthetic"
    unit = "symbol"
    start_id = None
    pad_id = 0

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    @property
    def sample_ids(self) -> tuple[int, ...]:
        """All."""
        return tuple(range(self.vocab_size))

    def check_sequence(self, text: Any) -> None:
        """Refuse what is not numbers of symbols with spaces between them.

        Raises:
            InputError: it is something else; names the first word that is wrong, and its position, from 1.
        """
        if not isinstance(text, str):
            raise InputError(f"a sequence of symbols is text, such as '3 15 0', not {type(text).__name__}")
        for at, word in enumerate(text.split(), start=1):
            if not (word.isascii() and word.isdecimal() and int(word) < self.vocab_size):
                raise InputError(
                    f"{word!r} at position {at:,} is no symbol; write numbers up to {self.vocab_size - 1:,}"
                )

    def check_prompt(self, text: str) -> None:
        """Refuse what is not a sequence of symbols, or is empty."""
        self.check_sequence(text)
        if not text.split():
            raise InputError("the prompt is empty; write numbers of symbols, such as '3 15 0'")

    def encode(self, text: str) -> NDArray[np.int64]:
        """Ids (L,) of a text."""
        return np.array([int(word) for word in text.split()], dtype=np.int64)

    def decode(self, ids: ArrayLike) -> str:
        """Text of ids (L,)."""
        return " ".join(str(int(number)) for number in np.asarray(ids))


class SyntheticCorpus(Corpus):
    """Sequences of a task: fresh ones for training, fixed ones in the splits valid and test.

    Args:
        config: which task.
        length: of the sequences.

    Raises:
        InputError: the task does not fit into this length.
    """

    split_source = "made as they are asked for"
    on_device = True

    def __init__(self, config: SyntheticConfig, length: int) -> None:
        super().__init__(SymbolCodec(config.vocab), length)
        self.config = config
        self.task = config.task
        self.answers = self.task.answers
        self._check(length)

    def _check(self, length: int) -> None:
        if length < self.task.fewest:
            raise InputError(
                f"{self.config.kind} needs sequences of at least {self.task.fewest:,} symbols with these settings, not "
                f"{length:,}; raise the length"
            )

    # Training.

    def windows(self, length: int) -> Any:
        """So many that none comes twice."""
        self._check(length)
        return _Endless(length)

    def examples(self, windows: Any, samples: Sequence[Sample]) -> list[Example]:
        """Made together; which of the windows they are does not matter."""
        first = samples[0]
        assert all((sample.seed, sample.stage) == (first.seed, first.stage) for sample in samples)
        numbers = torch.tensor([sample.number for sample in samples])
        return self._made(Samples(first.seed, first.stage, numbers), windows.length)

    def example(self, windows: Any, sample: Sample) -> Example:
        """A training sample."""
        return self.examples(windows, [sample])[0]

    def batch(self, seed: int, stage: int, numbers: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Tokens and targets (B, length) of training samples, where `numbers` lie; equal to those of `examples`."""
        return self.task.batch(Samples(seed, stage, numbers), length)

    def _made(self, samples: Samples, length: int) -> list[Example]:
        tokens, targets = (part.numpy() for part in self.task.batch(samples, length))
        return [Example(ids, label=label) for ids, label in zip(tokens, targets, strict=True)]

    # Evaluation.

    def spans(self, split: str) -> list[Span]:
        """The sequences of a split one after another; training has none that come again."""
        return [] if split == "train" else [Span(split, 0, self.config.examples * self.length)]

    def fetch(self, span: Any) -> NDArray[np.int64]:
        """Ids of a span of `spans`."""
        first, last = span.start // self.length, -(-span.end // self.length)
        made = self._made(self._fixed(span.record, torch.arange(first, last)), self.length)
        begin = span.start - first * self.length
        return np.concatenate([example.ids for example in made])[begin : begin + len(span)]

    def read(self, window: Any) -> Example:
        """One of the sequences, with its targets."""
        return self._made(self._fixed(window.record, torch.tensor([window.start // self.length])), self.length)[0]

    def lay_out(self, split: str) -> EvaluationWindows:
        """A window is a sequence."""
        ends = range(0, sum(map(len, self.spans(split))) + 1, self.length)
        windows = [Span(split, start, end) for start, end in pairwise(ends)]
        symbols = len(windows) * self.length
        asked = self.length if self.task.answers is None else self.task.answers
        return EvaluationWindows(windows, symbols, unknown=symbols - len(windows) * asked)

    def check_evaluation(self, split: str) -> None:
        """Raise `InputError` where sequences are never seen again."""
        if split == "train":
            raise InputError("training samples of a synthetic task are made fresh; evaluate valid or test")

    def fixed_batch(self, split: str, numbers: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Tokens and targets (B, length) of sequences of a split, of any length, where `numbers` lie."""
        self._check(length)
        return self.task.batch(self._fixed(split, numbers), length)

    def _fixed(self, split: str, numbers: Tensor) -> Samples:
        return Samples(self.config.examples_seed, -1 - SPLITS.index(split), numbers)

    # Description.

    def fingerprint(self) -> str:
        """SHA-256 of the task, whatever the length of its sequences."""
        text = json.dumps(self.config.model_dump(mode="json", exclude={"num_workers"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class _Endless:
    """Fresh windows of one length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return ENDLESS
