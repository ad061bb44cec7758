"""A synthetic tune, for demonstrations and tests of the audio path: plucked tones, one tune at varying tempo and level.

File names say that they are synthetic: a model that has learnt them has learnt one tune, not music.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from mamba_bio_audio.pipelines.draws import for_synthesis

# Up three octaves of F minor with a seventh, and down those of G, E, D, B and A: every note once. With so many different
# notes few of them are in order by chance; of a melody of few notes half would be.
_RISING = (41, 44, 48, 51, 53, 56, 60, 63, 65, 68, 72, 75, 77)
MELODY = (*_RISING, 76, 74, 71, 69, 67, 64, 62, 59, 57, 55, 52, 50, 47, 45, 43)
# Low, so that a note lasts few samples, and a model hears the tune often in the time that it has.
RATE_HZ = 2000
# Beside the recordings: the last of them up to where its second note begins.
FIRST_NOTE = "first-note.wav"
_NOTE_S = 0.08
_TIMES = 2
_DECAY_S = 0.08
# The way up is a pure tone, the way down has three harmonics, and the highest note is twice as loud as the lowest: so notes
# that are neighbours, and octaves, sound different.
_UP, _DOWN = 1, 3
_LEVEL, _LOW = 0.7, 0.5
# Each performance has its own tempo, level and noise, 40 dB below full scale. Without noise a model learns what follows waves
# that are exact, and is lost after the first rough one of its own.
_FASTER, _SOFTER, _NOISE = 0.01, 0.9, 0.02


def performance(seed: int) -> tuple[NDArray[np.float32], float]:
    """`MELODY` twice, twelve notes a second, with its own tempo, level and noise.

    Args:
        seed: of tempo, level and noise.

    Returns:
        float32 in [-1, 1], (samples,), at `RATE_HZ`, and the seconds from one note to the next.
    """
    generator = for_synthesis(seed)
    note_s = _NOTE_S * (1 + generator.uniform(-_FASTER, _FASTER))
    level = _LEVEL * generator.uniform(_SOFTER, 1)
    notes = MELODY * _TIMES
    audio = np.zeros(round(note_s * len(notes) * RATE_HZ))
    for number, midi in enumerate(notes):
        start = round(note_s * number * RATE_HZ)
        harmonics = _UP if number % len(MELODY) < len(_RISING) else _DOWN
        loudness = _LOW + (1 - _LOW) * (midi - MELODY[0]) / (max(MELODY) - MELODY[0])
        tone = level * loudness * _tone(midi, note_s, harmonics)[: len(audio) - start]
        audio[start : start + len(tone)] += tone
    audio += _NOISE * generator.standard_normal(len(audio))
    return np.clip(audio, -1, 1).astype(np.float32), note_s


def write_performances(folder: Path, count: int = 64) -> None:
    """Write WAV files named `synthetic-NN.wav`, and `FIRST_NOTE`; always the same.

    `intervals.tsv` beside them takes the last of them for test, the one before for validation, the others for training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    splits = ["file\tsplit"]
    for number in range(count):
        name = f"synthetic-{number:02d}.wav"
        audio, note_s = performance(number)
        soundfile.write(folder / name, audio, RATE_HZ)
        splits.append(f"{name}\t{'train' if number < count - 2 else 'valid' if number < count - 1 else 'test'}")
    soundfile.write(folder / FIRST_NOTE, audio[: round(note_s * RATE_HZ)], RATE_HZ)
    (folder / "intervals.tsv").write_text("\n".join(splits) + "\n", encoding="utf-8")


def samples_after_first_note() -> int:
    """Samples from the second note of the tune to its end, at its middle tempo, and the time of two notes to spare."""
    return round((len(MELODY) + 1) * _NOTE_S * RATE_HZ)


def _tone(midi: int, seconds: float, harmonics: int) -> NDArray[np.float64]:
    """One note: harmonic k has the amplitude 1 / k, and decays the faster the higher it is."""
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    pitch_hz = 440 * 2 ** ((midi - 69) / 12)
    audio = np.zeros(len(time))
    for k in range(1, harmonics + 1):
        if pitch_hz * k < 0.45 * RATE_HZ:
            audio += np.sin(2 * np.pi * pitch_hz * k * time) * np.exp(-(0.7 + 0.3 * k) * time / _DECAY_S) / k
    # Three milliseconds of attack and ten of damping, so that no note clicks.
    return audio * np.minimum(1, time / 0.003) * np.clip((seconds - time) / 0.01, 0, 1)
