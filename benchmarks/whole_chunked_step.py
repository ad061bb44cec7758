"""Whole, in chunks and step by step: how far the log-likelihoods of one sequence lie apart, by its length.

    python benchmarks/whole_chunked_step.py --out benchmarks/results/whole_chunked_step_h200.csv

Random bases are read by a model in fp32 in one pass, in nine chunks whose length divides nothing (an eighth less one), with the
state carried, and one at a time as generation reads them, on a GPU as CUDA graphs. Steps take long: all of a sequence
is stepped through up to `--steps` bases; of a longer one its last 4,096, from the state behind what stands before them,
read in chunks. The largest difference of a base's log-likelihood to that of the whole pass stands beside the
largest log-likelihood, as fp32 rounds in proportion. A length that does not fit into memory whole says so, and its
nine chunks are what the others are compared with: then `chunked` has chunks of an eighth of them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

import mamba_bio_audio as mba
from mamba_bio_audio.inference.decoding import GraphSteps
from mamba_bio_audio.inference.streaming import advance, passes_of
from mamba_bio_audio.run.timing import provenance, write_rows

BASES = (7, 11)  # ids of A, C, G, T
TAIL = 4096


def said(logits: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
    """In place of a draw: the symbol that follows, told by its id, and its log-probability."""
    symbol = following.long()
    return symbol, torch.log_softmax(logits.double(), -1).gather(-1, symbol[:, None])[:, 0]


def stepped(model: Any, steps: GraphSteps, ids: Tensor, chunk: int, most: int) -> Tensor:
    """Log-likelihoods (n,) of the last n symbols, each read by a step of its own.

    Args:
        model: in evaluation mode.
        steps: its steps, with `said` in place of a draw.
        ids: (L,), on the CPU.
        chunk: positions that are read at once before the first step.
        most: all symbols are stepped through up to this length, else the last 4,096.
    """
    before = 0 if len(ids) <= most else max(0, len(ids) - 1 - TAIL)
    state = advance(model, [ids[:before].numpy()], passes=passes_of(model, chunk=chunk)) if before else None
    device = next(model.parameters()).device
    with torch.inference_mode():
        following = ids[before + 1 :, None].to(device, torch.float64)
        _, found, _ = steps(ids[before].to(device).view(1, 1), state, following)
    return found[:, 0].cpu()


def one_length(model: Any, steps: GraphSteps, ids: Tensor, most: int) -> dict[str, Any]:
    """A row: how far apart whole, chunked and stepped log-likelihoods lie."""
    length = len(ids)
    chunk, whole = max(1, length // 8 - 1), "yes"
    try:
        reference = mba.log_likelihood(model, ids, chunk=length).per_base[0, 1:]
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        whole = "out of memory"
        reference = mba.log_likelihood(model, ids, chunk=chunk).per_base[0, 1:]
        chunk = max(1, chunk // 8)
    chunked = mba.log_likelihood(model, ids, chunk=chunk).per_base[0, 1:]
    singly = stepped(model, steps, ids, chunk, most)
    return {
        "length": length,
        "whole": whole,
        "nats_a_base": f"{-float(reference.mean()):.6f}",
        "largest": f"{float(reference.abs().max()):.3f}",
        "chunk": chunk,
        "chunked": f"{float((chunked - reference).abs().max()):.1e}",
        "steps": len(singly),
        "stepped": f"{float((singly - reference[-len(singly) :]).abs().max()):.1e}",
    }


def main(
    out: Annotated[Path, typer.Option(help="CSV file, written after every length.")],
    model: Annotated[str, typer.Option(help="Run, export or packaged model.")] = "human42mb-1m4",
    powers: Annotated[str, typer.Option(help="Lengths as powers of two.")] = "10,12,14,16,18,20,22,24",
    steps: Annotated[int, typer.Option(help="Longest sequence that is stepped through from its start.")] = 1 << 16,
    seconds: Annotated[float, typer.Option(help="Begin no length after this.")] = 120,
) -> None:
    """Compare, one length after the other."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    began = time.perf_counter()
    loaded: Any = mba.load(model).to(device)
    fixed = {"model": model, "precision": "fp32"} | provenance(device, "triton")
    singly = GraphSteps(loaded, said)
    lengths = [1 << int(power) for power in powers.split(",")]
    drawn = torch.randint(*BASES, (max(lengths),), generator=torch.Generator().manual_seed(0))
    rows: list[dict[str, Any]] = []
    for length in lengths:
        if time.perf_counter() - began > seconds:
            print(f"not begun in time: {length}")
            continue
        rows.append(one_length(loaded, singly, drawn[:length], steps) | fixed)
        write_rows(out, rows)
        print(rows[-1], f"at {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    typer.run(main)
