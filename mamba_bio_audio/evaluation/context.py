"""Measures the value of context: the loss on the same bases with different contexts, and by position in a window.

    matched: each target base is predicted from the c to c + K - 1 bases before it, for every c: K is a block, or
              the largest part of it that is at most a quarter of c
    position: each base of a split is predicted in windows of one length, and counted by its position in the window

What it tells: whether a model uses context of a given length. Merely comparing the losses of two window lengths misleads,
because the bases at the beginning of each window have little context at any length. Here the target bases are identical,
so the difference between two contexts is paired, block by block, and its standard error is that of independent blocks.

Windows of any length are processed in pieces with the state carried; memory does not depend on the context.

Legend: B rows, L positions, K bases per target block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mamba_bio_audio.inference.streaming import IGNORED, Passes, advance, log_likelihoods, nats_of
from mamba_bio_audio.pipelines.scores import CopyBar, Stratum, TargetBlocks, perplexity


class PositionSums(NamedTuple):
    """Sums over the bases that were predicted from `first` to `last` bases of context in their window."""

    first: int
    last: int
    nats: float
    scored: int


def nats_under(
    model: Any,
    blocks: TargetBlocks,
    contexts: Sequence[int],
    *,
    positions: int,
    device: str,
    narrow: bool,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[int, NDArray[np.float64]]:
    """Nats (blocks, K) of the target symbols under each context.

    Args:
        model: as for `target_nats`.
        positions: positions processed at a time, over all rows; determines the memory.
        narrow: bf16 autocast.
        progress: called with (batches done, batches in all).
    """
    batches = []
    for context in contexts:
        rows = max(1, positions // (context + blocks.size))
        batches += [(context, slice(low, min(low + rows, blocks.count))) for low in range(0, blocks.count, rows)]
    found: dict[int, list[NDArray[np.float64]]] = {context: [] for context in contexts}
    for done, (context, some) in enumerate(batches, start=1):
        piece = piece_of(blocks.size, context)
        symbols = torch.from_numpy(blocks.windows(some, context).astype(np.int64))
        # Successive pieces of a block, each with the context before it.
        pieces = symbols.unfold(1, context + piece, piece).flatten(0, 1)
        at_once = max(1, positions // (context + piece))
        own = [
            target_nats(model, part, piece, positions=positions, device=device, narrow=narrow)
            for part in pieces.split(at_once)
        ]
        found[context].append(np.concatenate(own).reshape(len(symbols), blocks.size))
        if progress is not None:
            progress(done, len(batches))
    return {context: np.concatenate(parts) for context, parts in found.items()}


def piece_of(size: int, context: int) -> int:
    """Bases of a block that are predicted in one pass: its largest part that is at most a quarter of the context."""
    return next(
        size // parts for parts in range(1, size + 1) if size % parts == 0 and size // parts <= max(1, context // 4)
    )


def bar_under(
    bar: CopyBar,
    blocks: TargetBlocks,
    contexts: Sequence[int],
    *,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[int, NDArray[np.float64]]:
    """Nats (blocks, K) of the same symbols under each context by a yardstick that copies; 0 where nothing is scored."""
    found = {context: np.zeros((blocks.count, blocks.size)) for context in contexts}
    together: dict[int, list[int]] = {}
    for context in contexts:
        together.setdefault(piece_of(blocks.size, context), []).append(context)
    for at in range(blocks.count):
        (window,) = blocks.windows(slice(at, at + 1), contexts[-1])
        for piece, own in together.items():
            for low in range(0, blocks.size, piece):
                end = contexts[-1] + low + piece
                part = window[end - piece - own[-1] : end]
                for context, nats in bar.nats(part, piece, own).items():
                    found[context][at, low : low + piece] = np.nan_to_num(nats)
        if progress is not None:
            progress(at + 1, blocks.count)
    return found


def target_nats(
    model: Any, windows: Tensor, size: int, *, positions: int, device: str, narrow: bool
) -> NDArray[np.float64]:
    """Nats of the last `size` symbols of each window, given all symbols before them.

    Args:
        model: language model of `constant` layers with `hidden` and `lm_head`, on `device`, in eval mode.
        windows: int64 (B, c + size), symbols.
        positions: positions processed at a time, over all rows; determines the memory.
        narrow: use bf16 autocast.

    Returns:
        (B, size), including symbols that are not bases, which the caller masks.
    """
    before = windows.shape[1] - size - 1
    passes = Passes(device, narrow, max(1, positions // len(windows)))
    state = advance(model, list(windows[:, :before]), passes=passes) if before else None
    everything = range(len(model.lm_head.weight))
    pieces = log_likelihoods(model, list(windows[:, before:]), known=everything, pad_id=0, passes=passes, state=state)
    return -np.concatenate([values for _, values in pieces], 1)[:, 1:]


def position_sums(
    model: Any,
    batches: Iterable[Mapping[str, Any]],
    *,
    positions: int,
    device: str,
    narrow: bool,
    progress: Callable[[int, int | None], None] | None = None,
) -> list[PositionSums]:
    """Loss by position in the window, in octaves of context: 1, 2-3, 4-7, ... bases before the predicted one.

    Args:
        batches: "tokens" and "targets", (B, L), -100 where nothing is scored.
        positions: positions processed at a time, over all rows.
    """
    nats: dict[int, Tensor] = {}
    counts: dict[int, Tensor] = {}
    try:
        total: int | None = len(batches)  # type: ignore[arg-type]
    except TypeError:
        total = None
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16) if narrow else nullcontext():
        for done, batch in enumerate(batches, start=1):
            tokens, targets = batch["tokens"], batch["targets"]
            state, step = None, max(1, positions // len(tokens))
            for low in range(0, tokens.shape[1], step):
                expected = targets[:, low : low + step].to(device)
                hidden, state = model.hidden(tokens[:, low : low + step].to(device), state)
                found, scored = nats_of(model, hidden, expected), expected != IGNORED
                # The target of input p is predicted from p + 1 bases.
                for octave in range((low + 1).bit_length(), (low + expected.shape[1]).bit_length() + 1):
                    part = slice(max(0, (1 << octave - 1) - 1 - low), max(0, (1 << octave) - 1 - low))
                    nats[octave] = nats.get(octave, 0.0) + found[:, part].sum()
                    counts[octave] = counts.get(octave, 0) + scored[:, part].sum()
            if progress is not None:
                progress(done, total)
    return [
        PositionSums(1 << octave - 1, (1 << octave) - 1, float(nats[octave]), int(counts[octave]))
        for octave in sorted(nats)
        if int(counts[octave])
    ]


def summarise(
    nats: Mapping[int, NDArray[np.float64]], parts: Sequence[Stratum], contexts: Sequence[int]
) -> list[dict[str, Any]]:
    """One row per stratum and context: mean nats, its gain over the shortest context, and the gain's standard error.

    Args:
        nats: (blocks, K) for each context.
        parts: result of `strata`; the first one is all bases.
        contexts: contexts, in ascending order.
    """
    rows = []
    for part in parts:
        count = int(part.members.sum())
        base = np.where(part.members, nats[contexts[0]], 0.0).sum(1)
        weights = part.members.sum(1)
        used = weights > 0
        for context in contexts:
            sums = np.where(part.members, nats[context], 0.0).sum(1)
            mean, gain = sums.sum() / count, (base - sums).sum() / count
            # Standard error of a ratio of sums over blocks, since blocks differ in their number of bases.
            residual = (base - sums)[used] - gain * weights[used]
            blocks = int(used.sum())
            error = math.sqrt(float((residual**2).sum()) * blocks / max(1, blocks - 1)) / count
            rows.append(
                {
                    "kind": part.kind,
                    "stratum": part.name,
                    "context": int(context),
                    "count": count,
                    "blocks": blocks,
                    "nats": float(mean),
                    "bits": float(mean) / math.log(2),
                    "perplexity": perplexity(float(mean)),
                    "gain_nats": float(gain),
                    "gain_standard_error": error if blocks > 1 else math.nan,
                }
            )
    return rows
