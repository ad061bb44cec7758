"""Class probabilities of whole records of any length, in the order they come.

    windows   a record is cut into windows of the training length; the mean of their probabilities is the record's
    stream    a record is read once from its first symbol to its last with the state carried, whatever its length

Windows ask the model only for what it was trained on, and are the default. Their mean, not their product: windows of
one record are not independent evidence, and a product would be far too sure. Streaming lets signals that are further
apart than a training window meet, and goes beyond the lengths that the model has seen: trust it as far as an evaluation
at that length carries.

Each strand is cut from its own first base, the last window ends with the strand, and the two strands' means are
averaged. So the windows of a record's strands are those of its reverse complement's, exchanged: p(x) = p(rc x).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference.classify import Passes, Stopped, classify
from mamba_bio_audio.pipelines.contract import Strand, Symbols
from mamba_bio_audio.pipelines.corpus import Ids

Mode = Literal["windows", "stream"]
# Records are collected until there are this many batches of work, so that pieces of like length meet.
BATCHES_AHEAD, RECORDS_AHEAD = 16, 4096
# Token ids of one batch, 8 bytes each, when records longer than the batch are streamed.
MAX_IDS = 1 << 26
PIECE = 1 << 20


@dataclass(frozen=True)
class Reading:
    """How records are read.

    Attributes:
        length: of the windows, the start symbol included.
        mode: see the module.
        strand: "both" averages; for sequence whose strand has a meaning, one of them.
        max_unknown: windows with a larger share of unknown symbols are left out, as in training.
        batch_symbols: symbols read at once; does not change results.
    """

    length: int
    mode: Mode = "windows"
    strand: Strand = "both"
    max_unknown: float = 0.1
    batch_symbols: int = 1 << 14


class Prediction(NamedTuple):
    """The result for one record.

    Attributes:
        probabilities: (K,), sum 1; None where the record could not be scored.
        length: symbols of the record.
        used: known symbols that some window read.
        windows: number of windows averaged, over all strands.
        reason: why there are no probabilities; else empty.
    """

    probabilities: NDArray[np.float64] | None
    length: int
    used: int
    windows: int
    reason: str


@dataclass
class _Record:
    ids: Ids
    # Per strand: windows, and the sum of their probabilities.
    windows: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    sums: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    left: int = 0  # windows that are still to be read


def predict(
    model: Any,
    records: Iterable[Ids | str],
    symbols: Symbols,
    reading: Reading,
    passes: Passes = Passes(chunk=1 << 16),
) -> Iterator[Prediction]:
    """Predict records one after another; nothing is dropped, and each result is that of the record alone.

    Args:
        model: classifier in eval mode, on the device of `passes`.
        records: token ids (L,) each, or a text that says why a record has none.
        symbols: what the ids mean.
        reading: windows, strands and batches.
        passes: how batches go through the model. When `passes.stop` says so, the iteration ends without the records that
            are not finished; `passes.progress` is also called within a long record.

    Raises:
        InputError: streaming with a model that cannot carry a state.
    """
    known, reverse, start_id, strand = symbols.known, symbols.reverse, symbols.start_id, reading.strand
    if reading.mode == "stream" and model.streaming == "none":
        raise InputError("this model has layers that cannot carry a state; use --mode windows")
    if strand != "forward" and reverse is None:
        raise InputError(f"--strand {strand}: this kind of data has one strand; use --strand forward")
    strands = ("forward", "reverse") if strand == "both" else (strand,)
    if model.streaming == "none":
        passes = replace(passes, chunk=None)

    def begun(row: Ids) -> Ids:
        start = [] if start_id is None else [start_id]
        fill = max(0, symbols.fill_to - len(start) - len(row))
        return np.concatenate([start, row, np.full(fill, symbols.pad_id)]).astype(row.dtype) if start or fill else row

    def finish(waiting: Sequence[_Record]) -> Iterator[Prediction]:
        try:
            read_all(waiting)
        except Stopped:
            # In their order: what comes after an unfinished record is made again.
            yield from (_result(r, known) for r in itertools.takewhile(lambda record: not record.left, waiting))
            raise
        yield from (_result(record, known) for record in waiting)

    def read_all(waiting: Sequence[_Record]) -> None:
        for record in waiting:
            record.left = sum(map(len, record.windows.values()))
        for name in strands:
            pieces = [(record, low, high) for record in waiting for low, high in record.windows.get(name, ())]
            pieces.sort(key=lambda piece: piece[2] - piece[1])
            for batch in _batches(pieces, reading.batch_symbols, passes.chunk):
                turn = reverse if name == "reverse" else None
                rows = [begun(_window(record.ids, low, high, turn)) for record, low, high in batch]
                found = classify(model, rows, pad_id=symbols.pad_id, passes=passes)
                for (record, _, _), row in zip(batch, found, strict=True):
                    record.sums[name] = record.sums.get(name, 0.0) + row
                    record.left -= 1

    content = max(1, reading.length - (start_id is not None)) if reading.mode == "windows" else None
    waiting: list[_Record] = []
    collected = 0
    with suppress(Stopped):
        for item in records:
            record = _prepare(item, known, strands, content, reading.max_unknown)
            waiting.append(record)
            collected += len(record.ids)
            if collected >= BATCHES_AHEAD * reading.batch_symbols or len(waiting) >= RECORDS_AHEAD:
                yield from finish(waiting)
                waiting, collected = [], 0
            if passes.stop():
                return
        yield from finish(waiting)


def _prepare(
    item: Ids | str,
    known: Callable[[Ids], NDArray[np.bool_]],
    strands: Sequence[str],
    length: int | None,
    max_unknown: float,
) -> _Record:
    if isinstance(item, str):
        return _Record(np.zeros(0, np.uint8), reason=item)
    record, size = _Record(item), len(item)
    if not size:
        record.reason = "empty"
    elif not _count(known, item, 0, size):
        record.reason = "no known symbol (A, C, G, T) in it"
    else:
        for name in strands:
            kept = []
            for low, high in tile(size, length or size):
                # Windows are counted on their own strand.
                a, b = (low, high) if name == "forward" else (size - high, size - low)
                unknown = b - a - _count(known, item, a, b)
                if unknown <= max_unknown * (b - a) and unknown < b - a:
                    kept.append((low, high))
            record.windows[name] = kept
        if not any(record.windows.values()):
            what = "every window has" if length else "it has"
            record.reason = f"{what} more than {max_unknown:.0%} unknown symbols"
    return record


def _count(known: Callable[[Ids], NDArray[np.bool_]], ids: Ids, low: int, high: int) -> int:
    """Known symbols among [low, high), a piece at a time: marks of a whole chromosome would outweigh its ids."""
    pieces = range(low, high, PIECE)
    return sum(int(np.count_nonzero(known(ids[at : min(at + PIECE, high)]))) for at in pieces)


def tile(size: int, length: int) -> list[tuple[int, int]]:
    """Windows that cover `size` symbols: side by side, the last one moved back to end with them."""
    if size <= length:
        return [(0, size)]
    starts = [*range(0, size - length, length), size - length]
    return [(start, start + length) for start in starts]


def _window(ids: Ids, low: int, high: int, reverse: Callable[[Ids], Ids] | None) -> Ids:
    return ids[low:high] if reverse is None else reverse(ids[len(ids) - high : len(ids) - low])


def _batches(
    pieces: Sequence[tuple[_Record, int, int]], batch_symbols: int, chunk: int | None
) -> Iterator[Sequence[tuple[_Record, int, int]]]:
    """Neighbours of a list sorted by length, as many as fit."""
    first = 0
    for at in range(1, len(pieces) + 1):
        rows = at + 1 - first
        longest = pieces[at][2] - pieces[at][1] if at < len(pieces) else 0
        full = rows * min(longest, chunk or longest) > batch_symbols or rows * longest > MAX_IDS
        if at == len(pieces) or full:
            yield pieces[first:at]
            first = at


def _result(record: _Record, known: Callable[[Ids], NDArray[np.bool_]]) -> Prediction:
    if record.reason:
        return Prediction(None, len(record.ids), 0, 0, record.reason)
    means = [record.sums[name] / len(found) for name, found in record.windows.items() if found]
    size = len(record.ids)
    spans = [
        (low, high) if name == "forward" else (size - high, size - low)
        for name, found in record.windows.items()
        for low, high in found
    ]
    used = reached = 0
    for low, high in sorted(spans):
        used += _count(known, record.ids, max(low, reached), high)
        reached = max(reached, high)
    windows = len(spans)
    return Prediction(np.sum(means, axis=0) / len(means), len(record.ids), used, windows, "")
