"""What `mba bench` measures: operations and training steps; `sample_speed.py` measures generation.

Every pair of calls runs ours, then the peer's, on the same inputs; reported are the 20th, 50th and 80th percentile of
ours and the median of the ratio within pairs (above 1: ours is faster). Results are checked before anything is timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mamba_bio_audio import ops
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.streamed import streamed_loss
from mamba_bio_audio.run.peer import has_peer, peer_conv, peer_layout, peer_model, peer_scan
from mamba_bio_audio.run.sample_speed import sample
from mamba_bio_audio.run.timing import Row, beside, interleaved, timing_row
from mamba_bio_audio.training.graphed import GraphedLoss

STATES = 16
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


def _check(name: str, run: Callable[..., Tensor], inputs: dict[str, Tensor]) -> None:
    """Raises where a small call differs from the fp64 reference by more than rounding."""
    small = {k: v[:1, :65, :32] if v.ndim == 3 else v[:32] for k, v in inputs.items()}
    found = run(**small)
    exact = run(**{k: v.double() for k, v in small.items()}, backend="reference")
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
        for name, make, ours, peer, layout in (
            ("selective_scan", scan_inputs, ops.selective_scan, peer_scan, peer_layout),
            ("causal_conv1d", conv_inputs, ops.causal_conv1d, peer_conv, dict),
        ):
            inputs = make(batch, length, channels, dtype, device)
            _check(name, ours, inputs)  # type: ignore[arg-type]
            given: list[tuple[Any, dict[str, Tensor]]] = [(ours, inputs)]
            if peer_there:
                given.append((peer, layout(inputs)))
            for mode, prepare in (("forward", forward_call), ("backward", _backward)):
                calls = [prepare(run, values) for run, values in given]
                timing = interleaved(calls[0], calls[1] if peer_there else None, device, seconds=seconds)
                yield timing_row(device, name, mode, shape, str(dtype).removeprefix("torch."), timing)


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
        yield timing_row(device, "train", "step", name, dtype, timing, **more | memory)


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


BENCHMARKS: dict[str, Callable[..., Iterator[Row]]] = {"kernels": kernels, "train": train, "sample": sample}
