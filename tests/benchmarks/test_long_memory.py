"""The long-memory benchmark: what it measures against a model whose memory is known, and its files at a tiny size."""

import argparse
import csv
import sys
import time
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch

from mamba_bio_audio.pipelines.synthetic.long_memory import CopyTask, NeedleTask

Layer = namedtuple("Layer", "ssm")


class Fading:
    """Knows the marker of the first span and forgets half of it every 64 positions; the filler's bases weigh `leak`."""

    def __init__(self, leak):
        self.leak = leak

    def eval(self):
        return self

    def __call__(self, tokens, state=None, logits="all"):
        if state is None:
            found = (tokens[:, None] == torch.from_numpy(NeedleTask().markers())).all(2)
            assert found.any(1).all()
            held = found.float()
        else:
            held = state[0][0].ssm[:, 0] * 0.5 ** (tokens.shape[1] / 64)
            held = held + self.leak * torch.nn.functional.one_hot(tokens[:, -1] - 7, 4)
        return SimpleNamespace(logits=held[:, None], state=((Layer(held[:, None]),), None))


def test_positions_before_a_marker_ask_for_equal_probabilities(script):
    """The marker's own bases and what follows are not among them, and equal logits cost nothing."""
    bench = script("long_memory")
    task = NeedleTask(seed=0, dense=True, within=1.0)
    tokens, targets = task.batch(3, 4, 300)
    quiet = bench.before_marker(task, targets)
    markers = torch.from_numpy(task.markers())
    for row in range(4):
        start = int(quiet[row].sum())
        assert quiet[row, :start].all()
        assert torch.equal(tokens[row, start : start + 64], markers[targets[row, -1]])
    assert not bench.before_marker(CopyTask(seed=0), targets).any()
    assert bench.leaning(torch.full((8, 4), 3.0), torch.ones(8, dtype=torch.bool)) == pytest.approx(0.0, abs=1e-6)
    assert bench.leaning(torch.eye(4) * 3, torch.tensor([True, False, False, False])) > 0.5
    assert bench.leaning(torch.eye(4), torch.zeros(4, dtype=torch.bool)) == 0


@pytest.mark.parametrize("leak", [0.0, 0.3])
def test_kept_tells_forgetting_from_what_filler_leaves_behind(script, leak):
    arguments = argparse.Namespace(seed=0, test_length=1024, positions=1 << 20)
    rows = script("long_memory").kept(Fading(leak), NeedleTask(), 0, "cpu", arguments, time.perf_counter() + 60)
    assert [row["distance"] for row in rows] == [64, 256, 1024]
    for row in rows:
        remaining = 0.5 ** (row["distance"] / 64)
        assert row["layer0_kept"] == pytest.approx(2 * remaining)
        # One hot less its mean has the length sqrt(3 / 4), and so have the classes' means.
        assert row["signal"] == pytest.approx(remaining * 0.75**0.5)
        if leak:
            assert 0.1 < row["noise"] < leak
            assert row["layer0_noise"] > 0.1
        else:
            assert row["noise"] == pytest.approx(0, abs=1e-6)
            assert row["drift"] == pytest.approx(0, abs=1e-6)


def test_stages_and_batches(script):
    bench = script("long_memory")
    stages = bench.stages(NeedleTask(), 0, 1024)
    assert [(s.shortest, s.longest) for s in stages] == [(64, 128), (64, 256), (128, 512), (256, 1024)]
    arguments = argparse.Namespace(tokens=4096, decoys=0.3, seed=0)
    data = bench.Batches(stages[-1], 0, arguments)
    for index in range(6):
        tokens, targets = data[index]
        assert 256 <= tokens.shape[1] <= 1024
        assert len(tokens) == max(4, 4096 // tokens.shape[1])
        # Dense: from some position on every target is the class, and the classes come in turn.
        assert ((targets == -100).long().diff(dim=1) <= 0).all()
        assert (targets[:, -1] == (torch.arange(len(tokens)) + index) % 4).all()
    # No more positions than fit in the memory of a GPU.
    longest = bench.Batches(bench.Stage(CopyTask(), 1 << 19, 1 << 19), 0, arguments)
    assert longest[0][0].shape == (2, 1 << 19)


@pytest.mark.parametrize("task", ["needle", "copy"])
def test_a_tiny_run_writes_all_it_measured(script, tmp_path, monkeypatch, task):
    out = tmp_path / task
    options = "--seconds 6 --d-model 8 --num-layers 2 --train-length 128 --further-length 256 --test-length 256"
    options += " --tokens 512 --rows 4 --num-workers 0"
    monkeypatch.setattr(sys, "argv", ["long_memory.py", task, "--out", str(out), *options.split()])
    script("long_memory").main()
    with out.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["filler"], rows[0]["length"], rows[0]["smoothing"]) == ("random", "256", "0.1")
    assert out.with_suffix(".png").stat().st_size > 1000
    if task == "needle":
        with (tmp_path / "needle_kept.csv").open() as file:
            remains = list(csv.DictReader(file))
        assert [(row["before"], row["distance"]) for row in remains[:4]] == [
            ("0", "64"),
            ("0", "256"),
            ("25", "64"),
            ("25", "256"),
        ]
        assert float(remains[0]["layer1_kept"]) == 1
