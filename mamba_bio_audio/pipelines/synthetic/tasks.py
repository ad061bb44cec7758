"""Synthetic tasks that tell sequence models apart: a batch of any samples, made on any device by integer arithmetic alone.

    induction          x x T a x x x .. x T            -> a                  T: the trigger, a: what followed it before
    selective copying  . a . . b . c . .  ? ? ?        -> a b c              .: noise, ?: markers
    recall             k v l w m u  x l x x k ..       -> w at l, v at k     pairs of keys and values, then queries

Sample i depends on (seed, stage, i) alone: every number is a hash of these and of its place, so that any batch can be made
anywhere, and the same symbols come out on a CPU and on a GPU.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

IGNORED = -100
_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as int64
_MIX = (-4658895280553007687, -7723592293110705685)  # of SplitMix64 (Steele et al. 2014), as int64


class Samples(NamedTuple):
    """Which samples are meant.

    Attributes:
        seed: of the training, or of the evaluation sets.
        stream: stage of the training, or below 0 an evaluation set; each has samples of its own.
        numbers: int64 (B,), their numbers; they may lie on any device.
    """

    seed: int
    stream: int
    numbers: Tensor


class Task(Protocol):
    """A task of one kind.

    Attributes:
        fewest: length of the shortest sequence that it fits in.
        answers: targets of a sequence; None where all its positions have one.
        chance: accuracy of guessing.
    """

    @property
    def fewest(self) -> int: ...

    @property
    def answers(self) -> int | None: ...

    @property
    def chance(self) -> float: ...

    def batch(self, samples: Samples, length: int) -> tuple[Tensor, Tensor]:
        """Tokens and targets, int64 (B, length); targets are -100 where nothing is asked."""
        ...


def _shifted(x: Tensor, by: int) -> Tensor:
    """The bits of x moved right, zeros coming in."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _mixed(x: Tensor) -> Tensor:
    """A permutation of the 64-bit numbers without visible pattern (the finaliser of SplitMix64)."""
    x = (x ^ _shifted(x, 30)) * _MIX[0]
    x = (x ^ _shifted(x, 27)) * _MIX[1]
    return x ^ _shifted(x, 31)


def bits(samples: Samples, draw: int, count: int) -> Tensor:
    """Random numbers in [0, 2^62), int64 (B, count).

    Args:
        samples: of which samples.
        draw: tells the draws of a sample apart.
        count: numbers per sample.
    """
    device = samples.numbers.device
    # Hashed one after another, so that no sum of two of them can stand for another.
    key = torch.full((), samples.seed, dtype=torch.int64, device=device)
    for part in (samples.stream, draw):
        key = _mixed(key + _GOLDEN) + part
    row = _mixed(_mixed(key + _GOLDEN) + samples.numbers[:, None])
    return _shifted(_mixed(row + _GOLDEN * torch.arange(1, count + 1, device=device)), 2)


def _below(limit: int, samples: Samples, draw: int, count: int) -> Tensor:
    """Whole numbers in [0, limit), uniform to within limit / 2^62."""
    return bits(samples, draw, count) % limit


def _some_of(total: int, samples: Samples, draw: int, count: int) -> Tensor:
    """`count` different numbers of 0 .. total - 1 in random order, int64 (B, count)."""
    return bits(samples, draw, total).topk(count, dim=1).indices


class Induction(NamedTuple):
    """What followed the trigger before must be said when it comes again, at the end.

    Attributes:
        vocab: symbols, the trigger (the last one) among them.
        scored: "answer", or "all": every position predicts the next symbol, and the last one the answer.
    """

    vocab: int
    scored: str

    @property
    def fewest(self) -> int:
        """A trigger, the answer, the trigger again."""
        return 3

    @property
    def answers(self) -> int | None:
        """One, or all."""
        return 1 if self.scored == "answer" else None

    @property
    def chance(self) -> float:
        """The trigger is never an answer."""
        return 1 / (self.vocab - 1)

    def batch(self, samples: Samples, length: int) -> tuple[Tensor, Tensor]:
        """The first trigger lies anywhere but at the end, uniform; all else is uniform over the other symbols."""
        tokens = _below(self.vocab - 1, samples, 0, length)
        at = _below(length - 2, samples, 1, 1)
        answer = tokens.gather(1, at + 1)
        trigger = self.vocab - 1
        tokens = tokens.scatter(1, at, trigger)
        tokens[:, -1] = trigger
        if self.scored == "all":
            targets = torch.cat([tokens[:, 1:], answer], 1)
        else:
            targets = torch.full_like(tokens, IGNORED)
            targets[:, -1:] = answer
        return tokens, targets


class SelectiveCopying(NamedTuple):
    """Symbols between noise must be said in their order when markers come.

    Attributes:
        vocab: symbols: 0 is noise, the last one the marker, those between are copied.
        memorize: symbols to copy, M; there are as many markers, at the end.
    """

    vocab: int
    memorize: int

    @property
    def fewest(self) -> int:
        """Without noise."""
        return 2 * self.memorize

    @property
    def answers(self) -> int:
        """One per marker."""
        return self.memorize

    @property
    def chance(self) -> float:
        """Neither noise nor the marker is ever an answer."""
        return 1 / (self.vocab - 2)

    def batch(self, samples: Samples, length: int) -> tuple[Tensor, Tensor]:
        """M symbols, uniform, at different places before the markers, uniform; at each marker one of them is the target."""
        places = _some_of(length - self.memorize, samples, 0, self.memorize).sort(1).values
        copied = 1 + _below(self.vocab - 2, samples, 1, self.memorize)
        tokens = torch.zeros(len(copied), length, dtype=torch.int64, device=copied.device).scatter(1, places, copied)
        tokens[:, -self.memorize :] = self.vocab - 1
        targets = torch.full_like(tokens, IGNORED)
        targets[:, -self.memorize :] = copied
        return tokens, targets


class Recall(NamedTuple):
    """Multi-query associative recall (Arora et al. 2023): pairs of keys and values, then each key once more, somewhere.

    Attributes:
        vocab: symbols: 0 is none, keys are the lower half of the others, values the upper half.
        pairs: keys, and queries.
        filler: between the queries: "random" symbols of all, or "none".
        power: gaps before queries have a probability that falls with (gap + 1)^(power - 1).
    """

    vocab: int
    pairs: int
    filler: str
    power: float

    @property
    def fewest(self) -> int:
        """Every query stands at an even distance."""
        return 4 * self.pairs

    @property
    def answers(self) -> int:
        """One per query."""
        return self.pairs

    @property
    def chance(self) -> float:
        """Over the values."""
        return 1 / (self.vocab - self.vocab // 2)

    def batch(self, samples: Samples, length: int) -> tuple[Tensor, Tensor]:
        """Queries stand at even distances behind the pairs; the target at a query is its key's value."""
        rows, half = len(samples.numbers), self.vocab // 2
        keys = 1 + _some_of(half - 1, samples, 0, self.pairs)
        values = half + _some_of(self.vocab - half, samples, 1, self.pairs)
        # The largest of log(u) / weight are draws without replacement by weight (Efraimidis and Spirakis 2006).
        slots = (length - 2 * self.pairs) // 2
        weight = torch.arange(1, slots + 1, dtype=torch.float64, device=keys.device) ** (self.power - 1)
        lots = ((bits(samples, 2, slots) + 1).double() * 2.0**-62).log() / weight
        places = 2 * self.pairs + 2 * lots.topk(self.pairs, dim=1).indices
        # In the order of drawing the nearest places come first; which key stands there must not follow from that.
        places = places.gather(1, _some_of(self.pairs, samples, 3, self.pairs))
        if self.filler == "random":
            tokens = _below(self.vocab, samples, 4, length)
        else:
            tokens = torch.zeros(rows, length, dtype=torch.int64, device=keys.device)
        tokens[:, : 2 * self.pairs] = torch.stack([keys, values], 2).flatten(1)
        tokens = tokens.scatter(1, places, keys)
        targets = torch.full_like(tokens, IGNORED).scatter(1, places, values)
        return tokens, targets
