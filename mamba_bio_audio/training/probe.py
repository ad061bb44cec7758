"""Memory and time that a run will need, measured on a small part of it, for `--dry-run`.

One or two real training steps at reduced size are run, and extrapolated linearly in tokens; nothing is guessed. On the
CPU they run in a fresh process, so that its peak resident memory is that of a training process.
"""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.machine import peak_memory, total_memory
from mamba_bio_audio.models.build import build, to_be_trained
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.isotropic import IsotropicModel, set_dropout
from mamba_bio_audio.models.streamed import streamed_loss
from mamba_bio_audio.models.unet import UNetModel
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.training.config import TrainConfig, resolve_precision
from mamba_bio_audio.training.optim import build_optimizer

# Floating point operations spent on a probe.
_BUDGET = {"cpu": 1.5e11, "cuda": 2e13}


class Probe(NamedTuple):
    """Estimate for the whole run."""

    memory_bytes: int | None  # peak of the process (CPU) or of the allocator (CUDA), per device; None if unknown
    seconds_per_step: float  # per optimiser step, without data loading and validation


def probe(model: ModelConfig | UNetConfig, train: TrainConfig, device: str, head: HeadConfig | None = None) -> Probe:
    """Measure two sizes (one if the micro-batch itself is small enough) and extrapolate to the micro-batch.

    Raises:
        InputError: the process that measures (on the CPU one of its own) was ended, most likely for want of memory.
    """
    if device == "cuda":
        points = _measure(model, train, device, head)
    else:
        points = _elsewhere(model, train, device, head)
    tokens = _tokens(train, device)
    (n1, m1, _), (n2, m2, seconds) = points[0], points[-1]
    memory = None
    if m1 is not None and m2 is not None:
        memory = int(m2 if n2 == tokens else m2 + max(0.0, (m2 - m1) / (n2 - n1)) * (tokens - n2))
    per_device = train.tokens_per_step / (train.devices * train.nodes)
    return Probe(memory, seconds / n2 * per_device)


def _elsewhere(*given: Any) -> list[tuple[int, int | None, float]]:
    """`_measure` in a process of its own, ended as soon as it has answered: to leave by itself takes it two seconds."""
    context = multiprocessing.get_context("spawn")
    answer, to = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(to, *given), daemon=True)
    process.start()
    to.close()
    try:
        found = answer.recv()
    except EOFError:
        raise InputError(
            "the process that measures memory and time ended before it was done, most likely because memory ran "
            "out; lower train.micro_batch or train.length, or set train.stream_chunk to a number of positions"
        ) from None
    finally:
        process.kill()
        process.join()
        answer.close()
    if isinstance(found, Exception):
        raise found
    return list(found)


def _answer(to: Connection, *given: Any) -> None:
    try:
        to.send(_measure(*given))
    except Exception as error:
        to.send(error)


def choose_chunk(
    model: ModelConfig | UNetConfig, train: TrainConfig, device: str, head: HeadConfig | None = None
) -> int | None:
    """Choose `stream_chunk`: the largest power of two, in positions, that fits into the memory allowed.

    Two small chunks are measured and extrapolated linearly. For a U-Net the result is rounded down to a multiple of the
    product of its pools. None, meaning no streaming, if whole sequences fit.

    Args:
        train: settings with `stream_chunk` "auto".
        device: "cpu" (half of the machine's memory may be used) or "cuda" (two thirds of what is free now).

    Raises:
        InputError: the system does not report how much memory a process has used.
    """
    small, large = (1 << 10, 1 << 11) if device == "cpu" else (1 << 14, 1 << 15)
    limit = _memory_limit(device)
    used = [
        probe(model, train.model_copy(update={"stream_chunk": size}), device, head).memory_bytes
        for size in (small, large)
    ]
    if limit is None or used[0] is None or used[1] is None:
        raise InputError(
            "train.stream_chunk=auto needs to measure memory, which this system does not report; set it to a number of "
            f"positions, for example {small}, or to null"
        )
    each = max(1.0, (used[1] - used[0]) / (large - small))
    longest = large + (limit - used[1]) / each
    if longest * train.sequence_parallel >= train.length:
        return None
    period = getattr(model, "period", 1)
    return max(small, 1 << int(max(1.0, longest)).bit_length() - 1) // period * period or period


def _memory_limit(device: str) -> float | None:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] * 2 / 3
    whole = total_memory()
    return None if whole is None else whole / 2


def _measure(
    model_config: ModelConfig | UNetConfig, train: TrainConfig, device: str, head: HeadConfig | None
) -> list[tuple[int, int | None, float]]:
    """(tokens, peak bytes, seconds per forward and backward) at one or two sizes, smaller first."""
    if device == "cpu":
        # What a training process has loaded besides the model.
        import mamba_bio_audio.pipelines.data
        import mamba_bio_audio.training.fit  # noqa: F401
    else:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model = to_be_trained(build(model_config, head, seed=0), seed=0).to(device)
    model.recompute = train.recompute
    set_dropout(model, train.dropout)
    bf16 = resolve_precision(train.precision, device) == "bf16"
    # What the real size keeps, not what the small one here might.
    positions = train.micro_batch_for(device) * _longest(train) if train.chunk is None else train.chunk
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        for backbone in model.modules():
            if isinstance(backbone, IsotropicModel | UNetModel):
                backbone.keeper.fixed = backbone.choice(positions, torch.device(device))
    optimizer = build_optimizer(model, train)
    tokens = _tokens(train, device)
    affordable = int(_BUDGET[device] / (6 * model.num_parameters()))
    largest = min(tokens, max(1024, affordable))
    points = []
    for target in sorted({largest, tokens if largest == tokens else largest // 2}):
        longest = _longest(train)
        length = min(longest, target)
        batch = max(1, target // length)
        ids = torch.randint(7, 11, (batch, length), device=device)
        targets = model.some_targets(ids)
        seconds = 0.0
        # The first round at a size includes allocation and warm-up.
        for _ in range(2):
            start = time.perf_counter()
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                if train.chunk is None:
                    loss_sum = model(ids, targets=targets, logits="none").loss_sum
                else:
                    loss_sum, _, _ = streamed_loss(model, ids, targets, chunk=train.chunk)
            (loss_sum / ids.numel()).backward()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            optimizer.step()
            optimizer.zero_grad()
            del loss_sum
        points.append((batch * length, _peak(device), seconds))
    return points


def _tokens(train: TrainConfig, device: str) -> int:
    """Positions that determine the memory: those of a micro-batch, or of two chunks of it if streamed."""
    return train.micro_batch_for(device) * _longest(train)


def _longest(train: TrainConfig) -> int:
    own = -(-train.length // train.sequence_parallel)
    return own if train.chunk is None else min(own, 2 * train.chunk)


def _peak(device: str) -> int | None:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_memory()
