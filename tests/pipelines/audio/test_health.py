"""What is wrong with a recording is named, a line each, and it can stop the preparation, be left out or be accepted."""

import numpy as np
import pytest
import soundfile

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio.files import decode
from mamba_bio_audio.pipelines.audio.health import health_line
from mamba_bio_audio.pipelines.audio.prepare import manifest_rows, prepare_audio
from mamba_bio_audio.pipelines.audio.prepare_settings import AudioSettings

RATE = 16_000


def music(seed: int = 0, seconds: float = 2.0) -> np.ndarray:
    """Notes of changing pitch over a little noise; peak below 0.5."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    pitch = np.repeat(generator.uniform(200, 2000, int(seconds * 8) + 1), RATE // 8)[: len(time)]
    tone = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / RATE) * np.exp(-8 * (time % 0.125))
    return tone + generator.normal(0, 0.01, len(time))


SICK = {
    "silent": (np.zeros(RATE), "silent"),
    "dither": (np.random.default_rng(0).integers(-1, 2, RATE) / 32768, "silent"),
    "half silent": (np.r_[np.zeros(40_000), music()], "56% of it is silence"),
    "out of phase": (np.stack([music(), -0.98 * music()], 1), r"cancel each other out when mixed \(-40 dB\).*left"),
    "clipped": (np.clip(8 * music(), -1, 1), "clipped: .*peak of 1"),
    "clipped, then softer": (0.4 * np.clip(8 * music(), -1, 1), "clipped: .*peak of 0.4"),
    "one channel clipped": (np.stack([np.clip(8 * music(), -1, 1), music(1)], 1), "clipped"),
    "beyond full scale": (4 * music(), "clipped: .*beyond full scale"),
    "off zero": (music() + 0.05, "offset .*0.05"),
    "integers": (32_768 * music(), "as of integers; divide"),
    "quiet": (music() / 500, "very quiet"),
}


@pytest.mark.parametrize("fault", SICK)
def test_faults_are_found(tmp_path, fault):
    audio, expected = SICK[fault]
    path = tmp_path / "a.wav"
    soundfile.write(path, audio, RATE, "FLOAT")
    report = decode(str(path), tmp_path / "decoded").health
    assert len(report["findings"]) == 1
    with pytest.raises(AssertionError, match=expected):
        raise AssertionError(report["findings"][0])
    assert health_line(report).endswith(report["findings"][0])


@pytest.mark.parametrize(
    "options", [{}, {"subtype": "PCM_U8"}, {"format": "FLAC"}, {"format": "OGG"}, {"format": "MP3"}]
)
@pytest.mark.parametrize("gain", [0.5, 1.0, 2.0])
def test_healthy_recordings_have_no_findings(tmp_path, options, gain):
    path = tmp_path / f"a.{options.get('format', 'wav').lower()}"
    soundfile.write(path, gain * np.stack([music(), music(1)], 1), RATE, **options)
    assert health_line(decode(str(path), tmp_path / "decoded").health).endswith(": healthy")


def test_shared_recordings(tmp_path, shared_data):
    digits = shared_data / "sc09" / "fsdd_8k"
    for path in [*sorted(digits.glob("*/*_theo_[0-4].wav")), *sorted((shared_data / "piano_real").glob("*.flac"))[:1]]:
        assert decode(str(path), tmp_path / "decoded").health["findings"] == [], path
    # The microphone of one speaker stands 0.7 % off zero.
    for path in sorted(digits.glob("*/*_nicolas_[0-4].wav")):
        report = decode(str(path), tmp_path / "decoded").health
        assert report["dc"] == pytest.approx(-0.007, abs=0.001)


def test_one_channel_is_taken_instead_of_the_mean(tmp_path):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", np.stack([music(), -music()], 1), RATE, "FLOAT")
    for channels, expected in (("left", music()), ("right", -music()), ("mix", 0 * music())):
        manifest = prepare_audio([str(tmp_path / "in")], tmp_path / channels, AudioSettings(channels=channels))
        found = soundfile.read(tmp_path / channels / "a.flac")[0]
        np.testing.assert_allclose(found, expected, atol=1 / 32768)
        assert bool(manifest["health"]["a.wav"]["findings"]) == (channels == "mix")
        assert manifest["channels"] == channels


def test_a_silent_channel_is_silent_when_it_is_taken(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([np.zeros(2 * RATE), music()], 1), RATE)
    for channels, findings in (("left", ["silent"]), ("right", []), ("mix", [])):
        assert decode(str(path), tmp_path / "decoded", channels).health["findings"] == findings


def folder_of(tmp_path, recordings: dict[str, np.ndarray]) -> str:
    (tmp_path / "in").mkdir()
    for name, audio in recordings.items():
        soundfile.write(tmp_path / "in" / name, audio, RATE)
    return str(tmp_path / "in")


def test_unhealthy_recordings_stop_are_left_out_or_accepted(tmp_path):
    recordings = {f"{n}.wav": music(n) for n in range(4)} | {"8.wav": np.zeros(RATE), "9.wav": music(9) + 0.1}
    folder = folder_of(tmp_path, recordings)
    with pytest.raises(
        InputError, match=r"(?s)wrong with 2 recordings:.*8\.wav: .*silent.*9\.wav.*\(DC\).*--unhealthy exclude"
    ):
        prepare_audio([folder], tmp_path / "out", AudioSettings(unhealthy="error"))
    assert not (tmp_path / "out").exists()
    manifest = prepare_audio([folder], tmp_path / "out", AudioSettings(unhealthy="exclude"))
    assert sorted(manifest["excluded_files"]) == ["8.wav", "9.wav"]
    assert manifest["recordings"] == 4
    manifest = prepare_audio([folder], tmp_path / "all")
    assert manifest["recordings"] == len(manifest["health"]) == 6
    rows = [value for what, value in manifest_rows(manifest) if what == "health"]
    assert len(rows) == 6
    assert sum(row.endswith("healthy") for row in rows) == 4
    many = manifest | {"health": manifest["health"] | {f"{n}.wav": manifest["health"]["0.wav"] for n in range(10, 40)}}
    rows = [value for what, value in manifest_rows(many) if what == "health"]
    assert len(rows) == 3
    assert rows[-1] == "34 of 36 recordings healthy; all in manifest.json"
    with pytest.raises(InputError, match="silent"):
        prepare_audio([f"{folder}/8.wav"], tmp_path / "none", AudioSettings(unhealthy="exclude"))


def test_a_channel_that_is_not_taken_is_not_judged(tmp_path):
    path = tmp_path / "a.wav"
    good = np.random.default_rng(0).normal(0, 0.1, 16_000)
    broken = np.clip(100 * good, -1, 1)
    broken[5] = np.inf
    soundfile.write(path, np.stack([good, broken], 1), 16_000, subtype="FLOAT")
    left = decode(str(path), tmp_path / "decoded", "left").health
    assert left["findings"] == []
    assert left["peak"] == pytest.approx(np.abs(good).max(), abs=1e-5)
    assert left["clipped_share"] == 0
