"""The share of G and C of a sequence, learnt by `head.task=regression`: an oracle, since the number is known exactly.

    python benchmarks/gc_share.py --steps 150 --steps 600 --out FILE.csv

Every sequence is drawn with a probability of G or C of its own, even between .2 and .8; its number is the share that it got.
Test sequences are of the same kind and were never trained on.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from mamba_bio_audio.evaluation.values import evaluate_values
from mamba_bio_audio.inference.streaming import Passes
from mamba_bio_audio.pipelines.domains import domain_of
from mamba_bio_audio.run import saved
from mamba_bio_audio.run.begin import Session
from mamba_bio_audio.run.data import open_data
from mamba_bio_audio.run.pretrained import configure
from mamba_bio_audio.run.timing import append_row, provenance
from mamba_bio_audio.run.train import train

SIZES = {"train": 4000, "dev": 400, "test": 1000}


def construct(path: Path, length: int) -> None:
    """A table of sequences, their shares of G and C, and their splits."""
    random = np.random.default_rng(0)
    lines = ["sequence\tlabel\tsplit"]
    for split, count in SIZES.items():
        for chance in random.uniform(0.2, 0.8, size=count):
            strong = random.random(length) < chance
            second = random.random(length) < 0.5
            text = np.where(strong, np.where(second, "C", "G"), np.where(second, "A", "T"))
            lines.append(f"{''.join(text)}\t{strong.mean():.6f}\t{split}")
    path.write_text("\n".join(lines) + "\n")


def main(
    out: Annotated[Path, typer.Option(help="CSV; rows are added.")],
    work: Annotated[Path, typer.Option(help="Folder of the data and runs.")] = Path("/tmp/gc"),
    recipe: str = "dna/short",
    length: Annotated[int, typer.Option(help="Bases of a sequence.")] = 100,
    steps: Annotated[list[int], typer.Option(help="Steps of a training.")] = [150, 600],  # noqa: B006
    settings: Annotated[list[str], typer.Option("--set", help="KEY=VALUE of the recipe.")] = [],  # noqa: B006
    device: str = "cpu",
) -> None:
    work.mkdir(parents=True, exist_ok=True)
    table = work / f"{length}.tsv"
    construct(table, length)
    for count in steps:
        began = time.process_time()
        own = [f"data.path={table}", "head.task=regression", f"train.steps={count}", "train.patience=null"]
        config = configure(recipe, [*own, *settings])
        run = work / f"run-{count}"
        trained = train(config, run, Session(device, quiet=True, force=run.exists()))
        seconds = time.process_time() - began
        model: Any = saved.load_classifier(run).to(device)
        module = open_data(model.config, device, progress=None)
        found = evaluate_values(
            model, module, domain_of(config.data.kind), split="test", passes=Passes(device), baselines=False
        )
        row: dict[str, Any] = {
            "recipe": recipe,
            "length": length,
            "steps": trained.step,
            "test": found["model"]["count"],
        }
        scores = found["model"]["outputs"]["label"]
        for key in ("r2", "pearson", "spearman"):
            row |= {
                f"{key}{end}": f"{scores[key][part]:.4f}"
                for end, part in (("", "value"), ("_low", "low"), ("_high", "high"))
            }
        row |= {key: f"{scores[key]:.4f}" for key in ("rmse", "standard_deviation")} | {"cpu_seconds": f"{seconds:.0f}"}
        print(row, flush=True)
        append_row(out, row | provenance(device, "triton"))


if __name__ == "__main__":
    typer.run(main)
