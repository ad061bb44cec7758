"""Checks before training begins: whether it fits the machine, and whether its folder can be written."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.machine import available_memory, check_memory, own_memory
from mamba_bio_audio.models.size import count_parameters, kept_per_position, size_text
from mamba_bio_audio.run.config import RunConfig
from mamba_bio_audio.text import is_utf8
from mamba_bio_audio.training.config import resolve_precision

FIT = "lower model.d_model, model.num_layers, train.length or train.micro_batch, or set train.stream_chunk"


def check_utf8(run: Path) -> None:
    """Refuse a folder whose path is not UTF-8, because TensorBoard and safetensors cannot write there.

    Raises:
        InputError: the path is not UTF-8.
    """
    if not is_utf8(str(run)):
        raise InputError(
            f"{run}: the path is not UTF-8, so libraries that write the run cannot use it; choose another --out, or set "
            "PYTHONUTF8=1 if Python misreads the path"
        )


def free_memory(device: str) -> int | None:
    """Bytes that are free on "cpu" or "cuda"; None where the system does not say.

    If each process has its own GPU, that one is meant; memory that torch caches for reuse counts as free.
    """
    if device != "cuda":
        return available_memory()
    rank = os.environ.get("LOCAL_RANK", "")
    number = int(rank) if rank.isdecimal() and int(rank) < torch.cuda.device_count() else 0
    kept = torch.cuda.memory_reserved(number) - torch.cuda.memory_allocated(number)
    return int(torch.cuda.mem_get_info(number)[0]) + kept


def memory_for_run(device: str) -> int | None:
    """Like `free_memory`, but for a training process that replaces this one, whose own memory is then free."""
    free = free_memory(device)
    return free if free is None or device == "cuda" else free + own_memory()


def least_memory(config: RunConfig, device: str) -> int:
    """Lower bound on the bytes per device that a training run takes, from its configuration alone.

    Counts weights, gradients and both AdamW moments in fp32, the moving average, the symbols of a micro-batch, and the
    input of every layer for all positions processed at once. Real training takes more; if even this exceeds the machine,
    training cannot fit.
    """
    train = config.train
    parameters = count_parameters(config.model, config.head)
    frozen = config.head is not None and config.head.freeze
    adapted = config.head is not None and config.head.lora_rank is not None
    copies = (1 if frozen or adapted else 4) + (train.ema is not None)
    batch = train.micro_batch_for(device) * -(-train.length // train.sequence_parallel)
    if train.stream_chunk == "auto" or frozen:
        kept = 0
    else:
        kept = batch if train.chunk is None else min(batch, train.chunk)
    width = 2 if resolve_precision(train.precision, device) == "bf16" else 4
    return int(4 * parameters * copies + 16 * batch + kept * kept_per_position(config.model) * width)


def check_fits(config: RunConfig, device: str) -> None:
    """Refuse a training run that cannot fit this machine, before data are read or anything is built.

    Raises:
        InputError: it cannot fit; names what it takes and what there is.
    """
    train = config.train
    size = size_text(count_parameters(config.model, config.head))
    check_memory(
        least_memory(config, device),
        f"training {size} parameters with {train.micro_batch_for(device):,} x {train.length:,} positions at a time",
        FIT,
        available=free_memory(device),
        where="the GPU" if device == "cuda" else "this machine",
    )
