"""The copy model against a plain search for the best copy, and against what it promises."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

from mamba_bio_audio.pipelines.dna import copies
from mamba_bio_audio.pipelines.dna.copies import CopyModel, fit_copies
from mamba_bio_audio.pipelines.dna.markov import MarkovBaseline, markov_table
from mamba_bio_audio.pipelines.spans import Span


class Records:
    """Records in memory, ids."""

    def __init__(self, **records: np.ndarray) -> None:
        self.records = records

    def fetch(self, record: str, start: int, end: int) -> np.ndarray:
        assert 0 <= start <= end <= len(self.records[record])
        return self.records[record][start:end]


def random_ids(seed: int, length: int, unknown: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ids = rng.integers(7, 11, length).astype(np.uint8)
    ids[rng.random(length) < unknown] = 11
    return ids


def reverse_complement(ids: np.ndarray) -> np.ndarray:
    return (17 - ids[::-1]).astype(np.uint8)


def mutated(ids: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    changed = rng.random(len(ids)) < share
    return np.where(changed, (ids - 7 + rng.integers(1, 4, len(ids))) % 4 + 7, ids).astype(np.uint8)


def repetitive(seed: int, length: int, unknown: float = 0.0) -> np.ndarray:
    """Pieces that come again soon and far, on both strands, with substitutions."""
    rng = np.random.default_rng(seed)
    ids = random_ids(seed, length, unknown)
    for _ in range(length // 150):
        size = int(rng.integers(20, 120))
        source, target = rng.integers(0, length - size, 2)
        piece = mutated(ids[source : source + size], 0.05, int(rng.integers(1000)))
        known = piece < 11
        piece[known] = (reverse_complement(piece) if rng.random() < 0.5 else piece)[known]
        ids[target : target + size] = np.minimum(piece, 11)
    ids[ids < 7] = 11
    return ids


def model(ids: np.ndarray, contexts: list[int], order: int = 2) -> CopyModel:
    """Markov model and shares of hits of the first half."""
    genome, half = Records(r=ids), [Span("r", 0, len(ids) // 2)]
    markov = MarkovBaseline.fit(genome, half, order)
    found = CopyModel(markov, order)
    found.choose(genome, half, contexts)
    return found


def plain_best(ids: np.ndarray, i: int, limit: int, strand: int) -> tuple[int, int, int, int] | None:
    """Score, mismatches, run and base said for base i, searched for base by base."""

    def partner(diagonal: int, at: int) -> int:
        return diagonal - at if strand else at - diagonal

    def said(at: int) -> int:
        digit = int(ids[at]) - 7 if ids[at] < 11 else 0
        return 3 - digit if strand else digit

    def own(at: int) -> int:
        return int(ids[at]) - 7 if ids[at] < 11 else 0

    def source(end: int, length: int) -> int | None:
        """Diagonal of the latest match of the `length` bases that end at `end`."""
        if end - length + 1 < 0 or (ids[end - length + 1 : end + 1] == 11).any():
            return None
        word = ids[end - length + 1 : end + 1]
        wanted = reverse_complement(word) if strand else word
        begin = ids[:end].tobytes().rfind(wanted.tobytes())
        if begin < 0:
            return None
        return end + begin if strand else end - (begin + length - 1)

    e, best = i - 1, None
    diagonals = [source(e, length) for length in copies._SEEDS]
    for end in range(e, max(-1, e - copies._FOLLOW - 1), -1):
        if (diagonal := source(end, copies._FOLLOWED)) is not None:
            begin = diagonal - end if strand else end - copies._FOLLOWED + 1 - diagonal
            if end + 1 - begin + copies._FOLLOW <= limit:
                diagonals.append(diagonal)
                break
    for diagonal in diagonals:
        if diagonal is None:
            continue
        # Pairs of own base and what the copy says for it, backwards from e.
        where = partial(partner, diagonal)
        if strand:
            if where(i) < 0 or where(i) + 32 > e:
                continue
            reach, room = i - where(i), 0
        else:
            if diagonal <= 0 or e - diagonal < 31:
                continue
            reach, room = diagonal + 32, diagonal
        if reach > limit:
            continue
        pairs = []
        for back in range(256):
            at = e - back
            # Whole groups of 32 are compared, and what lies before the record reads as A.
            group = e - back // 32 * 32
            if group < 0 or (strand and where(group) + 31 > e):
                break
            pairs.append((own(at) if at >= 0 else 0) == (said(where(at)) if where(at) >= 0 else 0))
        mismatches = 32 - sum(pairs[:32])
        run = next((n for n, same in enumerate(pairs) if not same), len(pairs))
        score = 2 * (32 - mismatches) + min(run, 32)
        if best is None or score > best[0]:
            best = (score, mismatches, min(run, limit - room), said(where(i)))
    return best


@pytest.mark.parametrize("unknown", [0.0, 0.01])
def test_the_best_copy_is_that_of_a_plain_search(unknown: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "_FOLLOW", 40)
    ids = repetitive(1, 700, unknown)
    digits = ids.astype(np.int64) - 7
    known = digits < 4
    digits[~known] = 0
    seen = 0
    for first, limits in ((0, (200, 100_000)), (1, (300,)), (400, (200, 100_000))):
        for limit in limits:
            stretch = copies._Stretch(digits, known, first)
            for strand in (0, 1):
                found = stretch.best(strand, limit, grows=False)
                for i in range(first, len(ids)):
                    own = tuple(int(row[i - first]) for row in found[:4])
                    expected = plain_best(ids, i, limit, strand) if i else None
                    assert own == expected if expected else own[0] == -1, (first, limit, strand, i)
                    seen += expected is not None
    assert seen > 500


@pytest.mark.parametrize("strand", ["same", "opposite"])
def test_a_planted_copy_is_found_within_reach(strand: str) -> None:
    """Nothing but chance elsewhere: 256 bases come again after 3,000, and the context decides."""
    ids = random_ids(2, 40_000)
    for start in (1_000, 22_000):
        piece = ids[start : start + 256]
        ids[start + 3_000 : start + 3_256] = reverse_complement(piece) if strand == "opposite" else piece
    found = model(ids, [2_048, 4_096]).nats(ids, 0)
    inside = slice(25_000 + 32, 25_256)
    assert found[4_096][inside].mean() < 0.4
    assert found[2_048][inside].mean() == pytest.approx(math.log(4), abs=0.05)
    outside = np.r_[20_000:25_000, 25_300:40_000]
    assert found[4_096][outside].mean() == pytest.approx(math.log(4), abs=0.02)


def test_a_copy_is_followed_across_substitutions() -> None:
    ids = random_ids(3, 60_000)
    for start in range(1_000, 60_000, 4_000):
        ids[start + 2_000 : start + 2_400] = mutated(ids[start : start + 400], 0.1, start)
    copied = model(ids, [4_096])
    inside = np.concatenate([np.arange(at + 2_050, at + 2_400) for at in range(33_000, 60_000, 4_000)])
    # Nine of ten bases are right: 0.44 nats at best.
    assert copied.nats(ids, 0)[4_096][inside].mean() < 0.75


def test_no_later_base_and_none_beyond_the_context_matters() -> None:
    ids = repetitive(4, 6_000)
    copied = model(ids, [100, 700])
    found = copied.nats(ids, 0)
    i = 3_500
    later = ids.copy()
    later[i + 1 :] = random_ids(5, len(ids) - i - 1)
    other = copied.nats(later, 0)
    for context in found:
        assert np.array_equal(found[context][: i + 1], other[context][: i + 1], equal_nan=True)
    changed = 0
    for i in range(2_000, 6_000, 97):
        for context in found:
            earlier = ids.copy()
            earlier[: i - context] = random_ids(i, i - context)
            assert copied.nats(earlier, i)[context][0] == found[context][i]
            changed += copied.nats(earlier, i)[700][0] != found[700][i]
    assert changed  # bases beyond 100 do matter to 700


def test_pieces_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = repetitive(6, 5_000, 0.002)
    copied = model(ids, [64, 900])
    genome, spans = (
        Records(r=ids),
        [Span("r", 10, 400), Span("r", 2_000, 4_321), Span("r", 4_400, 5_000), Span("r", 0, 5)],
    )
    whole = copied.nats(ids, 0)
    inside = np.r_[0:5, 10:400, 2_000:4_321, 4_400:5_000]
    expected = {context: np.nansum(nats[inside]) for context, nats in whole.items()}
    for chunk in (50, 700, 1 << 22):
        monkeypatch.setattr(copies, "_CHUNK_BASES", chunk)
        assert copied.score(genome, spans) == pytest.approx(expected, rel=1e-9)
    seen: list[tuple[int, int]] = []
    copied.score(genome, spans, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3_316, 3_316)
    for first in (1, 300, 3_000):
        for context, nats in copied.nats(ids, first).items():
            np.testing.assert_allclose(nats, whole[context][first:], rtol=1e-12)


def test_a_block_reads_its_context_and_what_comes_before_within_it() -> None:
    ids = repetitive(7, 4_000)
    copied = model(ids, [128, 1_024])
    start, size = 3_000, 200
    found = copied.nats_of_block(ids[start - 1_024 : start + size], size, [128, 1_024])
    for context, nats in found.items():
        # The window itself cannot read further.
        copied.counts = {1 << 19: copied.counts[context]} | copied.counts
        window = ids[start - context : start + size]
        np.testing.assert_allclose(nats, copied.nats(window, context)[1 << 19], rtol=1e-12)


def test_probabilities_of_four_bases_sum_to_one_and_the_unknown_are_not_scored() -> None:
    ids = repetitive(8, 3_000, 0.01)
    copied = model(ids, [50, 2_000])
    assert np.array_equal(np.isnan(copied.nats(ids, 0)[50]), np.append(True, ids[1:] == 11))
    for i in (0, 1, 40, *range(500, 3_000, 83)):
        for context in (50, 2_000):
            total = 0.0
            for base in range(7, 11):
                ids[i] = base
                nats = copied.nats(ids[: i + 1], max(0, i - 1))[context]
                total += 0.25 if i == 0 else math.exp(-nats[-1])
            assert total == pytest.approx(1, abs=1e-9)


def test_without_copies_it_is_the_markov_model() -> None:
    """The same bases, and where nothing repeats the same nats, as `MarkovBaseline.score`."""
    ids = random_ids(9, 8_000, 0.01)
    genome, spans = Records(r=ids), [[Span("r", *ends)] for ends in ((0, 4_000), (4_000, 6_000), (6_000, 8_000))]
    fitted = markov_table(genome, *spans, max_order=3)
    found = fit_copies(genome, fitted, spans[1], [16]).score(genome, spans[2])
    # Within 16 bases there is no copy of 12 that 32 others could judge.
    assert found[16] == pytest.approx(fitted.test.nats[fitted.order], rel=1e-12)


def test_hits_are_counted_on_a_part_of_many_bases(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = random_ids(10, 50_000)
    genome = Records(r=ids)
    copied = CopyModel(MarkovBaseline.fit(genome, [Span("r", 0, 1_000)], 1), 1)
    read = []
    monkeypatch.setattr(copies, "_CHOICE_BASES", 4_000)
    monkeypatch.setattr(copies, "_read", lambda genome, spans, context: read.extend(spans) or iter(()))
    copied.choose(genome, [Span("r", 0, 50_000)], [64])
    assert sum(map(len, read)) == 4_000
    # Evenly spread: the middles of as many parts.
    assert [span.start for span in read] == [6_000, 18_000, 31_000, 43_000]
