"""How far log-likelihoods in pieces lie from those of a whole record, and both from fp64.

    python benchmarks/score_pieces.py RUN FASTA --bases 1048576 --pieces 131072,4096

The first bases of the first record are read whole and in pieces with the state carried, in fp32. The largest differences of
single values stand beside the largest value, as the tolerance of fp32 is 1e-5 of that. `--double` reads both in fp64 too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

import mamba_bio_audio as mba
from mamba_bio_audio.pipelines.dna.genome import Genome


def main(
    run: Annotated[str, typer.Argument(help="Run, export or packaged model.")],
    fasta: Annotated[Path, typer.Argument(help="FASTA, plain or BGZF.")],
    bases: Annotated[int, typer.Option(help="How many of the first record.")],
    pieces: Annotated[str, typer.Option(help="Bases a piece, separated by commas.")],
    double: Annotated[bool, typer.Option(help="Also in fp64.")] = False,
) -> None:
    """Compare whole and pieces."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = mba.load(run).to(device)
    genome = Genome(fasta)
    (record, length), *_ = genome.records.items()
    ids = genome.fetch(record, 0, min(length, bases)).astype(np.int64)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU, 1 thread"
    print(f"{record}, first {len(ids):,} bases, {name}, torch {torch.__version__}", flush=True)

    def values(chunk: int) -> torch.Tensor:
        return mba.log_likelihood(model, ids, chunk=chunk).per_base.nan_to_num()

    sizes = [int(size) for size in pieces.split(",")]
    whole = values(len(ids))
    largest = float(whole.abs().max())
    print(f"largest |log-likelihood| {largest:.3f} nats", flush=True)

    def compare(what: str, found: torch.Tensor, with_: torch.Tensor) -> None:
        difference = float((found - with_).abs().max())
        print(f"{what}: at most {difference:.2e} nats, {difference / largest:.1e} of the largest", flush=True)

    in_pieces = {size: values(size) for size in sizes}
    for size, found in in_pieces.items():
        compare(f"pieces of {size:,} against the whole", found, whole)
    if double:
        model.double()
        exact = values(len(ids))
        compare("whole against fp64", whole, exact)
        for size, found in in_pieces.items():
            compare(f"pieces of {size:,} against fp64", found, exact)
            compare(f"pieces of {size:,} in fp64 against the whole in fp64", values(size), exact)


if __name__ == "__main__":
    typer.run(main)
