"""Starts of open reading frames in constructed sequence, by `head.task=bases`: what a base is depends on 60 bases behind it.

    python benchmarks/orfs.py --arm small --arm "complex=model.ssm.complex=true" --device cuda --out FILE.csv

Bases are drawn at random. A start is the A of each ATG that CODONS codons without a stop follow in its frame, on either strand.
A model that knows ATG alone and nothing of stops has an average precision of the share of ATGs that are starts, which stands in
each row (`atg_alone`), and so has the one that knows the codon behind it too. Test is a record that is never trained on.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from mamba_bio_audio.evaluation.values import evaluate_values
from mamba_bio_audio.inference.streaming import Passes
from mamba_bio_audio.pipelines.domains import domain_of
from mamba_bio_audio.run import saved
from mamba_bio_audio.run.begin import Session
from mamba_bio_audio.run.data import open_data
from mamba_bio_audio.run.pretrained import configure
from mamba_bio_audio.run.timing import append_row, provenance
from mamba_bio_audio.run.train import train
from mamba_bio_audio.training.config import resolve_precision

STOPS = (b"TAA", b"TAG", b"TGA")
RECORDS = {"train": 16, "valid": 1, "test": 2}


def words(text: NDArray[np.uint8], *wanted: bytes) -> NDArray[np.bool_]:
    """Where words of three letters begin in (n,) ASCII codes."""
    found = np.zeros(len(text), bool)
    for word in wanted:
        found[:-2] |= (text[:-2] == word[0]) & (text[1:-1] == word[1]) & (text[2:] == word[2])
    return found


def starts(text: NDArray[np.uint8], codons: int) -> NDArray[np.bool_]:
    """Where an ATG begins that so many codons without a stop follow, all of them in the sequence."""
    free = ~words(text, *STOPS)
    found = words(text, b"ATG")
    for codon in range(1, codons + 1):
        found[: -3 * codon] &= free[3 * codon :]
    found[len(text) - 3 * codons - 2 :] = False
    return found


def construct(folder: Path, bases: int, codons: int) -> float:
    """A FASTA, its splits and the starts on both strands, in a folder; the share of ATGs that are starts."""
    random = np.random.default_rng(0)
    fasta, bed, splits, known, atgs = [], [], ["file\trecord\tstart0\tend\tsplit"], 0, 0
    complement = np.zeros(256, np.uint8)
    complement[list(b"ACGT")] = list(b"TGCA")
    for split, count in RECORDS.items():
        for number in range(count):
            name = f"{split}{number}"
            text = np.frombuffer(b"ACGT", np.uint8)[random.integers(0, 4, size=bases)]
            fasta.append(f">{name}\n{text.tobytes().decode()}\n")
            splits.append(f"g.fa\t{name}\t0\t{bases}\t{split}")
            for strand, read in (("+", text), ("-", complement[text][::-1])):
                there = np.flatnonzero(starts(read, codons))
                known, atgs = known + len(there), atgs + int(words(read, b"ATG").sum())
                own = there if strand == "+" else bases - 1 - there
                bed += [f"{name}\t{at}\t{at + 1}\tstart\t0\t{strand}" for at in sorted(own.tolist())]
    (folder / "g.fa").write_text("".join(fasta))
    (folder / "splits.tsv").write_text("\n".join(splits) + "\n")
    (folder / "starts.bed").write_text("\n".join(bed) + "\n")
    return known / atgs


def main(
    out: Annotated[Path, typer.Option(help="CSV; rows are added.")],
    work: Annotated[Path, typer.Option(help="Folder of the data and runs.")] = Path("/tmp/orfs"),
    arm: Annotated[list[str], typer.Option(help="NAME or NAME=KEY=VALUE;KEY=VALUE of the recipe.")] = ["recipe"],  # noqa: B006
    recipe: str = "dna/short",
    bases: Annotated[int, typer.Option(help="Bases of each of the 19 records.")] = 1 << 18,
    codons: Annotated[int, typer.Option(help="Codons without a stop.")] = 20,
    length: Annotated[int, typer.Option(help="Scored bases of a window.")] = 256,
    windows: Annotated[int, typer.Option(help="Windows of a step.")] = 32,
    settings: Annotated[list[str], typer.Option("--set", help="KEY=VALUE of the recipe, of every arm.")] = [],  # noqa: B006
    seconds: Annotated[float, typer.Option(help="Longest training of an arm.")] = 1e6,
    device: str = "cpu",
) -> None:
    folder = work / f"{bases}-{codons}"
    folder.mkdir(parents=True, exist_ok=True)
    share = construct(folder, bases, codons)
    # A start and the last codon that counts lie in the window of every scored base.
    margin = 3 * codons + 4
    data = ["data.kind=dna-tracks", "data.contigs=all", "data.stranded=true", f"data.margin={margin}"]
    data += [
        f"data.path={folder / 'g.fa'}",
        f"data.tracks={folder / 'starts.bed'}",
        f"data.intervals={folder / 'splits.tsv'}",
    ]
    size = ["head.task=bases", f"train.length={length + 2 * margin}"]
    size += [f"train.tokens_per_step={windows * (length + 2 * margin)}"]
    for one in arm:
        name, _, more = one.partition("=")
        began = time.monotonic()
        config = configure(recipe, [*data, *size, *settings, *(more.split(";") if more else [])])
        run = work / f"run-{codons}-{name}"
        train(config, run, Session(device, quiet=True, force=run.exists(), deadline=began + seconds))
        model: Any = saved.load_classifier(run).to(device)
        module = open_data(model.config, device, progress=None)
        passes = Passes(device, resolve_precision(config.train.precision, device) == "bf16")
        found = evaluate_values(model, module, domain_of(config.data.kind), split="test", passes=passes)
        scores = found["model"]["outputs"]["start"]
        row: dict[str, Any] = {"arm": name, "settings": more, "codons": codons, "steps": config.train.steps}
        row |= {"bases": found["positions"], "starts": f"{scores['there']:.5f}", "atg_alone": f"{share:.4f}"}
        for key in ("auroc", "average_precision", "mcc"):
            row |= {
                f"{key}{end}": f"{scores[key][part]:.4f}"
                for end, part in (("", "value"), ("_low", "low"), ("_high", "high"))
            }
        row |= {"seconds": f"{time.monotonic() - began:.0f}"}
        print(row, flush=True)
        append_row(out, row | provenance(device))


if __name__ == "__main__":
    typer.run(main)
