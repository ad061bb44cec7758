"""Times of calls, ours and a peer's in turn, and their rows as CSV: for `mba bench` and the scripts in benchmarks/."""

from __future__ import annotations

import csv
import io
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mamba_bio_audio.files import write_text
from mamba_bio_audio.run.environment import environment
from mamba_bio_audio.run.peer import peer_version

Row = dict[str, Any]
PAIRS = 30
# One flushes the L2. The others keep the GPU busy (0.1 ms each) while the host launches the call that is timed.
FLUSHES = 8
OUT_OF_MEMORY = "out of memory"
_COPIED = {"cuda": 1 << 30, "cpu": 1 << 28}


class Timing(NamedTuple):
    """Milliseconds of ours and, where there is a peer, of both."""

    ours: list[float]
    peer: list[float] | None

    def ratio(self) -> tuple[float, float, float]:
        """Quartiles of the peer's time over ours within pairs; above 1, ours is faster."""
        assert self.peer is not None
        low, middle, high = statistics.quantiles([b / a for a, b in zip(self.ours, self.peer, strict=True)], n=4)
        return low, middle, high


def interleaved(
    ours: Callable[[], object],
    peer: Callable[[], object] | None,
    device: str,
    *,
    pairs: int = PAIRS,
    seconds: float = 3,
) -> Timing:
    """Times `pairs` pairs, fewer where they would take longer than `seconds` but at least three.

    On a GPU the calls are queued one behind the other, each after flushes of the L2, and waited for once at the end:
    what is measured is the GPU's time and not the host's for launching a short call, as by `triton.testing.do_bench`.
    """
    calls = [ours] if peer is None else [ours, peer]
    times = queued(calls, pairs, seconds) if device == "cuda" else _one_by_one(calls, pairs, seconds)
    return Timing(times[0], times[1] if peer is not None else None)


def _one_by_one(calls: list[Callable[[], object]], pairs: int, seconds: float) -> list[list[float]]:
    for call in calls:
        for _ in range(2):
            call()
    times: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    while len(times[0]) < pairs and (time.perf_counter() - start < seconds or len(times[0]) < 3):
        for call, found in zip(calls, times, strict=True):
            began = time.perf_counter()
            call()
            found.append(1e3 * (time.perf_counter() - began))
    return times


def queued(calls: list[Callable[[], object]], pairs: int, seconds: float) -> list[list[float]]:
    """Milliseconds of each call on a GPU, in turn, as `interleaved` times two."""
    scratch = torch.empty(2**26, dtype=torch.int32, device="cuda")

    def turn() -> list[tuple[torch.cuda.Event, torch.cuda.Event]]:
        marks = []
        for call in calls:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            for _ in range(FLUSHES):
                scratch.zero_()
            begin.record()
            call()
            end.record()
            marks.append((begin, end))
        return marks

    turn()
    torch.cuda.synchronize()
    start = time.perf_counter()
    turn()
    torch.cuda.synchronize()
    took = time.perf_counter() - start
    # Nothing is kept but events: what a call returns is free for the next one, which runs behind it on the same stream.
    queue = [turn() for _ in range(max(3, min(pairs, int(seconds / took))))]
    torch.cuda.synchronize()
    return [[begin.elapsed_time(end) for begin, end in marks] for marks in zip(*queue, strict=True)]


def copy_rate(device: str) -> float:
    """Bytes per second, read and written, of the fastest of some copies of a large tensor."""
    source = torch.zeros(_COPIED[device], dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    times = interleaved(lambda: target.copy_(source), None, device, pairs=8).ours
    return 2e3 * len(source) / min(times)


def by_the_clock(calls: Sequence[Callable[[], object]], *, rounds: int = 9, count: int = 20) -> list[list[float]]:
    """Microseconds of a call on a GPU as a user makes them: `count` behind one another, waited for once; in turn.

    The longer of what host and GPU take, therefore.
    """
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, found in zip(calls, times, strict=True):
            torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(count):
                call()
            torch.cuda.synchronize()
            found.append(1e6 * (time.perf_counter() - began) / count)
    return times


def host_times(calls: Sequence[Callable[[], object]], *, pairs: int = PAIRS) -> list[list[float]]:
    """Microseconds that the host takes for a call, in turn; a GPU has nothing else to do."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(pairs):
        for call, found in zip(calls, times, strict=True):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            began = time.perf_counter()
            call()
            found.append(1e6 * (time.perf_counter() - began))
    return times


def timing_row(device: str, what: str, mode: str, shape: str, dtype: str, timing: Timing, **more: Any) -> Row:
    """A row of `mba bench`: percentiles, the peer and the ratio within pairs, `more`, and where it was measured."""
    low, middle, high = _percentiles(timing.ours)
    row: Row = {"benchmark": what, "mode": mode, "shape": shape, "dtype": dtype, "pairs": len(timing.ours)}
    row |= {"ms_p20": f"{low:.4g}", "ms_p50": f"{middle:.4g}", "ms_p80": f"{high:.4g}"}
    row |= dict.fromkeys(("peer", "peer_ms_p50", "ratio", "ratio_q1", "ratio_q3"), "")
    if timing.peer is not None:
        q1, q2, q3 = timing.ratio()
        row |= {"peer": peer_version(), "peer_ms_p50": f"{_percentiles(timing.peer)[1]:.4g}"}
        row |= {"ratio": f"{q2:.3f}", "ratio_q1": f"{q1:.3f}", "ratio_q3": f"{q3:.3f}"}
    return row | more | environment(device)


def _percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    p = torch.quantile(torch.tensor(values, dtype=torch.float64), torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
    return float(p[0]), float(p[1]), float(p[2])


def beside(
    ours: Callable[[], object],
    make_peer: Callable[[], Callable[[], object]] | None,
    device: str,
    *,
    pairs: int = PAIRS,
    seconds: float = 3,
) -> tuple[Timing, Row]:
    """Times and peak GiB of a step and of a peer's.

    The peer is made after ours was measured, so that neither peak has the other's weights in it. A step that needs too
    much memory is not timed: its peak reads "out of memory", its time is NaN.
    """
    memory: Row = {"peak_gib": _gib(peak(ours, device)), "peer_peak_gib": ""}
    peer = None
    if make_peer is not None:
        held = torch.cuda.memory_allocated() if device == "cuda" else 0
        peer = make_peer()
        memory["peer_peak_gib"] = _gib(peak(peer, device, without=held))
        if memory["peer_peak_gib"] == OUT_OF_MEMORY:
            peer = None
    if memory["peak_gib"] == OUT_OF_MEMORY:
        return Timing([math.nan], None), memory
    return interleaved(ours, peer, device, pairs=pairs, seconds=seconds), memory


def peak(call: Callable[[], object], device: str, *, without: int = 0) -> int | None:
    """Peak bytes allocated in the second of two calls, less `without`; None out of memory, 0 on a CPU."""
    if device != "cuda":
        return 0
    torch.cuda.empty_cache()
    try:
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - without
    except torch.cuda.OutOfMemoryError:
        pass
    # Only here are the frames of the failed call gone, and what they held.
    torch.cuda.empty_cache()
    return None


def _gib(amount: int | None) -> str:
    return OUT_OF_MEMORY if amount is None else f"{amount / 2**30:.2f}"


def few_rounds(
    call: Callable[[], object], device: str, *, warm: bool = True, rounds: int = 3, seconds: float = math.inf
) -> tuple[float, float]:
    """Median seconds of a call that takes long, and its peak GiB (0 on a CPU).

    Args:
        call: what it needs is on the device, and nothing else is.
        warm: run it once before.
        rounds: number of timed calls, fewer once they took `seconds`.

    Raises:
        torch.OutOfMemoryError: memory ran out.
    """
    gpu = device == "cuda"
    if warm:
        call()
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    while len(times) < rounds and sum(times) < seconds:
        started = time.perf_counter()
        call()
        if gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2], torch.cuda.max_memory_allocated() / 2**30 if gpu else 0.0


def csv_text(rows: Sequence[Row]) -> str:
    """Rows as CSV, with a column for every key of any row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_rows(out: Path, rows: Sequence[Row]) -> None:
    """Write the CSV file `out`, which replaces an earlier one as a whole."""
    write_text(out, csv_text(rows))


def provenance(device: str, *more: str) -> Row:
    """What a row of a script says of machine and versions: the device, torch, commit and start, and `more` keys."""
    known = environment(device)
    return {key: known[key] for key in ("device", "torch", *more, "commit", "started")}


def append_row(out: Path, row: Row) -> None:
    """Add a row to the CSV file `out`, which gets its columns from the first one."""
    new = not out.exists()
    with out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
