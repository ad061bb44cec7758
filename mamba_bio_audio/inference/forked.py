"""Changes of a long sequence, scored from a forked state: the context is read once, and only a window for each change.

    ratio = sum over the n symbols from the change on of  log p(with the change) - log p(without it)

The prefix of a change begins at an anchor, and anchors lie C/8 apart, so that changes close to each other share one: each
has between C and 1.125 C symbols of context, or fewer where the record begins. The prefixes of an anchor's changes are
read as one stream. Before a change the state is copied, and short rows (the symbols since the copy, then the window) are
read from the copies in batches; the unchanged sequence is one row for all changes at a fork. Nothing is approximated: the
result is that of reading both whole sequences from the anchor on.

What it costs, in symbols read: changes far apart take C each, changes everywhere 9 for every symbol of the record, whatever
C; one stream (no C) takes the record up to its last change. On top of that come the windows: about 1.5 W for each change where
they are dense, 2 W and up to C/4 for one that stands alone. Memory holds `batch` rows and their states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_flatten, tree_unflatten

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference.streaming import MAX_IDS, Passes, advance, fork, log_likelihoods
from mamba_bio_audio.pipelines.corpus import Ids

# Symbols that a fork lies at most before its last change, where windows are shorter than that.
_LEAST_GAP = 64
# Anchors of no more changes are read side by side, from one fork each, however far behind it the changes lie.
_FEW = 4


class Change(NamedTuple):
    """Symbols that replace those of a record.

    Attributes:
        start: first symbol that is replaced, at least 1: the symbol before it predicts it.
        window: ids (n,) from there on with the change; compared with the n symbols of the record from there on.
    """

    start: int
    window: Ids


class Ratios(NamedTuple):
    """What `log_ratios` found, one entry for each change.

    Attributes:
        ratio: float64, log p(with the change) - log p(without it), nats.
        context: int64, symbols that were read before the change.
        streamed: symbols read as prefixes, in all.
        windowed: symbols read from forks, in all.
    """

    ratio: NDArray[np.float64]
    context: NDArray[np.int64]
    streamed: int
    windowed: int


class _Fork(NamedTuple):
    state: Any  # of one row, after the symbols before `at`; None: there are none
    at: int
    changes: Sequence[int]


class _Row(NamedTuple):
    fork: _Fork
    ids: Ids  # from `fork.at` on
    takes: Sequence[tuple[int, int, int, float]]  # change, first position, end, sign


def anchor(start: int, context: int | None) -> int:
    """Where the prefix of a change at `start` begins, for a context of `context` symbols; None: at the record's start."""
    if context is None:
        return 0
    step = max(1, context // 8)
    return max(0, (start - context) // step * step)


def log_ratios(
    model: Any,
    read: Callable[[int, int], Ids],
    changes: Sequence[Change],
    *,
    context: int | None,
    known: Sequence[int],
    pad_id: int,
    batch: int,
    passes: Passes,
) -> Ratios:
    """Score changes of one record.

    Args:
        model: language model with a state of constant size, in eval mode, on the device of `passes`.
        read: symbols [low, high) of the record.
        changes: in order of `start`, their windows within the record and of `known` symbols, also without the change.
        context: C, at least 8; None for all that stands before.
        known: ids that are scored.
        pad_id: token for padding.
        batch: rows that are read from forks at once.
        passes: how the model is run.

    Raises:
        InputError: the model cannot carry a state of constant size.
        Stopped: `passes.stop` returned True.
    """
    if model.streaming != "constant":
        raise InputError(
            "variants are scored from a copied state of constant size, but this model has layers whose state grows, or "
            "that have none; use a model of Mamba or S4D layers"
        )
    contexts = np.array([change.start - anchor(change.start, context) for change in changes], np.int64)
    found = Ratios(np.zeros(len(changes)), contexts, 0, 0)
    streamed = windowed = 0

    def counting(low: int, high: int) -> Ids:
        nonlocal streamed
        streamed += high - low
        return read(low, high)

    waiting: list[_Row] = []
    for at in _forks(model, counting, changes, context, batch, passes):
        for row in _rows(at, read, changes):
            if waiting and (len(waiting) == batch or not _alike(waiting[0].fork, at)):
                windowed += _score(model, waiting, found.ratio, known, pad_id, passes)
                waiting = []
            waiting.append(row)
    if waiting:
        windowed += _score(model, waiting, found.ratio, known, pad_id, passes)
    return found._replace(streamed=streamed, windowed=windowed)


def _forks(
    model: Any,
    read: Callable[[int, int], Ids],
    changes: Sequence[Change],
    context: int | None,
    batch: int,
    passes: Passes,
) -> Iterator[_Fork]:
    """States shortly before changes, each shared by the changes up to a gap behind it."""
    gap = max(_LEAST_GAP, max((len(change.window) for change in changes), default=0))
    together: list[tuple[int, list[int]]] = []
    for begin, numbers in groupby(range(len(changes)), key=lambda number: anchor(changes[number].start, context)):
        group = list(numbers)
        near = context is not None and (context // 8 <= gap or len(group) <= _FEW)
        if context is not None and near and changes[group[0]].start >= begin + context:
            # One fork, at a place that is the same for all anchors.
            together.append((begin, group))
            if len(together) == batch or len(together) * context >= MAX_IDS:
                yield from _side_by_side(model, read, together, context, passes)
                together = []
            continue
        state, at, first = None, begin, 0
        while first < len(group):
            end = changes[group[first]].start - 1
            if end > at:
                state, at = _advance(model, read, at, end, state, passes), end
            last = first
            while last < len(group) and changes[group[last]].start <= end + gap:
                last += 1
            yield _Fork(state, at, group[first:last])
            first = last
    if together and context is not None:
        yield from _side_by_side(model, read, together, context, passes)


def _side_by_side(
    model: Any,
    read: Callable[[int, int], Ids],
    anchors: Sequence[tuple[int, list[int]]],
    context: int,
    passes: Passes,
) -> Iterator[_Fork]:
    """Read the prefixes of several anchors as one batch."""
    rows = [read(begin, begin + context - 1) for begin, _ in anchors]
    state = advance(model, rows, passes=_shared(passes, len(rows)))
    for number, (begin, group) in enumerate(anchors):
        yield _Fork(fork(state, [number]), begin + context - 1, group)


def _advance(model: Any, read: Callable[[int, int], Ids], low: int, high: int, state: Any, passes: Passes) -> Any:
    """The state after [low, high), which is read in pieces."""
    piece = passes.chunk or high - low
    for begin in range(low, high, piece):
        state = advance(model, [read(begin, min(begin + piece, high))], passes=passes, state=state)
    return state


def _rows(at: _Fork, read: Callable[[int, int], Ids], changes: Sequence[Change]) -> Iterator[_Row]:
    """The unchanged sequence from a fork on, once, and the sequence with each change."""
    own = [(number, changes[number]) for number in at.changes]
    end = max(change.start + len(change.window) for _, change in own)
    ids = read(at.at, end)
    takes = [(number, change.start - at.at, change.start - at.at + len(change.window), -1.0) for number, change in own]
    yield _Row(at, ids, takes)
    for number, change in own:
        begin = change.start - at.at
        yield _Row(at, np.concatenate([ids[:begin], change.window]), [(number, begin, begin + len(change.window), 1.0)])


def _score(
    model: Any,
    rows: Sequence[_Row],
    ratio: NDArray[np.float64],
    known: Sequence[int],
    pad_id: int,
    passes: Passes,
) -> int:
    """Add the log-likelihoods of a batch to its changes; returns how many symbols were read."""
    forks = {id(row.fork): row.fork for row in rows}
    number_of = {key: number for number, key in enumerate(forks)}
    state = fork(_joined(model, [at.state for at in forks.values()], passes), [number_of[id(row.fork)] for row in rows])
    pieces = log_likelihoods(
        model,
        [row.ids for row in rows],
        known=known,
        pad_id=pad_id,
        passes=_shared(passes, len(rows)),
        state=state,
    )
    values = np.concatenate([piece for _, piece in pieces], 1)
    for row, line in zip(rows, values, strict=True):
        for number, low, high, sign in row.takes:
            ratio[number] += sign * line[low:high].sum()
    return sum(len(row.ids) - 1 for row in rows)


def _alike(first: _Fork, second: _Fork) -> bool:
    """Whether two states can lie in one batch: a phase that is common to a batch must be the same."""
    (ours, _), (theirs, _) = tree_flatten(first.state), tree_flatten(second.state)
    if not ours or not theirs:
        return first.state is None and second.state is None
    plain = ([leaf for leaf in leaves if not isinstance(leaf, torch.Tensor)] for leaves in (ours, theirs))
    return next(plain) == next(plain)


def _joined(model: Any, states: Sequence[Any], passes: Passes) -> Any:
    """One state with a row for each of `states`, which are alike."""
    if states[0] is None:
        dtype = torch.bfloat16 if passes.narrow else next(model.parameters()).dtype
        return model.init_state(len(states), passes.device, dtype)
    leaves, form = tree_flatten(states[0])
    others = [tree_flatten(state)[0] for state in states]
    joined = [
        torch.cat([each[place] for each in others]) if isinstance(leaf, torch.Tensor) else leaf
        for place, leaf in enumerate(leaves)
    ]
    return tree_unflatten(joined, form)


def _shared(passes: Passes, rows: int) -> Passes:
    """Passes over several rows, of as many positions in all."""
    return passes if passes.chunk is None else replace(passes, chunk=max(1, passes.chunk // rows))
