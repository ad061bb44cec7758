"""One training of a network on the five species of docs/results/species.md; species_net.sh runs several at once.

    python3 benchmarks/device/species_net.py lm                        language model of the training blocks and of chromosome X
    python3 benchmarks/device/species_net.py NAME BACKBONE SEED [KEY=VALUE ...]

BACKBONE is none, lm (the language model above, waited for) or a model. Everything goes to $OUT/NAME: config, metrics.csv,
the predictions of both splits, and species.json; nothing is chosen on test. Trainings go on until $DEADLINE (of `date +%s`) is
near, and their rate falls with the time, not with the steps: speed swings under load, and its cosine ends all the same.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

BASE = Path(os.environ.get("OUT", "runs/species-results"))
RUNS = Path(os.environ.get("RUNS", "/tmp/species"))
NAME = sys.argv[1]
os.environ["OUT"] = str(BASE / NAME)
Path(os.environ["OUT"]).mkdir(parents=True, exist_ok=True)
# Seconds between the last step and the deadline, for the evaluation of both splits.
LEFT = float(os.environ.get("LEFT", 40))

import species_runs as species  # noqa: E402

from mamba_bio_audio.jobs.finetune import finetune  # noqa: E402
from mamba_bio_audio.run.begin import Session  # noqa: E402
from mamba_bio_audio.run.pretrained import configure  # noqa: E402
from mamba_bio_audio.run.train import train as run_training  # noqa: E402
from mamba_bio_audio.training import module  # noqa: E402
from mamba_bio_audio.training.config import TrainConfig  # noqa: E402
from mamba_bio_audio.training.schedule import learning_rate  # noqa: E402

# Share of the time that the language model has (all of it where nothing waits for it).
LM_SHARE = float(os.environ.get("LM_SHARE", 0.4))
# Steps before the clock of a training starts: its kernels are compiled in the first ones.
FIRST = 20


def left() -> float:
    """Seconds for the training: until the deadline, less what follows."""
    seconds = float(os.environ.get("DEADLINE", time.time() + 1e6)) - time.time() - LEFT
    return LM_SHARE * seconds if NAME == "lm" else seconds


def by_the_clock(end: float) -> Callable[[TrainConfig, int], float]:
    """The schedule of the rate over the time until `end` (of `time.monotonic`), after which the next step is the last."""
    start: float | None = None
    parts = 100_000

    def rate(train: TrainConfig, step: int) -> float:
        nonlocal start
        now = time.monotonic()
        if start is None and step >= FIRST:
            start = now
        share = 0.0 if start is None else min(1.0, (now - start) / max(end - start, 1e-9))
        if now >= end and step:
            # The next step is the last one, which is validated; all but the first call leave it at that.
            object.__setattr__(train, "steps", min(step + 1, train.steps))
        within = {"steps": parts + 1, "lr": train.lr, "lr_min": train.lr_min, "warmup": train.warmup}
        return learning_rate(round(share * parts), **within)

    return rate


def trained(recipe: str, settings: list[str], seed: int) -> Path:
    run = RUNS / NAME
    settings = [*settings, f"seed={seed}"]
    if species.TOY:
        small = "head.pretrained" not in " ".join(settings)
        settings += [one for one in species.TOY_SETTINGS if small or not one.startswith("model.")]
        settings += [] if NAME == "lm" else ["data.evaluation_windows=8"]
        settings += [
            "train.length=512",
            "train.tokens_per_step=1024",
            "train.length_warmup=[]" if NAME == "lm" else "train.length_warmup=[{length: 256, steps: 2}]",
            "train.micro_batch=1",
            "train.steps=1000000",
            "train.validation_tokens=4096",
        ]
    config = configure(recipe, settings)
    session = Session(species.DEVICE, force=run.exists(), quiet=True)
    module.rate_after = by_the_clock(time.monotonic() + left())  # type: ignore[attr-defined]
    start = time.perf_counter()
    done = (run_training if config.head is None else finetune)(config, run, session)
    row = {"kind": "training", "recipe": recipe, "seed": seed, "overrides": settings, "rate": "falls with the time"}
    species.record("net", NAME, row | {"seconds": time.perf_counter() - start, "summary": done.model_dump()})
    for name in ("config.yaml", "metrics.csv"):
        shutil.copy(run / name, BASE / NAME / name)
    return run


def language_model() -> None:
    """Of the training blocks of the five species and chromosome X of human; best weights by the validation blocks.

    No base of a validation or test block is read in training; chromosome X has no label of a class.
    """
    table, more = RUNS / "lm.tsv", species.chromosome_x()
    paths = ", ".join([*species.write_blocks(table, more), *map(str, more)])
    settings = [
        f"data.path=[{paths}]",
        f"data.intervals={table}",
        "data.reverse_complement=true",
        "data.windows=random",
        "data.num_workers=6",
        "train.tokens_per_step=65536",
        "train.lr=4e-3",
        "train.steps=1000000",
        "train.validate_every=250",
        "train.validation_tokens=1000000",
        "train.checkpoint_every=100000",
    ]
    trained("dna/hg38@1.4m", settings, 0)
    (RUNS / "lm.done").touch()


def classifier(backbone: str, seed: int, overrides: list[str]) -> None:
    settings = [species.easy_paths(), "train.checkpoint_every=100000", "data.num_workers=1"]
    # At a quarter of the length first: a step then has four times as many labels.
    settings += [
        "train.steps=1000000",
        "train.patience=null",
        "train.length_warmup=[{length: 256, steps: 500}]",
        *overrides,
    ]
    if backbone == "lm":
        while not (RUNS / "lm.done").exists():
            if left() < 20 or (RUNS / "lm.failed").exists():
                sys.exit(f"{NAME}: the language model was not done")
            time.sleep(1)
    if backbone != "none":
        settings.append(f"head.pretrained={RUNS / 'lm' if backbone == 'lm' else backbone}")
    run = trained("dna/species", settings, seed)
    for split in ("valid", "test"):
        options = {"run": run, "split": split, "device": species.DEVICE, "baselines": False}
        found = species.evaluate(species.EvaluateOptions.model_validate(options))
        species.record(
            "net",
            NAME,
            {"kind": "evaluation", "split": split, "backbone": backbone, "seed": seed, "result": found.to_json()},
        )
        (BASE / NAME / f"{split}.tsv.gz").write_bytes(gzip.compress(found.predictions.encode()))
        own = found.to_json()["model"]
        print(f"{NAME} {split}: accuracy {own['accuracy']['value']:.4f}, {json.dumps(own)[:160]}", flush=True)


if __name__ == "__main__":
    RUNS.mkdir(parents=True, exist_ok=True)
    if NAME == "lm":
        language_model()
    else:
        classifier(sys.argv[2], int(sys.argv[3]), sys.argv[4:])
