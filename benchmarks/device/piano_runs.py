"""Variants of audio/piano side by side on a GPU machine, each for the same time: training, evaluation, clips, one archive.

    python3 benchmarks/device/piano_runs.py grow@0 real-grow@0 real-noise@1 --data /tmp/data --seconds 455 --limit 580

NAME@GPU says where a variant trains. A trial of all of them together shows how many steps the rest of `--seconds` holds; then
each trains for so many, is evaluated on both held-out splits in windows of `--length` samples, and generates `--clips` clips
of ten seconds at each `--temperature`, as far as `--limit` allows. OUT has piano.tar and piano_real.tar: of each run config,
curve, weights, evaluations and clips, and a line a run in piano_runs.txt. They are written anew whenever a run has got further.
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
GROW = ["train.length=16384", "train.tokens_per_step=65536"]
REAL = ["train.length=16384", "train.tokens_per_step=32768"]
STAGES = {1024: 0.3, 4096: 0.4}
# Settings of each variant, and the shares of its steps at shorter lengths. `grow` is audio/piano.
VARIANTS: dict[str, tuple[str, list[str], dict[int, float]]] = {
    "small": ("piano", ["train.length=4096", "train.tokens_per_step=32768"], {}),
    "grow": ("piano", GROW, STAGES),
    "noise": ("piano", [*GROW, "data.augment_noise=1"], STAGES),
    "noise-long": (
        "piano",
        ["train.length=65536", "train.tokens_per_step=65536", "data.augment_noise=1"],
        {1024: 0.3, 4096: 0.4, 16384: 0.2},
    ),
    "wide": ("piano", ["train.length=4096", "train.tokens_per_step=32768", "model.d_model=96"], {}),
    "hot": ("piano", ["train.length=4096", "train.tokens_per_step=32768", "train.lr=1.6e-2"], {}),
    "real": ("piano_real", ["train.length=4096", "train.tokens_per_step=32768", "data.augment_gain_db=6"], {}),
    "real-grow": ("piano_real", REAL, STAGES),
    "real-noise": ("piano_real", [*REAL, "data.augment_noise=2"], STAGES),
}
# By length, as many positions a step; as many sequences: sound_runs.py.
for size in (1 << power for power in range(13, 18)):
    VARIANTS[f"positions-{size}"] = ("piano", [f"train.length={size}", "train.tokens_per_step=131072"], {})
WORK = Path("/tmp/piano_runs")
BEGAN = time.monotonic()
PACKING = threading.Lock()
LAST = re.compile(r"step ([\d,]+)/")


class Run:
    def __init__(self, name: str, data: Path, device: str, sets: list[str], limit: float) -> None:
        self.name, _, gpu = name.partition("@")
        self.folder, self.sets, self.stages = VARIANTS[self.name]
        self.path, self.log = WORK / self.name, WORK / f"{self.name}.txt"
        self.sets = [f"data.path={data / self.folder}", *COMMON, *self.sets, *sets]
        self.device = ["--device", device]
        self.env = os.environ | {"CUDA_VISIBLE_DEVICES": gpu or "0", "OMP_NUM_THREADS": "1"}
        self.limit = limit
        WORK.mkdir(parents=True, exist_ok=True)
        self.log.unlink(missing_ok=True)

    def call(self, arguments: list[str], enough: Callable[[], bool] = lambda: False) -> str:
        """What a command prints on standard output; SIGTERM, at which a training saves and ends, when there is enough."""
        with self.log.open("a") as log, tempfile.TemporaryFile("w+") as printed:
            process = subprocess.Popen(MBA + arguments, env=self.env, stdout=printed, stderr=log)
            while process.poll() is None:
                time.sleep(0.5)
                if enough() or time.monotonic() - BEGAN > self.limit:
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
        print(f"[{time.monotonic() - BEGAN:.0f} s] {self.name}: {pace:.1f} steps/s, {steps:,} steps", flush=True)
        every = -(-steps // 6)
        sets = [f"train.steps={steps}", f"train.validate_every={every}", f"train.checkpoint_every={every}"]
        if self.stages:
            parts = [f"{{length: {length}, steps: {int(share * steps)}}}" for length, share in self.stages.items()]
            sets.append(f"train.length_warmup=[{', '.join(parts)}]")
        self.pretrain(self.path, sets, lambda: time.monotonic() - started > seconds)

    def evaluate(self, length: int) -> dict[str, float]:
        """Bits per sample of both held-out splits."""
        found = {}
        for split in ("valid", "test"):
            options = ["--split", split, "--length", str(length), "--no-baselines", "--json"]
            text = self.call(["evaluate", str(self.path), *options, *self.device])
            (self.path / f"evaluate-{split}-{length}.json").write_text(text)
            found[split] = json.loads(text)["model"]["bits"]
        return found

    def clips(self, count: int, seconds: float, temperature: float) -> None:
        """Clips at a temperature, to be measured where there is time."""
        options = ["--seconds", str(seconds), "--num-samples", str(count), "--temperature", str(temperature)]
        out = self.path / f"clips-{temperature:g}"
        self.call(["sample", str(self.path), *options, "--no-report", "--force", "--out", str(out), *self.device])


def pack(out: Path) -> None:
    """Everything that there is so far, an archive for each data set; weights rounded to fp16, since a file may have 16 MiB."""
    left_out = ("checkpoints", "tensorboard", "model.safetensors", "halved.safetensors")
    with PACKING:
        for data in {VARIANTS[path.name][0] for path in WORK.iterdir() if path.name in VARIANTS}:
            part = out / f"{data}.tar.part"
            with tarfile.open(part, "w") as tar:
                for path in sorted(WORK.glob("*.txt")):
                    tar.add(path, path.name)
                for name in (name for name, variant in VARIANTS.items() if variant[0] == data):
                    for path in sorted((WORK / name).glob("*")):
                        if path.name not in left_out:
                            tar.add(path, f"{name}/{path.name}")
                    if (WORK / name / "model.safetensors").exists():
                        tar.add(halved(WORK / name), f"{name}/model.safetensors")
            part.replace(out / f"{data}.tar")


def halved(run: Path) -> Path:
    """A copy of a run's weights in fp16."""
    from safetensors.torch import load_file, save_file

    whole = load_file(run / "model.safetensors")
    save_file({name: value.half() for name, value in whole.items()}, run / "halved.safetensors")
    return run / "halved.safetensors"


def main(
    names: list[str],
    data: Path = Path("/tmp/data"),
    seconds: Annotated[float, typer.Option(help="Trial and training together.")] = 455,
    trial: Annotated[float, typer.Option(help="At most; it ends when the speed of all is known.")] = 120,
    limit: Annotated[float, typer.Option(help="Of everything.")] = 580,
    length: int = 65_536,
    clips: int = 4,
    clip_seconds: float = 10,
    temperature: list[float] = [0.85, 0.9, 0.8],  # noqa: B006
    device: str = "cuda",
    overrides: Annotated[list[str], typer.Option("--set", help="For all, last; for a rehearsal.")] = [],  # noqa: B006
) -> None:
    out = Path(os.environ["OUT"])
    ready: set[str] = set()
    runs = [Run(name, data, device, overrides, limit) for name in names]

    def whole(run: Run) -> None:
        run.train(seconds, trial, ready, len(runs))
        pack(out)
        bits = run.evaluate(length)
        line = f"{run.name}: " + ", ".join(f"{split} {value:.4f}" for split, value in bits.items())
        with (WORK / "piano_runs.txt").open("a") as file:
            file.write(line + "\n")
        print(f"[{time.monotonic() - BEGAN:.0f} s] {line}", flush=True)
        pack(out)
        for value in temperature if clips else ():
            run.clips(clips, clip_seconds, value)
            pack(out)

    threads = [threading.Thread(target=whole, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    typer.run(main)
