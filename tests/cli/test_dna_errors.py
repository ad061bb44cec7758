"""What can be wrong with a genome, its splits or a run: one clear message, exit 2, and nothing half-written."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from mamba_bio_audio.cli.main import run as command

SMALL = ["train.steps=2", "train.length=64", "train.tokens_per_step=256", "train.validate_every=2"]
SMALL += ["train.validation_tokens=512", "model.d_model=8", "model.num_layers=1", "model.ssm.d_state=2"]


def mba(*arguments: object) -> int:
    """Exit code of the command run here."""
    with pytest.raises(SystemExit) as stop:
        command([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def sets(*keys: str) -> list[str]:
    return [part for key in keys for part in ("--set", key)]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAMBA_BIO_AUDIO_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    text = np.random.default_rng(0).choice(np.frombuffer(b"ACGT", np.uint8), 9000).tobytes().decode()
    path = tmp_path / "data" / "g.fa"
    path.parent.mkdir()
    path.write_text(f">chr1\n{text[:6000]}\n>chr2\n{text[6000:]}\n")
    return path


BAD_FILES = {
    "missing": (None, r"no such file or folder"),
    "empty": (b"", "the file is empty"),
    "not FASTA": (b"hello\n", "this is not FASTA"),
    "duplicate names": (b">a\nACGT\n>a\nACGT\n", "duplicate record 'a', first seen at line 1"),
    "empty record": (b">a\n>b\nACGT\n", "record 'a' at line 1 is empty"),
    "letters": (b">a\nAC!T\n", "position 3 .counted from 1.: '!' is not a sequence letter"),
    "ragged": (b">a\nACGT\nAC\nACGT\n", "all lines of a record but the last must have the same length"),
    "protein": (b">a\nMKVLAAGIVGLPNLELFQERFIL\n", "those of a protein"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
@pytest.mark.parametrize("job", ["prepare", "pretrain"])
def test_bad_fasta(kind: str, job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contents, message = BAD_FILES[kind]
    path = tmp_path / "x.fa"
    if contents is not None:
        path.write_bytes(contents)
    before = snapshot(tmp_path)
    if (kind, job) == ("ragged", "prepare"):
        # Uneven layout alone is repaired, and told.
        assert mba("prepare", "genome", path, "--out", tmp_path / "out") == 0
        assert "repaired" in capsys.readouterr().out
        return
    if job == "prepare":
        code = mba("prepare", "genome", path, "--out", tmp_path / "out")
    else:
        code = mba("pretrain", "dna/tiny", *sets(*SMALL, f"data.path={path}"), "--out", tmp_path / "out")
    error = capsys.readouterr().err
    assert code == 2
    assert str(path) in error
    assert "Traceback" not in error
    import re

    assert re.search(message, error.replace("\n", " ")), error
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_truncated_files(fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = fasta.with_name("p.fa.gz")
    packed.write_bytes(gzip.compress(fasta.read_bytes())[:-20])
    assert mba("prepare", "genome", packed, "--out", tmp_path / "out") == 2
    assert "truncated or damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert mba("pretrain", "dna/tiny", *sets(f"data.path={packed}"), "--out", tmp_path / "out") == 2
    assert "`mba prepare genome p.fa.gz --out DIR`, which recompresses it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


BAD_SPLITS = {
    "beyond": ("chr1\t0\t100\ttrain\nchr2\t0\t3001\ttest\n", "line 2: end 3,001 lies beyond 'chr2', which has 3,000"),
    "unknown": ("chr9\t0\t100\ttrain\n", "line 1: no record 'chr9'"),
    "other assembly": ("NC_000001.11\t0\t9\ttrain\nNC_000009.12\t0\t9\ttest\n", "chromosome 9 of GRCh38"),
    "start": ("chr1\t9\t9\ttrain\n", "line 1: start 9 is not before end 9"),
    "split": ("chr1\t0\t9\tholdout\n", "line 1: unknown split 'holdout'"),
    "shared": ("chr1\t0\t900\ttrain\nchr1\t100\t1000\ttest\n", "splits have bases in common (train/test 800)"),
}


@pytest.mark.parametrize("kind", BAD_SPLITS)
def test_bad_splits(kind: str, fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, message = BAD_SPLITS[kind]
    bed = tmp_path / "x.bed"
    bed.write_text(text)
    assert mba("prepare", "genome", fasta, "--out", tmp_path / "out", "--intervals", bed) == 2
    error = capsys.readouterr().err
    assert str(bed) in error
    assert message in error.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_output_that_is_a_file(fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("precious")
    assert mba("prepare", "genome", fasta, "--out", tmp_path / "out") == 2
    assert "is a file" in capsys.readouterr().err
    for flags in ([], ["--force"]):
        assert mba("pretrain", "dna/tiny", *sets(*SMALL, f"data.path={fasta}"), "--out", tmp_path / "out", *flags) == 2
        assert "is a file" in capsys.readouterr().err
    # Nor is there a folder below a file.
    assert mba("prepare", "genome", fasta, "--out", tmp_path / "out" / "x") == 2
    assert mba("pretrain", "dna/tiny", *sets(*SMALL, f"data.path={fasta}"), "--out", tmp_path / "out" / "x") == 2
    assert mba("export", tmp_path, "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err.count(f"{tmp_path / 'out'} is a file") == 3
    assert (tmp_path / "out").read_text() == "precious"


def test_stale_index_and_changed_fasta(fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An index of another state of the file is made anew; a file changed after `prepare` is an error."""
    fasta.with_name("g.fa.fai").write_text("chr1\t5\t7\t5\t6\n")
    assert mba("prepare", "genome", fasta, "--out", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["bases"] == 9000
    capsys.readouterr()
    fasta.write_text(fasta.read_text().replace("A", "C", 1))
    before = snapshot(tmp_path / "out")
    assert mba("pretrain", "dna/tiny", *sets(*SMALL, f"data.path={tmp_path / 'out'}"), "--out", tmp_path / "run") == 2
    assert "changed since it was prepared" in capsys.readouterr().err
    assert snapshot(tmp_path / "out") == before
    assert not (tmp_path / "run").exists()


def test_unknown_recipe_and_key(fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mba("pretrain", "dna/tyni", *sets(f"data.path={fasta}"), "--out", tmp_path / "run") == 2
    assert "did you mean dna/tiny" in capsys.readouterr().err
    keys = (f"data.path={fasta}", "data.window=head", "data.windows=grow-left", "data.case=lower")
    assert mba("pretrain", "dna/tiny", *sets(*keys), "--out", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "3 mistakes" in error
    assert "data.window: unknown key; did you mean windows" in error
    assert "grow-ends" in error
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose windows grow into other splits, as the published ones do."""
    folder = tmp_path_factory.mktemp("grown")
    text = np.random.default_rng(1).choice(np.frombuffer(b"ACGT", np.uint8), 4000).tobytes().decode()
    (folder / "g.fa").write_text(f">r\n{text}\n")
    rows = [("train", 0, 40), ("test", 50, 90), ("train", 100, 140), ("valid", 1000, 1400), ("test", 2000, 2300)]
    (folder / "x.bed").write_text("".join(f"r\t{a}\t{b}\t{split}\n" for split, a, b in rows))
    data = [f"data.path={folder / 'g.fa'}", f"data.intervals={folder / 'x.bed'}"]
    policy = ["data.windows=grow-ends", "data.shared_bases=allow"]
    assert mba("pretrain", "dna/tiny", *sets(*SMALL, *data, *policy), "--out", folder / "run", "--device", "cpu") == 0
    return folder / "run"


def test_published_windows_give_both_figures(grown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    manifest = json.loads((grown / "manifest.json").read_text())["data"]
    # Windows of 65 bases: [0, 65), [0, 65) slid, [100, 165), [75, 140).
    assert manifest["window_policy"] == "grow-ends"
    assert (manifest["training_windows"], manifest["clean_windows"], manifest["slid_windows"]) == (4, 1, 1)
    assert manifest["shared_bases"]["train/test"] == 15 + 15
    assert mba("evaluate", grown, "--split", "test", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["scored"] == 40 + 300
    assert result["unread"]["scored"] == 10 + 300
    assert result["unread"]["model"]["nats"] != result["model"]["nats"]
    assert mba("evaluate", grown, "--split", "test", "--no-baselines") == 0
    text = capsys.readouterr().out
    assert "where training never read" in text
    assert "(310 of the bases; training windows hold the others)" in text
    # Of a part too: windows 0, 2, 3 and 5 of six; only the first holds bases of training windows.
    assert mba("evaluate", grown, "--split", "test", "--json", "--max-bases", "256") == 0
    part = json.loads(capsys.readouterr().out)
    assert part["part"]["windows"] == 4
    assert part["scored"] == part["bases"] == 40 + 64 + 64 + 44
    assert part["unread"]["scored"] == part["scored"] - 30
    # Nothing to tell apart in validation.
    assert mba("evaluate", grown, "--split", "valid", "--json") == 0
    assert "unread" not in json.loads(capsys.readouterr().out)


def test_checkpoint_of_another_architecture(grown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(grown, run)
    config = (run / "config.yaml").read_text()
    assert "d_model: 8" in config
    (run / "config.yaml").write_text(config.replace("d_model: 8", "d_model: 16"))
    before = snapshot(run)
    for arguments in (
        ["evaluate", run],
        ["sample", run, "--length", "5", "--num-samples", "1"],
        ["export", run, "--out", tmp_path / "x"],
    ):
        assert mba(*arguments) == 2
        error = capsys.readouterr().err
        assert str(run) in error
        assert "Traceback" not in error
        assert len(error.splitlines()) < 12, error
    assert snapshot(run) == before
    assert not os.path.exists(tmp_path / "x")
