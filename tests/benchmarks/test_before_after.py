"""The comparison of two states of the package, on a CPU at tiny sizes with the present state as both."""

import csv
import itertools
import math
import sys

import pytest
import torch

import mamba_bio_audio
import mamba_bio_audio.models.build
import mamba_bio_audio.ops


@pytest.fixture
def run(script, monkeypatch, tmp_path):
    """`run(*arguments)`: the rows of a run; calls below `replayed` milliseconds are timed in all ways."""
    bench = script("before_after")
    monkeypatch.setattr(bench, "DEVICE", "cpu")
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "packages", lambda: (mamba_bio_audio, mamba_bio_audio))
    monkeypatch.setattr(bench, "recorded", lambda call: call)
    monkeypatch.setattr(bench, "SCANS", {"A": ("real", (1, 4, 8)), "B": ("complex lti", (1, 4, 8))})
    monkeypatch.setattr(bench, "CONVOLUTIONS", ((1, 4, 8),))
    monkeypatch.setattr(bench, "STEPS", ((1, 16, 1, 4),))
    (tmp_path / ".device" / "before").mkdir(parents=True)
    (tmp_path / ".device" / "before" / "COMMIT").write_text("1234567\n")

    def run(*arguments, replayed):
        monkeypatch.setattr(bench, "REPLAYED", replayed)
        options = ["--out", str(tmp_path), "--seconds", "0.001", *arguments]
        monkeypatch.setattr(sys, "argv", ["before_after.py", *options])
        bench.main()
        with (tmp_path / "before_after.csv").open() as file:
            return list(csv.DictReader(file))

    return run


def extra(row):
    """What is there of the columns of short calls."""
    return {key for key, value in row.items() if key.startswith(("replay_", "host_")) and value}


def test_rows(run):
    rows = run(replayed=math.inf)
    modes = ["inference", "forward", "backward"]
    assert [row["mode"] for row in rows] == [*modes, *modes, *modes, "step"]
    assert {row["before"] for row in rows} == {"1234567"}
    assert [row["bits"] for row in rows] == ["", "", "equal"] * 3 + ["equal"]
    assert all(len(extra(row)) == 8 for row in rows)


def test_only_some_rows_and_their_modes(run):
    rows = run("--only", "scan B.*(forward|backward)|step 1x16", replayed=0)
    scan = "scan B complex lti (1, 4, 8)"
    assert [(row["row"], row["mode"]) for row in rows] == [
        (scan, "forward"), (scan, "backward"), ("step 1x16 (1, 4)", "step")
    ]  # fmt: skip
    assert not any(map(extra, rows))


def test_what_differs_and_what_differs_by_itself(script, monkeypatch):
    bench = script("before_after")
    monkeypatch.setattr(bench, "DEVICE", "cpu")
    monkeypatch.setattr(bench, "REPLAYED", 0)
    runs = itertools.count()

    def call(value):
        return [torch.tensor(value) for value in (1, value, next(runs))]

    pair = bench.Pair("row", "step", (lambda: call(2), lambda: call(3)), ["a", "b", "c"])
    assert bench.row_of(pair, 0.001, "1234567")["bits"] == "differ: b c (two runs as well)"
