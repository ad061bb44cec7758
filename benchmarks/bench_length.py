"""Peak memory and speed of one exact training step against length, streamed and whole, beside mamba_ssm, on one GPU.

    python benchmarks/bench_length.py --out benchmarks/results/length_h100.csv
    python benchmarks/bench_length.py --plot benchmarks/results/length_h100.csv

A step is forward, loss and backward of one sequence (short ones: as many as make 2^17 positions), bf16 autocast, fp32
weights, in one process with one model on the GPU at a time. Where memory runs out, a row says so, and lengths above it
are not tried. At 2^20 the gradients of a small model, streamed, are compared with those of the whole sequence. What is
asked about most comes first; rows that do not begin within `--seconds` are named at the end.
"""

from __future__ import annotations

import argparse
import csv
import gc
import time
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.streamed import streamed_loss
from mamba_bio_audio.run.peer import has_peer, peer_model, peer_version
from mamba_bio_audio.run.timing import OUT_OF_MEMORY, few_rounds, provenance, write_rows
from mamba_bio_audio.run.train_speed import logits_step, training_step

# layers, width, and the chunk at which streaming was fastest on an H100
MODELS = {"16x256": (16, 256, 1 << 17), "24x512": (24, 512, 1 << 16), "4x64 fp32": (4, 64, 1 << 17)}
Case = tuple[str, str, int]  # model, mode, log2 of the length


def _cases(model: str, mode: str, *powers: int) -> list[Case]:
    return [(model, mode, power) for power in powers]


PLAN: tuple[Case, ...] = (
    *_cases("16x256", "streamed", 20, 22, 24),
    *_cases("16x256", "whole", 17),
    *_cases("16x256", "mamba_ssm", 17, 20),
    *_cases("24x512", "streamed", 20),
    *_cases("4x64 fp32", "compare", 20),
    *_cases("16x256", "whole", 10, 12, 14, 16, 18, 20, 22, 24),
    *_cases("16x256", "streamed", 18),
    *_cases("16x256", "mamba_ssm", 10, 12, 14, 16, 18, 22, 24),
    *_cases("24x512", "whole", 14, 16, 17, 18, 20),
    *_cases("24x512", "streamed", 17, 18),
)


@lru_cache(maxsize=1)
def network(name: str, peer: bool, device: str) -> nn.Module:
    """One model on the device, the only one there: with the next it goes."""
    layers, width, _ = MODELS[name]
    if peer:
        return peer_model(layers, width)
    return build_model(ModelConfig(d_model=width, num_layers=layers, vocab_size=12), seed=0).to(device)


def batch(length: int, device: str) -> Tensor:
    """Random bases: one sequence, or as many short ones as make 2^17 positions."""
    return torch.randint(7, 11, (max(1, (1 << 17) // length), length), device=device)


def measure(
    call: Callable[[], object], positions: int, device: str, *, warm: bool = True, seconds: float = 4
) -> dict[str, Any]:
    """Median seconds of a step, peak memory and speed: three rounds, fewer once they took `seconds`.

    Args:
        call: the step; what it needs is on the device, and nothing else is.
        positions: that it goes through.
        warm: run once before.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    try:
        middle, peak = few_rounds(call, device, warm=warm, seconds=seconds)
    except torch.OutOfMemoryError:
        return {"seconds": "", "tokens_per_second": "", "peak_gib": "", "note": OUT_OF_MEMORY}
    return {
        "seconds": f"{middle:.4g}",
        "tokens_per_second": f"{positions / middle:.4g}",
        "peak_gib": f"{peak:.2f}",
        "note": "",
    }


def compare(model: nn.Module, tokens: Tensor, chunk: int) -> float:
    """Largest relative difference of a parameter's gradient, streamed from whole; fp32 weights and activations."""
    found = []
    for size in (tokens.shape[1], chunk):
        loss, _, _ = streamed_loss(model, tokens, tokens.roll(-1, 1), chunk=size)
        (loss / tokens.numel()).backward()
        found.append([p.grad.clone() for p in model.parameters()])
        model.zero_grad(set_to_none=True)
    return max(float((a - b).norm() / a.norm()) for a, b in zip(*found, strict=True))


def run(plan: Iterable[Case], out: Path, device: str, seconds: float) -> list[dict[str, Any]]:
    """Measure, write after every row, draw."""
    fixed, started = provenance(device, "triton"), time.perf_counter()
    rows: list[dict[str, Any]] = []
    full: dict[tuple[str, str], int] = {}  # shortest length that did not fit
    late: list[Case] = []
    for name, mode, power in plan:
        if mode == "mamba_ssm" and not has_peer(device):
            continue
        if time.perf_counter() - started > seconds:
            late.append((name, mode, power))
            continue
        length, chunk = 1 << power, MODELS[name][2]
        row: dict[str, Any] = {"model": name, "mode": mode, "chunk": "", "length": length, "rows": "", "difference": ""}
        if mode == "mamba_ssm":
            row["peer"] = peer_version()
        if power > full.get((name, mode), power):
            row["note"] = f"{OUT_OF_MEMORY}: not tried, 2^{full[name, mode]} did not fit"
        else:
            model, tokens = network(name, mode == "mamba_ssm", device), batch(length, device)
            row["rows"] = len(tokens)
            if mode in ("streamed", "compare"):
                row["chunk"] = chunk
            if mode == "compare":
                row["difference"] = f"{compare(model, tokens, chunk):.2e}"
            else:
                size = chunk if mode == "streamed" else length
                step = partial(training_step, model, tokens, size)
                if mode == "mamba_ssm":
                    step = partial(logits_step, model, tokens)
                # The longest take many seconds, and everything in them has run at a shorter length.
                row |= measure(step, tokens.numel(), device, warm=power < 22)
                if row["note"] == OUT_OF_MEMORY:
                    full[name, mode] = min(power, full.get((name, mode), power))
                del step
            del model, tokens
        rows.append(row | fixed)
        print(row, f"at {time.perf_counter() - started:.0f} s", flush=True)
        write_rows(out, rows)
    if late:
        print("not begun in time:", ", ".join(f"{name} {mode} 2^{power}" for name, mode, power in late))
    if any(row.get("seconds") for row in rows):
        plot(out)
    for name in MODELS:
        own = [row for row in rows if row["model"] == name and row.get("seconds")]
        speed = {(row["mode"], row["length"]): float(row["tokens_per_second"]) for row in own}
        streamed, whole = speed.get(("streamed", 1 << 20)), speed.get(("whole", 1 << 17))
        if streamed and whole:
            print(f"{name}: streamed at 2^20 runs at {streamed / whole:.3f} of the speed of whole steps at 2^17")
    return rows


def plot(path: Path) -> None:
    """Memory and speed against length, beside the CSV."""
    from matplotlib.figure import Figure

    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["mode"] != "compare"]
    figure = Figure(figsize=(11, 4), layout="constrained")
    memory, speed = figure.subplots(1, 2)
    styles = {"whole": "s--", "streamed": "o-", "mamba_ssm": "^:"}
    for model, mode in dict.fromkeys((row["model"], row["mode"]) for row in rows):
        own = sorted((r for r in rows if (r["model"], r["mode"]) == (model, mode)), key=lambda r: int(r["length"]))
        failed = [int(row["length"]) for row in own if row["note"]]
        label = f"{model} {mode}" + (f" (out of memory at 2^{failed[0].bit_length() - 1})" if failed else "")
        own = [row for row in own if row["seconds"]]
        x = [int(row["length"]) for row in own]
        memory.plot(x, [float(row["peak_gib"]) for row in own], styles[mode], label=label)
        speed.plot(x, [float(row["tokens_per_second"]) for row in own], styles[mode], label=label)
    memory.set_xscale("log", base=2)
    memory.set(yscale="log", xlabel="length", ylabel="peak GiB")
    speed.set_xscale("log", base=2)
    speed.set(xlabel="length", ylabel="tokens per second", ylim=(0, None))
    memory.legend(fontsize=7)
    figure.suptitle(f"One training step, {rows[0]['device']}", fontsize=9)
    figure.savefig(path.with_suffix(".png"), dpi=130)


def main() -> None:
    """Parse, measure or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path, help="only draw this CSV")
    parser.add_argument("--seconds", type=float, default=150, help="begin no row after this")
    arguments = parser.parse_args()
    if arguments.plot:
        plot(arguments.plot)
    elif arguments.out:
        run(PLAN, arguments.out, "cuda", arguments.seconds)
    else:
        parser.error("give --out FILE.csv or --plot FILE.csv")


if __name__ == "__main__":
    main()
