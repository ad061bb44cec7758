"""Class probabilities of batches of sequences, averaged over both strands, in one pass or streamed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.contract import Strand


class Stopped(Exception):
    """The caller asked to stop early; there is no result."""


@dataclass(frozen=True)
class Passes:
    """How sequences are run through a model.

    Attributes:
        device: "cpu" or "cuda".
        narrow: use bf16 autocast.
        chunk: positions per pass, with the state carried, for constant memory at any length; None for a single pass.
        stop: called before every pass; True raises `Stopped`.
        progress: called after every pass with the number of symbols that it read, for each strand.
    """

    device: str = "cpu"
    narrow: bool = False
    chunk: int | None = None
    stop: Callable[[], bool] = lambda: False
    progress: Callable[[int], None] | None = None


def classify(
    model: Any,
    rows: Sequence[NDArray[Any]],
    *,
    pad_id: int,
    reverse: Any = None,
    strand: Strand = "forward",
    passes: Passes = Passes(),
) -> NDArray[np.float64]:
    """Class probabilities (n, K) of sequences of any lengths, processed as one batch.

    Args:
        model: classifier in eval mode, on the device of `passes`.
        rows: token ids, (L,) each; padded on the right to a common length, which changes no row's result.
        pad_id: token for padding.
        reverse: ids -> ids of the opposite strand; needed unless strand is "forward".
        strand: "both" averages the probabilities of the two strands, so that a sequence and its reverse complement get
            the same.
        passes: how the batch is run through the model.

    Raises:
        Stopped: `passes.stop` returned True.
    """
    if not rows or not all(len(row) for row in rows):
        raise InputError("a sequence to classify is empty; give at least one symbol")
    readings = []
    if strand != "reverse":
        readings.append(rows)
    if strand != "forward":
        readings.append([reverse(row) for row in rows])
    total: NDArray[np.float64] = np.zeros(())
    for reading in readings:
        logits = _last_logits(model, reading, pad_id, passes)
        total = total + logits.double().softmax(-1).cpu().numpy()
    return total / len(readings)


def _last_logits(model: Any, rows: Sequence[NDArray[Any]], pad_id: int, passes: Passes) -> Tensor:
    """Logits (n, K) at each row's last real position."""
    device = passes.device
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())
    last = (lengths - 1).to(device)
    state, logits = None, None
    step = passes.chunk or longest
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16) if passes.narrow else nullcontext():
        for low in range(0, longest, step):
            if passes.stop():
                raise Stopped
            # Converted piece by piece: as int64 a whole chromosome would take eight times its memory.
            tokens = np.full((len(rows), min(step, longest - low)), pad_id, dtype=np.int64)
            for line, row in zip(tokens, rows, strict=True):
                part = row[low : low + step]
                line[: len(part)] = part
            piece = torch.from_numpy(tokens).to(device)
            ends = (lengths > low) & (lengths <= low + step)
            # Rows of equal length end together; the logits of one position are cheaper than those of all.
            together = bool((lengths == low + piece.shape[1]).all())
            out = model(piece, state, logits="last" if together else "all" if ends.any() else "none")
            state = out.state
            if together:
                logits = out.logits[:, 0].float()
            elif ends.any():
                at = (last - low).clamp(0, piece.shape[1] - 1)
                own = out.logits[torch.arange(len(rows), device=device), at].float()
                inside = ((last >= low) & (last < low + step))[:, None]
                logits = torch.where(inside, own, own if logits is None else logits)
            if passes.progress is not None:
                passes.progress(int((lengths - low).clamp(0, step).sum()))
    assert logits is not None
    return logits
