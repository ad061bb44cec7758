"""A network that died is told, once, with what to lower."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.models.tasks import OUTPUTS
from mamba_bio_audio.run import begin as machinery
from mamba_bio_audio.training.steps import Steps

TINY = {
    "data.path": "demo",
    "model.d_model": 8,
    "model.num_layers": 1,
    "train.length": 32,
    "train.tokens_per_step": 64,
    "train.steps": 6,
    "train.validate_every": 3,
    "train.validation_tokens": 256,
    "train.log_every": 1,
}


def pretrain(out, *more) -> int:
    settings = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    with pytest.raises(SystemExit) as ended:
        command(["pretrain", "dna/tiny", *settings, *more, "--out", str(out), "--quiet", "--json", "--device", "cpu"])
    return int(ended.value.code or 0)


def test_a_dead_network_is_told_once_with_what_to_lower(tmp_path, capsys):
    """Fails before: a rate that kills the network ends with code 0 and no word."""
    assert pretrain(tmp_path / "run", "--set", "train.lr=10", "--set", "train.warmup=0") == 0
    output, error = capsys.readouterr()
    assert error.count("the network is dead") == 1
    assert error.count("lower train.lr (it was 10)") == 1
    assert "as if all 16 symbols were guessed with equal probability, and its gradient is 0" in error
    summary = json.loads(output)
    assert summary["warning"] in error
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["result"]["warning"] == summary["warning"]


def test_a_network_that_learns_is_not_called_dead(tmp_path, capsys):
    assert pretrain(tmp_path / "run") == 0
    output, error = capsys.readouterr()
    assert "dead" not in error
    assert json.loads(output)["warning"] is None


def test_a_dead_classifier_is_told_though_its_bias_goes_on_learning(tmp_path, capsys, monkeypatch):
    """Fails before: the bias of the output keeps a gradient, and the loss is not that of guessing blindly."""
    rng = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for label in "xy":
            records = [f">{split}{label}{i}\n{''.join(rng.choice(list('ACGT'), 300))}\n" for i in range(12)]
            (tmp_path / "data" / split / f"{label}.fa").write_text("".join(records))
    settings = TINY | {
        "data.path": tmp_path / "data",
        "train.length_warmup": "[]",
        "train.ema": "null",
        "train.warmup": 0,
    }

    def classify(name: str, *more: str) -> str:
        keys = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        with pytest.raises(SystemExit) as ended:
            command(
                [
                    "classify",
                    "dna/species@tiny",
                    *keys,
                    *more,
                    "--out",
                    str(tmp_path / name),
                    "--quiet",
                    "--device",
                    "cpu",
                ]
            )
        assert not ended.value.code
        return capsys.readouterr().err

    assert "dead" not in classify("alive").replace(str(tmp_path), "")

    begin = machinery.begin

    def begin_dead(config):
        """What too high a rate ends in: nothing comes through, and nothing goes back but to the bias."""
        model = begin(config)
        torch.nn.init.zeros_(model.backbone.norm_f.weight)
        torch.nn.init.zeros_(model.head.weight)
        return model

    monkeypatch.setattr(machinery, "begin", begin_dead)
    told = classify("dead")
    assert told.count("nothing but the output bias has had a gradient") == 1
    assert "the network is dead. Start again with a lower train.lr" in told


def test_what_a_bias_alone_learns():
    from torch import nn

    from mamba_bio_audio.training.steps import _only_bias_learns

    class Model(nn.Module):
        def __init__(self, bias: bool) -> None:
            super().__init__()
            self.lm_head = nn.Linear(2, 2, bias)
            self.body = nn.Linear(2, 2)

        def learn(self, body: float, bias: float = 1.0) -> Model:
            for parameter in self.parameters():
                parameter.grad = torch.full_like(parameter, body)
            if self.lm_head.bias is not None:
                self.lm_head.bias.grad.fill_(bias)
            return self

    assert _only_bias_learns(Model(True).learn(0.0))
    # Its square is zero in fp32.
    assert not _only_bias_learns(Model(True).learn(1e-30))
    assert not _only_bias_learns(Model(False).learn(0.0))
    assert not _only_bias_learns(Model(True))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([(1, "blind", 0.0), (2, "blind", 0.0)], True),
        ([(1, "blind", 0.0), (2, 1.0, 0.5), (3, "blind", 0.0)], False),
        ([(1, "blind", 1e-20), (2, "blind", 1e-20)], False),
        ([(1, 0.0, 0.0), (2, 0.0, 0.0)], False),
        ([(6, "blind", 0.0)], True),
        ([(5, "blind", 0.0)], False),
    ],
    ids=str,
)
@pytest.mark.parametrize("labels", [None, ("a", "b", "c")])
def test_what_is_dead(rows, told, labels):
    from types import SimpleNamespace

    model = SimpleNamespace(
        labels=labels, outputs=OUTPUTS["classes"], embedding=SimpleNamespace(weight=torch.zeros(16, 2))
    )
    warnings: list[str] = []
    steps = Steps.__new__(Steps)
    steps.__dict__ |= {
        "warning": None,
        "_dead_rows": 0,
        "_dead_since": 0,
        "config": SimpleNamespace(steps=6, lr=0.1),
        "progress": SimpleNamespace(warn=warnings.append),
        "_module": SimpleNamespace(model=model),
    }
    for step, nats, norm in rows:
        steps._module.grad_norm = torch.tensor(norm)
        blind = math.log(3 if labels else 16)
        steps._look_for_death(SimpleNamespace(is_global_zero=True), step, blind if nats == "blind" else nats)  # type: ignore
    assert bool(warnings) == told == bool(steps.warning)
    assert not told or ("all 3 classes" if labels else "all 16 symbols") in warnings[0]
