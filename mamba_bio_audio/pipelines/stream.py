"""Endless, resumable training batches and fixed evaluation batches, whatever the domain."""

from __future__ import annotations

import signal
from abc import abstractmethod
from collections.abc import Iterator, Sequence, Sized
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate, get_worker_info

from mamba_bio_audio.pipelines.corpus import Sample
from mamba_bio_audio.pipelines.draws import Draws
from mamba_bio_audio.signals import STOPPING


class Stretch(NamedTuple):
    """What remains of a part of the training that has one window length."""

    length: int
    batch_size: int  # windows per batch and rank
    stage: int = 0  # number of the length stage; its order and strands are its own
    start_sample: int = 0  # samples of the stage already consumed, over all ranks
    batches: int | None = None  # batches per rank to come; None is endless


class TrainingStream(IterableDataset[dict[str, torch.Tensor]]):
    """An endless stream of training batches, the same whatever the number of workers.

    Sample i, counted over all ranks from the start of training, is window k = i mod n of the permutation of
    epoch i // n, which depends on (seed, stage, epoch) alone. Rank r of R takes samples r, r + R, ... after
    `start_sample`. A worker yields whole batches, every W-th one, and DataLoader takes them from its workers in turn.

    Args:
        windows: what is read; only their number matters here.
        shares: where groups of windows have shares of their own in an epoch: the windows of each group, and how many of
            them an epoch takes.
        batch_size: windows per batch and rank.
        seed: random seed for the order.
        start_sample: samples already consumed, over all ranks.
        rank, world_size: this process among those that train together.
        stage: stage of the length warm-up; each has its own order.
    """

    def __init__(
        self,
        windows: Sized,
        *,
        batch_size: int,
        seed: int,
        start_sample: int = 0,
        rank: int = 0,
        world_size: int = 1,
        stage: int = 0,
        shares: Sequence[tuple[NDArray[np.int32], int]] = (),
    ) -> None:
        self._windows = len(windows)
        self._shares = shares
        self.stage = stage
        self.batch_size = batch_size
        self.seed = seed
        self.start_sample = start_sample
        self.rank = rank
        self.world_size = world_size
        self._epoch = -1
        self._order: NDArray[np.int32] = np.zeros(0, dtype=np.int32)

    @abstractmethod
    def read(self, samples: range) -> dict[str, torch.Tensor]:
        """Tokens and targets, (B, L), of some samples, given by their numbers."""

    def sample(self, number: int) -> Sample:
        """The values that reading sample number i depends on."""
        return Sample(self.seed, self.stage, number, self.window_index)

    def window_index(self, sample: int) -> int:
        """The window that is sample number i."""
        epoch, position = divmod(sample, self._windows)
        if epoch != self._epoch:
            self._order = self.order(epoch)
            self._epoch = epoch
        return int(self._order[position])

    def order(self, epoch: int) -> NDArray[np.int32]:
        """Windows of an epoch in their order: every one once, or of each group its share, going round its own windows."""
        if not self._shares:
            return self.permutation(np.arange(self._windows, dtype=np.int32), epoch)
        taken = []
        for number, (own, quota) in enumerate(self._shares, start=1):
            at = epoch * quota
            while at < (epoch + 1) * quota:
                round_, first = divmod(at, len(own))
                last = min(len(own), first + (epoch + 1) * quota - at)
                taken.append(self.permutation(own, round_, number)[first:last])
                at += last - first
        return self.permutation(np.concatenate(taken), epoch)

    def permutation(self, values: NDArray[np.int32], epoch: int, group: int = 0) -> NDArray[np.int32]:
        """The seeded permutation of an epoch; groups have permutations of their own."""
        return Draws.ORDER.random(self.seed, 0, self.stage, group, epoch).permutation(values)

    def batch(self, number: int) -> dict[str, torch.Tensor]:
        """Batch `number` of this rank."""
        first = self.start_sample + number * self.batch_size * self.world_size + self.rank
        return self.read(range(first, first + self.batch_size * self.world_size, self.world_size))

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        yield from _share_of_worker(self)


class StagedStream(IterableDataset[dict[str, torch.Tensor]]):
    """Training streams one after another; batches of all of them are numbered through, so workers change nothing.

    Args:
        streams: each with the number of batches to take from it; None, for the last one, is endless.
    """

    def __init__(self, streams: Sequence[tuple[TrainingStream, int | None]]) -> None:
        self.streams = list(streams)

    def batch(self, number: int) -> dict[str, torch.Tensor]:
        """Batch `number` of this rank, counted from the first stream's start."""
        for stream, batches in self.streams:
            if batches is None or number < batches:
                return stream.batch(number)
            number -= batches
        raise IndexError("the last stream must be endless")

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        yield from _share_of_worker(self)


def _share_of_worker(stream: TrainingStream | StagedStream) -> Iterator[dict[str, torch.Tensor]]:
    """Yields every W-th batch of a stream, starting with batch w in worker w of W."""
    worker = get_worker_info()
    number, step = (worker.id, worker.num_workers) if worker else (0, 1)
    while True:
        yield stream.batch(number)
        number += step


def share(dataset: Dataset[Any], rank: int, world_size: int) -> Dataset[Any]:
    """A rank's share of a map-style dataset; the shares are disjoint and complete, so sums over ranks are exact."""
    return dataset if world_size == 1 else Subset(dataset, range(rank, len(dataset), world_size))  # type: ignore[arg-type]


def loader(dataset: Any, batch_size: int | None, workers: int) -> DataLoader[dict[str, torch.Tensor]]:
    """A loader whose workers survive Ctrl-C until the main process has saved.

    Args:
        dataset: of whole batches, or with `batch_size` of examples, whose batches come without common padding.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=None if batch_size is None else without_padding,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_the_main_process,
        # Nothing here draws from it, but without one every iterator would take a number from torch's own generator.
        generator=torch.Generator(),
    )


def without_padding(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A batch of examples, cut after the last position that is scored in any of them, to a multiple of 256, or below 256 of 32.

    No position depends on later ones, so the results are those of whole windows, but spans of 131,072 in windows of
    2^20 cost an eighth.
    """
    batch: dict[str, torch.Tensor] = default_collate(examples)
    targets = batch["targets"]
    there = ~targets.isnan().all(-1) if targets.is_floating_point() else targets != -100
    scored = there.any(0).nonzero()
    last = int(scored[-1]) + 1 if len(scored) else 1
    unit = 256 if last > 256 else 32
    keep = -(-last // unit) * unit
    return batch | {name: batch[name][:, :keep] for name in ("tokens", "targets")}


def stop_workers(loader: DataLoader[Any]) -> None:
    """End a loader's workers now; at the end of the process they would wait for two minutes."""
    iterator = loader._iterator
    if iterator is not None and loader.num_workers:
        iterator._shutdown_workers()  # type: ignore[attr-defined]
    loader._iterator = None


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Ignore stopping signals, which reach the whole process group: the main process saves first, then ends its workers.

    If it does not, they end themselves two minutes after a SIGTERM, so that nothing waits for them for ever.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(120))
