"""Markov baselines against counts done by hand and a brute-force oracle."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna import markov
from mamba_bio_audio.pipelines.dna.markov import MarkovBaseline, highest_order, markov_table
from mamba_bio_audio.pipelines.dna.words import DeepCounts
from mamba_bio_audio.pipelines.spans import Span

COMPLEMENT = str.maketrans("ACGTN", "TGCAN")
IDS = {"A": 7, "C": 8, "G": 9, "T": 10, "N": 11}


class FakeGenome:
    """Records in memory; remembers the bases that were read."""

    def __init__(self, **records: str) -> None:
        self.text = records
        self.records = {name: np.array([IDS[c] for c in text], np.uint8).reshape(-1) for name, text in records.items()}
        self.read: set[tuple[str, int]] = set()

    def fetch(self, record: str, start: int, end: int) -> np.ndarray:
        assert 0 <= start <= end <= len(self.records[record])
        self.read.update((record, i) for i in range(start, end))
        return self.records[record][start:end]


def random_text(seed: int, length: int, unknown: float = 0.0) -> str:
    rng = np.random.default_rng(seed)
    letters = np.array(list("ACGT"))[rng.choice(4, length, p=[0.4, 0.1, 0.2, 0.3])]
    letters[rng.random(length) < unknown] = "N"
    return "".join(letters)


def brute_counts(pieces: list[str], longest: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    for piece in pieces:
        for strand in (piece, piece[::-1].translate(COMPLEMENT)):
            for length in range(1, longest + 1):
                words = (strand[i : i + length] for i in range(len(strand) - length + 1))
                counts.update(word for word in words if "N" not in word)
    return counts


def brute_probability(counts: Counter[str], context: str, base: str, weight: float) -> float:
    """The module's formula, recursively, in Python floats."""
    lower = brute_probability(counts, context[1:], base, weight) if context else 0.25
    total = sum(counts[context + x] for x in "ACGT")
    return (counts[context + base] + weight * lower) / (total + weight)


def known_context(text: str, position: int, order: int) -> str:
    context = text[max(0, position - order) : position]
    return context[context.rfind("N") + 1 :]


def test_fit_hand_computed() -> None:
    # AACG and its reverse complement CGTT.
    baseline = MarkovBaseline.fit(FakeGenome(r="AACG"), [Span("r", 0, 4)], max_order=1)
    assert baseline.counts[0].tolist() == [[2, 2, 2, 2]]
    assert baseline.counts[1].tolist() == [[1, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1], [0, 0, 0, 1]]
    baseline.smoothing = 1.0
    # Order 0: (2 + 1/4) / (8 + 1) = 1/4. Order 1, G after C: (2 + 1/4) / (2 + 1).
    assert baseline.distribution([8], 1)[2] == pytest.approx(0.75, abs=1e-15)
    score = baseline.score(FakeGenome(r="AACG"), [Span("r", 3, 4)])
    assert score.count == 1
    np.testing.assert_allclose(score.nats, [math.log(4), -math.log(0.75)], rtol=1e-14)


@pytest.mark.parametrize("chunk", [5, 64, 1 << 21])
@pytest.mark.parametrize("unknown", [0.0, 0.1])
def test_fit_brute_force(monkeypatch: pytest.MonkeyPatch, chunk: int, unknown: float) -> None:
    """Every count of every order, over chunk borders, unknown bases and the ends of the spans."""
    monkeypatch.setattr(markov, "_CHUNK_BASES", chunk)
    genome = FakeGenome(a=random_text(1, 300, unknown), b=random_text(2, 90, unknown), c="A", d="N")
    spans = [
        Span("a", 20, 100),
        Span("a", 100, 150),
        Span("a", 140, 160),
        Span("a", 200, 203),
        Span("b", 0, 90),
        Span("c", 0, 1),
        Span("d", 0, 1),
    ]
    baseline = MarkovBaseline.fit(genome, spans, max_order=5)
    pieces = [genome.text["a"][20:160], genome.text["a"][200:203], genome.text["b"], "A", "N"]
    expected = brute_counts(pieces, 6)
    for order, counts in enumerate(baseline.counts):
        words = [""]
        for _ in range(order + 1):
            words = [word + x for word in words for x in "ACGT"]
        assert counts.reshape(-1).tolist() == [expected[word] for word in words]
    inside = {("a", i) for i in (*range(20, 160), *range(200, 203))} | {("b", i) for i in range(90)}
    assert genome.read <= inside | {("c", 0), ("d", 0)}


@pytest.mark.parametrize("chunk", [7, 1 << 21])
@pytest.mark.parametrize("unknown", [0.0, 0.1])
def test_score_brute_force(monkeypatch: pytest.MonkeyPatch, chunk: int, unknown: float) -> None:
    """Per-base nats and their sums: true left neighbours outside the span, fallback, excluded positions."""
    monkeypatch.setattr(markov, "_CHUNK_BASES", chunk)
    text = random_text(3, 200, unknown)
    genome = FakeGenome(r=text, short="ACG")
    baseline = MarkovBaseline.fit(genome, [Span("r", 0, 100)], max_order=4)
    baseline.smoothing = 3.0
    counts = brute_counts([text[:100]], 5)
    spans = [Span("r", 120, 160), Span("r", 0, 30), Span("short", 0, 3)]
    score = baseline.score(genome, spans)
    positions = [("r", i) for i in (*range(30), *range(120, 160))] + [("short", i) for i in range(3)]
    scored = [(r, i) for r, i in positions if i > 0 and genome.text[r][i] != "N"]
    assert score.count == len(scored)
    for order in range(5):
        expected = {
            (r, i): -math.log(
                brute_probability(counts, known_context(genome.text[r], i, order), genome.text[r][i], 3.0)
            )
            for r, i in scored
        }
        assert score.nats[order] == pytest.approx(sum(expected.values()), rel=1e-12)
        found = {(r, i): baseline.score(genome, [Span(r, i, i + 1)]).nats[order] for r, i in scored}
        assert found == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(score.perplexity, np.exp(score.nats / score.count))


@pytest.mark.parametrize("order", [0, 1, 3, 6])
def test_distribution_sums_to_one(order: int) -> None:
    genome = FakeGenome(r=random_text(4, 400, 0.02))
    baseline = MarkovBaseline.fit(genome, [Span("r", 0, 400)], max_order=6)
    rng = np.random.default_rng(0)
    for _ in range(50):
        context = rng.integers(7, 12, 6).tolist()
        p = baseline.distribution(context, order)
        assert (p > 0).all()
        assert p.sum() == pytest.approx(1, abs=1e-14)


def test_distribution_ignores_bases_beyond_order_and_unknown() -> None:
    baseline = MarkovBaseline.fit(FakeGenome(r=random_text(5, 500)), [Span("r", 0, 500)], max_order=3)
    near = baseline.distribution([8, 9], 2)
    assert np.array_equal(baseline.distribution([10, 8, 9], 2), near)
    assert not np.array_equal(baseline.distribution([10, 8, 9], 3), near)
    # An unknown base cuts the context short.
    assert np.array_equal(baseline.distribution([10, 11, 8, 9], 3), near)


def test_fit_strand_symmetric() -> None:
    text = random_text(6, 300, 0.05)
    back = text[::-1].translate(COMPLEMENT)
    one = MarkovBaseline.fit(FakeGenome(r=text), [Span("r", 10, 290)], max_order=4)
    other = MarkovBaseline.fit(FakeGenome(r=back), [Span("r", 10, 290)], max_order=4)
    for mine, theirs in zip(one.counts, other.counts, strict=True):
        assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("order", [12, 15, 16, 24])
def test_the_highest_orders(order: int) -> None:
    """Words of 26, 32, 34 and 50 bits; contexts that fill 32 bits to the last."""
    text = random_text(7, 60) + "T" * 20
    genome = FakeGenome(r=text + text)
    baseline = MarkovBaseline.fit(genome, [Span("r", 0, 80)], max_order=order)
    counts = brute_counts([text], order + 1)
    deep = baseline.counts[order]
    assert isinstance(deep, DeepCounts)
    assert deep.sums[-1].sum() == 2 * (80 - order)
    assert (np.diff(deep.contexts.astype(np.int64)) > 0).all()
    score = baseline.score(genome, [Span("r", 100, 160)])
    for k in range(order + 1):
        nats = [
            -math.log(brute_probability(counts, (text + text)[i - k : i], (text + text)[i], baseline.smoothing))
            for i in range(100, 160)
        ]
        assert score.nats[k] == pytest.approx(sum(nats), rel=1e-12)


def test_orders_end_where_sorting_would_take_too_much_memory() -> None:
    assert [highest_order(bases) for bases in (0, 42_000_000, 1 << 27, (1 << 27) + 1)] == [16, 16, 16, 12]


def test_choose_reads_validation_only_and_takes_the_best() -> None:
    rng = np.random.default_rng(8)
    # Order 2: each base is fixed by the two before it, with noise.
    rule = rng.integers(0, 4, (4, 4))
    digits = [0, 1]
    for _ in range(20_000):
        digits.append(int(rule[digits[-2], digits[-1]]) if rng.random() < 0.6 else int(rng.integers(4)))
    text = "".join("ACGT"[d] for d in digits)
    genome = FakeGenome(r=text)
    baseline = MarkovBaseline.fit(genome, [Span("r", 0, 10_000)], max_order=6)
    genome.read.clear()
    order = baseline.choose(genome, [Span("r", 12_000, 14_000)])
    assert min(i for _, i in genome.read) >= 12_000 - 6
    assert max(i for _, i in genome.read) < 14_000
    score = baseline.score(genome, [Span("r", 12_000, 14_000)])
    assert order == baseline.order == int(np.argmin(score.nats))
    assert order >= 2
    # Both strands share one table, so the rule is diluted, but far from lost.
    assert score.perplexity[order] < 0.95 * score.perplexity[1]
    # No weight of the grid does better.
    for weight in markov.SMOOTHING_GRID:
        baseline.smoothing = weight
        assert baseline.score(genome, [Span("r", 12_000, 14_000)]).nats.min() >= score.nats.min() - 1e-9


def test_choose_thins_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smoothing found on a part of the bases is that of exactly those bases."""
    text = random_text(9, 3000)
    genome = FakeGenome(r=text)
    monkeypatch.setattr(markov, "_CHOICE_BASES", 500)
    baseline = MarkovBaseline.fit(genome, [Span("r", 0, 1000)], max_order=4)
    baseline.choose(genome, [Span("r", 1000, 3000)])
    best = {}
    for weight in markov.SMOOTHING_GRID:
        baseline.smoothing, kept = weight, baseline.smoothing
        best[weight] = baseline.score(genome, [Span("r", i, i + 1) for i in range(1000, 3000, 4)]).nats.min()
        baseline.smoothing = kept
    assert baseline.smoothing == min(best, key=lambda w: best[w])


def test_choose_without_validation() -> None:
    genome = FakeGenome(r="ACGT", n="NNNN")
    baseline = MarkovBaseline.fit(genome, [Span("r", 0, 4)], max_order=2)
    for spans in ([], [Span("r", 0, 1)], [Span("n", 0, 4)]):
        with pytest.raises(InputError, match="validation"):
            baseline.choose(genome, spans)


def test_orders_up_to_sixteen_are_fitted_where_none_is_named() -> None:
    assert MarkovBaseline.fit(FakeGenome(r="ACGT"), [Span("r", 0, 4)]).max_order == 16


def test_fit_bad_order() -> None:
    with pytest.raises(InputError, match="max_order is 25"):
        MarkovBaseline.fit(FakeGenome(r="ACGT"), [Span("r", 0, 4)], max_order=25)


def test_untrained_is_uniform() -> None:
    genome = FakeGenome(r=random_text(10, 50))
    score = MarkovBaseline.fit(genome, [], max_order=3).score(genome, [Span("r", 0, 50)])
    np.testing.assert_allclose(score.perplexity, 4, rtol=1e-14)
    assert score.count == 49


def test_markov_table_test_split_changes_nothing() -> None:
    genome = FakeGenome(r=random_text(11, 2000), other=random_text(12, 300)[::-1])
    train, valid = [Span("r", 0, 1500)], [Span("r", 1500, 1800)]
    one = markov_table(genome, train, valid, [Span("r", 1800, 2000)], max_order=4)
    other = markov_table(genome, train, valid, [Span("other", 0, 300)], max_order=4)
    assert (one.order, one.smoothing) == (other.order, other.smoothing)
    assert np.array_equal(one.valid.nats, other.valid.nats)
    assert one.test.count == 200
    assert other.test.count == 299
    as_dict = one.to_dict()
    assert [row["order"] for row in as_dict["orders"]] == [0, 1, 2, 3, 4]
    row = as_dict["orders"][one.order]
    assert row["test_perplexity"] == pytest.approx(math.exp(one.test.nats[one.order] / 200))
    assert row["valid_perplexity"] == min(r["valid_perplexity"] for r in as_dict["orders"])


@pytest.mark.parametrize("unknown", [0.0, 0.1])
def test_counts_of_few_bases_are_sparse_and_the_same(monkeypatch: pytest.MonkeyPatch, unknown: float) -> None:
    """Cells follow the bases, not 4^13, and every score is that of whole tables."""
    genome = FakeGenome(a=random_text(1, 3000, unknown), b=random_text(2, 700, unknown), c="A", d="N")
    train = [
        Span("a", 20, 1000),
        Span("a", 1200, 2000),
        Span("b", 0, 7),
        Span("b", 100, 130),
        Span("c", 0, 1),
        Span("d", 0, 1),
    ]
    valid, test = [Span("a", 2000, 2500)], [Span("a", 2500, 3000), Span("b", 200, 700), Span("c", 0, 1)]
    sparse = markov_table(genome, train, valid, test, max_order=8)
    few = MarkovBaseline.fit(genome, train, max_order=12)
    tables = [counts.size for counts in few.counts if not isinstance(counts, DeepCounts)]
    assert sum(tables) < 300 * sum(end - start for _, start, end in train)
    assert isinstance(few.counts[12], DeepCounts)
    monkeypatch.setattr(markov, "_CELLS_PER_BASE", 1 << 20)
    dense = markov_table(genome, train, valid, test, max_order=8)
    assert not any(isinstance(counts, DeepCounts) for counts in MarkovBaseline.fit(genome, train, max_order=8).counts)
    assert (sparse.order, sparse.smoothing) == (dense.order, dense.smoothing)
    assert np.array_equal(sparse.test.nats, dense.test.nats)
    assert np.array_equal(sparse.valid.nats, dense.valid.nats)
    # Beyond the longest table one list serves every order: none may lose a word.
    monkeypatch.setattr(markov, "_CELLS_PER_BASE", 0)
    lists = MarkovBaseline.fit(genome, train, max_order=8)
    assert [isinstance(counts, DeepCounts) for counts in lists.counts] == [False] * 6 + [True] * 3
    for order, (counts, whole) in enumerate(zip(lists.counts, brute_tables(genome, train, 8), strict=True)):
        if isinstance(counts, DeepCounts):
            counts = counts.rows(np.arange(4**order), order)
        assert np.array_equal(counts, whole)


def brute_tables(genome: FakeGenome, spans: list[tuple[str, int, int]], max_order: int) -> list[np.ndarray]:
    counts = brute_counts([genome.text[record][start:end] for record, start, end in spans], max_order + 1)
    tables = [np.zeros((4**order, 4), np.int64) for order in range(max_order + 1)]
    for word, number in counts.items():
        context, base = word[:-1], word[-1]
        at = int("".join(str("ACGT".index(x)) for x in context) or "0", 4)
        tables[len(context)][at, "ACGT".index(base)] = number
    return tables


@pytest.mark.parametrize("chunk", [40, 1 << 21])
def test_progress_goes_on_within_records(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Over fitting, choosing (validation is read twice) and scoring, in pieces of a long record."""
    monkeypatch.setattr(markov, "_CHUNK_BASES", chunk)
    genome = FakeGenome(r=random_text(13, 1000))
    seen: list[tuple[int, int]] = []
    spans = [Span("r", 0, 400)], [Span("r", 400, 500), Span("r", 600, 620)], [Span("r", 800, 1000)]
    markov_table(genome, *spans, max_order=2, progress=lambda done, total: seen.append((done, total)))
    total = 400 + 2 * 120 + 200
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert {total for _, total in seen} == {total}
    assert len(seen) == (4 if chunk > 40 else 10 + 2 * 3 + 5)


@pytest.mark.parametrize("order", [0, 1, 3, 9])
def test_distributions_are_those_of_every_position(order: int) -> None:
    genome = FakeGenome(train=random_text(1, 400), test=random_text(2, 60, unknown=0.1))
    baseline = MarkovBaseline.fit(genome, [Span("train", 0, 400)], 9)
    tokens = genome.records["test"]
    rows = baseline.distributions(tokens, order)
    for at in range(len(tokens)):
        np.testing.assert_allclose(rows[at], baseline.distribution(tokens[:at], order), rtol=1e-12)


@pytest.mark.parametrize("chunk", [7, 1 << 21])
def test_log_likelihoods_of_bases_sum_to_the_score(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(markov, "_CHUNK_BASES", chunk)
    genome = FakeGenome(train=random_text(1, 400), test=random_text(2, 60, unknown=0.1))
    baseline = MarkovBaseline.fit(genome, [Span("train", 0, 400)], 3)
    scored = baseline.score(genome, [Span("test", 0, 60)])
    for order in range(4):
        track = baseline.log_likelihoods(genome.records["test"], order)
        assert np.isnan(track[0])
        assert np.isfinite(track).sum() == scored.count
        assert -np.nansum(track) == pytest.approx(scored.nats[order], rel=1e-12)
        for at in np.flatnonzero(np.isfinite(track)):
            p = baseline.distribution(genome.records["test"][:at], order)
            assert track[at] == pytest.approx(math.log(p[genome.records["test"][at] - 7]), rel=1e-12)
