"""Moving average of the weights: what is averaged, validated, kept, and continued after a resume."""

import csv
import shutil
from pathlib import Path

import pytest
import torch

import mamba_bio_audio as mba
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.run.begin import Session
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.train import train


def config(steps: int, **more: str):
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
        "train.ema": 0.5,
    } | more
    return load_config("dna/tiny", [f"{key}={value}" for key, value in keys.items()])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ema") / "run"
    train(config(4), out, Session("cpu", quiet=True))
    return out


def test_the_average_is_that_of_the_steps(run, tmp_path):
    weights = []
    for steps in (1, 2, 3, 4):
        # The rate must not depend on the number of steps: constant.
        out = tmp_path / str(steps)
        train(config(steps, **{"train.warmup": 0, "train.lr_min": 4e-3}), out, Session("cpu", quiet=True))
        weights.append(mba.load(out, "last").embedding.weight.detach())
    expected = weights[0]
    for following in weights[1:]:
        expected = 0.5 * expected + 0.5 * following
    average = mba.load(tmp_path / "4", "ema").embedding.weight
    torch.testing.assert_close(average, expected, rtol=1e-6, atol=1e-8)
    assert not torch.equal(average, weights[-1])


def test_the_best_weights_are_the_average(run):
    with (run / "metrics.csv").open(newline="") as file:
        valid = {int(row["step"]): float(row["valid_nats"]) for row in csv.DictReader(file) if row["valid_nats"]}
    if min(valid, key=valid.__getitem__) == 4:
        assert torch.equal(mba.load(run).embedding.weight, mba.load(run, "ema").embedding.weight)
    assert not torch.equal(mba.load(run).embedding.weight, mba.load(run, "last").embedding.weight)


def test_resume_continues_the_average(run, tmp_path, monkeypatch):
    from mamba_bio_audio import signals

    out = tmp_path / "run"
    handle = signals.StopSignal.install

    def stop_at_once(self):
        handle(self)
        self.number = 15

    with monkeypatch.context() as patch:
        patch.setattr(signals.StopSignal, "install", stop_at_once)
        assert train(config(4), out, Session("cpu", quiet=True)).step == 1
    train(config(4), out, Session("cpu", quiet=True, resume=True))
    assert (out / "metrics.csv").read_text() == (run / "metrics.csv").read_text()
    for which in ("best", "last", "ema"):
        assert torch.equal(mba.load(out, which).embedding.weight, mba.load(run, which).embedding.weight)


def test_without_an_average_there_is_none_to_load(run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    text = (out / "config.yaml").read_text()
    (out / "config.yaml").write_text(text.replace("ema: 0.5", "ema: null"))
    with pytest.raises(InputError, match="kept no moving average"):
        mba.load(out, "ema")
