"""A recording heard at another speed, at another pitch, or later: changes that leave what is said or played as it is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Audio = NDArray[np.float32]
# Seconds of a frame of `stretched`, and by how much it may lie elsewhere for the sake of a smooth join.
_FRAME_S, _SEARCH_S = 0.04, 0.01
_EDGE = 128


def faster(audio: Audio, factor: float) -> Audio:
    """Samples (n,) played `factor` times as fast, so with a higher pitch: (n / factor,), band-limited."""
    from scipy.signal import resample

    if not len(audio):
        return audio
    # The Fourier transform takes a recording for a loop; what rings at its seam is cut off.
    padded = np.pad(audio, _EDGE, mode="reflect" if len(audio) > _EDGE else "edge")
    found = resample(padded, max(1, round(len(padded) / factor)))
    start = round(_EDGE / factor)
    return np.asarray(found[start : start + max(1, round(len(audio) / factor))], np.float32)


def stretched(audio: Audio, factor: float, rate_hz: int) -> Audio:
    """Samples (n,) made `factor` times as long at the same pitch: (n factor,).

    WSOLA (Verhelst & Roelands 1993): frames of 40 ms overlap by half; each is taken from within 10 ms of where it belongs,
    where it resembles most what would have followed the frame before it.
    """
    hop, search = max(1, round(_FRAME_S * rate_hz / 2)), round(_SEARCH_S * rate_hz)
    size, length = 2 * hop, round(len(audio) * factor)
    padded = np.pad(audio, (hop, 3 * size + search))
    window = (0.5 - 0.5 * np.cos(np.pi * (np.arange(size)) / hop)).astype(np.float32)
    made = np.zeros(length + 2 * size, np.float32)
    at = 0
    for place in range(0, length + hop, hop):
        if place:
            wanted, follows = round(place / factor), padded[at + hop : at + hop + size]
            low = max(0, wanted - search)
            near = padded[low : wanted + search + size]
            energy = np.concatenate([[0.0], np.cumsum(near.astype(np.float64) ** 2)])
            likeness = np.correlate(near, follows) / np.sqrt(np.maximum(energy[size:] - energy[:-size], 1e-9))
            # Of places that are as good, as all periods of a tone are, the nearest.
            off = np.abs(np.arange(low, low + len(likeness)) - wanted) / max(1, search)
            at = low + int((likeness * (1 - 0.002 * off)).argmax())
        made[place : place + size] += window * padded[at : at + size]
    return made[hop : hop + length]


def pitched(audio: Audio, semitones: float, rate_hz: int) -> Audio:
    """Samples (n,) with their pitch changed, at the same speed: (n,)."""
    ratio = 2.0 ** (semitones / 12)
    found = faster(stretched(audio, ratio, rate_hz), ratio)[: len(audio)]
    return np.pad(found, (0, len(audio) - len(found)))
