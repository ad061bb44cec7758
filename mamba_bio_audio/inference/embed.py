"""Embeddings: hidden states of a layer, pooled while they are read, in constant memory at any length.

    mean      one vector per sequence, the mean over its known symbols
    last      one vector per sequence, at its last known symbol, which has read all those before it
    bins:S    one vector per S symbols, the mean over the known ones among them
    none      one vector per symbol

What they are for: input of a small model of one's own (regression, clustering), where labels are few. A causal model's
vector knows only what precedes it; both strands together know both sides. The mean is the safe choice for whole sequences;
it depends on composition before anything else, so compare with a table of k-mer counts before believing it.

Unknown symbols (N in DNA) are read, as in training, but count in no mean: they say nothing, and long runs of them would
outweigh the sequence. Where there is no known symbol, the vector is NaN.

The opposite strand is read from its own start, and its vectors stand at the symbols of the strand that was given: row t
has read everything after symbol t. Both strands together are their mean.

Legend: B rows, n positions of a piece, D channels, L symbols, S symbols per bin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference.sequences import Sequences, rows_of
from mamba_bio_audio.inference.streaming import Passes, batches, check_chunk, hidden_states, passes_of, positions
from mamba_bio_audio.pipelines.contract import Strand
from mamba_bio_audio.pipelines.corpus import Ids, begun
from mamba_bio_audio.pipelines.domains import domain_of

_PIECE = 1 << 20


class Pool(NamedTuple):
    """How the vectors of a sequence are pooled.

    Attributes:
        kind: see the module.
        size: symbols per bin.
    """

    kind: Literal["mean", "last", "bins", "none"]
    size: int = 1

    @classmethod
    def of(cls, text: str) -> Pool:
        """A pool by its name.

        Raises:
            InputError: it is none of mean, last, bins:S and none.
        """
        if text in ("mean", "last", "none"):
            return cls(text)  # type: ignore[arg-type]
        kind, _, size = str(text).partition(":")
        # Beyond 18 digits it would not fit 64 bits.
        if kind == "bins" and size.isascii() and size.isdecimal() and len(size) <= 18 and int(size):
            return cls("bins", int(size))
        raise InputError(f"pool is {text!r}; choose mean, last, none, or bins:128 for the means of 128 symbols each")

    @property
    def whole(self) -> bool:
        """Whether a sequence has one vector."""
        return self.kind in ("mean", "last")

    def rows(self, length: int) -> int:
        """Number of vectors of a sequence of `length` symbols."""
        return 1 if self.whole else -(-length // self.size)


def embed(
    model: Any,
    sequences: Sequences,
    layer: int | Literal["final"] = "final",
    pool: str = "mean",
    *,
    strand: Strand = "forward",
    precision: str = "fp32",
    chunk: int | None = None,
) -> Tensor | list[Tensor]:
    """Embeddings of sequences of any length.

    >>> vectors = mba.embed(model, ["ACGTTGCA", "ACGNN"])            # doctest: +SKIP
    >>> tracks = mba.embed(model, tokens, layer=4, pool="bins:128")  # doctest: +SKIP

    Args:
        model: model of `mba.load`, also a classifier; runs on the device of its parameters. With layers that cannot carry
            a state it reads each sequence in one piece.
        sequences: text, integer ids or float samples of audio; one sequence (L,), several (B, L) as `mba.generate` and
            `model.encode` return them, or a list of sequences of any lengths, each embedded as if it were alone.
        layer: "final" for the normalised final hidden states, which the head reads. A number for the residual stream
            behind that layer, not normalised: 0 to num_layers - 1, or from -1 backwards; of a U-Net the layers that run at
            the rate of the samples.
        pool: "mean", "last", "bins:S" (S symbols per bin; the last bin may be shorter) or "none", along each sequence.
            Unknown symbols (N) are read but never counted; without any known symbol a vector is NaN. With "none" every
            symbol has its vector.
        strand: "forward", "reverse" (the reverse complement, its vectors at the bases of the given strand), or "both",
            their mean. Only DNA has more than one strand.
        precision: "fp32", or "bf16" (autocast), which is faster on a GPU and less exact.
        chunk: symbols of each sequence that are read at once, carrying the state; determines the memory and changes
            results by rounding only. None chooses it by the device.

    Returns:
        On the CPU, float32 (float64 for a model in float64), D channels: with "mean" and "last" a tensor (B, D); with
        "bins:S" and "none" a list of B tensors, (ceil(L / S), D) and (L, D).

    Raises:
        InputError: no such layer, pool or strand, or a sequence is empty, not in the model's vocabulary, or longer than the
            model can read (Hyena).
    """
    pooling = Pool.of(pool)
    rows, most = rows_of(model, sequences), longest(model)
    for number, row in enumerate(rows):
        if most is not None and len(row) > most:
            raise InputError(f"sequence {number}: {len(row):,} symbols; this model reads {most:,} at most")
    weight = next(model.parameters())
    kind = np.float64 if weight.dtype == torch.float64 else np.float32
    out = [np.zeros((pooling.rows(len(row)), model.model_config.d_model), kind) for row in rows]
    embed_rows(out, model, rows, layer, pooling, strand=strand, precision=precision, chunk=chunk)
    if pooling.whole:
        return torch.from_numpy(np.concatenate(out))
    return [torch.from_numpy(vectors) for vectors in out]


def embed_rows(
    out: Sequence[Any],
    model: Any,
    rows: Sequence[Ids],
    layer: int | Literal["final"],
    pool: Pool,
    *,
    strand: Strand = "forward",
    precision: str = "fp32",
    chunk: int | None = None,
    **watch: Any,
) -> None:
    """Add the embeddings of rows to arrays, or to files that are read and written as arrays are.

    Args:
        out: zeros (`pool.rows(L)`, D) for each row.
        model, layer, strand, precision, chunk: as for `embed`.
        rows: token ids (L,), at least one each; those of similar length are read together.
        pool: how they are pooled.
        watch: `stop` and `progress` of `streaming.Passes`.

    Raises:
        InputError: as for `embed`.
        Stopped: `stop` returned True; `out` then holds parts of sums.
    """
    number, turns = check_layer(model, layer), turns_of(model, strand)
    check_chunk(chunk)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    most = positions(next(model.parameters()).device.type)
    for some in batches(order, lambda i: len(rows[i]), most, chunk or most):
        passes = replace(passes_of(model, precision, chunk=chunk, rows=len(some)), **watch)
        for turn in turns:
            _add([out[i] for i in some], model, [rows[i] for i in some], number, pool, turn, 1 / len(turns), passes)


def check_layer(model: Any, layer: int | str) -> int | None:
    """The layer as `model.hidden` takes it.

    Raises:
        InputError: the model has no such layer.
    """
    if layer == "final":
        return None
    if isinstance(layer, bool) or not isinstance(layer, int | np.integer):
        raise InputError(f"layer is {layer!r}; give its number, or final")
    return int(model.find_layer(layer))


def turns_of(model: Any, strand: Strand) -> list[Callable[[Ids], Ids] | None]:
    """What turns ids into those of each strand that is read; None for the given strand itself.

    Raises:
        InputError: no such strand, or the model's data have only one.
    """
    if strand not in get_args(Strand):
        raise InputError(f"strand is {strand!r}; choose {', '.join(get_args(Strand))}")
    if strand == "forward":
        return [None]
    config = model.config
    data = getattr(config, "data", None)
    reverse = None if data is None else domain_of(data.kind).symbols(data, config.train.length).reverse
    if reverse is None:
        raise InputError(f"strand {strand}: this model's data have only one strand; choose forward")
    return [None, reverse] if strand == "both" else [reverse]


def missing(model: Any, row: Ids) -> str:
    """Why a row has no vector that means anything; empty if it has."""
    if not len(row):
        return "empty"
    return "contains no known symbol" if _last(_known(model), row) < 0 else ""


def longest(model: Any) -> int | None:
    """Symbols of the longest row that a model reads; None for any number."""
    most = getattr(model.model_config, "longest", None)
    if most is None:
        return None
    return int(most) - (model.codec is not None and model.codec.start_id is not None)


def _known(model: Any) -> NDArray[np.bool_]:
    """Which ids are known symbols."""
    ids = range(model.model_config.vocab_size) if model.codec is None else model.codec.sample_ids
    known = np.zeros(model.model_config.vocab_size, bool)
    known[list(ids)] = True
    return known


def _add(
    out: Sequence[Any],
    model: Any,
    rows: Sequence[Ids],
    layer: int | None,
    pool: Pool,
    reverse: Callable[[Ids], Ids] | None,
    weight: float,
    passes: Passes,
) -> None:
    """Add `weight` times the vectors of one strand.

    Every pool is a mean over bins: of the whole row, of S symbols, of one. A bin that is cut by the end of a piece is
    carried to the next one as its sum and count. Along the opposite strand the bins come from last to first, and the
    first one that is read may be the short one.
    """
    codec, known = model.codec, _known(model)
    start_id = None if codec is None else codec.start_id
    extra = int(start_id is not None)
    if reverse is not None:
        rows = [reverse(row) for row in rows]
    lengths = np.array([len(row) for row in rows])
    sizes = lengths if pool.whole else np.full(len(rows), pool.size)
    counts = -(-lengths // sizes)
    shifts = np.zeros_like(lengths) if reverse is None else counts * sizes - lengths
    # The position of the vector that is wanted: the last known one of the strand that was given.
    last = [_last(known, row) for row in rows] if pool.kind == "last" else []
    carried = np.zeros((len(rows), model.model_config.d_model))
    carried_count = np.zeros(len(rows), np.int64)

    read = [begun(row, start_id) for row in rows]
    pad_id = 0 if codec is None else codec.pad_id
    for low, hidden in hidden_states(model, read, pad_id=pad_id, passes=passes, layer=layer):
        # Nothing is kept of the start symbol.
        at = max(0, low - extra)
        hidden = hidden[:, at - (low - extra) :]
        end = at + hidden.shape[1]
        if at == end:
            continue
        places = np.arange(at, end)
        bins = (places + shifts[:, None]) // sizes[:, None]
        first = bins[:, 0].copy()
        # Bins of each row in this piece, side by side; the slot behind them takes what is not counted.
        reached = np.minimum(end, lengths)
        touched = np.where(reached > at, (reached - 1 + shifts) // sizes - first + 1, 0)
        offsets = np.concatenate([[0], np.cumsum(touched)])
        counted = places < lengths[:, None]
        if pool.kind == "last":
            counted &= places == np.array(last)[:, None]
        elif pool.kind != "none":
            for line, row in zip(counted, rows, strict=True):
                line[: max(0, len(row) - at)] &= known[row[at:end]]
        slots = np.where(counted, bins - first[:, None] + offsets[:-1, None], offsets[-1])
        sums, numbers = _sums(hidden, slots, int(offsets[-1]))
        for i, row_bins in enumerate(touched):
            if not row_bins:
                continue
            total, number = (values[offsets[i] : offsets[i + 1]] for values in (sums, numbers))
            total[0] += carried[i]
            number[0] += carried_count[i]
            complete = end >= lengths[i] or (end + shifts[i]) % sizes[i] == 0
            done = int(row_bins) - (not complete)
            carried[i], carried_count[i] = (0, 0) if complete else (total[-1], number[-1])
            with np.errstate(invalid="ignore"):
                means = weight * total[:done] / number[:done, None]
            if reverse is None:
                out[i][first[i] : first[i] + done] += means
            else:
                behind = counts[i] - first[i]
                out[i][behind - done : behind] += means[::-1]


def _last(known: NDArray[np.bool_], row: Ids) -> int:
    """Position of the last known symbol of a row; -1 if there is none."""
    for end in range(len(row), 0, -_PIECE):
        begin = max(0, end - _PIECE)
        found = np.flatnonzero(known[row[begin:end]])
        if len(found):
            return begin + int(found[-1])
    return -1


def _sums(hidden: Tensor, slots: NDArray[np.int64], count: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sums (count, D) of the hidden states (B, n, D) over positions of equal slot (B, n), and how many there are."""
    # In fp64: a sum over a million positions in fp32 would depend on how they are cut into pieces.
    sums = torch.zeros(count + 1, hidden.shape[2], dtype=torch.float64, device=hidden.device)
    index = torch.from_numpy(slots.reshape(-1)).to(hidden.device)
    with torch.inference_mode():
        sums.index_add_(0, index, hidden.flatten(0, 1).double())
    numbers = np.bincount(slots.ravel(), minlength=count + 1)
    return sums.cpu().numpy()[:count], numbers[:count]
