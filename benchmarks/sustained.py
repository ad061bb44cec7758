"""Throughput of a whole `mba pretrain` of 12 x 128 beside that of its bare step: forward, loss and backward in a loop.

python benchmarks/sustained.py bare --out bare.csv              before and after the run, alone on the device
python benchmarks/sustained.py steps bare.csv --seconds 240      how many steps fit
python benchmarks/sustained.py report RUN bare.csv --wall 251 --out sustained.json
"""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path
from typing import Annotated

import typer

from mamba_bio_audio.files import write_json
from mamba_bio_audio.run import timing
from mamba_bio_audio.run.train_speed import TrainCase, train

LENGTH = 1024
MARKOV = Path(__file__).parent / "results" / "yardsticks_human_cpu.csv"
app = typer.Typer(add_completion=False)


@app.command()
def bare(
    out: Annotated[Path, typer.Option(help="CSV, appended to.")],
    batch: Annotated[int, typer.Option(help="The run's micro-batch.")] = 128,
    seconds: float = 4,
    device: str = "cuda",
    layers: int = 12,
    width: int = 128,
) -> None:
    """Time the step as `mba bench train` does, at the run's micro-batch, recorded on a GPU as the run's are."""
    (row,) = train(device, seconds=seconds, cases=[TrainCase(f"{layers}x{width}", batch, LENGTH)], graph=True)
    timing.append_row(out, row)
    print(f"bare step: {row['ms_p50']} ms, {row['mtokens_per_s']} M tokens/s on {row['device']}")


def _bare_tokens_per_second(path: Path) -> float:
    with path.open(newline="") as file:
        return 1e6 * statistics.median(float(row["mtokens_per_s"]) for row in csv.DictReader(file))


@app.command()
def steps(
    path: Path, seconds: Annotated[float, typer.Option()], tokens_per_step: int = 131_072, share: float = 0.92
) -> None:
    """Optimiser steps that fit into `seconds` at `share` of the bare step's throughput."""
    print(max(20, int(share * _bare_tokens_per_second(path) * seconds / tokens_per_step)))


@app.command()
def report(
    run: Path,
    path: Path,
    wall: Annotated[float, typer.Option(help="Seconds of the command.")],
    out: Annotated[Path, typer.Option(help="JSON.")],
    markov: Annotated[Path, typer.Option(help="Of yardsticks.py.")] = MARKOV,
) -> None:
    """Compare, and put what the run's evaluations found beside it."""
    manifest = json.loads((run / "manifest.json").read_text())
    with (run / "metrics.csv").open(newline="") as file:
        tokens = int(list(csv.DictReader(file))[-1]["tokens"])
    bare_speed, sustained = _bare_tokens_per_second(path), manifest["result"]["tokens_per_second"]
    found = {
        "tokens": tokens,
        "bare_tokens_per_second": bare_speed,
        # Steps, data and checkpoints from the first step on, without validations.
        "sustained_tokens_per_second": sustained,
        "sustained_to_bare": sustained / bare_speed,
        # Imports, data, validations, everything.
        "command_seconds": wall,
        "command_tokens_per_second": tokens / wall,
        "command_to_bare": tokens / wall / bare_speed,
        "result": manifest["result"],
    }
    with markov.open(newline="") as file:
        table = [row for row in csv.DictReader(file) if (row["yardstick"], row["locus"]) == ("markov", "all")]
    chosen = {row["split"]: row for row in table if row["chosen"] == "True"}
    for split, bar in chosen.items():
        path = run / f"likelihood-{split}.json"  # of mba evaluate --no-baselines --json
        if not path.exists() or not path.stat().st_size:
            continue
        own = json.loads(path.read_text())
        scores = {"model": own["model"], "scored": own["scored"], "markov_order": int(bar["size"])}
        if int(bar["scored"]) == own["scored"]:
            scores["markov_perplexity"] = float(bar["perplexity"])
            scores["perplexity_to_markov"] = own["model"]["perplexity"] / float(bar["perplexity"])
        found[split] = scores
    write_json(out, found)
    print(json.dumps({key: value for key, value in found.items() if key != "result"}, indent=2))


if __name__ == "__main__":
    app()
