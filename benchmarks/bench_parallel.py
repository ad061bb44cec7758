"""One sequence over several GPUs: gradients against one GPU, then tokens per second and memory of both.

    torchrun --nproc-per-node 2 benchmarks/bench_parallel.py --out benchmarks/results/sequence_parallel.csv

The one-GPU figure is measured by rank 0 in the same process while the others wait. Exits with 1 where gradients differ
by more than 1e-4 of their norm (fp32). NCCL on GPUs; without one gloo, to try the script. Rows are written as they
come, and none is begun after --seconds.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.streamed import streamed_loss
from mamba_bio_audio.run.timing import few_rounds, provenance, write_rows
from mamba_bio_audio.training.parallel import Relay, make_relay

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def step(model: torch.nn.Module, ids: torch.Tensor, chunk: int, relay: Relay | None, narrow: bool) -> torch.Tensor:
    """Loss of this rank's spans; gradients in `.grad`, summed over the ranks."""
    model.zero_grad(set_to_none=True)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=narrow and DEVICE == "cuda"):
        loss, _, _ = streamed_loss(model, ids[:, :-1], ids[:, 1:], chunk=chunk, relay=relay)
    (loss / ids.numel()).backward()
    if relay is not None:
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
    return loss.detach()


def largest_difference(chunk: int, length: int) -> float:
    """Of any parameter's gradient from that of one GPU, relative to its norm; fp32."""
    model = build_model(ModelConfig(d_model=64, num_layers=4, vocab_size=12), seed=0).to(DEVICE)
    ids = torch.randint(7, 11, (2, length + 1), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    step(model, ids, length, None, False)
    expected = [p.grad.clone() for p in model.parameters()]
    step(model, ids, chunk, make_relay(model, dist.get_world_size()), False)
    return max(float((p.grad - e).norm() / e.norm()) for p, e in zip(model.parameters(), expected, strict=True))


def main() -> None:
    """Check, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--length", type=int, default=1 << 20)
    parser.add_argument(
        "--models", default="16x256:131072,16x256:262144,24x512:131072", help="layers x width : chunk per GPU"
    )
    parser.add_argument("--seconds", type=float, default=600, help="no row is begun after this")
    arguments = parser.parse_args()
    begun = time.perf_counter()
    if DEVICE == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl", device_id=torch.device("cuda", int(os.environ["LOCAL_RANK"])))
    else:
        dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    worst = max(largest_difference(chunk, 20_011) for chunk in (20_011, 4096))
    if rank == 0:
        print(f"largest difference of a gradient: {worst:.1e}", flush=True)
    if worst > 1e-4:
        sys.exit(1)
    rows: list[dict[str, Any]] = []
    for shape in arguments.models.split(","):
        layers, width, chunk = map(int, shape.replace(":", "x").split("x"))
        # All ranks go by the clock of the first.
        over = torch.tensor(float(time.perf_counter() - begun > arguments.seconds), device=DEVICE)
        dist.broadcast(over, 0)
        if over:
            if rank == 0:
                print(f"no time left for {shape}", flush=True)
            continue
        model = build_model(ModelConfig(d_model=width, num_layers=layers, vocab_size=12), seed=0).to(DEVICE)
        ids = torch.randint(7, 11, (1, arguments.length + 1), generator=torch.Generator().manual_seed(0)).to(DEVICE)
        one, memory = few_rounds(partial(step, model, ids, chunk, None, True), DEVICE) if rank == 0 else (0.0, 0.0)
        dist.barrier()
        relay = make_relay(model, size)
        together, shared_memory = few_rounds(partial(step, model, ids, chunk, relay, True), DEVICE)
        row = {
            "model": f"{layers}x{width}",
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
        rows.append(row | provenance(DEVICE))
        if rank == 0:
            print(row, flush=True)
            write_rows(arguments.out, rows)
        del model
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
