"""Recordings that are read in pieces are those that are read whole."""

import numpy as np
import pytest
import soundfile

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio.config import AudioDataConfig
from mamba_bio_audio.pipelines.audio.records import StoredRecordings, items

RATE = 16_000


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for number, samples in ((2, 300), (10, 5_000)):
        soundfile.write(tmp_path / f"{number}.wav", rng.uniform(-0.3, 0.2, samples), RATE)
    return tmp_path


@pytest.mark.parametrize("variant", ["standard", "sashimi"])
@pytest.mark.parametrize("max_duration_s", [None, 0.1])
def test_pieces_of_a_recording_are_pieces_of_the_whole(folder, variant, max_duration_s):
    config = AudioDataConfig(kind="audio", variant=variant, gain=1.5, max_duration_s=max_duration_s)
    stored = StoredRecordings([str(folder)], config)
    assert stored.records == {"2.wav": 300, "10.wav": 5_000 if max_duration_s is None else 1_600}
    for item in items([str(folder)], config):
        pieces = [
            stored.fetch(item.name, low, min(low + 700, len(item.symbols))) for low in range(0, len(item.symbols), 700)
        ]
        assert np.array_equal(np.concatenate(pieces), item.symbols)


def test_contents_change_with_a_file(folder):
    config = AudioDataConfig(kind="audio")
    before = StoredRecordings([str(folder)], config).contents()
    assert before == StoredRecordings([str(folder)], config).contents()
    soundfile.write(folder / "2.wav", np.zeros(300), RATE)
    assert before != StoredRecordings([str(folder)], config).contents()


def test_names(folder):
    stored = StoredRecordings([str(folder / "2.wav")], AudioDataConfig(kind="audio"))
    assert stored.resolve("2.wav") == "2.wav"
    with pytest.raises(InputError, match=r"no recording '3\.wav' among those given, such as '2\.wav'"):
        stored.resolve("3.wav")
    with pytest.raises(InputError, match="no such file"):
        StoredRecordings([str(folder / "3.wav")], AudioDataConfig(kind="audio"))
