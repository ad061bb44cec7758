"""One training of a network on the five species of docs/results/species.md; species_net.sh runs several at once.

    python3 benchmarks/device/species_net.py lm                        language model of the training blocks and of chromosome X
    python3 benchmarks/device/species_net.py NAME BACKBONE SEED [KEY=VALUE ...]

BACKBONE is none, lm (the language model above, waited for) or a model. Everything goes to $OUT/NAME: config, metrics.csv,
the predictions of both splits, and species.json; nothing is chosen on test. Steps are cut to
what fits before $DEADLINE (of `date +%s`), by the speed of a short training of the same kind under the same load, so that
the rate always falls to its end.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

BASE = Path(os.environ.get("OUT", "runs/species-results"))
RUNS = Path(os.environ.get("RUNS", "/tmp/species"))
NAME = sys.argv[1]
os.environ["OUT"] = str(BASE / NAME)
Path(os.environ["OUT"]).mkdir(parents=True, exist_ok=True)
# Between the last step and the deadline: evaluation of both splits and the start of a training.
LEFT = float(os.environ.get("LEFT", 25))

import species_runs as species  # noqa: E402

from mamba_bio_audio.jobs.finetune import finetune  # noqa: E402
from mamba_bio_audio.run.begin import Session  # noqa: E402
from mamba_bio_audio.run.pretrained import configure  # noqa: E402
from mamba_bio_audio.run.train import train as run_training  # noqa: E402
from mamba_bio_audio.training.progress import Progress  # noqa: E402

# Share of the time that the language model has (all of it where nothing waits for it), and of a classifier's steps
# that read windows of a quarter of the length first: a step then has four times as many labels.
LM_SHARE, WARM = float(os.environ.get("LM_SHARE", 0.4)), 0.15


def left() -> float:
    """Seconds for the training: until the deadline, less what follows."""
    seconds = float(os.environ.get("DEADLINE", time.time() + 1e6)) - time.time() - LEFT
    return LM_SHARE * seconds if NAME == "lm" else seconds


def warm(recipe: str, settings: list[str], steps: int) -> list[str]:
    """The settings with so many steps, of which a classifier reads short windows first."""
    config = configure(recipe, settings)
    few = [f"train.steps={steps}"]
    if config.head is not None:
        few.append(f"train.length_warmup=[{{length: {config.train.length // 4}, steps: {max(1, int(WARM * steps))}}}]")
    return [*settings, *few]


def fitting(recipe: str, settings: list[str]) -> int:
    """Steps that fit, at most those asked for."""
    asked = configure(recipe, settings).train.steps
    probe = 3 if species.TOY else 40
    short = [
        f"train.validate_every={probe}",
        "train.validation_tokens=65536",
        "train.log_every=10",
    ]
    config = configure(recipe, warm(recipe, [*settings, *short, "train.patience=null"], probe))
    times: list[float] = []
    step = Progress.step

    def timed(self: Progress, *given: Any) -> None:
        times.append(time.perf_counter())
        step(self, *given)

    start = time.time()
    Progress.step = timed  # type: ignore[method-assign]
    try:
        run_training(config, RUNS / f"{NAME}-probe", Session(species.DEVICE, force=True, quiet=True))
    finally:
        Progress.step = step  # type: ignore[method-assign]
    # Kernels are compiled in the first steps of each length; reading the loss, every tenth, waits for the device.
    since = probe // 2
    seconds = (times[-1] - times[since]) / (len(times) - 1 - since)
    # Validation takes part of the time, and speed swings under load.
    steps = int(0.85 * left() / seconds)
    told = f"probe {time.time() - start:.0f} s, {1e3 * seconds:.1f} ms a step; {steps} steps fit, {asked} asked"
    print(f"{NAME}: {told}", flush=True)
    return min(asked, max(10, steps))


def trained(recipe: str, settings: list[str], seed: int) -> Path:
    run = RUNS / NAME
    settings = [*settings, f"seed={seed}"]
    if species.TOY:
        small = "head.pretrained" not in " ".join(settings)
        settings += [one for one in species.TOY_SETTINGS if small or not one.startswith("model.")]
        settings += [
            "train.length=256",
            "train.tokens_per_step=1024",
            "train.micro_batch=1",
            "train.validation_tokens=4096",
        ]
    steps = fitting(recipe, settings)
    config = configure(recipe, warm(recipe, settings, steps))
    session = Session(species.DEVICE, force=run.exists(), quiet=True, deadline=time.monotonic() + left() + 5)
    start = time.perf_counter()
    done = (run_training if config.head is None else finetune)(config, run, session)
    row = {"kind": "training", "recipe": recipe, "seed": seed, "overrides": settings, "steps": steps}
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
        f"train.steps={os.environ.get('LM_STEPS', '5000')}",
        "train.validate_every=250",
        "train.validation_tokens=1000000",
        "train.checkpoint_every=100000",
    ]
    trained("dna/hg38@1.4m", settings, 0)
    (RUNS / "lm.done").touch()


def classifier(backbone: str, seed: int, overrides: list[str]) -> None:
    settings = [species.easy_paths(), "train.checkpoint_every=100000", "data.num_workers=2", *overrides]
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
