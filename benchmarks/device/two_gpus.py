"""`mba pretrain` on two GPUs: data parallel at 1,024, sequence parallel at 2^20 and 2^23, killed and resumed, beside one GPU.

    python scripts/pretraining_data.py DATA .device/pretrain       # here; carry .device/pretrain
    python3 benchmarks/device/two_gpus.py --seconds 500            # on a machine with two GPUs, after env.sh

Every case trains the same steps on the same samples: once on two devices with SIGKILL in the middle and --resume, then on one
without an end. Rows of $OUT/two_gpus.csv: positions per second, and the largest difference of the losses between the two.
A case is not begun when the seconds are over. For a rehearsal: --device cpu --small.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

BEGAN = time.monotonic()
OUT, WORK = Path(os.environ.get("OUT", "runs/two-gpus")), Path(os.environ.get("WORK", "/tmp/two_gpus"))
FASTA = Path(".device/pretrain/fasta-human")
SMALL = ["model.d_model=16", "model.num_layers=2", "train.validation_tokens=65536"]


class Case(NamedTuple):
    length: int
    positions: int  # of a step
    parallel: int  # devices that share a sequence
    steps: int
    chunk: int | None = None


CASES = {
    "data-1k": Case(1 << 10, 1 << 18, 1, 160),
    "sequence-1m": Case(1 << 20, 1 << 20, 2, 24, 1 << 17),
    "sequence-8m": Case(1 << 23, 1 << 23, 2, 6, 1 << 17),
}
SMALLER = {
    "data-1k": Case(1 << 10, 1 << 12, 1, 12),
    "sequence-1m": Case(1 << 12, 1 << 12, 2, 8, 1 << 10),
    "sequence-8m": Case(1 << 13, 1 << 13, 2, 6, 1 << 10),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--seconds", type=float, default=500, help="no case begins after them")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--fasta", type=Path, default=FASTA)
    given = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    data = WORK / "chrx"
    data.mkdir(parents=True, exist_ok=True)
    for path in given.fasta.glob("hg19.chrX_*.fa.gz"):
        (data / path.name).unlink(missing_ok=True)
        (data / path.name).symlink_to(path.resolve())
    subprocess.run([sys.executable, "scripts/chrx_intervals.py", str(data)], check=True)
    for name in given.cases or CASES:
        case = (SMALLER if given.small else CASES)[name]
        found: dict[int, Path] = {}
        for devices in (2, 1):
            if time.monotonic() - BEGAN > given.seconds:
                sys.exit(f"two_gpus: no time for {name} on {devices}")
            found[devices] = train(name, case, devices, data, given)
        for devices, run in found.items():
            write(row(name, case, devices, run, found[1]))


def command(case: Case, devices: int, data: Path, run: Path, given: argparse.Namespace) -> list[str]:
    """`mba pretrain` of a case."""
    half = max(1, case.steps // 4)
    sets = [f"data.path={data}", "data.num_workers=2", f"train.length={case.length}", "train.length_warmup=[]"]
    sets += [f"train.tokens_per_step={case.positions}", f"train.steps={case.steps}", f"train.devices={devices}"]
    sets += [f"train.sequence_parallel={case.parallel if devices > 1 else 1}", "train.log_every=1", "train.lr=2e-3"]
    sets += [
        f"train.stream_chunk={case.chunk or 'null'}",
        f"train.checkpoint_every={half}",
        "train.validate_every=100000",
    ]
    sets += [
        "model.d_model=256",
        "model.num_layers=16",
        *(SMALL if given.small else ["train.validation_tokens=4194304"]),
    ]
    words = [word for text in sets for word in ("--set", text)]
    words += ["--out", str(run), "--device", given.device, "--quiet"]
    return [sys.executable, "-m", "mamba_bio_audio", "pretrain", "dna/chrx-len1m", *words]


def train(name: str, case: Case, devices: int, data: Path, given: argparse.Namespace) -> Path:
    """A case on so many devices; on two it is killed when half of the steps are logged, and resumed."""
    run, log = WORK / f"{name}-{devices}", OUT / f"{name}-{devices}.txt"
    call = command(case, devices, data, run, given)
    # Of a try before, whose steps would count.
    shutil.rmtree(run, ignore_errors=True)
    if devices > 1:
        with log.open("w") as file:
            process = subprocess.Popen(
                [*call, "--force"], stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True
            )
        while process.poll() is None and logged(run) < case.steps // 2:
            time.sleep(0.2)
        if process.poll() is not None:
            sys.exit(f"two_gpus: {name} ended before it was killed: {log.read_text()[-400:]}")
        # Every process of the group, so that no worker outlives it.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        print(f"[{time.monotonic() - BEGAN:.0f} s] {name}: killed after step {logged(run)}", flush=True)
    with log.open("a") as file:
        more = "--resume" if devices > 1 else "--force"
        code = subprocess.run([*call, more], stdout=file, stderr=file, stdin=subprocess.DEVNULL).returncode
    print(f"[{time.monotonic() - BEGAN:.0f} s] {name} on {devices}: code {code}, {logged(run)} steps", flush=True)
    if code:
        sys.exit(f"two_gpus: {log.read_text()[-800:]}")
    return run


def metrics(run: Path) -> list[dict[str, str]]:
    path = run / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def logged(run: Path) -> int:
    """Last step in the metrics."""
    rows = metrics(run)
    return int(rows[-1]["step"]) if rows else 0


def row(name: str, case: Case, devices: int, run: Path, alone: Path) -> dict[str, Any]:
    """What a run reached, and its largest difference from one GPU's losses, step by step."""
    manifest = json.loads((run / "manifest.json").read_text())
    own, one = ({step["step"]: step["train_nats"] for step in metrics(at) if step["train_nats"]} for at in (run, alone))
    if list(own) != [str(step) for step in range(1, case.steps + 1)]:
        sys.exit(f"two_gpus: {name}: steps are missing or double: {list(own)}")
    difference = max(abs(float(own[step]) - float(one[step])) for step in own)
    said = {key: manifest[key] for key in ("device", "torch", "triton", "commit", "started")}
    return {
        "case": name,
        "devices": devices,
        "sequence_parallel": case.parallel if devices > 1 else 1,
        "length": case.length,
        "steps": case.steps,
        "killed_and_resumed": devices > 1,
        "tokens_per_second": f"{manifest['result']['tokens_per_second']:.0f}",
        "last_train_nats": own[str(case.steps)],
        "largest_difference_nats": f"{difference:.2e}",
    } | said


def write(found: dict[str, Any]) -> None:
    path = OUT / "two_gpus.csv"
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(found))
        if new:
            writer.writeheader()
        writer.writerow(found)
    print(found, flush=True)


if __name__ == "__main__":
    main()
