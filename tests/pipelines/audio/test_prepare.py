"""Prepared folders of audio: bad files named, official lists and counts, pieces, rates."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from pydantic import ValidationError

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio import prepare
from mamba_bio_audio.pipelines.audio.config import AudioDataConfig
from mamba_bio_audio.pipelines.audio.prepare import prepare_audio, prepare_sc09, prepare_youtubemix
from mamba_bio_audio.pipelines.audio.prepare_settings import AudioSettings
from mamba_bio_audio.pipelines.data import DataModule
from mamba_bio_audio.pipelines.spans import size_of


def tone(path: Path, samples: int = 800, rate: int = 16_000, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = 0.5 * np.sin(2 * np.pi * 440 * np.arange(samples) / rate)
    soundfile.write(path, np.repeat(audio[:, None], channels, 1), rate)


def opened(folder: Path) -> DataModule:
    data = DataModule(AudioDataConfig(path=str(folder)), length=400, batch_size=1, seed=0)
    data.setup()
    return data


def test_any_rate_and_channels_become_mono_flac(tmp_path: Path) -> None:
    tone(tmp_path / "in" / "a" / "x.wav", 4410, 44_100, 2)
    tone(tmp_path / "in" / "b.flac", 1600)
    tone(tmp_path / "in" / "c.ogg", 1600)
    manifest = prepare_audio(
        [str(tmp_path / "in")], tmp_path / "out", AudioSettings(valid_fraction=0.33, test_fraction=0.33)
    )
    written = soundfile.info(tmp_path / "out" / "a" / "x.flac")
    assert (written.samplerate, written.channels, written.frames) == (16_000, 1, 1600)
    assert [manifest["splits"][split]["files"] for split in ("train", "valid", "test")] == [1, 1, 1]
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    data = opened(tmp_path / "out")
    assert size_of(data.corpus.spans("train")) == size_of(data.corpus.spans("test")) == 1600
    assert data.corpus.split_source == str(tmp_path / "out" / "intervals.tsv")
    with pytest.raises(InputError, match="not empty"):
        prepare_audio([str(tmp_path / "in")], tmp_path / "out")
    prepare_audio([str(tmp_path / "in")], tmp_path / "out", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_prepared_folder_is_whole_at_every_rate_of_the_model(tmp_path: Path) -> None:
    tone(tmp_path / "in" / "a.wav", 1000, 8_000)
    prepare_audio([str(tmp_path / "in")], tmp_path / "out", AudioSettings(rate=8_000))
    for rate_hz, most_s, sizes in (
        (8_000, None, [880, 60, 60]),
        (16_000, None, [1760, 120, 120]),
        (8_000, 0.12, [880, 60, 20]),
    ):
        config = AudioDataConfig(path=str(tmp_path / "out"), sample_rate_hz=rate_hz, max_duration_s=most_s)
        data = DataModule(config, length=400, batch_size=1, seed=0)
        data.setup()
        assert [size_of(data.corpus.spans(split)) for split in ("train", "valid", "test")] == sizes
    config = AudioDataConfig(path=str(tmp_path / "out"), sample_rate_hz=8_000, max_duration_s=0.1)
    with pytest.raises(InputError, match=r"samples 880 to 940 of a\.flac lie beyond data\.max_duration_s"):
        DataModule(config, length=400, batch_size=1, seed=0).setup()


def test_bad_files_are_named_to_the_last_sample(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    tone(folder / "good.wav")
    (folder / "zero.wav").write_bytes(b"")
    tone(folder / "one.wav", 1)
    (folder / "cut.wav").write_bytes((folder / "good.wav").read_bytes()[:900])
    (folder / "wrong.flac").write_bytes((folder / "good.wav").read_bytes())
    nan = np.zeros(700, np.float32)
    nan[650] = np.nan
    soundfile.write(folder / "nan.wav", nan, 16_000, "FLOAT")
    with pytest.raises(InputError) as error:
        prepare_audio([str(folder)], tmp_path / "out")
    text = str(error.value)
    assert "5 of 6 files" in text
    for name, reason in (
        ("zero.wav", "zero length"),
        ("one.wav", "one sample"),
        ("cut.wav", "truncated"),
        ("wrong.flac", "wrong extension"),
        ("nan.wav", "NaN or infinite sample at 650"),
    ):
        assert any(name in line and reason in line for line in text.splitlines()), name
    assert not (tmp_path / "out").exists()
    manifest = prepare_audio([str(folder)], tmp_path / "out", AudioSettings(bad_files="exclude"))
    assert sorted(manifest["excluded_files"]) == ["cut.wav", "nan.wav", "one.wav", "wrong.flac", "zero.wav"]
    assert [path.name for path in (tmp_path / "out").glob("*.flac")] == ["good.flac"]


@pytest.fixture
def release(tmp_path: Path, monkeypatch) -> Path:
    """A tiny Speech Commands: three clips of each digit by three speakers, and another word."""
    folder = tmp_path / "release"
    for word in (*prepare.DIGITS, "bed"):
        for speaker in ("0a", "1b", "2c"):
            tone(folder / word / f"{speaker}_nohash_0.wav")
    (folder / "validation_list.txt").write_text(
        "".join(f"{word}/1b_nohash_0.wav\n" for word in (*prepare.DIGITS, "bed"))
    )
    (folder / "testing_list.txt").write_text("".join(f"{word}/2c_nohash_0.wav\n" for word in prepare.DIGITS))
    counts = prepare.SPEECH_COMMANDS["v0.02"]._replace(clips={"train": 10, "valid": 10, "test": 10})
    monkeypatch.setitem(prepare.SPEECH_COMMANDS, "v0.02", counts)
    return folder


def test_sc09_from_folder_and_archive(release: Path, tmp_path: Path) -> None:
    archive = tmp_path / "speech.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted(release.rglob("*.*")):
            tar.add(path, f"./{path.relative_to(release)}")
    manifests = [prepare_sc09(source, tmp_path / name) for source, name in ((release, "a"), (archive, "b"))]
    assert manifests[0]["sha256"] == manifests[1]["sha256"]
    assert [counts["files"] for counts in manifests[0]["splits"].values()] == [10, 10, 10]
    assert not (tmp_path / "a" / "bed").exists()
    rows = (tmp_path / "a" / "intervals.tsv").read_text().splitlines()
    # Labels in the order of the digits, not of the alphabet.
    assert rows[1] == "zero/0a_nohash_0.wav\ttrain\t0\t800\t16000"
    assert rows[4].startswith("one/")
    assert size_of(opened(tmp_path / "a").corpus.spans("valid")) == 8000


def test_sc09_counts_and_lists_are_checked(release: Path, tmp_path: Path) -> None:
    clip = (release / "two" / "0a_nohash_0.wav").read_bytes()
    (release / "two" / "0a_nohash_0.wav").unlink()
    with pytest.raises(InputError, match=r"found 9 train \(expected 10\)"):
        prepare_sc09(release, tmp_path / "out")
    (release / "two" / "0a_nohash_0.wav").write_bytes(clip[:-300])
    with pytest.raises(InputError, match=r"0a_nohash_0\.wav: truncated"):
        prepare_sc09(release, tmp_path / "out")
    assert list(
        prepare_sc09(release, tmp_path / "out", settings=AudioSettings(bad_files="exclude"))["excluded_files"]
    ) == ["two/0a_nohash_0.wav"]
    (release / "two" / "1b_nohash_0.wav").unlink()
    with pytest.raises(InputError, match="which is missing"):
        prepare_sc09(release, tmp_path / "other")
    (release / "testing_list.txt").unlink()
    with pytest.raises(InputError, match=r"testing_list\.txt, which the official split needs, is missing"):
        prepare_sc09(release, tmp_path / "other")


def test_sc09_unhealthy_clips_and_duplicates(release: Path, tmp_path: Path) -> None:
    silent = release / "two" / "0a_nohash_0.wav"
    soundfile.write(silent, np.zeros(800), 16_000)
    pitch = np.repeat(np.random.default_rng(0).uniform(200, 2000, 16), 1000)
    word = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / 16_000)
    for name, gain in (("0a", 1.0), ("2c", 0.5)):
        soundfile.write(release / "six" / f"{name}_nohash_0.wav", gain * word, 16_000)
    manifest = prepare_sc09(release, tmp_path / "all")
    assert manifest["health"]["two/0a_nohash_0.wav"]["findings"] == ["silent"]
    (line,) = manifest["duplicates"]
    assert line.startswith("six/0a_nohash_0.wav and six/2c_nohash_0.wav are the same recording (-6.0 dB")
    assert manifest["recordings"] == 30
    with pytest.raises(InputError, match=r"two/0a_nohash_0\.wav: .*silent"):
        prepare_sc09(release, tmp_path / "out", settings=AudioSettings(unhealthy="error"))
    manifest = prepare_sc09(release, tmp_path / "out", settings=AudioSettings(unhealthy="exclude"))
    assert sorted(manifest["excluded_files"]) == ["six/0a_nohash_0.wav", "two/0a_nohash_0.wav"]
    assert manifest["splits"]["train"]["files"] == 8
    assert (manifest["recordings"], len(list((tmp_path / "out").glob("*/*.wav")))) == (28, 28)


def test_youtubemix_from_zip_folder_and_one_recording(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    for number in range(50):
        tone(folder / f"{number}.wav", 100)
    archive = tmp_path / "youtubemix.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for path in folder.iterdir():
            target.write(path, path.name)
    for source in (folder, archive):
        manifest = prepare_youtubemix(source, tmp_path / f"out-{source.stem}")
        assert [counts["files"] for counts in manifest["splits"].values()] == [44, 3, 3]
    rows = (tmp_path / "out-clips" / "intervals.tsv").read_text().splitlines()
    # Numeric order: the last are 47, 48 and 49.
    assert [row.split("\t")[0] for row in rows[-3:]] == ["47.flac", "48.flac", "49.flac"]
    rate = 16_000
    tone(tmp_path / "long.flac", 150 * rate)
    manifest = prepare_youtubemix(tmp_path / "long.flac", tmp_path / "minutes")
    sizes = [soundfile.info(path).frames / rate for path in sorted((tmp_path / "minutes").glob("*.flac"))]
    assert sizes == [60, 60, 30]
    # Of a folder, and of an archive, too; a minute that is a little long stays one clip.
    (tmp_path / "folder").mkdir()
    tone(tmp_path / "folder" / "a.wav", 130 * rate)
    tone(tmp_path / "folder" / "b.wav", 60 * rate + 500)
    with zipfile.ZipFile(archive, "w") as target:
        for path in (tmp_path / "folder").iterdir():
            target.write(path, path.name)
    for source in (tmp_path / "folder", archive):
        prepare_youtubemix(source, tmp_path / f"cut-{source.stem}")
        found = {path.name: soundfile.info(path).duration for path in (tmp_path / f"cut-{source.stem}").glob("*.flac")}
        assert found == {"a.0.flac": 60, "a.1.flac": 60, "a.2.flac": 10, "b.flac": 60.03125}
    (tmp_path / "no.zip").write_bytes(io.BytesIO(b"no").getvalue())
    with pytest.raises(InputError, match="neither a recording that can be read nor a complete zip"):
        prepare_youtubemix(tmp_path / "no.zip", tmp_path / "no")


def test_counts_of_the_releases_add_up() -> None:
    totals = {version: sum(release.clips.values()) for version, release in prepare.SPEECH_COMMANDS.items()}
    assert totals == {"v0.02": 38_908, "v0.01": 23_666}


def test_no_sample_is_lost_between_pieces(tmp_path: Path) -> None:
    tone(tmp_path / "in" / "a.wav", 32_001)
    prepare_audio([str(tmp_path / "in")], tmp_path / "out", AudioSettings(piece_seconds=1.0))
    assert [soundfile.info(path).frames for path in sorted((tmp_path / "out").glob("*.flac"))] == [16_000, 16_001]
    with pytest.raises(ValidationError, match="finite number"):
        AudioSettings(piece_seconds=float("inf"))


def test_what_fails_while_it_is_written_is_excluded_too(tmp_path: Path) -> None:
    for name, rate in (("a", 16_000), ("b", 44_101), ("c", 16_000)):
        tone(tmp_path / "in" / f"{name}.wav", 800, rate)
    tone(tmp_path / "in" / "two.wav", 2, 48_000)
    tone(tmp_path / "in" / "d\te.wav")
    manifest = prepare_audio([str(tmp_path / "in")], tmp_path / "out", AudioSettings(bad_files="exclude"))
    assert sorted(manifest["excluded_files"]) == ["b.wav", "d\te.wav", "two.wav"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.flac")) == ["a.flac", "c.flac"]


def test_out_inside_of_what_is_read_is_refused(tmp_path: Path) -> None:
    tone(tmp_path / "in" / "a.wav")
    with pytest.raises(InputError, match="choose an --out outside it"):
        prepare_audio([str(tmp_path / "in")], tmp_path / "in" / "prepared")
    with pytest.raises(InputError, match="choose an --out outside it"):
        prepare_youtubemix(tmp_path / "in", tmp_path / "in" / "prepared")


def test_damaged_archives_are_named(release: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 20_000)
    soundfile.write(tmp_path / "nan.wav", noise, 16_000)
    archive = tmp_path / "clips.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        target.write(tmp_path / "nan.wav", "nan.wav")
    content = bytearray(archive.read_bytes())
    content[1000:1600] = bytes(byte ^ 255 for byte in content[1000:1600])
    archive.write_bytes(content)
    with pytest.raises(InputError, match=r"clips\.zip: .*(unpacked|zip archive)"):
        prepare_youtubemix(archive, tmp_path / "out")
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("zero.wav", b"")
    with pytest.raises(InputError, match=r"clips\.zip/zero\.wav: zero length"):
        prepare_youtubemix(archive, tmp_path / "out")
    soundfile.write(release / "one" / "0a_nohash_0.wav", noise, 16_000)
    speech = tmp_path / "speech.tar.gz"
    with tarfile.open(speech, "w:gz") as tar:
        tar.add(release / "one", "one")
        for name in ("validation_list.txt", "testing_list.txt"):
            tar.add(release / name, name)
    content = bytearray(speech.read_bytes())
    content[5000:5300] = bytes(byte ^ 255 for byte in content[5000:5300])
    speech.write_bytes(content)
    with pytest.raises(InputError, match="download it again"):
        prepare_sc09(speech, tmp_path / "out")
    (release / "testing_list.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"testing_list\.txt is not UTF-8"):
        prepare_sc09(release, tmp_path / "out")


def test_recordings_of_one_name_are_both_named(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.wav", "a.flac", "b.wav"):
        soundfile.write(folder / name, np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    for bad_files in ("error", "exclude"):
        with pytest.raises(InputError, match=r"a\.flac and a\.wav would both become a\.flac; rename one of them"):
            prepare_audio([str(folder)], tmp_path / "out", AudioSettings(bad_files=bad_files))
    assert not (tmp_path / "out").exists()
