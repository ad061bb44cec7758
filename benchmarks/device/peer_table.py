"""Everything that stands beside mamba_ssm, in one process on one GPU: rows of `mba bench` in the order of their worth.

    python benchmarks/device/peer_table.py --out FOLDER [--seconds 180] [--only REGEX] [--compilers 12]
    python benchmarks/device/peer_table.py --show FOLDER/peer_table.csv [--markdown]

Rows are written as they are measured (`peer_table.csv`, and as text `peer_table.txt`); none is begun after `--seconds`, and the
text names those. Before, processes of their own run every call once, so that kernels are compiled side by side; that time is
not part of `--seconds`. `ratio` is the median of the peer's time over ours within pairs, each after flushes of the L2; what
the columns are says `mba bench` (`run/kernel_speed.py`, `run/train_speed.py`, `run/sample_speed.py`). A row that fails says
so, and the next follows.
"""

from __future__ import annotations

import argparse
import csv
import gc
import multiprocessing
import re
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mamba_bio_audio.run import timing
from mamba_bio_audio.run.environment import environment
from mamba_bio_audio.run.peer import has_peer
from mamba_bio_audio.run.speed import BENCHMARKS

Row = dict[str, Any]
# Processes that compile the variants of Mamba-2's kernels, of which each tunes its share.
SHARES = 6


class Item(NamedTuple):
    """A case of `mba bench`, seconds for each of its rows, and options."""

    what: str
    case: str
    seconds: float
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        options = " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in self.options)
        return f"{self.what} {self.case} {options}".strip()


def kernels(seconds: float, *cases: str) -> list[Item]:
    return [Item("kernels", case, seconds) for case in cases]


def train(seconds: float, *cases: str, **options: Any) -> list[Item]:
    return [Item("train", case, seconds, tuple(options.items())) for case in cases]


ITEMS = [
    *train(1.5, "16x256:128,1024", "16x256:1,131072", "12x128:256,1024"),
    *kernels(0.5, "scan:8,8192,2048", "scan:32,1024,512", "scan-complex:16,16384,128"),
    *kernels(0.3, "conv:32,1024,512", "scan:2,16384,256", "scan:1,2048,1024"),
    *train(1.5, "24x512:64,1024", "24x768:8,2048"),
    *train(1.5, "audio/sc09@small:16,16000", "audio/youtubemix+mamba:64,8192", "24x768:8,2048", graph=True),
    *kernels(0.5, "scan:1,1048576,512"),
    *kernels(0.3, "mixer:2,2048,256", "mixer:8,2048,256", "norm:128,1024,256", "norm:64,1024,512"),
    *kernels(0.3, "conv:8,8192,2048", "conv:1,1048576,512", "scan:64,8192,128", "scan-complex:8,8192,2048"),
    *kernels(0.3, "scan-slow:1,1048576,512", "scan-slow:8,8192,2048", "scan-lti:64,8192,128", "scan-complex-lti:64,8192,128"),
    *train(1.0, "16x256:1,1048576", memory=34.0),
    *train(1.0, "16x256:1,1048576"),
    *train(0.1, "16x256:1,1048576,131072", "16x256:1,1048576,32768", graph=True),
    *train(1.0, "16x256:128,1024", "16x256:1,131072", peer="mamba2"),
    *train(1.0, "16x256+mamba2:128,1024", "16x256+mamba2:1,131072"),
    *train(1.0, "12x128:16,1024"),
    *train(1.0, "12x128:16,1024", "16x256:128,1024", graph=True),
    *train(0.1, "16x256:1,1048576,131072", "16x256:1,1048576,32768"),
    *train(1.0, "12x128:1,1048576"),
    *[Item("sample", case, 0.5) for case in ("12x128:1,bf16", "12x128:64,bf16", "16x256:64,bf16", "24x768:64,bf16")],
]  # fmt: skip
COLUMNS = (
    "benchmark", "mode", "shape", "recorded", "ms_p50", "peer_ms_p50", "ratio", "ratio_q1", "ratio_q3", "limit_ms",
    "special_limit_ms", "call_us", "peer_call_us", "call_ratio", "host_us", "peer_host_us",
    "mtokens_per_s", "kept",
    "peak_gib", "peer_peak_gib", "streaming_limit", "us_per_step", "peer_us_per_step", "peer_layer", "failed",
)  # fmt: skip


def rows_of(item: Item, device: str, *, seconds: float | None = None) -> Iterator[Row]:
    """The item's rows."""
    benchmark = BENCHMARKS[item.what]
    given = dict(item.options) | {"cases": [benchmark.case(item.case)]}
    return benchmark.rows(device, seconds=item.seconds if seconds is None else seconds, **given)


def longest(item: Item) -> bool:
    """Whether another item has all of its kernels, and takes less memory."""
    return item.what == "train" and "1048576" in item.case


def compile_all(items: list[Item], device: str, processes: int, seconds: float) -> None:
    """Runs every item once, in several processes; those that take longer than `seconds` are left alone."""
    jobs = [(item, 0, 1) for item in items if not longest(item)]
    for job in [job for job in jobs if dict(job[0].options).get("peer") == "mamba2"][:1]:
        jobs = [(job[0], share, SHARES) for share in range(SHARES)] + [other for other in jobs if other[0] != job[0]]
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    futures = [pool.submit(run_once, *job, device) for job in jobs]
    _, late = wait(futures, timeout=seconds)
    own = list((pool._processes or {}).values())
    pool.shutdown(wait=not late, cancel_futures=True)
    for process in own if late else ():
        process.kill()
        process.join()


def run_once(item: Item, share: int, shares: int, device: str) -> None:
    """Runs an item's calls for as short as they can be; of kernels that are tuned, a share of the variants."""
    try:
        if shares > 1:
            tune_a_share(share, shares)
        for _ in rows_of(item, device, seconds=0.0):
            pass
    except Exception as error:  # its turn will tell
        print(f"compiling {item}: {type(error).__name__}: {str(error)[:200]}", flush=True)
    gc.collect()
    if device == "cuda":  # for the other processes
        torch.cuda.empty_cache()


def tune_a_share(share: int, shares: int) -> None:
    """Of every kernel of mamba_ssm's that is tuned, leaves every so many-th variant."""
    import mamba_ssm.models.mixer_seq_simple  # type: ignore[import-not-found]  # noqa: F401
    from triton.runtime.autotuner import Autotuner

    for tuned in [thing for thing in gc.get_objects() if isinstance(thing, Autotuner)]:
        tuned.configs = tuned.configs[share::shares] or tuned.configs[:1]


def measure(items: list[Item], device: str, out: Path, seconds: float) -> list[Row]:
    """Rows of all items that begin in time."""
    rows: list[Row] = []
    late: list[str] = []
    began = time.perf_counter()
    for item in items:
        if time.perf_counter() - began > seconds:
            late.append(str(item))
            continue
        before = time.perf_counter()
        try:
            for row in rows_of(item, device):
                rows.append({"item": str(item), **row})
                print(line(rows[-1]), flush=True)
                timing.write_rows(out / "peer_table.csv", rows)
        except Exception as error:
            traceback.print_exc()
            what, why = f"{item.what}", f"{type(error).__name__}: {str(error)[:200]}"
            rows.append({"item": str(item), "benchmark": what, "mode": "", "shape": item.case, "failed": why})
            timing.write_rows(out / "peer_table.csv", rows)
        if device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
        print(f"  {item}: {time.perf_counter() - before:.1f} s", flush=True)
    text = table(rows, device)
    if late:
        text += f"\nNot begun within {seconds:.0f} s: {'; '.join(late)}\n"
    (out / "peer_table.txt").write_text(text)
    return rows


def line(row: Row) -> str:
    """A row in a line."""
    return "  ".join(f"{name} {row[name]}" for name in COLUMNS if row.get(name) not in ("", None, "0.00"))


def table(rows: list[Row], device: str) -> str:
    """All rows in columns, and below them what they were measured with."""
    names = [name for name in COLUMNS if any(row.get(name) not in ("", None) for row in rows)]
    cells = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(found, widths, strict=True)).rstrip() for found in cells
    ]
    known = [row for row in rows if row.get("device")] or [environment(device)]
    where = {
        key: known[0].get(key) for key in ("device", "torch", "triton", "peer", "copy_tb_per_s", "commit", "started")
    }
    where["peer"] = next((row["peer"] for row in rows if row.get("peer")), "none")
    return "\n".join([*lines, "", ", ".join(f"{key} {value}" for key, value in where.items() if value), ""])


def markdown(rows: list[Row]) -> str:
    """The tables of `docs/benchmarks.md`; rows of another commit than the first one's have a *."""
    done = [dict(row) for row in rows if row.get("ms_p50") not in ("", None)]
    for row in done:  # of another run
        if row["commit"] != done[0]["commit"]:
            row["shape"] += " *"
    operations = [row for row in done if row["benchmark"] not in ("train", "sample")]
    short = [row for row in operations if row.get("call_us")]
    steps = [row for row in done if row["benchmark"] == "train"]
    return "\n".join(
        [
            *_table(
                "operation | (B, L, D) | mode | ms | bytes, ms | special functions, ms | mamba_ssm, ms | ratio (quartiles)",
                [
                    (r["benchmark"], _bare(r), r["mode"], _short(r["ms_p50"]), r["limit_ms"],
                     r["special_limit_ms"], _short(r["peer_ms_p50"]), _ratio(r))
                    for r in operations
                ],
            ),
            "",
            *_table(
                "operation | (B, L, D) | mode | us a call | mamba_ssm | ratio | us of the host | mamba_ssm",
                [
                    (r["benchmark"], _bare(r), r["mode"], r["call_us"], r["peer_call_us"], r["call_ratio"],
                     r["host_us"], r["peer_host_us"])
                    for r in short
                ],
            ),
            "",
            *_table(
                "model | recorded | ms | M tokens/s | GiB | mamba_ssm, ms | ratio (quartiles) | GiB",
                [
                    (_step(r),
                     "yes" if str(r["recorded"]) == "True" else "no", _short(r["ms_p50"]), r["mtokens_per_s"],
                     r["peak_gib"], _short(r["peer_ms_p50"]), _ratio(r), r["peer_peak_gib"])
                    for r in steps
                ],
            ),
            "",
        ]
    )  # fmt: skip


def _short(value: str) -> str:
    """Three digits, or all of a number's whole part."""
    if not value:
        return ""
    return f"{float(value):,.0f}" if float(value) >= 1000 else f"{float(value):.3g}"


def _bare(row: Row) -> str:
    """Its shape without brackets."""
    return str(row["shape"]).replace("(", "").replace(")", "")


def _step(row: Row) -> str:
    """Model and shape, and what is special."""
    memory = f", within {float(row['memory_gib']):g} GiB" if row.get("memory_gib") else ""
    return str(row["shape"]) + ", beside Mamba-2" * (row["peer_layer"] == "mamba2") + memory


def _ratio(row: Row) -> str:
    return (
        f"{float(row['ratio']):.2f} ({float(row['ratio_q1']):.2f} to {float(row['ratio_q3']):.2f})"
        if row["ratio"]
        else ""
    )


def _table(head: str, rows: list[tuple[str, ...]]) -> list[str]:
    names = head.split(" | ")
    return [f"| {' | '.join(cells)} |".replace("  ", " ") for cells in (names, ["---"] * len(names), *rows)]


def main() -> None:
    """Compile, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of peer_table.csv and peer_table.txt")
    parser.add_argument("--show", type=Path, metavar="CSV", help="only print this file as a table")
    parser.add_argument("--markdown", action="store_true", help="with --show: as the tables of docs/benchmarks.md")
    parser.add_argument("--only", default="", metavar="REGEX", help='of items as "kernels scan:8,8192,2048"')
    parser.add_argument("--seconds", type=float, default=180, help="begin no item after this")
    parser.add_argument("--compilers", type=int, default=12, help="processes that compile; 0 for none")
    parser.add_argument("--compile-seconds", type=float, default=75, help="compile no longer than this")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--list", action="store_true", help="print the items and do nothing")
    args = parser.parse_args()
    items = [item for item in ITEMS if re.search(args.only, str(item))]
    if args.show:
        with args.show.open(newline="") as file:
            rows = list(csv.DictReader(file))
        print(markdown(rows) if args.markdown else table(rows, "cpu"), end="")
    elif args.list:
        print(*items, sep="\n")
    elif args.out is None:
        parser.error("give --out FOLDER or --show CSV")
    else:
        args.out.mkdir(parents=True, exist_ok=True)
        marks = [time.perf_counter()]
        if args.compilers:
            compile_all(items, args.device, args.compilers, args.compile_seconds)
        marks.append(time.perf_counter())
        rows = measure(items, args.device, args.out, args.seconds)
        marks.append(time.perf_counter())
        print(table(rows, args.device))
        compiled, measured = (b - a for a, b in pairwise(marks))
        print(
            f"peer {'there' if has_peer(args.device) else 'missing'}; compiled {compiled:.0f} s, measured {measured:.0f} s"
        )


if __name__ == "__main__":
    main()
