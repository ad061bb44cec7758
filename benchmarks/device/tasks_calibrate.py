"""How fast small models train side by side on a GPU, and at which rates they learn the synthetic tasks.

python benchmarks/device/tasks_calibrate.py --seconds 22 --out $OUT/tasks_calibrate.csv
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import torch

from mamba_bio_audio.models.answers import answers
from mamba_bio_audio.models.build import build
from mamba_bio_audio.pipelines.synthetic.tasks import Samples
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.training.side_by_side import Block, Lane, advance

# Recipe, overrides, arms (mixer, rate, seed), steps recorded at a time.
TRIALS = {
    "induction-8x256": (
        "synthetic/induction",
        ["train.tokens_per_step=2048"],
        [("mamba", rate, seed) for rate in (1e-3, 2e-3, 4e-3) for seed in (0, 1, 2)],
        8,
    ),
    "copying-64x256": (
        "synthetic/selective-copying",
        [],
        [(mixer, rate, 0) for mixer in ("mamba", "s4d-real", "s4d") for rate in (1e-3, 2e-3, 4e-3)],
        4,
    ),
    "induction-32x256": (
        "synthetic/induction",
        [],
        [("mamba", rate, seed) for rate in (1e-3, 2e-3, 4e-3) for seed in (0, 1, 2)],
        8,
    ),
}


def trial(name: str, arguments: argparse.Namespace, rows: list[dict]) -> None:
    recipe, overrides, arms, together = TRIALS[name]
    device = arguments.device
    began = time.perf_counter()
    lanes = []
    config: Any = None
    for mixer, rate, seed in arms:
        given = [*overrides, f"model.mixer={mixer}", f"train.lr={rate}", f"train.lr_min={rate}", "train.warmup=0.005"]
        config = load_config(recipe, [*given, "train.steps=100000"])
        model = build(config.model.model_copy(update={"vocab_size": config.data.vocab}), seed=seed)
        lanes.append(Lane(model, config.train, device, narrow=device == "cuda"))
    task, length = config.data.task, config.train.length
    batch = config.train.sequences_per_step
    shape = (together, batch, length)
    block = Block(*(torch.empty(shape, dtype=torch.int64, device=device) for _ in range(2)))
    numbers = torch.arange(together * batch, device=device)

    def fill(first: int) -> None:
        tokens, targets = task.batch(Samples(0, 0, numbers + first), length)
        block.tokens.copy_(tokens.view(shape))
        block.targets.copy_(targets.view(shape))

    step = 0
    fill(0)
    advance(lanes, block)
    step += together
    for lane in lanes:
        lane.record(block)
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    print(f"{name}: {len(lanes)} lanes ready after {start - began:.1f} s", flush=True)
    told, first_step = start, step
    while time.perf_counter() - start < arguments.seconds:
        for _ in range(10):
            fill(step * batch)
            advance(lanes, block)
            step += together
        losses = None
        if time.perf_counter() - told > arguments.seconds / 6:
            losses = [lane.read() for lane in lanes]
            told = time.perf_counter()
            ms = 1e3 * (told - start) / (step - first_step)
            print(f"  step {step:,} {ms:.3f} ms a step of all  " + " ".join(f"{v:.3f}" for v in losses), flush=True)
        elif device == "cuda":
            torch.cuda.synchronize()
    for (mixer, rate, seed), lane in zip(arms, lanes, strict=True):
        found = {}
        lane.model.eval()
        for size in arguments.lengths if name.startswith("induction") else [length]:
            examples = max(64, min(1024, (1 << 20) // size))
            tokens, targets = task.batch(Samples(0, -3, torch.arange(examples, device=device)), size)
            with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                _, count, right = answers(lane.model, tokens, targets)
            found[size] = round(float(right) / float(count), 4)
        loss = lane.read()
        rows.append(
            {"trial": name, "mixer": mixer, "lr": rate, "seed": seed, "steps": step, "loss": loss, "right": found}
        )
        print(f"  {mixer:10} {rate:g} seed {seed}: {found}", flush=True)
    with Path(arguments.out).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="of training per trial")
    parser.add_argument("--trials", default=",".join(TRIALS))
    parser.add_argument("--lengths", type=lambda text: [1 << int(k) for k in text.split(",")], default="6,8,10,14,17")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    if isinstance(given.lengths, str):
        given.lengths = [1 << int(k) for k in given.lengths.split(",")]
    found: list[dict] = []
    for each in given.trials.split(","):
        trial(each, given, found)
