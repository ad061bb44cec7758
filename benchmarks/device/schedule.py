"""Temperatures that fall over a clip, beside constant ones: how many of ten clips are inside, and their own bits along them.

    python3 benchmarks/device/schedule.py RUN --top-p 0.99 1.0:1.0 1.04:0.96 1.08:0.92 --out schedule.json

FIRST:LAST is linear over the seconds of a clip; every schedule draws the same uniform numbers. --out is written after each.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mamba_bio_audio as mba
from mamba_bio_audio.inference.generate import Place, generate_blocks
from mamba_bio_audio.pipelines.audio.samples import Sample, sample_report
from mamba_bio_audio.pipelines.domains import domain_of
from mamba_bio_audio.run.described import read_config


def clips(model: Any, temperatures: Any, top_p: float, rows: int, seed: int) -> tuple[Any, Any]:
    """Levels and bits (rows, samples), a second at each temperature, with the state carried."""
    rate = model.codec.sample_rate_hz
    levels, bits, start = [], [], {}
    for temperature in temperatures:
        how: dict[str, Any] = {"temperature": float(temperature), "top_p": top_p, "seed": seed}
        for block in generate_blocks(model, length=rate, num_samples=rows, **how, **start):
            levels.append(block.tokens.numpy().astype(np.int64))
            bits.append(block.log_likelihood.numpy() / -math.log(2))
            place = Place(0, block.position + block.tokens.shape[1], block.state)
            start = {"prompt": block.tokens[:, -1:].long(), "place": place}
    return np.concatenate(levels, 1), np.concatenate(bits, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("schedules", nargs="+")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model: Any = mba.load(options.run).to("cuda" if torch.cuda.is_available() else "cpu")
    config = read_config(options.run)
    corpus = domain_of(config.data.kind).open(config.data, length=config.train.length)
    found = []
    for schedule in options.schedules:
        first, last = map(float, schedule.split(":"))
        levels, bits = clips(
            model, np.linspace(first, last, options.seconds), options.top_p, options.clips, options.seed
        )
        samples = [Sample(str(row), own) for row, own in enumerate(levels)]
        part = sample_report(samples, model.codec, corpus)["pieces"][-1]
        row = {
            "schedule": schedule,
            "top_p": options.top_p,
            "bits": [round(float(eighth.mean()), 4) for eighth in np.array_split(bits, 8, 1)],
            "own": part["own"],
            "held_out": part["held_out"],
            "inside": part["inside"] | {"all": part["inside_all"]},
        }
        found.append(row)
        print(schedule, row["bits"], row["inside"], flush=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
