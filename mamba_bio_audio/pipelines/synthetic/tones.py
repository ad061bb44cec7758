"""Synthetic melodies: plucked tones of a pentatonic scale, for demonstrations and tests of the audio path.

Their names say that they are synthetic: a model that has learnt them has learnt a toy, not music.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from mamba_bio_audio.pipelines.draws import for_synthesis

# Semitones above the tonic.
_SCALE = (0, 2, 4, 7, 9)
_NOTE_S = 0.25


def melody(seconds: float, rate_hz: int, seed: int) -> NDArray[np.float32]:
    """A random walk on the scale from 220 Hz up, four notes a second, three harmonics each, decaying.

    Args:
        seconds: duration.
        rate_hz: sample rate.
        seed: random seed for the notes.

    Returns:
        float32 in [-1, 1], (samples,).
    """
    generator = for_synthesis(seed)
    size = round(seconds * rate_hz)
    note = round(_NOTE_S * rate_hz)
    audio = np.zeros(size, np.float64)
    time = np.arange(2 * note) / rate_hz
    step = int(generator.integers(0, 10))
    for start in range(0, size, note):
        step = int(np.clip(step + generator.integers(-2, 3), 0, 9))
        pitch_hz = 220 * 2 ** ((12 * (step // 5) + _SCALE[step % 5]) / 12)
        tone = sum(np.sin(2 * np.pi * pitch_hz * k * time) * np.exp(-5 * k * time) / k for k in (1, 2, 3))
        # Two milliseconds of attack, so that no note clicks.
        tone = 0.3 * tone * np.minimum(1, time / 0.002)
        stop = min(size, start + len(tone))
        audio[start:stop] += tone[: stop - start]
    return np.clip(audio, -1, 1).astype(np.float32)


def write_melodies(folder: Path, *, count: int = 24, seconds: float = 4.0, rate_hz: int = 8000, seed: int = 0) -> None:
    """Write WAV files named `synthetic-NN.wav`, the same for the same arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        soundfile.write(folder / f"synthetic-{number:02d}.wav", melody(seconds, rate_hz, seed + number), rate_hz)
