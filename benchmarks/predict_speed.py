"""How fast records are classified on one core of a CPU: ours by size of model and length of records, beside k-mer regression.

    python benchmarks/predict_speed.py --out benchmarks/results/predict_cpu.csv

Random weights and random bases, because neither changes the time. Megabases of records per second of processor time, both
strands read, the least of three passes; reading files is not part of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from mamba_bio_audio.inference.predict import Reading, predict_records
from mamba_bio_audio.models.build import build_classifier
from mamba_bio_audio.pipelines.dna.domain import DOMAIN
from mamba_bio_audio.pipelines.dna.kmers import fit_kmers
from mamba_bio_audio.pipelines.dna.tokenizer import A, T
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.timing import append_row, provenance

CLASSES = ("a", "b", "c", "d", "e")
PASSES = 3


def drawn(length: int, bases: int, seed: int = 0) -> list[Any]:
    """Records of a length, so many bases in all."""
    random = np.random.default_rng(seed)
    return [random.integers(A, T + 1, size=length, dtype=np.uint8) for _ in range(max(1, bases // length))]


def least(run: Callable[[], Any]) -> float:
    """Processor seconds of the fastest pass."""
    found = []
    for _ in range(PASSES):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return min(found)


def classifier(recipe: str) -> Any:
    """A classifier of the recipe's size, with random weights."""
    config = load_config(recipe, ["data.path=."])
    assert config.head is not None
    model = config.model.model_copy(update={"vocab_size": DOMAIN.codec(None).vocab_size})
    return build_classifier(model, config.head.model_copy(update={"classes": CLASSES}), seed=0).eval()


def classified(model: Any, rows: list[Any], reading: Reading) -> list[Any]:
    """Predictions of the rows."""
    return list(predict_records(model, rows, DOMAIN.symbols(None, 1), reading))


def main(
    out: Annotated[Path, typer.Option(help="CSV; rows are added.")],
    recipe: Annotated[list[str], typer.Option(help="Sizes of model.")] = ["dna/short", "dna/species"],  # noqa: B006
    length: Annotated[list[int], typer.Option(help="Lengths of records.")] = [150, 1000, 16384],  # noqa: B006
    bases: int = 1 << 20,
    kmer: Annotated[list[int], typer.Option(help="k of the regression.")] = [4, 6],  # noqa: B006
) -> None:
    torch.set_num_threads(1)
    where = provenance("cpu")
    for size in length:
        rows = drawn(size, bases)
        count = sum(map(len, rows))
        runs: dict[str, Callable[[], Any]] = {}
        for name in recipe:
            model = classifier(name)
            reading = Reading(length=size)
            runs[name] = partial(classified, model, rows, reading)
        for k in kmer:
            known = drawn(size, 40 * size, seed=1)
            labels = np.arange(len(known)) % len(CLASSES)
            bar = fit_kmers(known, labels, known, labels, len(CLASSES), sizes=(k,))
            runs[f"k-mers, k = {k}"] = partial(bar.probabilities, rows)
        for name, run in runs.items():
            seconds = least(run)
            row = {"model": name, "length": size, "bases": count, "cpu_seconds": f"{seconds:.3f}"}
            row["megabases_per_second"] = f"{count / seconds / 1e6:.3f}"
            print(row, flush=True)
            append_row(out, row | where)


if __name__ == "__main__":
    typer.run(main)
