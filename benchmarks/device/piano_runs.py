"""Variants of audio/piano side by side on a GPU machine, each for the same time: training, evaluation, clips, an archive a run.

    python3 benchmarks/device/piano_runs.py small@0 grow@0 wide@1 real@1 --data .device/recipes --seconds 500

NAME@GPU says where a variant trains. A trial of all of them together shows how many steps the rest of `--seconds` holds; then
each trains for so many, is evaluated on both held-out splits in windows of `--length` samples, and generates `--clips` clips.
OUT then has NAME.tar with config, curve, weights, evaluations and clips, and a line a run in piano_runs.txt.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

MBA = [sys.executable, "-c", "from mamba_bio_audio.cli.main import run; run()"]
COMMON = [
    "data.start=token", "data.windows=random", "data.augment_polarity=true", "data.num_workers=4", "train.ema=0.999",
    "train.length_warmup=[]", "train.listen=0", "train.warmup=0.05", "train.clip=2.0", "train.lr=8e-3",
    "train.validation_tokens=2097152",
]  # fmt: skip
# Settings of each variant, and the shares of its steps at shorter lengths.
VARIANTS: dict[str, tuple[str, list[str], dict[int, float]]] = {
    "small": ("piano", ["train.length=4096", "train.tokens_per_step=32768"], {}),
    "grow": ("piano", ["train.length=16384", "train.tokens_per_step=65536"], {1024: 0.3, 4096: 0.4}),
    "wide": ("piano", ["train.length=4096", "train.tokens_per_step=32768", "model.d_model=96"], {}),
    "hot": ("piano", ["train.length=4096", "train.tokens_per_step=32768", "train.lr=1.6e-2"], {}),
    "real": ("piano_real", ["train.length=4096", "train.tokens_per_step=32768", "data.augment_gain_db=6"], {}),
}
LAST = re.compile(r"step ([\d,]+)/")


class Run:
    def __init__(self, name: str, data: Path, out: Path, device: str, sets: list[str]) -> None:
        self.name, _, gpu = name.partition("@")
        self.folder, self.sets, self.stages = VARIANTS[self.name]
        self.path, self.log = Path("/tmp/piano_runs") / self.name, out / f"{self.name}.txt"
        self.sets = [f"data.path={data / self.folder}", *COMMON, *self.sets, *sets]
        self.device = ["--device", device]
        self.env = os.environ | {"CUDA_VISIBLE_DEVICES": gpu or "0", "OMP_NUM_THREADS": "1"}
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def call(self, arguments: list[str], enough: Callable[[], bool] = lambda: False) -> str:
        """What a command prints on standard output; SIGTERM, at which a training saves and ends, when there is enough."""
        with self.log.open("a") as log, tempfile.TemporaryFile("w+") as printed:
            process = subprocess.Popen(MBA + arguments, env=self.env, stdout=printed, stderr=log)
            while process.poll() is None:
                time.sleep(0.5)
                if enough():
                    process.terminate()
                    break
            code = process.wait()
            printed.seek(0)
            found = printed.read()
            log.write(f"{found}\n[{arguments[0]}: code {code}]\n")
        return found

    def pretrain(self, where: Path, sets: list[str], enough: Callable[[], bool]) -> None:
        words = [word for text in [*self.sets, *sets] for word in ("--set", text)]
        self.call(["pretrain", "audio/piano", *words, *self.device, "--out", str(where), "--force"], enough)

    def steps_a_second(self, trial: float, ready: set[str], everyone: int) -> float:
        """From the last lines of a trial, one every ten seconds, while all the others run too."""
        started = time.monotonic()

        def lines() -> list[int]:
            return (
                [int(step.replace(",", "")) for step in LAST.findall(self.log.read_text())] if self.log.exists() else []
            )

        def enough() -> bool:
            if len(lines()) >= 3:
                ready.add(self.name)
            return len(ready) == everyone or time.monotonic() - started > trial

        sets = ["train.steps=9999999", "train.validate_every=9999999"]
        self.pretrain(self.path.with_name(f"{self.name}-trial"), sets, enough)
        found = lines()
        if len(found) < 2:
            raise SystemExit(f"{self.name}: the trial was too short: {found}")
        return (found[-1] - found[-2]) / 10

    def train(self, seconds: float, trial: float, ready: set[str], everyone: int) -> None:
        started = time.monotonic()
        pace = self.steps_a_second(trial, ready, everyone)
        # Starting takes a while, and so do validations.
        left = seconds - (time.monotonic() - started)
        steps = int(0.9 * (left - 25) * pace)
        every = -(-steps // 6)
        sets = [f"train.steps={steps}", f"train.validate_every={every}", f"train.checkpoint_every={every}"]
        if self.stages:
            parts = [f"{{length: {length}, steps: {int(share * steps)}}}" for length, share in self.stages.items()]
            sets.append(f"train.length_warmup=[{', '.join(parts)}]")
        self.pretrain(self.path, sets, lambda: time.monotonic() - started > seconds)

    def judge(self, length: int, clips: int, settings: list[str]) -> dict[str, float]:
        """Evaluations and clips of a trained run."""
        found = {}
        for split in ("valid", "test"):
            text = self.call(
                [
                    "evaluate",
                    str(self.path),
                    "--split",
                    split,
                    "--length",
                    str(length),
                    *self.device,
                    "--no-baselines",
                    "--json",
                ]
            )
            (self.path / f"evaluate-{split}-{length}.json").write_text(text)
            found[split] = json.loads(text)["model"]["bits"]
        if clips:
            options = ["--length", "160000", "--num-samples", str(clips), "--out", str(self.path / "clips"), *settings]
            self.call(["sample", str(self.path), *options, *self.device])
        return found

    def pack(self, out: Path) -> None:
        with tarfile.open(out / f"{self.name}.tar", "w") as tar:
            for path in sorted(self.path.iterdir()):
                if path.name not in ("checkpoints", "tensorboard"):
                    tar.add(path, f"{self.name}/{path.name}")


def main(
    names: list[str],
    data: Path = Path(".device/recipes"),
    seconds: Annotated[float, typer.Option(help="Trial and training together.")] = 500,
    trial: Annotated[float, typer.Option(help="At most; it ends when the speed of all is known.")] = 120,
    length: int = 65_536,
    clips: int = 10,
    device: str = "cuda",
    overrides: Annotated[list[str], typer.Option("--set", help="For all, last; for a rehearsal.")] = [],  # noqa: B006
    sampling: Annotated[str, typer.Option(help="Options of `mba sample`, in one string.")] = "",
) -> None:
    out = Path(os.environ["OUT"])
    ready: set[str] = set()
    runs = [Run(name, data, out, device, overrides) for name in names]

    def whole(run: Run) -> None:
        run.train(seconds, trial, ready, len(runs))
        bits = run.judge(length, clips, sampling.split())
        run.pack(out)
        line = f"{run.name}: " + ", ".join(f"{split} {value:.4f}" for split, value in bits.items())
        with (out / "piano_runs.txt").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    threads = [threading.Thread(target=whole, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    typer.run(main)
