"""Audio on one GPU: training steps beside mamba_ssm's mixer, memory when streamed, decoding with and without graphs.

    python benchmarks/bench_audio.py train --out train_audio.csv
    python benchmarks/bench_audio.py sample --out sample_audio.csv

A training step is forward, loss and backward in bf16 autocast. The peer is our U-Net with every mixer replaced by
mamba_ssm's `Mamba` (its fused CUDA path), real parameters only; pools, norms and loss are ours on both sides, calls
alternate within a process. Decoding is fp32, timed per block of 1,024 steps after the first block, in which the graph
is captured.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mamba_bio_audio.config import load_config
from mamba_bio_audio.inference.generate import generate_blocks
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.training.streaming import streamed_loss
from mamba_bio_audio.workflow.bench import interleaved
from mamba_bio_audio.workflow.environment import environment

# recipe, mixer or None for the recipe's own, batch, length, chunk
TRAIN = (
    ("sc09-small-paper", None, 16, 16_000, None),
    ("youtubemix-8192-paper", "mamba", 64, 2**13, None),
    ("youtubemix-8192-paper", None, 64, 2**13, None),
    ("youtubemix-8192-lti", None, 64, 2**13, None),
    ("youtubemix-8192-paper", "mamba", 1, 2**19, None),
    ("youtubemix-8192-paper", None, 1, 2**19, None),
    ("youtubemix-8192-lti", None, 1, 2**19, None),
    ("youtubemix-958464-paper", "mamba", 1, 958_464, 65_536),
    ("youtubemix-958464-paper", None, 1, 958_464, 65_536),
    ("youtubemix-958464-lti", None, 1, 958_464, 65_536),
)
SAMPLE = (("sc09-small-paper", 1), ("sc09-small-paper", 64), ("sc09-small-paper", 512), ("youtubemix-8192-lti", 1))


def network(recipe: str, mixer: str | None) -> nn.Module:
    """The recipe's model, in which every stage has the same mixer where one is given."""
    overrides = [] if mixer is None else [f"model.mixer={mixer}"]
    config = load_config(f"audio/{recipe}", ["data.path=.", *overrides]).model
    return build_model(config.model_copy(update={"vocab_size": 256}), seed=0)


class PeerMixer(nn.Module):
    """mamba_ssm's layer behind our contract, for whole sequences only."""

    streaming = "constant"

    def __init__(self, width: int) -> None:
        super().__init__()
        from mamba_ssm import Mamba

        self.mamba = Mamba(width, d_state=16, d_conv=4, expand=2)

    def init_state(self, batch: int, device: Any = None, dtype: Any = None) -> Tensor:
        return torch.zeros(0, device=device)

    def forward(self, x: Tensor, state: Any = None, *, reset: Any = None) -> tuple[Tensor, Any]:
        return self.mamba(x), state


def peer_of(model: nn.Module) -> nn.Module | None:
    """The same network on mamba_ssm's mixers; None where it is not installed."""
    try:
        import mamba_ssm  # noqa: F401
    except ImportError:
        return None
    for module in model.modules():
        if hasattr(module, "mixer"):
            module.mixer = PeerMixer(module.mixer.d_model)
    return model


def step(model: nn.Module, tokens: Tensor, chunk: int) -> None:
    """Forward, loss and backward."""
    with torch.autocast("cuda", torch.bfloat16):
        loss_sum, _, _ = streamed_loss(model, tokens, tokens.roll(-1, 1), chunk=chunk)
    (loss_sum / tokens.numel()).backward()
    model.zero_grad(set_to_none=True)


def train(pairs: int) -> list[dict[str, Any]]:
    """Rows of training steps."""
    rows = []
    for recipe, mixer, batch, length, chunk in TRAIN:
        torch.cuda.empty_cache()
        model = network(recipe, mixer).cuda()
        real = all(not stage.ssm.complex for stage in model.model_config.stages)
        tokens = torch.randint(0, 256, (batch, length), device="cuda")
        calls = [partial(step, model, tokens, chunk or length)]
        if real and chunk is None and (peer := peer_of(network(recipe, mixer))) is not None:
            calls.append(partial(step, peer.cuda(), tokens, length))
        peaks = []
        try:
            for call in calls:
                call()
                torch.cuda.reset_peak_memory_stats()
                call()
                peaks.append(torch.cuda.max_memory_allocated() / 2**30)
            timing = interleaved(calls[0], calls[1] if len(calls) > 1 else None, "cuda", pairs=pairs, seconds=20)
        except torch.cuda.OutOfMemoryError:
            rows.append({"case": recipe, "mixer": mixer or "recipe", "batch": batch, "length": length, "note": "OOM"})
            continue
        ours = statistics.median(timing.ours)
        row = {
            "case": recipe,
            "mixer": mixer or "recipe",
            "batch": batch,
            "length": length,
            "chunk": chunk or "",
            "parameters": model.num_parameters(),
            "ms": f"{ours:.4g}",
            "msamples_per_s": f"{batch * length / ours / 1e3:.4g}",
            "peak_gib": f"{peaks[0]:.2f}",
        }
        if timing.peer is not None:
            ratios = [peer / own for own, peer in zip(timing.ours, timing.peer, strict=True)]
            row |= {
                "peer_ms": f"{statistics.median(timing.peer):.4g}",
                "peer_over_ours": f"{statistics.median(ratios):.3f}",
                "peer_peak_gib": f"{peaks[1]:.2f}",
            }
        print(row, flush=True)
        rows.append(row)
        del model, calls
    return rows


def sample() -> list[dict[str, Any]]:
    """Rows of decoding, with graphs and without."""
    rows = []
    for recipe, batch in SAMPLE:
        model = network(recipe, None).cuda().eval()
        model.codec = AudioCodec()
        rates = {}
        for graph, blocks in ((True, 5), (False, 2)):
            at = []
            for _ in generate_blocks(model, length=1024 * blocks, num_samples=batch, seed=0, cuda_graph=graph):
                torch.cuda.synchronize()
                at.append(time.perf_counter())
            rates[graph] = batch * 1024 * (blocks - 1) / (at[-1] - at[0])
        row = {
            "case": recipe,
            "batch": batch,
            "samples_per_s": f"{rates[True]:.5g}",
            "eager_samples_per_s": f"{rates[False]:.5g}",
            "graph_over_eager": f"{rates[True] / rates[False]:.2f}",
            "real_time_factor_16khz": f"{rates[True] / batch / 16_000:.3g}",
        }
        print(row, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "sample"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=7)
    arguments = parser.parse_args()
    rows = train(arguments.pairs) if arguments.what == "train" else sample()
    place = environment("cuda")
    fields = list(dict.fromkeys(key for row in rows for key in row))
    provenance = {key: place[key] for key in ("device", "torch", "commit", "started")}
    with arguments.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*fields, *provenance], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | provenance for row in rows)


if __name__ == "__main__":
    main()
