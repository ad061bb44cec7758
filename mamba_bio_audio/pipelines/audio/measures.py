"""What sound is measured by, second by second, after quantisation.

    level       20 log10 of the root mean square, in dB of full scale: 0 is a square wave, -3.01 a sine
    flatness    10 log10 of the geometric over the arithmetic mean of the power spectrum (Gray & Markel 1974), averaged over
                the piece: white noise is near 0 dB, tones are far below
    clicks      per second; samples that linear prediction misses by more than k running scales, those within 5 ms once
    onsets      per second; peaks of the spectral flux (Bello et al. 2005): by how many dB third-octave bands rise within
                30 ms, on average, where that is 1.5 dB above the median of the second around it
    entropy     bits per sample under adaptive linear prediction of order 32
    silence     share of 10 ms below -60 dB of full scale
    octaves     level in octave bands (IEC 61260) around 62.5, 125, ... Hz, in dB of full scale

Linear prediction and its scale are those of the yardstick LPC-32 (`yardsticks.py`): everything adapts to the sound itself
within 2,048 samples. Entropy is measured by it and not by the table of order 2, because the table would measure how much a
sound resembles the training data and not how random it is. A click is what stands out of its surroundings by k, and k is
what makes held-out recordings click once a second (`click_limit`): attacks of notes count too, so more clicks than recordings
have are clicks. Nothing here knows of pitch, harmony or words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.audio.wav import pcm
from mamba_bio_audio.pipelines.audio.yardsticks import Levels, linear_prediction

Floats = NDArray[np.floating]
# By which generated sound is compared with recordings, and their units.
JUDGED = {"level": "dB", "flatness": "dB", "clicks": "/s", "onsets": "/s", "entropy": "bits"}
_FRAME_S, _HOP_S, _CLICK_S = 0.064, 0.01, 0.005
# Frames whose spectra are kept as one.
_FRAMES = 10
_RISE_FRAMES, _RISE_DB, _QUIETEST_DB = 3, 1.5, -70.0
_SILENT_DB = -60.0
_TINY = 1e-12
# Where there are no recordings to learn it from.
CLICK_LIMIT = 8.0


class Sound(NamedTuple):
    """A piece of sound, analysed; what is measured of parts of it.

    Attributes:
        rate_hz: sample rate.
        audio: samples (n,), as they are heard; float32, as everything here.
        errors: errors of linear prediction (n,), in units of their scale.
        bits: bits (n,) under linear prediction.
        power: mean power spectra of 0.1 s each, so that the bins add up to the mean square of the sound.
        onsets: where notes begin, in samples.
    """

    rate_hz: int
    audio: Floats
    errors: Floats
    bits: Floats
    power: Floats
    onsets: NDArray[np.int64]

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.audio) / self.rate_hz


def heard(levels: Levels, codec: AudioCodec) -> Floats:
    """Levels as a file of 16 bits holds them, float64."""
    return np.frombuffer(pcm(codec.decode(levels)), "<i2") / 32767


def levels_of(audio: Floats, codec: AudioCodec) -> Levels:
    """The levels whose decoded values are nearest: of sound that `heard` gave, the levels it came from (8 bits)."""
    values = codec.decode(np.arange(len(codec.edges) + 1)).astype(np.float64)
    nearest = np.searchsorted((values[1:] + values[:-1]) / 2, audio)
    return nearest.astype(np.uint8 if codec.bits == 8 else np.int16)


def analyse(levels: Levels, codec: AudioCodec) -> Sound:
    """Analyse a piece of sound, at least one sample long."""
    rate, audio = codec.sample_rate_hz, heard(levels, codec)
    errors: Floats
    bits: Floats
    errors, bits = linear_prediction(levels, codec)
    hop = max(1, round(_HOP_S * rate))
    frames = _spectra(audio, rate, hop)
    onsets = _peaks(_rises(frames, rate), round(0.5 / _HOP_S)) * hop
    firsts = np.arange(0, len(frames), _FRAMES)
    power: Floats = np.add.reduceat(frames, firsts) / np.diff(firsts, append=len(frames))[:, None]
    audio, errors, bits, power = (part.astype(np.float32) for part in (audio, errors, bits, power))
    return Sound(rate, audio, errors, bits, power, onsets)


def measure(sound: Sound, start: int, end: int, click_limit: float) -> dict[str, float]:
    """All measures of the samples [start, end) of a piece; octaves by names such as `octave 125`."""
    rate, seconds = sound.rate_hz, (end - start) / sound.rate_hz
    audio = sound.audio[start:end].astype(np.float64)
    hop = max(1, round(_HOP_S * rate))
    first = start // (hop * _FRAMES)
    spectrum = sound.power[first : max(first + 1, end // (hop * _FRAMES))].mean(0, dtype=np.float64)
    whole = len(audio) // hop * hop or len(audio)
    quiet = np.square(audio[:whole].reshape(-1, min(hop, whole))).mean(1) < 10 ** (_SILENT_DB / 10)
    found = {
        "level": _db(np.square(audio).mean()),
        "flatness": _db(np.exp(np.log(spectrum[1:] + _TINY).mean()) / (spectrum[1:].mean() + _TINY)),
        "clicks": len(_clicks(sound.errors[start:end], rate, click_limit)) / seconds,
        "onsets": int(((sound.onsets >= start) & (sound.onsets < end)).sum()) / seconds,
        "entropy": float(sound.bits[start:end].mean(dtype=np.float64)),
        "silence": float(quiet.mean()),
    }
    centre = 62.5
    frequency = np.arange(len(spectrum)) * rate / 2 / (len(spectrum) - 1)
    while centre / 2**0.5 < rate / 2:
        inside = (frequency >= centre / 2**0.5) & (frequency < centre * 2**0.5)
        found[f"octave {centre:g}"] = _db(spectrum[inside].sum())
        centre *= 2
    return found


def click_limit(sounds: Sequence[Sound], per_second: float = 1.0) -> float:
    """The smallest k at which sounds have at most so many clicks a second; a step of 5 % is as fine as it gets."""
    most = per_second * sum(sound.seconds for sound in sounds)
    limits = np.geomspace(4, 64, 58)
    return next((float(k) for k in limits if sum(len(_clicks(s.errors, s.rate_hz, k)) for s in sounds) <= most), 64.0)


def _clicks(errors: Floats, rate_hz: int, limit: float) -> NDArray[np.int64]:
    """Where clicks begin."""
    beyond = np.flatnonzero(np.abs(errors) > limit)
    return beyond[np.diff(beyond, prepend=-rate_hz) > _CLICK_S * rate_hz]


def _spectra(audio: Floats, rate_hz: int, hop: int) -> Floats:
    """Power spectra (frames, bins) of Hann windows centred on every `hop` samples."""
    size = 1 << round(np.log2(_FRAME_S * rate_hz))
    window = np.hanning(size + 1)[:size]
    padded = np.pad(audio, size // 2, mode="reflect" if len(audio) > size // 2 else "constant")
    padded = np.pad(padded, (0, max(0, size - len(padded))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    pieces = [np.square(np.abs(np.fft.rfft(frames[at : at + 512] * window))) for at in range(0, len(frames), 512)]
    power = np.concatenate(pieces)
    # Both halves of the spectrum; Parseval.
    power[:, 1:-1] *= 2
    return power / (size * np.square(window).sum())


def _rises(power: Floats, rate_hz: int) -> Floats:
    """By how many dB third-octave bands rise within 30 ms, mean over the bands, for each frame."""
    frequency = np.arange(power.shape[1]) * rate_hz / 2 / (power.shape[1] - 1)
    lowest = 88.4 * 2 ** (np.arange(64) / 3)
    edges = np.unique(np.searchsorted(frequency, lowest[lowest < rate_hz / 2]))
    if len(power) <= _RISE_FRAMES or len(edges) == 0:
        return np.zeros(len(power))
    band = np.add.reduceat(power, edges, axis=1)
    level = np.maximum(10 * np.log10(band + _TINY), _QUIETEST_DB)
    rise = np.maximum(level[_RISE_FRAMES:] - level[:-_RISE_FRAMES], 0).mean(1)
    return np.concatenate([np.zeros(_RISE_FRAMES), rise])


def _peaks(rises: Floats, around: int) -> NDArray[np.int64]:
    """Frames at which a rise is the largest within 50 ms, and well above the median of those around it."""
    from scipy.ndimage import maximum_filter1d, median_filter

    usual = median_filter(rises, size=2 * around + 1, mode="nearest")
    highest = maximum_filter1d(rises, 11)
    # Of equal neighbours the first.
    first = np.diff(rises, prepend=-1) != 0
    return np.flatnonzero((rises == highest) & first & (rises > usual + _RISE_DB))


def _db(power: float) -> float:
    return float(10 * np.log10(max(power, _TINY)))
