"""Loaders end their workers when they are told to."""

import multiprocessing

import torch
from torch.utils.data import IterableDataset

from mamba_bio_audio.pipelines.stream import loader, stop_workers


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
