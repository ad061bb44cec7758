"""What needs no network: Markov models of rising order, and the copy model under rising context, on validation and test.

    python benchmarks/yardsticks.py --data data/human --out benchmarks/results/yardsticks_human_cpu.csv

Fitted on the training split, everything chosen on validation; the scored bases are those of `mba evaluate`. The copy model
is scored by locus (record) as well, each context on the same bases; its gain over the shortest context is paired, with a 95 %
interval over blocks of 16,384 bases. Orders above 16 show whether the best order lies inside of what is offered. A few
minutes of one core and 5 GB for 42 Mb.
"""

from __future__ import annotations

import importlib.metadata
import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from mamba_bio_audio.evaluation.resampling import bootstrap_mean
from mamba_bio_audio.pipelines.data import DataModule
from mamba_bio_audio.pipelines.dna.config import DnaDataConfig
from mamba_bio_audio.pipelines.dna.copies import fit_copies
from mamba_bio_audio.pipelines.dna.markov import markov_table
from mamba_bio_audio.pipelines.scores import perplexity
from mamba_bio_audio.pipelines.spans import merge
from mamba_bio_audio.run.timing import provenance, write_rows

CHUNK = 1 << 21
BLOCK = 1 << 14


def main(
    data: Annotated[Path, typer.Option(help="data.path.")],
    out: Annotated[Path, typer.Option(help="CSV.")],
    highest: Annotated[int, typer.Option(help="Highest order of the Markov models.")] = 24,
    order: Annotated[int, typer.Option(help="Highest order that copies are mixed with, as in mba evaluate.")] = 16,
    contexts: str = "1024,2048,4096,8192,16384,32768,65536,131072,262144,524288,1048576",
) -> None:
    module = DataModule(DnaDataConfig(path=str(data)), length=1024, batch_size=1, seed=0)
    module.setup()
    genome = module.corpus.genome
    spans = {split: module.corpus.spans(split) for split in ("train", "valid", "test")}
    where = provenance("cpu", "triton")
    facts = {key: where[key] for key in ("device", "torch", "triton", "commit", "started")}
    facts |= {"numpy": importlib.metadata.version("numpy"), "splits_sha256": module.corpus.fingerprint()}
    rows: list[dict[str, Any]] = []

    def add(yardstick: str, split: str, locus: str, size: int, nats: float, **more: Any) -> None:
        row = {"yardstick": yardstick, "split": split, "locus": locus, "size": size}
        row |= {"nats": f"{nats:.6f}", "bits": f"{nats / math.log(2):.6f}", "perplexity": f"{perplexity(nats):.5f}"}
        rows.append(row | {"chosen": "", "scored": "", "gain": "", "gain_low": "", "gain_high": ""} | more | facts)
        print(", ".join(str(value) for value in row.values()), flush=True)

    fitted = markov_table(genome, spans["train"], spans["valid"], spans["test"], max_order=highest)
    for split, score in (("valid", fitted.valid), ("test", fitted.test)):
        for k, nats in enumerate(map(float, score.nats_per_base)):
            add("markov", split, "all", k, nats, chosen=k == fitted.order, scored=score.count)
    print(f"smoothing {fitted.smoothing:g}")

    usual = replace(fitted, order=int(np.argmin(fitted.valid.nats[: order + 1])))
    lengths = [int(part) for part in contexts.split(",")]
    copied = fit_copies(genome, usual, spans["valid"], lengths)
    everywhere: dict[int, list[np.ndarray]] = {context: [] for context in lengths}
    for span in merge(spans["test"]):
        own: dict[int, list[np.ndarray]] = {context: [] for context in lengths}
        for low in range(span.start, span.end, CHUNK):
            before = max(0, low - max(lengths))
            tokens = genome.fetch(span.record, before, min(low + CHUNK, span.end))
            for context, values in copied.nats(tokens, low - before).items():
                own[context].append(values)
        for context, values in own.items():
            everywhere[context].append(np.concatenate(values))
        _add_copies(add, span.record, own)
    _add_copies(add, "all", everywhere)
    write_rows(out, rows)


def _add_copies(add: Any, locus: str, found: dict[int, list[np.ndarray]]) -> None:
    joined = {context: np.concatenate(values) for context, values in found.items()}
    first = next(iter(joined.values()))
    scored = np.isfinite(first)
    blocks = (np.arange(len(first)) // BLOCK)[scored]
    for context, values in joined.items():
        gain = bootstrap_mean((first - values)[scored], blocks)
        more = {"gain": f"{gain.value:.6f}", "gain_low": f"{gain.low:.6f}", "gain_high": f"{gain.high:.6f}"}
        add("copies", "test", locus, context, float(values[scored].mean()), scored=int(scored.sum()), **more)


if __name__ == "__main__":
    typer.run(main)
