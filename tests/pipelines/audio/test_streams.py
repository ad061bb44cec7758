"""Files of several streams and of unknown length: read completely by `prepare`, refused with the reason otherwise."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio.files import decode, open_file, skipped_files
from mamba_bio_audio.pipelines.audio.prepare import manifest_rows, prepare_audio

FRAME = re.compile(rb"\xff[\xe2-\xff]")


def noise(samples: int = 60_000, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(samples) / 44_100)
    return tone + 0.05 * generator.normal(size=samples) * (np.arange(samples) % 20_000 > 15_000)


def encoded(tmp_path: Path, suffix: str, seed: int = 0, rate: int = 44_100, **options) -> tuple[bytes, np.ndarray]:
    """The bytes of a file, and what it decodes to."""
    path = tmp_path / f"made.{suffix}"
    soundfile.write(path, noise(seed=seed), rate, **options)
    return path.read_bytes(), soundfile.read(path, dtype="float32")[0]


def without_info(mp3: bytes) -> bytes:
    """An MP3 as many programs write it: from the first frame with sound."""
    return mp3[mp3.index(mp3[:2], 4) :]


def decoded(path: Path) -> np.ndarray:
    file = decode(str(path), path.with_suffix(".decoded"))
    return file.read(0, file.frames, file.native_rate_hz)


def refused(path: Path, reason: str) -> None:
    with pytest.raises(InputError, match=rf"{path.name}: .*{reason}.*; mba prepare audio reads all of it"):
        open_file(str(path))


MP3S = [{"bitrate_mode": mode, "compression_level": 0.8} for mode in ("CONSTANT", "AVERAGE", "VARIABLE")]


@pytest.mark.parametrize("options", MP3S, ids=lambda options: options["bitrate_mode"])
def test_mp3_without_an_info_frame(tmp_path, options):
    mp3, whole = encoded(tmp_path, "mp3", **options)
    path = tmp_path / "a.mp3"
    path.write_bytes(without_info(mp3))
    refused(path, "without an info frame")
    found = decoded(path)
    # The encoder's 576 and the decoder's 529 samples of delay stay, which only an info frame tells.
    assert len(found) == -(-(len(whole) + 1105) // 1152) * 1152
    np.testing.assert_allclose(found[1105:][: len(whole)], whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", MP3S, ids=lambda options: options["bitrate_mode"])
@pytest.mark.parametrize("tag", [b"", b"TAG" + b"x" * 125, b"ID3\x03\0\0\0\0\x10\0" + b"\0" * 2048])
def test_mp3s_one_after_another(tmp_path, options, tag):
    (one, sound), (two, other) = encoded(tmp_path, "mp3", **options), encoded(tmp_path, "mp3", 1, **options)
    path = tmp_path / "a.mp3"
    path.write_bytes(one + tag + two + two)
    refused(path, "3 MP3 streams one after another")
    np.testing.assert_array_equal(decoded(path), np.concatenate([sound, other, other]))


def test_mp3s_with_and_without_an_info_frame_one_after_another(tmp_path):
    mp3, sound = encoded(tmp_path, "mp3", **MP3S[2])
    bare = without_info(mp3)
    alone = tmp_path / "alone.mp3"
    alone.write_bytes(bare)
    more = decoded(alone)
    path = tmp_path / "a.mp3"
    for content, expected, count in (
        (mp3 + bare, [sound, more], 2),
        (bare + mp3, [more, sound], 2),
        (mp3 + b"TAG" + b"x" * 125 + bare + mp3, [sound, more, sound], 3),
    ):
        path.write_bytes(content)
        refused(path, f"{count} MP3 streams")
        np.testing.assert_array_equal(decoded(path), np.concatenate(expected))
    path.write_bytes(bare + bare)
    refused(path, "without an info frame")
    assert len(decoded(path)) == 2 * len(more)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_all_links_of_a_chained_ogg(tmp_path, subtype):
    rate = 48_000
    (one, sound), (two, other) = (encoded(tmp_path, "ogg", seed, rate, subtype=subtype) for seed in (0, 1))
    path = tmp_path / "a.ogg"
    path.write_bytes(one + two + one)
    refused(path, "chain of 3 Ogg streams")
    np.testing.assert_array_equal(decoded(path), np.concatenate([sound, other, sound]))
    slow, _ = encoded(tmp_path, "ogg", 0, 24_000, subtype=subtype)
    path.write_bytes(one + slow)
    with pytest.raises(InputError, match="streams differ in sample rate"):
        decoded(path)
    path.write_bytes(one + two[: len(two) // 2])
    with pytest.raises(InputError, match="truncated"):
        decoded(path)


def test_flac_of_unknown_length(tmp_path):
    flac, sound = encoded(tmp_path, "flac")
    content = bytearray(flac)
    # 36 bits of the number of samples, 16 bytes of the MD5 sum of the decoded samples.
    content[21] &= 0xF0
    content[22:42] = bytes(20)
    path = tmp_path / "a.flac"
    path.write_bytes(content)
    refused(path, "does not give its length")
    np.testing.assert_array_equal(decoded(path), sound)


@pytest.mark.parametrize("size", [0x7FFFFFFF, 0x7FFFF000, 0x7FFFFFFF - 36, 0xFFFFFFFF, 0xFFFFF000, 0x80000000])
@pytest.mark.parametrize("riff", [0, 0x7FFFFFFF, 0x7FFFF024, 0xFFFFFFFF, 0x23])
def test_wav_of_a_pipe(tmp_path, size, riff):
    wav, sound = encoded(tmp_path, "wav")
    path = tmp_path / "a.wav"
    path.write_bytes(wav[:4] + struct.pack("<I", riff) + wav[8:40] + struct.pack("<I", size) + wav[44:])
    file = open_file(str(path))
    np.testing.assert_array_equal(file.read(0, file.frames, 44_100), sound)
    np.testing.assert_array_equal(decoded(path), sound)


@pytest.mark.parametrize("riff", [0, 36, 0x7FFFFFFF, 0xFFFFFFFF])
def test_wav_that_claims_no_samples(tmp_path, riff):
    wav, sound = encoded(tmp_path, "wav")
    path = tmp_path / "a.wav"
    head = wav[:4] + struct.pack("<I", riff) + wav[8:40] + bytes(4)
    path.write_bytes(head + wav[44:])
    refused(path, "claims no samples, but data follow")
    np.testing.assert_array_equal(decoded(path), sound)
    # Nothing but notes behind the samples that it does not have.
    path.write_bytes(wav[:4] + struct.pack("<I", 36 + 16) + head[8:] + b"LIST" + struct.pack("<I", 8) + b"INFOabcd")
    with pytest.raises(InputError, match="holds no sample"):
        open_file(str(path))


def test_telephone_codecs_are_read(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(8000), 8000, "GSM610")
    found = decoded(path)
    file = open_file(str(path))
    assert len(found) == file.frames >= 8000
    np.testing.assert_array_equal(file.read(3000, 4000, 8000), found[3000:4000])


@pytest.mark.parametrize("suffix", ["aiff", "au", "w64", "caf"])
def test_files_cut_short_are_found_in_every_container(tmp_path, suffix):
    content, sound = encoded(tmp_path, suffix, format=suffix.upper())
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    assert open_file(str(path)).frames == len(sound)
    path.write_bytes(content[:-1000])
    with pytest.raises(InputError, match=r"truncated: \d+ bytes|malformed"):
        open_file(str(path))


def test_what_is_no_recording_is_listed_with_the_reason(tmp_path):
    folder = tmp_path / "in"
    (folder / "sub" / ".git").mkdir(parents=True)
    for name in ("a.wav", "b.au"):
        soundfile.write(folder / name, noise(1000), 16_000)
    for name in ("sub/song.m4a", "notes.txt", "._a.wav", "README", "sub/.git/x.wav"):
        (folder / name).write_bytes(b"x")
    expected = {
        "._a.wav": "hidden",
        "README": "no extension",
        "notes.txt": "no recording has the extension .txt",
        "sub/.git": "hidden",
        "sub/song.m4a": "libsndfile does not read M4A; convert it to FLAC",
    }
    manifest = prepare_audio([str(folder)], tmp_path / "out")
    assert manifest["skipped_files"] == skipped_files([str(folder)]) == expected
    rows = manifest_rows(manifest)
    assert ("skipped", "sub/song.m4a: libsndfile does not read M4A; convert it to FLAC") in rows
    rows = manifest_rows(manifest | {"skipped_files": {f"{n}.txt": "no" for n in range(30)}})
    assert ("skipped", "20 more files, named in manifest.json") in rows
    with pytest.raises(InputError, match=r"(?s)no \.wav.*song\.m4a: libsndfile does not read M4A"):
        prepare_audio([str(folder / "sub")], tmp_path / "other")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_cut_within_its_last_page_is_truncated(tmp_path, subtype):
    path = tmp_path / "a.ogg"
    soundfile.write(path, noise(24_000), 24_000, format="OGG", subtype=subtype)
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(InputError, match="truncated|holds no sample"):
        open_file(str(path))
    path.write_bytes(data + b"something else")
    assert open_file(str(path)).frames == 24_000


@pytest.mark.parametrize(
    ("before", "behind"),
    [(b"", b"TAG" + b"x" * 125), (b"", b"\0" * 5000), (b"ID3\x04\0\0\0\0\x01\0" + b"\0" * 128, b"")],
    ids=["ID3v1", "zeros", "ID3v2"],
)
def test_flac_with_foreign_bytes_around_it(tmp_path, before, behind):
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(20_000), 16_000)
    expected = soundfile.read(path, dtype="float32")[0]
    path.write_bytes(before + path.read_bytes() + behind)
    np.testing.assert_array_equal(open_file(str(path)).read(0, 20_000, 16_000), expected)
    file = decode(str(path), tmp_path / "decoded")
    np.testing.assert_array_equal(file.read(0, file.frames, 16_000), expected)


@pytest.mark.parametrize("suffix", ["aiff", "au", "w64", "caf", "wav"])
def test_bytes_behind_the_samples_are_no_fault(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(20_000), 16_000)
    path.write_bytes(path.read_bytes() + b"\0" * 5000)
    assert decode(str(path), tmp_path / "decoded").frames >= 20_000


def test_noise_is_no_au(tmp_path):
    path = tmp_path / "a.au"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(InputError, match=r"a\.au: not readable as AU"):
        open_file(str(path))


def test_mp3_whose_info_frame_counts_no_frames(tmp_path):
    mp3, whole = encoded(tmp_path, "mp3", bitrate_mode="VARIABLE", compression_level=0.8)
    count = max(mp3.find(b"Xing"), mp3.find(b"Info")) + 8
    path = tmp_path / "a.mp3"
    path.write_bytes(mp3[:count] + bytes(4) + mp3[count + 4 :])
    refused(path, "an MP3 without an info frame")
    # Some of the encoder's silence may remain around it.
    found = decoded(path)
    best = max(range(0, len(found) - len(whole) + 1), key=lambda at: float(found[at : at + len(whole)] @ whole))
    assert len(whole) <= len(found) <= len(whole) + 4 * 1152
    np.testing.assert_allclose(found[best : best + len(whole)], whole, atol=1e-6)
