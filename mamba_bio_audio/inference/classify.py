"""Class probabilities, or other outputs, of batches of sequences, averaged over both strands, in one pass or streamed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference.streaming import Passes, stream
from mamba_bio_audio.pipelines.contract import Strand


def classify(
    model: Any,
    rows: Sequence[NDArray[Any]],
    *,
    pad_id: int,
    reverse: Any = None,
    strand: Strand = "forward",
    passes: Passes = Passes(),
    temperature: float | None = None,
) -> NDArray[np.float64]:
    """Class probabilities, or what else a head says (n, K), of sequences of any lengths, processed as one batch.

    Args:
        model: classifier in eval mode, on the device of `passes`.
        rows: token ids, (L,) each; padded on the right to a common length, which changes no row's result.
        pad_id: token for padding.
        reverse: ids -> ids of the opposite strand; needed unless strand is "forward".
        strand: "both" averages the outputs of the two strands, so that a sequence and its reverse complement get
            the same.
        passes: how the batch is run through the model.
        temperature: T of classes; the result is then (n, K + 1): the mean over strands of softmax(z / T) of the logits z,
            and of the energy T logsumexp(z / T).

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
        logits = last_logits(model, reading, pad_id, passes)
        values = model.values(logits) if temperature is None else _tempered(logits, temperature)
        total = total + values.cpu().numpy()
    return total / len(readings)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    z = logits.double() / temperature
    return torch.cat([z.softmax(-1), temperature * z.logsumexp(-1, keepdim=True)], -1)


def last_logits(model: Any, rows: Sequence[NDArray[Any]], pad_id: int, passes: Passes) -> Tensor:
    """Logits (n, K) at each row's last real position; arguments as for `classify`."""
    lengths = torch.tensor([len(row) for row in rows])
    last = (lengths - 1).to(passes.device)

    def read(tokens: Tensor, state: Any, low: int) -> tuple[Tensor | None, Any]:
        high = low + tokens.shape[1]
        ends = (lengths > low) & (lengths <= high)
        # Rows of equal length end together; the logits of one position are cheaper than those of all.
        together = bool((lengths == high).all())
        out = model(tokens, state, logits="last" if together else "all" if ends.any() else "none")
        if out.logits is None:
            return None, out.state
        at = (last - low).clamp(0, out.logits.shape[1] - 1)
        return out.logits[torch.arange(len(rows), device=last.device), at].float(), out.state

    logits: Tensor | None = None
    for low, own, _ in stream(model, rows, read, pad_id=pad_id, passes=passes):
        if own is not None:
            # A later piece sees only the padding of a row that has ended.
            logits = own if logits is None else torch.where((last >= low)[:, None], own, logits)
    assert logits is not None
    return logits
