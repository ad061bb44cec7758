"""Finds sequence of one split that also occurs in another: haplotypes, alternative loci, duplications, strains.

Splits without a base in common can still contain the same sequence. This compares 31-mers, each taken as the smaller of
a word and its reverse complement, and measures the share of a split's words that are in train. Longer identical
stretches share all their words; 1 % of divergence still leaves 73 % of them. It misses old repeats and homologues that
differ at least once in every 31 bases.

Each record counts a word only once, however often it contains it, so that a run of A or an array of satellites weighs by
its information and not by its length. In a genome the words are sampled by their hash (the finaliser of splitmix64:
Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"), so that equal words are treated alike: the
share stays unbiased, and memory and time do not depend on how often anything is repeated.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.tokenizer import PAD, A, T
from mamba_bio_audio.pipelines.spans import Interval, Span, merge, subtract
from mamba_bio_audio.pipelines.split_names import SPLITS

WORD = 31
LIMIT = 0.2
# A record's part of a split is small up to this share of all bases compared.
SMALL = 0.01
SAMPLED_WORDS = 4_000_000
# Fewer sampled words than this tell nothing about a record.
MIN_RECORD_WORDS = 100
SHOWN_RECORDS, SHOWN_LEFT_OUT = 5, 20
# Small enough for the arrays of a piece to stay in a core's cache.
_PIECE_BASES = 1 << 17
# To name the record of train that contains most of another: number of words looked up; and number of records beyond which
# a word is a repeat that identifies none.
_NAMING_WORDS, _NAMING_OWNERS = 4096, 64
# Not zero, so that the word of only A (code 0) is hashed like any other.
_SEED = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class DuplicateRecord:
    """A record's part of a split, more than the limit of which also occurs on the other side of the train/held-out divide.

    Attributes:
        split: split of the part.
        record: record of the part.
        bases: number of bases in the part.
        share: share of the part's 31-mers that are in train, or for a part of train, in validation and test.
        other_split: split of the record that contains most of it.
        other_record: that record; None if repeats hide it.
        other_share: share of the part's 31-mers in that record.
    """

    split: str
    record: str
    bases: int
    share: float
    other_split: str
    other_record: str | None
    other_share: float


@dataclass(frozen=True)
class Duplicates:
    """How much of each held-out split also occurs in train.

    Attributes:
        shares: per held-out split, the share of its sampled 31-mers that are in train, without the records left out; None
            if it has no words.
        words: number of sampled 31-mers per split, each counted once per record.
        every: sampling rate: one word in this many was taken.
        records: held-out records above the limit, those with most bases first.
        left_out: records that were left out of their split, and no longer count in the numbers above.
    """

    shares: dict[str, float | None]
    words: dict[str, int]
    every: int
    records: list[DuplicateRecord] = field(default_factory=list)
    left_out: list[DuplicateRecord] = field(default_factory=list)

    @property
    def excessive(self) -> bool:
        """Whether more than the limit of a split, or of a record that was not left out, is in train."""
        return bool(self.records) or any(share is not None and share > LIMIT for share in self.shares.values())

    def to_dict(self) -> dict[str, Any]:
        """The result as plain numbers for JSON."""
        return {"word": WORD, "limit": LIMIT, **asdict(self)}


def find_duplicates(
    genome: Genome,
    intervals: Sequence[Interval],
    *,
    leave_out: bool = False,
    sampled_words: int = SAMPLED_WORDS,
    progress: Callable[[int, int | None], None] | None = None,
) -> Duplicates:
    """Compare validation and test with train.

    Args:
        genome: genome of the intervals.
        intervals: intervals of all splits.
        leave_out: remove small records that repeat the other side from their split (`without` then gives the intervals):
            of a scaffold and what it repeats, the smaller one; of equals, the one held out. Small means at most a
            hundredth of all bases; if they are more than a fifth of a split together, none is removed from it.
        sampled_words: approximate number of words to keep, at most twice as many; 12 bytes each, about 40 while sorting.
        progress: called with (bases read, bases in total).
    """
    own = {split: [i for i in intervals if i.split == split] for split in SPLITS}
    # Bases whose coordinates are in both splits are counted elsewhere.
    spans = {"train": merge(own["train"])}
    spans |= {split: merge(subtract(own[split], own["train"])) for split in SPLITS[1:]}
    parts = [(split, record, bases) for split in SPLITS for record, bases in _lengths(spans[split]).items()]
    table = _Table(parts, *_collect(genome, spans, parts, sampled_words, progress))
    gone = np.zeros(len(parts), dtype=bool)
    if leave_out:
        # First whatever repeats something larger, so that a scaffold in train goes and not the chromosome it repeats.
        gone = table.affordable(gone, table.above(gone, larger=True))
        gone = table.affordable(gone, table.above(gone) & table.held_out)
    left = table.describe(np.flatnonzero(gone), np.zeros(len(parts), dtype=bool))
    records = table.describe(np.flatnonzero(table.above(gone) & table.held_out), gone)
    shared = table.hits(gone)
    shares, words = dict[str, float | None](), dict[str, int]()
    for split in SPLITS:
        kept = (table.split == SPLITS.index(split)) & ~gone
        words[split] = int(table.total[kept].sum())
        if split != "train":
            shares[split] = float(shared[kept].sum() / words[split]) if words[split] else None
    return Duplicates(shares, words, table.every, records, left)


class _Table:
    """Every (word, part) of the sample once, sorted by word, with parts of train first within a word.

    Attributes:
        size, split, held_out, total: bases, index of the split, whether that is not train, and number of sampled words, of
            every part.
    """

    def __init__(
        self, parts: Sequence[tuple[str, str, int]], words: NDArray[np.uint64], owners: NDArray[np.int32], every: int
    ) -> None:
        self.parts, self.owners, self.every = parts, owners, every
        self.size = np.array([bases for _, _, bases in parts], dtype=np.int64)
        self.split = np.array([SPLITS.index(split) for split, _, _ in parts], dtype=np.int64)
        self.held_out = self.split > 0
        self.total = np.bincount(owners, minlength=len(parts))
        fresh = np.ones(len(words), dtype=bool)
        fresh[1:] = words[1:] != words[:-1]
        # Index of every row's word; first row of every word; from `middle` on a word's rows are held out.
        self.group, self.first = np.cumsum(fresh) - 1, np.flatnonzero(fresh)
        self.end = np.append(self.first[1:], len(words))
        self.middle = self.first + np.bincount(self.group, ~self.held_out[owners], len(self.first)).astype(np.int64)

    def hits(self, gone: NDArray[np.bool_], *, larger: bool = False) -> NDArray[np.int64]:
        """Number of each part's words that also occur on the other side, in parts that are not gone; (parts,).

        With `larger`, only occurrences in larger parts count, and for held-out parts also those in parts of equal size.
        """
        held = self.held_out[self.owners]
        size = np.where(gone, 0, self.size)[self.owners]
        if not len(size):
            return np.zeros(len(self.parts), dtype=np.int64)
        # Bases of the largest part on the other side that has the word; 0 if there is none.
        of_train = np.maximum.reduceat(np.where(held, 0, size), self.first)[self.group]
        of_others = np.maximum.reduceat(np.where(held, size, 0), self.first)[self.group]
        least = self.size[self.owners] if larger else np.ones_like(size)
        found = np.where(held, of_train >= least, of_others >= least + larger)
        return np.bincount(self.owners, found, len(self.parts)).astype(np.int64)

    def above(self, gone: NDArray[np.bool_], *, larger: bool = False) -> NDArray[np.bool_]:
        """Mask of the parts of which more than the limit occurs on the other side; (parts,)."""
        enough = (self.total >= MIN_RECORD_WORDS) & ~gone
        return enough & (self.hits(gone, larger=larger) > LIMIT * self.total)

    def affordable(self, gone: NDArray[np.bool_], more: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """`gone` plus the small parts of `more`: for each split all of them or, if that is too much of it, none."""
        wanted = gone | (more & (self.size <= SMALL * self.size.sum()))
        for split in range(len(SPLITS)):
            own = self.split == split
            if self.size[own & wanted].sum() > LIMIT * self.size[own].sum():
                wanted[own] = gone[own]
        return wanted

    def describe(self, parts: NDArray[np.int64], gone: NDArray[np.bool_]) -> list[DuplicateRecord]:
        """Describe parts, each with the one on the other side that contains most of it; those with most bases first."""
        rows = np.flatnonzero(np.isin(self.owners, parts))
        rows = rows[np.argsort(self.owners[rows], kind="stable")]
        edges = np.searchsorted(self.owners[rows], parts), np.searchsorted(self.owners[rows], parts, side="right")
        shared, found = self.hits(gone), []
        for part, begin, end in zip(parts.tolist(), *(edge.tolist() for edge in edges), strict=True):
            taken = self.group[rows[begin : end : -(-(end - begin) // _NAMING_WORDS)]]
            held = self.held_out[part]
            first, last = (self.first, self.middle) if held else (self.middle, self.end)
            number = last[taken] - first[taken]
            telling = taken[(number > 0) & (number <= _NAMING_OWNERS)]
            number = last[telling] - first[telling]
            at = np.repeat(first[telling] - np.cumsum(number) + number, number) + np.arange(number.sum())
            holders, counts = np.unique(self.owners[at][~gone[self.owners[at]]], return_counts=True)
            split, record, bases = self.parts[part]
            other: str | None = None
            other_split, share = "train" if held else "valid and test", 0.0
            if len(holders):
                best = int(counts.argmax())
                other_split, other, _ = self.parts[int(holders[best])]
                share = float(counts[best] / len(taken))
            own = float(shared[part] / self.total[part])
            found.append(DuplicateRecord(split, record, bases, own, other_split, other, share))
        return sorted(found, key=lambda row: (-row.bases, row.split, row.record))


def without(intervals: Sequence[Interval], left_out: Sequence[DuplicateRecord]) -> list[Interval]:
    """Remove the parts of splits that were left out from the intervals."""
    gone = {(row.split, row.record) for row in left_out}
    return [interval for interval in intervals if (interval.split, interval.record) not in gone]


def describe_duplicates(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """`Duplicates.to_dict()` as (what, value) lines for people."""
    rows = []
    sampled = "" if found["every"] == 1 else f" (one word in {found['every']:,} compared)"
    for split, share in found["shares"].items():
        text = "nothing to compare" if share is None else f"{share:.1%} of its {WORD}-mers{sampled}"
        rows.append((f"{split} found in train", text))
    # Manifests of older versions name pairs, and have nothing left out.
    rows += [("", _listed(row)) for row in found.get("records", [])[:SHOWN_RECORDS]]
    if len(found.get("records", [])) > SHOWN_RECORDS:
        rows.append(("", f"and {len(found['records']) - SHOWN_RECORDS:,} more records above {LIMIT:.0%}"))
    left = found.get("left_out", [])
    if left:
        bases = sum(row["bases"] for row in left)
        rows.append(("left out", f"{bases:,} bases of {len(left):,} small records that repeat another split"))
        rows += [("", _listed(row)) for row in left[:SHOWN_LEFT_OUT]]
        if len(left) > SHOWN_LEFT_OUT:
            rows.append(("", f"and {len(left) - SHOWN_LEFT_OUT:,} more, all in manifest.json"))
    return rows


def _listed(row: Mapping[str, Any]) -> str:
    """Describe a record above the limit on one line."""
    most = "" if row["other_record"] is None else f", {row['other_share']:.0%} in {row['other_record']}"
    return f"{row['split']} {row['record']}: {row['share']:.0%} of {row['bases']:,} bases in {row['other_split']}{most}"


def sampled_words(ids: NDArray[np.uint8], every: int) -> NDArray[np.uint64]:
    """Canonical 31-mers of token ids (n,) without unknown bases, sampled by hash, one in `every`."""
    return words_and_starts(ids, every)[0]


def words_and_starts(
    ids: NDArray[np.uint8], every: int, size: int = WORD
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """`sampled_words`, optionally of another size (31 at most), and their start positions."""
    count = len(ids) - size + 1
    if count < 1:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    known = (ids >= A) & (ids <= T)
    codes = np.where(known, ids - np.uint8(A), 0).astype(np.uint64)
    forward = _words(codes, size)
    # The complement of code c is 3 - c; the opposite strand is read from the end.
    backward = _words(np.uint64(3) - codes[::-1], size)[::-1]
    canonical = np.minimum(forward, backward)
    bad = np.concatenate([[0], np.cumsum(~known, dtype=np.int64)])
    at = np.flatnonzero((bad[size:] == bad[:-size]) & _taken(canonical, every))
    return canonical[at], at


def _taken(words: NDArray[np.uint64], every: int) -> NDArray[np.bool_]:
    """Mask of the words that belong to the sample, which includes the samples of all multiples of `every`."""
    if every == 1:
        return np.ones(len(words), dtype=bool)
    return _hash(words) < np.uint64((1 << 64) // every)


def _hash(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finaliser of splitmix64: each bit of the word changes about half of the bits."""
    x = words + _SEED
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def _words(codes: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """Codes of the `size` bases from each position on, two bits per base, assembled from pieces of 16, 8, 4, 2 and 1."""
    pieces, longest = {1: codes}, 1
    while 2 * longest <= size:
        shorter = pieces[longest]
        pieces[2 * longest] = shorter[:-longest] << np.uint64(2 * longest) | shorter[longest:]
        longest *= 2
    count = len(codes) - size + 1
    words, at = np.zeros(count, dtype=np.uint64), 0
    for piece in sorted(pieces, reverse=True):
        if size & piece:
            words = words << np.uint64(2 * piece) | pieces[piece][at : at + count]
            at += piece
    return words


def _lengths(spans: Sequence[Span]) -> dict[str, int]:
    """Bases of each record, in order of appearance."""
    lengths: dict[str, int] = {}
    for span in spans:
        lengths[span.record] = lengths.get(span.record, 0) + span.end - span.start
    return lengths


def _collect(
    genome: Genome,
    spans: Mapping[str, Sequence[Span]],
    parts: Sequence[tuple[str, str, int]],
    wanted: int,
    progress: Callable[[int, int | None], None] | None,
) -> tuple[NDArray[np.uint64], NDArray[np.int32], int]:
    """Every (word, part) of the sample once, sorted, and the sampling rate: one word in this many.

    The sample is halved whenever more than 2 x `wanted` rows would have to be kept.
    """
    sizes = {split: sum(span.end - span.start for span in own) for split, own in spans.items()}
    every = max(1, -(-sum(sizes.values()) // wanted))
    words, owners = np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int32)
    new: list[tuple[NDArray[np.uint64], NDArray[np.int32]]] = []
    waiting = done = 0
    for ids, owner, bases in _batches(genome, spans, parts):
        found, at = words_and_starts(ids, every)
        # Made unique here already, because a sampled word may come from a megabase of one repeat.
        new.append(_unique(found, owner[at]))
        waiting += len(new[-1][0])
        done += bases
        if waiting > max(wanted // 4, len(words)):
            words, owners, every = _thinned(*_joined(words, owners, new), every, 2 * wanted)
            new, waiting = [], 0
        if progress is not None:
            progress(done, sum(sizes.values()))
    words, owners, every = _thinned(*_joined(words, owners, new), every, 2 * wanted)
    return words, owners, every


def _batches(
    genome: Genome, spans: Mapping[str, Sequence[Span]], parts: Sequence[tuple[str, str, int]]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int32], int]]:
    """Yield token ids, the index of the part at each, and the number of new bases, some pieces of spans at a time.

    Pieces of one span overlap by one base less than a word, so that every word is met once; an unknown base separates spans.
    """
    numbers = {part[:2]: number for number, part in enumerate(parts)}
    gap = np.full(1, PAD, dtype=np.uint8)
    ids: list[NDArray[np.uint8]] = []
    owners: list[int] = []
    bases = size = 0
    for split, own in spans.items():
        for span in own:
            number = numbers[split, span.record]
            for start in range(span.start, span.end, _PIECE_BASES):
                stop = min(start + _PIECE_BASES, span.end)
                piece = genome.fetch(span.record, start, min(stop + WORD - 1, span.end))
                ids += [piece, gap]
                owners += [number, number]
                bases += stop - start
                size += len(piece)
                if size >= _PIECE_BASES:
                    yield np.concatenate(ids), np.repeat(np.array(owners, np.int32), list(map(len, ids))), bases
                    ids, owners, bases, size = [], [], 0, 0
    if ids:
        yield np.concatenate(ids), np.repeat(np.array(owners, np.int32), list(map(len, ids))), bases


def _unique(words: NDArray[np.uint64], owners: NDArray[np.int32]) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """Every (word, owner) once, sorted."""
    order = np.lexsort((owners, words))
    words, owners = words[order], owners[order]
    fresh = np.ones(len(words), dtype=bool)
    fresh[1:] = (words[1:] != words[:-1]) | (owners[1:] != owners[:-1])
    return words[fresh], owners[fresh]


def _joined(
    words: NDArray[np.uint64], owners: NDArray[np.int32], new: list[tuple[NDArray[np.uint64], NDArray[np.int32]]]
) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    return _unique(
        np.concatenate([words, *(pair[0] for pair in new)]), np.concatenate([owners, *(pair[1] for pair in new)])
    )


def _thinned(
    words: NDArray[np.uint64], owners: NDArray[np.int32], every: int, most: int
) -> tuple[NDArray[np.uint64], NDArray[np.int32], int]:
    """Halve the sample until it has at most `most` rows."""
    while len(words) > most:
        every *= 2
        kept = _taken(words, every)
        words, owners = words[kept], owners[kept]
    return words, owners, every
