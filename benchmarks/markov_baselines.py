"""Markov models on validation and test: no GPU needed, so apart from the evaluation of a run; higher orders: yardsticks.py.

    python benchmarks/markov_baselines.py --data data/human --out benchmarks/results/markov_human.csv

Fitted on the training split, the order chosen on validation; the scored bases are those of `mba evaluate` at --length.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from mamba_bio_audio.pipelines.data import DataModule
from mamba_bio_audio.pipelines.dna.config import DnaDataConfig
from mamba_bio_audio.pipelines.dna.markov import markov_table
from mamba_bio_audio.pipelines.scores import perplexity
from mamba_bio_audio.run.timing import provenance, write_rows


def main(
    data: Annotated[Path, typer.Option(help="data.path.")],
    out: Annotated[Path, typer.Option(help="CSV.")],
    length: int = 1024,
    highest: Annotated[int, typer.Option(help="Highest order.")] = 12,
) -> None:
    module = DataModule(DnaDataConfig(path=str(data)), length=length, batch_size=1, seed=0)
    module.setup()
    spans = {split: module.corpus.spans(split) for split in ("train", "valid", "test")}
    where = provenance("cpu")
    rows = []
    for split in ("valid", "test"):
        fitted = markov_table(module.corpus.genome, spans["train"], spans["valid"], spans[split], max_order=highest)
        for order, nats in enumerate(map(float, fitted.test.nats_per_base)):
            row = {"split": split, "order": order, "chosen": order == fitted.order, "scored": fitted.test.count}
            row |= {"nats": f"{nats:.6f}", "bits": f"{nats / math.log(2):.6f}", "perplexity": f"{perplexity(nats):.5f}"}
            row["splits_sha256"] = module.corpus.fingerprint()
            rows.append(row | {key: where[key] for key in ("device", "commit", "started")})
    write_rows(out, rows)


if __name__ == "__main__":
    typer.run(main)
