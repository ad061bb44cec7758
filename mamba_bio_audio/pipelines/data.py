"""The one data module: training batches and evaluation batches of any corpus."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from mamba_bio_audio.pipelines.contract import DataSection, Progress
from mamba_bio_audio.pipelines.corpus import Corpus, Example
from mamba_bio_audio.pipelines.domains import domain_of
from mamba_bio_audio.pipelines.stream import StagedStream, Stretch, TrainingStream, loader, share
from mamba_bio_audio.pipelines.windows import Windows

IGNORED = -100


class CorpusStream(TrainingStream):
    """Training samples of a corpus; sample i depends on (seed, stage, i) alone.

    Args:
        corpus: how windows are read.
        windows: `corpus.windows` of some length.
        length: positions per sequence in the batches, at least those of the longest window.
        stream: of `TrainingStream`.
    """

    def __init__(self, corpus: Corpus, windows: Any, length: int, **stream: int) -> None:
        super().__init__(windows, shares=corpus.shares(windows), **stream)
        self.corpus = corpus
        self.windows = windows
        self.length = length

    def example(self, sample: int) -> Example:
        """Sample number i."""
        return self.corpus.example(self.windows, self.sample(sample))

    def read(self, samples: range) -> dict[str, torch.Tensor]:
        """Tokens and targets, (B, L)."""
        examples = self.corpus.examples(self.windows, [self.sample(number) for number in samples])
        return batch_of(examples, self.length, self.corpus.codec.pad_id)


class EvaluationDataset(Dataset[dict[str, torch.Tensor]]):
    """Evaluation windows one by one: tokens (L,), targets (L,) and, without labels, `group`: a number into `corpus.groups`.

    Attributes:
        windows: what they are, in order.
    """

    def __init__(self, corpus: Corpus, windows: Any) -> None:
        self.corpus = corpus
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        window = self.windows[index]
        batch = batch_of([self.corpus.read(window)], self.corpus.length, self.corpus.codec.pad_id)
        example = {name: rows[0] for name, rows in batch.items()}
        if self.corpus.classes is None:
            example["group"] = torch.tensor(self.corpus.group(window))
        return example


class DataModule(LightningDataModule):
    """Training batches and evaluation batches of the data set of a data section.

    Args:
        config: which data.
        length: inputs per window, L.
        batch_size: windows per batch and rank.
        seed: random seed for order and augmentation.
        start_sample: training samples (windows) already consumed, over all ranks; a resumed run continues with the next.
        rank, world_size: this process among those that train together.
        progress: called while files are indexed, read and compared.

    Attributes:
        codec: codec of the data's domain.
        corpus: the data set, opened when it is first asked for.
        task: what labels are read for (`head.task`), set before the data set is opened; None is the first of the section's.
        classes: `model.classes`, set before the data set is opened; None where windows show no class.
        stretches: lengths to train at one after another, from where training continues; empty is `length` throughout, from
            `start_sample` on.
    """

    def __init__(
        self,
        config: DataSection,
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
        if length < 1 or batch_size < 1 or not 0 <= rank < world_size or start_sample < 0 or not 0 <= seed < 2**63:
            raise ValueError(
                "needs length >= 1, batch_size >= 1, 0 <= rank < world_size, start_sample >= 0, 0 <= seed < "
                f"2^63; got {length}, {batch_size}, {rank} of {world_size}, {start_sample}, {seed}"
            )
        self.config = config
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.start_sample = start_sample
        self.rank = rank
        self.world_size = world_size
        self.stretches: Sequence[Stretch] = ()
        self.task: str | None = None
        self.classes: Sequence[str] | str | None = None
        domain = domain_of(config.kind)
        self.codec = domain.codec(config)
        self._open = partial(domain.open, config, length=length, progress=progress)
        self._corpus: Corpus | None = None

    def setup(self, stage: str | None = None) -> None:
        """Open the data set, before workers start."""
        if self._corpus is None:
            self._corpus = self._open(task=self.task)
            if self.classes is not None:
                self._corpus.condition(self.classes)

    # Of a type that the domain knows: callers above use what they know to be there.
    @property
    def corpus(self) -> Any:
        """The data set; it is opened first where it has not been."""
        self.setup()
        return self._corpus

    def training_windows(self, length: int) -> Any:
        """Windows of the training split at some length."""
        return self.corpus.windows(length)

    def stream(self, stretch: Stretch | None = None) -> CorpusStream:
        """Training samples of a stretch; None is full length throughout."""
        stretch = stretch or Stretch(self.length, self.batch_size, start_sample=self.start_sample)
        windows = self.training_windows(stretch.length)
        return CorpusStream(
            self.corpus,
            windows,
            self.corpus.longest(windows, stretch.length),
            batch_size=stretch.batch_size,
            seed=self.seed,
            start_sample=stretch.start_sample,
            rank=self.rank,
            world_size=self.world_size,
            stage=stretch.stage,
        )

    def train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """Endless batches of int64 tokens (B, L) and targets (B, L), -100 where nothing is scored."""
        self.corpus.check_training()
        stretches: Sequence[Stretch | None] = self.stretches or [None]
        streams = [(self.stream(stretch), stretch and stretch.batches) for stretch in stretches]
        return loader(StagedStream(streams), None, self.config.num_workers)

    def evaluation_dataset(self, split: str, max_tokens: int | None = None) -> EvaluationDataset:
        """Evaluation windows of a split, always the same.

        Args:
            split: train, valid or test.
            max_tokens: keep only so many windows, spread evenly, that their positions are at most this many (one at least).
        """
        corpus = self.corpus
        windows = corpus.evaluation_windows(split).windows
        corpus.check_evaluation(split)
        if max_tokens is not None:
            kept = corpus.spread(len(windows), max_tokens)
            windows = windows.select(kept) if isinstance(windows, Windows) else [windows[at] for at in kept.tolist()]
        return self.dataset(windows)

    def dataset(self, windows: Any) -> EvaluationDataset:
        """Some windows as they are evaluated."""
        return EvaluationDataset(self.corpus, windows)

    def evaluation_dataloader(
        self, split: str, batch_size: int | None = None, max_tokens: int | None = None
    ) -> DataLoader[dict[str, torch.Tensor]]:
        """Batches of an evaluation dataset in fixed order; this rank's share of them.

        The shares are disjoint and complete, so sums over ranks are exact; keep Lightning's own sampler off.
        """
        dataset = self.evaluation_dataset(split, max_tokens)
        return loader(
            share(dataset, self.rank, self.world_size), batch_size or self.batch_size, self.config.num_workers
        )

    def summary(self) -> dict[str, Any]:
        """The data set in numbers, ready for JSON."""
        found: dict[str, Any] = self.corpus.summary()
        return found


def batch_of(examples: Sequence[Example], length: int, pad_id: int) -> dict[str, torch.Tensor]:
    """Tokens, int64 (B, L), and targets of windows, padded on the right.

    Without labels tokens are s0 .. s(L-1) and targets s1 .. sL of up to L + 1 symbols; a shorter window's last symbol keeps
    its place as an input. With labels tokens are up to L symbols; a label of the whole window is the target of its last
    symbol, one per symbol stands where it is. Targets are int64 (B, L), -100 where nothing is scored, or for labels that are
    numbers float32 (B, L, K), NaN there.
    """
    tokens = np.full((len(examples), length), pad_id, dtype=np.int64)
    first = examples[0].label
    if isinstance(first, np.ndarray) and first.dtype.kind == "f":
        targets = np.full((len(examples), length, first.shape[-1]), np.nan, dtype=np.float32)
    else:
        targets = np.full((len(examples), length), IGNORED, dtype=np.int64)
    for token, target, (ids, label, unscored, shift, inputs) in zip(tokens, targets, examples, strict=True):
        if len(ids) > length + (label is None):
            raise ValueError(f"{len(ids)} symbols do not fit into a window of {length}")
        token[: len(ids)] = (ids if inputs is None else inputs)[:length]
        token[: len(ids)] += shift
        if label is not None:
            if np.ndim(label) == target.ndim:
                target[: len(ids)] = label
            else:
                target[len(ids) - 1] = label
            continue
        target[: len(ids) - 1] = ids[1:]
        if unscored is not None:
            target[: len(ids) - 1][unscored[1:]] = IGNORED
    return {"tokens": torch.from_numpy(tokens), "targets": torch.from_numpy(targets)}
