"""The classification runs of docs/results/species.md, in one process so that kernels are compiled once.

    bash benchmarks/device/species_runs.sh STEP...          steps: see STEPS below; each appends to $OUT/species.json

$DATA is a folder with dna/human, dna/other_species and apes/SPECIES, as species_kit.sh lays them out. Trained runs lie
in $RUNS (default /tmp/species). With TOY=1 every training is a few steps on the CPU: that the script runs, not its results.
"""

from __future__ import annotations

import csv
import gc
import gzip
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kmers_torch
import numpy as np
import torch

from mamba_bio_audio.evaluation.resampling import bootstrap_mean
from mamba_bio_audio.jobs.evaluate import EvaluateOptions, evaluate
from mamba_bio_audio.jobs.evaluate_results import ClassesResult
from mamba_bio_audio.jobs.finetune import finetune
from mamba_bio_audio.pipelines.dna.kmers import training_sequences
from mamba_bio_audio.pipelines.scores import labelled_sequences
from mamba_bio_audio.pipelines.synthetic.families import ceiling, ceiling_of_windows, plant_files
from mamba_bio_audio.run.begin import Session
from mamba_bio_audio.run.data import open_data
from mamba_bio_audio.run.environment import environment
from mamba_bio_audio.run.pretrained import configure
from mamba_bio_audio.run.train import train as run_training

OUT, DATA = Path(os.environ.get("OUT", "runs/species-results")), Path(os.environ.get("DATA", "data"))
RUNS = Path(os.environ.get("RUNS", "/tmp/species"))
TOY = bool(os.environ.get("TOY"))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HUMAN = next((path for path in (DATA / "dna/human", Path(".device/human")) if path.is_dir()), DATA / "dna/human")
APES = ("chimpanzee", "gorilla", "human", "orangutan")
# Training windows of the k-mer bar; 345,600 are as many as the published network drew.
BAR_WINDOWS = (10_000, 20_000, 40_000, 80_000, 160_000, 345_600, 691_200)
LENGTHS = {"1k": 1 << 10, "4k": 1 << 12, "16k": 1 << 14, "64k": 1 << 16}
TOY_SETTINGS = [
    "model.d_model=16",
    "model.num_layers=1",
    "train.steps=3",
    "train.validate_every=3",
    "data.num_workers=0",
]


def easy_paths(more: Sequence[Path] = ()) -> str:
    """`data.path` of the easy set, and more files of human sequence."""
    other = DATA / "dna/other_species"
    paths = {
        "ecoli": [other / "escherichia_coli_536.NC_008253.fa.gz"],
        "fly": [other / "drosophila_melanogaster.chr2R_2000001-7000000.fa.gz"],
        "human": [HUMAN / f"hg19.chr{name}.fa.gz" for name in ("3_42000000-44000000", "4_103000000-105000000")]
        + [*more],
        "mouse": [other / "mouse.GRCm38_fragments.fa.gz"],
        "plasmodium": [other / "plasmodium_falciparum.MAL4_MAL12.fa.gz"],
    }
    return "data.path={" + ", ".join(f"{name}: [{', '.join(map(str, found))}]" for name, found in paths.items()) + "}"


def chromosome_x() -> list[Path]:
    """Files of human chromosome X in the folder $CHROMOSOME_X, of which no block of the easy set is."""
    folder = Path(os.environ["CHROMOSOME_X"])
    found = sorted(folder.glob("hg19.chrX_*.fa.gz"))
    if not found:
        sys.exit(f"{folder}: no hg19.chrX_*.fa.gz; kit.sh puts them into .device/human")
    return found


def write_blocks(path: Path, more: Sequence[Path]) -> list[str]:
    """Table of the blocks of the easy set by split, and of whole records of more files, all of which train.

    Returns:
        The files of the easy set.
    """
    config = configure("dna/species", [easy_paths(), "data.num_workers=0"])
    data = open_data(config, "cpu")
    data.setup()
    labelled: Any = data.corpus
    lines = ["file\trecord\tstart0\tend\tsplit"]
    for region in labelled.labelled.regions:
        genome = labelled.labelled.genomes[region.source]
        name = Path(genome.paths[genome.genome_of(region.record)]).name
        lines.append(f"{name}\t{genome.bare_name(region.record)}\t{region.start}\t{region.end}\t{region.split}")
    lines += [f"{file.name}\t{name}\t0\t{end}\ttrain" for file in more for name, end in lengths(file).items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return [one for genome in labelled.labelled.genomes for one in genome.paths]


def train(step: str, name: str, recipe: str, *overrides: str, device: str = DEVICE) -> Path:
    """Train a classifier or a language model; the result is recorded."""
    run = RUNS / name
    settings = [*overrides]
    if TOY:
        settings += TOY_SETTINGS
        settings += ["train.length_warmup=[]"]
        shrink = configure(recipe, [*overrides, "data.path=."])
        length = min(shrink.train.length, 1 << 20 if recipe == "dna/species@1m" else 2048)
        sequences = 1 if length > 2048 else 4
        settings += [f"train.length={length}", f"train.tokens_per_step={sequences * length}", "train.micro_batch=1"]
        settings += ["data.evaluation_windows=4"] if shrink.head is not None else ["train.validation_tokens=4096"]
    config = configure(recipe, settings)
    start = time.perf_counter()
    session = Session(device, force=run.exists())
    trained = (run_training if config.head is None else finetune)(config, run, session)
    record(
        step,
        name,
        {"kind": "training", "recipe": recipe, "overrides": settings, "device": device}
        | {"seconds": time.perf_counter() - start, "summary": trained.model_dump()},
    )
    with (run / "metrics.csv").open() as rows, (OUT / "species_metrics.csv").open("a") as file:
        for number, line in enumerate(rows):
            if number or file.tell() == 0:
                file.write(("run," if not number else f"{name},") + line)
    free()
    return run


def score(
    step: str,
    run: Path,
    split: str = "test",
    *overrides: str,
    length: int | None = None,
    baselines: bool = False,
    device: str = DEVICE,
    copies: Path | None = None,
) -> dict[str, Any]:
    """Evaluate a classifier; the result is recorded, in the control beside what the planted copies allow."""
    start = time.perf_counter()
    options = {"device": device, "baselines": baselines and not TOY, "length": length, "overrides": overrides}
    found = evaluate(EvaluateOptions.model_validate({"run": run, "split": split} | options))
    assert isinstance(found, ClassesResult)
    predictions, result = found.predictions, found.to_json()
    if copies is not None:
        result["control"] = ceiling_of_windows(predictions, copies)
        print(f"== {run.name} {split}: {result['control']}", flush=True)
    row = {"kind": "evaluation", "seconds": time.perf_counter() - start, "result": result}
    record(step, run.name, row)
    own = result["model"]["accuracy"]
    bar = f"   k-mers {result['kmers']['accuracy']['value']:.4f}" if "kmers" in result else ""
    print(
        f"== {run.name} {split} L={result['length']:,} n={result['model']['count']} accuracy {own['value']:.4f} "
        f"({own['low']:.4f} to {own['high']:.4f}, {own['groups']} loci){bar}",
        flush=True,
    )
    free()
    return result


def record(step: str, name: str, row: dict[str, Any]) -> None:
    """Append to species.json, which is whole after every row."""
    path = OUT / "species.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    rows.append({"step": step, "run": name} | row | environment(DEVICE))
    path.write_text(json.dumps(rows, indent=1, default=str))


def free() -> None:
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


def sweep() -> None:
    """Rates of the two small-data recipes, on validation: species.json, and a table for benchmarks/results/."""
    warm = "train.length_warmup=[]"
    for recipe, rate, more in (
        ("dna/species@tiny", 2e-3, ()),
        ("dna/species@tiny", 4e-3, ()),
        ("dna/species@tiny", 8e-3, ()),
        ("dna/species@tiny", 4e-3, (warm,)),
        ("dna/species", 1e-3, ("train.steps=1200",)),
        ("dna/species", 2e-3, ("train.steps=1200",)),
        ("dna/species", 4e-3, ("train.steps=1200",)),
    ):
        name = f"sweep-{recipe.split('/')[1]}-{rate:g}" + ("-1k" if warm in more else "")
        own = (easy_paths(), f"train.lr={rate}", "train.patience=null", "data.evaluation_windows=500")
        run = train("sweep", name, recipe, *own, "train.validation_tokens=null", *more)
        summary = json.loads((run / "manifest.json").read_text())["result"]
        path = OUT / "lr_sweep_species.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                head = [
                    "recipe",
                    "lr",
                    "length_warmup",
                    "steps",
                    "best_step",
                    "valid_nats",
                    "device",
                    "torch",
                    "commit",
                ]
                writer.writerow(head)
            where = environment(DEVICE)
            values = [
                recipe,
                rate,
                "none" if warm in more else "as in the recipe",
                summary["steps"],
                summary["best_step"],
            ]
            writer.writerow([*values, summary["valid_nats"], where["device"], where["torch"], where["commit"]])


def easy() -> None:
    """(a) Five species at 1 kb beside k-mers."""
    run = train("easy", "easy", "dna/species", easy_paths())
    score("easy", run, "valid")
    score("easy", run, baselines=True)
    # The picture and every prediction come with the command.
    mba("evaluate", run, "--no-baselines", "--split", "test", "--quiet")
    for name in ("confusion-test.png", "predictions-test.tsv"):
        (OUT / f"easy-{name}").write_bytes((run / name).read_bytes())


def planted() -> Path:
    """FASTA of the positive control."""
    folder = RUNS / "planted"
    if not (folder / "manifest.json").exists():
        plant_files({name: DATA / "apes" / name / "chr22_epo.fa.gz" for name in APES}, folder, force=True)
    return folder


def control() -> None:
    """(b) Positive control at 2^14, the same weights at shorter windows, and on from there at 2^16."""
    folder = planted()
    copies = folder / "copies.tsv"
    run = train("control", "control-16k", "dna/apes@16k", f"data.path={folder}")
    for length in (1 << 10, 1 << 12):
        score("control", run, length=None if TOY else length, copies=copies)
    score("control", run, copies=copies)
    run = train(
        "control",
        "control-64k",
        "dna/apes@64k",
        f"data.path={folder}",
        f"head.pretrained={run}",
        "train.lr=5e-4",
        "train.length_warmup=[]",
        "train.steps=60",
    )
    score("control", run, copies=copies)
    score("control", run, "valid", copies=copies)
    for name, length in LENGTHS.items():
        print(f"ceiling {name}: {ceiling(length):.4f}, 90 % of the gap: {0.25 + 0.9 * (ceiling(length) - 0.25):.4f}")


def ceilings() -> None:
    """(b) What the planted copies in the test windows of the control allow, without a model: $OUT/planted_ceilings.csv."""
    folder = planted()
    names = ["class", "record", "start0", "end", "predicted", *(f"p_{name}" for name in APES)]
    rows = []
    for length in LENGTHS.values():
        data = open_data(configure("dna/apes@16k", [f"data.path={folder}", "data.num_workers=0"]), "cpu", length=length)
        data.setup()
        windows: Any = data.evaluation_dataset("test").windows
        lines = [[data.corpus.classes[w.label], w.record, w.start, w.end, "", *("0" for _ in APES)] for w in windows]
        table = "\n".join("\t".join(map(str, line)) for line in [names, *lines]) + "\n"
        found = ceiling_of_windows(table, folder / "copies.tsv")
        rows.append(
            {"length": length, "windows": found["windows"], "loci": len({w.locus for w in windows})}
            | {"with_copy": f"{found['with_copy']:.4f}", "ceiling": f"{found['ceiling']:.4f}"}
            | {"formula": f"{ceiling(length):.4f}"}
            | environment("cpu")
        )
        print(rows[-1], flush=True)
    with (OUT / "planted_ceilings.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with (folder / "copies.tsv").open() as file:
        print(Counter(row["class"] for row in csv.DictReader(file, delimiter="\t")))


def apes() -> None:
    """(b) The real task on unseen loci, from scratch and pretrained, and on training loci."""
    folder, lm_folder = DATA / "apes", RUNS / "apes-lm-data"
    lm_folder.mkdir(parents=True, exist_ok=True)
    lines = ["file\trecord\tstart0\tend\tsplit"]
    for name in APES:
        source = (folder / name / "chr22_epo.fa.gz").absolute()
        link = lm_folder / f"{name}.fa.gz"
        link.unlink(missing_ok=True)
        link.symlink_to(source)
        length, header = 0, ""
        with gzip.open(source, "rt") as file:
            for line in [*file, ">"]:
                if line.startswith(">"):
                    if header:
                        split = header.split("split=")[1].split()[0]
                        lines.append(f"{name}.fa.gz\t{header.split()[0]}\t0\t{length}\t{split}")
                    length, header = 0, line[1:].strip()
                else:
                    length += len(line.strip())
    (lm_folder / "intervals.tsv").write_text("\n".join(lines) + "\n")
    lm = train(
        "apes",
        "apes-lm",
        "dna/hg38@1.4m",
        f"data.path={lm_folder}",
        "data.reverse_complement=true",
        "data.num_workers=4",
        "model.num_layers=6",
        "train.length=4096",
        "train.tokens_per_step=131072",
        "train.lr=4e-3",
        "train.steps=1500",
        "train.validate_every=250",
        "train.validation_tokens=1000000",
        "train.checkpoint_every=500",
    )
    for name in LENGTHS:
        for kind, more in (
            ("scratch", ()),
            ("pretrained", (f"head.pretrained={lm}", "train.lr=5e-4", "train.lr_head=2e-3")),
        ):
            short = (
                ("train.steps=100",)
                if name == "64k"
                else ("train.steps=300",)
                if name != "16k"
                else ("train.steps=450",)
            )
            run = train("apes", f"apes-{name}-{kind}", f"dna/apes@{name}", f"data.path={folder}", *short, *more)
            score("apes", run)
            score("apes", run, "train")


def bar() -> None:
    """(a) The k-mer bar alone: every k at several numbers of training windows, with the test accuracy of each.

    $OUT/species_kmers.csv, written after every k; a run that was cut goes on from there. `chosen` marks the least validation
    loss at a number of windows, which `mba evaluate` would take, and `best` the least of all. Windows are doubled until two
    numbers in a row have done no better; the likeliest k come first. WINDOWS and SIZES, with commas, ask for some only.
    With CHROMOSOME_X, a folder, the human class trains on chromosome X too, which the language model of species_net.py reads.
    """
    rows = _read_bar()
    recipe, settings = "dna/species", [easy_paths()]  # what rows are called
    if os.environ.get("CHROMOSOME_X"):
        more, table = chromosome_x(), RUNS / "bar.tsv"
        write_blocks(table, more)
        recipe, settings = "dna/species with chromosome X", [easy_paths(more), f"data.intervals={table}"]
    data = open_data(configure("dna/species", [*settings, "data.num_workers=0"]), "cpu")
    _tuned(data, recipe, rows, BAR_WINDOWS if not TOY else (250,))


def kmers() -> None:
    """(b) The same of the apes and of the control, whose numbers of windows are those of 2^24 to 2^27 bases.

    SETS and LENGTHS, with commas, ask for some only: every length in a process of its own needs less memory.
    """
    rows = _read_bar()
    for name in os.environ.get("SETS", "planted,apes").split(","):
        folder = planted() if name == "planted" else DATA / "apes"
        for length in os.environ.get("LENGTHS", ",".join(LENGTHS)).split(","):
            config = configure(f"dna/apes@{length}", [f"data.path={folder}", "data.num_workers=0"])
            data = open_data(config, "cpu")
            counts = [2**power // LENGTHS[length] for power in range(24, 28)]
            _tuned(data, f"dna/apes@{length}" + " with planted families" * (name == "planted"), rows, counts)


def _read_bar() -> list[dict[str, Any]]:
    path = OUT / "species_kmers.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _tuned(data: Any, recipe: str, rows: list[dict[str, Any]], counts: Sequence[int]) -> None:
    """Fit k-mers to several numbers of training windows, and add what they reach to the rows of `bar`."""
    path = OUT / "species_kmers.csv"
    asked = [int(word) for word in os.environ.get("WINDOWS", "").split(",") if word]
    likely = [int(word) for word in os.environ.get("SIZES", "7,8,6,9,5,4,10,3").split(",")]
    data.setup()
    valid, valid_labels = labelled_sequences(data.evaluation_dataset("valid"))
    dataset: Any = data.evaluation_dataset("test")
    test, targets = labelled_sequences(dataset)
    loci = [window.locus for window in dataset.windows]
    pair = [data.corpus.classes.index(name) for name in ("human", "mouse") if name in data.corpus.classes]
    hard = np.isin(targets, pair)
    for count in counts:
        leasts = _least_of(rows, recipe)
        before = [leasts[windows] for windows in sorted(leasts) if windows < count]
        if asked and count not in asked:
            continue
        if not asked and len(before) > 2 and min(before[-2:]) >= min(before[:-2]):
            break
        done = {int(row["k"]) for row in rows if (row["recipe"], int(row["windows"])) == (recipe, count)}
        sizes = [k for k in (likely if not TOY else (2, 3)) if k not in done]
        train, labels = training_sequences(data, count, most_bases=count * data.length) if sizes else ([], [])
        for k in sizes:
            start = time.perf_counter()
            fitted = kmers_torch.fit(
                kmers_torch.shares_of(train, k, DEVICE),
                labels,
                kmers_torch.shares_of(valid, k, DEVICE, False).rows,
                valid_labels,
                len(data.corpus.classes),
            )
            p = fitted.model.probabilities(kmers_torch.shares_of(test, k, DEVICE, False).rows)
            accuracy = bootstrap_mean((p.argmax(1) == targets).astype(float), loci)
            right = np.asarray(pair)[p[hard][:, pair].argmax(1)] == targets[hard] if len(pair) == 2 else None
            best = min(fitted.table, key=lambda row: row["valid_nats"])
            rows.append(
                {"recipe": recipe, "windows": len(train), "k": k, "strength": fitted.strength}
                | {"valid_nats": f"{best['valid_nats']:.4f}", "valid_accuracy": f"{best['valid_accuracy']:.4f}"}
                | {"test_accuracy": f"{accuracy.value:.4f}", "low": f"{accuracy.low:.4f}"}
                | {"high": f"{accuracy.high:.4f}", "human_mouse": "" if right is None else f"{right.mean():.4f}"}
                | {"test_windows": len(targets), "loci": accuracy.groups}
                | {"at_edge": "penalty" if kmers_torch.at_edge(fitted) else ""}
                | {"seconds": f"{time.perf_counter() - start:.0f}"}
                | {"threads": os.environ.get("OMP_NUM_THREADS", "")}
                | environment(DEVICE)
            )
            print({key: rows[-1][key] for key in list(rows[-1])[:10]}, flush=True)
            if not TOY and float(rows[-1]["valid_nats"]) <= min(_least_of(rows, recipe).values()):
                # For the paired difference (benchmarks/species_pairs.py).
                written = ["class\tlocus\t" + "\t".join(f"p_{name}" for name in data.corpus.classes)]
                for target, locus, share in zip(targets, loci, p, strict=True):
                    shares = "\t".join(f"{value:.5f}" for value in share)
                    written.append(f"{data.corpus.classes[target]}\t{locus}\t{shares}")
                (OUT / "species_kmers_predictions.tsv").write_text("\n".join(written) + "\n")
            leasts = _least_of(rows, recipe)
            for row in (row for row in rows if row["recipe"] == recipe):
                loss = float(row["valid_nats"])
                row["chosen"] = "yes" if loss == leasts[int(row["windows"])] else ""
                row["best"] = "yes" if loss == min(leasts.values()) else ""
            rows.sort(key=lambda row: (row["recipe"], int(row["windows"]), int(row["k"])))
            with path.open("w", newline="") as file:
                names = list({name: None for row in rows for name in row})
                writer = csv.DictWriter(file, names, lineterminator="\n", restval="")
                writer.writeheader()
                writer.writerows(rows)


def _least_of(rows: list[dict[str, Any]], recipe: str) -> dict[int, float]:
    """The least validation loss of each number of windows."""
    found: dict[int, float] = {}
    for row in rows:
        if row["recipe"] == recipe:
            windows, loss = int(row["windows"]), float(row["valid_nats"])
            found[windows] = min(loss, found.get(windows, loss))
    return found


def leak() -> None:
    """(b) What a leak would look like: few loci, trained until they are known by heart, then asked about again."""
    folder = DATA / "apes"
    lines = ["class\trecord\tstart0\tend\tsplit"]
    for name in APES:
        taken: dict[str, int] = {"train": 0, "val": 0, "test": 0}
        length, header, rows = 0, "", []
        with gzip.open(folder / name / "chr22_epo.fa.gz", "rt") as file:
            for line in [*file, ">"]:
                if line.startswith(">"):
                    if header:
                        rows.append((header.split()[0], length, header.split("split=")[1].split()[0]))
                    length, header = 0, line[1:].strip()
                else:
                    length += len(line.strip())
        for record_name, size, split in rows:
            taken[split] += 1
            if split != "train" or taken[split] <= 6:
                lines.append(f"{name}\t{record_name}\t0\t{size}\t{split}")
    table = RUNS / "leak.tsv"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text("\n".join(lines) + "\n")
    run = train(
        "leak",
        "leak-4k",
        "dna/apes@4k",
        f"data.path={folder}",
        f"data.intervals={table}",
        "train.steps=1500",
        "train.patience=null",
        "train.weight_decay=0",
        "train.validate_every=500",
    )
    # The weights of the last step: the best by validation would be the first.
    for split in ("train", "test"):
        options = {"run": run, "split": split, "which": "last", "device": DEVICE, "baselines": False}
        result = evaluate(EvaluateOptions.model_validate(options)).to_json()
        record("leak", f"leak-4k-{split}", {"kind": "evaluation", "result": result})
        own = result["model"]["accuracy"]
        print(
            f"== leak {split}: {own['value']:.4f} ({own['low']:.4f} to {own['high']:.4f}) n={result['model']['count']}"
        )


def megabase() -> None:
    """(c) Windows of 2^20 bases through training, evaluation and prediction."""
    other = DATA / "dna/other_species"
    x = {
        name: HUMAN / f"hg19.chrX_{name}.fa.gz"
        for name in ("10788675-37098256", "37148257-49242997", "2118239-7623882")
    }
    fly, coli = "drosophila_melanogaster.chr2R_2000001-7000000", "escherichia_coli_536.NC_008253"
    falciparum = "plasmodium_falciparum.MAL4_MAL12"
    paths = {
        "ecoli": [other / f"{coli}.fa.gz"],
        "fly": [other / f"{fly}.fa.gz"],
        "human": list(x.values()),
        "plasmodium": [other / f"{falciparum}.fa.gz"],
    }
    first = {path: list(lengths(path).items()) for found in paths.values() for path in found}
    rows = []
    for split, path in zip(("train", "valid", "test"), x.values(), strict=True):
        rows += [("human", record_name, 0, size, split) for record_name, size in first[path]]
    for name, cut in (
        ("fly", (2_100_000, 2_101_100, 3_150_000, 3_151_100)),
        ("ecoli", (2_097_200, 2_098_200, 3_146_900, 3_147_900)),
    ):
        record_name, size = first[paths[name][0]][0]
        rows += [
            (name, record_name, 0, cut[0], "train"),
            (name, record_name, cut[1], cut[2], "valid"),
            (name, record_name, cut[3], size, "test"),
        ]
    # Two chromosomes only: one trains, the other tests, and validation, on which nothing is chosen here, is training
    # sequence.
    (short, short_size), (long, long_size) = sorted(first[paths["plasmodium"][0]], key=lambda item: item[1])
    rows += [
        ("plasmodium", long, 0, long_size, "train"),
        ("plasmodium", long, 0, long_size, "valid"),
        ("plasmodium", short, 0, short_size, "test"),
    ]
    table = RUNS / "megabase.tsv"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(
        "\n".join("\t".join(map(str, row)) for row in [("class", "record", "start0", "end", "split"), *rows]) + "\n"
    )
    where = "data.path={" + ", ".join(f"{name}: [{', '.join(map(str, found))}]" for name, found in paths.items()) + "}"
    run = train("megabase", "megabase", "dna/species@1m", where, f"data.intervals={table}", "data.shared_bases=allow")
    if DEVICE == "cuda":
        print(f"peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
    score("megabase", run)
    start = time.perf_counter()
    files = [x["2118239-7623882"], other / f"{falciparum}.fa.gz", other / "phage_lambda.NC_001416.fa.gz"]
    for mode in ("windows", "stream"):
        mba("predict", run, *files, "--mode", mode, "--out", OUT / f"megabase-{mode}.tsv", "--force", "--quiet")
    record("megabase", "megabase", {"kind": "prediction", "seconds": time.perf_counter() - start})


def lengths(path: Path) -> dict[str, int]:
    """Bases of every record."""
    found: dict[str, int] = {}
    with gzip.open(path, "rt") as file:
        for line in file:
            if line.startswith(">"):
                name = line[1:].split()[0]
                found[name] = 0
            else:
                found[name] += len(line.strip())
    return found


def mitochondria() -> None:
    """(d) mtDNA of all five apes, a test of the plumbing: blocks of the same 16.5 kb train and test."""
    run = train(
        "mitochondria",
        "mitochondria",
        "dna/species@tiny",
        f"data.path={DATA / 'apes'}",
        "data.files=mitochondrion*",
        "train.length=256",
        "train.length_warmup=[]",
        "train.tokens_per_step=16384",
        "train.steps=400",
        "data.block_bases=1500",
        "data.evaluation_windows=50",
        "train.patience=null",
    )
    for split in ("test", "train"):
        score("mitochondria", run, split)


def tiny() -> None:
    """(a) `mba classify dna/species@tiny` on two CPU cores, timed."""
    run, start = RUNS / "tiny", time.perf_counter()
    more = ("--set", "train.steps=3") if TOY else ()
    environment_ = os.environ | {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""}
    cores = ("taskset", "-c", "0,1")
    mba(
        "classify",
        "dna/species@tiny",
        "--set",
        easy_paths(),
        "--out",
        run,
        "--device",
        "cpu",
        "--force",
        "--json",
        *more,
        before=cores,
        env=environment_,
    )
    seconds = time.perf_counter() - start
    record("tiny", "tiny", {"kind": "training", "device": "cpu, 2 threads", "seconds": seconds})
    score("tiny", run, baselines=True, device="cpu")
    print(f"== tiny: {seconds:.0f} s")


def mba(*arguments: Any, before: tuple[str, ...] = (), env: Any = None) -> None:
    """The command in a process of its own."""
    code = "from mamba_bio_audio.cli.main import run; run()"
    subprocess.run([*before, sys.executable, "-c", code, *map(str, arguments)], check=True, env=env)


STEPS = {
    "sweep": sweep,
    "easy": easy,
    "control": control,
    "ceilings": ceilings,
    "apes": apes,
    "kmers": kmers,
    "bar": bar,
    "leak": leak,
    "megabase": megabase,
    "mitochondria": mitochondria,
    "tiny": tiny,
}


if __name__ == "__main__":
    wrong = [name for name in sys.argv[1:] if name not in STEPS]
    if wrong or len(sys.argv) < 2:
        sys.exit(f"steps: {', '.join(STEPS)}")
    OUT.mkdir(parents=True, exist_ok=True)
    for step in sys.argv[1:]:
        begun = time.perf_counter()
        try:
            STEPS[step]()
        except Exception as error:  # one step's failure must not cost the others their machine
            print(f"== {step} FAILED: {type(error).__name__}: {error}", flush=True)
        print(f"== {step}: {time.perf_counter() - begun:.0f} s", flush=True)
