"""Classes of whole genomes, and of fragments of them with sequencing errors: k-mers, and with --recipe our model beside them.

    python benchmarks/genomes.py --data DATA/vertebrate_mito --out FILE.csv
    python benchmarks/genomes.py --data DATA/vertebrate_mito --recipe dna/reads --out FILE.csv

Genomes that share more than a fifth of their 31-mers are in one split. Fragments are windows of the test genomes, a class as
often as any other; the models are trained on windows of the training genomes without errors, and k and penalty chosen on
windows of the validation genomes, of which `valid` is the share that is right. Balanced accuracy is the mean over classes;
its interval is over genomes.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from mamba_bio_audio.evaluation.resampling import interval, mean_of
from mamba_bio_audio.pipelines.data import DataModule
from mamba_bio_audio.pipelines.dna.classes import DnaClassesCorpus
from mamba_bio_audio.pipelines.dna.classes_config import DnaClassesConfig
from mamba_bio_audio.pipelines.dna.kmers import fit_kmers, training_sequences
from mamba_bio_audio.pipelines.dna.tokenizer import A, T
from mamba_bio_audio.pipelines.scores import labelled_sequences
from mamba_bio_audio.run.timing import append_row, provenance

KMERS = tuple(range(3, 13))  # ends where two longer words in a row are no better
Rows = list[NDArray[np.uint8]]


def with_errors(rows: Rows, rate: float, seed: int = 0) -> Rows:
    """Copies in which a share of the bases is another one."""
    random = np.random.default_rng(seed)
    changed = []
    for row in rows:
        wrong = (random.random(len(row)) < rate) & (row >= A) & (row <= T)
        turned = A + (row - A + random.integers(1, 4, size=len(row))) % 4
        changed.append(np.where(wrong, turned, row).astype(np.uint8))
    return changed


def whole_genomes(data: Path) -> DnaClassesCorpus:
    """Genomes as examples, related ones in one split."""
    config = DnaClassesConfig(path=str(data), sampling="examples", split="draw", shared_bases="error")
    return DnaClassesCorpus(config, length=1 << 24)


def scores(p: NDArray[np.float64], y: NDArray[np.int64], groups: NDArray[np.int64]) -> dict[str, Any]:
    """Accuracy, and the mean over classes of the share that is right, with its interval over genomes."""
    right = (p.argmax(1) == y).astype(np.float64)

    def recall(label: int) -> Any:
        own = (y == label).astype(np.float64)

        def share(weights: NDArray[np.float64]) -> NDArray[np.float64]:
            there = weights @ own
            # A set of genomes may lack a class; `mean_of` leaves it out.
            return np.divide(weights @ (own * right), there, out=np.full(len(there), np.nan), where=there > 0)

        return share

    balanced = mean_of([recall(label) for label in np.unique(y)])
    found = interval(float(balanced(np.ones((1, len(y))))[0]), balanced, groups)
    bounds = {"balanced_accuracy": found.value, "low": found.low, "high": found.high}
    return {"accuracy": f"{right.mean():.4f}"} | {key: f"{value:.4f}" for key, value in bounds.items()}


def fragments(whole: DnaClassesCorpus, length: int, folder: Path) -> DataModule:
    """Windows of the genomes, in the splits of the whole ones."""
    table = folder / "splits.tsv"
    lines = ["class\trecord\tstart0\tend\tsplit"]
    lines += [f"{whole.classes[r.label]}\t{r.record}\t0\t{r.end}\t{r.split}" for r in whole.labelled.regions]
    table.write_text("\n".join(lines) + "\n")
    config = DnaClassesConfig(path=whole.config.path, intervals=str(table), evaluation_windows=2000)
    module = DataModule(config, length=length, batch_size=1, seed=0)
    module.setup()
    return module


def train_within(recipe: str, settings: list[str], run: Path, device: str, seconds: float | None) -> Path:
    """Train as the recipe says, or for so many seconds; the run.

    How many steps fit is not known before: three quarters of the time the rate stays where it is, then as many steps as should
    fit into the rest lower it. Steps that `settings` name are taken as they are, and the time only ends them.
    """
    from mamba_bio_audio.run.begin import Session
    from mamba_bio_audio.run.pretrained import configure
    from mamba_bio_audio.run.train import train

    config = configure(recipe, settings)
    began, first = time.monotonic(), run.with_name(f"{run.name}-first")
    if seconds is None or any(setting.startswith("train.steps=") for setting in settings):
        until = None if seconds is None else began + seconds
        trained = train(config, run, Session(device, quiet=True, force=run.exists(), deadline=until))
        print(f"{run.name}: {trained.step:,} steps in {time.monotonic() - began:.0f} s", flush=True)
        return run
    flat = [f"train.lr_min={config.train.lr}", "train.steps=1000000", "train.warmup=0.0001", "train.patience=null"]
    session = Session(device, quiet=True, force=first.exists(), deadline=began + 0.75 * seconds)
    trained = train(configure(recipe, [*settings, *flat]), first, session)
    if trained.best_step == 0:
        raise typer.BadParameter(f"{seconds:.0f} s are too few: {trained.step} steps, none of them validated")
    done, passed = trained.step, time.monotonic() - began
    steps = max(1, int(0.9 * done * (seconds - passed) / passed))
    print(f"{run.name}: {done:,} steps in {passed:.0f} s, then {steps:,}", flush=True)
    last = [
        f"head.pretrained={first}",
        f"train.steps={steps}",
        f"train.warmup={min(1.0, 10 / steps)}",
        "train.patience=null",
    ]
    last += ["train.length_warmup=[]", f"train.validate_every={max(1, steps // 8)}"]
    session = Session(device, quiet=True, force=run.exists(), deadline=began + 1.1 * seconds)
    train(configure(recipe, [*settings, *last]), run, session)
    return run


def ours(recipe: str, data: list[str], length: int, settings: list[str], device: str, run: Path, seconds: Any) -> Any:
    """Our model, trained on the same windows: a function from rows to probabilities."""
    from mamba_bio_audio.run.pretrained import configure

    plain = configure(recipe, data)
    # A step of fewer labels says little.
    sequences = max(8, plain.train.tokens_per_step // length)
    size = [f"train.length={length}", f"train.tokens_per_step={sequences * length}", "train.length_warmup=[]"]
    return reading(train_within(recipe, [*data, *size, *settings], run, device, seconds), length, device)


def reading(run: Path, length: int, device: str) -> Any:
    """A run as a function from rows of up to so many bases to probabilities."""
    from mamba_bio_audio.inference.classify import classify
    from mamba_bio_audio.inference.streaming import Passes, positions
    from mamba_bio_audio.run import saved
    from mamba_bio_audio.training.config import resolve_precision

    model = saved.load_classifier(run).to(device)
    passes = Passes(device, resolve_precision(model.config.train.precision, device) == "bf16")
    step = max(1, positions(device) // length)

    def probabilities(rows: Rows) -> NDArray[np.float64]:
        codec = model.codec
        how: dict[str, Any] = {"pad_id": codec.pad_id, "reverse": codec.reverse_complement, "strand": "both"}
        parts = [classify(model, rows[at : at + step], passes=passes, **how) for at in range(0, len(rows), step)]
        return np.concatenate(parts)

    return probabilities


def main(
    data: Annotated[Path, typer.Option(help="Folder with a FASTA for each class.")],
    out: Annotated[Path, typer.Option(help="CSV; rows are added.")],
    length: Annotated[list[int], typer.Option(help="Lengths of fragments; 0 is whole genomes.")] = [0, 1000, 150],  # noqa: B006
    error: Annotated[list[float], typer.Option(help="Shares of wrong bases.")] = [0.0, 0.01],  # noqa: B006
    windows: Annotated[int, typer.Option(help="Training windows of the k-mers.")] = 20_000,
    recipe: Annotated[str | None, typer.Option(help="Recipe of ours; none: k-mers alone.")] = None,
    settings: Annotated[list[str], typer.Option("--set", help="KEY=VALUE of the recipe.")] = [],  # noqa: B006
    bars: Annotated[bool, typer.Option(help="k-mers too.")] = True,
    name: Annotated[str, typer.Option(help="Name of ours in the rows.")] = "ours",
    seconds: Annotated[float | None, typer.Option(help="Train ours for so long, whatever its steps.")] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Folder that keeps the runs of ours; none: they are deleted.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="A run of ours that is scored, instead of training.")] = None,
    device: str = "cpu",
) -> None:
    whole = whole_genomes(data)
    genome = {(r.source, r.record): at for at, r in enumerate(whole.labelled.regions)}
    splits = {split: sum(r.split == split for r in whole.labelled.regions) for split in ("train", "valid", "test")}
    where = provenance("cpu" if recipe is None and run is None else device, "triton")
    print(f"{len(genome):,} genomes: {splits}; {whole.labelled.origin}", flush=True)

    def sets(module: Any, train: Any) -> Any:
        valid, test = (module.evaluation_dataset(split) for split in ("valid", "test"))
        groups = np.array([genome[window.source, window.record] for window in test.windows])
        return train, labelled_sequences(valid), labelled_sequences(test), groups

    with tempfile.TemporaryDirectory() as work:
        for size in length:
            module = fragments(whole, size, Path(work)) if size else None
            if module is None:
                view: Any = DataModule(whole.config, length=whole.length, batch_size=1, seed=0)
                view._corpus = whole
                found = sets(view, labelled_sequences(view.dataset(whole.windows(whole.length))))
            else:
                found = sets(module, training_sequences(module, windows))
            (rows, y), (valid, valid_y), (test, test_y), groups = found
            start = time.process_time()
            models: dict[str, Any] = {}
            if bars:
                bar = fit_kmers(rows, np.asarray(y), valid, valid_y, len(whole.classes), sizes=KMERS)
                models[f"k-mers, k = {bar.k}"] = bar.probabilities
            if run is not None:
                models[name] = reading(run, size or max(map(len, (*rows, *valid, *test))), device)
            elif recipe is not None:
                how = ["data.sampling=examples", "data.split=draw"]
                if module is not None:
                    how = [f"data.intervals={module.config.intervals}", "data.evaluation_windows=500"]  # type: ignore[attr-defined]
                own = size or max(map(len, (*rows, *valid, *test)))
                into = (keep or Path(work)) / f"{name}-{size}"
                models[name] = ours(recipe, [f"data.path={data}", *how], own, settings, device, into, seconds)
            right = {key: f"{(predict(valid).argmax(1) == valid_y).mean():.4f}" for key, predict in models.items()}
            for share in error:
                noisy = with_errors(test, share) if share else test
                for model, predict in models.items():
                    row = {"data": data.name, "length": size or "whole", "errors": share, "model": model}
                    row |= {
                        "train": len(rows),
                        "valid": right[model],
                        "test": len(test),
                        "genomes": len(set(groups.tolist())),
                    }
                    row |= scores(predict(noisy), test_y, groups) | {"seconds": f"{time.process_time() - start:.0f}"}
                    print(row, flush=True)
                    append_row(out, row | where)


if __name__ == "__main__":
    typer.run(main)
