"""GPU hours of the paper's recipes, computed from the table of training steps (`benchmarks/results/peer_h200.csv`).

    python scripts/hours.py --write      into docs/paper_results.yaml and docs/reproduction.md

hours = tokens of the run / throughput of one H200. Language models: a constant over layers x width, the mean of the table's
models at 1,024 bases; from 2^18 bases on, as much slower as the table's streamed step is. Audio: the table's U-Net of the same
family, scaled by the sum of layers x width of the stages at their own rate; complex states count COMPLEX times. Estimates, no
measurements.
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from mamba_bio_audio.run.config import load_config

ROOT = Path(__file__).parent.parent
FACTS, PAGE = ROOT / "docs" / "paper_results.yaml", ROOT / "docs" / "reproduction.md"
# A guess: no training step of a complex selective U-Net is in the table.
COMPLEX = 2.5
# Beyond this length steps of the U-Net of YouTubeMix were timed at 0.65 to 0.95 s, of which no file was kept; 200,000 of them.
TIMED_FROM, TIMED_HOURS = 131_073, 44.0
STREAMED_FROM = 1 << 18


def steps() -> dict[str, float]:
    """Tokens a second of the table's training steps by shape, of those beside mamba_ssm and of streamed ones."""
    with (ROOT / "benchmarks" / "results" / "peer_h200.csv").open(newline="") as table:
        rows = [row for row in csv.DictReader(table) if row["benchmark"] == "train" and row["peer_layer"] != "mamba2"]
    # Recorded steps where there are any, as `mba pretrain` runs them.
    rows.sort(key=lambda row: row["recorded"] == "True")
    return {row["shape"]: float(row["mtokens_per_s"]) * 1e6 for row in rows if not row["memory_gib"]}


def work(model: Any) -> float:
    """Layers x width of a model, in a U-Net summed over the stages at their own rates."""
    if model.backbone == "isotropic":
        return float(model.num_layers * model.d_model)
    depth = len(model.pools)
    total, rate, width = 0.0, 1.0, float(model.d_model)
    sizes = []
    for level in range(depth + 1):
        sizes.append(rate * width)
        if level < depth:
            rate, width = rate / model.pools[level], width * model.expand
    down = sizes[:-1] if model.down_blocks else []
    for stage, size in zip(model.stages, [*down, sizes[-1], *reversed(sizes[:-1])], strict=True):
        total += stage.num_layers * size
    return total


def hours(name: str) -> float:
    """Estimated hours of one recipe on an H200."""
    config, rate = load_config(name, ["data.path=."]), steps()
    train, fact = config.train, yaml.safe_load(FACTS.read_text(encoding="utf-8"))[name]
    stages = fact.get("steps_at_length") or {train.length: train.steps}
    sequences = train.length_warmup_keeps == "sequences"
    tokens = sum(
        number * (train.sequences_per_step * length if sequences else train.tokens_per_step)
        for length, number in stages.items()
    )
    if name.startswith("dna/"):
        known = {"12x128, (256, 1024)": 12 * 128, "16x256, (128, 1024)": 16 * 256, "24x512, (64, 1024)": 24 * 512}
        speed = sum(rate[shape] * size for shape, size in known.items()) / len(known) / work(config.model)
        if train.length >= STREAMED_FROM:
            speed *= rate["16x256, (1, 1048576), streamed by 131072"] / rate["16x256, (128, 1024)"]
        return tokens / speed / 3600
    if "youtubemix" in name:
        if train.length >= TIMED_FROM:
            return TIMED_HOURS
        return COMPLEX * tokens / rate["audio/youtubemix+mamba, (64, 8192)"] / 3600
    small = work(load_config("audio/sc09@small", ["data.path=."]).model)
    return tokens / rate["audio/sc09@small, (16, 16000)"] * work(config.model) / small / 3600


def written(value: float) -> str:
    """With one decimal, as the page has it."""
    return f"{round(value, 1):g}"


def filled() -> dict[Path, str]:
    """Both files with the hours that the table gives now."""
    facts, page = FACTS.read_text(encoding="utf-8"), PAGE.read_text(encoding="utf-8")
    for name in yaml.safe_load(facts):
        value = written(hours(name))
        key = re.escape(name)
        facts = re.sub(rf"(^{key}:\n(?:[ #].*\n)*?  gpu_hours: )\S+", rf"\g<1>{value}", facts, flags=re.MULTILINE)
        page = re.sub(rf"(^\| `{key}` \|.*\| )[\d.]+( \|)$", rf"\g<1>{value}\g<2>", page, flags=re.MULTILINE)
    return {FACTS: facts, PAGE: page}


if __name__ == "__main__":
    for path, text in filled().items():
        if "--write" in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
        else:
            print(text)
