"""Loss against size and bases: the runs `SIZE-2`, `SIZE-4` and `SIZE-16` of device/scale.py, and slopes beside the paper's.

    python benchmarks/sizes.py /tmp/scale --out benchmarks/results/sizes_human56mb_h200.csv

A slope is what e times as many parameters take off the validation loss, in nats, fitted by least squares over the sizes of one
number of passes. The paper's (figure 5 left, its sizes from 250k to 7M, `docs/paper_results.yaml`) is of at most four passes
over other data, so `-2` and `-4` stand beside it, `-16` does not.
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml

from mamba_bio_audio.run.timing import write_rows

ROOT = Path(__file__).parents[1]
SIZES = {"250k": "250k", "700k": "700k", "1m4": "1.4m", "3m5": "3.5m", "7m": "7m"}


def main(runs: Path, out: Annotated[Path, typer.Option(help="CSV.")]) -> None:
    """Read the runs that are done, print the slopes, write the table."""
    rows = [
        row(runs / f"{size}-{passes}") for passes in (2, 4, 16) for size in SIZES if done(runs / f"{size}-{passes}")
    ]
    if not rows:
        raise SystemExit(f"sizes: {runs} holds no finished run such as 7m-4")
    write_rows(out, rows)
    for text in report(rows):
        print(text)


def done(run: Path) -> bool:
    """Whether a training ended and was evaluated."""
    return (run / "likelihood-test.json").exists() and (run / "manifest.json").exists()


def row(run: Path) -> dict[str, Any]:
    """What there is to say of a run."""
    manifest = json.loads((run / "manifest.json").read_text())
    with (run / "metrics.csv").open(newline="") as file:
        steps = list(csv.DictReader(file))
    found = {split: json.loads((run / f"likelihood-{split}.json").read_text())["model"] for split in ("valid", "test")}
    bases = int(steps[-1]["tokens"])
    return {
        "run": run.name,
        "parameters": published(run.name)["parameters"],
        "bases": bases,
        "passes": f"{bases / manifest['data']['splits']['train']['bases']:.2f}",
        # Of the steps alone, beside others of its group.
        "seconds": f"{bases / manifest['result']['tokens_per_second']:.1f}",
        "valid_nats": f"{found['valid']['nats']:.5f}",
        "test_nats": f"{found['test']['nats']:.5f}",
        "test_perplexity": f"{found['test']['perplexity']:.4f}",
        # Of the last logged steps, to see what is learnt by heart.
        "train_nats": f"{np.mean([float(step['train_nats']) for step in steps[-8:] if step['train_nats']]):.5f}",
        "best_step": manifest["result"]["best_step"],
        **{key: manifest[key] for key in ("device", "torch", "triton", "commit", "started")},
    }


def report(rows: list[dict[str, Any]]) -> list[str]:
    """Lines for people."""
    lines = [
        f"{row['run']:<10}{row['parameters']:>12,}{row['passes']:>8} passes{row['valid_nats']:>10}{row['test_nats']:>10}"
        for row in rows
    ]
    for passes in (2, 4, 16):
        own = [row for row in rows if row["run"].endswith(f"-{passes}")]
        if len(own) > 1:
            slope = fitted([row["parameters"] for row in own], [float(row["valid_nats"]) for row in own])
            lines.append(f"{passes} passes: {slope:+.4f} nats for e times as many parameters, {len(own)} sizes")
            if passes <= 4:
                lines.append(f"the paper, the same sizes: {paper([row['run'] for row in own]):+.4f}")
    return lines


def paper(runs: list[str]) -> float:
    """The slope of the paper's validation perplexities for these sizes."""
    own = [published(run) for run in runs]
    return fitted([one["parameters"] for one in own], [math.log(one["value"]) for one in own])


def published(run: str) -> dict[str, Any]:
    """The paper's row of the size that a run has."""
    known = yaml.safe_load((ROOT / "docs" / "paper_results.yaml").read_text())
    row: dict[str, Any] = known[f"dna/hg38@{SIZES[run.split('-')[0]]}-paper"]
    return row


def fitted(parameters: list[int], nats: list[float]) -> float:
    """Least-squares slope of nats over the logarithm of the number of parameters."""
    return float(np.polyfit(np.log(parameters), nats, 1)[0])


if __name__ == "__main__":
    typer.run(main)
