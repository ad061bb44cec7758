"""Times of calls in turn, peak memory, rows."""

import math
import sys
import time
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import torch

from mamba_bio_audio.run import timing as measured


def test_interleaved_takes_turns():
    seen = []
    timing = measured.interleaved(lambda: seen.append("ours"), lambda: seen.append("peer"), "cpu", pairs=4)
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
    timing = measured.interleaved(ours, peer, "cuda", pairs=5)
    pair = ["event", "ours", "event", "event", "peer", "event"]
    # A warm-up, an estimate, and then all pairs without waiting in between.
    assert log == [*pair, "wait", *pair, "wait", *pair * 5, "wait"]
    assert timing == measured.Timing([2.0] * 5, [2.0] * 5)

    # A pair of a second each: three, the least, instead of 30 in two seconds.
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert len(measured.interleaved(ours, None, "cuda", seconds=2).ours) == 3
    assert len(measured.interleaved(ours, None, "cuda", seconds=7).ours) == 7


def test_beside_makes_the_peer_second_and_leaves_out_who_needs_too_much_memory(monkeypatch):
    made = []

    def make_peer():
        made.append("peer")
        return lambda: made.append("call")

    def none_in_memory(call, device, without=0):
        return None if made else 2**30

    timing, memory = measured.beside(lambda: None, make_peer, "cpu", pairs=3)
    assert made == ["peer", *["call"] * 5]
    assert len(timing.peer) == 3
    assert memory == {"peak_gib": "0.00", "peer_peak_gib": "0.00"}

    made.clear()
    monkeypatch.setattr(measured, "peak", none_in_memory)
    timing, memory = measured.beside(lambda: None, make_peer, "cpu", pairs=3)
    assert made == ["peer"]
    assert timing.peer is None
    assert memory == {"peak_gib": "1.00", "peer_peak_gib": "out of memory"}
    timing, memory = measured.beside(lambda: None, None, "cpu", pairs=3)
    assert math.isnan(timing.ours[0])
    assert memory == {"peak_gib": "out of memory", "peer_peak_gib": ""}


def test_a_row_beside_a_peer(monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", SimpleNamespace(__version__="2.3"))
    row = measured.timing_row(
        "cpu", "scan", "forward", "(1, 2, 3)", "float32", measured.Timing([1, 2, 3.0], [3, 4, 12.0])
    )
    assert (row["peer"], row["peer_ms_p50"], row["ratio"]) == ("mamba_ssm 2.3", "4", "3.000")


def test_few_rounds_stops_when_it_took_long(monkeypatch):
    calls = []
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert measured.few_rounds(lambda: calls.append(1), "cpu") == (1, 0.0)
    assert len(calls) == 4
    calls.clear()
    measured.few_rounds(lambda: calls.append(1), "cpu", warm=False, seconds=2)
    assert len(calls) == 2


def test_rows_as_csv(tmp_path):
    rows = [{"a": 1}, {"a": 2, "b": "x,y"}]
    measured.write_rows(tmp_path / "t.csv", rows)
    assert (tmp_path / "t.csv").read_text() == measured.csv_text(rows) == 'a,b\n1,\n2,"x,y"\n'
    for row in rows:
        measured.append_row(tmp_path / "grown.csv", {"b": "", **row})
    assert (tmp_path / "grown.csv").read_text() == 'b,a\n,1\n"x,y",2\n'
    assert list(measured.provenance("cpu", "triton")) == ["device", "torch", "triton", "commit", "started"]
