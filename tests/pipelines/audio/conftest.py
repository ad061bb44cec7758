from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile


def tone(samples: int, rate_hz: int = 16_000, seed: int = 0) -> np.ndarray:
    """A chord with a little noise, float32 in [-1, 1]."""
    generator = np.random.default_rng(seed)
    time = np.arange(samples) / rate_hz
    chord = sum(np.sin(2 * np.pi * pitch * time) for pitch in generator.uniform(100, 2000, 3)) / 4
    return np.clip(chord + generator.normal(0, 0.02, samples), -1, 1).astype(np.float32)


@pytest.fixture
def write_audio(tmp_path: Path) -> Callable[..., str]:
    """Write a recording below the test's folder and give its path; mono unless `channels`."""

    def write(name: str, samples: int = 1000, rate_hz: int = 16_000, *, channels: int = 1, seed: int = 0, **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = [tone(samples, rate_hz, seed + channel) for channel in range(channels)]
        soundfile.write(path, np.stack(columns, 1), rate_hz, **options)
        return str(path)

    return write
