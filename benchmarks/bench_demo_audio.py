"""`mba demo --audio` at several seeds: bits beside the tables, how much of its tune is heard, seconds; rows go to a CSV.

    python benchmarks/bench_demo_audio.py --seed 0 --seed 1 ... --out FILE.csv

Seconds of the processor count both threads where there are two (OMP_NUM_THREADS); those of the clock depend on what else runs.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from mamba_bio_audio.run.environment import environment
from mamba_bio_audio.run.timing import append_row

FIELDS = (
    *("seed", "bits", "order_2_bits", "lpc_32_bits", "notes", "notes_heard", "share", "shuffled"),
    *("cpu_s", "wall_s", "threads", "set", "torch", "platform", "commit", "started"),
)


def demo(seed: int, overrides: list[str]) -> dict[str, Any]:
    """One demo in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        sets = [part for key in overrides for part in ("--set", key)]
        command = [
            "demo",
            "--audio",
            "--seed",
            str(seed),
            "--out",
            f"{folder}/demo",
            "--device",
            "cpu",
            "--quiet",
            "--json",
        ]
        start = time.perf_counter()
        with (
            open(f"{folder}/json", "w+", encoding="utf-8") as told,
            open(f"{folder}/errors", "w", encoding="utf-8") as said,
        ):
            running = subprocess.Popen(
                [sys.executable, "-m", "mamba_bio_audio", *command, *sets], stdout=told, stderr=said
            )
            _, status, used = os.wait4(running.pid, 0)
            wall = time.perf_counter() - start
            if status:
                raise SystemExit(Path(f"{folder}/errors").read_text(encoding="utf-8"))
            told.seek(0)
            result = json.load(told)
    return row_of(seed, result, used) | {"wall_s": round(wall, 1), "set": " ".join(overrides)}


def row_of(seed: int, result: dict[str, Any], used: resource.struct_rusage) -> dict[str, Any]:
    """What is kept of a demo's result."""
    evaluation, melody = result["evaluation"], result["melody"]
    return {
        "seed": seed,
        "bits": round(evaluation["model"]["bits"], 4),
        "order_2_bits": round(evaluation["yardsticks"]["order 2"], 4),
        "lpc_32_bits": round(evaluation["yardsticks"]["LPC-32"], 4),
        "notes": len(melody["learnt"]),
        "notes_heard": len(melody["heard"]),
        "share": round(melody["share"], 4),
        "shuffled": round(melody["shuffled"], 4),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
    }


def main(
    seed: Annotated[list[int], typer.Option(help="Of training and sampling; repeat.")],
    out: Annotated[Path, typer.Option(help="CSV, appended to.")],
    overrides: Annotated[list[str], typer.Option("--set")] = [],  # noqa: B006
    jobs: Annotated[int, typer.Option(help="Demos at a time.")] = 1,
) -> None:
    about = environment("cpu") | {"threads": os.environ.get("OMP_NUM_THREADS", os.cpu_count())}
    with ThreadPoolExecutor(jobs) as pool:
        for row in pool.map(lambda one: demo(one, overrides), seed):
            append_row(out, {name: (about | row).get(name, "") for name in FIELDS})
            print(row, flush=True)


if __name__ == "__main__":
    typer.run(main)
