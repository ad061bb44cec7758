"""What a head says of every base or bin of sequences of any length (`head.task` bases and tracks).

A sequence is cut into cores of whole bins, and each is read with its margins (`pipelines/dna/tracks.py`): the value of a bin
has seen at least `margin` bases before it and behind it. Each strand is cut from its own first base, and the two
are averaged bin by bin. Bases at the end that fill no bin have no value; that of a bin without a known base is NaN, because
nothing was trained to be said of it.

Legend: n bases, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference.sequences import Sequences, rows_of
from mamba_bio_audio.inference.streaming import Passes, Stopped, passes_of, positions
from mamba_bio_audio.pipelines.contract import Strand, Symbols
from mamba_bio_audio.pipelines.corpus import Ids
from mamba_bio_audio.pipelines.domains import domain_of


class Layout(NamedTuple):
    """How sequences are cut.

    Attributes:
        length: bases of a window, both margins included.
        bin: bases per value.
        margin: bases read on either side of the scored ones.
        strand: "both" averages the strands.
    """

    length: int
    bin: int
    margin: int
    strand: Strand

    @property
    def core(self) -> int:
        """Scored bases of a window, a whole number of bins."""
        return (self.length - 2 * self.margin) // self.bin * self.bin


def window_values(
    model: Any, windows: Sequence[Ids], layout: Layout, symbols: Symbols, passes: Passes = Passes()
) -> list[NDArray[np.float64]]:
    """Values (bins, K) of the cores of windows, processed as one batch.

    Args:
        model: with a head for positions, in eval mode, on the device of `passes`.
        windows: ids (core + 2 margins,) each, a whole number of bins.
        layout: bins, margins, strand.
        symbols: meaning of the ids.
        passes: device and precision.
    """
    size, first = layout.bin, layout.margin + layout.bin - 1
    totals: list[Any] = [0.0] * len(windows)
    strands = ("forward", "reverse") if layout.strand == "both" else (layout.strand,)
    for strand in strands:
        turn: Callable[[Ids], Ids] | None = symbols.reverse if strand == "reverse" else None
        rows = [window if turn is None else turn(window) for window in windows]
        tokens = np.full((len(rows), max(map(len, rows))), symbols.pad_id, np.int64)
        for line, row in zip(tokens, rows, strict=True):
            line[: len(row)] = row
        narrow = torch.autocast(passes.device, torch.bfloat16) if passes.narrow else nullcontext()
        with torch.inference_mode(), narrow:
            logits = model(torch.from_numpy(tokens).to(passes.device), logits="all").logits[:, first::size]
            found = model.values(logits.float()).cpu().numpy()
        for at, row in enumerate(rows):
            own = found[at, : (len(row) - 2 * layout.margin) // size]
            totals[at] = totals[at] + (own if turn is None else own[::-1])
    return [total / len(strands) for total in totals]


def predict_along(
    model: Any, sequences: Sequences, *, strand: Strand | None = None, precision: str = "fp32"
) -> list[Tensor]:
    """What a model says of every base or bin of sequences of any length (`head.task` bases and tracks).

    >>> mba.predict_along(model, ["ACGTTGCA"])[0]    # doctest: +SKIP

    Args:
        model: of `mba.load`; runs on the device of its parameters.
        sequences: text or integer ids; one sequence (L,), several (B, L), or a list of sequences of any lengths.
        strand: "both" (the default where labels belong to no strand) averages the strands.
        precision: "fp32", or "bf16" (autocast).

    Returns:
        For each sequence float32 (bins, K) on the CPU, in the order of `model.labels`: probabilities of classes, or numbers in
        the units of the training data; bases at the end that fill no bin have none, and bins of N alone have NaN.

    Raises:
        InputError: the model predicts no bases or bins, a sequence is empty or not in its vocabulary, or has no such strand.
    """
    if not model.labels or model.task.rows:
        raise InputError(
            "mba.predict_along needs a model of bases or tracks, from mba finetune; for others use mba.predict"
        )
    config = model.config
    symbols = domain_of(config.data.kind).symbols(config.data, config.train.length)
    strand = strand or symbols.strands[0]
    if strand not in symbols.strands:
        raise InputError(f"strand is {strand!r}; choose {', '.join(symbols.strands)}")
    layout = Layout(config.train.length, symbols.bin, symbols.margin, strand)
    passes = passes_of(model, precision)
    return [
        torch.from_numpy(predict_positions(model, np.asarray(row), layout, symbols, passes))
        for row in rows_of(model, sequences)
    ]


def predict_positions(
    model: Any, ids: Ids, layout: Layout, symbols: Symbols, passes: Passes = Passes()
) -> NDArray[np.float32]:
    """Values (n // bin, K) of a sequence of ids (n,), NaN for bins of unknown bases; float32, because a chromosome has many.

    Args:
        model, layout, symbols, passes: as for `window_values`; `passes.progress` is called with the bases that were scored, of
            each strand.

    Raises:
        Stopped: `passes.stop` returned True.
    """
    end = len(ids) // layout.bin * layout.bin
    strands = ("forward", "reverse") if layout.strand == "both" else (layout.strand,)
    total = np.zeros((end // layout.bin, len(model.labels)), np.float32)
    for strand in strands:
        own = layout._replace(strand="forward")
        if strand == "forward":
            total += _of_strand(model, ids, 0, own, symbols, passes)
        else:
            assert symbols.reverse is not None
            # Cut from its own first base, so that a sequence and its reverse complement are cut alike.
            total += _of_strand(model, symbols.reverse(ids), len(ids) - end, own, symbols, passes)[::-1]
    total /= len(strands)
    total[~symbols.known(ids[:end]).reshape(-1, layout.bin).any(1)] = np.nan
    return total


def _of_strand(
    model: Any, ids: Ids, first: int, layout: Layout, symbols: Symbols, passes: Passes
) -> NDArray[np.float32]:
    """Values of the bins from base `first` on, read forward."""
    end = first + (len(ids) - first) // layout.bin * layout.bin
    values = np.empty(((end - first) // layout.bin, len(model.labels)), np.float32)
    per_batch = max(1, positions(passes.device) // layout.length)
    starts = range(first, end, layout.core)
    for low in range(0, len(starts), per_batch):
        if passes.stop():
            raise Stopped
        own = starts[low : low + per_batch]
        windows = [
            _with_margins(ids, start, min(start + layout.core, end), layout.margin, symbols.unknown_id) for start in own
        ]
        for start, found in zip(own, window_values(model, windows, layout, symbols, passes), strict=True):
            at = (start - first) // layout.bin
            values[at : at + len(found)] = found
        if passes.progress is not None:
            passes.progress(min(own[-1] + layout.core, end) - own[0])
    return values


def _with_margins(ids: Ids, start: int, end: int, margin: int, fill: int) -> Ids:
    """ids [start - margin, end + margin), filled beyond the ends of the sequence."""
    low, high = start - margin, end + margin
    window = np.full(high - low, fill, ids.dtype)
    window[max(0, -low) : min(len(ids), high) - low] = ids[max(0, low) : min(len(ids), high)]
    return window
