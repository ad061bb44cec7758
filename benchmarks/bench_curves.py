"""Time and memory against length on one GPU: whole training steps of several models, and single operations.

    python benchmarks/bench_curves.py models --out benchmarks/results/curves_models_h100.csv
    python benchmarks/bench_curves.py operations --out benchmarks/results/curves_operations_h100.csv

Models have 8 layers of width 256 and a vocabulary of 16: ours, mamba_ssm's Mamba and Mamba-2 (heads of 64, 64 states),
a Transformer with compiled blocks and more parameters than ours (causal attention, heads of 64, SwiGLU, no code of
positions), and ours on the plain PyTorch path. A step is forward, loss and backward of one sequence, or as many as make
2^17 positions, in bf16 autocast.

Operations are forward passes at batch 1, 1,024 channels, 16 states, bf16, after figure 8 of Gu & Dao 2023: our scan and
mamba_ssm's, the same recurrence as a work-efficient parallel scan in PyTorch that holds every state (fp32), a
convolution by FFT of twice the length (fp32, the filter's transform included), and FlashAttention with heads of 64.

Where memory runs out, or a step would take more than 5 s, the last row of a curve says so. A row is written as soon as
it is measured; curves that do not begin within `--seconds` are named at the end. Mamba-2 comes last: tuning its kernels
takes minutes in the first process on a machine.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from bench_length import batch, measure
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mamba_bio_audio import ops
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.contract import ModelOutput
from mamba_bio_audio.run.kernel_speed import forward_call, scan_inputs
from mamba_bio_audio.run.peer import has_peer, peer_layout, peer_model, peer_scan, peer_version
from mamba_bio_audio.run.timing import OUT_OF_MEMORY, interleaved, provenance, write_rows
from mamba_bio_audio.run.train_speed import logits_step, training_step

LAYERS, WIDTH, CHANNELS, HEAD = 8, 256, 1024, 64
LENGTHS = {"models": [1 << power for power in range(10, 21, 2)], "operations": [1 << power for power in range(9, 20)]}
LONGEST_S = 5.0
Call = Callable[[], object]


class Curve(NamedTuple):
    """One line of a figure."""

    make: Callable[[], Callable[[int], Call]]  # puts its weights on the device; then gives the call at a length
    growth: int  # power of the length that the time of one sequence grows with, for what is not to be begun
    peer: bool = False


class Block(nn.Module):
    """Pre-norm Transformer block: causal attention, then SwiGLU; linear maps without biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = -(-8 * width // 3 // 64) * 64
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, -1, min(HEAD, x.shape[-1]))).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        gate, value = self.up(self.norms[1](x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * value)


class Transformer(nn.Module):
    """Language model of such blocks, the head tied to the embedding."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm = nn.RMSNorm(width)

    def forward(self, tokens: Tensor) -> ModelOutput:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return ModelOutput(F.linear(self.norm(x), self.embedding.weight), None, None, None)


def model_curves(device: str) -> dict[str, Curve]:
    """Training steps."""

    def ours() -> Callable[[int], Call]:
        model = build_model(ModelConfig(d_model=WIDTH, num_layers=LAYERS, vocab_size=12), seed=0).to(device)
        return lambda length: partial(training_step, model, batch(length, device), length)

    def plain() -> Callable[[int], Call]:
        call_at = ours()

        def call(step: Call) -> None:
            with ops.plain_torch():
                step()

        return lambda length: partial(call, call_at(length))

    def transformer() -> Callable[[int], Call]:
        model = Transformer(LAYERS, WIDTH).to(device)
        # Block by block: one compilation serves all of them.
        for block in model.blocks:
            block.compile(dynamic=False)
        return lambda length: partial(logits_step, model, batch(length, device))

    def theirs(**ssm: Any) -> Callable[[int], Call]:
        model = peer_model(LAYERS, WIDTH, **ssm)
        return lambda length: partial(logits_step, model, batch(length, device))

    return {
        "ours": Curve(ours, 1),
        "mamba_ssm": Curve(theirs, 1, peer=True),
        "transformer": Curve(transformer, 2),
        # Its blocks of positions follow one another, and short ones are bound by the host.
        "torch": Curve(plain, 2),
        "mamba2": Curve(partial(theirs, layer="Mamba2", d_state=64, headdim=64), 1, peer=True),
    }


def prefix(a: Tensor, b: Tensor) -> Tensor:
    """h_t = a_t h_(t-1) + b_t along the second axis, whose size is a power of two, from h = 0 (Blelloch 1990)."""
    if b.shape[1] == 1:
        return b
    odd = prefix(a[:, 1::2] * a[:, ::2], a[:, 1::2] * b[:, ::2] + b[:, 1::2])
    even = torch.cat([b[:, :1], a[:, 2::2] * odd[:, :-1] + b[:, 2::2]], 1)
    return torch.stack([even, odd], 2).flatten(1, 2)


def naive_scan(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor) -> Tensor:
    """The selective scan as PyTorch operations on all states at once; inputs of `ops.selective_scan`."""
    delta = F.softplus(dt.float() + dt_bias)
    states = prefix(torch.exp(delta[..., None] * A), (delta * u)[..., None] * B[:, :, None])
    y = (states * C[:, :, None]).sum(-1) + D * u
    return (y * F.silu(z.float())).to(u.dtype)


def fft_convolution(u: Tensor, weight: Tensor) -> Tensor:
    """Causal convolution of u (1, D, L) with a filter as long (D, L)."""
    size = 2 * u.shape[-1]
    return torch.fft.irfft(torch.fft.rfft(u, size) * torch.fft.rfft(weight, size), size)[..., : u.shape[-1]]


def flash_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention, (1, heads, L, 64)."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def operation_curves(device: str) -> dict[str, Curve]:
    """Forward passes."""

    def inputs(length: int) -> dict[str, Tensor]:
        return scan_inputs(1, length, CHANNELS, torch.bfloat16, device)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    def attention(length: int) -> Call:
        shape = (1, CHANNELS // HEAD, length, HEAD)
        return forward_call(flash_attention, {name: normal(*shape, dtype=torch.bfloat16) for name in "qkv"})

    def convolution(length: int) -> Call:
        return forward_call(fft_convolution, {"u": normal(1, CHANNELS, length), "weight": normal(CHANNELS, length)})

    small = inputs(64)
    found, expected = ops.selective_scan(**small).float(), naive_scan(**small).float()
    if not (error := float((found - expected).norm() / expected.norm())) < 2e-2:
        raise RuntimeError(f"the scans differ by {error:.1e}: nothing is timed; see mba doctor")
    return {
        "ours": Curve(lambda: lambda length: forward_call(ops.selective_scan, inputs(length)), 1),
        "mamba_ssm": Curve(lambda: lambda length: forward_call(peer_scan, peer_layout(inputs(length))), 1, peer=True),
        "naive scan": Curve(lambda: lambda length: forward_call(naive_scan, inputs(length)), 1),
        "FFT convolution": Curve(lambda: convolution, 1),
        "FlashAttention": Curve(lambda: attention, 2),
    }


def time_operation(call: Call, positions: int, device: str) -> dict[str, Any]:
    """Median seconds of queued calls, and speed."""
    try:
        times = sorted(interleaved(call, None, device, pairs=20, seconds=0.5).ours)
    except torch.OutOfMemoryError:
        return {"seconds": "", "tokens_per_second": "", "note": OUT_OF_MEMORY}
    middle = times[len(times) // 2] / 1e3
    return {"seconds": f"{middle:.4g}", "tokens_per_second": f"{positions / middle:.4g}", "note": ""}


def run(part: str, out: Path, device: str, seconds: float, only: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Measure every curve from the shortest length up, write after every row, draw."""
    fixed, started = provenance(device, "triton"), time.perf_counter()
    curves = model_curves(device) if part == "models" else operation_curves(device)
    rows: list[dict[str, Any]] = []
    late: list[str] = []
    for name, curve in curves.items():
        if (only and name not in only) or (curve.peer and not has_peer(device)):
            continue
        call_at, before = None, None
        for length in LENGTHS[part]:
            if time.perf_counter() - started > seconds:
                late.append(f"{name} from {length}")
                break
            positions = max(1 << 17, length) if part == "models" else length
            row: dict[str, Any] = {"part": part, "curve": name, "length": length, "positions": positions}
            if curve.peer:
                row["peer"] = peer_version()
            # Of the last length, by positions and, where a sequence costs more than its length, by length.
            if before and before[2] * positions / before[1] * (length / before[0]) ** (curve.growth - 1) > LONGEST_S:
                row["note"] = f"not run: would take more than {LONGEST_S:.0f} s"
            else:
                call_at = call_at or curve.make()
                once = measure if part == "models" else time_operation
                row |= once(call_at(length), positions, device)
            rows.append(row | fixed)
            print(row, f"at {time.perf_counter() - started:.0f} s", flush=True)
            write_rows(out, rows)
            if row["note"]:
                break
            before = length, positions, float(row["seconds"])
        del call_at
    if late:
        print("not begun in time:", ", ".join(late))
    if rows:
        plot(out)
    return rows


def plot(path: Path) -> None:
    """Time, and for models memory, against length, beside the CSV."""
    from matplotlib.figure import Figure

    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    models = rows[0]["part"] == "models"
    figure = Figure(figsize=(11 if models else 6, 4.2), layout="constrained")
    axes = figure.subplots(1, 2 if models else 1, squeeze=False)[0]
    for name in dict.fromkeys(row["curve"] for row in rows):
        own = [row for row in rows if row["curve"] == name]
        label = f"{name}, then {own[-1]['note']}" if own[-1]["note"] == OUT_OF_MEMORY else name
        own = [row for row in own if row["seconds"]]
        x = [int(row["length"]) for row in own]
        if models:
            axes[0].plot(x, [1e9 / float(row["tokens_per_second"]) for row in own], "o-", label=label)
            axes[1].plot(x, [float(row["peak_gib"]) for row in own], "o-", label=label)
        else:
            axes[0].plot(x, [1e3 * float(row["seconds"]) for row in own], "o-", label=label)
    for axis, title in zip(
        axes, ["training step, ns per token" if models else "forward, ms", "peak GiB"], strict=False
    ):
        axis.set_xscale("log", base=2)
        axis.set(yscale="log", xlabel="length", ylabel=title)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.suptitle(rows[0]["device"], fontsize=9)
    figure.savefig(path.with_suffix(".png"), dpi=130)


def main() -> None:
    """Parse, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("models", "operations"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="comma-separated curves")
    parser.add_argument("--seconds", type=float, default=110, help="begin no row after this")
    arguments = parser.parse_args()
    run(arguments.part, arguments.out, "cuda", arguments.seconds, [name for name in arguments.only.split(",") if name])


if __name__ == "__main__":
    main()
