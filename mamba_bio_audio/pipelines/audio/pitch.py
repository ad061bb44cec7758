"""Notes heard in a recording of one voice: pitch, when each note begins and ends, and how far two melodies agree.

    d(l) = sum_j (x_j - x_{j+l})^2,   d'(l) = d(l) l / sum_{k<=l} d(k)      YIN, de Cheveigne & Kawahara 2002, eqs. 6, 8

The period is the shortest lag whose dip of d' is almost as deep as the deepest. Every multiple of a period is one too, so
the deepest alone would be an octave too low at random; a fixed threshold, as in the paper, takes half of the period where
the second harmonic is far louder than the first. What it answers: which single melody somebody would sing back. Chords,
drums and noise give few notes or wrong ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.pipelines.draws import for_synthesis

_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
_LOWEST_HZ, _HIGHEST_HZ = 58.0, 1500.0
_WINDOW_S, _HOP_S = 0.025, 0.005
# A frame whose d' stays above the first has no pitch; a dip within the second of the deepest is as good.
_APERIODIC, _AS_DEEP = 0.35, 0.06
# Lags are whole samples, too coarse for high notes at low rates: recordings below this rate are interpolated.
_LEAST_RATE_HZ = 24_000
# Below the loudest frame, and below full scale: silence.
_QUIET_DB, _SILENT_DB = -40.0, -60.0
# A note lasts while the pitch is within so many semitones of its median, or comes back there within so many frames: a
# single frame may be wrong, and wide vibrato leaves for a moment.
_HELD, _BACK_FRAMES = 0.7, 10
_SHORTEST_S = 0.03
# A rise of the level by so much within 30 ms strikes the same note again.
_STRUCK_DB, _STRUCK_FRAMES = 6.0, 6


class Note(NamedTuple):
    """One note that was heard."""

    midi: int  # 60 is middle C, 69 is 440 Hz
    start_s: float
    end_s: float
    cents: float  # by which it is sharp of `midi`


class Pitches(NamedTuple):
    """Pitch of every frame."""

    time_s: NDArray[np.float64]  # (n,), centres of the frames
    midi: NDArray[np.float64]  # (n,), with fractions; NaN where there is no pitch
    level_db: NDArray[np.float64]  # (n,), below full scale


def pitches(audio: NDArray[np.floating], rate_hz: int) -> Pitches:
    """Pitch in frames of 25 ms every 5 ms.

    Args:
        audio: (samples,), mono, in [-1, 1].
        rate_hz: sample rate.
    """
    from scipy.signal import resample_poly

    times = -(-_LEAST_RATE_HZ // rate_hz)
    rate = times * rate_hz
    samples = np.asarray(audio, np.float64)
    if times > 1 and len(samples):
        samples = resample_poly(samples, times, 1)
    window, most = round(_WINDOW_S * rate), round(rate / _LOWEST_HZ) + 2
    hop, size = round(_HOP_S * rate), window + most
    if len(samples) < size:
        return Pitches(np.zeros(0), np.zeros(0), np.zeros(0))
    frames = np.lib.stride_tricks.sliding_window_view(samples, size)[::hop]
    time = (np.arange(len(frames)) * hop + size / 2) / rate
    level = 10 * np.log10(np.maximum(np.square(frames).mean(1), 1e-12))
    # Some hundred frames at a time, so that long recordings take little memory.
    parts = np.array_split(frames, len(frames) // 512 + 1)
    lags = np.array([_period(row, round(rate / _HIGHEST_HZ)) for part in parts for row in _dips(part, window)])
    loud = level > max(_SILENT_DB, float(level.max()) + _QUIET_DB)
    return Pitches(time, np.where(loud, 69 + 12 * np.log2(rate / lags / 440), np.nan), level)


def notes(audio: NDArray[np.floating], rate_hz: int) -> list[Note]:
    """Notes of at least 30 ms, in order; arguments as for `pitches`."""
    time, midi, level = pitches(audio, rate_hz)
    found: list[Note] = []
    held: list[int] = []

    def end() -> None:
        if (len(held) - 1) * _HOP_S > _SHORTEST_S - _HOP_S / 2:
            middle = float(np.median(midi[held]))
            cents = 100 * (middle - round(middle))
            found.append(Note(round(middle), float(time[held[0]]), float(time[held[-1]]), cents))
        held.clear()

    for at in np.flatnonzero(np.isfinite(midi)).tolist():
        if held:
            before = level[max(held[0], at - _STRUCK_FRAMES) : at + 1].min()
            struck = level[at] - before > _STRUCK_DB and at - held[0] > 2 * _STRUCK_FRAMES
            away = np.abs(midi[at : at + _BACK_FRAMES] - np.median(midi[held])) > _HELD
            if struck or at - held[-1] > _BACK_FRAMES or away[np.isfinite(midi[at : at + _BACK_FRAMES])].all():
                end()
            elif away[0]:
                continue
        held.append(at)
    end()
    return found


def longest_common_subsequence(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest sequence that both contain in order, with anything between."""
    row = np.zeros(len(second) + 1, np.int64)
    other = np.asarray(second)
    for symbol in first:
        longer = np.maximum(row[1:], row[:-1] + (other == symbol))
        row[1:] = np.maximum.accumulate(longer)
    return int(row[-1])


def in_order(melody: Sequence[int], heard: Sequence[int]) -> float:
    """Share of the melody's notes that are heard in its order: the longest common subsequence over its length."""
    return longest_common_subsequence(melody, heard) / len(melody)


def by_chance(melody: Sequence[int], heard: Sequence[int], *, orders: int = 200, seed: int = 0) -> float:
    """`in_order` for the melody's notes in random orders, on average: what these notes give in any order."""
    generator = for_synthesis(seed)
    return float(np.mean([in_order(generator.permutation(melody).tolist(), heard) for _ in range(orders)]))


def note_name(midi: int) -> str:
    """60 is C4."""
    return f"{_NAMES[midi % 12]}{midi // 12 - 1}"


def _dips(frames: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """d' of frames (n, window + lags), for lags from 0: (n, lags)."""
    size = frames.shape[1]
    lags = size - window
    padded = 1 << (size + window).bit_length()
    products = np.fft.irfft(np.fft.rfft(frames, padded) * np.fft.rfft(frames[:, :window], padded).conj(), padded)
    energy = np.cumsum(np.pad(np.square(frames), ((0, 0), (1, 0))), 1)
    energy = energy[:, window : window + lags] - energy[:, :lags]
    d = np.maximum(energy[:, :1] + energy - 2 * products[:, :lags], 0)
    d[:, 0] = 0
    dips = d * np.arange(lags) / np.maximum(np.cumsum(d, 1), 1e-30)
    dips[:, 0] = 1
    return dips


def _period(dips: NDArray[np.float64], least: int) -> float:
    """Period in samples, with a fraction, from d' (lags,); NaN where there is none."""
    here = dips[least:-1]
    low = least + np.flatnonzero((here <= dips[least - 1 : -2]) & (here < dips[least + 1 :]))
    if not low.size:
        return np.nan
    # Parabolas through the dips: their depths too are compared between the samples.
    before, middle, after = dips[low - 1], dips[low], dips[low + 1]
    curve = before - 2 * middle + after
    depth = middle - (before - after) ** 2 / (8 * curve)
    if depth.min() > _APERIODIC:
        return np.nan
    first = int(np.flatnonzero(depth <= depth.min() + _AS_DEEP)[0])
    return float(low[first] + 0.5 * (before - after)[first] / curve[first])
