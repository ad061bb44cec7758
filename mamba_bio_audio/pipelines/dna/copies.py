"""A copy model: what repeats within reach are worth, the bar for a network that is said to use its context.

Before each base it looks for the stretch, on either strand, that agrees best with the bases just read, says the base that
followed there, and mixes that with a Markov model:

    p(x) = h                              x the base that the copy says
           (1 - h) m(x) / (1 - m(copy))   otherwise,            m the Markov model

h depends on how well the copy has done so far (mismatches among the last 32 bases, bases since the last one) and on m of
the base that it says; it is the share of hits in such cases on the validation split, so it needs no weights to be tuned. The
worse of two strands' copies is mixed in first, the better one upon the result.

A copy begins where the last 12, 16 or 24 bases occurred before, at their latest occurrence; one of 16 is followed for 256
bases behind its last match, across substitutions and past other short matches, but not across insertions. Repeat
models of compressors are the same idea (XM: Cao et al. 2007; GeCo: Pratas et al. 2016); this one is a crude relative.

What it answers: how much of the loss a longer context can save by copying alone. With a context of c bases no base
further back than c is read. A model that gains more has learnt more than copying; one that gains nothing where this
gains does not use its context. The measure is causal; the copies come from the sequence itself, counts never from what is
scored.

Legend: n positions, e the last base read, i = e + 1 the base to be said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.pipelines.dna.markov import GenomeLike, MarkovBaseline, MarkovTable
from mamba_bio_audio.pipelines.dna.words import FIRST_BASE_ID
from mamba_bio_audio.pipelines.spans import Span, merge, size_of
from mamba_bio_audio.pipelines.windows import evenly_spaced

Progress = Callable[[int, int], None]
Ints = NDArray[np.int64]

# Lengths of matches at which a copy begins, and the one whose copies are followed for so many bases.
_SEEDS = (12, 16, 24)
_FOLLOWED, _FOLLOW = 16, 256
# Bases by which a copy is judged: as many as fit into 64 bits.
_JUDGED = 32
# Cases that are told apart: mismatches, bases since the last one, log-odds of the Markov model.
_MISMATCHES = 22
_RUNS = np.array([1, 4, 8, 12, 16, 20, 24, 32, 48, 64, 128, 256])
_ODDS = 16
_CASES = _MISMATCHES * (len(_RUNS) + 1) * _ODDS
# The Markov model counts as so many observations of a case.
_PRIOR = 8.0
_SHARE = (1e-4, 1 - 1e-4)
# Sorting keys are 40 bits of a word and 24 of its position.
_POSITION_BITS = 24
LONGEST_CONTEXT = 1 << 22
_CHUNK_BASES = 1 << 22
# Shares of hits are counted on about so many validation bases.
_CHOICE_BASES = 1 << 22
_NONE = np.uint64(2**64 - 1)


class _Copies(NamedTuple):
    """A copy of one strand for each base to be said, if there is one.

    Attributes:
        score: how well it agrees with the bases just read; -1: there is none.
        mismatches: among the last 32 bases.
        run: bases since the last mismatch, at most 256.
        said: the base that it says.
        reach: how far back it reads.
        room: bases by which the context has to be longer than a run for it to be seen.
    """

    score: NDArray[np.int16]
    mismatches: NDArray[np.int16]
    run: NDArray[np.int16]
    said: NDArray[np.int8]
    reach: NDArray[np.int32]
    room: NDArray[np.int32]


@dataclass
class CopyModel:
    """Copies on a Markov model; `choose` counts how often they are right.

    >>> copies = CopyModel(baseline, order)                            # doctest: +SKIP
    >>> copies.choose(genome, valid_spans, [1024, 65536])              # doctest: +SKIP
    >>> copies.score(genome, test_spans)[65536]                        # doctest: +SKIP

    Attributes:
        markov: fitted; its smoothing is chosen.
        order: that is mixed with.
        counts: by context, hits and cases (2, 2, cases) of the worse and of the better copy.
    """

    markov: MarkovBaseline
    order: int
    counts: dict[int, NDArray[np.float64]] = field(default_factory=dict)

    def choose(self, genome: GenomeLike, spans: Iterable[Span], contexts: Sequence[int]) -> None:
        """Count hits on validation spans, on about 2^22 of the bases, for each context.

        Args:
            genome: reader of token ids.
            spans: (record, start, end) of the validation split.
            contexts: numbers of bases that may be read before each base, 1 to 2^22.
        """
        assert all(1 <= context <= LONGEST_CONTEXT for context in contexts), contexts
        pieces = [
            Span(span.record, low, min(low + _CHOICE_BASES // 4, span.end))
            for span in sorted(merge(spans))
            for low in range(span.start, span.end, _CHOICE_BASES // 4)
        ]
        longest = max(map(len, pieces), default=1)
        pieces = [pieces[at] for at in evenly_spaced(len(pieces), max(4, _CHOICE_BASES // longest))]
        self.counts = {context: np.zeros((2, 2, _CASES)) for context in contexts}
        for tokens, first, scored in _read(genome, pieces, max(contexts)):
            self._mix(tokens, first, contexts, count=scored)

    def score(self, genome: GenomeLike, spans: Iterable[Span], *, progress: Progress | None = None) -> dict[int, float]:
        """Nats for each context, summed over the scored bases of spans: known ones but for the first of a record.

        Contexts are the true left neighbours in the record, also outside the spans, as for Markov models.
        """
        found = dict.fromkeys(self.counts, 0.0)
        for tokens, first, scored in _read(genome, merge(spans), max(self.counts), progress):
            for context, nats in self.nats(tokens, first).items():
                found[context] += float(np.nansum(nats[scored]))
        return found

    def nats(self, tokens: NDArray[np.uint8], first: int) -> dict[int, NDArray[np.float64]]:
        """Nats of tokens[first:] (n,) for each context of `counts`; NaN for unknown bases and the first of all."""
        return self._mix(tokens, first, self.counts)

    def nats_of_block(
        self, window: NDArray[np.uint8], size: int, contexts: Iterable[int]
    ) -> dict[int, NDArray[np.float64]]:
        """Nats (size,) of the last bases of a window for each context: as many bases before the first of them are read.

        The others read those between as well, as a network does that is given the block and its context in one piece.
        """
        return self._mix(window, len(window) - size, contexts, grows=True)

    def _mix(
        self,
        tokens: NDArray[np.uint8],
        first: int,
        contexts: Iterable[int],
        *,
        grows: bool = False,
        count: NDArray[np.bool_] | None = None,
    ) -> dict[int, NDArray[np.float64]]:
        """Nats of tokens[first:] for each context.

        Args:
            tokens: ids, with what is context.
            first: number of tokens that are only context.
            contexts: how far back each base may read.
            grows: only the first base may; the others read from where that does.
            count: of which bases the hits are counted.
        """
        digits = tokens.astype(np.int64) - FIRST_BASE_ID
        known = (digits >= 0) & (digits < 4)
        digits[~known] = 0
        before = max(0, first - self.order)
        markov = self.markov.distributions(tokens[before:], self.order)[first - before :]
        truth, scored = digits[first:], known[first:].copy()
        if first == 0:
            scored[:1] = False
        found = {}
        stretch = _Stretch(digits, known, first)
        for context in contexts:
            forward, inverted = (stretch.best(strand, context, grows=grows) for strand in (0, 1))
            p = markov.copy()
            worse = forward.score <= inverted.score
            for stage, copies in enumerate((_where(worse, forward, inverted), _where(worse, inverted, forward))):
                hits, cases = self.counts[context][stage]
                at = np.flatnonzero(copies.score >= 0)
                said = copies.said[at]
                share = np.clip(p[at, said], *_SHARE)
                case = _case(copies, at, share)
                if count is not None:
                    counted = (scored & count)[at]
                    hits += np.bincount(case[counted], (truth[at] == said)[counted], _CASES)
                    cases += np.bincount(case[counted], minlength=_CASES)
                hit = (hits[case] + _PRIOR * share) / (cases[case] + _PRIOR)
                p[at] *= ((1 - hit) / (1 - p[at, said]))[:, None]
                p[at, said] = hit
            found[context] = np.where(scored, -np.log(p[np.arange(len(p)), truth]), np.nan)
        return found


def _case(copies: _Copies, at: Ints, share: NDArray[np.float64]) -> Ints:
    """Number of the case of each copy `at`, the base that it says having a share of the probability so far."""
    odds = np.clip((np.log(share / (1 - share)) + 5) * (_ODDS / 10), 0, _ODDS - 1).astype(np.int64)
    runs = np.searchsorted(_RUNS, copies.run[at], "right")
    return (np.minimum(copies.mismatches[at], _MISMATCHES - 1) * (len(_RUNS) + 1) + runs) * _ODDS + odds


def _where(mask: NDArray[np.bool_], one: _Copies, other: _Copies) -> _Copies:
    pairs: Any = zip(one, other, strict=True)
    rows: list[Any] = [np.where(mask, a, b) for a, b in pairs]
    return _Copies(*rows)


class _Stretch:
    """The copies for the bases [first, n) of a stretch."""

    def __init__(self, digits: Ints, known: NDArray[np.bool_], first: int) -> None:
        place = np.arange(len(digits))
        depth = place - np.maximum.accumulate(np.where(known, -1, place))
        self.digits, self.count = digits, len(digits) - first
        self.words = _packed(digits)
        self.flipped = ~_reversed(self.words)
        # The first base of all has nothing before it.
        self.bases = place[max(first, 1) :]
        self.skipped = self.count - len(self.bases)
        low = max(0, first - 1 - _FOLLOW)
        self.ends = place[low:]
        self.rows: tuple[list[_Copies], list[_Copies]] = ([], [])
        for length in _SEEDS:
            same, opposite = _previous(self.words, depth >= length, length, low)
            # e - e' of a copy that ends at e', and e + t - length + 1 of one that is read backwards from the end t of a word.
            diagonals = (
                np.where(same >= 0, self.ends - same, -1),
                np.where(opposite >= 0, self.ends + opposite - length + 1, -1),
            )
            if length == _FOLLOWED:
                self.seeds = diagonals
            for strand, rows in enumerate(self.rows):
                rows.append(self._copies(strand, diagonals[strand][self.bases - 1 - low]))

    def best(self, strand: int, context: int, *, grows: bool) -> _Copies:
        """The copies of one strand with the highest scores.

        Args:
            strand: 0 for the same, 1 for the opposite one.
            context: how far back each base may read.
            grows: only the first base may; the others read from where that does.
        """
        limit = context + (np.arange(self.count) if grows else 0)
        # A match is followed as long as it lies in the context of the base that is said.
        diagonal = self.seeds[strand]
        begin = self.ends - _FOLLOWED + 1 - diagonal if strand == 0 else diagonal - self.ends
        if grows:
            seen = begin >= self.bases[0] - self.skipped - context
        else:
            seen = self.ends + 1 - begin + _FOLLOW <= context
        followed = _followed(np.where(seen, diagonal, -1))[self.bases - 1 - self.ends[0]]
        rows = [*self.rows[strand], self._copies(strand, followed)]
        scores = np.stack([np.where(row.reach <= limit, row.score, np.int16(-1)) for row in rows])
        best, pick = scores.argmax(0), np.arange(self.count)
        _, mismatches, run, said, reach, room = (np.stack(column)[best, pick] for column in zip(*rows, strict=True))
        run = np.minimum(run, limit - room).astype(np.int16)
        return _Copies(scores[best, pick], mismatches, run, said, reach, room)

    def _copies(self, strand: int, diagonal: Ints) -> _Copies:
        """Copies on the diagonal of each base, -1 where there is none."""
        words, flipped, ends = self.words, self.flipped, self.bases - 1
        if strand == 0:
            at = np.flatnonzero((diagonal > 0) & (ends - diagonal >= _JUDGED - 1))
            end, source = ends[at], ends[at] - diagonal[at]
            judged = _judged(lambda e, s, back: words[e - back] ^ words[np.maximum(s - back, 0)], end, source)
            said, room = self.digits[source + 1], diagonal[at]
            reach = room + _JUDGED
        else:
            # What is said is the complement of the source; the bases after that judge it, all of them read.
            source = diagonal - ends - 1
            at = np.flatnonzero((diagonal >= 0) & (source >= 0) & (source + _JUDGED <= ends))
            end, source = ends[at], source[at]
            judged = _judged(
                lambda e, s, back: np.where(
                    s + back + _JUDGED <= e, words[e - back] ^ flipped[np.minimum(s + back + _JUDGED, e)], _NONE
                ),
                end,
                source,
            )
            said, room, reach = 3 - self.digits[source], np.zeros_like(end), end + 1 - source
        mismatches, run = judged
        score = (_JUDGED - mismatches) * 2 + np.minimum(run, _JUDGED)
        rows: list[Any] = []
        kinds: tuple[Any, ...] = (np.int16, np.int16, np.int16, np.int8, np.int32, np.int32)
        for kind, part in zip(kinds, (score, mismatches, run, said, reach, room), strict=True):
            rows.append(np.full(self.count, -1, kind))
            rows[-1][at + self.skipped] = part
        return _Copies(*rows)


def _judged(
    compared: Callable[[Ints, Ints, int], NDArray[np.uint64]], ends: Ints, sources: Ints
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Mismatches among the last 32 bases of copies, and bases since the last one, at most 256.

    Args:
        compared: (ends, sources, back) -> words of the 32 bases that end so many further back; equal bases are 0.
    """
    one = np.uint64(1)

    def runs(words: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.int16]]:
        wrong = (words | (words >> one)) & np.uint64(0x5555555555555555)
        return wrong, (np.bitwise_count((wrong & (~wrong + one)) - one) // np.uint8(2)).astype(np.int16)

    wrong, run = runs(compared(ends, sources, 0))
    going = np.flatnonzero(run == _JUDGED)
    for back in range(_JUDGED, int(_RUNS[-1]), _JUDGED):
        going = going[ends[going] >= back]
        _, more = runs(compared(ends[going], sources[going], back))
        run[going] += more
        going = going[more == _JUDGED]
    return np.bitwise_count(wrong).astype(np.int16), run


def _followed(source: Ints) -> Ints:
    """The source of the last match, for some bases behind it."""
    place = np.arange(len(source))
    last = np.maximum.accumulate(np.where(source >= 0, place, -1))
    return np.where((last >= 0) & (place - last <= _FOLLOW), source[last], -1)


def _packed(digits: Ints) -> NDArray[np.uint64]:
    """The last 32 digits at each position, the last one lowest; zeros before the start."""
    words, span = digits.astype(np.uint64), 1
    while span < min(32, len(words)):
        longer = words.copy()
        longer[span:] |= words[:-span] << np.uint64(2 * span)
        words, span = longer, 2 * span
    return words


def _reversed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Words of 32 digits with their digits in the opposite order."""
    for shift, mask in ((2, 0x3333333333333333), (4, 0x0F0F0F0F0F0F0F0F)):
        kept = np.uint64(mask)
        words = ((words >> np.uint64(shift)) & kept) | ((words & kept) << np.uint64(shift))
    return words.byteswap()


def _previous(words: NDArray[np.uint64], whole: NDArray[np.bool_], length: int, low: int) -> tuple[Ints, Ints]:
    """For the words that end in [low, n): where the same one, and its reverse complement, ended last before.

    Words longer than 20 bases are told apart by 40 bits of a hash; copies are judged by their bases anyway.

    Args:
        words: of 32 digits.
        whole: which end with `length` known bases.
    """
    count = len(words)
    found = np.full(count - low, -1, np.int64), np.full(count - low, -1, np.int64)
    ends = np.flatnonzero(whole)
    own = words[ends] & np.uint64((1 << 2 * length) - 1)
    back = ~_reversed(words[ends]) >> np.uint64(64 - 2 * length)
    turned = own > back
    own = np.minimum(own, back)
    hashed = own * np.uint64(0x9E3779B97F4A7C15)
    if low > count // 4 and count > 1 << 16:
        # Only words that occur among the last ones matter.
        among = np.zeros(1 << 24, bool)
        among[hashed[np.searchsorted(ends, low) :] >> np.uint64(40)] = True
        kept = among[hashed >> np.uint64(40)]
        ends, own, hashed, turned = ends[kept], own[kept], hashed[kept], turned[kept]
    if 2 * length > 64 - _POSITION_BITS:
        own = hashed >> np.uint64(_POSITION_BITS)
    keys = (own << np.uint64(_POSITION_BITS)) | ends.astype(np.uint64)
    keys.sort()
    place = np.arange(len(keys))
    at = (keys & np.uint64((1 << _POSITION_BITS) - 1)).astype(np.int64)
    group = keys >> np.uint64(_POSITION_BITS)
    first = np.maximum.accumulate(np.where(np.append(True, group[1:] != group[:-1])[: len(group)], place, 0))
    side = np.zeros(count, bool)
    side[ends] = turned
    side = side[at]
    last = [np.maximum.accumulate(np.where(side == which, place, -1)) for which in (False, True)]
    last = [np.append(-1, rows)[: len(rows)] for rows in last]
    for target, rows in zip(found, (np.where(side, last[1], last[0]), np.where(side, last[0], last[1])), strict=True):
        good = (rows >= first) & (at >= low)
        target[at[good] - low] = at[rows[good]]
    return found


def _read(
    genome: GenomeLike, spans: Iterable[Span], context: int, progress: Progress | None = None
) -> Iterator[tuple[NDArray[np.uint8], int, NDArray[np.bool_]]]:
    """Tokens of stretches with their context, how many are context, and which of the others lie in the spans.

    Spans that are near each other are read together, so that their context is not read for each of them.
    """
    pieces = [
        Span(span.record, low, min(low + _CHUNK_BASES, span.end))
        for span in sorted(spans)
        for low in range(span.start, span.end, _CHUNK_BASES)
    ]
    done, total, at = 0, size_of(pieces), 0
    while at < len(pieces):
        record, start, _ = pieces[at]
        behind = at + 1
        while behind < len(pieces) and pieces[behind].record == record and pieces[behind].end <= start + _CHUNK_BASES:
            behind += 1
        together, at = pieces[at:behind], behind
        end = together[-1].end
        low, inside = max(0, start - context), np.zeros(end - start, bool)
        for piece in together:
            inside[piece.start - start : piece.end - start] = True
        yield genome.fetch(record, low, end), start - low, inside
        done += size_of(together)
        if progress is not None:
            progress(done, total)


def fit_copies(genome: GenomeLike, fitted: MarkovTable, valid: Iterable[Span], contexts: Sequence[int]) -> CopyModel:
    """The copy model on the chosen order of a Markov model.

    Args:
        genome: reader of token ids.
        fitted: the Markov model that copies are mixed with.
        valid: spans on which hits are counted.
        contexts: numbers of bases that may be read before each base.
    """
    model = CopyModel(fitted.baseline, fitted.order)
    model.choose(genome, valid, contexts)
    return model
