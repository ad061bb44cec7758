"""Runs batches of rows of any lengths through a model piece by piece, carrying the state.

    stream            what a model makes of each piece: the core of everything below, and of `classify.py`
    log_likelihoods   log p of every symbol given those before it
    hidden_states     hidden states of any layer
    advance, fork     the state after a prefix, and copies of it as a batch
    join              the state of a batch from those of its rows

Memory depends on the piece (`Passes.chunk` positions of every row), never on the length of a row. Rows of a batch may
differ in length: shorter ones are padded on the right, which changes no position before, because every layer is causal.
A row is anything with a length and slices, so that a chromosome can be read from disk as it is scored.

Legend: B rows, L symbols, n positions of a piece, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.corpus import begun

IGNORED = -100
# Most logits that exist at once; a vocabulary of 4,096 levels needs 64 times as many as one of 64.
_LOGITS = 1 << 24
# Most token ids in one batch, when records longer than the batch are streamed.
MAX_IDS = 1 << 26


class Stopped(Exception):
    """The caller asked to stop early; there is no result."""


class Row(Protocol):
    """Token ids that are read in pieces: an array, or something that reads slices from disk."""

    def __len__(self) -> int: ...
    def __getitem__(self, piece: slice, /) -> Any: ...


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


def passes_of(model: Any, precision: str = "fp32", *, chunk: int | None = None, rows: int = 1) -> Passes:
    """Passes on the device of a model.

    Args:
        model: any model.
        precision: "fp32" or "bf16" (autocast).
        chunk: positions of each row per pass; None chooses as many as suit the device.
        rows: rows that are run together.

    Raises:
        InputError: there is no such precision, or the chunk is less than 1.
    """
    if precision not in ("fp32", "bf16"):
        raise InputError(f"precision is {precision!r}; choose fp32 or bf16")
    check_chunk(chunk)
    device = next(model.parameters()).device.type
    return Passes(device, precision == "bf16", chunk or max(1, positions(device) // rows))


def check_chunk(chunk: int | None) -> None:
    """Refuse a chunk that is no whole number of symbols.

    Raises:
        InputError: it is none.
    """
    if chunk is not None and not (isinstance(chunk, int | np.integer) and chunk >= 1):
        raise InputError(f"chunk is {chunk!r}; read at least 1 symbol at once, a whole number")


def positions(device: str) -> int:
    """Positions that a model reads at once on a device, over all rows."""
    return 1 << (14 if device == "cpu" else 18)


class Piece(NamedTuple):
    """Positions [low, low + n) of a batch.

    Attributes:
        low: first position.
        output: what `read` made of them.
        state: the state after them; that of a row which has ended has read padding.
    """

    low: int
    output: Any
    state: Any


def stream(
    model: Any,
    rows: Sequence[Row],
    read: Callable[[Tensor, Any, int], tuple[Any, Any]],
    *,
    pad_id: int,
    passes: Passes,
    state: Any = None,
) -> Iterator[Piece]:
    """Run a batch through a model from left to right, one piece at a time.

    Args:
        model: in eval mode, on the device of `passes`. One that cannot carry a state reads its rows in a single pass.
        rows: token ids of each row, one or more; some may be shorter than others.
        read: called with (tokens int64 (B, n), state, low), without gradients; returns an output and the new state.
        pad_id: token for padding.
        passes: how the batch is run through the model.
        state: the state before the first symbols; None at the start of a sequence.

    Raises:
        Stopped: `passes.stop` returned True.
    """
    device = torch.device(passes.device)
    lengths = np.array([len(row) for row in rows])
    longest = int(lengths.max(initial=0))
    step = longest if passes.chunk is None or model.streaming == "none" else passes.chunk
    for low in range(0, longest, step or 1):
        if passes.stop():
            raise Stopped
        # Converted piece by piece and on the device: as int64 a whole chromosome would take eight times its memory.
        tokens = padded(rows, low, min(low + step, longest), pad_id).to(device).long()
        narrow = torch.autocast(device.type, torch.bfloat16) if passes.narrow else nullcontext()
        with torch.inference_mode(), narrow:
            output, state = read(tokens, state, low)
        if passes.progress is not None:
            passes.progress(int((lengths - low).clip(0, step).sum()))
        yield Piece(low, output, state)


def padded(rows: Sequence[Row], low: int, high: int, fill: int) -> Tensor:
    """Positions [low, high) of every row, (B, high - low) in the rows' own type, with `fill` beyond their ends."""
    parts = [np.asarray(row[low:high]) for row in rows]
    if len(parts) == 1 and len(parts[0]) == high - low:
        return torch.from_numpy(np.ascontiguousarray(parts[0])[None])
    # A row that has ended may have another type than the rest.
    kind = np.result_type(*(part.dtype for part in parts if len(part))) if any(map(len, parts)) else np.int64
    out = np.full((len(rows), high - low), fill, kind)
    for line, part in zip(out, parts, strict=True):
        line[: len(part)] = part
    return torch.from_numpy(out)


class Inputs:
    """What is read to predict the symbols of a row: all but its last symbol, after `start_id` where there is one."""

    def __init__(self, row: Row, start_id: int | None) -> None:
        self.row, self.start_id = row, start_id

    def __len__(self) -> int:
        return max(0, len(self.row) - (self.start_id is None))

    def __getitem__(self, piece: slice) -> Any:
        low, high, _ = piece.indices(len(self))
        if self.start_id is None:
            return self.row[low:high]
        ids = np.asarray(self.row[max(0, low - 1) : max(0, high - 1)])
        return ids if low or not high else begun(ids, self.start_id)


def log_likelihoods(
    model: Any,
    rows: Sequence[Row],
    *,
    known: Sequence[int],
    pad_id: int,
    passes: Passes,
    start_id: int | None = None,
    state: Any = None,
    keep: Callable[[int, Any], None] | None = None,
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Log-likelihood, nats, of every symbol given all symbols before it, piece by piece.

    Args:
        model: language model in eval mode, on the device of `passes`.
        rows: token ids of each row.
        known: ids that are scored. Others, such as N, are context but never scored.
        pad_id: token for padding.
        passes: how the batch is run through the model.
        start_id: precedes every row; None where the first symbol has nothing before it and is not scored.
        state: the state before the first symbols of the rows. The rows that continue a prefix begin with its last
            symbol, so that the first new symbol is scored.
        keep: called with (symbols of a row that were read, the state after them) once the caller has the values of a piece
            and asks for the next one.

    Yields:
        (low, values): float64 (B, n), the symbols [low, low + n) of each row; NaN where nothing is scored (a first
        symbol, an unknown symbol, beyond the end of a row). Each position of the longest row comes once, in order.
    """
    lengths = torch.tensor([len(row) for row in rows], device=passes.device)[:, None]
    first = int(start_id is None)
    if first and any(map(len, rows)):
        yield 0, np.full((len(rows), 1), np.nan)
    # The last entry stands for every larger id.
    scored = torch.zeros(max(known) + 2, dtype=torch.bool, device=passes.device)
    scored[list(known)] = True

    def read(tokens: Tensor, before: Any, low: int) -> tuple[Tensor, Any]:
        hidden, after = model.hidden(tokens, before)
        low, high = low + first, low + first + tokens.shape[1]
        targets = padded(rows, low, high, pad_id).to(tokens.device).long()
        at = torch.arange(low, high, device=tokens.device)
        missing = ~scored[targets.clamp(max=len(scored) - 1)] | (at >= lengths)
        values = -nats_of(model, hidden, targets.masked_fill(missing, IGNORED))
        # NaN means that a symbol is not scored, so it must not come from the model.
        if not torch.isfinite(total := values.sum()):
            raise RuntimeError(f"the model's log-likelihood is {float(total)}; its weights are not usable")
        return values.masked_fill(missing, torch.nan), after

    inputs = [Inputs(row, start_id) for row in rows]
    for piece in stream(model, inputs, read, pad_id=pad_id, passes=passes, state=state):
        yield piece.low + first, piece.output.cpu().numpy()
        if keep is not None:
            keep(piece.low + piece.output.shape[1] - (start_id is not None), piece.state)


def nats_of(model: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """Nats (B, L) in fp64 of targets (B, L) under hidden states (B, L, D); zero where the target is `IGNORED`.

    Logits are fp32, as in training, even under autocast and of a model in bf16.
    """
    weight, bias = model.lm_head.weight, model.lm_head.bias
    kind = torch.promote_types(weight.dtype, torch.float32)
    weight, bias = weight.to(kind), None if bias is None else bias.to(kind)
    step = max(1, _LOGITS // (len(hidden) * len(weight)))
    out = []
    with torch.autocast(hidden.device.type, enabled=False):
        for part, expected in zip(hidden.split(step, 1), targets.split(step, 1), strict=True):
            logits = F.linear(part.to(kind), weight, bias).flatten(0, 1)
            found = F.cross_entropy(logits, expected.flatten(), ignore_index=IGNORED, reduction="none")
            out.append(found.view(expected.shape).double())
    return torch.cat(out, 1)


def hidden_states(
    model: Any,
    rows: Sequence[Row],
    *,
    pad_id: int,
    passes: Passes,
    layer: int | None = None,
    state: Any = None,
) -> Iterator[tuple[int, Tensor]]:
    """Hidden states of every position, piece by piece.

    Args:
        model: language model in eval mode, on the device of `passes`.
        rows: token ids of each row.
        pad_id: token for padding.
        passes: how the batch is run through the model.
        layer: as for `model.hidden`: None gives the normalised final states, k the residual stream behind layer k.
        state: the state before the first symbols.

    Yields:
        (low, hidden): (B, n, D) on the device, positions [low, low + n); meaningless beyond the end of a row.
    """

    def read(tokens: Tensor, before: Any, low: int) -> tuple[Tensor, Any]:
        hidden: tuple[Tensor, Any] = model.hidden(tokens, before, layer=layer)
        return hidden

    for piece in stream(model, rows, read, pad_id=pad_id, passes=passes, state=state):
        yield piece.low, piece.output


def advance(model: Any, rows: Sequence[Row], *, passes: Passes, state: Any = None) -> Any:
    """The state after rows of equal length, one or more symbols; nothing is predicted.

    Raises:
        ValueError: their lengths differ, so that there is no common end.
        Stopped: `passes.stop` returned True.
    """
    if len({len(row) for row in rows}) != 1 or not len(rows[0]):
        raise ValueError("advance() takes rows of one length, at least one symbol each")
    for piece in stream(
        model, rows, lambda x, s, _: (None, model.hidden(x, s)[1]), pad_id=0, passes=passes, state=state
    ):
        state = piece.state
    return state


def fork(state: Any, rows: Tensor | Sequence[int]) -> Any:
    """The state of a batch whose row i is row `rows[i]` of `state`; copies, so that neither sees what becomes of the other.

    >>> fork((torch.arange(2.0),), [0, 0, 1])
    (tensor([0., 0., 1.]),)
    """

    def take(leaf: Any) -> Any:
        return leaf[torch.as_tensor(rows, device=leaf.device)] if isinstance(leaf, Tensor) else leaf

    return tree_map(take, state)


def join(states: Sequence[Any]) -> Any:
    """The state of a batch whose rows are those of `states`, which agree in all that is no tensor.

    >>> join([(torch.zeros(1),), (torch.ones(1),)])
    (tensor([0., 1.]),)
    """
    return tree_map(lambda *leaves: torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0], *states)


T = TypeVar("T")


def batches(items: Sequence[T], length: Callable[[T], int], symbols: int, chunk: int | None) -> Iterator[Sequence[T]]:
    """Cut items into batches of as many neighbours as fit; sorted by length they need little padding.

    Args:
        items: in order of length.
        length: length of an item.
        symbols: symbols that are read at once, over all rows of a batch.
        chunk: positions of each row that are read at once; None for all.
    """
    first = 0
    for at in range(1, len(items) + 1):
        rows = at + 1 - first
        longest = length(items[at]) if at < len(items) else 0
        full = rows * min(longest, chunk or longest) > symbols or rows * longest > MAX_IDS
        if at == len(items) or full:
            yield items[first:at]
            first = at
