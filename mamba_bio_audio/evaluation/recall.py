"""Recall: what a piece that was read before is worth when it comes again.

Each trial is read with the state carried: its beginning once, then every variant from a copy of that state, so that only the
logits of the last piece are needed, and with a state of constant size memory does not depend on the distance.

Legend: T trials, K symbols of the piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.inference.streaming import Passes, advance, fork, log_likelihoods
from mamba_bio_audio.pipelines.scores import CopyBar, RecallTrials

# Rows that are read at once, where so many fit.
_ROWS = 64


def recall_nats(
    model: Any,
    trials: RecallTrials,
    *,
    known: Sequence[int],
    positions: int,
    device: str,
    narrow: bool,
    progress: Callable[[int], None] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Mean nats (T,) of the last piece's symbols in each variant.

    Args:
        model: language model that carries a state, on `device`, in eval mode.
        trials: what is read.
        known: ids that are scored.
        positions: positions processed at a time, over all rows; determines the memory.
        narrow: bf16 autocast.
        progress: called with the number of symbols that were read.
    """
    variants, count = list(trials.pieces), len(trials.target)
    # What grows with the length is kept for each row.
    most = _ROWS if model.streaming == "constant" else len(variants) * (positions // trials.context)
    step = max(1, min(most, positions) // len(variants))
    found = np.empty((len(variants), count))
    for low in range(0, count, step):
        some = range(low, min(low + step, count))

        def passes(rows: int) -> Passes:
            return Passes(device, narrow, max(1, positions // rows), progress=progress)

        state = advance(model, [trials.lead[at] for at in some], passes=passes(len(some)))
        # Variant by variant, in each the trials in order.
        state = fork(state, [at for _ in variants for at in range(len(some))])
        order = [(variant, at) for variant in variants for at in some]
        way = passes(len(order))
        before = [np.concatenate([trials.pieces[variant][at], trials.gap[at]]) for variant, at in order]
        state = advance(model, [row[:-1] for row in before], passes=way, state=state)
        rows = [np.append(row[-1:], trials.target[at]) for row, (_, at) in zip(before, order, strict=True)]
        parts = [values for _, values in log_likelihoods(model, rows, known=known, pad_id=0, passes=way, state=state)]
        nats = -np.concatenate(parts, 1)[:, 1:].mean(1)
        found[:, low : low + len(some)] = nats.reshape(len(variants), len(some))
    return dict(zip(variants, found, strict=True))


def recall_bar(
    bar: CopyBar, trials: RecallTrials, progress: Callable[[int], None] | None = None
) -> dict[str, NDArray[np.float64]]:
    """The same (T,) of a yardstick that copies."""
    found = {variant: np.empty(len(trials.target)) for variant in trials.pieces}
    size = trials.target.shape[1]
    for variant, pieces in trials.pieces.items():
        for at, parts in enumerate(zip(trials.lead, pieces, trials.gap, trials.target, strict=True)):
            window = np.concatenate(parts)
            found[variant][at] = bar.nats(window, size, [trials.context])[trials.context].mean()
            if progress is not None:
                progress(len(window))
    return found
