"""Finds recordings of one split whose sound is also in another, at any level and shifted in time by any amount.

Candidates come from fingerprints (Haitsma & Kalker 2002, "A Highly Robust Audio Fingerprinting System"): of each 128 ms, every
8 ms, 32 bits that say whether the difference of neighbouring bands of the spectrum grows or shrinks. Level and polarity
leave them alone. Recordings whose equal fingerprints lie at one offset are then compared sample by sample. Other takes,
transpositions and other tempi are other recordings; a lossy copy is found if its waveform still follows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_FRAME_S, _HOP_S, _LOWEST_HZ = 0.128, 0.008, 150.0
_BITS = 32
# Of long recordings this share of the fingerprints is kept, chosen by their value; more make no difference.
_MOST_KEPT = 4096
# Of a fingerprint that is everywhere, so many places in each split. Matches at one offset, and their share of the shorter
# recording's.
_COMMON, _MATCHES, _SHARE = 16, 2, 0.1
# Samples of all frames that are looked at together.
_IN_MEMORY = 1 << 22
_ALIKE, _COMPARED_S = 0.9, 0.5

Read = Callable[[str, int, int], NDArray[np.float32]]


class Duplicate(NamedTuple):
    """A recording whose sound another recording has too.

    Attributes:
        name, other: the two, in the order of their splits: train, valid, test.
        shift: samples by which the sound is later in `other`.
        gain_db: level of `other` above that of `name`.
    """

    name: str
    other: str
    shift: int
    gain_db: float

    def line(self, rate_hz: int) -> str:
        """For people."""
        how = f"{self.gain_db:+.1f} dB, {self.shift / rate_hz:+.3f} s"
        return f"{self.name} and {self.other} are the same recording ({how}), in different splits"


class Fingerprints(NamedTuple):
    """Fingerprints of a recording, uint32, and the samples at which their frames begin, both (n,)."""

    bits: NDArray[np.uint32]
    places: NDArray[np.int64]


def fingerprints(size: int, rate_hz: int, read: Callable[[int, int], NDArray[np.float32]]) -> Fingerprints:
    """Fingerprints of a recording, read in pieces.

    Args:
        size: samples.
        rate_hz: sample rate.
        read: gives samples [start, stop).
    """
    frame, hop = round(_FRAME_S * rate_hz), max(1, round(_HOP_S * rate_hz))
    edges = np.geomspace(_LOWEST_HZ, min(4000.0, 0.45 * rate_hz), _BITS + 2) * frame / rate_hz
    # Narrow bands at the bottom have at least one line of the spectrum each.
    lines = np.maximum(np.round(edges).astype(int), int(edges[0]) + np.arange(_BITS + 2))
    window = np.hanning(frame).astype(np.float32)
    found, places = [], []
    frames = max(0, (size - frame) // hop + 1)
    # Spectra of all rates take the same memory.
    per_piece = max(2, min(2048, _IN_MEMORY // frame))
    for first in range(0, max(0, frames - 1), per_piece - 1):
        last = min(first + per_piece, frames)
        audio = read(first * hop, (last - 1) * hop + frame)
        cut = np.lib.stride_tricks.sliding_window_view(audio, frame)[::hop]
        power = np.square(np.abs(np.fft.rfft(cut * window)))
        bands = np.add.reduceat(power, lines[:-1], axis=1)[:, : _BITS + 1]
        rise = np.diff(np.diff(bands, axis=1), axis=0) > 0
        bits = np.packbits(rise, axis=1).view(">u4")[:, 0].astype(np.uint32)
        # Where nothing moves there is nothing to recognise.
        heard = bands[1:].sum(1) > frame * 1e-6
        found.append(bits[heard])
        places.append((first + np.flatnonzero(heard)) * hop)
    if not found:
        return Fingerprints(np.zeros(0, np.uint32), np.zeros(0, np.int64))
    all_bits, all_places = np.concatenate(found), np.concatenate(places)
    kept = all_bits * np.uint32(2654435761) <= np.uint32(2**32 - 1) // max(1, -(-len(all_bits) // _MOST_KEPT))
    return Fingerprints(all_bits[kept], all_places[kept].astype(np.int64))


def duplicates(
    prints: Mapping[str, Fingerprints], split_of: Mapping[str, str], rate_hz: int, read: Read
) -> Iterator[Duplicate]:
    """Pairs of recordings in different splits with the same sound.

    Args:
        prints: fingerprints of each recording.
        split_of: its split, or several with + between them; those of no split are not compared. The order of the names is
            that of the splits.
        rate_hz: sample rate.
        read: gives samples [start, stop) of a recording by its name.
    """
    names = [name for name in split_of if name in prints and len(prints[name].bits)]
    if not names:
        return
    owner = np.repeat(np.arange(len(names)), [len(prints[name].bits) for name in names])
    bits = np.concatenate([prints[name].bits for name in names])
    places = np.concatenate([prints[name].places for name in names])
    order = np.argsort(bits, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(bits[order]) != 0])
    stops = np.r_[starts[1:], len(order)]
    several = stops - starts > 1
    labels = [split_of[name] for name in names]
    hop = max(1, round(_HOP_S * rate_hz))
    votes: Counter[tuple[int, int, int]] = Counter()
    example: dict[tuple[int, int, int], tuple[int, int]] = {}
    for low, high in zip(starts[several], stops[several], strict=True):
        # Others for other fingerprints, so that none of many copies is always passed over.
        turn = int(bits[order[low]]) % int(high - low)
        group = _few_of_each(np.roll(order[low:high], turn), owner, labels)
        for at, first in enumerate(group):
            for second in group[at + 1 :]:
                a, b = int(owner[first]), int(owner[second])
                if a != b and (labels[a] != labels[b] or "+" in labels[a]):
                    key = (a, b, int(places[second] - places[first]) // hop)
                    votes[key] += 1
                    example[key] = int(places[first]), int(places[second])
    done = set()
    for (a, b, offset), count in votes.most_common():
        one, other = names[a], names[b]
        near = count + max(votes[a, b, offset - 1], votes[a, b, offset + 1])
        if (a, b) in done or near < max(_MATCHES, _SHARE * min(len(prints[one].bits), len(prints[other].bits))):
            continue
        found = _compared(one, other, *example[a, b, offset], rate_hz, read)
        if found is not None:
            done.add((a, b))
            yield found


def _few_of_each(group: NDArray[np.int64], owner: NDArray[np.int64], labels: list[str]) -> list[int]:
    """The first few of a group from each split, in the order of the recordings."""
    seen: Counter[str] = Counter()
    few = []
    for at in group.tolist():
        label = labels[owner[at]]
        seen[label] += 1
        if seen[label] <= _COMMON:
            few.append(at)
    return sorted(few)


def _compared(one: str, other: str, at: int, other_at: int, rate_hz: int, read: Read) -> Duplicate | None:
    """Whether half a second of both is the same waveform, at any level and a few milliseconds apart."""
    slack = 2 * round(_HOP_S * rate_hz)
    back = min(at, max(0, other_at - slack), round(_COMPARED_S * rate_hz) // 2)
    at, begin = at - back, max(0, other_at - back - slack)
    short = read(one, at, at + round(_COMPARED_S * rate_hz)).astype(np.float64)
    long = read(other, begin, begin + len(short) + 2 * slack).astype(np.float64)
    short = short[: len(long) - 2 * slack]
    if len(short) < _FRAME_S * rate_hz:
        return None
    products = np.correlate(long, short, "valid")
    energy = np.convolve(long**2, np.ones(len(short)), "valid")
    norm = np.sqrt(np.maximum(energy * (short**2).sum(), 1e-20))
    best = int(np.argmax(np.abs(products) / norm))
    if abs(products[best]) < _ALIKE * norm[best]:
        return None
    gain = np.sqrt(energy[best] / (short**2).sum())
    return Duplicate(one, other, begin + best - at, float(20 * np.log10(gain)))
