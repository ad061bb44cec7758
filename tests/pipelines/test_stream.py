"""The order of training windows, and loaders that end their workers when they are told to."""

import multiprocessing

import numpy as np
import torch
from torch.utils.data import IterableDataset

from mamba_bio_audio.pipelines.stream import StagedStream, TrainingStream, loader, stop_workers


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield {"tokens": torch.zeros(1)}


def test_stop_workers():
    """Workers take a SIGTERM as two minutes' notice, so they must not be left to the end of the process."""
    batches = loader(Endless(), None, 2)
    next(iter(batches))
    assert len(multiprocessing.active_children()) == 2
    stop_workers(batches)
    assert not multiprocessing.active_children()
    next(iter(batches))
    stop_workers(batches)


def test_without_workers_there_is_nothing_to_stop():
    batches = loader(Endless(), None, 0)
    next(iter(batches))
    stop_workers(batches)
    # Nor before they were started.
    stop_workers(loader(Endless(), None, 2))


class Numbered(TrainingStream):
    """Batches that hold the numbers of their windows."""

    def read(self, samples: range) -> dict[str, torch.Tensor]:
        return {"tokens": torch.tensor([self.window_index(sample) for sample in samples])}


def windows(stream, batches: int) -> list[int]:
    return torch.cat([stream.batch(number)["tokens"] for number in range(batches)]).tolist()


def drawn(seed: int, stage: int, epoch: int, count: int = 20) -> list[int]:
    """The order as it is defined: a permutation drawn by seed, stage and epoch."""
    bits = np.random.Philox(key=[seed, 1], counter=[0, stage, 0, epoch])
    return np.random.Generator(bits).permutation(np.arange(count)).tolist()


def test_order_of_windows():
    """Every epoch of every stage is a permutation of its own, of the seed, and not the order of the windows."""
    orders = {}
    for seed in (0, 5):
        for stage in (0, 1):
            found = windows(Numbered(range(20), batch_size=4, seed=seed, stage=stage), 10)
            for epoch in (0, 1):
                orders[seed, stage, epoch] = found[20 * epoch : 20 * epoch + 20]
                assert orders[seed, stage, epoch] == drawn(seed, stage, epoch)
    assert all(sorted(order) == list(range(20)) for order in orders.values())
    assert len({tuple(order) for order in [*orders.values(), list(range(20))]}) == 9


def test_order_of_length_stages():
    """A later stage goes through its own windows in its own order, whatever the stages before it took."""
    stages = [
        (Numbered(range(30), batch_size=6, seed=3, stage=0), 2),
        (Numbered(range(20), batch_size=4, seed=3, stage=1), 5),
        (Numbered(range(20), batch_size=4, seed=3, stage=2), None),
    ]
    found = windows(StagedStream(stages), 17)
    assert found[:12] == drawn(3, 0, 0, 30)[:12]
    assert found[12:32] == drawn(3, 1, 0)
    assert found[32:52] == drawn(3, 2, 0)
    assert found[52:] == drawn(3, 2, 1)
    # Resumed inside a stage.
    assert windows(Numbered(range(20), batch_size=4, seed=3, stage=1, start_sample=8), 3) == drawn(3, 1, 0)[8:]
