"""Recordings that are in two splits are found at any level and offset, and others are not."""

import numpy as np
import pytest
import soundfile

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio.duplicates import duplicates, fingerprints
from mamba_bio_audio.pipelines.audio.prepare import manifest_rows, prepare_audio
from mamba_bio_audio.pipelines.audio.prepare_settings import AudioSettings

RATE = 16_000


def music(seed: int, seconds: float = 4.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    pitch = np.repeat(generator.choice([262, 294, 330, 392, 440, 523], int(seconds * 6) + 1), RATE // 6)[: len(time)]
    return 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / RATE) + generator.normal(0, 0.005, len(time))


def found(recordings: dict[str, np.ndarray], split_of: dict[str, str], rate: int = RATE):
    def read(name, start, stop):
        return recordings[name][max(0, start) : stop].astype(np.float32)

    prints = {
        name: fingerprints(len(audio), rate, lambda low, high, name=name: read(name, low, high))
        for name, audio in recordings.items()
    }
    return list(duplicates(prints, split_of, rate, read))


COPIES = {
    "equal": (lambda audio: audio, 0, 0.0),
    "softer": (lambda audio: 0.25 * audio, 0, -12.04),
    "upside down": (lambda audio: -0.5 * audio, 0, -6.02),
    "later": (lambda audio: np.r_[np.random.default_rng(9).normal(0, 1e-3, 12_345), audio], 12_345, 0.0),
    "cut": (lambda audio: 0.7 * audio[20_011:50_000], -20_011, -3.1),
    "quantised": (lambda audio: np.round(audio * 0.5 * 2047) / 2047, 0, -6.02),
}


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("seconds", [1.0, 4.0, 30.0])
def test_copies_are_found(copy, seconds):
    make, shift, gain_db = COPIES[copy]
    if copy == "cut" and seconds < 4:
        pytest.skip("nothing is left of it")
    recordings = {"a": music(0, seconds), "b": music(1, seconds), "c": make(music(0, seconds)), "d": music(2, seconds)}
    (pair,) = found(recordings, {"a": "train", "b": "train", "d": "valid", "c": "test"})
    assert (pair.name, pair.other) == ("a", "c")
    assert pair.shift == pytest.approx(shift, abs=1)
    assert pair.gain_db == pytest.approx(gain_db, abs=0.2)
    assert found(recordings, {"a": "train", "b": "valid", "c": "train", "d": "valid"}) == []
    assert len(found({"a": recordings["a"], "c": recordings["c"]}, dict.fromkeys("ac", "train+valid"))) == 1


def test_other_recordings_are_none_of_them():
    recordings = {str(n): music(n) for n in range(20)} | {"silent": np.zeros(RATE), "short": music(0)[:500]}
    split_of = {name: ("train", "valid", "test")[at % 3] for at, name in enumerate(recordings)}
    assert found(recordings, split_of) == []


def test_of_many_copies_in_one_split_none_is_missed():
    recordings = {str(n): (1 - 0.01 * n) * music(0) for n in range(40)} | {str(n): music(n) for n in range(40, 60)}
    recordings["held out"] = 0.5 * music(0)
    pairs = found(recordings, dict.fromkeys(map(str, range(60)), "train") | {"held out": "valid"})
    assert sorted(pair.name for pair in pairs) == sorted(str(n) for n in range(40))


def test_forty_copies_are_found():
    recordings = {str(n): music(0, 1.0) for n in range(40)}
    pairs = found(recordings, {name: "train" if int(name) < 39 else "test" for name in recordings})
    assert {pair.other for pair in pairs} == {"39"}


def test_shared_digits(shared_data):
    paths = sorted((shared_data / "sc09" / "fsdd_8k").glob("*/*_[0-4].wav"))
    recordings = {path.name: soundfile.read(path)[0] for path in paths[::2]}
    split_of = {name: ("train", "valid", "test")[at % 3] for at, name in enumerate(recordings)}
    assert found(recordings, split_of, 8000) == []
    copy = next(name for name, audio in recordings.items() if len(audio) > 3000)
    recordings["copy"] = 0.5 * np.r_[np.zeros(500), recordings[copy]]
    split_of = {name: "train" for name in recordings} | {"copy": "test"}
    (pair,) = found(recordings, split_of, 8000)
    assert (pair.name, pair.other, pair.shift) == (copy, "copy", 500)


def test_preparation_names_stops_or_leaves_out(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(10):
        soundfile.write(tmp_path / "in" / f"{number}.wav", music(number), RATE)
    soundfile.write(tmp_path / "in" / "99.wav", 0.5 * music(3)[1000:], RATE)
    settings = {"valid_fraction": 0.1, "test_fraction": 0.1}
    folder = [str(tmp_path / "in")]
    manifest = prepare_audio(folder, tmp_path / "all", AudioSettings(**settings))
    line = "3.flac and 99.flac are the same recording (-6.0 dB, -0.062 s), in different splits"
    assert manifest["duplicates"] == [line]
    assert ("duplicate", line) in manifest_rows(manifest)
    with pytest.raises(InputError, match=r"wrong with 1 recording:(?s:.*)3\.flac and 99\.flac"):
        prepare_audio(folder, tmp_path / "out", AudioSettings(unhealthy="error", **settings))
    manifest = prepare_audio(folder, tmp_path / "out", AudioSettings(unhealthy="exclude", **settings))
    assert manifest["excluded_files"] == {"3.flac": line}
    assert not (tmp_path / "out" / "3.flac").exists()
    listed = (tmp_path / "out" / "intervals.tsv").read_text()
    assert "\n3.flac\t" not in listed
    assert "\n99.flac\ttest" in listed


@pytest.mark.parametrize("rate", [16_000, 192_000])
def test_pieces_of_any_rate_have_a_bounded_size(rate):
    asked = []

    def read(start, stop):
        asked.append(stop - start)
        return np.zeros(stop - start, np.float32)

    fingerprints(20 * rate, rate, read)
    assert max(asked) < 1 << 19
