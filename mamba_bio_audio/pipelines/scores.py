"""What an evaluation and a domain exchange: scores, what is said beside them, target blocks, spoken digits.

Neither torch nor NumPy is imported here, because `mba --help` imports the results that are made of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HEADER = f"{'':<28}{'nats':>9}{'bits':>9}{'perplexity':>12}"


def perplexity(nats: float) -> float:
    """exp of the mean nats; infinite if that exceeds a float."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


class Found(BaseModel):
    """A part of a result; its fields are the keys of the JSON, those that were not set are left out."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class Scores(Found):
    """Mean negative log-likelihood per symbol; None stands for a number that JSON does not have."""

    nats: float | None
    bits: float | None
    perplexity: float | None

    @classmethod
    def of(cls, nats: float) -> Scores:
        """From mean nats."""
        return cls(nats=nats, bits=nats / math.log(2), perplexity=perplexity(nats))

    def row(self, name: str) -> str:
        """A line of the table below `HEADER`."""
        return f"{name:<28}{self.nats:>9.4f}{self.bits:>9.4f}{self.perplexity:>12.4f}"


class Scored(Found):
    """Scores of part of a split, and how many symbols they are over."""

    model: Scores
    scored: int


class Part(Found):
    """Which windows of a split were scored, where `--max-bases` left some out."""

    max_bases: int
    windows: int
    of_windows: int
    of_bases: int

    def line(self, scored: int, unit: str, yardsticks: str) -> str:
        """One line for people."""
        return (
            f"A part of the split, evenly spread (--max-bases {self.max_bases:,}): {self.windows:,} of {self.of_windows:,} "
            f"windows, {scored:,} of {self.of_bases:,} {unit}s; {yardsticks} on the same {unit}s"
        )


class SplitScores(NamedTuple):
    """A model's likelihood of a split."""

    split: str
    length: int  # of the windows
    weights: str  # in words
    scored: int  # symbols
    model: Scores


class Measured(NamedTuple):
    """A model's likelihood of a split, for a domain to put yardsticks beside."""

    split: str
    scored: int
    groups: Mapping[int, Scored]  # by the number in the batches' `group`
    max_symbols: int | None  # that were to be scored; None is the whole split
    trained_length: int
    yardsticks: bool  # whether to fit any
    correct: int | None = None  # of the scored symbols, the model's first choice; None where they are no answers


# Scores the windows of another dataset; the text says what they are, for the progress.
Score = Callable[[Any, str], Scored]


class LikelihoodNotes(Found):
    """What a domain says beside the likelihood of a split: what was scored, its parts by name, yardsticks.

    A subclass adds fields, which become keys of the result beside `SplitScores`.
    """

    def text(self, found: SplitScores) -> str:
        """The evaluation for people."""
        return "\n".join(
            [
                f"{found.split} split: {found.scored:,} symbols scored once, windows of {found.length:,}",
                "",
                HEADER,
                found.model.row(f"model ({found.weights})"),
            ]
        )


class ClassNotes(Found):
    """What a domain says beside a classifier's scores; a subclass adds fields, which become keys of the result.

    Attributes:
        stranded: whether sequences have two strands, so that the strand that was read is named.
    """

    stranded: ClassVar[bool] = False

    def text(self, split: str) -> str:
        """For people; empty where there is nothing to say."""
        return ""


class ClassYardstick(Protocol):
    """A simple classifier, fitted on the training sequences, that a network has to beat."""

    def probabilities(self, rows: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
        """Class probabilities (n, K) of sequences of ids."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """How it was chosen, JSON-able."""
        ...


class ValueYardstick(Protocol):
    """The same for labels or numbers of sequences."""

    def values(self, rows: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
        """Probabilities of labels, or numbers (n, K), of sequences of ids."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """How it was chosen, JSON-able."""
        ...


class Stratum(NamedTuple):
    """A named part of the target symbols."""

    kind: str  # all, or what the part is made by: case, gc, record
    name: str
    members: NDArray[np.bool_]  # (blocks, K)


@dataclass(frozen=True)
class TargetBlocks:
    """Blocks of K symbols each, to be predicted under several contexts.

    Attributes:
        count: number of blocks.
        size: K.
        windows: (blocks, context) -> ids (n, context + K): each block of the slice and the symbols before it.
        strata: parts of the target symbols; the first is all that are scored.
        inside: share of the longest context that lies in the split itself.
    """

    count: int
    size: int
    windows: Callable[[slice, int], NDArray[Any]]
    strata: Sequence[Stratum]
    inside: float


class CopyBar(NamedTuple):
    """A yardstick that copies: what repeats within a context are worth without a network.

    Attributes:
        name: in tables.
        nats: (window, K, contexts) -> for each context the nats (K,) of the last K symbols of the ids, of which the first
            may read so many symbols before it and the others also those between; NaN where nothing is scored.
    """

    name: str
    nats: Callable[[NDArray[Any], int, Sequence[int]], Mapping[int, NDArray[np.float64]]]


@dataclass(frozen=True)
class RecallTrials:
    """Stretches of held-out sequence in which a piece comes again after a distance; T trials, ids.

    Attributes:
        distance: symbols between the two.
        context: symbols of a whole trial.
        lead: (T, a) what begins each trial.
        pieces: (T, b) what stands before the gap, by variant. Its last K symbols are those that come again, or what is
            there in their place: "control" is the sequence as it is, "foreign control" a piece from elsewhere.
        gap: (T, distance).
        target: (T, K) what ends each trial.
    """

    distance: int
    context: int
    lead: NDArray[np.uint8]
    pieces: Mapping[str, NDArray[np.uint8]]
    gap: NDArray[np.uint8]
    target: NDArray[np.uint8]


class Digits(NamedTuple):
    """Clips of spoken digits by split, and which digit each is."""

    clips: Mapping[str, NDArray[np.float32]]  # (n, 16000) in [-1, 1]
    labels: Mapping[str, NDArray[np.int64]]  # (n,)
    differences: list[str]  # why scores of these clips are not the published ones


def labelled_sequences(dataset: Any) -> tuple[list[NDArray[Any]], NDArray[Any]]:
    """Ids of the evaluation sequences of a labelled split, and their classes (n,), or labels (n, K)."""
    import numpy as np

    examples = [dataset.corpus.read(window) for window in dataset.windows]
    return [example.ids for example in examples], np.array([example.label for example in examples])
