"""`mba classify` and `mba evaluate` on a classifier, in one process."""

import csv
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import mamba_bio_audio as mba
from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.files.folders import check_replaceable
from mamba_bio_audio.inference.classify import classify
from mamba_bio_audio.jobs.pretrain import DryRunResult
from mamba_bio_audio.models.heads import Classifier
from mamba_bio_audio.models.weights import weights_hash
from mamba_bio_audio.run.folder import run_maker

RECIPE = """\
model: {d_model: 16, num_layers: 2, ssm: {d_state: 4}}
head: {pool: mean}
data: {kind: dna-classes, evaluation_windows: 20}
train: {length: 64, tokens_per_step: 512, micro_batch: 4, steps: 12, lr: 2.0e-2, validate_every: 4,
  checkpoint_every: 2, log_every: 1}
"""


def mba_command(*arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        command([str(argument) for argument in arguments])
    return 0 if stop.value.code is None else int(stop.value.code)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two classes of one composition whose next bases differ, and a recipe."""
    folder = tmp_path_factory.mktemp("classes")
    (folder / "r.yaml").write_text(RECIPE)
    rng = np.random.default_rng(0)
    for name, turn in (("up", 1), ("down", 3)):
        (folder / "data" / name).mkdir(parents=True)
        text = ""
        for record, split in (("a", "train"), ("b", "train"), ("c", "val"), ("d", "test")):
            jumps = rng.random(2000)
            bases = np.cumsum(np.where(jumps < 0.7, turn, (jumps * 1000).astype(int) % 4)) % 4
            text += f">{record} split={split}\n" + "".join("ACGT"[base] for base in bases) + "\n"
        (folder / "data" / name / "g.fa").write_text(text)
    return folder


def arguments(folder: Path, out: Path, *more: str) -> list:
    settings = [part for key in (f"data.path={folder / 'data'}", *more) for part in ("--set", key)]
    return ["classify", folder / "r.yaml", *settings, "--out", out, "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert mba_command(*arguments(folder, out, "train.steps=60", "train.validate_every=20"), "--quiet") == 0
    return out


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(mba.load(run).state_dict())


def test_train_and_evaluate(trained, capsys):
    manifest = json.loads((trained / "manifest.json").read_text())
    assert manifest["data"]["classes"] == ["down", "up"]
    assert manifest["data"]["splits"]["test"]["evaluation_windows"] == 40
    assert len(manifest["data"]["splits"]["test"]["evaluation_sha256"]) == 64
    assert mba_command("evaluate", trained, "--json", "--device", "cpu") == 0
    result = json.loads(capsys.readouterr().out)
    assert json.loads((trained / "evaluate-test.json").read_text()) == result
    assert result["model"]["accuracy"]["value"] > 0.9
    assert result["model"]["count"] == result["kmers"]["count"] == 40
    assert result["kmers"]["accuracy"]["value"] > 0.9
    assert {row["k"] for row in result["kmers"]["candidates"]} >= {*range(1, 9)}
    assert len(result["evaluations"]) == 1
    assert result["weights_sha256"] == manifest["result"]["weights_sha256"] == weights_hash(mba.load(trained))
    assert (trained / "confusion-test.png").read_bytes().startswith(b"\x89PNG")
    # All of it is the run's own, and goes with it.
    check_replaceable(trained, run_maker("classify"))
    with (trained / "predictions-test.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == 40
    right = np.mean([row["class"] == row["predicted"] for row in rows])
    assert right == pytest.approx(result["model"]["accuracy"]["value"])
    assert {row["record"] for row in rows} == {"d"}
    # A second look at the test split is counted and said.
    assert mba_command("evaluate", trained, "--no-baselines", "--device", "cpu") == 0
    assert "evaluated 2 times" in capsys.readouterr().out
    assert mba_command("evaluate", trained, "--split", "valid", "--length", "32", "--no-baselines", "--json") == 0
    assert json.loads(capsys.readouterr().out)["length"] == 32
    assert not (trained / "evaluate-valid.json").exists()


def test_loads_exports_and_stays_out_of_other_commands(trained, tmp_path, capsys):
    model = mba.load(trained)
    assert isinstance(model, Classifier)
    assert model.labels == ("down", "up")
    rows = [np.random.default_rng(0).integers(7, 11, size).astype(np.uint8) for size in (50, 64)]
    expected = classify(model, rows, pad_id=4)
    assert mba_command("export", trained, "--out", tmp_path / "hub") == 0
    assert "opens with mba.load" in capsys.readouterr().out
    assert "down, up" in (tmp_path / "hub" / "README.md").read_text()
    again = mba.load(tmp_path / "hub")
    assert again.labels == model.labels
    assert np.array_equal(classify(again, rows, pad_id=4), expected)
    assert mba_command("sample", trained, "--length", "10") == 2
    assert "a classifier of down, up; this command needs a language model" in capsys.readouterr().err


def test_mistakes(folder, tmp_path, capsys):
    assert mba_command("pretrain", folder / "r.yaml", "--set", f"data.path={folder / 'data'}") == 2
    assert "train it with mba classify" in capsys.readouterr().err
    assert mba_command("classify", "dna/tiny", "--set", f"data.path={folder / 'data' / 'up'}") == 2
    assert "has no head" in capsys.readouterr().err
    assert mba_command("classify", folder / "r.yaml") == 2
    assert "data.path: missing" in capsys.readouterr().err
    missing = "{a: /nowhere/a.fa, b: /nowhere/b.fa}"
    assert mba_command("classify", folder / "r.yaml", "--set", f"data.path={missing}") == 2
    error = capsys.readouterr().err
    assert "data.path: /nowhere/a.fa: no such file" in error
    assert "data.path: /nowhere/b.fa: no such file" in error
    assert mba_command(*arguments(folder, tmp_path / "x", "head=null")) == 2
    assert "head: missing; data.kind=dna-classes is for models with a head" in capsys.readouterr().err
    assert mba_command("classify", "dna/tiny", "--set", "head.pool=mean", "--set", f"data.path={folder / 'data'}") == 2
    assert "head: requires labelled data" in capsys.readouterr().err
    assert mba_command(*arguments(folder, tmp_path / "x", "head.classes=[up, down]")) == 2
    assert "head.classes is up, down, but the data has down, up" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_dry_run(folder, tmp_path, capsys):
    assert mba_command(*arguments(folder, tmp_path / "x"), "--dry-run", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["config"]["head"]["classes"] == ["down", "up"]
    assert result["parameters"] > 0
    assert result["memory_bytes"] > 0
    assert "2: down, up" in DryRunResult(**result).text()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("more", [(), ("train.stream_chunk=24", "train.length_warmup=[{length: 16, steps: 3}]")])
def test_an_interrupted_run_resumes_to_the_same_result(folder, tmp_path, monkeypatch, more):
    from mamba_bio_audio.training.steps import Steps

    assert mba_command(*arguments(folder, tmp_path / "whole", *more), "--quiet") == 0
    step_end = Steps.on_train_batch_end

    def stop_at(self, trainer, *rest):
        if trainer.global_step in (2, 4, 9):
            os.kill(os.getpid(), signal.SIGTERM)
        step_end(self, trainer, *rest)

    monkeypatch.setattr(Steps, "on_train_batch_end", stop_at)
    assert mba_command(*arguments(folder, tmp_path / "run", *more, "data.num_workers=1")) == 130
    for _ in range(2):
        assert mba_command(*arguments(folder, tmp_path / "run", *more), "--resume") == 130
    monkeypatch.undo()
    assert mba_command(*arguments(folder, tmp_path / "run", *more), "--resume", "--quiet") == 0
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "run")[name], tensor), name


def test_streamed_training_is_the_same_training(folder, tmp_path):
    for name, more in (("whole", ()), ("chunks", ("train.stream_chunk=24",))):
        assert mba_command(*arguments(folder, tmp_path / name, "train.steps=4", *more), "--quiet") == 0
    rows = zip(metrics(tmp_path / "whole"), metrics(tmp_path / "chunks"), strict=True)
    for whole, chunks in rows:
        assert float(chunks["train_nats"]) == pytest.approx(float(whole["train_nats"]), rel=1e-4)
        assert float(chunks["grad_norm"]) == pytest.approx(float(whole["grad_norm"]), rel=1e-3)


def test_pretrained_frozen_and_two_rates(folder, tmp_path, capsys):
    settings = ["model.d_model=16", "model.num_layers=2", "model.ssm.d_state=4", "train.length=64", "train.steps=2"]
    settings += ["train.tokens_per_step=512", f"data.path={folder / 'data' / 'up' / 'g.fa'}", "data.block_bases=500"]
    pairs = [part for key in settings for part in ("--set", key)]
    assert mba_command("pretrain", "dna/tiny", *pairs, "--out", tmp_path / "lm", "--quiet", "--device", "cpu") == 0
    own = [f"head.pretrained={tmp_path / 'lm'}", "head.freeze=true", "train.lr_head=0.1", "train.steps=4"]
    assert mba_command(*arguments(folder, tmp_path / "frozen", *own), "--quiet") == 0
    before, after = weights(tmp_path / "lm"), weights(tmp_path / "frozen")
    assert all(torch.equal(after[f"backbone.{name}"], tensor) for name, tensor in before.items())
    assert after["head.weight"].abs().max() > 0.1  # four steps at 0.1, not at 0.02
    # On from a classifier of the same classes: the head is taken too, and with a rate of nearly nothing it stays.
    own = [f"head.pretrained={tmp_path / 'frozen'}", "train.lr=1e-9", "train.steps=1", "train.validate_every=1"]
    assert mba_command(*arguments(folder, tmp_path / "on", *own), "--quiet") == 0
    assert torch.allclose(weights(tmp_path / "on")["head.weight"], after["head.weight"], atol=1e-6)
    capsys.readouterr()
    assert mba_command(*arguments(folder, tmp_path / "x", *own, "model.num_layers=3")) == 2
    assert "model.num_layers is 3, there 2" in capsys.readouterr().err
    # The run has the architecture, so that it goes on even where the pretrained model is gone.
    (tmp_path / "frozen").rename(tmp_path / "gone")
    assert mba_command(*arguments(folder, tmp_path / "on", *own[:2], "train.steps=2"), "--resume", "--quiet") == 0
    assert len(metrics(tmp_path / "on")) == 2


def test_patience_ends_a_training_that_no_longer_improves(folder, tmp_path, capsys):
    own = ["train.lr=1e-12", "train.lr_min=0", "train.patience=2", "train.steps=400", "train.validate_every=1"]
    run = arguments(folder, tmp_path / "run", *own, "train.weight_decay=0")
    assert mba_command(*run) == 0
    out = capsys.readouterr().out
    assert "ended by train.patience at step" in out
    rows = metrics(tmp_path / "run")
    assert len(rows) < 400
    losses = [float(row["valid_nats"]) for row in rows]
    assert min(losses) == losses[-3] <= min(losses[-2:])
    assert int(rows[-1]["step"]) - int(rows[losses.index(min(losses))]["step"]) == 2
    assert mba_command(*run, "--resume") == 2
    assert "already complete, ended by train.patience" in capsys.readouterr().err


def test_predict_agrees_with_evaluate(trained, folder, tmp_path, capsys):
    """The windows of the test split, written as FASTA, get the probabilities that the evaluation wrote."""
    assert mba_command("evaluate", trained, "--device", "cpu") == 0
    with (trained / "predictions-test.tsv").open(newline="") as file:
        evaluated = list(csv.DictReader(file, delimiter="\t"))
    records = {}
    for name in ("up", "down"):
        lines = (folder / "data" / name / "g.fa").read_text().splitlines()
        records |= {(name, line[1]): text for line, text in zip(lines[::2], lines[1::2], strict=True)}
    rows = [(records[row["class"], row["record"]], row) for row in evaluated]
    fasta = "".join(f">w{i}\n{text[int(r['start0']) : int(r['end'])]}\n" for i, (text, r) in enumerate(rows))
    (tmp_path / "w.fa").write_text(fasta)
    out = tmp_path / "p.tsv"
    capsys.readouterr()
    assert mba_command("predict", trained, tmp_path / "w.fa", "--out", out, "--device", "cpu") == 0
    with out.open(newline="") as file:
        predicted = list(csv.DictReader(file, delimiter="\t"))
    assert len(predicted) == len(evaluated) == 40
    for a, b in zip(evaluated, predicted, strict=True):
        assert a["predicted"] == b["predicted"]
        assert float(a["p_up"]) == pytest.approx(float(b["p_up"]), abs=1e-5)


def test_training_says_whether_trivial_features_tell_the_class(trained, folder, tmp_path, capsys):
    found = json.loads((trained / "manifest.json").read_text())["data"]["label_leaks"]
    assert {leak["feature"]: leak["predictive"] for leak in found} == {
        "record length": False,
        "share of N": False,
        "share of lower case": False,
        "pattern of record names": False,
    }
    # One class has gaps.
    for name, gap in (("up", "N" * 40), ("down", "ACGT" * 10)):
        (tmp_path / "data" / name).mkdir(parents=True)
        text = (folder / "data" / name / "g.fa").read_text().splitlines()
        text = [line if line[0] == ">" else line[:1000] + gap + line[1040:] for line in text]
        (tmp_path / "data" / name / "g.fa").write_text("\n".join(text) + "\n")
    settings = ["--set", f"data.path={tmp_path / 'data'}", "--dry-run", "--device", "cpu"]
    assert mba_command("classify", folder / "r.yaml", *settings) == 0
    text = capsys.readouterr().out
    assert "LABEL LEAK" in text
    assert "share of N alone: 100%" in text


def test_sequences_under_two_labels_bound_the_accuracy(folder, tmp_path, capsys):
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("ACGT"), 40)) for _ in range(40)]
    rows = [(text, "ab"[i % 2], ("train", "test", "valid", "train")[i // 10]) for i, text in enumerate(texts)]
    # Of the eleven test sequences two are one, under two labels.
    rows.append((texts[10], "b", "test"))
    table = "sequence\tlabel\tsplit\n" + "".join("\t".join(row) + "\n" for row in rows)
    (tmp_path / "t.tsv").write_text(table)
    settings = ["--set", f"data.path={tmp_path / 't.tsv'}", "--device", "cpu", "--out", tmp_path / "run"]
    assert mba_command("classify", folder / "r.yaml", *settings, "--dry-run") == 0
    said = "1 sequence has several labels, on one strand or the other, in 2 examples (line 12: a, line 42: b)"
    assert f"{said}: accuracy on all examples cannot exceed 97.56 %" in capsys.readouterr().out
    assert mba_command("classify", folder / "r.yaml", *settings, "--set", "train.steps=1") == 0
    assert f"{said}: accuracy on all examples cannot exceed 97.56 %" in capsys.readouterr().err
    kept = json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]["label_conflicts"]
    assert kept["ceiling"]["test"] == pytest.approx(10 / 11)
    assert mba_command("evaluate", tmp_path / "run", "--no-baselines", "--device", "cpu") == 0
    assert f"{said}: accuracy on test cannot exceed 90.91 %" in capsys.readouterr().out


def test_recordings(tmp_path, capsys):
    """Two pitches, a folder each, with the same head and commands."""
    rng = np.random.default_rng(0)
    for name, hertz in (("zero", 400), ("one", 1500)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(20):
            wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(150 + rng.integers(50)) / 8000)
            soundfile.write(tmp_path / "data" / name / f"{i}.wav", wave, 8000, subtype="PCM_16")
    settings = ["data.classes=[zero, one]", "train.length=256", "train.tokens_per_step=2048", "train.steps=20"]
    settings += ["model.d_model=8", "data.valid_fraction=0.2", "data.test_fraction=0.2", "train.validate_every=10"]
    settings += ["train.lr=2e-2", "train.ema=null", "data.pad_target=mask", f"data.path={tmp_path / 'data'}"]
    pairs = [part for key in settings for part in ("--set", key)]
    run = tmp_path / "run"
    assert mba_command("classify", "audio/sc09-tiny", *pairs, "--out", run, "--device", "cpu", "--quiet") == 0
    capsys.readouterr()
    assert mba_command("evaluate", run, "--device", "cpu", "--json", "--quiet") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model"]["labels"] == ["zero", "one"]
    assert result["model"]["accuracy"]["value"] == 1.0
    assert (result["strand"], result["unit"]) == ("forward", "sample")
    assert "kmers" not in result
    assert mba.load(run).labels == ("zero", "one")
    # mba predict reads the clips of the test split, and gives what the evaluation gave.
    with (run / "predictions-test.tsv").open(newline="") as file:
        evaluated = list(csv.DictReader(file, delimiter="\t"))
    clips = [tmp_path / "data" / row["record"] for row in evaluated]
    assert mba_command("predict", run, *clips, "--out", tmp_path / "p.tsv", "--device", "cpu") == 0
    with (tmp_path / "p.tsv").open(newline="") as file:
        predicted = list(csv.DictReader(file, delimiter="\t"))
    assert len(predicted) == len(evaluated) == 8
    for a, b in zip(evaluated, predicted, strict=True):
        assert float(a["p_one"]) == pytest.approx(float(b["p_one"]), abs=1e-5)
        assert (b["length"], b["samples_used"]) == (str(int(a["end"]) - int(a["start0"])), b["length"])
