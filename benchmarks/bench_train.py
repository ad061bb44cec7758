"""Whole training step of the DNA language model on one GPU: forward, loss, backward; no optimiser.

    python benchmarks/bench_train.py --out results.csv

fp32 parameters, bf16 autocast, vocabulary 16. Reported: median time of a step, tokens per second, peak allocated
memory, and the ratio of tokens per second to mamba_ssm 2.3.2.post1 where `reference/peer-baselines.md` has the
same shape (measured on an H100 80GB HBM3, same torch and Triton; not in the same process). Rows with a chunk are
streamed.
"""

from __future__ import annotations

import csv
import statistics
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.isotropic import IsotropicModel
from mamba_bio_audio.training.streaming import streamed_loss
from mamba_bio_audio.workflow.environment import environment

# layers, width, batch, length, chunk, recompute
CASES = [
    (12, 128, 256, 1024, None, "none"),
    (8, 256, 64, 1024, None, "none"),
    (16, 256, 128, 1024, None, "none"),
    (16, 256, 1, 131072, None, "none"),
    (16, 256, 1, 131072, None, "layer"),
    (24, 512, 64, 1024, None, "none"),
    (16, 256, 1, 131072, 32768, "none"),
    (16, 256, 1, 2**20, 32768, "none"),
    (24, 512, 1, 2**20, 32768, "none"),
    (16, 256, 1, 2**22, 32768, "none"),
    (12, 128, 1, 2**20, None, "none"),
    (16, 256, 1, 2**20, None, "none"),
    (16, 256, 1, 2**20, 131072, "none"),
    (24, 512, 1, 2**20, 65536, "none"),
    (16, 256, 1, 2**22, 131072, "none"),
    (16, 256, 1, 2**24, 131072, "none"),
]
# M tokens/s of mamba_ssm, peer-baselines.md; None: out of memory there.
PEER = {
    (12, 128, 256, 1024): 1.908,
    (8, 256, 64, 1024): 1.737,
    (16, 256, 128, 1024): 0.944,
    (16, 256, 1, 131072): 0.687,
    (24, 512, 64, 1024): 0.324,
    (12, 128, 1, 2**20): 1.708,
    (16, 256, 1, 2**20): None,
}


def step(model: IsotropicModel, tokens: Tensor, chunk: int) -> None:
    """Forward, loss and backward; the gradients are dropped."""
    with torch.autocast("cuda", torch.bfloat16):
        loss_sum, _, _ = streamed_loss(model, tokens, tokens.roll(-1, 1), chunk=chunk)
    (loss_sum / tokens.numel()).backward()
    model.zero_grad(set_to_none=True)


def main(
    out: Annotated[Path, typer.Option(help="CSV to write.")],
    seconds: Annotated[float, typer.Option(help="Time per case.")] = 6.0,
    only: Annotated[str, typer.Option(help="Indices of cases, comma separated; default all.")] = "",
) -> None:
    chosen = [CASES[int(i)] for i in only.split(",")] if only else CASES
    rows = []
    for layers, width, batch, length, chunk, recompute in chosen:
        model = build_model(ModelConfig(d_model=width, num_layers=layers, vocab_size=12), seed=0).cuda()
        model.recompute = recompute
        tokens = torch.randint(7, 11, (batch, length), device="cuda")

        row = {
            "model": f"{layers}x{width}",
            "parameters": model.num_parameters(),
            "batch": batch,
            "length": length,
            "stream_chunk": chunk,
            "recompute": recompute,
        }
        try:
            step(model, tokens, chunk or length)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            times: list[float] = []
            while (sum(times) < 1e3 * seconds and len(times) < 30) or len(times) < 2:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                step(model, tokens, chunk or length)
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end))
            median = statistics.median(times)
            rate = batch * length / median / 1e3
            peer = PEER.get((layers, width, batch, length))
            row |= {
                "step_ms": f"{median:.2f}",
                "steps": len(times),
                "mtokens_per_s": f"{rate:.3f}",
                "peak_gib": f"{torch.cuda.max_memory_allocated() / 2**30:.2f}",
                "ratio_to_mamba_ssm": f"{rate / peer:.2f}" if peer else "",
            }
        except torch.cuda.OutOfMemoryError:
            row |= {"step_ms": "out of memory"}
        rows.append(row | environment("cuda"))
        print({k: v for k, v in row.items() if k != "parameters"}, flush=True)
        fields = list(dict.fromkeys(key for r in rows for key in r))
        with out.open("w", newline="") as file:
            writer = csv.DictWriter(file, fields, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        del model, tokens
        torch.cuda.empty_cache()


if __name__ == "__main__":
    typer.run(main)
