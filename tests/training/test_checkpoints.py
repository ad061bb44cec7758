"""Checkpoints: never unpickled, refused where they are old, damaged, of another model or not numbers; resumed runs."""

import csv
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mamba_bio_audio as mba
from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files.tensors import load_tree, save_tree
from mamba_bio_audio.models.isotropic import IsotropicModel
from mamba_bio_audio.run.begin import Session
from mamba_bio_audio.run.config import RunConfig, load_config
from mamba_bio_audio.run.outcomes import Trained
from mamba_bio_audio.run.train import train
from mamba_bio_audio.training.checkpoints import last_position, load_checkpoint
from mamba_bio_audio.training.schedule import learning_rate
from mamba_bio_audio.training.steps import NonFiniteLoss, Steps


def config(steps: int = 4, **more: Any) -> RunConfig:
    keys = {
        "data.path": "demo",
        "model.d_model": 8,
        "model.num_layers": 1,
        "train.length": 32,
        "train.tokens_per_step": 64,
        "train.micro_batch": 1,
        "train.steps": steps,
        "train.validate_every": 2,
        "train.validation_tokens": 256,
        "train.checkpoint_every": 1,
        "train.log_every": 1,
    } | more
    return load_config("dna/tiny", [f"{key}={value}" for key, value in keys.items()])


def go(out: Path, *values: Any, resume: bool = False, **more: Any) -> Trained:
    return train(config(*values, **more), out, Session("cpu", quiet=True, resume=resume))


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def mba_command(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as ended:
        command([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def stop_at(monkeypatch):
    """Stops trainings after a step, as a signal would."""
    step_end = Steps.on_train_batch_end

    def at(step: int, patch: Any = monkeypatch) -> None:
        def stop(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == step and (batch_idx + 1) % self.accumulate == 0:
                self.stop.number = 15
            step_end(self, trainer, module, outputs, batch, batch_idx)

        patch.setattr(Steps, "on_train_batch_end", stop)

    return at


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    go(out, **{"train.ema": 0.5})
    return out


@pytest.fixture
def run(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


class Planted:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def uses(run: Path, out: Path) -> dict[str, Any]:
    """Everything that reads the last checkpoint of a run."""
    return {
        "load": lambda: mba.load(run, which="last"),
        "ema": lambda: mba.load(run, which="ema"),
        "resume": lambda: go(run, 6, resume=True, **{"train.ema": 0.5}),
        "position": lambda: last_position(run),
    }


@pytest.mark.parametrize("use", ["load", "ema", "resume", "position"])
@pytest.mark.parametrize("name", ["last.ckpt", "last.safetensors"])
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_no_code_of_a_planted_checkpoint_runs(use, name, form, run, tmp_path):
    """Fails before: `last.ckpt` was unpickled by all of them."""
    (run / "checkpoints" / "last.safetensors").unlink()
    planted = run / "checkpoints" / name
    value = {"state_dict": {}, "global_step": 4, "callbacks": {}, "x": Planted(tmp_path / "owned")}
    if form == "pickle":
        planted.write_bytes(pickle.dumps(value))
    else:
        torch.save(value, planted)
    with pytest.raises(InputError) as error:
        uses(run, tmp_path)[use]()
    assert str(planted) in str(error.value)
    assert ("is not opened" if name == "last.ckpt" else "damaged") in str(error.value)
    assert "start again with --force" in str(error.value)
    assert not (tmp_path / "owned").exists()


def test_an_old_checkpoint_is_refused_without_being_opened(run, capsys, tmp_path):
    (run / "checkpoints" / "last.safetensors").unlink()
    old = run / "checkpoints" / "last.ckpt"
    # A pipe that nobody writes to: opening it would never return.
    os.mkfifo(old)
    for arguments in (
        ("evaluate", run, "--which", "last", "--quiet"),
        ("sample", run, "--which", "last", "--length", 5, "--out", tmp_path / "x.fa"),
        ("export", run, "--which", "last", "--out", tmp_path / "export"),
    ):
        assert mba_command(*arguments) == 2
        error = capsys.readouterr().err
        assert "checkpoints/last.ckpt: a Python pickle, written by an earlier version of this program." in error
        assert "it is not opened. Use the best weights in model.safetensors" in error
    assert not (tmp_path / "export").exists()
    # The best weights need no checkpoint.
    assert mba.load(run).num_parameters() > 0


def changed(path: Path, change: Any) -> None:
    tree = load_tree(path)
    change(tree)
    save_tree(path, tree)


DAMAGES = {
    "no step": lambda tree: tree.pop("step"),
    "a negative step": lambda tree: tree.update(step=-1),
    "a step of text": lambda tree: tree.update(step="4"),
    "more": lambda tree: tree.update(more=1),
    "weights of numbers": lambda tree: tree["weights"].update(x=1.0),
    "weights by number": lambda tree: tree.update(weights={0: torch.ones(1)}),
    "no optimiser": lambda tree: tree.update(optimizer=None),
    "a row of no numbers": lambda tree: tree["steps"].update(row={"lr": "x"}),
    "a sum of many": lambda tree: tree["steps"].update(nats=torch.ones(2)),
    "no steps": lambda tree: tree.update(steps=[]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_of_another_form_is_refused(damage, run):
    path = run / "checkpoints" / "last.safetensors"
    changed(path, DAMAGES[damage])
    with pytest.raises(InputError, match=r"last\.safetensors: not a checkpoint of this program \(.*start again"):
        load_checkpoint(path)


FOREIGN = {
    "a weight less": (lambda tree: tree["weights"].pop("norm_f.weight"), "another model .norm_f.weight is missing"),
    "a weight more": (lambda tree: tree["weights"].update(x=torch.ones(1)), "another model .x is"),
    "another shape": (lambda tree: tree["average"].update({"norm_f.weight": torch.ones(9)}), "another model"),
    "no average": (lambda tree: tree.update(average=None), "lacks a moving average"),
    "no moments": (lambda tree: tree["optimizer"][0].pop("exp_avg"), "parameter 0 belongs to another"),
    "moments of another": (lambda tree: tree["optimizer"].update({0: tree["optimizer"][1]}), "parameter 0 belongs to"),
    "too many parameters": (
        lambda tree: tree["optimizer"].update({99: tree["optimizer"][1]}),
        "parameter 99 belongs to",
    ),
    "no random states": (lambda tree: tree.update(random={}), "random"),
    "other random states": (lambda tree: tree["random"].update(cpu=torch.ones(3)), "random"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_checkpoint_of_another_training_is_not_resumed(what, run):
    change, words = FOREIGN[what]
    changed(run / "checkpoints" / "last.safetensors", change)
    before = (run / "metrics.csv").read_bytes()
    with pytest.raises(InputError, match=rf"last\.safetensors: .*{words}.*start again"):
        go(run, 6, resume=True, **{"train.ema": 0.5})
    assert (run / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", ["weights", "average", "optimizer"])
def test_a_checkpoint_that_is_not_numbers_is_refused(part, bad, run):
    def spoil(tree):
        tensors = tree[part][0] if part == "optimizer" else tree[part]
        name = "exp_avg" if part == "optimizer" else "norm_f.weight"
        tensors[name].view(-1)[1] = bad

    changed(run / "checkpoints" / "last.safetensors", spoil)
    for use in uses(run, run).values():
        with pytest.raises(InputError, match=r"1 of [\d,]+ values of .* are infinite or not a number.*lower train.lr"):
            use()


def test_weights_that_are_not_numbers_are_refused_everywhere(run, tmp_path, capsys):
    tensors = load_file(run / "model.safetensors")
    tensors["norm_f.weight"][3] = float("nan")
    save_file(tensors, run / "model.safetensors")
    for arguments in (
        ("evaluate", run, "--quiet"),
        ("sample", run, "--length", 5, "--out", tmp_path / "x.fa"),
        ("export", run, "--out", tmp_path / "export"),
    ):
        assert mba_command(*arguments) == 2
        assert "1 of 8 values of norm_f.weight are infinite or not a number" in capsys.readouterr().err
    assert not (tmp_path / "export").exists()
    assert not (tmp_path / "x.fa").exists()
    # Other weights of the run still serve, and the run goes on.
    assert mba.load(run, which="last").num_parameters() > 0


def test_weights_that_are_not_numbers_are_not_saved(tmp_path, monkeypatch):
    """An update that destroys the weights after a finite loss: the checkpoint before it stays."""
    step_end = Steps.on_train_batch_end

    def destroy(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 3:
            module.model.norm_f.weight.data[0] = float("nan")
        step_end(self, trainer, module, outputs, batch, batch_idx)

    monkeypatch.setattr(Steps, "on_train_batch_end", destroy)
    with pytest.raises(NonFiniteLoss, match=r"step 3 .*norm_f\.weight.*lower train\.lr"):
        go(tmp_path / "run")
    assert last_position(tmp_path / "run").step == 2
    assert mba.load(tmp_path / "run", which="last").num_parameters() > 0


def test_a_checkpoint_is_not_taken_for_a_model(run):
    with pytest.raises(InputError, match=r"a checkpoint of a run; give the run folder .*run, with which=last"):
        mba.load(run / "checkpoints" / "last.safetensors")


# What --resume may change -------------------------------------------------------------------------------------------

SAME = {
    "a larger micro-batch": {"train.micro_batch": 4},
    "a smaller micro-batch": {"train.micro_batch": 1},
    "recomputed layers": {"train.recompute": "layer"},
    "chunks": {"train.stream_chunk": 16, "train.stream_offload": True},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "run"
    go(out, **{"train.micro_batch": 2, "train.tokens_per_step": 128})
    return out


@pytest.mark.parametrize("what", SAME)
def test_resume_accepts_what_changes_nothing_but_rounding(what, plain, tmp_path, stop_at, monkeypatch, capsys):
    """Stopped after an odd number of micro-batches; each step is that of the uninterrupted run."""
    begun = {"train.micro_batch": 2, "train.tokens_per_step": 128}
    out = tmp_path / "run"
    stop_at(1)
    assert go(out, **begun).step == 1
    monkeypatch.undo()
    capsys.readouterr()
    assert go(out, resume=True, **begun | SAME[what]).step == 4
    error = capsys.readouterr().err
    session = json.loads((out / "manifest.json").read_text())["sessions"][-1]
    for key, value in SAME[what].items():
        assert session["changed"][key] == {"was": begun.get(key, config().model_dump()["train"][key[6:]]), "now": value}
        assert f"from step 2 on: {key} {value}, was " in error
    assert load_config(str(out / "config.yaml"), []).train.micro_batch == (begun | SAME[what])["train.micro_batch"]
    assert [row["step"] for row in rows(out)] == ["1", "2", "3", "4"]
    for a, b in zip(rows(out), rows(plain), strict=True):
        assert (a["tokens"], a["lr"]) == (b["tokens"], b["lr"])
        for key in ("train_nats", "grad_norm", "valid_nats"):
            assert bool(a[key]) == bool(b[key])
            assert not a[key] or float(a[key]) == pytest.approx(float(b[key]), rel=2e-5)


def test_dropout_goes_on_with_the_draws_of_an_uninterrupted_run(tmp_path, stop_at, monkeypatch):
    for name in ("whole", "cut"):
        if name == "cut":
            stop_at(2)
        go(tmp_path / name, **{"train.dropout": 0.5})
    monkeypatch.undo()
    assert go(tmp_path / "cut", resume=True, **{"train.dropout": 0.5}).step == 4
    whole, cut = (
        [(row["train_nats"], row["valid_nats"]) for row in rows(tmp_path / name)] for name in ("whole", "cut")
    )
    assert whole == cut


@pytest.mark.parametrize(
    "more",
    [
        {"train.dropout": 0.1},
        {"train.lr": 1e-3},
        {"train.truncate_chunk": 16},
        {"train.tokens_per_step": 128},
        {"train.precision": "bf16"},
        {"train.validation_tokens": 128},
        {"train.warmup": 0.5},
    ],
    ids=str,
)
def test_resume_refuses_what_changes_more_than_rounding(more, run):
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(InputError, match=rf"--resume with another configuration.*\n  {next(iter(more))}: was "):
        go(run, 6, resume=True, **{"train.ema": 0.5} | more)
    assert (run / "config.yaml").read_bytes() == before


def test_more_steps_follow_a_schedule_computed_anew(run, tmp_path, capsys, stop_at, monkeypatch):
    ema = {"train.ema": 0.5}
    with pytest.raises(InputError, match="already complete at step 4 of 4"):
        go(run, 4, resume=True, **ema)
    other = Path(shutil.copytree(run, tmp_path / "other"))
    capsys.readouterr()
    assert go(run, 9, resume=True, **ema).steps == 9
    error = capsys.readouterr().err
    assert "from step 5 on: train.steps 9, was 4\n" in error
    rate = {steps: learning_rate(4, steps=steps, lr=4e-3, lr_min=1e-5, warmup=0.1) for steps in (4, 9)}
    assert f"from step 5 on: rate {rate[9]:.4g}, was {rate[4]:.4g}" in error
    assert [int(row["step"]) for row in rows(run)] == [*range(1, 10)]
    for row in rows(run)[4:]:
        expected = learning_rate(int(row["step"]) - 1, steps=9, lr=4e-3, lr_min=1e-5, warmup=0.1)
        assert float(row["lr"]) == pytest.approx(expected, rel=1e-5)
    manifest = json.loads((run / "manifest.json").read_text())
    assert [session.get("changed", {}).get("train.steps") for session in manifest["sessions"]] == [
        None,
        {"was": 4, "now": 9},
    ]
    assert manifest["result"]["steps"] == 9
    # Stopped on the way and resumed with the new number: the same to the last bit.
    stop_at(7)
    assert go(other, 9, resume=True, **ema).step == 7
    monkeypatch.undo()
    assert go(other, 9, resume=True, **ema).step == 9
    for name in ("metrics.csv", "model.safetensors", "checkpoints/last.safetensors"):
        assert (other / name).read_bytes() == (run / name).read_bytes(), name


def test_fewer_steps_down_to_where_the_run_stands(tmp_path, stop_at, monkeypatch):
    out = tmp_path / "run"
    stop_at(3)
    assert go(out, 8).step == 3
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"train\.steps is 2, but 3 steps are done; set it to 3 or more"):
        go(out, 2, resume=True)
    assert rows(out)[-1]["valid_nats"] == ""
    result = go(out, 3, resume=True)
    assert (result.step, result.steps, result.stopped_by) == (3, 3, None)
    found = rows(out)
    assert [row["step"] for row in found] == ["1", "2", "3"]
    empty = [key for key, value in found[-1].items() if not value]
    assert empty == ["sample_distance", "class_nats", "class_named", "valid_accuracy"]
    with pytest.raises(InputError, match="already complete at step 3 of 3"):
        go(out, 3, resume=True)


def test_a_precision_that_the_device_changes_is_refused(run):
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"precision": "bf16"}))
    with pytest.raises(InputError, match=r"was trained in bf16, but train\.precision=auto means fp32 on cpu"):
        go(run, 6, resume=True, **{"train.ema": 0.5})


def test_random_states_go_on(tmp_path, stop_at, monkeypatch):
    """With dropout a resumed run draws what the uninterrupted one would have, whatever the number of workers."""
    hidden = IsotropicModel.hidden

    def noisy(self, *values, **options):
        y, state = hidden(self, *values, **options)
        return torch.nn.functional.dropout(y, 0.3, self.training), state

    monkeypatch.setattr(IsotropicModel, "hidden", noisy)
    torch.manual_seed(1)
    go(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        torch.manual_seed(2)
        assert go(tmp_path / "run").step == 3
    torch.manual_seed(3)
    go(tmp_path / "run", resume=True, **{"data.num_workers": 2})
    for name in ("metrics.csv", "checkpoints/last.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_training_whose_time_is_up_is_saved_and_goes_on_as_if_it_had_never_ended(tmp_path: Path) -> None:
    assert go(tmp_path / "whole").stopped_by is None
    # The time is up before each step: every call does one, and one of them validates at the end of the next.
    for step, call in enumerate((False, True, True), start=1):
        part = train(config(), tmp_path / "parts", Session("cpu", quiet=True, resume=call, deadline=0.0))
        assert (part.step, part.stopped_by) == (step, "--max-time")
        if part.step == 2:
            # The validation of the second step is still to come, and would be put off for ever.
            assert go(tmp_path / "parts", resume=True, **{"train.steps": 2}).stopped_by is None
    assert go(tmp_path / "parts", resume=True).stopped_by is None
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    for name in ("model.safetensors", "checkpoints/last.safetensors"):
        ours, theirs = ((tmp_path / run / name).read_bytes() for run in ("parts", "whole"))
        assert ours == theirs or name.startswith("checkpoints")
