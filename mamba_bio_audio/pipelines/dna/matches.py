"""Longest exact matches between sequences and a genome, at any length and on both strands.

What it answers: does a sample repeat what the model was trained on? Two random sequences of n and G bases share about
log4(2 n G) by chance; real genomes share more, because they repeat themselves, so the same number for held-out
sequence of equal size belongs beside it.

Every word of length m is one 64-bit polynomial hash, so a pass over the genome tells which queries have a match of m.
A match of m contains one of m - 1: m is found by doubling and bisection, all queries in the same passes. The longest
match is located and compared base by base at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.pipelines.dna.markov import GenomeLike
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.pipelines.spans import Span, merge

_CHUNK_BASES = 1 << 20
_FIRST_LENGTH = 16
_FILTER_BITS = 24
_GROUP_BASES = 1 << 23
_BASES = (7, 8, 9, 10)

_draws = np.random.Philox(key=np.array([0x6D617463, 0x68657321], np.uint64)).random_raw(5) | np.uint64(1)
_STEP = np.uint64(_draws[4])
_STEP_INVERSE = np.uint64(pow(int(_STEP), -1, 2**64))
# Of a token; unknown ones are never part of a word.
_VALUE = np.zeros(256, np.uint64)
_VALUE[list(_BASES)] = _draws[:4]


class Query(NamedTuple):
    """A stretch in which matches are sought: words that begin in [start, end) of a sequence, and may end after it."""

    sequence: int
    start: int
    end: int


class Match(NamedTuple):
    """A longest match; `bases` 0 if there is none."""

    bases: int
    sequence: int
    position: int  # of its first base, on the sequence's own strand
    record: str
    start: int  # of its first base in the record
    strand: str  # of the record, on which the sequence reads


def longest_matches(
    sequences: Sequence[NDArray[np.uint8]],
    queries: Sequence[Query],
    genome: GenomeLike,
    spans: Iterable[Span],
    *,
    locate: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> tuple[list[int], Match]:
    """Length of the longest exact match of every query in the union of `spans`, and where the longest one is.

    Args:
        sequences: token ids.
        queries: pieces of them.
        genome: reader of token ids.
        spans: (record, start, end), 0-based half-open; matches lie within one of the union's pieces.
        locate: so many of the queries are candidates for the match that is located; None is all.
        progress: called with (bases read, None) over all passes.
    """
    pieces = sorted(merge(spans))
    if len(queries) > 1 and sum(query.end - query.start for query in queries) > _GROUP_BASES:
        # The words of a group are held in memory, about 50 bytes for each.
        half = len(queries) // 2
        split = (half if locate is None else min(half, locate), None if locate is None else max(0, locate - half))
        first, second = (
            longest_matches(sequences, part, genome, pieces, locate=among, progress=progress)
            for part, among in zip((queries[:half], queries[half:]), split, strict=True)
        )
        return first[0] + second[0], max(first[1], second[1], key=lambda match: match.bases)
    longest_piece = max(map(len, pieces), default=0)
    # A query's match is at least `low` and less than `high`.
    low = np.zeros(len(queries), np.int64)
    high = np.array(
        [min(len(sequences[q.sequence]) - q.start, longest_piece) + 1 if q.end > q.start else 1 for q in queries],
        np.int64,
    )
    read = 0

    def count(bases: int) -> None:
        nonlocal read
        read += bases
        if progress is not None:
            progress(read, None)

    length = _FIRST_LENGTH
    while (open_queries := np.flatnonzero(high - low > 1)).size:
        length = int(np.clip(length, low[open_queries].min() + 1, high[open_queries].max() - 1))
        words = _Words(sequences, queries, length)
        found = np.zeros(len(queries), bool)
        for _, _, tokens in _chunks(genome, pieces, length):
            hits = words.hits(_hashes(tokens, length)[0])
            found[words.owners_of(hits)] = True
            count(len(tokens))
        low[found] = np.maximum(low[found], length)
        high[~found] = np.minimum(high[~found], length)
        leader = int(np.argmax(np.where(high - low > 1, low, -1)))
        doubled = 2 * int(low[leader])
        length = doubled if doubled < high[leader] and low[leader] >= length else int(low[leader] + high[leader]) // 2
    candidates = low[:locate]
    longest = int(candidates.max(initial=0))
    if not longest:
        return low.tolist(), Match(0, 0, 0, "", 0, "+")
    words = _Words(sequences, [queries[int(np.argmax(candidates))]], longest)
    for record, start, tokens in _chunks(genome, pieces, longest):
        hashes, positions = _hashes(tokens, longest)
        at = np.flatnonzero(np.isin(hashes, words.sorted))
        for index in at.tolist():
            match = words.locate(hashes[index], tokens[positions[index] : positions[index] + longest])
            if match is not None:
                sequence, position, strand = match
                return low.tolist(), Match(longest, sequence, position, record, start + int(positions[index]), strand)
        count(len(tokens))
    raise ArithmeticError(f"a hash of {longest} bases met another word; change the multiplier")


class _Words:
    """Hashes of all words of one length of the queries, on both strands."""

    def __init__(self, sequences: Sequence[NDArray[np.uint8]], queries: Sequence[Query], length: int) -> None:
        self.sequences, self.length = sequences, length
        hashes, owners, places = [], [], []
        tokenizer = DnaTokenizer()
        for owner, query in enumerate(queries):
            # A word may begin anywhere in the query and end after it.
            own = sequences[query.sequence][query.start : min(query.end + length - 1, len(sequences[query.sequence]))]
            for strand, tokens in ((0, own), (1, tokenizer.reverse_complement(own))):
                found, positions = _hashes(tokens, length)
                hashes.append(found)
                owners.append(np.full(len(found), owner, np.int32))
                begin = positions if strand == 0 else len(own) - length - positions
                places.append(
                    np.stack([np.full(len(found), query.sequence), begin + query.start, np.full(len(found), strand)])
                )
        joined = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
        order = np.argsort(joined, kind="stable")
        self.sorted = joined[order]
        self.owners = np.concatenate(owners)[order] if owners else np.zeros(0, np.int32)
        self.places = np.concatenate(places, 1)[:, order] if places else np.zeros((3, 0), np.int64)
        self.filter = np.zeros(1 << _FILTER_BITS, bool)
        self.filter[self.sorted >> np.uint64(64 - _FILTER_BITS)] = True

    def hits(self, hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Different ones of `hashes` that are among the words."""
        hashes = np.unique(hashes[self.filter[hashes >> np.uint64(64 - _FILTER_BITS)]])
        at = np.searchsorted(self.sorted, hashes)
        inside = at < len(self.sorted)
        return hashes[inside][self.sorted[at[inside]] == hashes[inside]]

    def owners_of(self, hits: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Queries that hold one of the words `hits`."""
        first, last = np.searchsorted(self.sorted, hits, "left"), np.searchsorted(self.sorted, hits, "right")
        marks = np.zeros(len(self.sorted) + 1, np.int64)
        np.add.at(marks, first, 1)
        np.add.at(marks, last, -1)
        return np.unique(self.owners[np.cumsum(marks[:-1]) > 0])

    def locate(self, value: np.uint64, tokens: NDArray[np.uint8]) -> tuple[int, int, str] | None:
        """The place of a word that really is `tokens`."""
        first, last = np.searchsorted(self.sorted, value, "left"), np.searchsorted(self.sorted, value, "right")
        for sequence, position, strand in self.places[:, first:last].T.tolist():
            own = self.sequences[sequence][position : position + self.length]
            if np.array_equal(DnaTokenizer().reverse_complement(own) if strand else own, tokens):
                return sequence, position, "-" if strand else "+"
        return None


def _chunks(genome: GenomeLike, pieces: Sequence[Span], length: int) -> Iterator[tuple[str, int, NDArray[np.uint8]]]:
    """Record, start and tokens of pieces that together hold every word of `length` once."""
    for record, start, end in pieces:
        for low in range(start, max(end - length + 1, start), max(_CHUNK_BASES, length)):
            yield record, low, genome.fetch(record, low, min(low + max(_CHUNK_BASES, length) + length - 1, end))


def _hashes(tokens: NDArray[np.uint8], length: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes of all words of known bases, and where they begin.

    sum of value(base i) x step^i over the word, divided by step^begin; all modulo 2^64.
    """
    count = len(tokens) - length + 1
    if count < 1:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    powers, inverses = _powers(len(tokens))
    sums = np.zeros(len(tokens) + 1, np.uint64)
    np.cumsum(_VALUE[tokens] * powers[: len(tokens)], out=sums[1:])
    unknown = np.zeros(len(tokens) + 1, np.int64)
    np.cumsum(_VALUE[tokens] == 0, out=unknown[1:])
    whole = np.flatnonzero(unknown[length:] == unknown[:count])
    value = (sums[whole + length] - sums[whole]) * inverses[whole]
    # The low bits of the polynomial mix less than the high ones.
    value ^= value >> np.uint64(32)
    return value * _STEP, whole


_cache = (np.ones(1, np.uint64), np.ones(1, np.uint64))


def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """step^0, step^1, ... and their inverses, at least `count` of them."""
    global _cache
    if len(_cache[0]) < count:
        size = max(count, 2 * len(_cache[0]))
        steps = np.full(size, _STEP)
        inverse_steps = np.full(size, _STEP_INVERSE)
        steps[0] = inverse_steps[0] = 1
        _cache = np.cumprod(steps), np.cumprod(inverse_steps)
    return _cache
