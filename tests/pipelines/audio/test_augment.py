"""Speed, pitch and shift of recordings: lengths, frequencies, what is heard where."""

import numpy as np
import pytest

from mamba_bio_audio.pipelines.audio.augment import faster, pitched, stretched

RATE = 8000
TIME = np.arange(RATE) / RATE
SINE = (0.5 * np.sin(2 * np.pi * 440 * TIME)).astype(np.float32)
# Half a second at 300 Hz, then half a second at 900 Hz.
TUNE = (0.5 * np.sin(2 * np.pi * np.where(TIME < 0.5, 300, 900) * TIME)).astype(np.float32)


def hertz(audio: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(audio * np.hanning(len(audio)), 1 << 16)).argmax() * RATE / (1 << 16))


@pytest.mark.parametrize("factor", [0.8, 0.95, 1.0, 1.1, 1.3])
def test_faster_is_shorter_and_higher(factor: float) -> None:
    found = faster(SINE, factor)
    assert len(found) == round(RATE / factor)
    assert hertz(found) == pytest.approx(440 * factor, abs=0.5)
    assert np.abs(found[50:-50]).max() == pytest.approx(0.5, abs=0.005)
    # Sample t is what was at t times the factor, within a sample, which is 0.17 of this sine.
    at = np.arange(100, len(found) - 100)
    assert np.abs(found[at] - 0.5 * np.sin(2 * np.pi * 440 * at * factor / RATE)).max() < 0.17


def test_what_nothing_changes_stays() -> None:
    assert np.abs(faster(TUNE, 1.0) - TUNE).max() < 1e-6
    assert np.abs(stretched(TUNE, 1.0, RATE) - TUNE).max() < 1e-6


@pytest.mark.parametrize("factor", [0.85, 1.15])
def test_stretched_keeps_the_pitch_and_moves_what_follows(factor: float) -> None:
    found = stretched(TUNE, factor, RATE)
    assert len(found) == round(RATE * factor)
    half = round(RATE * factor / 2)
    assert hertz(found[: half - 400]) == pytest.approx(300, abs=3)
    assert hertz(found[half + 400 :]) == pytest.approx(900, abs=3)
    assert found.std() == pytest.approx(TUNE.std(), rel=0.03)


@pytest.mark.parametrize("semitones", [-3, 2])
def test_pitch_alone_keeps_the_time(semitones: float) -> None:
    found, ratio = pitched(TUNE, semitones, RATE), 2 ** (semitones / 12)
    assert len(found) == len(TUNE)
    assert hertz(found[:3600]) == pytest.approx(300 * ratio, abs=4)
    assert hertz(found[4400:]) == pytest.approx(900 * ratio, abs=4)


@pytest.mark.parametrize("count", [0, 1, 7, 200, 400])
def test_short_and_silent_pieces_come_back_whole(count: int) -> None:
    for audio in (SINE[:count], np.zeros(count, np.float32)):
        for found in (faster(audio, 1.0), pitched(audio, 2.0, RATE), stretched(audio, 1.0, RATE)):
            assert found.shape == (count,)
            assert found.dtype == np.float32
            assert np.isfinite(found).all()
