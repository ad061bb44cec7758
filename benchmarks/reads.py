"""Reads of five species with sequencing errors: k-mers and our model, and whether a species that was left out looks unknown.

    python benchmarks/reads.py --data DATA --model kmers --out FILE.csv
    python benchmarks/reads.py --data DATA --model ours --device cuda --out FILE.csv

DATA holds dna/human and dna/other_species. Training and validation windows have no errors (`valid` is the share of the latter
that is right); test windows are from blocks of the genomes that no training window touches. Then human, fly, E. coli and
P. falciparum are known and mouse, the nearest relative of one, was never seen: how well the score of a read (its largest
probability; of ours also the energy) tells known test reads from those of mouse, of phage lambda, and from known ones with
their letters shuffled (area under the ROC curve).
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer
from genomes import Rows, train_within, with_errors
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from mamba_bio_audio.evaluation.resampling import bootstrap_mean
from mamba_bio_audio.evaluation.unknown import Rule, scores, shuffle
from mamba_bio_audio.pipelines.data import DataModule
from mamba_bio_audio.pipelines.dna.classes_config import DnaClassesConfig
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.kmers import fit_kmers, training_sequences
from mamba_bio_audio.pipelines.scores import labelled_sequences
from mamba_bio_audio.run.timing import append_row, provenance

KMERS = tuple(range(3, 13))  # ends where two longer words in a row are no better
NEAR = "mouse"


def paths(data: Path) -> dict[str, list[str]]:
    """FASTA files of each species."""
    other, human = data / "dna/other_species", data / "dna/human"
    found = {
        "ecoli": [other / "escherichia_coli_536.NC_008253.fa.gz"],
        "fly": [other / "drosophila_melanogaster.chr2R_2000001-7000000.fa.gz"],
        "human": [human / f"hg19.{name}.fa.gz" for name in ("chr3_42000000-44000000", "chr4_103000000-105000000")],
        "mouse": [other / "mouse.GRCm38_fragments.fa.gz"],
        "plasmodium": [other / "plasmodium_falciparum.MAL4_MAL12.fa.gz"],
    }
    return {name: [str(path) for path in files] for name, files in found.items()}


def windows(files: list[str], length: int, count: int) -> Rows:
    """Windows of the records of files, spread evenly."""
    genome = Genome(files)
    starts = [(name, at) for name, size in genome.records.items() for at in range(0, size - length + 1, length)]
    kept = [starts[at] for at in np.linspace(0, len(starts) - 1, min(count, len(starts))).astype(int)]
    return [genome.fetch(name, at, at + length) for name, at in kept]


def trained(
    config: DnaClassesConfig,
    length: int,
    settings: list[str],
    recipe: str,
    device: str,
    run: Path,
    seconds: float | None,
) -> Any:
    """Our model, and how it reads rows: logits (strands, n, K)."""
    from mamba_bio_audio.inference.classify import last_logits
    from mamba_bio_audio.inference.streaming import Passes, positions
    from mamba_bio_audio.run import saved

    sequences = max(1, 65536 // length)
    size = [f"train.length={length}", f"train.tokens_per_step={sequences * length}", "train.length_warmup=[]"]
    data = [f"data.path={json.dumps(config.path)}", f"data.block_bases={config.block_bases}"]
    data += [f"data.test_fraction={config.test_fraction}", "data.evaluation_windows=500"]
    train_within(recipe, [*data, *size, *settings], run, device, seconds)
    model = saved.load_classifier(run).to(device)
    passes, step = Passes(device, device == "cuda"), max(1, positions(device) // length)

    def logits(rows: Rows) -> Any:
        turned = [model.codec.reverse_complement(row) for row in rows]
        return np.stack(
            [
                np.concatenate(
                    [
                        last_logits(model, reading[at : at + step], model.codec.pad_id, passes).double().cpu().numpy()
                        for at in range(0, len(rows), step)
                    ]
                )
                for reading in (rows, turned)
            ]
        )

    return logits


def of_both(logits: Any, rows: Rows) -> Any:
    """Probabilities of rows, the mean of both strands."""
    return softmax(logits(rows), -1).mean(0)


def largest(probabilities: Any, rows: Rows) -> Any:
    """How known rows look, by their largest probability."""
    return probabilities(rows).max(1)


def known_by(logits: Any, rule: Rule, rows: Rows) -> Any:
    """The same by a rule on logits."""
    return scores(logits(rows), 1.0, rule)


def main(
    data: Annotated[Path, typer.Option(help="Folder with dna/human and dna/other_species.")],
    out: Annotated[Path, typer.Option(help="CSV; rows are added.")],
    model: Annotated[str, typer.Option(help="kmers or ours.")] = "kmers",
    length: Annotated[list[int], typer.Option(help="Lengths of reads.")] = [150, 1000],  # noqa: B006
    error: float = 0.01,
    training: Annotated[int, typer.Option(help="Training windows of the k-mers.")] = 20_000,
    recipe: str = "dna/species",
    settings: Annotated[list[str], typer.Option("--set", help="KEY=VALUE of the recipe.")] = [],  # noqa: B006
    name: Annotated[str, typer.Option(help="Name of ours in the rows.")] = "ours",
    only: Annotated[
        str | None, typer.Option(help="all: with mouse; near: without it; none: both, one after the other.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Train ours for so long, whatever its steps.")] = None,
    device: str = "cpu",
) -> None:
    where = provenance(device if model == "ours" else "cpu", "triton")
    species = paths(data)
    for size in length:
        for left_out in {None: (None, NEAR), "all": (None,), "near": (NEAR,)}[only]:
            own: Any = {name: files for name, files in species.items() if name != left_out}
            config = DnaClassesConfig(path=own, block_bases=32768, test_fraction=0.15, evaluation_windows=2000)
            module = DataModule(config, length=size, batch_size=1, seed=0)
            module.setup()
            test = module.evaluation_dataset("test")
            clean, y = labelled_sequences(test)
            rows = with_errors(clean, error)
            groups = np.unique([window.locus for window in test.windows], return_inverse=True)[1]
            valid = labelled_sequences(module.evaluation_dataset("valid"))
            if model == "kmers":
                count = training if size < 500 else training // 2
                known, labels = training_sequences(module, count)
                bar = fit_kmers(known, labels, *valid, len(own), sizes=KMERS)
                what, rules = f"k-mers, k = {bar.k}", {"probability": partial(largest, bar.probabilities)}
                probabilities: Any = bar.probabilities
            else:
                with tempfile.TemporaryDirectory() as work:
                    logits = trained(config, size, settings, recipe, device, Path(work) / "run", seconds)
                what, rules = name, {rule: partial(known_by, logits, rule) for rule in get_args(Rule)}
                probabilities = partial(of_both, logits)
            right = bootstrap_mean((probabilities(rows).argmax(1) == y).astype(float), groups)
            share = (probabilities(valid[0]).argmax(1) == valid[1]).mean()
            row: dict[str, Any] = {"length": size, "errors": error, "model": what, "classes": len(own)}
            row |= {"valid": f"{share:.4f}", "test": len(y)}
            row |= {"accuracy": f"{right.value:.4f}", "low": f"{right.low:.4f}", "high": f"{right.high:.4f}"}
            if left_out is None:
                foreign = {}
            else:
                strange = {
                    left_out: with_errors(windows(species[left_out], size, 2000), error, 1),
                    "phage": with_errors(
                        windows([str(data / "dna/other_species/phage_lambda.NC_001416.fa.gz")], size, 2000), error, 2
                    ),
                    "shuffled": shuffle(rows),
                }
                foreign = {
                    f"{rule}, {kind}": roc_auc_score(
                        np.repeat([1, 0], [len(rows), len(others)]), np.concatenate([score(rows), score(others)])
                    )
                    for rule, score in rules.items()
                    for kind, others in strange.items()
                }
            keys = [f"{rule}, {kind}" for rule in ("probability", "energy") for kind in (NEAR, "phage", "shuffled")]
            row |= {key: f"{foreign[key]:.4f}" if key in foreign else "" for key in keys}
            print(row, flush=True)
            append_row(out, row | where)


if __name__ == "__main__":
    typer.run(main)
