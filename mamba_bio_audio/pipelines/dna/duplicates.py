"""Sequence of one split that stands in another: haplotypes, alternative loci, duplications, strains.

Splits without a base in common can still hold the same sequence twice. Here 31-mers, taken as the smaller of a word and its
reverse complement, are compared: the share of a split's words that are in train. Longer identical stretches share all
their words; 1 % of divergence still leaves 73 % of them. What it misses: old repeats and homologues that differ in every
31 bases. In a genome the words are sampled by their hash, equal words alike, so that the memory is bounded and the share
stays unbiased.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.pipelines.dna.coverage import subtract
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.intervals import SPLITS, Interval, Span, merge
from mamba_bio_audio.pipelines.dna.tokenizer import A, T

WORD = 31
LIMIT = 0.2
SAMPLED_WORDS = 4_000_000
# Fewer sampled words than this say nothing of a pair of records.
MIN_PAIR_WORDS = 100
WORST_PAIRS = 5
# The arrays of a piece stay in the cache of a core.
_PIECE_BASES = 1 << 17
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class DuplicatePair:
    """A record of a held-out split and a record of train that holds much of it."""

    split: str
    record: str
    train_record: str
    share: float


@dataclass(frozen=True)
class Duplicates:
    """How much of each held-out split stands in train.

    Attributes:
        shares: per held-out split the share of its sampled 31-mers that are in train; None without any.
        words: sampled 31-mers per split.
        every: one word in so many was taken.
        pairs: the worst pairs of records above the limit, the largest share first.
    """

    shares: dict[str, float | None]
    words: dict[str, int]
    every: int
    pairs: list[DuplicatePair]

    @property
    def excessive(self) -> bool:
        """Is a split, or a record of it, in train by more than the limit?"""
        return bool(self.pairs) or any(share is not None and share > LIMIT for share in self.shares.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {"word": WORD, "limit": LIMIT, **asdict(self)}


def find_duplicates(genome: Genome, intervals: Sequence[Interval], *, sampled_words: int = SAMPLED_WORDS) -> Duplicates:
    """Compare validation and test with train.

    Args:
        genome: that the intervals lie in.
        intervals: of all splits.
        sampled_words: words of the training split to keep at most, about; 24 bytes each while they are sorted.
    """
    own_intervals = {split: [i for i in intervals if i.split == split] for split in SPLITS}
    # Bases that both splits hold by their coordinates are counted elsewhere.
    spans = {split: merge(subtract(own_intervals[split], own_intervals["train"])) for split in SPLITS[1:]}
    spans["train"] = merge(own_intervals["train"])
    bases = sum(span.end - span.start for span in spans["train"])
    every = max(1, -(-bases // sampled_words))
    records = {name: number for number, name in enumerate(dict.fromkeys(s.record for s in spans["train"]))}
    names = list(records)
    words, owners = _collect(genome, spans["train"], records, every)
    shares: dict[str, float | None] = {}
    counts = {"train": len(words)}
    pairs: list[DuplicatePair] = []
    # Every (word, record) once, by word.
    order = np.lexsort((owners, words))
    words, owners = words[order], owners[order]
    fresh = np.ones(len(words), dtype=bool)
    fresh[1:] = (words[1:] != words[:-1]) | (owners[1:] != owners[:-1])
    words, owners = words[fresh], owners[fresh]
    for split in SPLITS[1:]:
        own = {name: number for number, name in enumerate(dict.fromkeys(s.record for s in spans[split]))}
        found, held_by = _collect(genome, spans[split], own, every)
        counts[split] = len(found)
        first = np.searchsorted(words, found, side="left")
        number = np.searchsorted(words, found, side="right") - first
        shares[split] = float((number > 0).mean()) if len(found) else None
        for at, record in enumerate(own):
            mine = held_by == at
            total = int(mine.sum())
            if total < MIN_PAIR_WORDS:
                continue
            shared = np.zeros(len(names), dtype=np.int64)
            for rows in _pieces(number[mine], first[mine]):
                shared += np.bincount(owners[rows], minlength=len(names))
            for other in np.flatnonzero(shared > LIMIT * total).tolist():
                pairs.append(DuplicatePair(split, record, names[other], int(shared[other]) / total))
    pairs.sort(key=lambda pair: (-pair.share, pair.record, pair.train_record))
    return Duplicates(shares, counts, every, pairs)


def describe_duplicates(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """`Duplicates.to_dict()` as (what, value) lines for people."""
    rows = []
    sampled = "" if found["every"] == 1 else f" (one word in {found['every']:,} compared)"
    for split, share in found["shares"].items():
        text = "nothing to compare" if share is None else f"{share:.1%} of its {WORD}-mers{sampled}"
        rows.append((f"{split} found in train", text))
    for pair in found["pairs"][:WORST_PAIRS]:
        rows.append(("", f"{pair['split']} {pair['record']}: {pair['share']:.0%} in train {pair['train_record']}"))
    if len(found["pairs"]) > WORST_PAIRS:
        rows.append(("", f"and {len(found['pairs']) - WORST_PAIRS:,} more pairs of records above {LIMIT:.0%}"))
    return rows


def sampled_words(ids: NDArray[np.uint8], every: int) -> NDArray[np.uint64]:
    """Canonical 31-mers of token ids, (n,), those with an unknown base left out, one in `every` by hash."""
    count = len(ids) - WORD + 1
    if count < 1:
        return np.zeros(0, dtype=np.uint64)
    known = (ids >= A) & (ids <= T)
    codes = np.where(known, ids - np.uint8(A), 0).astype(np.uint64)
    forward = _words(codes)
    # The complement of code c is 3 - c; the opposite strand is read from the end.
    backward = _words(np.uint64(3) - codes[::-1])[::-1]
    canonical = np.minimum(forward, backward)
    bad = np.concatenate([[0], np.cumsum(~known, dtype=np.int64)])
    taken = bad[WORD:] == bad[:-WORD]
    if every > 1:
        hashed = canonical * _MIX
        hashed ^= hashed >> np.uint64(32)
        hashed *= _MIX
        taken &= hashed < np.uint64((1 << 64) // every)
    return canonical[taken]


def _words(codes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Codes of the 31 bases from every position on, two bits each, put together from pieces of 16, 8, 4, 2 and 1."""
    pieces, size = {1: codes}, 1
    while size < 16:
        shorter = pieces[size]
        pieces[2 * size] = shorter[:-size] << np.uint64(2 * size) | shorter[size:]
        size *= 2
    count = len(codes) - WORD + 1
    words, at = np.zeros(count, dtype=np.uint64), 0
    for size in (16, 8, 4, 2, 1):
        words = words << np.uint64(2 * size) | pieces[size][at : at + count]
        at += size
    return words


def _collect(
    genome: Genome, spans: Iterable[Span], records: Mapping[str, int], every: int
) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """Sampled words of spans, with repetitions, and the number of the record of each."""
    words, owners = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.int32)]
    for span in spans:
        for start in range(span.start, span.end, _PIECE_BASES):
            # Pieces overlap by a word less one base, so that every word is met once.
            found = sampled_words(
                genome.fetch(span.record, start, min(start + _PIECE_BASES + WORD - 1, span.end)), every
            )
            words.append(found)
            owners.append(np.full(len(found), records[span.record], dtype=np.int32))
    return np.concatenate(words), np.concatenate(owners)


def _pieces(number: NDArray[np.int64], first: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Positions first .. first + number - 1 of every row, some millions at a time."""
    ends = np.cumsum(number)
    for begin in range(0, int(ends[-1]) if len(ends) else 0, 1 << 22):
        at = np.arange(begin, min(begin + (1 << 22), int(ends[-1])))
        row = np.searchsorted(ends, at, side="right")
        yield first[row] + at - (ends[row] - number[row])
