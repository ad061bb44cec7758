"""Audio on one GPU: training steps beside mamba_ssm's mixer, memory when streamed, decoding with and without graphs.

    python benchmarks/bench_audio.py train --out train_audio.csv
    python benchmarks/bench_audio.py sample --out sample_audio.csv

A training step is forward, loss and backward in bf16 autocast. The peer is our U-Net with every mixer replaced by
mamba_ssm's `Mamba` (its fused CUDA path), real parameters only; pools, norms and loss are ours on both sides, calls
alternate within a process. With --graph steps that are not streamed, ours and the peer's, are recorded as CUDA graphs.
Decoding is fp32: as a graph 4 blocks of 1,024 steps after the first block, in which it is captured, and 256 steps
launched singly. The file is written after every row.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mamba_bio_audio.inference.generate import generate_blocks
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.peer import has_peer, peer_version
from mamba_bio_audio.run.speed import step_of
from mamba_bio_audio.run.timing import beside, provenance, write_rows

# recipe, mixer or None for the recipe's own, batch, length, chunk; what matters most first, for runs that end early
TRAIN: tuple[tuple[str, str | None, int, int, int | None], ...] = (
    ("sc09-small-paper", None, 16, 16_000, None),
    ("youtubemix-8192-paper", "mamba", 64, 2**13, None),
    ("youtubemix-8192-paper", "mamba", 1, 2**19, None),
    ("youtubemix-958464-paper", None, 1, 958_464, 131_072),
    ("youtubemix-958464-paper", "mamba", 1, 958_464, 131_072),
    ("youtubemix-8192-paper", None, 64, 2**13, None),
    ("youtubemix-8192-paper", None, 1, 2**19, None),
    ("youtubemix-8192-lti", None, 64, 2**13, None),
    ("youtubemix-8192-lti", None, 1, 2**19, None),
    ("youtubemix-958464-lti", None, 1, 958_464, 131_072),
)
EAGER_STEPS = 256
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
        from mamba_ssm.modules.mamba_simple import Mamba

        self.mamba = Mamba(width, d_state=16, d_conv=4, expand=2)

    def init_state(self, batch: int, device: Any = None, dtype: Any = None) -> Tensor:
        return torch.zeros(0, device=device)

    def forward(self, x: Tensor, state: Any = None, *, reset: Any = None) -> tuple[Tensor, Any]:
        return self.mamba(x), state


def peer_of(model: nn.Module) -> nn.Module:
    """The same network, its mixers replaced by mamba_ssm's."""
    for module in list(model.modules()):
        if hasattr(module, "mixer"):
            module.mixer = PeerMixer(module.mixer.d_model)
    return model


def train(
    cases: Iterable[tuple[str, str | None, int, int, int | None]], device: str, pairs: int, graph: bool = False
) -> Iterator[dict]:
    """Rows of training steps."""
    for recipe, mixer, batch, length, chunk in cases:
        model = network(recipe, mixer).to(device)
        real = all(not stage.ssm.complex for stage in model.model_config.stages)
        tokens = torch.randint(0, 256, (batch, length), device=device)

        def make_peer(recipe=recipe, mixer=mixer, tokens=tokens) -> Callable[[], None]:
            return step_of(peer_of(network(recipe, mixer)).to(device), tokens, graph=graph)

        timing, memory = beside(
            step_of(model, tokens, chunk, graph=graph),
            make_peer if real and chunk is None and has_peer(device) else None,
            device,
            pairs=pairs,
            seconds=10,
        )
        ours = statistics.median(timing.ours)
        row = {
            "case": recipe,
            "mixer": mixer or "recipe",
            "batch": batch,
            "length": length,
            "chunk": chunk or "",
            "graph": graph and chunk is None,
            "parameters": model.num_parameters(),
            "pairs": len(timing.ours),
            "ms": f"{ours:.4g}",
            "msamples_per_s": f"{batch * length / ours / 1e3:.4g}",
            "peer": "",
            "peer_ms": "",
            "peer_over_ours": "",
        }
        if timing.peer is not None:
            row["peer"] = peer_version()
            row["peer_ms"] = f"{statistics.median(timing.peer):.4g}"
            row["peer_over_ours"] = f"{timing.ratio()[1]:.3f}"
        yield row | memory


def sample() -> Iterator[dict]:
    """Rows of decoding, with graphs and without."""
    for recipe, batch in SAMPLE:
        model = network(recipe, None).cuda().eval()
        model.codec = AudioCodec()
        at = []
        for _ in generate_blocks(model, length=1024 * 5, num_samples=batch, seed=0):
            torch.cuda.synchronize()
            at.append(time.perf_counter())
        rate = batch * 1024 * 4 / (at[-1] - at[0])

        # Singly launched steps take the host's time, the same for every one: a few hundred are enough.
        def launch_singly(length: int, model=model, batch=batch) -> float:
            started = time.perf_counter()
            list(generate_blocks(model, length=length, num_samples=batch, seed=0, path="steps"))
            torch.cuda.synchronize()
            return time.perf_counter() - started

        launch_singly(16)
        eager = batch * EAGER_STEPS / launch_singly(EAGER_STEPS)
        yield {
            "case": recipe,
            "batch": batch,
            "samples_per_s": f"{rate:.5g}",
            "eager_samples_per_s": f"{eager:.5g}",
            "graph_over_eager": f"{rate / eager:.2f}",
            "real_time_factor_16khz": f"{rate / batch / 16_000:.3g}",
        }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "sample"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=500, help="begin no row after this")
    parser.add_argument("--only", default="", help="train: rows of RECIPE or of RECIPE:LENGTH, several with commas")
    parser.add_argument("--graph", action="store_true", help="train: record steps (train.cuda_graph)")
    arguments = parser.parse_args()
    wanted = set(arguments.only.split(",")) - {""}
    cases = [case for case in TRAIN if not wanted or wanted & {case[0], f"{case[0]}:{case[3]}"}]
    if not cases:
        parser.error(f"--only {arguments.only}: choose of {', '.join(sorted({f'{c[0]}:{c[3]}' for c in TRAIN}))}")
    started, where = time.perf_counter(), provenance("cuda", "triton")
    rows = []
    for row in train(cases, "cuda", arguments.pairs, arguments.graph) if arguments.what == "train" else sample():
        rows.append(row | where)
        print(row, flush=True)
        write_rows(arguments.out, rows)
        if time.perf_counter() - started > arguments.seconds:
            print(f"stopped after {len(rows)} rows: {arguments.seconds:.0f} s", flush=True)
            break


if __name__ == "__main__":
    main()
