"""Training with the Triton kernels in bf16 against plain PyTorch in fp32: same weights to begin with, same batches.

    python benchmarks/train_equivalence.py arm triton --seed 0 --data DIR --out FOLDER      a process per arm, at once
    python benchmarks/train_equivalence.py arm torch --seed 0 --data DIR --out FOLDER
    python benchmarks/train_equivalence.py arm triton --seed 1 ...    and --seed 2, for the spread between seeds
    python benchmarks/train_equivalence.py compare FOLDER --out train_equivalence

Every arm is a whole `pretrain` of 12 x 128 at 1,024 bases with warm-up and cosine; a seed is that of weights and order
of batches. After `--seconds` an arm stops as at a SIGTERM, saved; what is compared is the last validation that all
arms have. They are equivalent where the losses of seed 0 differ by at most 0.003 nats or two standard deviations of
the seeds.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import statistics
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from mamba_bio_audio import ops
from mamba_bio_audio.evaluation.likelihood import evaluate_likelihood
from mamba_bio_audio.files import write_json
from mamba_bio_audio.run import saved
from mamba_bio_audio.run.begin import Session
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.data import open_data
from mamba_bio_audio.run.timing import write_rows
from mamba_bio_audio.run.train import train
from mamba_bio_audio.text import table

LIMIT_NATS = 0.003
LENGTH = 1024
app = typer.Typer(add_completion=False)


@app.command()
def arm(
    kernels: Literal["triton", "torch"],
    out: Annotated[Path, typer.Option(help="Folder of all arms.")],
    data: Annotated[Path, typer.Option(help="data.path.")],
    seed: int = 0,
    steps: int = 2000,
    batch: Annotated[int, typer.Option(help="Sequences of 1,024 per step.")] = 16,
    lr: float = 4e-3,
    seconds: Annotated[float, typer.Option(help="Stop and save after these.")] = 280,
    validation_tokens: int = 2**21,
    workers: int = 3,
    device: str = "cuda",
    overrides: Annotated[list[str], typer.Option("--set", help="For a trial at small scale.")] = [],  # noqa: B006
) -> None:
    """Train one arm: triton in bf16, torch in fp32 without TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    settings = {
        "data.path": data,
        "data.num_workers": workers,
        "data.reverse_complement": "true",
        "seed": seed,
        "train.lr": lr,
        "train.steps": steps,
        "train.length": LENGTH,
        "train.tokens_per_step": batch * LENGTH,
        "train.micro_batch": batch,
        "train.precision": "bf16" if kernels == "triton" else "fp32",
        "train.validate_every": max(1, steps // 4),
        "train.validation_tokens": validation_tokens,
        "train.checkpoint_every": steps,
        "train.log_every": max(1, steps // 100),
    }
    config = load_config("dna/hg38@1.4m", [*(f"{key}={value}" for key, value in settings.items()), *overrides])
    run = out / f"{kernels}-seed{seed}"
    alarm = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    alarm.daemon = True
    alarm.start()
    with ops.plain_torch() if kernels == "torch" else nullcontext():
        trained = train(config, run, Session(device))
        alarm.cancel()
        found: dict[str, Any] = {
            "kernels": kernels,
            "seed": seed,
            "valid_bases": None,
            "valid_nats_fp32": None,
        } | trained.model_dump()
        if trained.stopped_by is None:
            # Training judged each arm by its own arithmetic; here all are judged in fp32.
            batches = open_data(config, device).evaluation_dataloader("valid", max_tokens=validation_tokens)
            score = evaluate_likelihood(saved.load(run, "last"), batches, device, "fp32")
            found |= {"valid_bases": score.count, "valid_nats_fp32": score.nats_per_base}
    write_json(run / "arm.json", found)
    print(json.dumps(found))


@app.command()
def compare(
    folder: Path, out: Annotated[Path, typer.Option(help="Without suffix: curves go to .csv, the verdict to .json.")]
) -> None:
    """Curves of all arms in one table, and the verdict."""
    curves: list[dict[str, Any]] = []
    arms: dict[str, dict[str, Any]] = {}
    valid: dict[str, dict[int, float]] = {}
    for run in sorted(path.parent for path in folder.glob("*/metrics.csv")):
        with (run / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        curves += [{"arm": run.name} | row for row in rows]
        valid[run.name] = {int(row["step"]): float(row["valid_nats"]) for row in rows if row["valid_nats"]}
        ended = json.loads((run / "arm.json").read_text()) if (run / "arm.json").exists() else {}
        manifest = json.loads((run / "manifest.json").read_text())
        kept = ("device", "torch", "commit", "started", "seed", "precision", "precision_settings")
        arms[run.name] = {key: manifest[key] for key in kept} | {
            key: ended.get(key) for key in ("step", "steps", "tokens_per_second", "valid_bases", "valid_nats_fp32")
        }
    if not curves:
        raise typer.BadParameter(f"{folder} holds no arm")
    write_rows(out.with_suffix(".csv"), curves)
    seeds = [name for name in valid if name.startswith("triton")]
    common = set.intersection(*(set(steps) for steps in valid.values()))
    verdict: dict[str, Any] = {"arms": arms, "step": max(common, default=None)}
    if common and {"triton-seed0", "torch-seed0"} <= set(valid):
        step = max(common)
        losses = {name: steps[step] for name, steps in valid.items()}
        spread = statistics.stdev(losses[name] for name in seeds) if len(seeds) > 1 else 0.0
        difference = losses["triton-seed0"] - losses["torch-seed0"]
        limit = max(LIMIT_NATS, 2 * spread)
        verdict |= {
            "valid_nats": losses,
            "difference_nats": difference,
            "seed_standard_deviation_nats": spread if len(seeds) > 1 else None,
            "limit_nats": limit,
            # Not without the last step, nor where a Triton arm had to do without Triton.
            "complete": all(step == arms[name]["steps"] for name in valid),
            "kernels_as_named": all(arms[n]["precision_settings"]["kernels"].startswith(n.split("-")[0]) for n in arms),
        }
        within = abs(difference) <= limit
        verdict["passed"] = within and verdict["complete"] and verdict["kernels_as_named"]
    write_json(out.with_suffix(".json"), verdict)
    shown = [(name, f"{nats:.5f} nats") for name, nats in verdict.get("valid_nats", {}).items()]
    shown += [
        (key, str(verdict.get(key)))
        for key in ("step", "difference_nats", "limit_nats", "complete", "kernels_as_named", "passed")
    ]
    print(table(shown))


if __name__ == "__main__":
    app()
