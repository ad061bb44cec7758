"""Sweep of the peak learning rate of a recipe, at its own tokens per step; rows go to a CSV.

    python benchmarks/lr_sweep.py dna/tiny --lr 1e-3 --lr 2e-3 ... --set data.path=... --set train.steps=300

Every run is a whole one: its own warm-up and cosine over `train.steps`. The best rate is that of the lowest validation
loss.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from mamba_bio_audio.run.begin import Session
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.environment import environment
from mamba_bio_audio.run.timing import append_row
from mamba_bio_audio.run.train import train

FIELDS = (
    "recipe",
    "lr",
    "seed",
    "steps",
    "tokens_per_step",
    "length",
    "best_step",
    "valid_nats",
    "valid_perplexity",
    "data",
    "device",
    "torch",
    "commit",
    "started",
)


def main(
    recipe: str,
    lr: Annotated[list[float], typer.Option(help="Peak rate; repeat.")],
    out: Annotated[Path, typer.Option(help="CSV, appended to.")],
    overrides: Annotated[list[str], typer.Option("--set")] = [],  # noqa: B006
    device: str = "cpu",
    seed: int = 0,
) -> None:
    for rate in lr:
        config = load_config(recipe, [*overrides, f"train.lr={rate}", f"seed={seed}"])
        with tempfile.TemporaryDirectory() as folder:
            trained = train(config, Path(folder) / "run", Session(device, quiet=True))
        row = (
            environment(device)
            | trained.model_dump()
            | {
                "recipe": recipe,
                "lr": rate,
                "seed": seed,
                "tokens_per_step": config.train.tokens_per_step,
                "length": config.train.length,
                "data": Path(str(config.data.path)).name,
            }
        )
        append_row(out, {name: row.get(name, "") for name in FIELDS})
        print(f"lr {rate:g}: {trained.valid_nats:.4f} nats, perplexity {trained.valid_perplexity:.4f}", flush=True)


if __name__ == "__main__":
    typer.run(main)
