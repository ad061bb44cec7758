"""A training killed with -9 at moments of chance and resumed, against the same training left alone.

    python scripts/kill_and_resume.py --data ../shared/data/dna/human --out /tmp/killed

Exits with 1 unless the last checkpoint, the best weights and the metrics file are the same to the last bit.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

SETTINGS = (
    "train.steps=120",
    "train.tokens_per_step=4096",
    "train.validate_every=30",
    "train.validation_tokens=32768",
    "train.checkpoint_every=5",
    "train.log_every=1",
)


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    """`mba pretrain` in a process group of its own, so that its workers die with it."""
    code = "from mamba_bio_audio.cli.main import run; run()"
    return subprocess.Popen([sys.executable, "-c", code, "pretrain", *arguments], start_new_session=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="dna/tiny")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    common = [options.recipe, "--device", options.device, "--quiet"]
    for text in (f"data.path={options.data}", *SETTINGS, *options.set):
        common += ["--set", text]

    whole, killed = options.out / "whole", options.out / "killed"
    for run in (whole, killed):
        shutil.rmtree(run, ignore_errors=True)
    begin = time.monotonic()
    if start([*common, "--out", str(whole)]).wait():
        sys.exit("the uninterrupted run failed")
    seconds = time.monotonic() - begin
    print(f"uninterrupted: {seconds:.0f} s", flush=True)

    chance = random.Random(options.seed)
    kills = 0
    while True:
        resume = ["--resume"] if killed.exists() and any(killed.iterdir()) else []
        process = start([*common, "--out", str(killed), *resume])
        if kills == options.kills:
            if process.wait():
                sys.exit("the resumed run failed")
            break
        wait = chance.uniform(0.1, 0.6) * seconds
        try:
            process.wait(wait)
            sys.exit(f"ended by itself with code {process.returncode} before kill {kills + 1}; give more steps")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        kills += 1
        metrics = killed / "metrics.csv"
        row = metrics.read_text().splitlines()[-1].split(",")[0] if metrics.exists() else "none"
        print(f"kill {kills} after {wait:.1f} s, last row: step {row}", flush=True)

    last = [(run / "checkpoints" / "last.safetensors").read_bytes() for run in (whole, killed)]
    checks = {
        "metrics.csv": (whole / "metrics.csv").read_bytes() == (killed / "metrics.csv").read_bytes(),
        "best weights": (whole / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes(),
        "last checkpoint (weights, optimiser, all else)": last[0] == last[1],
        "leftovers": not [*killed.glob("**/.*.tmp")],
    }
    for name, passed in checks.items():
        print(f"{name}: {'same' if passed else 'DIFFERENT'}")
    sys.exit(not all(checks.values()))


if __name__ == "__main__":
    main()
