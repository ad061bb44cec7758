"""Benchmarks of operations, training steps and generation, beside a peer in the same process where one is installed.

Every pair of calls runs ours, then the peer's, on the same inputs; reported are the 20th, 50th and 80th percentile of
ours and the median of the ratio within pairs (above 1: ours is faster). Results are checked before anything is timed.
Peer: mamba_ssm with its CUDA selective scan and causal_conv1d, on a GPU.
"""

from __future__ import annotations

import csv
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mamba_bio_audio import ops
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import atomic_path, begins_with, check_file
from mamba_bio_audio.inference.generate import generate
from mamba_bio_audio.kernels.causal_conv1d import causal_conv1d_ref
from mamba_bio_audio.kernels.selective_scan.ref import selective_scan_ref
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.run.environment import environment
from mamba_bio_audio.training.graphed import GraphedLoss
from mamba_bio_audio.training.streaming import streamed_loss

Row = dict[str, Any]
PAIRS = 30
STATES = 16
# One flushes the L2. The others keep the GPU busy (0.1 ms each) while the host launches the call that is timed.
FLUSHES = 8
OUT_OF_MEMORY = "out of memory"
# (B, L, D) of the operations, and (layers, width, batch, length, chunk) of the training steps.
KERNEL_SHAPES = {
    "cuda": [(8, 8192, 2048), (32, 1024, 512), (1, 2**20, 512), (1, 131_072, 512), (2, 16_384, 256)],
    "cpu": [(1, 1024, 256), (4, 512, 128)],
}
TRAIN_SHAPES: dict[str, list[tuple[int, int, int, int, int | None]]] = {
    "cuda": [
        (12, 128, 256, 1024, None),
        (16, 256, 128, 1024, None),
        (16, 256, 1, 131_072, None),
        (12, 128, 1, 2**20, None),
        (16, 256, 1, 2**20, None),
        (16, 256, 1, 2**20, 131_072),
    ],
    "cpu": [(4, 64, 4, 512, None), (12, 128, 1, 1024, None)],
}
SAMPLE_SHAPES = {"cuda": [(12, 128, 1), (16, 256, 1), (16, 256, 64), (16, 256, 512)], "cpu": [(4, 64, 1), (4, 64, 16)]}


class Timing(NamedTuple):
    """Milliseconds of ours and, where there is a peer, of both."""

    ours: list[float]
    peer: list[float] | None


def has_peer(device: str) -> bool:
    """Whether mamba_ssm with its CUDA scan is there."""
    return device == "cuda" and all(importlib.util.find_spec(n) for n in ("mamba_ssm", "selective_scan_cuda"))


def peer_version() -> str:
    """What the peer's figures are of."""
    import mamba_ssm

    return f"mamba_ssm {mamba_ssm.__version__}"


def interleaved(
    ours: Callable[[], object],
    peer: Callable[[], object] | None,
    device: str,
    *,
    pairs: int = PAIRS,
    seconds: float = 3,
) -> Timing:
    """Times `pairs` pairs, fewer where they would take longer than `seconds` but at least three.

    On a GPU the calls are queued one behind the other, each after flushes of the L2, and waited for once at the end:
    what is measured is the GPU's time and not the host's for launching a short call, as by `triton.testing.do_bench`.
    """
    calls = [ours] if peer is None else [ours, peer]
    times = _queued(calls, pairs, seconds) if device == "cuda" else _one_by_one(calls, pairs, seconds)
    return Timing(times[0], times[1] if peer is not None else None)


def _one_by_one(calls: list[Callable[[], object]], pairs: int, seconds: float) -> list[list[float]]:
    for call in calls:
        for _ in range(2):
            call()
    times: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    while len(times[0]) < pairs and (time.perf_counter() - start < seconds or len(times[0]) < 3):
        for call, found in zip(calls, times, strict=True):
            began = time.perf_counter()
            call()
            found.append(1e3 * (time.perf_counter() - began))
    return times


def _queued(calls: list[Callable[[], object]], pairs: int, seconds: float) -> list[list[float]]:
    scratch = torch.empty(2**26, dtype=torch.int32, device="cuda")

    def turn() -> list[tuple[torch.cuda.Event, torch.cuda.Event]]:
        marks = []
        for call in calls:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            for _ in range(FLUSHES):
                scratch.zero_()
            begin.record()
            call()
            end.record()
            marks.append((begin, end))
        return marks

    turn()
    torch.cuda.synchronize()
    start = time.perf_counter()
    turn()
    torch.cuda.synchronize()
    took = time.perf_counter() - start
    # Nothing is kept but events: what a call returns is free for the next one, which runs behind it on the same stream.
    queue = [turn() for _ in range(max(3, min(pairs, int(seconds / took))))]
    torch.cuda.synchronize()
    return [[begin.elapsed_time(end) for begin, end in marks] for marks in zip(*queue, strict=True)]


def _row(device: str, what: str, mode: str, shape: str, dtype: str, timing: Timing, **more: Any) -> Row:
    low, middle, high = _percentiles(timing.ours)
    row: Row = {
        "benchmark": what,
        "mode": mode,
        "shape": shape,
        "dtype": dtype,
        "pairs": len(timing.ours),
        "ms_p20": f"{low:.4g}",
        "ms_p50": f"{middle:.4g}",
        "ms_p80": f"{high:.4g}",
        "peer": "",
        "peer_ms_p50": "",
        "ratio": "",
        "ratio_q1": "",
        "ratio_q3": "",
    }
    if timing.peer is not None:
        ratios = [peer / ours for ours, peer in zip(timing.ours, timing.peer, strict=True)]
        q1, q2, q3 = statistics.quantiles(ratios, n=4)
        row |= {"peer": peer_version(), "peer_ms_p50": f"{_percentiles(timing.peer)[1]:.4g}"}
        row |= {"ratio": f"{q2:.3f}", "ratio_q1": f"{q1:.3f}", "ratio_q3": f"{q3:.3f}"}
    return row | more | environment(device)


def _percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    p = torch.quantile(torch.tensor(values, dtype=torch.float64), torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
    return float(p[0]), float(p[1]), float(p[2])


# Operations


def scan_inputs(batch: int, length: int, channels: int, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Inputs of a real selective scan as at the start of training."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    rates = torch.arange(1, STATES + 1, device=device).float().expand(channels, STATES)
    return {
        "u": normal(batch, length, channels).to(dtype),
        "dt": (normal(batch, length, channels) * 0.5).to(dtype),
        "A": -rates.contiguous(),
        "B": normal(batch, length, STATES).to(dtype),
        "C": normal(batch, length, STATES).to(dtype),
        "D": normal(channels),
        "z": normal(batch, length, channels).to(dtype),
        "dt_bias": normal(channels) * 0.5 - 4.0,
    }


def conv_inputs(batch: int, length: int, channels: int, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Inputs of a causal convolution of width 4."""
    generator = torch.Generator(device).manual_seed(0)
    return {
        "x": torch.randn(batch, length, channels, generator=generator, device=device).to(dtype),
        "weight": torch.randn(channels, 4, generator=generator, device=device),
        "bias": torch.randn(channels, generator=generator, device=device),
    }


def peer_scan(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor) -> Tensor:
    """mamba_ssm's CUDA scan on the inputs of ours, in its layout."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn(u, dt, A, B, C, D, z=z, delta_bias=dt_bias, delta_softplus=True)


def _peer_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from causal_conv1d import causal_conv1d_fn

    # Channels-last memory behind its (B, D, L) face, as inside its own block.
    return causal_conv1d_fn(x.transpose(1, 2), weight, bias, activation="silu").transpose(1, 2)


def peer_layout(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """mamba_ssm's own layout: (B, D, L), contiguous."""
    swapped = ("u", "dt", "B", "C", "z")
    return {k: v.transpose(1, 2).contiguous() if k in swapped else v for k, v in inputs.items()}


def _check(name: str, run: Callable[..., Tensor], oracle: Callable[..., Any], inputs: dict[str, Tensor]) -> None:
    """Raises where a small call differs from the fp64 oracle by more than rounding."""
    small = {k: v[:1, :65, :32] if v.ndim == 3 else v[:32] for k, v in inputs.items()}
    found = run(**small)
    exact = oracle(**{k: v.double() for k, v in small.items()})
    exact = exact[0] if isinstance(exact, tuple) else exact
    error = float((found.double() - exact).norm() / exact.norm())
    if not error < (1e-5 if found.dtype == torch.float32 else 2e-2):
        raise RuntimeError(f"{name}: wrong by {error:.1e}, not timed; see mba doctor")


def kernels(
    device: str, *, seconds: float = 3.0, shapes: Sequence[tuple[int, int, int]] | None = None
) -> Iterator[Row]:
    """Scan and convolution, forward and backward, one row each."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    peer_there = has_peer(device)
    for batch, length, channels in shapes or KERNEL_SHAPES[device]:
        shape = f"({batch}, {length}, {channels})"
        for name, make, ours, oracle, peer, layout in (
            ("selective_scan", scan_inputs, ops.selective_scan, selective_scan_ref, peer_scan, peer_layout),
            ("causal_conv1d", conv_inputs, ops.causal_conv1d, causal_conv1d_ref, _peer_conv, dict),
        ):
            inputs = make(batch, length, channels, dtype, device)
            _check(name, ours, oracle, inputs)  # type: ignore[arg-type]
            given: list[tuple[Any, dict[str, Tensor]]] = [(ours, inputs)]
            if peer_there:
                given.append((peer, layout(inputs)))
            for mode, prepare in (("forward", forward_call), ("backward", _backward)):
                calls = [prepare(run, values) for run, values in given]
                timing = interleaved(calls[0], calls[1] if peer_there else None, device, seconds=seconds)
                yield _row(device, name, mode, shape, str(dtype).removeprefix("torch."), timing)


def forward_call(run: Callable[..., Tensor], inputs: dict[str, Tensor]) -> Callable[[], object]:
    """`run` on the inputs, keeping nothing for backward."""

    def call() -> Tensor:
        with torch.no_grad():
            return run(**inputs)

    return call


def _backward(run: Callable[..., Tensor], inputs: dict[str, Tensor]) -> Callable[[], object]:
    leaves = {k: v.detach().requires_grad_() for k, v in inputs.items()}
    out = run(**leaves)
    g = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, list(leaves.values()), g, retain_graph=True)


# Training steps


def train(
    device: str,
    *,
    seconds: float = 3.0,
    shapes: Sequence[tuple[int, int, int, int, int | None]] | None = None,
    graph: bool = False,
) -> Iterator[Row]:
    """Forward, loss and backward of the DNA language model, bf16 autocast on a GPU; time, positions/s, peak memory.

    With `graph` our whole steps are recorded, as by `train.cuda_graph`.
    """
    for layers, width, batch, length, chunk in shapes or TRAIN_SHAPES[device]:
        model = build_model(ModelConfig(d_model=width, num_layers=layers, vocab_size=12), seed=0).to(device)
        tokens = torch.randint(7, 11, (batch, length), device=device)
        name = f"{layers}x{width}, ({batch}, {length})" + (f", streamed by {chunk}" if chunk else "")
        dtype = "bfloat16" if device == "cuda" else "float32"
        timing, memory = beside(
            step_of(model, tokens, chunk, graph=graph),
            partial(_peer_step, layers, width, tokens) if has_peer(device) and not chunk else None,
            device,
            seconds=seconds,
        )
        more: Row = {"parameters": sum(p.numel() for p in model.parameters())}
        more["mtokens_per_s"] = f"{batch * length / statistics.median(timing.ours) / 1e3:.4g}"
        yield _row(device, "train", "step", name, dtype, timing, **more | memory)


def beside(
    ours: Callable[[], object],
    make_peer: Callable[[], Callable[[], object]] | None,
    device: str,
    *,
    pairs: int = PAIRS,
    seconds: float = 3,
) -> tuple[Timing, Row]:
    """Times and peak GiB of a step and of a peer's.

    The peer is made after ours was measured, so that neither peak has the other's weights in it. A step that needs too
    much memory is not timed: its peak reads "out of memory", its time is NaN.
    """
    memory: Row = {"peak_gib": _gib(peak(ours, device)), "peer_peak_gib": ""}
    peer = None
    if make_peer is not None:
        held = torch.cuda.memory_allocated() if device == "cuda" else 0
        peer = make_peer()
        memory["peer_peak_gib"] = _gib(peak(peer, device, without=held))
        if memory["peer_peak_gib"] == OUT_OF_MEMORY:
            peer = None
    if memory["peak_gib"] == OUT_OF_MEMORY:
        return Timing([math.nan], None), memory
    return interleaved(ours, peer, device, pairs=pairs, seconds=seconds), memory


def training_step(model: nn.Module, tokens: Tensor, chunk: int) -> None:
    """Forward, loss and backward of one of our models, in chunks; on a GPU in bf16 autocast."""
    device = tokens.device.type
    try:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss_sum, _, _ = streamed_loss(model, tokens, tokens.roll(-1, 1), chunk=chunk)
        (loss_sum / tokens.numel()).backward()
    finally:
        model.zero_grad(set_to_none=True)


def step_of(model: nn.Module, tokens: Tensor, chunk: int | None = None, *, graph: bool = False) -> Callable[[], None]:
    """A training step, streamed by `chunk` or whole; with `graph` a whole one is recorded."""
    if graph and chunk is None:
        return partial(graphed_step(model), tokens)
    return partial(training_step, model, tokens, chunk or tokens.shape[1])


def graphed_step(model: nn.Module) -> Callable[[Tensor], None]:
    """The same of a model, whole, recorded as a CUDA graph (`train.cuda_graph`); its argument is the tokens."""
    loss_of = GraphedLoss(model)

    def step(tokens: Tensor) -> None:
        targets = tokens.roll(-1, 1)
        try:
            with torch.autocast(tokens.device.type, torch.bfloat16, enabled=tokens.is_cuda):
                loss_sum, _ = loss_of(tokens, targets)
            (loss_sum / tokens.numel()).backward()
        finally:
            model.zero_grad(set_to_none=True)

    return step


def logits_step(model: nn.Module, tokens: Tensor) -> None:
    """Forward, loss and backward of a model that only gives logits, whole; on a GPU in bf16 autocast."""
    device = tokens.device.type
    try:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = model(tokens).logits
        nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens.roll(-1, 1).flatten()).backward()
    finally:
        model.zero_grad(set_to_none=True)


def _peer_step(layers: int, width: int, tokens: Tensor) -> Callable[[], object]:
    return partial(logits_step, peer_model(layers, width), tokens)


def peer_model(layers: int, width: int, **ssm: Any) -> nn.Module:
    """mamba_ssm's language model with a vocabulary of 16, on the GPU; `ssm` chooses its layer."""
    # Not from the package's first file, which imports every model that it has.
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    return MambaLMHeadModel(MambaConfig(d_model=width, n_layer=layers, vocab_size=16, ssm_cfg=ssm)).cuda()


def peak(call: Callable[[], object], device: str, *, without: int = 0) -> int | None:
    """Peak bytes allocated in the second of two calls, less `without`; None out of memory, 0 on a CPU."""
    if device != "cuda":
        return 0
    torch.cuda.empty_cache()
    try:
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - without
    except torch.cuda.OutOfMemoryError:
        pass
    # Only here are the frames of the failed call gone, and what they held.
    torch.cuda.empty_cache()
    return None


def _gib(amount: int | None) -> str:
    return OUT_OF_MEMORY if amount is None else f"{amount / 2**30:.2f}"


# Generation


def sample(device: str, *, length: int = 256, seconds: float = 3.0) -> Iterator[Row]:
    """Microseconds per step of unconditional generation, by batch."""
    for layers, width, batch in SAMPLE_SHAPES[device]:
        model = build_model(ModelConfig(d_model=width, num_layers=layers, vocab_size=12), seed=0).to(device).eval()
        call = partial(generate, model, length=length, num_samples=batch, allowed=range(7, 11), seed=0)
        timing = interleaved(call, None, device, seconds=seconds)
        step = statistics.median(timing.ours) / length
        more = {"us_per_step": f"{1e3 * step:.4g}", "tokens_per_s": f"{1e3 * batch / step:.4g}"}
        yield _row(device, "sample", f"{length} steps", f"{layers}x{width}, batch {batch}", "float32", timing, **more)


BENCHMARKS: dict[str, Callable[..., Iterator[Row]]] = {"kernels": kernels, "train": train, "sample": sample}


def bench(
    what: str, out: Path, *, device: str, seconds: float = 3.0, progress: Callable[[Row], None] | None = None
) -> list[Row]:
    """Run one benchmark and write its rows to the CSV file `out` as they come.

    Raises:
        InputError: an unknown benchmark, or `out` is a folder.
    """
    if what not in BENCHMARKS:
        raise InputError(f"benchmark {what}: choose one of {', '.join(BENCHMARKS)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    # A table of an earlier call is replaced, and nothing else.
    check_file(out, "bench", begins_with("benchmark,"), force=True)
    rows: list[Row] = []
    for row in BENCHMARKS[what](device, seconds=seconds):
        rows.append(row)
        write_rows(out, rows)
        if progress is not None:
            progress(row)
    return rows


def write_rows(out: Path, rows: Sequence[Row]) -> None:
    """Write the CSV file `out`, with a column for every key of any row."""
    with atomic_path(out) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(k for r in rows for k in r)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
