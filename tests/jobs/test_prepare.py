"""`mba prepare ...` as commands; hg38 and apes, which need miniatures, are in tests/pipelines/dna."""

import gzip
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.pipelines import download
from mamba_bio_audio.pipelines.audio import prepare
from mamba_bio_audio.pipelines.unpacked import VARIABLE


def mba_command(*arguments: object) -> int:
    """Run the command in this process; its exit code."""
    with pytest.raises(SystemExit) as stop:
        command([str(argument) for argument in arguments])
    code = stop.value.code
    return 0 if code is None else int(code)


@pytest.fixture
def speech(tmp_path: Path, monkeypatch) -> Path:
    """An archive like Speech Commands with one clip per digit and split, and the release's counts made to fit."""
    folder = tmp_path / "speech"
    for word in prepare.DIGITS:
        (folder / word).mkdir(parents=True)
        for speaker in ("a", "b", "c"):
            soundfile.write(folder / word / f"{speaker}_nohash_0.wav", np.full(400, 0.1), 16_000)
    (folder / "validation_list.txt").write_text("".join(f"{word}/b_nohash_0.wav\n" for word in prepare.DIGITS))
    (folder / "testing_list.txt").write_text("".join(f"{word}/c_nohash_0.wav\n" for word in prepare.DIGITS))
    archive = tmp_path / "speech.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, ".")
    release = prepare.SPEECH_COMMANDS["v0.02"]._replace(clips={"train": 10, "valid": 10, "test": 10})
    monkeypatch.setitem(prepare.SPEECH_COMMANDS, "v0.02", release)
    return archive


def test_sc09_from_a_file_and_by_download(speech, tmp_path, monkeypatch, capsys) -> None:
    assert mba_command("prepare", "sc09", "--from", speech, "--out", tmp_path / "a", "--json", "--quiet") == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["speech_commands"] == "v0.02"
    asked = {}

    def fetched(url, path, *, size, hashes, progress):
        asked.update(url=url, size=size, hashes=hashes)
        path.parent.mkdir(parents=True)
        path.write_bytes(speech.read_bytes())

    monkeypatch.setattr(download, "download", fetched)
    assert mba_command("prepare", "sc09", "--out", tmp_path / "down" / "b", "--quiet") == 0
    assert asked["url"].endswith("speech_commands_v0.02.tar.gz")
    assert asked["size"] == 2_428_923_189
    assert len(asked["hashes"]["sha256"]) == 64
    assert "next: mba pretrain audio/sc09@small" in capsys.readouterr().out
    assert mba_command("prepare", "sc09", "--from", speech, "--url", "http://x", "--out", tmp_path / "c") == 2
    assert "give one of them" in capsys.readouterr().err


def test_audio_and_youtubemix(tmp_path, capsys) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(20):
        soundfile.write(folder / f"{number}.wav", np.full(500, 0.1), 8000)
    (folder / "bad.wav").write_bytes(b"RIFF")
    assert mba_command("prepare", "audio", folder, "--out", tmp_path / "a", "--quiet") == 2
    assert "bad.wav" in capsys.readouterr().err
    arguments = ("--out", tmp_path / "a", "--bad-files", "exclude", "--rate", 16_000, "--quiet")
    assert mba_command("prepare", "audio", folder, *arguments) == 0
    text = capsys.readouterr().out
    assert "20 at 16,000 Hz" in text
    assert text.endswith(f"next: mba pretrain audio/tiny --set data.path={tmp_path / 'a'}\n")
    assert "bad.wav" in text
    (folder / "bad.wav").unlink()
    assert mba_command("prepare", "audio", folder, "--out", tmp_path / "a b", "--rate", 8000, "--quiet") == 0
    assert f"audio/tiny --set data.sample_rate_hz=8000 --set 'data.path={tmp_path / 'a b'}'" in capsys.readouterr().out
    assert mba_command("prepare", "youtubemix", "--from", folder, "--out", tmp_path / "y", "--quiet") == 0
    assert "17 recordings" in capsys.readouterr().out


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A genome as ordinary gzip: it is copied, which is noted."""
    bases = "".join(np.random.default_rng(0).choice(list("ACGT"), 300_000))
    path = tmp_path / "in" / "g.fa.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(f">one\n{bases}\n".encode()))
    return path


def test_genome(packed: Path, tmp_path: Path, capsys) -> None:
    assert mba_command("prepare", "genome", packed, "--out", tmp_path / "a", "--json") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert "ordinary gzip, recompressing" in shown.err
    assert mba_command("prepare", "genome", packed, "--out", tmp_path / "b", "--quiet", "--seed", 1) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "blocks chosen by split_seed 1" in shown.out
    assert shown.out.endswith(f"next: mba pretrain dna/tiny --set data.path={tmp_path / 'b'}\n")
    arguments = ("prepare", "genome", packed, "--out", tmp_path / "c")
    assert mba_command(*arguments, "--valid-fraction", 0.5, "--test-fraction", 0.5) == 2
    assert "nothing to train on" in capsys.readouterr().err


def test_how_much_a_genome_may_unpack_to(packed: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    arguments = ("prepare", "genome", packed, "--out", tmp_path / "out", "--max-unpacked-gb")
    assert mba_command(*arguments, 0.0002) == 2
    assert "unpacks to more than 0.0002 GB" in capsys.readouterr().err
    assert mba_command(*arguments, 0) == 2
    assert "--max-unpacked-gb: Input should be greater than 0" in capsys.readouterr().err
    assert VARIABLE not in os.environ
    # An option goes before the variable.
    monkeypatch.setenv(VARIABLE, "0.0002")
    assert mba_command(*arguments, 1) == 0
    assert os.environ[VARIABLE] == "0.0002"


def test_hg38_from_nowhere(tmp_path: Path, capsys) -> None:
    assert mba_command("prepare", "hg38", "--from", tmp_path / "none", "--out", tmp_path / "out") == 2
    assert "none: no such folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_checks_everything_and_writes_nothing(
    packed: Path, speech: Path, tmp_path: Path, tmp_path_factory, monkeypatch, capsys
) -> None:
    before = sorted(tmp_path.iterdir())
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MAMBA_BIO_AUDIO_CACHE", str(cache))
    soundfile.write(packed.parent / "a.wav", np.full(4000, 0.1), 8000)
    for arguments in (
        ("genome", packed, "--out", tmp_path / "out"),
        ("audio", packed.parent / "a.wav", "--out", tmp_path / "out"),
        ("sc09", "--from", speech, "--out", tmp_path / "out"),
        ("youtubemix", "--from", packed.parent / "a.wav", "--out", tmp_path / "out"),
    ):
        assert mba_command("prepare", *arguments, "--dry-run", "--quiet") == 0
        text = capsys.readouterr().out
        assert "split by" in text
        assert text.endswith(f"--dry-run: {tmp_path / 'out'} was not written\n")
        assert sorted(tmp_path.iterdir()) == before
    assert not list(cache.rglob("*.index"))
    # It refuses what the command would refuse.
    assert mba_command("prepare", "genome", packed, "--out", packed.parent, "--dry-run") == 2
    assert mba_command("prepare", "sc09", "--out", tmp_path / "out", "--dry-run") == 2
    assert "give the archive with --from" in capsys.readouterr().err
