"""Ablation of a recipe: named variants side by side, each in a process of its own with one thread; rows go to a CSV.

    python benchmarks/ablate.py benchmarks/variants/audio_tiny.yaml --set data.path=DATA --out rows.csv --jobs 12

The file names a recipe, settings common to all variants, and the settings that each variant changes. With `--cpu-seconds` a
variant trains for as many steps as fit into that CPU time, which a short trial measures, so that a variant with faster steps
has more of them; a variant that sets train.steps keeps it. Every run is a whole one, with its own warm-up and cosine. What is
reported is the loss of the best weights on the validation split, all of it or `--score` symbols: in windows of the
training length and, as most of these models can, of `--length` symbols.
"""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

FIELDS = (
    "recipe", "variant", "changes", "seed", "steps", "tokens_per_step", "length", "samples", "parameters", "cpu_seconds",
    "norm_first", "norm_median", "train_bits", "valid_bits", "valid_bits_long", "stopped_by", "data", "device", "torch",
    "commit", "started",
)  # fmt: skip
# In a setting: a share of the steps.
PERCENT = re.compile(r"(\d+)%")
# Symbols that a validation in the middle of a run scores: for the curve, not for the result.
GLANCE = 65_536


def main(
    file: Path,
    out: Annotated[Path, typer.Option(help="CSV, appended to; the curves go beside it.")],
    overrides: Annotated[list[str], typer.Option("--set", help="For all variants.")] = [],  # noqa: B006
    only: Annotated[str, typer.Option(help="Names with commas; all of them otherwise.")] = "",
    jobs: int = 1,
    cpu_seconds: Annotated[float, typer.Option(help="Per training; 0 takes train.steps of the recipe.")] = 0,
    wall_seconds: Annotated[float, typer.Option(help="Ends every training that still runs then.")] = 1e9,
    length: Annotated[int, typer.Option(help="Of the windows of the second evaluation.")] = 16_384,
    score: Annotated[
        int | None, typer.Option(help="Symbols to score, spread over the split; all of them otherwise.")
    ] = None,
    one: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    plan = yaml.safe_load(file.read_text())
    if one:
        run_one(plan, one, overrides, out, cpu_seconds, length, score)
        return
    waiting = [name for name in plan["variants"] if not only or name in only.split(",")]
    running: dict[str, subprocess.Popen[bytes]] = {}
    deadline = time.monotonic() + wall_seconds
    while waiting or running:
        while waiting and len(running) < jobs and time.monotonic() < deadline:
            name = waiting.pop(0)
            command = [sys.executable, __file__, str(file), "--one", name, "--out", str(out), "--length", str(length)]
            command += [] if score is None else ["--score", str(score)]
            command += ["--cpu-seconds", str(cpu_seconds), *(part for text in overrides for part in ("--set", text))]
            running[name] = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
        time.sleep(0.2)
        for name, process in list(running.items()):
            if process.poll() is not None:
                del running[name]
                if process.returncode:
                    print(f"{name}: ended with code {process.returncode}", flush=True)
        if time.monotonic() > deadline:
            waiting.clear()
            deadline = float("inf")
            for process in running.values():
                process.terminate()


def run_one(
    plan: dict[str, Any],
    name: str,
    overrides: list[str],
    out: Path,
    budget: float,
    length: int,
    score: int | None = None,
) -> None:
    """Train and evaluate one variant, and append its row."""
    import torch

    from mamba_bio_audio.evaluation.likelihood import evaluate_likelihood
    from mamba_bio_audio.run import saved
    from mamba_bio_audio.run.begin import Session
    from mamba_bio_audio.run.config import load_config
    from mamba_bio_audio.run.data import open_data
    from mamba_bio_audio.run.environment import environment
    from mamba_bio_audio.run.timing import append_row
    from mamba_bio_audio.run.train import train

    torch.set_num_threads(1)
    changes = plan["variants"][name] or []
    settings = [*plan.get("set", []), *overrides, *changes]
    with tempfile.TemporaryDirectory() as folder:

        def cost(steps: int) -> float:
            trial = [f"train.steps={steps}", f"train.validate_every={steps}", "train.validation_tokens=1"]
            trial.append("train.length_warmup=[]")
            begun = time.process_time()
            train(
                load_config(plan["recipe"], [*settings, *trial]), Path(folder) / f"{steps}", Session("cpu", quiet=True)
            )
            return time.process_time() - begun

        if budget and not any(text.startswith("train.steps=") for text in changes):
            few, more = cost(5), cost(35)
            pace = (more - few) / 30
            steps = max(40, round((budget - few) / pace))
            settings.append(f"train.steps={steps}")
            settings = [PERCENT.sub(lambda found: str(int(found[1]) * steps // 100), text) for text in settings]
        config = load_config(plan["recipe"], settings)
        glances = [f"train.validate_every={-(-config.train.steps // 8)}", f"train.validation_tokens={GLANCE}"]
        config = load_config(plan["recipe"], [*settings, *glances])
        run = Path(folder) / "run"
        begun = time.process_time()
        trained = train(config, run, Session("cpu", quiet=True))
        seconds = time.process_time() - begun
        # Only trainings are ended early.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with (run / "metrics.csv").open(newline="") as table:
            curve = list(csv.DictReader(table))
        norms = sorted(float(row["grad_norm"]) for row in curve)
        model = saved.load(run, "best" if trained.valid_nats is not None else "last")

        def bits(length: int) -> float:
            data = open_data(config, "cpu", length=length, batch_size=max(1, 16_384 // length))
            data.setup("fit")
            return evaluate_likelihood(model, data.evaluation_dataloader("valid", max_tokens=score)).bits_per_base

        row = environment("cpu") | {
            "recipe": plan["recipe"],
            "variant": name,
            "changes": " ".join(changes),
            "seed": config.seed,
            "steps": trained.step,
            "tokens_per_step": config.train.tokens_per_step,
            "length": config.train.length,
            "samples": int(curve[-1]["tokens"]),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "cpu_seconds": f"{seconds:.1f}",
            "norm_first": f"{float(curve[0]['grad_norm']):.3g}",
            "norm_median": f"{norms[len(norms) // 2]:.3g}",
            "train_bits": f"{float(curve[-1]['train_nats']) / 0.6931471805599453:.4f}",
            "valid_bits": f"{bits(config.train.length):.4f}",
            "valid_bits_long": f"{bits(length):.4f}",
            "stopped_by": trained.stopped_by or "",
            "data": Path(str(config.data.path)).name,
            "device": cpu_name(),
        }
        append_row(out, {field: row.get(field, "") for field in FIELDS})
        for point in curve:
            if point["valid_bits"]:
                kept = {"variant": name} | {field: point[field] for field in ("step", "tokens", "valid_bits")}
                append_row(out.with_name(f"{out.stem}_curves.csv"), kept)
        print(f"{name}: {row['valid_bits']} ({row['valid_bits_long']}) bits, {row['cpu_seconds']} CPU s", flush=True)


def cpu_name() -> str:
    """The processor, one thread of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name")) + ", 1 thread"
    except (OSError, StopIteration):
        return "cpu, 1 thread"


if __name__ == "__main__":
    typer.run(main)
