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
from mamba_bio_audio.pipelines.dna.words import FIRST_BASE_ID, DeepCounts, Words, reverse_complement_words, words_of
from mamba_bio_audio.pipelines.spans import Span, merge, size_of

Progress = Callable[[int, int], None]

_UNKNOWN_ID = 11
_CHUNK_BASES = 1 << 21
# A table of all words of a length is kept where it has at most so many cells for a training base, and up to 13 bases;
# longer words are kept as the list of those that occur, so that time and memory follow the bases and not 4^25.
_CELLS_PER_BASE = 128
_LONGEST_TABLE = 13
HIGHEST_ORDER = 24
_USUAL_ORDER = 16
# Sorting the words of so many training bases takes 5 GB. Of more, the orders end where tables do.
_DEEP_BASES = 1 << 27
SMOOTHING_GRID: tuple[float, ...] = tuple(2.0**power for power in range(17))
# The smoothing, one number, is chosen on about this many validation bases, evenly spread.
_CHOICE_BASES = 1 << 19


def highest_order(bases: int) -> int:
    """Highest order that is usually fitted on so many training bases: 16, or where its counts are too many 12."""
    return _USUAL_ORDER if bases <= _DEEP_BASES else _LONGEST_TABLE - 1


class GenomeLike(Protocol):
    """The part of `pipelines.dna.genome.Genome` that is needed here."""

    def fetch(self, record: str, start: int, end: int) -> NDArray[np.uint8]:
        """Token ids of a 0-based half-open span; A, C, G, T are 7..10, everything else is unknown."""
        ...


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
        counts: per order k an array (4^k, 4): context, next base; or where that is far more than there are bases,
            the `DeepCounts` that serve all such orders.
        smoothing: the weight a, 64 until `choose`.
        order: the chosen order, None until `choose`.
    """

    def __init__(self, counts: Sequence[NDArray[Any] | DeepCounts]) -> None:
        self.counts = list(counts)
        self.max_order = len(self.counts) - 1
        self.smoothing = 64.0
        self.order: int | None = None
        self.chosen_by: MarkovScore | None = None

    @classmethod
    def fit(
        cls,
        genome: GenomeLike,
        spans: Iterable[Span],
        max_order: int | None = None,
        *,
        progress: Progress | None = None,
    ) -> MarkovBaseline:
        """Count words on both strands of the union of `spans`.

        Words cross neither unknown bases nor the ends of the union's pieces: no base outside `spans` is read.

        Args:
            genome: reader of token ids.
            spans: (record, start, end), 0-based half-open; overlaps count once.
            max_order: highest order, 0 to 24; None is `highest_order`. Tables take at most 0.4 GB, orders above 12
                about 40 bytes for a base while they are made and 25 afterwards.
            progress: called with (bases done, bases in all).
        """
        pieces = sorted(merge(spans))
        total = size_of(pieces)
        if max_order is None:
            max_order = highest_order(total)
        if not 0 <= max_order <= HIGHEST_ORDER:
            raise InputError(f"max_order is {max_order}; choose 0 to {HIGHEST_ORDER}")
        longest = max_order + 1
        cells = max(1 << 12, _CELLS_PER_BASE * total)
        # Length of the longest words that have a table.
        tabled = max(length for length in range(1, min(longest, _LONGEST_TABLE) + 1) if 4**length <= cells)
        table = np.zeros(4**tabled, np.int64 if 2 * total >> 31 else np.int32)
        # All words of the greatest length, where they have no table.
        deep: list[Words] = []
        # The words at the start of a run, by length: with nothing known before them they are in no longer
        # word, so the marginals of a longer one miss them.
        at_run_start: list[list[Words]] = [[] for _ in range(longest)]
        done = 0
        # One base more than needed, to see whether a run ends at the last one.
        for tokens, here, spans_here in _batches(genome, pieces, back=max_order, inside=True, ahead=1):
            words, depth = words_of(tokens, longest)
            after = np.append(depth[1:], 0)[here]
            words, depth = words[here], depth[here]
            full = words[depth >= tabled] & ((1 << (2 * tabled)) - 1)
            for strand in (full, reverse_complement_words(full, tabled)):
                np.add.at(table, strand, table.dtype.type(1))
            if tabled < longest:
                full = words[depth == longest]
                deep += [full, reverse_complement_words(full, longest)]
            for length in range(1, longest):
                at_run_start[length].append(words[depth == length])
            # Where a run ends here, one begins on the other strand.
            last = (depth > 0) & (after == 0)
            words, depth = words[last], depth[last]
            for length in range(1, longest):
                own = words[depth >= length] & ((1 << (2 * length)) - 1)
                at_run_start[length].append(reverse_complement_words(own, length))
            done += sum(high - low for _, low, high in spans_here)
            if progress is not None:
                progress(done, total)
        counts: list[NDArray[Any] | DeepCounts] = [table.reshape(-1, 4)]
        for length in range(tabled - 1, 0, -1):
            # Summing over the first base leaves the count of the word wherever something stands before it.
            table = table.reshape(4, -1).sum(0, dtype=np.int64)
            np.add.at(table, np.concatenate(at_run_start[length] or [np.zeros(0, np.int32)]), 1)
            counts.insert(0, table.reshape(-1, 4))
        if tabled < longest:
            starts: dict[int, DeepCounts] = {}
            for order in range(tabled, max_order):
                shorter = [
                    words & ((1 << (2 * (order + 1))) - 1) for part in at_run_start[order + 1 :] for words in part
                ]
                if sum(map(len, shorter)):
                    starts[order] = DeepCounts(np.concatenate(shorter), order)
            words = np.concatenate(deep or [np.zeros(0, np.int64)])
            del deep
            counts += [DeepCounts(words, max_order, starts)] * (longest - tabled)
        return cls(counts)

    def choose(
        self,
        genome: GenomeLike,
        spans: Iterable[Span],
        *,
        grid: Sequence[float] = SMOOTHING_GRID,
        progress: Progress | None = None,
    ) -> int:
        """Choose the smoothing and the order on validation spans.

        The smoothing is the value of `grid` whose best order is best, on about 2^19 of the bases, evenly
        spread; the order is then decided on all of them.

        Args:
            genome: reader of token ids.
            spans: (record, start, end) of the validation split.
            grid: values of the smoothing to try.
            progress: called with (bases done, bases in all); each is read twice.

        Returns:
            The order of least negative log-likelihood, the lowest one of equals; also kept in `self.order`, and what it
            was chosen by in `self.chosen_by`.
        """
        spans = sorted(merge(spans))
        total = size_of(spans)
        step = max(1, total // _CHOICE_BASES)
        first = None if progress is None else lambda done, _: progress(done, 2 * total)
        second = None if progress is None else lambda done, _: progress(total + done, 2 * total)
        weights = np.asarray(grid, np.float64)[:, None]
        nats = np.zeros((len(grid), self.max_order + 1))
        count = 0
        for words, depth in self._scored(genome, spans, first):
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
        self.chosen_by = self.score(genome, spans, progress=second)
        self.order = int(np.argmin(self.chosen_by.nats))
        return self.order

    def score(self, genome: GenomeLike, spans: Iterable[Span], *, progress: Progress | None = None) -> MarkovScore:
        """Negative log-likelihood of every order, summed over the scored bases of the union of `spans`.

        Scored are the known bases but for the first of a record, as for the network. Contexts are the true
        left neighbours in the record, also outside the spans; where fewer than k known ones stand before a
        base, order k falls back to those. `progress` is called with (bases done, bases in all).
        """
        nats = np.zeros(self.max_order + 1)
        count = 0
        for words, depth in self._scored(genome, spans, progress):
            for order, p in enumerate(self._probabilities(words, depth, self.smoothing)):
                nats[order] -= np.log(p).sum()
            count += len(words)
        return MarkovScore(nats, count)

    def distribution(self, context: Sequence[int] | NDArray[np.uint8], order: int) -> NDArray[np.float64]:
        """Probabilities (4,) of A, C, G, T after a context of token ids, of which the last `order` matter."""
        tokens = np.append(np.asarray(context, np.uint8), np.uint8(FIRST_BASE_ID))
        words, depth = words_of(tokens, self.max_order + 1)
        words, depth = words[-1] + np.arange(4, dtype=words.dtype), np.repeat(depth[-1:], 4)
        *_, p = self._probabilities(words, depth, self.smoothing, order)
        return p

    def log_likelihoods(self, tokens: NDArray[np.uint8], order: int) -> NDArray[np.float64]:
        """Log-likelihood of every base of a record given those before it, nats, (n,).

        NaN where nothing is scored: the first base, and unknown ones.
        """
        out = np.full(len(tokens), np.nan)
        for low in range(0, len(tokens), _CHUNK_BASES):
            context = max(0, low - self.max_order)
            words, depth = words_of(tokens[context : low + _CHUNK_BASES], self.max_order + 1)
            *_, p = self._probabilities(words, depth, self.smoothing, order)
            out[low : low + _CHUNK_BASES] = np.where(depth > 0, np.log(p), np.nan)[low - context :]
        out[:1] = np.nan
        return out

    def distributions(self, tokens: NDArray[np.uint8], order: int) -> NDArray[np.float64]:
        """Probabilities (n, 4) of A, C, G and T at every base, given those before it; also where the base is unknown."""
        # The base itself is read as one more unknown letter would be, from the context alone.
        words, depth = words_of(tokens, max(1, order))
        contexts, known = np.roll(words, 1) << 2, np.roll(depth, 1)
        known[:1] = contexts[:1] = 0
        p = np.full((len(tokens), 4), 0.25)
        for k in range(order + 1):
            rows = self._rows(contexts, k)
            higher = (rows + self.smoothing * p) / (rows.sum(1) + self.smoothing)[:, None]
            np.copyto(p, higher, where=(known >= k)[:, None])
        return p

    def _rows(self, words: Words, order: int) -> NDArray[Any]:
        """Counts (n, 4) of each base after the contexts of words at one order."""
        contexts = (words & ((1 << (2 * (order + 1))) - 1)) >> 2
        counts = self.counts[order]
        return counts.rows(contexts, order) if isinstance(counts, DeepCounts) else np.take(counts, contexts, axis=0)

    def _probabilities(
        self,
        words: Words,
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
            rows = self._rows(words, k)
            higher = p * smoothing
            higher += np.take_along_axis(rows, (words & 3)[:, None], axis=1)[:, 0]
            higher /= rows.sum(1) + smoothing
            np.copyto(p, higher, where=depth > k)
            yield p

    def _scored(
        self, genome: GenomeLike, spans: Iterable[Span], progress: Progress | None
    ) -> Iterator[tuple[Words, NDArray[np.int32]]]:
        """Words and depths of the scored bases, batch by batch."""
        spans, done = sorted(merge(spans)), 0
        total = size_of(spans)
        for tokens, here, spans_here in _batches(genome, spans, back=self.max_order):
            words, depth = words_of(tokens, self.max_order + 1)
            scored = here & (depth > 0)
            yield words[scored], depth[scored]
            done += sum(high - low for _, low, high in spans_here)
            if progress is not None:
                progress(done, total)


def _batches(
    genome: GenomeLike,
    spans: Iterable[Span],
    *,
    back: int,
    inside: bool = False,
    ahead: int = 0,
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_], list[Span]]]:
    """Token ids of spans in pieces, with their contexts; small spans go together, an unknown base between them.

    Args:
        genome: reader of token ids.
        spans: apart from each other.
        back: bases of context before a piece.
        inside: no base outside the spans is read, and the first of a record counts; without, it is no target.
        ahead: bases behind a piece, inside its span.

    Yields:
        tokens (n,), which of them are the pieces' own (n,), and the pieces.
    """
    tokens: list[NDArray[np.uint8]] = []
    own: list[NDArray[np.bool_]] = []
    pieces: list[Span] = []
    gap, size = np.full(1, _UNKNOWN_ID, np.uint8), 0
    for record, start, end in spans:
        for low in range(start, end, _CHUNK_BASES):
            high = min(low + _CHUNK_BASES, end)
            context = max(low - back, start if inside else 0)
            here = genome.fetch(record, context, min(high + ahead, end))
            mask = np.zeros(len(here), dtype=bool)
            mask[low - context : high - context] = True
            if low == 0 and not inside:
                mask[0] = False
            if tokens:
                tokens.append(gap)
                own.append(np.zeros(1, dtype=bool))
            tokens.append(here)
            own.append(mask)
            pieces.append(Span(record, low, high))
            size += len(here)
            if size >= _CHUNK_BASES:
                yield np.concatenate(tokens), np.concatenate(own), pieces
                tokens, own, pieces, size = [], [], [], 0
    if tokens:
        yield np.concatenate(tokens), np.concatenate(own), pieces


@dataclass(frozen=True)
class MarkovTable:
    """The baseline of every order on two splits.

    Attributes:
        order: chosen on validation.
        smoothing: weight a, chosen on validation.
        valid, test: sums of every order.
        baseline: what was fitted.
    """

    order: int
    smoothing: float
    valid: MarkovScore
    test: MarkovScore
    baseline: MarkovBaseline

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
    max_order: int | None = None,
    progress: Progress | None = None,
) -> MarkovTable:
    """Fit on `train`, choose smoothing and order on `valid`, score `test`; spans as in `MarkovBaseline.fit`.

    For one genome of several pass only its spans. `progress` is called with (bases done, bases in all); those of
    validation are read twice.
    """
    train, valid, test = (sorted(merge(spans)) for spans in (train, valid, test))
    fitted, chosen, scored = (size_of(spans) for spans in (train, valid, test))

    def part(before: int) -> Progress | None:
        return None if progress is None else lambda done, _: progress(before + done, fitted + 2 * chosen + scored)

    baseline = MarkovBaseline.fit(genome, train, max_order, progress=part(0))
    order = baseline.choose(genome, valid, progress=part(fitted))
    assert baseline.chosen_by is not None
    return MarkovTable(
        order,
        baseline.smoothing,
        baseline.chosen_by,
        baseline.score(genome, test, progress=part(fitted + 2 * chosen)),
        baseline,
    )
