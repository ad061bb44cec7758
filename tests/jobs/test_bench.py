"""The benchmark command: pairs, checks before timing, provenance."""

import csv
import math
import sys
import time
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.jobs import bench


def test_interleaved_takes_turns():
    seen = []
    timing = bench.interleaved(lambda: seen.append("ours"), lambda: seen.append("peer"), "cpu", pairs=4)
    assert seen[4:] == ["ours", "peer"] * 4
    assert len(timing.ours) == len(timing.peer) == 4


class FakeEvent:
    """A CUDA event that notes when it is recorded; the clock is the number of notes."""

    log: ClassVar[list[str]] = []

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = len(self.log)
        self.log.append("event")

    def elapsed_time(self, end):
        return float(end.at - self.at)


def test_interleaved_on_a_gpu_waits_once(monkeypatch):
    log = FakeEvent.log
    log.clear()
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, dtype, device: empty(1, dtype=dtype))
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    ours, peer = (partial(log.append, name) for name in ("ours", "peer"))
    timing = bench.interleaved(ours, peer, "cuda", pairs=5)
    pair = ["event", "ours", "event", "event", "peer", "event"]
    # A warm-up, an estimate, and then all pairs without waiting in between.
    assert log == [*pair, "wait", *pair, "wait", *pair * 5, "wait"]
    assert timing == bench.Timing([2.0] * 5, [2.0] * 5)

    # A pair of a second each: three, the least, instead of 30 in two seconds.
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert len(bench.interleaved(ours, None, "cuda", seconds=2).ours) == 3
    assert len(bench.interleaved(ours, None, "cuda", seconds=7).ours) == 7


def test_kernels_and_provenance(tmp_path, monkeypatch):
    monkeypatch.setitem(bench.KERNEL_SHAPES, "cpu", [(1, 70, 32)])
    rows = bench.bench("kernels", tmp_path / "new" / "k.csv", device="cpu", seconds=0.01)
    with (tmp_path / "new" / "k.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [(r["benchmark"], r["mode"]) for r in written] == [
        ("selective_scan", "forward"),
        ("selective_scan", "backward"),
        ("causal_conv1d", "forward"),
        ("causal_conv1d", "backward"),
    ]
    assert len(rows) == 4
    for row in written:
        assert row["torch"] == torch.__version__
        assert "triton" in row
        assert row["started"]
        assert float(row["ms_p50"]) > 0
        assert row["ratio"] == ""  # there is no peer on a CPU


def test_a_wrong_operation_is_not_timed(monkeypatch):
    monkeypatch.setitem(bench.KERNEL_SHAPES, "cpu", [(1, 70, 32)])
    right = bench.ops.selective_scan
    monkeypatch.setattr(bench.ops, "selective_scan", lambda *a, **k: right(*a, **k) * 1.01)
    with pytest.raises(RuntimeError, match="selective_scan: wrong by 1"):
        next(bench.kernels("cpu"))


def test_train_and_sample(monkeypatch):
    (row,) = bench.train("cpu", seconds=0.01, shapes=[(1, 8, 2, 16, 8)])
    assert row["shape"] == "1x8, (2, 16), streamed by 8"
    assert math.isclose(float(row["mtokens_per_s"]), 32 / float(row["ms_p50"]) / 1e3, rel_tol=0.01)
    monkeypatch.setitem(bench.SAMPLE_SHAPES, "cpu", [(1, 8, 2)])
    (row,) = bench.sample("cpu", length=4, seconds=0.01)
    assert float(row["tokens_per_s"]) > 0


def test_beside_makes_the_peer_second_and_leaves_out_who_needs_too_much_memory(monkeypatch):
    made = []

    def make_peer():
        made.append("peer")
        return lambda: made.append("call")

    def none_in_memory(call, device, without=0):
        return None if made else 2**30

    timing, memory = bench.beside(lambda: None, make_peer, "cpu", pairs=3)
    assert made == ["peer", *["call"] * 5]
    assert len(timing.peer) == 3
    assert memory == {"peak_gib": "0.00", "peer_peak_gib": "0.00"}

    made.clear()
    monkeypatch.setattr(bench, "peak", none_in_memory)
    timing, memory = bench.beside(lambda: None, make_peer, "cpu", pairs=3)
    assert made == ["peer"]
    assert timing.peer is None
    assert memory == {"peak_gib": "1.00", "peer_peak_gib": "out of memory"}
    timing, memory = bench.beside(lambda: None, None, "cpu", pairs=3)
    assert math.isnan(timing.ours[0])
    assert memory == {"peak_gib": "out of memory", "peer_peak_gib": ""}


def test_a_row_beside_a_peer(monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", SimpleNamespace(__version__="2.3"))
    row = bench._row("cpu", "scan", "forward", "(1, 2, 3)", "float32", bench.Timing([1, 2, 3.0], [3, 4, 12.0]))
    assert (row["peer"], row["peer_ms_p50"], row["ratio"]) == ("mamba_ssm 2.3", "4", "3.000")


def test_what_it_refuses(tmp_path):
    with pytest.raises(InputError, match="kernels, train, sample"):
        bench.bench("nothing", tmp_path / "x.csv", device="cpu")
    with pytest.raises(InputError, match="is a folder"):
        bench.bench("train", tmp_path, device="cpu")
