"""Peak memory and speed of one exact training step against length, streamed and whole, on one GPU.

    python benchmarks/bench_length.py --out benchmarks/results/length_h100.csv
    python benchmarks/bench_length.py --plot benchmarks/results/length_h100.csv

A step is loss and gradients of one sequence (short ones: as many as make 2^17 positions), bf16 autocast, fp32 weights.
Lengths that run out of memory are rows of their own. At 2^20 the gradients of both ways are compared where both fit.
"""

from __future__ import annotations

import argparse
import csv
import gc
import math
import time
from pathlib import Path
from typing import Any

import torch

from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.training.streaming import streamed_loss
from mamba_bio_audio.workflow.environment import environment

MODELS = {"16x256": (16, 256), "24x512": (24, 512), "12x128": (12, 128)}


def step(model: torch.nn.Module, ids: torch.Tensor, chunk: int) -> None:
    """One forward and backward; gradients in `.grad`."""
    model.zero_grad(set_to_none=True)
    with torch.autocast("cuda", torch.bfloat16):
        loss, _, _ = streamed_loss(model, ids[:, :-1], ids[:, 1:], chunk=chunk)
    (loss / ids.numel()).backward()


def measure(model: torch.nn.Module, length: int, chunk: int, rounds: int) -> dict[str, Any]:
    """Median seconds and peak memory; seconds NaN when memory runs out."""
    rows = max(1, (1 << 17) // length)
    ids = torch.randint(7, 11, (rows, length + 1), device="cuda")
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        step(model, ids, chunk)
        torch.cuda.synchronize()
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            step(model, ids, chunk)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        seconds = sorted(times)[len(times) // 2]
    except torch.OutOfMemoryError:
        seconds = math.nan
    model.zero_grad(set_to_none=True)
    return {
        "length": length,
        "rows": rows,
        "seconds": seconds,
        "tokens_per_second": rows * length / seconds,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def compare(model: torch.nn.Module, length: int, chunk: int) -> float:
    """Largest relative difference of a parameter's gradient, fp32 weights and activations."""
    ids = torch.randint(7, 11, (1, length + 1), device="cuda")
    found = []
    for size in (length, chunk):
        model.zero_grad(set_to_none=True)
        loss, _, _ = streamed_loss(model, ids[:, :-1], ids[:, 1:], chunk=size)
        (loss / length).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    return max(float((a - b).norm() / a.norm()) for a, b in zip(*found, strict=True))


def plot(path: Path) -> None:
    """Memory and speed against length, beside the CSV."""
    from matplotlib.figure import Figure

    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["mode"] != "compare" and row["seconds"] != "nan"]
    figure = Figure(figsize=(11, 4), layout="constrained")
    memory, speed = figure.subplots(1, 2)
    for key in dict.fromkeys((row["model"], row["mode"]) for row in rows):
        own = [row for row in rows if (row["model"], row["mode"]) == key]
        style = "o-" if key[1] == "streamed" else "s--"
        x = [int(row["length"]) for row in own]
        memory.plot(x, [float(row["peak_gib"]) for row in own], style, label=" ".join(key))
        speed.plot(x, [float(row["tokens_per_second"]) for row in own], style, label=" ".join(key))
    memory.set(xscale="log", yscale="log", xlabel="length", ylabel="peak GiB")
    speed.set(xscale="log", yscale="log", xlabel="length", ylabel="tokens per second")
    memory.legend(fontsize=7)
    figure.savefig(path.with_suffix(".png"), dpi=130)


def main() -> None:
    """Parse, measure, write after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path, help="only draw this CSV")
    parser.add_argument("--models", default="16x256,24x512")
    parser.add_argument("--chunk", type=int, default=1 << 16)
    parser.add_argument("--longest", type=int, default=24, help="power of two")
    parser.add_argument("--seconds", type=float, default=500, help="stop beginning new rows after this")
    arguments = parser.parse_args()
    if arguments.plot:
        plot(arguments.plot)
        return
    where, started = environment("cuda"), time.perf_counter()
    fixed = {name: where[name] for name in ("device", "torch", "commit", "started")}
    rows: list[dict[str, Any]] = []

    def add(row: dict[str, Any]) -> None:
        rows.append(row | fixed)
        print(row, flush=True)
        with arguments.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    for name in arguments.models.split(","):
        layers, width = MODELS[name]
        model = build_model(ModelConfig(d_model=width, num_layers=layers, vocab_size=12), seed=0).cuda()
        full = False
        # 2^17 is what the unstreamed step is compared at.
        for power in sorted({17, *range(10, arguments.longest + 1, 2)}):
            length = 1 << power
            for mode in ("whole", "streamed"):
                late = time.perf_counter() - started > arguments.seconds
                if late or (mode == "whole" and full) or (mode == "streamed" and length <= arguments.chunk):
                    continue
                chunk = length if mode == "whole" else arguments.chunk
                result = measure(model, length, chunk, rounds=3 if power <= 20 else 1)
                full = full or (mode == "whole" and math.isnan(result["seconds"]))
                add({"model": name, "mode": mode, "chunk": chunk} | result | {"difference": ""})
        del model
    small = build_model(ModelConfig(d_model=64, num_layers=4, vocab_size=12), seed=0).cuda()
    difference = compare(small, 1 << 20, arguments.chunk)
    add(
        {"model": "4x64 fp32", "mode": "compare", "chunk": arguments.chunk, "length": 1 << 20, "rows": 1}
        | {"seconds": "", "tokens_per_second": "", "peak_gib": "", "difference": difference}
    )
    plot(arguments.out)


if __name__ == "__main__":
    main()
