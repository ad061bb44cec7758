"""Does a model use what lies 2^20 positions back? Trains needle and copy tasks at short lengths, tests at long ones.

    python benchmarks/long_memory.py needle --out benchmarks/results/needle
    python benchmarks/long_memory.py copy --out benchmarks/results/copy
    python benchmarks/long_memory.py probe RUN FASTA --out benchmarks/results/copy_probe

`needle` and `copy` train at lengths from 64 up to a longest one that doubles whenever the task is solved (or the
steps of a stage are spent), up to --train-length, then score lengths up to --test-length with the state carried in
chunks. `probe` takes a trained DNA model, lays real sequence X, filler, X again, and reports the loss of the second
X against that of the first at every length of the filler.
Each writes OUT.csv and OUT.png.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mamba_bio_audio import checkpoint
from mamba_bio_audio.evaluation.context import target_nats
from mamba_bio_audio.layers.config import SsmConfig
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.heads import Classifier
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.synthetic.long_memory import CopyTask, NeedleTask
from mamba_bio_audio.training.config import TrainConfig
from mamba_bio_audio.training.optim import build_optimizer
from mamba_bio_audio.training.streaming import streamed_loss

# Batches of test data are numbered from here, so that none was trained on.
TEST = 1 << 40


def make(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Model and task."""
    config = ModelConfig(
        d_model=arguments.d_model,
        num_layers=arguments.num_layers,
        vocab_size=12,
        # Decays within rounding of 1 must keep their value for memories beyond 1e5 steps, and some channels begin with
        # memories as long as the test: the initial delta is log-uniform from 1e-7 instead of from 1e-3.
        ssm=SsmConfig(precise=True, dt_min=arguments.dt_min, dt_floor=arguments.dt_min),
    )
    torch.manual_seed(arguments.seed)
    model = build_model(config, seed=arguments.seed)
    if arguments.task == "copy":
        return model, CopyTask(seed=arguments.seed)
    task = NeedleTask(seed=arguments.seed)
    head = HeadConfig(pool="last", classes=tuple(f"marker{i}" for i in range(task.classes)))
    return Classifier(model, head), task


def train(model: Any, task: Any, arguments: argparse.Namespace, device: str) -> list[dict[str, Any]]:
    """Stages of doubling length; one row per stage."""
    # The needle's marker alone, without anything after it, comes first.
    length = 64
    rows: list[dict[str, Any]] = []
    steps_in_all = arguments.steps * (int(math.log2(arguments.train_length // length)) + 1)
    config = TrainConfig(
        steps=steps_in_all, length=length, tokens_per_step=length, lr=arguments.lr, weight_decay=arguments.weight_decay
    )
    optimizer = build_optimizer(model, config)
    training = replace(task, within=1.0) if isinstance(task, NeedleTask) else task
    random = np.random.default_rng(arguments.seed)
    batch = 0
    begun = time.perf_counter()
    while length <= arguments.train_length and time.perf_counter() - begun < arguments.seconds:
        started, recent = time.perf_counter(), []
        size = max(4, arguments.tokens // length)
        for step in range(1, arguments.steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = arguments.lr * min(1.0, (batch + 1) / 200)
            # Between 64 and the stage's length, so that no length and no distance is special.
            short = int(64 * 2 ** (random.random() * math.log2(length / 64)))
            tokens, targets = (t.to(device) for t in training.batch(batch, max(size, arguments.tokens // short), short))
            batch += 1
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda" and arguments.bf16):
                loss, count, _ = streamed_loss(model, tokens, targets, chunk=short)
            mean = loss / count
            optimizer.zero_grad()
            mean.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step % 25 == 0:
                recent = [*recent[-3:], score(model, task, 128, length, device, arguments, batch)["accuracy"]]
                # Solved is four tests in a row.
                if (len(recent) == 4 and min(recent) >= 0.99) or time.perf_counter() - begun > arguments.seconds:
                    break
        rows.append(
            {
                "length": length,
                "steps": step,
                "loss": float(mean.detach()),
                "accuracy": recent[-1] if recent else math.nan,
            }
        )
        print(f"trained at {length:,}: {rows[-1]} in {time.perf_counter() - started:.0f} s", flush=True)
        length *= 2
    return rows


@torch.inference_mode()
def score(
    model: Any, task: Any, rows: int, length: int, device: str, arguments: argparse.Namespace, number: int = 0
) -> dict[str, float]:
    """Accuracy and nats on fresh rows, chunk by chunk with the state carried."""
    model.eval()
    hits, nats, count = 0, 0.0, 0
    at_once = max(1, min(rows, arguments.positions // length))
    for low in range(0, rows, at_once):
        tokens, targets = task.batch(TEST + number * rows + low, min(at_once, rows - low), length)
        state, step = None, max(1, arguments.positions // len(tokens))
        for start in range(0, length, step):
            part = slice(start, start + step)
            expected = targets[:, part].to(device)
            scored = expected != -100
            last = bool(scored.any())
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda" and arguments.bf16):
                out = model(tokens[:, part].to(device), state, logits="all" if last else "none")
            state = out.state
            if last:
                logits = out.logits[scored].float()
                hits += int((logits.argmax(1) == expected[scored]).sum())
                nats += float(torch.nn.functional.cross_entropy(logits, expected[scored], reduction="sum"))
                count += int(scored.sum())
    model.train()
    return {"accuracy": hits / count, "nats": nats / count, "count": count}


def run_task(arguments: argparse.Namespace, device: str) -> list[dict[str, Any]]:
    """Train, then one row per tested length."""
    model, task = make(arguments)
    model.to(device)
    reached = train(model, task, arguments, device)[-1]["length"]
    if arguments.weights:
        torch.save(model.state_dict(), arguments.weights)
    rows = []
    length = 256
    while length <= arguments.test_length:
        started = time.perf_counter()
        result = score(model, task, arguments.rows, length, device, arguments, 1)
        rows.append({"task": arguments.task, "length": length, "trained_length": reached} | result)
        print(f"tested at {length:,}: {result} in {time.perf_counter() - started:.0f} s", flush=True)
        length *= 4
    return rows


def run_probe(arguments: argparse.Namespace, device: str) -> list[dict[str, Any]]:
    """Nats per base of the first and of the second X, by length of the filler."""
    model = checkpoint.load(arguments.run)
    model.to(device).eval()
    genome = Genome(arguments.fasta)
    record = max(genome.records, key=lambda name: genome.records[name])
    size, length = arguments.copied, genome.records[record]
    random = np.random.default_rng(arguments.seed)
    rows = []
    for filler in (0, 1 << 8, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18):
        if filler + size + 1000 > length:
            print(f"{record} is too short for a filler of {filler:,}")
            break
        sums = np.zeros(2)
        for _ in range(arguments.rows):
            at, other = (int(random.integers(0, length - max(filler, size) - 300)) for _ in range(2))
            x, between = genome.fetch(record, at, at + size), genome.fetch(record, other, other + filler + 256)
            # 256 bases of other sequence before either X: neither stands at the beginning of a sequence.
            first = np.concatenate([between[:256], x]).astype(np.int64)
            twice = np.concatenate([first, between[256:], between[:256], x]).astype(np.int64)
            for i, symbols in enumerate((first, twice)):
                window = torch.from_numpy(symbols)[None]
                nats = target_nats(
                    model, window, size, positions=arguments.positions, device=device, narrow=device == "cuda"
                )
                sums[i] += nats[0][(x >= 7) & (x <= 10)].mean()
        first_nats, second_nats = sums / arguments.rows
        rows.append(
            {"task": "probe", "filler": filler, "copied": size, "first_nats": first_nats, "second_nats": second_nats}
        )
        print(rows[-1], flush=True)
    return rows


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against length, or nats of both copies against the filler."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    if rows[0]["task"] == "probe":
        for name in ("first_nats", "second_nats"):
            axes.plot(
                [max(1, row["filler"]) for row in rows], [row[name] for row in rows], "o-", label=name[:-5] + " X"
            )
        axes.set(xscale="log", xlabel="bases between", ylabel="nats per base")
        axes.legend()
    else:
        axes.plot([row["length"] for row in rows], [row["accuracy"] for row in rows], "o-")
        axes.axvline(rows[0]["trained_length"], color="grey", linestyle=":")
        axes.set(xscale="log", xlabel=f"length (trained up to {rows[0]['trained_length']:,})", ylabel="accuracy")
        axes.set_ylim(0, 1.02)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("needle", "copy", "probe"))
    parser.add_argument("run", nargs="?", help="probe: trained run")
    parser.add_argument("fasta", nargs="?", help="probe: sequence that the run was not trained on")
    parser.add_argument("--out", type=Path, required=True, help="without suffix")
    parser.add_argument("--train-length", type=int, default=1 << 14)
    parser.add_argument("--test-length", type=int, default=1 << 20)
    parser.add_argument("--steps", type=int, default=4000, help="most steps per stage")
    parser.add_argument(
        "--seconds", type=float, default=400, help="training ends after this; what was reached is tested"
    )
    parser.add_argument("--tokens", type=int, default=1 << 17, help="positions per step")
    parser.add_argument("--positions", type=int, default=1 << 18, help="positions put through at a time when testing")
    parser.add_argument("--rows", type=int, default=200, help="test windows per length")
    parser.add_argument("--copied", type=int, default=512, help="probe: bases of X")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--dt-min", type=float, default=1e-7, help="smallest initial delta")
    parser.add_argument("--d-model", type=int, default=64)
    parser.add_argument("--num-layers", type=int, default=4)
    parser.add_argument(
        "--bf16", action="store_true", help="autocast; fp32 by default, as memory over 1e6 steps is the question"
    )
    parser.add_argument("--weights", type=Path, help="keep the trained weights here")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.task == "probe" and not (arguments.run and arguments.fasta):
        parser.error("probe needs RUN and FASTA")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = run_probe(arguments, device) if arguments.task == "probe" else run_task(arguments, device)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    picture(rows, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
