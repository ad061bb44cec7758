"""What a head can be asked: which outputs it has, where they are scored, by which loss, and what its scores mean.

    task         targets                                    one per      outputs
    classes      number of the class                        sequence     classes
    multilabel   1, 0 or NaN of each label                  sequence     labels
    regression   numbers, NaN where not known               sequence     numbers
    bases        number of the class, or numbers            base         classes, numbers
    tracks       numbers                                    bin          numbers

    outputs      loss of scores s                           values
    classes      -log softmax(s)[y]                         softmax(s)
    labels       -y log p - (1 - y) log (1 - p)             p = sigmoid(s)
    numbers      mse      1/2 (s - (y - mean) / scale)^2    mean + scale s
                 poisson  (r - y log r) / mean              r = mean exp(s)

mean and scale are those of the training data (`HeadConfig.mean`, `HeadConfig.scale`), one per output.

`TASKS` and `OUTPUTS` are the whole registry in `models/`; how outputs are measured is `evaluation/reports.py`, by the same
names. Nothing else asks which task it is.

Legend: B batch, L length, K outputs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_bio_audio.models.head_config import HeadConfig

IGNORED = -100


class Constants(NamedTuple):
    """What a loss needs of the data, on the device of the scores: a step that is recorded may copy nothing to it."""

    mean: Tensor  # (K,)
    scale: Tensor  # (K,)
    weights: Tensor  # (K,)

    @classmethod
    def of(cls, head: HeadConfig) -> Constants:
        """Those of a head, fp64; 0, 1 and 1 where it has none."""
        count = len(head.classes or ())
        weights = head.class_weights if isinstance(head.class_weights, tuple) else None
        given = (head.mean or (0.0,) * count, head.scale or (1.0,) * count, weights or (1.0,) * count)
        return cls(*(torch.tensor(row, dtype=torch.float64) for row in given))


class Outputs(ABC):
    """The outputs of a head, of one kind.

    Attributes:
        name: key of `OUTPUTS`.
        floating: targets are floating-point (..., K), NaN where nothing is scored; otherwise they are numbers of classes
            (...), -100 where nothing is scored.
    """

    name: ClassVar[str]
    floating: ClassVar[bool] = True

    @abstractmethod
    def loss(self, scores: Tensor, targets: Tensor, head: HeadConfig, known: Constants) -> tuple[Tensor, Tensor]:
        """Summed loss (fp32 or fp64) and number of scored targets (int64).

        Args:
            scores: (..., K).
            targets: as `floating` says.
            head: its settings; without label smoothing outside of training.
            known: of the data, in the type of the scores.
        """

    @abstractmethod
    def values(self, scores: Tensor, head: HeadConfig) -> Tensor:
        """Probabilities or numbers (..., K) that the scores (..., K) mean, fp64."""

    @abstractmethod
    def columns(self, names: Sequence[str]) -> list[str]:
        """Names of the columns of a table of predictions."""

    @abstractmethod
    def cells(self, values: Sequence[float], names: Sequence[str]) -> list[str]:
        """The values of one prediction (K,) for these columns."""

    def loss_name(self, head: HeadConfig) -> str:
        """What the loss is counted in, for people; "nats" where it is a likelihood."""
        return "nats"

    def blind(self, count: int) -> float:
        """Loss per target of a model that says the same of everything; NaN where that is no fixed number."""
        return math.nan


class Classes(Outputs):
    """One of K classes."""

    name = "classes"
    floating = False

    def loss(self, scores: Tensor, targets: Tensor, head: HeadConfig, known: Constants) -> tuple[Tensor, Tensor]:
        """Cross-entropy, weighted by class where `class_weights` says so."""
        loss = F.cross_entropy(
            scores.flatten(0, -2),
            targets.flatten(),
            known.weights if head.class_weights is not None else None,
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=head.label_smoothing,
        )
        return loss, (targets != IGNORED).sum()

    def values(self, scores: Tensor, head: HeadConfig) -> Tensor:
        """Probabilities, of sum 1."""
        return scores.double().softmax(-1)

    def columns(self, names: Sequence[str]) -> list[str]:
        """The most probable class, and the probability of each."""
        return ["predicted", *(f"p_{name}" for name in names)]

    def cells(self, values: Sequence[float], names: Sequence[str]) -> list[str]:
        """As the columns say."""
        best = max(range(len(names)), key=lambda at: values[at])
        return [names[best], *(f"{value:.6g}" for value in values)]

    def blind(self, count: int) -> float:
        """All classes alike."""
        return math.log(count)


class Labels(Outputs):
    """Any of K labels, each there or not."""

    name = "labels"

    def loss(self, scores: Tensor, targets: Tensor, head: HeadConfig, known: Constants) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy of every label that is known."""
        there = ~targets.isnan()
        y = targets.nan_to_num().to(scores.dtype)
        y = y * (1 - head.label_smoothing) + head.label_smoothing / 2
        loss = F.binary_cross_entropy_with_logits(scores, y, there.to(scores.dtype), reduction="sum")
        return loss, there.sum()

    def values(self, scores: Tensor, head: HeadConfig) -> Tensor:
        """A probability for each label."""
        return scores.double().sigmoid()

    def columns(self, names: Sequence[str]) -> list[str]:
        """The labels more probable than not, separated by `;`, and the probability of each."""
        return ["predicted", *(f"p_{name}" for name in names)]

    def cells(self, values: Sequence[float], names: Sequence[str]) -> list[str]:
        """As the columns say; `-` where no label is more probable than not."""
        there = [name for name, value in zip(names, values, strict=True) if value >= 0.5]
        return [";".join(there) or "-", *(f"{value:.6g}" for value in values)]

    def blind(self, count: int) -> float:
        """Every label there or not with equal probability."""
        return math.log(2)


class Numbers(Outputs):
    """K numbers."""

    name = "numbers"

    def loss(self, scores: Tensor, targets: Tensor, head: HeadConfig, known: Constants) -> tuple[Tensor, Tensor]:
        """Half the squared error in standard deviations, or the Poisson loss in units of the mean (`head.loss`)."""
        there = ~targets.isnan()
        # NaN would come back in the gradient, however it is left out of the sum.
        y = targets.nan_to_num().to(scores.dtype)
        if head.loss == "poisson":
            each = scores.exp() - y / known.mean * (scores + known.mean.log())
        else:
            each = 0.5 * (scores - (y - known.mean) / known.scale).square()
        return torch.where(there, each, 0.0).sum(), there.sum()

    def values(self, scores: Tensor, head: HeadConfig) -> Tensor:
        """In the units of the data."""
        scores = scores.double()
        mean, scale = (row.to(scores.device) for row in Constants.of(head)[:2])
        return mean * scores.exp() if head.loss == "poisson" else mean + scale * scores

    def loss_name(self, head: HeadConfig) -> str:
        """By the loss."""
        if head.loss == "poisson":
            return "Poisson loss in units of the mean"
        return "half squared errors in standard deviations"

    def columns(self, names: Sequence[str]) -> list[str]:
        """One for each number."""
        return list(names)

    def cells(self, values: Sequence[float], names: Sequence[str]) -> list[str]:
        """The numbers."""
        return [f"{value:.6g}" for value in values]


OUTPUTS: dict[str, Outputs] = {one.name: one for one in (Classes(), Labels(), Numbers())}


class Task(NamedTuple):
    """One of `head.task`.

    Attributes:
        rows: True: one target per sequence, at its last position; False: targets stand at positions.
        outputs: kinds of outputs that it can have, keys of `OUTPUTS`.
        per: what a target belongs to, for people.
    """

    rows: bool
    outputs: tuple[str, ...]
    per: str


TASKS: dict[str, Task] = {
    "classes": Task(True, ("classes",), "sequence"),
    "multilabel": Task(True, ("labels",), "label"),
    "regression": Task(True, ("numbers",), "number"),
    "bases": Task(False, ("classes", "numbers"), "base"),
    "tracks": Task(False, ("numbers",), "bin"),
}


def outputs_of(head: HeadConfig) -> Outputs:
    """The outputs of a head: those that its task has, or `head.outputs` where it can have several kinds.

    Raises:
        ValueError: the task does not have these outputs.
    """
    kinds = TASKS[head.task].outputs
    kind = head.outputs or kinds[0]
    if kind not in kinds:
        raise ValueError(f"head.task={head.task} has {' or '.join(kinds)} as outputs, not {kind}")
    return OUTPUTS[kind]


def scored(targets: Tensor) -> Tensor:
    """Where targets (B, L) or (B, L, K) are scored, bool (B, L)."""
    return ~targets.isnan().all(-1) if targets.is_floating_point() else targets != IGNORED
