"""One sequence over several GPUs: gradients against one GPU, then tokens per second and memory of both.

    torchrun --nproc-per-node 2 benchmarks/bench_parallel.py --out benchmarks/results/sequence_parallel.csv

The one-GPU figure is measured by rank 0 in the same process while the others wait. Exits with 1 where gradients differ
by more than 1e-4 of their norm (fp32, NCCL).
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.training.parallel import Relay, make_relay
from mamba_bio_audio.training.streaming import streamed_loss
from mamba_bio_audio.workflow.environment import environment


def step(model: torch.nn.Module, ids: torch.Tensor, chunk: int, relay: Relay | None, narrow: bool) -> torch.Tensor:
    """Loss of this rank's spans; gradients in `.grad`, summed over the ranks."""
    model.zero_grad(set_to_none=True)
    with torch.autocast("cuda", torch.bfloat16, enabled=narrow):
        loss, _, _ = streamed_loss(model, ids[:, :-1], ids[:, 1:], chunk=chunk, relay=relay)
    (loss / ids.numel()).backward()
    if relay is not None:
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
    return loss.detach()


def seconds(model: torch.nn.Module, ids: torch.Tensor, chunk: int, relay: Relay | None) -> tuple[float, float]:
    """Median time of a step and peak GiB."""
    step(model, ids, chunk, relay, True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(3):
        started = time.perf_counter()
        step(model, ids, chunk, relay, True)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return sorted(times)[1], torch.cuda.max_memory_allocated() / 2**30


def largest_difference(chunk: int, length: int) -> float:
    """Of any parameter's gradient from that of one GPU, relative to its norm; fp32."""
    model = build_model(ModelConfig(d_model=64, num_layers=4, vocab_size=12), seed=0).cuda()
    ids = torch.randint(7, 11, (2, length + 1), generator=torch.Generator().manual_seed(0)).cuda()
    step(model, ids, length, None, False)
    expected = [p.grad.clone() for p in model.parameters()]
    step(model, ids, chunk, make_relay(model, dist.get_world_size()), False)
    return max(float((p.grad - e).norm() / e.norm()) for p, e in zip(model.parameters(), expected, strict=True))


def main() -> None:
    """Check, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--length", type=int, default=1 << 20)
    arguments = parser.parse_args()
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl", device_id=torch.device("cuda", int(os.environ["LOCAL_RANK"])))
    rank, size = dist.get_rank(), dist.get_world_size()
    worst = max(largest_difference(chunk, 20_011) for chunk in (20_011, 4096))
    if rank == 0:
        print(f"largest difference of a gradient: {worst:.1e}", flush=True)
    if worst > 1e-4:
        sys.exit(1)
    rows: list[dict[str, Any]] = []
    for name, layers, width in (("16x256", 16, 256), ("24x512", 24, 512)):
        for chunk in (1 << 15, 1 << 17, 1 << 18):
            model = build_model(ModelConfig(d_model=width, num_layers=layers, vocab_size=12), seed=0).cuda()
            ids = torch.randint(7, 11, (1, arguments.length + 1), generator=torch.Generator().manual_seed(0)).cuda()
            one, memory = seconds(model, ids, chunk, None) if rank == 0 else (0.0, 0.0)
            dist.barrier()
            together, shared_memory = seconds(model, ids, chunk, make_relay(model, size))
            row = {
                "model": name,
                "length": arguments.length,
                "chunk_per_gpu": chunk,
                "gpus": size,
                "one_gpu_tokens_per_second": arguments.length / one if rank == 0 else 0.0,
                "tokens_per_second": arguments.length / together,
                "speedup": one / together,
                "one_gpu_peak_gib": memory,
                "peak_gib": shared_memory,
                "gradient_difference": worst,
            }
            rows.append(row | {k: environment("cuda")[k] for k in ("device", "torch", "commit", "started")})
            if rank == 0:
                print(row, flush=True)
            del model
            torch.cuda.empty_cache()
    if rank == 0:
        with arguments.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
