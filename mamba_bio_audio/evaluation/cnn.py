"""A small convolutional classifier, trained from scratch: the bar for short sequences that k-mers do not set.

    one-hot (L, 4) -> conv 11 x 64 -> ReLU -> max of 4 -> conv 7 x 128 -> ReLU -> maximum and mean over L -> linear

Trained as our models are: AdamW, the epoch with the least validation loss, the rate chosen there on one seed, both strands
where none is known.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

Rows = Sequence[NDArray[Any]]
RATES = (1e-3, 3e-3)
WIDTHS, KERNELS, POOL = (64, 128), (11, 7), 4
BATCH, EPOCHS, PATIENCE = 128, 20, 4
DROPOUT, WEIGHT_DECAY = 0.2, 0.01


class SmallCnn(nn.Module):
    """Class logits (B, K) of ids (B, L), whose positions beyond a row's end hold the id `vocabulary`.

    Args:
        vocabulary: ids of the codec; one more stands for padding, and is read as zeros.
        classes: K.
    """

    def __init__(self, vocabulary: int, classes: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.first = nn.Conv1d(vocabulary, WIDTHS[0], KERNELS[0], padding=KERNELS[0] // 2)
        self.second = nn.Conv1d(WIDTHS[0], WIDTHS[1], KERNELS[1], padding=KERNELS[1] // 2)
        self.drop = nn.Dropout(DROPOUT)
        self.out = nn.Linear(2 * WIDTHS[1], classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (B, K)."""
        x = F.one_hot(ids.long(), self.vocabulary + 1)[..., : self.vocabulary].transpose(1, 2).float()
        # Zeros beyond the end of a row, as beyond the end of a batch, so that padding changes nothing.
        real = (ids != self.vocabulary)[:, None].float()
        x = F.max_pool1d(F.relu(self.first(x)) * real, POOL, ceil_mode=True)
        real = F.max_pool1d(real, POOL, ceil_mode=True)
        x = F.relu(self.second(x)) * real
        pooled = torch.cat([x.amax(2), x.sum(2) / real.sum(2)], 1)
        return torch.as_tensor(self.out(self.drop(pooled)))


class CnnFit(NamedTuple):
    """A trained network, and how well it does on validation."""

    model: SmallCnn
    rate: float
    epoch: int
    valid_nats: float


class Labelled(NamedTuple):
    """Ids (L,) of sequences, and their classes (n,)."""

    rows: Rows
    labels: NDArray[np.int64]


class CnnTask(NamedTuple):
    """What a network is trained on.

    Attributes:
        train, valid: its sequences.
        classes: K.
        vocabulary: ids of the codec.
        reverse: ids -> ids of the opposite strand, where both are read.
        device: "cpu" or "cuda".
    """

    train: Labelled
    valid: Labelled
    classes: int
    vocabulary: int
    reverse: Callable[[NDArray[Any]], NDArray[Any]] | None
    device: str


def fit_cnn(task: CnnTask, *, seed: int, rate: float, epochs: int = EPOCHS) -> CnnFit:
    """Train from random weights; returns those of the epoch with the least validation loss."""
    # Weights, order, strands and dropout.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _fit(task, rate, epochs)


def _fit(task: CnnTask, rate: float, epochs: int) -> CnnFit:
    model = SmallCnn(task.vocabulary, task.classes).to(task.device)
    forward = _padded(task.train.rows, task.vocabulary, task.device)
    strands = [forward] if task.reverse is None else [forward, _reversed(task.train.rows, task)]
    labels = torch.from_numpy(task.train.labels).to(task.device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    best = CnnFit(model, rate, 0, float("inf"))
    for epoch in range(1, epochs + 1):
        model.train()
        for batch in torch.randperm(len(labels)).split(BATCH):
            turn = int(torch.randint(len(strands), (1,)))
            rows = batch.to(task.device)
            loss = F.cross_entropy(model(strands[turn][rows]), labels[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        p = cnn_probabilities(model, task.valid.rows, task)
        own = np.maximum(p[np.arange(len(p)), task.valid.labels], 1e-12)
        nats = float(-np.log(own).mean())
        if nats < best.valid_nats:
            best = CnnFit(copy.deepcopy(model), rate, epoch, nats)
        elif epoch - best.epoch >= PATIENCE:
            break
    return best


def cnn_probabilities(model: SmallCnn, rows: Rows, task: CnnTask) -> NDArray[np.float64]:
    """Class probabilities (n, K), the mean of both strands where both are read."""
    model.eval()
    strands = [_padded(rows, task.vocabulary, task.device)]
    if task.reverse is not None:
        strands.append(_reversed(rows, task))
    with torch.no_grad():
        p = [torch.cat([model(part).double().softmax(-1) for part in ids.split(1024)]) for ids in strands]
    return np.asarray(torch.stack(p).mean(0).cpu().numpy(), dtype=np.float64)


def _reversed(rows: Rows, task: CnnTask) -> Tensor:
    assert task.reverse is not None
    return _padded([task.reverse(row) for row in rows], task.vocabulary, task.device)


def _padded(rows: Rows, pad: int, device: str) -> Tensor:
    ids = np.full((len(rows), max(map(len, rows))), pad, dtype=np.uint8)
    for to, row in zip(ids, rows, strict=True):
        to[: len(row)] = row
    return torch.from_numpy(ids).to(device)
