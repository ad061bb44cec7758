"""`mba sample` as a job: what is refused before a model is loaded, the result, a domain that cannot."""

import json
from pathlib import Path

import pytest

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import unfinished
from mamba_bio_audio.inference import generate
from mamba_bio_audio.inference.row_files import RowFiles
from mamba_bio_audio.jobs import sample as job
from mamba_bio_audio.jobs.sample import Rate, SampleOptions, SampleResult
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.run import saved
from mamba_bio_audio.run.config import load_config


def mba(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        command([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


@pytest.fixture
def model(monkeypatch):
    """A model of DNA with random weights, whatever run is asked for."""
    made = build_model(ModelConfig(d_model=8, num_layers=1, vocab_size=12), seed=0).eval()
    made.config = load_config("dna/tiny", ["data.path=demo"])
    made.codec, made.manifest = DnaTokenizer(), {}
    monkeypatch.setattr(saved, "load", lambda run, which="best": made)
    return made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--json",), "the samples go too; give --out FILE"),
        (("--json", "--out", "-"), "the samples go too; give --out FILE"),
        (("--resume",), "--resume needs --out"),
        (("--out", "s.fa", "--resume", "--force"), "give one of them"),
        (("--out", "nowhere/s.fa"), "there is no folder nowhere"),
        (("--out", "there.fa"), "exists; choose another --out"),
    ],
)
def test_refused_before_anything_is_loaded(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("there.fa").write_text("mine")
    assert mba("sample", "no-run", "--length", 10, *arguments) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there.fa"]


def test_the_result_is_json(model, tmp_path, capsys):
    out = tmp_path / "s.fa"
    arguments = ("sample", tmp_path, "--length", 20, "--num-samples", 2, "--out", out, "--device", "cpu", "--quiet")
    assert mba(*arguments, "--no-report", "--json") == 0
    size = {"out": str(out), "num_samples": 2, "length": 20}
    assert json.loads(capsys.readouterr().out) == size | {"written": "2 samples of 20 bases"}
    assert mba(*arguments, "--resume", "--json") == 0
    assert json.loads(capsys.readouterr().out) == size | {"already_complete": True}
    assert mba(*arguments, "--force", "--json") == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert report == json.loads((tmp_path / "s.fa.report.json").read_text())
    assert report["bases"] == 40
    (tmp_path / "s.fa.report.json").write_text("mine")
    assert mba(*arguments, "--resume") == 0
    assert mba(*arguments, "--force") == 2
    assert "s.fa.report.json: not made by mba sample" in capsys.readouterr().err
    assert (tmp_path / "s.fa.report.json").read_text() == "mine"


@pytest.mark.parametrize("way", ["--resume", "--force"])
def test_bases_do_not_go_into_a_folder(model, tmp_path, capsys, way):
    (tmp_path / "mine").mkdir()
    arguments = ("sample", tmp_path, "--length", 20, "--out", tmp_path / "mine", "--device", "cpu", "--quiet", way)
    assert mba(*arguments) == 2
    assert "mine is a folder; give a file" in capsys.readouterr().err


def test_stopping_says_how_to_continue():
    size = {"num_samples": 1, "length": 5}
    stopped = SampleResult(out=Path("s.fa"), **size, stopped_by="SIGTERM")
    assert (stopped.text(), stopped.exit_code) == ("", 130)
    assert stopped.notes() == "stopped by SIGTERM; continue with the same command and --resume (so far: s.fa.part)"
    assert SampleResult(out=None, **size, stopped_by="SIGINT").notes() == "stopped by SIGINT"


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_rows_that_were_killed_are_continued_to_the_same_file(model, tmp_path, monkeypatch, stop_after):
    monkeypatch.setattr(generate, "_BLOCK", 16)
    whole, out = tmp_path / "whole.fa", tmp_path / "s.fa"
    options = SampleOptions(run=tmp_path, length=50, num_samples=2, batch_size=1, out=whole)
    assert job.sample(model, options, "cpu").written
    write, left = RowFiles._write, stop_after

    def killed(self, *arguments):
        nonlocal left
        write(self, *arguments)
        left -= 1
        if not left:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RowFiles, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            job.sample(model, options.model_copy(update={"out": out}), "cpu")
    assert unfinished(out).exists()
    assert not out.exists()
    job.sample(model, options.model_copy(update={"out": out, "resume": True}), "cpu")
    assert out.read_text() == whole.read_text()


def test_weights_without_a_codec_are_refused(model, tmp_path):
    model.codec = None
    with pytest.raises(InputError, match=r"weights without a codec .*use mba\.generate"):
        job.run(SampleOptions(run=tmp_path, length=5, out=tmp_path / "s.fa", device="cpu"))


def test_rate_leaves_the_first_block_out() -> None:
    rate = Rate()
    assert rate.per_second is None
    rate.count(100)
    assert rate.per_second is None
    rate.count(300)
    assert rate.per_second > 0


def test_records_of_a_file_are_continued_side_by_side(model, tmp_path, capsys):
    (tmp_path / "p.fa").write_text(">one\nACGTTT\n>two\nGG\n")
    out = tmp_path / "s.fa"
    arguments = ("sample", tmp_path, "--length", 20, "--device", "cpu", "--quiet", "--no-report")
    some = (*arguments, "--num-samples", 2, "--out", out)
    assert mba(*some, "--prompt-file", tmp_path / "p.fa", "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_samples"] == 4
    records = out.read_text().split(">")[1:]
    assert [record.split(" prompt=")[1].split()[0] for record in records] == [
        "one:1-6",
        "one:1-6",
        "two:1-2",
        "two:1-2",
    ]
    assert mba(*arguments, "--prompt-file", f"{tmp_path / 'p.fa'}:one") == 0
    shown = capsys.readouterr().out
    assert shown.split()[-1] == records[0].split()[-1]
    assert mba(*arguments, "--prompt", "ACGTTT") == 0
    assert capsys.readouterr().out.split()[-1] == records[0].split()[-1]
    assert mba(*some, "--prompt-file", tmp_path / "p.fa", "--prompt", "A") == 2
    assert "give one of them" in capsys.readouterr().err
    # Not over the prompts themselves.
    assert mba(*arguments, "--prompt-file", tmp_path / "p.fa", "--out", tmp_path / "p.fa", "--force") == 2


def test_a_prompt_file_that_changed_is_not_resumed(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generate, "_BLOCK", 16)
    (tmp_path / "p.fa").write_text(">one\nACGTTT\n")
    out = tmp_path / "s.fa"
    options = SampleOptions(run=tmp_path, out=out, length=40, prompt_file=str(tmp_path / "p.fa"), report=False)
    whole = job.sample(model, options.model_copy(update={"out": tmp_path / "whole.fa"}), "cpu")
    assert whole.written is not None
    original = RowFiles.sample
    monkeypatch.setattr(RowFiles, "sample", lambda self, *a, **k: original(self, *a, **k | {"stop": lambda: True}))
    with pytest.raises(AssertionError):
        job.sample(model, options, "cpu")
    monkeypatch.undo()
    assert unfinished(out).exists()
    text = (tmp_path / "p.fa").read_text()
    (tmp_path / "p.fa").write_text(text.replace("TTT", "TTA"))
    resumed = options.model_copy(update={"resume": True})
    with pytest.raises(InputError, match="prompt_contents"):
        job.sample(model, resumed, "cpu")
    (tmp_path / "p.fa").write_text(text)
    job.sample(model, resumed, "cpu")
    assert out.read_text() == (tmp_path / "whole.fa").read_text()
