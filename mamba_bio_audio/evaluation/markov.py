"""Interpolated Markov models: the baseline that a trained genome model has to beat.

    p_k(x | w) = (c(w x) + a p_{k-1}(x | w')) / (c(w) + a),        p_{-1} = 1/4

w is the context of k bases, w' the same without its leftmost base, c the count over both strands of the
training spans, a the smoothing weight in pseudo-observations. The mixture with the lower order is the
Dirichlet-prior form of Jelinek-Mercer interpolation (MacKay & Peto 1995, "A hierarchical Dirichlet language
model"). One weight serves all orders: a weight per order, chosen greedily, was no better on held-out loci
(42 Mb of human: 3.359 against 3.362) and much worse where a repeat lies in a small validation span (200 kb of
fly: 3.99 against 3.91).

What it answers: how predictable the sequence is from local composition alone. A network that stays above the
best order has learnt less than a table of k-mers. It misleads where the scored sequence repeats the training
sequence nearly exactly (haplotypes, duplications): high orders then win by look-up. Split by locus instead.

The measure is causal and static: counts never include what is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError

Span = tuple[str, int, int]
Progress = Callable[[int, int], None]

_FIRST_BASE_ID = 7  # A, C, G, T are 7..10 in the HyenaDNA and Caduceus vocabulary
_CHUNK_BASES = 1 << 21
SMOOTHING_GRID: tuple[float, ...] = tuple(2.0**power for power in range(17))
# The smoothing, one number, is chosen on about this many validation bases, evenly spread.
_CHOICE_BASES = 1 << 19


class GenomeLike(Protocol):
    """What is needed of `pipelines.dna.genome.Genome`."""

    def fetch(self, record: str, start: int, end: int) -> NDArray[np.uint8]:
        """Token ids of a 0-based half-open span; A, C, G, T are 7..10, everything else is unknown."""
        ...


def merge_spans(spans: Iterable[Span]) -> list[Span]:
    """Union of 0-based half-open spans, adjacent ones joined, sorted by record and start."""
    merged: list[Span] = []
    for record, start, end in sorted(spans):
        if start >= end:
            continue
        if merged and merged[-1][0] == record and start <= merged[-1][2]:
            merged[-1] = (record, merged[-1][1], max(end, merged[-1][2]))
        else:
            merged.append((record, start, end))
    return merged


def _words(tokens: NDArray[np.uint8], longest: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The word that ends at each base, and how many of its bases are known.

    Returns:
        words: (n,) int32, base-4 digits (A 0, C 1, G 2, T 3), the base itself lowest, `longest` digits;
            digits before an unknown base or the start are zero. The last m bases are `words & (4^m - 1)`.
        depth: (n,) int32, length of the run of known bases that ends here, at most `longest`; 0 if unknown.
    """
    digits = tokens.astype(np.int32) - _FIRST_BASE_ID
    known = (digits >= 0) & (digits < 4)
    n = len(digits)
    # Position after the last unknown base so far.
    breaks = np.where(known, 0, np.arange(1, n + 1, dtype=np.int32))
    depth = np.minimum(np.arange(1, n + 1, dtype=np.int32) - np.maximum.accumulate(breaks), longest)
    digits[~known] = 0
    words = digits.copy()
    for back in range(1, min(longest, n)):
        words[back:] |= digits[:-back] << (2 * back)
    # Digits older than the run of known bases carry no meaning.
    short = depth < longest
    words[short] &= (1 << (2 * depth[short])) - 1
    return words, depth


def _reverse_complement_words(words: NDArray[np.int32], length: int) -> NDArray[np.int32]:
    """Reverse complement of words of `length` bases: digits reversed, 3 - digit."""
    flipped = np.zeros_like(words)
    for position in range(length):
        flipped <<= 2
        flipped |= (words >> (2 * position)) & 3
    return flipped ^ ((1 << (2 * length)) - 1)


@dataclass(frozen=True)
class MarkovScore:
    """Sums over the scored bases, for every order at once."""

    nats: NDArray[np.float64]  # (orders,)
    count: int

    @property
    def nats_per_base(self) -> NDArray[np.float64]:
        """(orders,) mean negative log-likelihood."""
        return self.nats / self.count if self.count else np.full_like(self.nats, np.nan)

    @property
    def perplexity(self) -> NDArray[np.float64]:
        """(orders,) exp of the mean; 4 is a coin with four sides."""
        return np.exp(self.nats_per_base)


class MarkovBaseline:
    """Counts of all orders up to `max_order`, and the smoothing chosen so far.

    >>> baseline = MarkovBaseline.fit(genome, train_spans)            # doctest: +SKIP
    >>> order = baseline.choose(genome, valid_spans)                  # doctest: +SKIP
    >>> baseline.score(genome, test_spans).perplexity[order]          # doctest: +SKIP

    Attributes:
        counts: per order k an array (4^k, 4): context, next base. int32 for the highest order, else int64.
        smoothing: the weight a, 64 until `choose`.
        order: the chosen order, None until `choose`.
    """

    def __init__(self, counts: Sequence[NDArray[Any]]) -> None:
        self.counts = list(counts)
        self.max_order = len(self.counts) - 1
        self.smoothing = 64.0
        self.order: int | None = None

    @classmethod
    def fit(
        cls,
        genome: GenomeLike,
        spans: Iterable[Span],
        max_order: int = 12,
        *,
        progress: Progress | None = None,
    ) -> MarkovBaseline:
        """Count words on both strands of the union of `spans`.

        Words cross neither unknown bases nor the ends of the union's pieces: no base outside `spans` is read.

        Args:
            genome: reader of token ids.
            spans: (record, start, end), 0-based half-open; overlaps count once.
            max_order: highest order, 0 to 12; memory is 4^(max_order+1) x 6 bytes (0.4 GB for 12).
            progress: called with (bases done, bases in all).
        """
        if not 0 <= max_order <= 12:
            raise InputError(f"max_order is {max_order}; choose 0 to 12")
        longest = max_order + 1
        pieces = merge_spans(spans)
        total = sum(end - start for _, start, end in pieces)
        top = np.zeros(4**longest, np.int32)
        one = np.int32(1)
        # The words at the start of a run, by length: with nothing known before them they are in no longer
        # word, so the marginals of the highest order miss them.
        at_run_start: list[list[NDArray[np.int32]]] = [[] for _ in range(longest)]
        done = 0
        for record, start, end in pieces:
            for low in range(start, end, _CHUNK_BASES):
                high = min(low + _CHUNK_BASES, end)
                context = max(low - max_order, start)
                # One base more than needed, to see whether a run ends at the last one.
                tokens = genome.fetch(record, context, min(high + 1, end))
                words, depth = _words(tokens, longest)
                here = slice(low - context, high - context)
                after = np.zeros(high - low, np.int32)
                after[: len(depth) - (here.start + 1)] = depth[here.start + 1 :][: high - low]
                words, depth = words[here], depth[here]
                full = words[depth == longest]
                np.add.at(top, full, one)
                np.add.at(top, _reverse_complement_words(full, longest), one)
                for length in range(1, longest):
                    at_run_start[length].append(words[depth == length])
                # Where a run ends here, one begins on the other strand.
                last = (depth > 0) & (after == 0)
                for length in range(1, longest):
                    tails = words[last & (depth >= length)]
                    at_run_start[length].append(_reverse_complement_words(tails, length))
                done += high - low
                if progress is not None:
                    progress(done, total)
        counts: list[NDArray[Any]] = [top.reshape(-1, 4)]
        for length in range(max_order, 0, -1):
            # Summing over the first base leaves the count of the word wherever something stands before it.
            words_count = counts[0].reshape(4, -1).sum(0, dtype=np.int64)
            starts = np.concatenate(at_run_start[length] or [np.zeros(0, np.int32)])
            np.add.at(words_count, starts, 1)
            counts.insert(0, words_count.reshape(-1, 4))
        return cls(counts)

    def choose(self, genome: GenomeLike, spans: Iterable[Span], *, grid: Sequence[float] = SMOOTHING_GRID) -> int:
        """Choose the smoothing and the order on validation spans.

        The smoothing is the value of `grid` whose best order is best, on about 2^19 of the bases, evenly
        spread; the order is then decided on all of them.

        Returns:
            The order of least negative log-likelihood, the lowest one of equals; also kept in `self.order`.
        """
        spans = merge_spans(spans)
        step = max(1, sum(end - start for _, start, end in spans) // _CHOICE_BASES)
        weights = np.asarray(grid, np.float64)[:, None]
        nats = np.zeros((len(grid), self.max_order + 1))
        count = 0
        for words, depth, _, _ in self._scored(genome, spans):
            words, depth = words[::step], depth[::step]
            for order, p in enumerate(self._probabilities(words, depth, weights)):
                nats[:, order] -= np.log(p).sum(1)
            count += len(words)
        if not count:
            raise InputError(
                "the Markov baseline is chosen on the validation split, and that has no base to score; "
                "add validation intervals"
            )
        self.smoothing = float(grid[int(np.argmin(nats.min(1)))])
        self.order = int(np.argmin(self.score(genome, spans).nats))
        return self.order

    def score(self, genome: GenomeLike, spans: Iterable[Span]) -> MarkovScore:
        """Negative log-likelihood of every order, summed over the scored bases of the union of `spans`.

        Scored are the known bases but for the first of a record, as for the network. Contexts are the true
        left neighbours in the record, also outside the spans; where fewer than k known ones stand before a
        base, order k falls back to those.
        """
        nats = np.zeros(self.max_order + 1)
        count = 0
        for words, depth, _, _ in self._scored(genome, spans):
            for order, p in enumerate(self._probabilities(words, depth, self.smoothing)):
                nats[order] -= np.log(p).sum()
            count += len(words)
        return MarkovScore(nats, count)

    def position_nats(
        self, genome: GenomeLike, spans: Iterable[Span], order: int
    ) -> Iterator[tuple[str, int, NDArray[np.float64]]]:
        """Per-base nats in pieces: record, start, array with NaN where a base is not scored."""
        for words, depth, (record, start, end), scored in self._scored(genome, spans):
            nats = np.full(end - start, np.nan)
            *_, p = self._probabilities(words, depth, self.smoothing, order)
            nats[scored] = -np.log(p)
            yield record, start, nats

    def distribution(self, context: Sequence[int] | NDArray[np.uint8], order: int) -> NDArray[np.float64]:
        """Probabilities (4,) of A, C, G, T after a context of token ids, of which the last `order` matter."""
        tokens = np.append(np.asarray(context, np.uint8), np.uint8(_FIRST_BASE_ID))
        words, depth = _words(tokens, self.max_order + 1)
        words, depth = words[-1] + np.arange(4, dtype=np.int32), np.repeat(depth[-1:], 4)
        *_, p = self._probabilities(words, depth, self.smoothing, order)
        return p

    def _lookup(self, words: NDArray[np.int32], order: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Counts of the words and of their contexts at one order, (n,) each."""
        word = words & ((1 << (2 * (order + 1))) - 1)
        rows = np.take(self.counts[order], word >> 2, axis=0)
        return np.take_along_axis(rows, (word & 3)[:, None], axis=1)[:, 0], rows.sum(1)

    def _probabilities(
        self,
        words: NDArray[np.int32],
        depth: NDArray[np.int32],
        smoothing: float | NDArray[np.float64],
        order: int | None = None,
    ) -> Iterator[NDArray[np.float64]]:
        """Probability of each word's last base given the others, for orders 0 to `order`.

        Args:
            smoothing: one weight, or (A, 1) for several at once.

        Yields:
            (n,) or (A, n); the same array every time.
        """
        p = np.full(np.broadcast_shapes(np.shape(smoothing), words.shape), 0.25)
        for k in range((self.max_order if order is None else order) + 1):
            hits, totals = self._lookup(words, k)
            higher = p * smoothing
            higher += hits
            higher /= totals + smoothing
            np.copyto(p, higher, where=depth > k)
            yield p

    def _scored(
        self, genome: GenomeLike, spans: Iterable[Span]
    ) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], Span, NDArray[np.bool_]]]:
        """Words and depths of the scored bases, chunk by chunk, with the chunk's span and mask."""
        for record, start, end in merge_spans(spans):
            for low in range(start, end, _CHUNK_BASES):
                high = min(low + _CHUNK_BASES, end)
                context = max(low - self.max_order, 0)
                words, depth = _words(genome.fetch(record, context, high), self.max_order + 1)
                words, depth = words[low - context :], depth[low - context :]
                scored = depth > 0
                if low == 0:
                    scored[0] = False
                yield words[scored], depth[scored], (record, low, high), scored


@dataclass(frozen=True)
class MarkovTable:
    """The baseline of every order on two splits.

    Attributes:
        order: chosen on validation.
        smoothing: weight a, chosen on validation.
        valid, test: sums of every order.
    """

    order: int
    smoothing: float
    valid: MarkovScore
    test: MarkovScore

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON: one row per order, and the choice."""
        rows = [
            {
                "order": order,
                "valid_nats_per_base": float(self.valid.nats_per_base[order]),
                "valid_perplexity": float(self.valid.perplexity[order]),
                "test_nats_per_base": float(self.test.nats_per_base[order]),
                "test_perplexity": float(self.test.perplexity[order]),
            }
            for order in range(len(self.valid.nats))
        ]
        return {
            "chosen_order": self.order,
            "smoothing": self.smoothing,
            "valid_count": self.valid.count,
            "test_count": self.test.count,
            "orders": rows,
        }


def markov_table(
    genome: GenomeLike,
    train: Iterable[Span],
    valid: Iterable[Span],
    test: Iterable[Span],
    *,
    max_order: int = 12,
    progress: Progress | None = None,
) -> MarkovTable:
    """Fit on `train`, choose smoothing and order on `valid`, score `test`; spans as in `MarkovBaseline.fit`.

    For one genome of several pass only its spans.
    """
    valid = list(valid)
    baseline = MarkovBaseline.fit(genome, train, max_order, progress=progress)
    order = baseline.choose(genome, valid)
    return MarkovTable(
        order,
        baseline.smoothing,
        baseline.score(genome, valid),
        baseline.score(genome, test),
    )
