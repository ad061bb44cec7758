"""Loss against passes over the training data: one row for each validation of a language model's run.

    python benchmarks/passes.py benchmarks/results/human56mb-7m_h200 --out benchmarks/results/human56mb-7m_h200/passes.csv

Training loss is the mean of the rows of metrics.csv since the validation before, in windows of the length that was trained
then; validation is in windows of the full length throughout, so the two compare only along the table, not across it.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from mamba_bio_audio.run.timing import write_rows


def main(run: Path, out: Annotated[Path, typer.Option(help="CSV.")]) -> None:
    """Read a run's metrics, print and write the table."""
    bases = json.loads((run / "manifest.json").read_text())["data"]["splits"]["train"]["bases"]
    rows, since = [], []
    with (run / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            since.append(float(row["train_nats"]))
            if row["valid_nats"]:
                rows.append(
                    {
                        "step": int(row["step"]),
                        "passes": f"{int(row['tokens']) / bases:.2f}",
                        "length": int(row["length"]),
                        "lr": float(row["lr"]),
                        "train_nats": f"{np.mean(since):.4f}",
                        "valid_nats": f"{float(row['valid_nats']):.4f}",
                    }
                )
                since = []
    write_rows(out, rows)
    for values in rows:
        print("  ".join(f"{value:>10}" for value in values.values()))


if __name__ == "__main__":
    typer.run(main)
