"""`mba finetune`: labels and numbers from table to prediction, in one process."""

import csv
import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import mamba_bio_audio as mba
from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.jobs.finetune import summary
from mamba_bio_audio.training.steps import Steps

RECIPE = """\
model: {d_model: 16, num_layers: 1, ssm: {d_state: 4}}
head: {}
data: {kind: dna-classes}
train: {length: 40, tokens_per_step: 1280, steps: 60, lr: 3.0e-2, validate_every: 30, checkpoint_every: 30}
"""


def mba_command(*arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        command([str(argument) for argument in arguments])
    return 0 if stop.value.code is None else int(stop.value.code)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Sequences with their share of G and C in percent, and with whether they are rich in GC or in A: each by oracle."""
    folder = tmp_path_factory.mktemp("labels")
    rng = np.random.default_rng(0)
    numbers, labels = "sequence\tlabel\n", "sequence\tlabel\n"
    for _ in range(300):
        share = rng.beta(2, 2)
        text = "".join(rng.choice(list("ACGT"), 40, p=[(1 - share) / 2, share / 2, share / 2, (1 - share) / 2]))
        gc = 100 * (text.count("G") + text.count("C")) / len(text)
        numbers += f"{text}\t{gc:g}\n"
        labels += (
            f"{text}\t{';'.join(name for name, there in (('gc', gc > 50), ('a', text.count('A') > 8)) if there)}\n"
        )
    (folder / "numbers.tsv").write_text(numbers)
    # An empty last column.
    (folder / "labels.tsv").write_text(labels.replace("\t\n", "\tgc;a\n"))
    (folder / "r.yaml").write_text(RECIPE)
    return folder


def trained(folder: Path, out: Path, table: str, task: str, *more: str) -> int:
    settings = (f"data.path={folder / table}", f"head.task={task}", *more)
    pairs = [part for key in settings for part in ("--set", key)]
    return mba_command("finetune", folder / "r.yaml", *pairs, "--out", out, "--device", "cpu")


def test_a_number_of_a_sequence(folder, tmp_path, capsys):
    run = tmp_path / "run"
    assert trained(folder, run, "numbers.tsv", "regression") == 0
    out = capsys.readouterr().out
    assert "half squared errors in standard deviations per number" in out
    assert "validation R2 1.000 (" in out
    config = (run / "config.yaml").read_text()
    assert "outputs: numbers" in config
    assert mba_command("evaluate", run, "--device", "cpu", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert json.loads((run / "evaluate-test.json").read_text()) == result
    assert result["task"] == "regression"
    own = result["model"]["outputs"]["label"]
    assert own["r2"]["value"] > 0.9
    assert own["r2"]["low"] < own["r2"]["value"] <= own["r2"]["high"]
    assert own["rmse"] < 0.3 * own["standard_deviation"]
    # A share of letters is what short words know exactly.
    bar = result["kmers"]
    assert bar["outputs"]["label"]["r2"]["value"] > 0.99
    assert bar["trained_on"] == 243
    difference = own["r2"]["value"] - bar["outputs"]["label"]["r2"]["value"]
    assert result["gain"]["r2"]["value"] == pytest.approx(difference)
    assert result["gain"]["r2"]["low"] < difference < result["gain"]["r2"]["high"]
    # The predictions are those that the scores are of, in percent, and what mba predict and mba.predict give.
    rows = read(run / "predictions-test.tsv")
    error = np.array([float(row["label"]) - float(row["known_label"]) for row in rows])
    assert np.sqrt((error**2).mean()) == pytest.approx(own["rmse"], rel=1e-4)
    sequences = {row.split("\t")[0] for row in (folder / "numbers.tsv").read_text().splitlines()[1:]}
    given = sorted(sequences)[:5]
    (tmp_path / "x.fa").write_text("".join(f">{at}\n{text}\n" for at, text in enumerate(given)) + ">n\nNNNN\n")
    assert mba_command("predict", run, tmp_path / "x.fa", "--out", tmp_path / "p.tsv", "--device", "cpu") == 0
    assert "6 records, 200 bases used: 5 scored" in capsys.readouterr().out
    found = read(tmp_path / "p.tsv")
    assert list(found[0]) == ["file", "record", "length", "bases_used", "windows", "label", "note"]
    assert found[5]["label"] == ""
    assert "no known symbol" in found[5]["note"]
    refused = (
        ("predict", run, tmp_path / "x.fa", "--out", tmp_path / "q.tsv", "--summary", tmp_path / "s.tsv"),
        ("evaluate", run, "--metrics", "unknown"),
    )
    for arguments, message in zip(refused, ("--summary gives shares of", "needs a classifier of classes"), strict=True):
        capsys.readouterr()
        assert mba_command(*arguments, "--device", "cpu") == 2
        assert message in capsys.readouterr().err
    alike = mba.predict(mba.load(run), given)
    assert [float(row["label"]) for row in found[:5]] == pytest.approx(alike[:, 0].tolist(), rel=1e-4)
    assert mba_command("report", run) == 0
    assert "regression on " in (run / "report.html").read_text()


def test_several_labels_of_a_sequence(folder, tmp_path, capsys):
    run = tmp_path / "run"
    assert trained(folder, run, "labels.tsv", "multilabel") == 0
    assert "nats per label" in capsys.readouterr().out
    assert mba_command("evaluate", run, "--device", "cpu", "--no-baselines") == 0
    assert "mean AUROC 0.9" in capsys.readouterr().out
    result = json.loads((run / "evaluate-test.json").read_text())["model"]
    assert result["labels"] == ["a", "gc"]
    assert result["outputs"]["gc"]["auroc"]["value"] > 0.95
    (tmp_path / "x.fa").write_text(f">rich\n{'GC' * 20}\n>poor\n{'TTTTAAAA' * 5}\n")
    assert mba_command("predict", run, tmp_path / "x.fa", "--out", tmp_path / "p.tsv", "--device", "cpu") == 0
    rich, poor = read(tmp_path / "p.tsv")
    assert (rich["predicted"], poor["predicted"]) == ("gc", "a")
    # Shares are of the records, whatever the number of their labels.
    (tmp_path / "y.fa").write_text(f">both\n{'AAAAGGGG' * 5}\n>rich\n{'GC' * 20}\n")
    given = ("predict", run, tmp_path / "y.fa", "--out", tmp_path / "q.tsv", "--summary", tmp_path / "s.tsv")
    assert mba_command(*given, "--device", "cpu") == 0
    assert [row["predicted"] for row in read(tmp_path / "q.tsv")] == ["a;gc", "gc"]
    assert {row["predicted"]: row["share"] for row in read(tmp_path / "s.tsv")} == {"gc": "1", "a": "0.5"}
    assert float(rich["p_gc"]) > 0.5 > float(rich["p_a"])


def test_a_run_of_numbers_resumes_and_is_exported(folder, tmp_path, capsys):
    short = ("train.steps=4", "train.validate_every=2")
    assert trained(folder, tmp_path / "run", "numbers.tsv", "regression", *short) == 0
    assert mba_command("export", tmp_path / "run", "--out", tmp_path / "hub") == 0
    one, other = (mba.predict(mba.load(tmp_path / name), ["ACGTTT"]) for name in ("run", "hub"))
    assert one.tolist() == other.tolist()
    pairs = [f"data.path={folder / 'numbers.tsv'}", "head.task=regression", "train.steps=6", "train.validate_every=2"]
    sets = [part for key in pairs for part in ("--set", key)]
    again = ["finetune", folder / "r.yaml", *sets, "--out", tmp_path / "run", "--device", "cpu", "--quiet"]
    assert mba_command(*again, "--resume") == 0
    # On from a model of the same numbers: its head is taken, because what it says means the same.
    more = (f"head.pretrained={tmp_path / 'hub'}", "train.steps=1", "train.lr=1e-9", "train.lr_min=0")
    assert trained(folder, tmp_path / "on", "numbers.tsv", "regression", *more) == 0
    last = mba.load(tmp_path / "on").head.weight
    assert (last - mba.load(tmp_path / "hub").head.weight).abs().max() < 1e-6


def test_mistakes(folder, tmp_path, capsys):
    pairs = ["--set", f"data.path={folder / 'numbers.tsv'}", "--set", "head.task=regression"]
    assert mba_command("classify", folder / "r.yaml", *pairs) == 2
    assert "use mba finetune, of which mba classify is the name for classes" in capsys.readouterr().err
    assert trained(folder, tmp_path / "x", "numbers.tsv", "tracks") == 2
    assert (
        "data.kind=dna-classes is for classes, multilabel, regression; for tracks set data.kind="
        in capsys.readouterr().err
    )
    assert trained(folder, tmp_path / "x", "labels.tsv", "regression") == 2
    assert "is not a number" in capsys.readouterr().err
    assert trained(folder, tmp_path / "x", "numbers.tsv", "regression", "head.mean=[1, 2]") == 2
    assert "head.mean has 2 values for 1 numbers" in capsys.readouterr().err
    assert mba_command("finetune", "dna/tiny", "--set", f"data.path={folder / 'numbers.tsv'}") == 2
    assert "has no head" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_weights_of_classes(tmp_path, folder, capsys):
    """Balanced weights are the inverse of how often a class is in training, 1 on average over its sequences."""
    rng = np.random.default_rng(0)
    rows = "".join(
        f"{''.join(rng.choice(list('ACGT'), 40))}\t{'ab'[at % 4 == 0]}\t{'train' if at < 40 else 'valid'}\n"
        for at in range(60)
    )
    (tmp_path / "t.tsv").write_text("sequence\tlabel\tsplit\n" + rows)
    pairs = [f"data.path={tmp_path / 't.tsv'}", "head.class_weights=balanced"]
    sets = [part for key in pairs for part in ("--set", key)]
    assert mba_command("classify", folder / "r.yaml", *sets, "--dry-run", "--json", "--device", "cpu") == 0
    weights = json.loads(capsys.readouterr().out)["config"]["head"]["class_weights"]
    assert weights == [pytest.approx(40 / 2 / 30), pytest.approx(40 / 2 / 10)]


def test_low_rank_updates_of_a_pretrained_model(folder, tmp_path, capsys):
    """What is written has merged weights; a run that was stopped resumes to the same; its memory is known before."""
    short = ("train.steps=8", "train.validate_every=4", "train.checkpoint_every=2")
    assert (
        trained(folder, tmp_path / "first", "numbers.tsv", "regression", "train.steps=2", "train.validate_every=1") == 0
    )
    own = (f"head.pretrained={tmp_path / 'first'}", "head.lora_rank=4", *short)
    pairs = [
        part for key in (f"data.path={folder / 'numbers.tsv'}", "head.task=regression", *own) for part in ("--set", key)
    ]
    assert mba_command("finetune", folder / "r.yaml", *pairs, "--dry-run", "--device", "cpu") == 0
    assert re.search(r"parameters +\d,\d+, of which \d,?\d+ are trained", capsys.readouterr().out)
    assert trained(folder, tmp_path / "run", "numbers.tsv", "regression", *own) == 0
    before, after = (mba.load(tmp_path / name).state_dict() for name in ("first", "run"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"backbone.layers.0.mixer.in_proj.weight", "head.weight"} <= changed
    assert not changed & {"backbone.embedding.weight", "backbone.layers.0.mixer.A_log", "backbone.norm_f.weight"}
    # The checkpoint of the last step holds the factors, and is merged as it is read.
    last = mba.load(tmp_path / "run", which="last").state_dict()
    assert all(torch.allclose(last[name], after[name], atol=1e-7) for name in after)
    step_end = Steps.on_train_batch_end

    def stop_at(self, trainer, *rest):
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        step_end(self, trainer, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Steps, "on_train_batch_end", stop_at)
        assert trained(folder, tmp_path / "again", "numbers.tsv", "regression", *own) == 130
    command_line = ["finetune", folder / "r.yaml", *pairs, "--out", tmp_path / "again", "--device", "cpu", "--quiet"]
    assert mba_command(*command_line, "--resume") == 0
    resumed = mba.load(tmp_path / "again").state_dict()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in after.items())


def test_few_labels_again_and_again(folder, tmp_path, capsys):
    """Each run has a draw of its own; mean and interval are those of the runs, by hand."""
    rng = np.random.default_rng(0)
    rows = ""
    for at in range(240):
        share, split = (0.3, 0.7)[at % 2], ("train", "train", "valid", "test")[at // 2 % 4]
        text = "".join(rng.choice(list("ACGT"), 40, p=[(1 - share) / 2, share / 2, share / 2, (1 - share) / 2]))
        rows += f"{text}\t{'pr'[at % 2]}\t{split}\n"
    (tmp_path / "t.tsv").write_text("sequence\tlabel\tsplit\n" + rows)
    pairs = [f"data.path={tmp_path / 't.tsv'}", "data.few=8", "train.steps=6", "train.validate_every=3"]
    # Rows of 80 positions are planned, and the 40 of the longest sequence read.
    pairs += ["train.length=80", "train.tokens_per_step=2560"]
    sets = [part for key in pairs for part in ("--set", key)]
    call = ["finetune", folder / "r.yaml", *sets, "--out", tmp_path / "runs", "--device", "cpu"]
    # The time is over within the first run already, for all of them.
    assert mba_command(*call, "--repeats", "3", "--max-time", "0.001", "--quiet") == 0
    assert "stopped by --max-time; continue with --resume" in capsys.readouterr().out
    assert [place.name for place in (tmp_path / "runs").iterdir() if place.is_dir()] == ["1"]
    assert mba_command(*call, "--repeats", "3", "--test", "--json", "--quiet", "--resume") == 0
    result = json.loads(capsys.readouterr().out)
    for at in (1, 2):
        with (tmp_path / "runs" / str(at) / "metrics.csv").open(newline="") as file:
            assert [int(row["tokens"]) for row in csv.DictReader(file)] == [3 * 32 * 40, 6 * 32 * 40]
    values = [run["test"]["auroc"] for run in result["runs"]]
    found = result["scores"]["test"]["auroc"]
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["high"] - found["mean"] == pytest.approx(4.303 * np.std(values, ddof=1) / np.sqrt(3), rel=1e-3)
    manifests = [json.loads((tmp_path / "runs" / str(at) / "manifest.json").read_text()) for at in (1, 2, 3)]
    train = [manifest["data"]["splits"]["train"]["classes"] for manifest in manifests]
    assert all(row["regions"] == 8 for run in train for row in run.values())
    assert all(manifest["data"]["splits"]["test"]["regions"] == 60 for manifest in manifests)
    assert len({manifest["data"]["splits_sha256"] for manifest in manifests}) == 3
    evaluated = json.loads((tmp_path / "runs" / "2" / "evaluate-test.json").read_text())
    assert len(evaluated["evaluations"]) == 1
    assert evaluated["model"]["auroc"]["value"] == pytest.approx(values[1])
    # What is complete is not trained again, and a fourth run is added.
    before = (tmp_path / "runs" / "1" / "metrics.csv").stat().st_mtime_ns
    assert mba_command(*call, "--repeats", "4", "--resume", "--quiet") == 0
    assert "4 runs in" in capsys.readouterr().out
    assert (tmp_path / "runs" / "1" / "metrics.csv").stat().st_mtime_ns == before
    # Scores of other settings are not passed off as those of these, and more steps are made where more are asked for.
    assert mba_command(*call, "--repeats", "4", "--resume", "--quiet", "--set", "train.lr=0.001") == 2
    assert "train.lr: was 0.03, now 0.001" in capsys.readouterr().err
    assert mba_command(*call, "--repeats", "2", "--resume", "--quiet", "--set", "train.steps=7") == 0
    assert (tmp_path / "runs" / "1" / "metrics.csv").stat().st_mtime_ns > before
    assert mba_command(*call[:-3], tmp_path / "more", "--set", "data.few=61") == 2
    assert "data.few is 61, but class 'p' has 60 training examples; lower it" in capsys.readouterr().err
    assert mba_command(*call, "--test") == 2
    assert "--test goes with --repeats" in capsys.readouterr().err


def test_no_interval_goes_beyond_what_a_score_can_be():
    found = summary([{"test": {"auroc": a, "r2": 3 * a - 2, "mcc": a}} for a in (0.99, 0.2)])["test"]
    assert (found["auroc"]["low"], found["auroc"]["high"]) == (0, 1)
    assert (found["mcc"]["low"], found["mcc"]["high"]) == (-1, 1)
    assert found["r2"]["high"] == 1
    assert found["r2"]["low"] < -10
    assert np.isnan(summary([{"test": {"auroc": 0.5}}])["test"]["auroc"]["low"])


def test_more_than_a_thousand_classes(tmp_path, capsys):
    """A word of six bases and which of 1,024 it is: trained, evaluated and predicted, with tables of the worst only."""
    rng = np.random.default_rng(0)
    rows = ""
    for at in range(1024):
        word = "".join("ACGT"[(at >> shift) & 3] for shift in range(0, 10, 2))
        for split in ("train", "valid", "test"):
            rows += f"{''.join(rng.choice(list('ACGT'), 3))}{word}\tw{at:04d}\t{split}\n"
    (tmp_path / "t.tsv").write_text("sequence\tlabel\tsplit\n" + rows)
    recipe = RECIPE.replace("length: 40", "length: 8").replace("steps: 60", "steps: 8").replace("every: 30", "every: 8")
    (tmp_path / "r.yaml").write_text(recipe)
    pairs = (
        f"data.path={tmp_path / 't.tsv'}",
        "data.reverse_complement=false",
        "data.shared_bases=allow",
        "head.pool=last",
    )
    sets = [part for key in pairs for part in ("--set", key)]
    run = tmp_path / "run"
    assert mba_command("finetune", tmp_path / "r.yaml", *sets, "--out", run, "--device", "cpu", "--quiet") == 0
    capsys.readouterr()
    assert mba_command("evaluate", run, "--strand", "forward", "--no-baselines", "--device", "cpu") == 0
    out = capsys.readouterr().out
    assert "the classes with the lowest F1 of 1,024" in out
    assert "each class against the rest" in out
    assert len(out) < 20_000
    (tmp_path / "x.fa").write_text(">x\nACGTACGT\n")
    assert mba_command("predict", run, tmp_path / "x.fa", "--out", tmp_path / "p.tsv", "--device", "cpu") == 0
    (row,) = read(tmp_path / "p.tsv")
    assert sum(float(value) for name, value in row.items() if name.startswith("p_w")) == pytest.approx(1, abs=1e-3)
