"""Distances between sets of audio frames: closed cases, and the order that ears would give."""

import numpy as np
import pytest

from mamba_bio_audio.pipelines.audio.frames import frame_distance, frames

RATE = 16_000


def melody(seed: int, size: int = RATE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    time = np.arange(size) / RATE
    notes = 220 * 2 ** (rng.integers(0, 24, 8) / 12)
    return (0.3 * np.sin(2 * np.pi * notes[(time * 8).astype(int) % 8] * time)).astype(np.float32)


def test_frames_are_levels_and_their_change() -> None:
    found = frames([np.zeros(RATE, np.float32), np.zeros(1, np.float32)], RATE)
    # A frame every 512 samples, centred, from the first sample on.
    assert found.shape == (32 + 1, 64)
    assert (found[:, :32] == -8).all()
    assert (found[:, 32:] == 0).all()
    loud = frames([melody(0)], RATE)
    quiet = frames([(0.1 * melody(0)).astype(np.float32)], RATE)
    above = loud[:, :32] > -5
    # A tenth of the amplitude is 20 dB: 2 in units of 10 dB.
    np.testing.assert_allclose((loud - quiet)[:, :32][above], 2, atol=1e-4)


def test_distances() -> None:
    recorded = frames([melody(seed) for seed in range(20)], RATE)
    assert frame_distance(recorded, recorded) == pytest.approx(0, abs=1e-6)
    shifted = recorded + np.concatenate([np.full(32, 0.5), np.zeros(32)])
    assert frame_distance(shifted, recorded) == pytest.approx(32 * 0.25, rel=1e-6)
    one = frames([np.zeros(10, np.float32)], RATE)
    assert frame_distance(one, one) == pytest.approx(0, abs=1e-9)
    assert frame_distance(one, recorded) == pytest.approx(
        ((one[0] - recorded.mean(0)) ** 2).sum() + recorded.var(0, ddof=1).sum()
    )


def test_other_melodies_are_closer_than_what_is_none() -> None:
    recorded = frames([melody(seed) for seed in range(20)], RATE)
    rng = np.random.default_rng(9)
    others = {
        "melodies": [melody(seed) for seed in range(30, 36)],
        "one note": [np.sin(np.arange(RATE) / 10).astype(np.float32) * 0.3] * 6,
        "noise": [rng.standard_normal(RATE).astype(np.float32) * 0.2 for _ in range(6)],
        "silence": [np.zeros(RATE, np.float32)] * 6,
    }
    found = {name: frame_distance(frames(clips, RATE), recorded) for name, clips in others.items()}
    assert found["melodies"] * 3 < min(value for name, value in found.items() if name != "melodies")


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_any_rate(rate) -> None:
    assert np.isfinite(frames([melody(0, 5_000)], rate)).all()
