"""Fragments of genomes by long words: the k-mer bar of genomes.py beyond 7 bases and on more windows, by torch.

    python benchmarks/genome_words.py --data DATA/vertebrate_mito --length 150 --windows 80000 --k 8 --k 10 --out FILE.csv

Same splits, windows, errors and scores as `genomes.py`; regression by `device/kmers_torch.py` on sparse counts.
k is chosen by `valid_nats`, on windows of the validation genomes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from genomes import fragments, scores, whole_genomes, with_errors
from scipy.sparse import csr_matrix

from mamba_bio_audio.pipelines.dna.kmers import kmer_frequencies, training_sequences
from mamba_bio_audio.pipelines.scores import labelled_sequences
from mamba_bio_audio.run.timing import append_row, provenance

sys.path.insert(0, str(Path(__file__).parent / "device"))
from kmers_torch import Shares, at_edge, fit


def shares_of(rows: list, k: int, both: bool = True) -> Shares:
    """Shares of the canonical k-mers (n, F) and, for gradients, (F, n)."""
    table = csr_matrix(kmer_frequencies(rows, k, True, False)).astype(np.float32)
    table.sort_indices()

    def tensor(part: csr_matrix, shape: tuple[int, int]) -> torch.Tensor:
        at, where, shares = (torch.from_numpy(values) for values in (part.indptr, part.indices, part.data))
        return torch.sparse_csr_tensor(at.int(), where.int(), shares, size=shape)

    turned = tensor(table.tocsc(), table.shape[::-1]) if both else None
    return Shares(tensor(table, table.shape), turned)


def main(
    data: Annotated[Path, typer.Option(help="Folder with a FASTA for each class.")],
    out: Annotated[Path, typer.Option(help="CSV; rows are added.")],
    length: Annotated[int, typer.Option(help="Bases of a fragment.")],
    windows: Annotated[int, typer.Option(help="Training windows.")],
    k: Annotated[list[int], typer.Option(help="Word lengths.")],
    error: Annotated[float, typer.Option(help="Share of wrong bases in test fragments.")] = 0.01,
) -> None:
    whole, where = whole_genomes(data), provenance("cpu")
    genome = {(r.source, r.record): at for at, r in enumerate(whole.labelled.regions)}
    with tempfile.TemporaryDirectory() as work:
        module = fragments(whole, length, Path(work))
        groups = np.array([genome[w.source, w.record] for w in module.evaluation_dataset("test").windows])
        (valid, valid_y), (test, test_y) = (
            labelled_sequences(module.evaluation_dataset(split)) for split in ("valid", "test")
        )
        rows, y = training_sequences(module, windows, 1 << 40)
    noisy = with_errors(test, error)
    for size in k:
        start = time.process_time()
        found = fit(
            shares_of(rows, size), np.asarray(y), shares_of(valid, size, False).rows, valid_y, len(whole.classes)
        )
        best = min(found.table, key=lambda row: row["valid_nats"])
        row = {"data": data.name, "length": length, "errors": error, "model": f"k-mers, k = {size}", "k": size}
        row |= {"train": len(rows), "strength": best["strength"], "penalty_at_edge": at_edge(found)}
        row |= {"valid_nats": f"{best['valid_nats']:.4f}", "valid": f"{best['valid_accuracy']:.4f}", "test": len(test)}
        row |= scores(found.model.probabilities(shares_of(noisy, size, False).rows), test_y, groups)
        row |= {"genomes": len(set(groups.tolist())), "seconds": f"{time.process_time() - start:.0f}"}
        print(row, flush=True)
        append_row(out, row | where)


if __name__ == "__main__":
    typer.run(main)
