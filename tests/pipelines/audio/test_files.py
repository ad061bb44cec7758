import itertools
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchaudio.functional import resample

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio.files import list_files, natural_key, open_file, open_files, probe

SUFFIXES = ["wav", "flac", "ogg", "mp3"]


def whole(path: str) -> np.ndarray:
    return soundfile.read(path, dtype="float32", always_2d=True)[0].mean(1, dtype=np.float32)


def resampled(path: str, native_hz: int, rate_hz: int) -> np.ndarray:
    """The whole file; in double precision, because torchaudio's function makes its kernel in that of the audio."""
    kaiser_best = {"lowpass_filter_width": 64, "rolloff": 0.9475937167399596, "beta": 14.769656459379492}
    audio = torch.from_numpy(whole(path)).double()
    return resample(audio, native_hz, rate_hz, resampling_method="sinc_interp_kaiser", **kaiser_best).numpy()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("channels", [1, 2])
def test_windows_are_pieces_of_the_whole(write_audio, suffix, channels):
    path = write_audio(f"a.{suffix}", 20_000, channels=channels)
    file, expected = probe(path), whole(path)
    assert (file.frames, file.native_rate_hz, file.channels) == (len(expected), 16_000, channels)
    for start, stop in ((0, 1), (5, 5), (1, 700), (12_345, 20_000), (0, 20_000)):
        assert file.read(start, stop, 16_000).dtype == np.float32
        np.testing.assert_allclose(file.read(start, stop, 16_000), expected[start:stop], atol=2e-6)


@pytest.mark.parametrize("native_hz", [44_100, 48_000, 22_050, 11_025, 8_000, 96_000])
def test_resampled_windows_are_pieces_of_the_resampled_whole(write_audio, native_hz):
    path = write_audio("a.wav", 9_001, native_hz, channels=2)
    file = open_file(path)
    expected = resampled(path, native_hz, 16_000)
    assert file.num_samples(16_000) == len(expected)
    edges = sorted({0, 1, 160, 161, 1000, len(expected) // 2, len(expected) - 1, len(expected)})
    for start, stop in itertools.combinations(edges, 2):
        np.testing.assert_allclose(file.read(start, stop, 16_000), expected[start:stop], atol=2e-6)
    assert abs(expected).max() > 0.3


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=st.integers(2, 3000),
    native_hz=st.sampled_from([8000, 11_025, 16_000, 44_100]),
    rate_hz=st.sampled_from([8000, 16_000, 22_050]),
    data=st.data(),
)
def test_any_window_of_any_length(write_audio, frames, native_hz, rate_hz, data):
    path = write_audio("a.wav", frames, native_hz)
    file = open_file(path)
    expected = resampled(path, native_hz, rate_hz)
    assert file.num_samples(rate_hz) == len(expected)
    start = data.draw(st.integers(0, len(expected)))
    stop = data.draw(st.integers(start, len(expected)))
    np.testing.assert_allclose(file.read(start, stop, rate_hz), expected[start:stop], atol=2e-6)


def test_a_window_decodes_only_itself(write_audio, monkeypatch):
    file = open_file(write_audio("a.wav", 500_000, 44_100))
    read = soundfile.SoundFile.read
    asked = []

    def counted(self, frames=-1, *arguments, **options):
        asked.append(frames)
        return read(self, frames, *arguments, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    file.read(100_000, 101_600, 16_000)
    assert len(asked) == 1
    assert 4410 <= asked[0] <= 4410 + 4 * 441


def test_reading_beyond_the_end_is_a_mistake(write_audio):
    file = open_file(write_audio("a.wav", 100))
    with pytest.raises(ValueError, match=r"90\.\.101 of 100"):
        file.read(90, 101, 16_000)


def test_rates_without_a_common_period_are_refused(write_audio):
    file = open_file(write_audio("a.wav", 100, 44_101))
    with pytest.raises(InputError, match=r"a\.wav: resampling from 44101 Hz to 16000 Hz.*choose 44101 Hz"):
        file.read(0, 10, 16_000)


def damage(path: str, suffix: str) -> None:
    """Cut a file to 60 % of its bytes."""
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) * 6 // 10])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncated_files_are_named(write_audio, suffix):
    path = write_audio(f"cut.{suffix}", 50_000)
    probe(path)
    damage(path, suffix)
    with pytest.raises(InputError, match=rf"cut\.{suffix}: (truncated|cannot be decoded)"):
        probe(path)


def test_reading_a_truncated_window_names_the_file(write_audio):
    path = write_audio("cut.flac", 50_000)
    file = open_file(path)
    damage(path, "flac")
    assert len(file.read(0, 1000, 16_000)) == 1000
    with pytest.raises(InputError, match=r"cut\.flac: (truncated|cannot be decoded at sample 49000)"):
        file.read(49_000, 50_000, 16_000)


def test_a_file_that_became_shorter_is_named(write_audio):
    file = open_file(write_audio("a.wav", 1000))
    write_audio("a.wav", 300)
    with pytest.raises(
        InputError, match=r"a\.wav: truncated or damaged: the header claims 1000 samples, but decoding ends at 300"
    ):
        file.read(100, 700, 16_000)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_named_with_their_position(tmp_path, value):
    audio = np.zeros(3_000_000, np.float32)
    audio[2_345_678] = value
    path = tmp_path / "nan.wav"
    soundfile.write(path, audio, 16_000, subtype="FLOAT")
    file = open_file(str(path))
    assert not file.read(0, 1000, 16_000).any()
    with pytest.raises(InputError, match=r"nan\.wav: NaN or infinite sample at 2345678"):
        probe(str(path))
    with pytest.raises(InputError, match="at 2345678"):
        file.read(2_345_000, 2_346_000, 16_000)


def test_headers_tell_what_is_wrong(write_audio, tmp_path):
    (tmp_path / "zero.wav").write_bytes(b"")
    (tmp_path / "text.flac").write_text("this is not audio at all, whatever its name says")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16_000)
    write_audio("one.wav", 1)
    write_audio("a.flac", 100)
    (tmp_path / "a.flac").rename(tmp_path / "flac.wav")
    for name, message in {
        "zero.wav": "zero length",
        "text.flac": "not readable as FLAC",
        "empty.wav": "holds no sample",
        "one.wav": "holds only one sample",
        "flac.wav": "wrong extension: the contents are FLAC",
        "none.wav": "no such file",
        "notes.txt": "extension is none of .wav, .flac, .ogg, .mp3",
    }.items():
        with pytest.raises(InputError, match=rf"{name}: .*{message}"):
            open_file(str(tmp_path / name))


def test_riff_sizes_of_pipes_and_odd_chunks_are_no_truncation(write_audio, tmp_path):
    path = Path(write_audio("a.wav", 1000))
    content = path.read_bytes()
    assert struct.unpack("<I", content[4:8])[0] + 8 == len(content)
    for size in (0, 0x7FFFFFFF, 0xFFFFFFFF):
        path.write_bytes(content[:4] + struct.pack("<I", size) + content[8:])
        open_file(str(path))
    path.write_bytes(content[:4] + struct.pack("<I", len(content) - 8 + 1) + content[8:])
    open_file(str(path))
    path.write_bytes(content[:4] + struct.pack("<I", len(content) - 8 + 2) + content[8:])
    with pytest.raises(InputError, match="truncated: 1 bytes"):
        open_file(str(path))


def test_torn_wavs_are_found_whatever_their_header(write_audio, tmp_path):
    path = Path(write_audio("a.wav", 1000))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="truncated: 1 bytes"):
        open_file(str(path))
    path = Path(write_audio("long.wav", 1000, format="RF64"))
    open_file(str(path))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="truncated: 1000 bytes"):
        open_file(str(path))


def test_where_decoding_fails_is_told(write_audio):
    path = write_audio("cut.flac", 200_000)
    damage(path, "flac")
    with pytest.raises(InputError, match=r"at sample|ends at") as caught:
        probe(path)
    (position,) = re.findall(r"(?:at sample|ends at) (\d+)", str(caught.value))
    assert 90_000 < int(position) < 150_000


def test_links_are_followed_and_broken_ones_are_bad_files(write_audio, tmp_path):
    write_audio("outside/z.wav", 100)
    write_audio("d/a.wav", 100)
    write_audio("d/.hidden/b.wav", 100)
    (tmp_path / "d" / "link").symlink_to(tmp_path / "outside")
    assert [name for _, name in list_files(str(tmp_path / "d"))] == ["a.wav", "link/z.wav"]
    (tmp_path / "d" / "broken.wav").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"broken\.wav: a link to a file that is not there"):
        open_files(list_files(str(tmp_path / "d")))
    (tmp_path / "d" / "loop").symlink_to(tmp_path)
    with pytest.raises(InputError, match="loop: this link leads back"):
        list_files(str(tmp_path / "d"))


def test_names_that_are_no_text_are_refused(write_audio, tmp_path):
    write_audio("d/a.wav", 100)
    os.rename(tmp_path / "d" / "a.wav", os.path.join(os.fsencode(tmp_path), b"d", b"bad\xff.wav"))
    with pytest.raises(InputError, match=r"bad\\xff\.wav: the name is not UTF-8"):
        list_files(str(tmp_path / "d"))


def test_all_bad_files_are_named_together_or_left_out(write_audio, tmp_path):
    write_audio("d/good.wav", 100)
    (tmp_path / "d" / "zero.wav").write_bytes(b"")
    write_audio("d/one.wav", 1)
    found = list_files(str(tmp_path / "d"))
    with pytest.raises(InputError, match=r"2 of 3 files cannot be used(?s:.*)one\.wav(?s:.*)zero\.wav(?s:.*)exclude"):
        open_files(found)
    files, problems = open_files(found, "exclude")
    assert [file.name for file in files] == ["good.wav"]
    assert sorted(problems) == ["one.wav", "zero.wav"]
    (tmp_path / "d" / "good.wav").unlink()
    with pytest.raises(InputError, match="2 of 2"):
        open_files(list_files(str(tmp_path / "d")), "exclude")


def test_files_are_listed_in_natural_order(write_audio, tmp_path):
    for name in ("10.wav", "9.FLAC", "1.wav", "sub/2.ogg", "sub/10.mp3"):
        write_audio(f"d/{name}", 100)
    (tmp_path / "d" / "readme.txt").write_text("no audio")
    (tmp_path / "d" / ".hidden.wav").write_bytes(b"")
    assert [name for _, name in list_files(str(tmp_path / "d"))] == [
        "1.wav",
        "9.FLAC",
        "10.wav",
        "sub/2.ogg",
        "sub/10.mp3",
    ]
    assert natural_key("a2") < natural_key("a10") < natural_key("b1")
    with pytest.raises(InputError, match="no such file or folder"):
        list_files(str(tmp_path / "other"))
    (tmp_path / "void").mkdir()
    with pytest.raises(InputError, match=r"void: no \.wav"):
        list_files(str(tmp_path / "void"))
    with pytest.raises(InputError, match="same name"):
        list_files([str(tmp_path / "d" / "1.wav"), str(tmp_path / "d")])


def test_shared_piano(shared_data):
    files, _ = open_files(list_files(str(shared_data / "piano")))
    assert len(files) == 10
    assert sum(file.frames for file in files) / 16_000 / 60 == pytest.approx(35.6, abs=0.1)
    piece = files[0].read(100_000, 108_000, 16_000)
    assert 0.01 < abs(piece).max() <= 0.9
