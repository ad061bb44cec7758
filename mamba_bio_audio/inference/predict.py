"""Class probabilities of whole records of any length, in input order.

    windows   a record is cut into windows of the training length, and their probabilities are averaged
    stream    a record of any length is read once from its first symbol to its last, with the state carried

Windows, the default, ask of the model only what it was trained for. Their probabilities are averaged, not multiplied:
windows of one record are not independent evidence, and a product would be far too confident. Streaming combines signals
that are further apart than a training window, but goes beyond the lengths that the model has seen: trust it only as far
as an evaluation at that length supports.

Each strand is cut into windows from its own first base, the last window ends with the strand, and the means of the two
strands are averaged. A record and its reverse complement thus have the same windows, with the strands exchanged:
p(x) = p(rc x).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference.classify import classify
from mamba_bio_audio.inference.sequences import Sequences, rows_of
from mamba_bio_audio.inference.streaming import Passes, Stopped, batches, passes_of, positions
from mamba_bio_audio.pipelines.contract import Strand, Symbols
from mamba_bio_audio.pipelines.corpus import Ids, begun
from mamba_bio_audio.pipelines.domains import domain_of

Mode = Literal["windows", "stream"]
# Records are collected until there are this many batches of work, so that pieces of similar length are batched together.
BATCHES_AHEAD, RECORDS_AHEAD = 16, 4096
PIECE = 1 << 20


@dataclass(frozen=True)
class Reading:
    """How records are read.

    Attributes:
        length: symbols per window, including the start symbol.
        mode: see the module.
        strand: "both" averages the strands; choose one of them if the strand of the sequences has a meaning.
        max_unknown: windows with a larger share of unknown symbols are left out, as in training.
        batch_symbols: symbols read at once; does not change the results.
        temperature: of a classifier's probabilities; predictions then have an energy too (`classify`).
    """

    length: int
    mode: Mode = "windows"
    strand: Strand = "both"
    max_unknown: float = 0.1
    batch_symbols: int = 1 << 14
    temperature: float | None = None


class Prediction(NamedTuple):
    """Prediction for one record.

    Attributes:
        probabilities: (K,), sum 1, or what else the model says; None if the record could not be scored.
        length: symbols in the record.
        used: known symbols that at least one window read.
        windows: number of windows averaged, over all strands.
        reason: why there are no probabilities; empty if there are.
        energy: the mean over the same windows, where a temperature was given.
    """

    probabilities: NDArray[np.float64] | None
    length: int
    used: int
    windows: int
    reason: str
    energy: float | None = None


@dataclass
class _Record:
    ids: Ids
    # Per strand: its windows, and the sum of their probabilities.
    windows: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    sums: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    left: int = 0  # windows still to be read


def predict(
    model: Any,
    sequences: Sequences,
    *,
    mode: Mode = "windows",
    length: int | None = None,
    strand: Strand | None = None,
    max_unknown: float | None = None,
    precision: str = "fp32",
    chunk: int | None = None,
) -> Tensor:
    """Class probabilities of sequences of any length, or what else the model's head says of them.

    >>> mba.predict(model, ["ACGTTGCA", tokens[0]])    # doctest: +SKIP

    Args:
        model: classifier of `mba.load`; runs on the device of its parameters.
        sequences: text, integer ids or float samples of audio; one sequence (L,), several (B, L), or a list of sequences
            of any lengths, each classified as if it were alone.
        mode: "windows" averages the probabilities of windows of the training length. "stream" reads each sequence once,
            carrying the state, also beyond the lengths that the model was trained on.
        length: symbols per window; None is the training length.
        strand: "both" (the default for DNA) averages the strands; "forward" or "reverse" reads one of them.
        max_unknown: windows with a larger share of unknown symbols (N) are left out; None is the share of the training.
        precision: "fp32", or "bf16" (autocast), which is faster on a GPU and less exact.
        chunk: symbols that are read at once; changes results by rounding only. None chooses it by the device.

    Returns:
        float64 (B, K) on the CPU, in the order of `model.labels`: probabilities of classes, each row of sum 1, probabilities of
        labels, or numbers in the units of the training data; NaN where every window of a sequence has too many unknown
        symbols.

    Raises:
        InputError: the model is no classifier, a sequence is empty or not in its vocabulary, or an option is out of range.
    """
    if not model.labels:
        raise InputError("a language model has no classes; pass a classifier, from mba classify or mba finetune")
    config = model.config
    domain = domain_of(config.data.kind)
    symbols = domain.symbols(config.data, config.train.length)
    if not model.task.rows:
        raise InputError("this model predicts every base or bin of a sequence; use mba.predict_along")
    strand = strand or symbols.strands[0]
    if strand not in symbols.strands:
        raise InputError(f"strand is {strand!r}; choose {', '.join(symbols.strands)}")
    if mode not in get_args(Mode):
        raise InputError(f"mode is {mode!r}; choose {' or '.join(get_args(Mode))}")
    if length is not None and length < 1:
        raise InputError(f"length is {length}; choose 1 or more")
    passes = passes_of(model, precision, chunk=chunk)
    reading = Reading(
        length=length or config.train.length,
        mode=mode,
        strand=strand,
        max_unknown=symbols.max_unknown if max_unknown is None else max_unknown,
        batch_symbols=positions(passes.device),
    )
    found = predict_records(model, rows_of(model, sequences), symbols, reading, passes)
    nowhere = np.full(len(model.labels), np.nan)
    rows = [nowhere if one.probabilities is None else one.probabilities for one in found]
    return torch.from_numpy(np.stack(rows))


def predict_records(
    model: Any,
    records: Iterable[Ids | str],
    symbols: Symbols,
    reading: Reading,
    passes: Passes = Passes(chunk=1 << 16),
) -> Iterator[Prediction]:
    """Predict records one after another; none is dropped, and no result depends on the other records.

    Args:
        model: classifier in eval mode, on the device of `passes`.
        records: token ids (L,) each, or a text that says why a record has none.
        symbols: meaning of the ids.
        reading: windows, strands and batches.
        passes: how batches are run through the model. If `passes.stop` returns True, the iteration ends without the
            unfinished records; `passes.progress` is called within a long record too.

    Raises:
        InputError: streaming with a model that cannot carry a state.
    """
    known, reverse, start_id, strand = symbols.known, symbols.reverse, symbols.start_id, reading.strand
    if reading.mode == "stream" and model.streaming == "none":
        raise InputError("--mode stream: this model has layers that cannot carry a state; use --mode windows")
    if strand != "forward" and reverse is None:
        raise InputError(f"--strand {strand}: this kind of data has only one strand; use --strand forward")
    strands = ("forward", "reverse") if strand == "both" else (strand,)
    if model.streaming == "none":
        passes = replace(passes, chunk=None)

    def filled(row: Ids) -> Ids:
        row = begun(row, start_id)
        fill = max(0, symbols.fill_to - len(row))
        return np.concatenate([row, np.full(fill, symbols.pad_id, row.dtype)]) if fill else row

    def result(record: _Record) -> Prediction:
        return _result(record, known, reading.temperature is not None)

    def finish(waiting: Sequence[_Record]) -> Iterator[Prediction]:
        try:
            read_all(waiting)
        except Stopped:
            # Results keep their order, so whatever follows an unfinished record is computed again on resuming.
            yield from (result(r) for r in itertools.takewhile(lambda record: not record.left, waiting))
            raise
        yield from map(result, waiting)

    def read_all(waiting: Sequence[_Record]) -> None:
        for record in waiting:
            record.left = sum(map(len, record.windows.values()))
        for name in strands:
            pieces = [(record, low, high) for record in waiting for low, high in record.windows.get(name, ())]
            pieces.sort(key=_length)
            for batch in batches(pieces, _length, reading.batch_symbols, passes.chunk):
                turn = reverse if name == "reverse" else None
                rows = [filled(_window(record.ids, low, high, turn)) for record, low, high in batch]
                found = classify(model, rows, pad_id=symbols.pad_id, passes=passes, temperature=reading.temperature)
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
        record.reason = "contains no known symbol (A, C, G, T)"
    else:
        for name in strands:
            kept = []
            for low, high in tile(size, length or size):
                # Windows are numbered along their own strand.
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
    """Number of known symbols in [low, high), counted piecewise: masks of a whole chromosome would outweigh its ids."""
    pieces = range(low, high, PIECE)
    return sum(int(np.count_nonzero(known(ids[at : min(at + PIECE, high)]))) for at in pieces)


def joined(mates: Sequence[Prediction]) -> Prediction:
    """The prediction for reads that belong together: the mean of those that could be scored."""
    scored = [mate for mate in mates if mate.probabilities is not None]
    length = sum(mate.length for mate in mates)
    if not scored:
        return Prediction(None, length, 0, 0, mates[0].reason)
    energies = [mate.energy for mate in scored if mate.energy is not None]
    return Prediction(
        np.mean(np.stack([mate.probabilities for mate in scored if mate.probabilities is not None]), axis=0),
        length,
        sum(mate.used for mate in scored),
        sum(mate.windows for mate in scored),
        "",
        float(np.mean(energies)) if energies else None,
    )


def tile(size: int, length: int) -> list[tuple[int, int]]:
    """Windows that cover `size` symbols side by side; the last one is moved back to end with them."""
    if size <= length:
        return [(0, size)]
    starts = [*range(0, size - length, length), size - length]
    return [(start, start + length) for start in starts]


def _length(piece: tuple[_Record, int, int]) -> int:
    return piece[2] - piece[1]


def _window(ids: Ids, low: int, high: int, reverse: Callable[[Ids], Ids] | None) -> Ids:
    return ids[low:high] if reverse is None else reverse(ids[len(ids) - high : len(ids) - low])


def _result(record: _Record, known: Callable[[Ids], NDArray[np.bool_]], energies: bool) -> Prediction:
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
    mean = np.sum(means, axis=0) / len(means)
    if energies:
        return Prediction(mean[:-1], len(record.ids), used, windows, "", float(mean[-1]))
    return Prediction(mean, len(record.ids), used, windows, "")
