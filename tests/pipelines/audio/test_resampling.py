"""The pass band is flat to 0.9 of the lower Nyquist frequency, and nothing beyond 1.02 of it passes."""

import json

import numpy as np
import pytest
import soundfile

from mamba_bio_audio.pipelines.audio.config import AudioDataConfig
from mamba_bio_audio.pipelines.audio.corpus import AudioCorpus
from mamba_bio_audio.pipelines.audio.files import open_file
from mamba_bio_audio.pipelines.audio.prepare import prepare_audio
from mamba_bio_audio.pipelines.audio.resampling import RESAMPLER

PAIRS = [(44_100, 16_000), (48_000, 16_000), (22_050, 16_000), (8000, 16_000), (11_025, 16_000), (16_000, 44_100)]
SECONDS = 0.5


def sines(tmp_path, native_hz, rate_hz, frequencies) -> np.ndarray:
    """What a sum of full sines becomes, without the ends; its spectrum is that of each of them."""
    time = np.arange(int(SECONDS * native_hz)) / native_hz
    path = str(tmp_path / "a.wav")
    soundfile.write(path, sum(np.sin(2 * np.pi * f * time) for f in frequencies), native_hz, "DOUBLE")
    file = open_file(path)
    found = file.read(0, file.num_samples(rate_hz), rate_hz).astype(np.float64)
    return found[len(found) // 8 : -(len(found) // 8)]


def level_db(audio: np.ndarray, rate_hz: int, frequency: float) -> float:
    """Level of a sine at a frequency, against full scale."""
    window = np.kaiser(len(audio), 16)
    time = np.arange(len(audio)) / rate_hz
    return 20 * np.log10(2 * abs(np.sum(window * audio * np.exp(-2j * np.pi * frequency * time))) / window.sum())


def highest_db(audio: np.ndarray, rate_hz: int, above: float) -> float:
    window = np.kaiser(len(audio), 16)
    spectrum = 2 * abs(np.fft.rfft(window * audio)) / window.sum()
    return 20 * np.log10(spectrum[np.fft.rfftfreq(len(audio), 1 / rate_hz) >= above].max())


@pytest.mark.parametrize(("native_hz", "rate_hz"), PAIRS)
def test_the_pass_band_is_flat(tmp_path, native_hz, rate_hz):
    lower = min(native_hz, rate_hz) / 2
    frequencies = lower * np.linspace(0.05, 0.9, 12)
    found = sines(tmp_path, native_hz, rate_hz, frequencies)
    assert max(abs(level_db(found, rate_hz, frequency)) for frequency in frequencies) < 0.1


@pytest.mark.parametrize(("native_hz", "rate_hz"), [pair for pair in PAIRS if pair[0] > pair[1]])
@pytest.mark.parametrize("place", [1.02, 1.05, 1.1, 1.25, 1.36])
def test_nothing_is_folded_back(tmp_path, native_hz, rate_hz, place):
    if place * rate_hz >= native_hz:
        pytest.skip("beyond what the recording can hold")
    assert highest_db(sines(tmp_path, native_hz, rate_hz, [place * rate_hz / 2]), rate_hz, 0) < -100


@pytest.mark.parametrize(("native_hz", "rate_hz"), [pair for pair in PAIRS if pair[0] < pair[1]])
@pytest.mark.parametrize("place", [0.3, 0.9, 0.98])
def test_nothing_is_mirrored(tmp_path, native_hz, rate_hz, place):
    """The image of 0.98 lies at 1.02."""
    found = sines(tmp_path, native_hz, rate_hz, [place * native_hz / 2])
    assert highest_db(found, rate_hz, 1.005 * native_hz / 2) < -100


def test_manifests_name_the_resampler(tmp_path):
    (tmp_path / "in").mkdir()
    for name, rate in (("a", 16_000), ("b", 8000)):
        soundfile.write(tmp_path / "in" / f"{name}.wav", np.full(rate, 0.1), rate)
    prepare_audio([str(tmp_path / "in")], tmp_path / "both")
    assert json.loads((tmp_path / "both" / "manifest.json").read_text())["resampler"] == RESAMPLER
    (tmp_path / "in" / "b.wav").unlink()
    assert prepare_audio([str(tmp_path / "in")], tmp_path / "one")["resampler"] is None
    for rate, expected in ((16_000, None), (8000, RESAMPLER)):
        config = AudioDataConfig(path=str(tmp_path / "in"), sample_rate_hz=rate)
        assert AudioCorpus(config, length=100).summary()["resampler"] == expected
