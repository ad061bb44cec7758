"""What `--force` replaces, what is locked, and what a stopped command leaves: with the real commands."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.files import locked

SETTINGS = {
    "model.d_model": 8,
    "model.num_layers": 1,
    "train.length": 32,
    "train.tokens_per_step": 64,
    "train.micro_batch": 2,
    "train.steps": 2,
    "train.validate_every": 2,
    "train.validation_tokens": 64,
}


def mba(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        command([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def write_fasta(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    bases = np.random.default_rng(0).choice(list("ACGT"), 20_000)
    path.write_text(">one\n" + "".join(bases) + "\n")
    return path


def pretrain(fasta: Path, out: Path, *more: object, **settings: object) -> int:
    values = SETTINGS | {"data.path": fasta} | settings
    keys = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    return mba("pretrain", "dna/tiny", *keys, "--out", out, "--quiet", "--device", "cpu", *more)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fasta(tmp_path_factory.mktemp("genome") / "toy.fa")


@pytest.fixture(scope="module")
def made(fasta: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "made"
    assert pretrain(fasta, out) == 0
    return out


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def test_own_run_is_replaced(fasta: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "model.safetensors").read_bytes()
    assert pretrain(fasta, run, "--seed", "5", "--force") == 0
    assert (run / "model.safetensors").read_bytes() != before
    assert [path.name for path in run.parent.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / ".mba.json").unlink(), "not marked as made by mba pretrain"),
        (lambda run: (run / "thesis.tex").write_text("years"), "holds thesis.tex"),
        (lambda run: write_fasta(run / "data" / "mine.fa"), "holds data/mine.fa"),
        (lambda run: (run / "checkpoints" / "notes.txt").write_text("mine"), "holds checkpoints/notes.txt"),
        (lambda run: (run / "evaluate-notes.txt").write_text("mine"), "holds evaluate-notes.txt"),
        (lambda run: (run / "mine.safetensors").write_text("mine"), "holds mine.safetensors"),
        (
            lambda run: (run / ".mba.json").write_text((run / ".mba.json").read_text().replace("pretrain", "classify")),
            "mba classify",
        ),
    ],
    ids=["older or foreign", "thesis", "training data", "notes", "more notes", "weights", "another command"],
)
def test_everything_else_is_kept(spoil, message, fasta: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(run)
    before = contents(run.parent)
    assert pretrain(fasta, run, "--force") == 2
    assert message in capsys.readouterr().err
    assert contents(run.parent) == before


def test_own_training_data_inside_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fasta = write_fasta(run / "checkpoints" / "mine.fa")
    for out in (run, run.parent):
        assert pretrain(fasta, out, "--force") == 2
        assert "an input of this command" in capsys.readouterr().err
    assert fasta.exists()


def test_own_recipe_inside_the_run(run: Path, fasta: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, recipe = run / "config.yaml", run.parent / "mine.yaml"
    recipe.write_text("extends: run/config.yaml\ntrain:\n  steps: 1\n")
    before = contents(run)
    for given in (base, recipe):
        assert mba("pretrain", given, "--out", run, "--quiet", "--device", "cpu", "--force") == 2
        assert "config.yaml, an input of this command" in capsys.readouterr().err
    assert contents(run) == before


def test_a_value_that_is_also_the_name_of_the_run_is_no_file(
    fasta: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    assert pretrain(fasta, Path("run"), "--force", name="run") == 0


def test_input_in_the_home_folder(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_fasta(run / "checkpoints" / "mine.fa")
    monkeypatch.setenv("HOME", str(run.parent))
    assert pretrain(Path("~/run/checkpoints/mine.fa"), run, "--force") == 2
    assert "an input of this command" in capsys.readouterr().err


def test_the_current_directory_is_kept(
    fasta: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run)
    for here in (run, run / "checkpoints"):
        monkeypatch.chdir(here)
        assert pretrain(fasta, run, "--force") == 2
        assert "contains the current directory" in capsys.readouterr().err
    assert contents(run) == before


def test_resuming_removes_only_what_a_killed_training_was_writing(fasta: Path, run: Path) -> None:
    """Fails before: every hidden file that ends in .tmp went, and a folder of such a name ended the command."""
    left = [run / ".model.safetensors.123.tmp", run / "checkpoints" / ".last.safetensors.123.tmp"]
    own = [run / ".thesis.tmp", run / "checkpoints" / ".thesis.1.tmp", run / ".manifest.json.old.tmp"]
    for file in (*left, *own):
        file.write_text("x")
    (run / ".folder.tmp").mkdir()
    assert pretrain(fasta, run, "--resume", **{"train.steps": 4}) == 0
    assert [file for file in (*left, *own) if file.exists()] == own
    assert (run / ".folder.tmp").is_dir()


def test_failed_replacement_puts_the_old_run_back(
    fasta: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mamba_bio_audio.run import train as machinery

    def fail(*arguments: object, **options: object) -> None:
        assert (run / "config.yaml").exists()
        assert not (run / "model.safetensors").exists()
        raise MemoryError

    before = contents(run)
    monkeypatch.setattr(machinery, "fit", fail)
    assert pretrain(fasta, run, "--force") == 1
    assert "out of memory; for training, lower train.micro_batch" in capsys.readouterr().err
    assert contents(run) == before
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_a_run_in_training_is_neither_resumed_nor_replaced(
    fasta: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import sys; from pathlib import Path; from mamba_bio_audio.files import locked\n"
    code += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    before = contents(run)
    for option in ("--resume", "--force"):
        assert pretrain(fasta, run, option, **{"train.steps": 4}) == 2
        assert f"in use by process {process.pid}" in capsys.readouterr().err
    process.communicate("")
    assert contents(run) == before


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/tmp/x", ""])
def test_names_are_names(name: str, fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain(fasta, tmp_path / "run", name=json.dumps(name)) == 2
    assert "name" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def recordings(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        soundfile.write(folder / f"{number}.wav", np.sin(np.arange(16_000) / (5 + number)).astype(np.float32), 16_000)
    return folder


def test_prepare_audio_replaces_only_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = recordings(tmp_path / "in"), tmp_path / "out"
    arguments = ("prepare", "audio", source, "--out", out, "--quiet")
    assert mba(*arguments) == 0
    assert mba(*arguments) == 2
    assert mba(*arguments, "--force") == 0
    (out / "manifest.json").rename(tmp_path / "manifest.json")
    # A run also has a manifest.json, and so has many another folder.
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (tmp_path / "manifest.json").rename(thesis / "manifest.json")
    assert mba("prepare", "audio", source, "--out", thesis, "--quiet", "--force") == 2
    assert "not marked as made by mba prepare audio" in capsys.readouterr().err
    assert (thesis / "manifest.json").exists()
    for folder in (source, tmp_path):
        assert mba("prepare", "audio", source, "--out", folder, "--quiet", "--force") == 2
    assert len(list(source.iterdir())) == 3


def test_prepare_genome_never_writes_among_foreign_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fasta = write_fasta(tmp_path / "in" / "toy.fa")
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "intervals.tsv").write_text("mine")
    for out in (thesis, fasta.parent):
        assert mba("prepare", "genome", fasta, "--out", out, "--force") == 2
    assert (thesis / "intervals.tsv").read_text() == "mine"
    assert mba("prepare", "genome", fasta, "--out", tmp_path / "out") == 0
    assert mba("prepare", "genome", fasta, "--out", tmp_path / "out", "--force") == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda number: number.name)
def test_stopped_while_preparing(number: signal.Signals, tmp_path: Path) -> None:
    source, out = recordings(tmp_path / "in", 2), tmp_path / "out"
    # The second recording is never finished.
    code = (
        "import sys, time\n"
        "from mamba_bio_audio.cli.main import run\n"
        "from mamba_bio_audio.pipelines.audio import prepare\n"
        "write, calls = prepare._write_flac, []\n"
        "def slow(*arguments):\n"
        "    calls.append(1)\n"
        "    if len(calls) > 1: print('waiting', flush=True); time.sleep(100)\n"
        "    return write(*arguments)\n"
        "prepare._write_flac = slow\n"
        "run(sys.argv[1:])\n"
    )
    arguments = ["prepare", "audio", str(source), "--out", str(out), "--quiet"]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    os.kill(process.pid, number)
    process.communicate(timeout=600)
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert not out.exists()
    # "Run it again" works, and leaves nothing hidden.
    assert mba(*arguments) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_output_that_cannot_be_written(fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() == 0:
        # Permissions do not bind root; /proc accepts no folders from anybody.
        place = Path("/proc/runs")
    else:
        place = tmp_path / "sealed" / "run"
        place.parent.mkdir(mode=0o500)
    assert pretrain(fasta, place) == 2
    assert "choose another --out" in capsys.readouterr().err


def test_two_writers_of_one_sample(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s.fa"
    with locked(out):
        for option in ((), ("--resume",), ("--force",)):
            assert mba("sample", made, "--length", "10", "--out", out, "--quiet", "--device", "cpu", *option) == 2
            assert "in use by process" in capsys.readouterr().err
    assert not out.exists()


def test_a_file_that_came_while_sampling_is_kept(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mamba_bio_audio.inference.row_files import RowFiles

    out = tmp_path / "s.fa"
    arguments = ("sample", made, "--length", "10", "--out", out, "--quiet", "--device", "cpu", "--no-report")
    whole = RowFiles.sample

    def slow(*given: object, **options: object) -> object:
        out.write_text("years of work")
        return whole(*given, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(RowFiles, "sample", slow)
        assert mba(*arguments) == 2
    assert "move the file away" in capsys.readouterr().err
    assert out.read_text() == "years of work"
    out.unlink()
    assert mba(*arguments, "--resume") == 0


def test_resume_does_not_call_a_foreign_file_complete(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = write_fasta(tmp_path / "mine.fa")
    assert mba("sample", made, "--length", "10", "--out", out, "--quiet", "--device", "cpu", "--resume") == 2
    assert "mine.fa: not made by mba sample" in capsys.readouterr().err
    assert mba("predict", made, out, "--out", out.with_name("mine.fa"), "--quiet", "--resume") == 2
    assert "mine.fa: not made by mba predict" in capsys.readouterr().err
    mine = tmp_path / "mine.npz"
    np.savez(mine, years_of_work=np.ones(3))
    assert mba("embed", made, out, "--out", mine, "--quiet", "--resume") == 2
    assert "mine.npz: not made by mba embed" in capsys.readouterr().err


def test_a_foreign_report_is_kept(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, report = tmp_path / "s.fa", tmp_path / "s.fa.report.json"
    report.write_text("years of work")
    arguments = ("sample", made, "--length", "10", "--out", out, "--quiet", "--device", "cpu")
    assert mba(*arguments, "--force") == 2
    assert "s.fa.report.json: not made by mba sample" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [report.name]
    assert mba(*arguments, "--no-report") == 0
    assert report.read_text() == "years of work"


def test_a_dash_is_standard_output(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mba("sample", made, "--length", "10", "--out", "-", "--quiet", "--device", "cpu") == 0
    assert capsys.readouterr().out.startswith(">sample_0 length=10 ")
    assert mba("predict", made, "toy.fa", "--out", "-", "--resume") == 2
    assert mba("embed", made, "toy.fa", "--out", "-") == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", ["sample", "report"])
def test_files_of_others_are_kept(make: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {"sample": ("sample", made, "--length", "10", "--device", "cpu"), "report": ("report", made)}[make]
    out = tmp_path / "thesis"
    out.write_text("years of work")
    assert mba(*arguments, "--out", out, "--quiet", "--force") == 2
    assert f"not made by mba {make}" in capsys.readouterr().err
    assert out.read_text() == "years of work"
    out.unlink()
    assert mba(*arguments, "--out", out, "--quiet") == 0
    assert mba(*arguments, "--out", out, "--quiet") == 2
    assert mba(*arguments, "--out", out, "--quiet", "--force") == 0
    for source in (made / "config.yaml", made / "model.safetensors"):
        assert mba(*arguments, "--out", source, "--quiet", "--force") == 2
