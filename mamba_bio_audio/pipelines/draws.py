"""Where random draws of the data come from: every stream of random numbers that shares a seed, in one place.

Draws come from Philox, a generator by key and counter, so that the draws for sample i need no draws for the samples before
it. The key is (seed, number of the stream), the counter says which draw of the stream. Numbers in use must never change: a
seed means the same splits, windows, order and strands for ever. A new stream takes a number that no other has.

Draws elsewhere have seeds of their own: generated symbols (`inference/generate.py`, key (seed, row)), bootstraps and judges
of the evaluation, and the fixed constants of `pipelines/dna/matches.py`.
"""

from __future__ import annotations

from enum import Enum, unique

import numpy as np


@unique
class Draws(Enum):
    """A stream of draws: whose seed it shares, and its number in the key.

    Streams of different owners never share a seed with each other, which is why some numbers occur twice.
    """

    ORDER = "training", 1  # windows of an epoch; counter 0, stage, group, epoch
    STRAND = "training", 2  # strand of a sample; counter sample, stage, 0, 0
    PLACE = "training", 3  # by how much a window is moved; counter sample, stage, 0, 0
    CASE = "training", 4  # which lower-case bases are scored; counter sample, stage, 0, 0
    CLASS = "training", 5  # whether the class of a sample is hidden; counter sample, stage, 0, 0
    LOUDNESS = "training", 6  # sign and gain of a window of audio; counter sample, stage, 0, 0
    NOISE = "training", 7  # on the inputs of a window of audio; counter sample, stage, 0, 0
    TIMING = "training", 9  # speed, pitch and beginning of a window of audio; counter sample, stage, 0, 0
    REPEATS = "training", 10  # copies within a window of DNA; counter sample, stage, 0, 0
    CLASS_WINDOW = "training of a classifier", 3  # where a labelled window lies; counter sample, stage, attempt, 0
    CLASS_EVALUATION = "split", 4  # labelled windows of a split; counter class, split, 0, 0
    FEW = "split", 8  # which training examples of a class are kept; counter class, 0, 0, 0
    MARKERS = "long memory", 1  # of the needle task; counter 0, 0, 0, class
    NEEDLE = "long memory", 2  # a window; counter 0, 0, batch, row
    COPY = "long memory", 3  # a window; counter 0, 0, batch, row

    def bits(self, seed: int, *counter: int) -> np.random.Philox:
        """Random bits of the stream at a counter of up to four numbers; missing ones are 0."""
        return np.random.Philox(key=[seed, self.value[1]], counter=[*counter, *[0] * (4 - len(counter))])

    def random(self, seed: int, *counter: int) -> np.random.Generator:
        """A generator over `bits`."""
        return np.random.Generator(self.bits(seed, *counter))


def for_blocks(seed: int, identity: bytes) -> np.random.Generator:
    """For the choice of blocks: by the split seed and a hash of the records' names and lengths."""
    key = np.array([seed, int.from_bytes(identity[:8], "little")], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def for_groups(seed: int, attempt: int) -> np.random.Generator:
    """For the choice of groups of related sequences: by the split seed and the number of the attempt."""
    return np.random.Generator(np.random.Philox(key=[seed, attempt]))


def for_synthesis(*key: int) -> np.random.Generator:
    """For synthetic sequence: by its own seed and whatever tells its parts apart."""
    return np.random.default_rng(key)
