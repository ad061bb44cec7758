import itertools

import numpy as np
import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna import kmers
from mamba_bio_audio.pipelines.dna.kmers import fit_kmers, fit_values, kmer_frequencies
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer

CODEC = DnaTokenizer()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_frequencies_against_counting_text(k) -> None:
    text = "ACGTTGCANNACCGATTACA"

    def opposite(word: str) -> str:
        return CODEC.decode(CODEC.reverse_complement(CODEC.encode(word)))

    words = ["".join(word) for word in itertools.product("ACGT", repeat=k)]
    canonical = [word for word in words if word <= opposite(word)]
    counts = dict.fromkeys(canonical, 0)
    for at in range(len(text) - k + 1):
        word = text[at : at + k]
        if "N" not in word:
            counts[min(word, opposite(word))] += 1
    found = kmer_frequencies([CODEC.encode(text), CODEC.encode(opposite(text))], k)
    assert found.shape == (2, {1: 2, 2: 10, 3: 32}[k])
    assert np.array_equal(found[0], found[1])
    assert found[0] == pytest.approx(np.array(list(counts.values())) / sum(counts.values()))


def test_short_and_unknown_sequences() -> None:
    found = kmer_frequencies([CODEC.encode("AC"), CODEC.encode("NNNNN")], 3)
    assert not found.any()


def test_sparse_frequencies_equal_dense_ones(monkeypatch) -> None:
    rows = [CODEC.encode(text) for text in ("ACGTTGCANNACCGATTACA", "AC", "NNNNN", "TTTTTTTTT")]
    dense = kmer_frequencies(rows, 3)
    monkeypatch.setattr(kmers, "DENSE_K", 2)
    sparse = kmer_frequencies(rows, 3)
    assert sparse.shape == dense.shape
    assert np.array_equal(sparse.toarray(), dense)


def draw(random: np.random.Generator, count: int, weights: list[float], length: int = 200) -> list[np.ndarray]:
    return [random.choice([7, 8, 9, 10], length, p=weights).astype(np.uint8) for _ in range(count)]


def test_baseline_learns_and_chooses_on_validation_loss() -> None:
    random = np.random.default_rng(0)
    rows = draw(random, 120, [0.28, 0.22, 0.22, 0.28]) + draw(random, 120, [0.22, 0.28, 0.28, 0.22])
    labels = np.repeat([0, 1], 120)
    order = random.permutation(240)
    train, valid = order[:160], order[160:]
    fitted = fit_kmers([rows[i] for i in train], labels[train], [rows[i] for i in valid], labels[valid], 2)
    best = min(fitted.table, key=lambda row: row["valid_nats"])
    assert (best["k"], best["strength"]) == (fitted.k, fitted.strength)
    assert best["valid_accuracy"] > 0.9
    # Composition is all there is, so single bases decide it, and the search ends with the words that are always tried.
    assert {row["k"] for row in fitted.table} == {*range(1, 9)}
    assert (fitted.k, fitted.left_out, fitted.edges) == (1, [], [])
    p = fitted.probabilities([rows[0], CODEC.reverse_complement(rows[0])])
    assert p.shape == (2, 2)
    assert np.allclose(p[0], p[1])
    with pytest.raises(InputError, match="class number 2"):
        fit_kmers(rows, labels, rows, labels, 3, sizes=(3,))


def test_words_of_eight_are_found_where_no_shorter_one_tells() -> None:
    """Both classes hold the same flanks around one core of six bases, and only what stands left and right at once differs."""
    random = np.random.default_rng(1)
    pairs = [("ATGCCAGTAT", "CTGCCAGTCT"), ("ATGCCAGTCT", "CTGCCAGTAT")]
    rows, labels = draw(random, 400, [0.25] * 4, 60), np.arange(400) % 2
    for row, label in zip(rows, labels, strict=True):
        for at, word in zip((5, 40), random.permutation(pairs[label]), strict=True):
            row[at : at + 10] = CODEC.encode(str(word))
    fitted = fit_kmers(rows[:300], labels[:300], rows[300:], labels[300:], 2, sizes=range(6, 10))
    assert fitted.k >= 8
    assert min(row["valid_nats"] for row in fitted.table if row["k"] < 8) > 0.6
    assert (fitted.probabilities(rows[300:]).argmax(1) == labels[300:]).mean() > 0.85


def test_edges_of_the_grid_and_words_left_out_are_told(monkeypatch) -> None:
    random = np.random.default_rng(1)
    rows = draw(random, 60, [0.4, 0.1, 0.1, 0.4]) + draw(random, 60, [0.1, 0.4, 0.4, 0.1])
    labels = np.repeat([0, 1], 60)
    half = slice(None, None, 2)
    fitted = fit_kmers(rows, labels, rows[half], labels[half], 2, sizes=(1, 4), most_work=60)
    assert fitted.left_out == [4]
    assert fitted.edges[0] == "k = 1 is the largest tried"
    # Without an end to the gain, the weakest penalty is the best.
    monkeypatch.setattr(kmers, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(kmers, "LAST_STEP", kmers.START_STEP + 1)
    fitted = fit_kmers(rows, labels, rows[half], labels[half], 2, sizes=(1,))
    assert fitted.edges[1] == "the penalty 1/0.00316 is the last tried"


def test_a_k_is_tuned_alike_whatever_was_tried_before() -> None:
    """Searches that began where the last one ended got stuck at weak penalties: 4-mers need a stronger one than 1-mers."""
    random = np.random.default_rng(2)
    rows = draw(random, 100, [0.3, 0.2, 0.2, 0.3]) + draw(random, 100, [0.25] * 4)
    labels = np.repeat([0, 1], 100)
    half = slice(None, None, 2), slice(1, None, 2)
    arguments = rows[half[0]], labels[half[0]], rows[half[1]], labels[half[1]], 2
    together = fit_kmers(*arguments, sizes=(1, 4)).table
    assert [row for row in together if row["k"] == 4] == fit_kmers(*arguments, sizes=(4,)).table


def test_one_strand_tells_a_sequence_from_its_reverse_complement() -> None:
    rows = [CODEC.encode(text) for text in ("AAACA", "TGTTT")]
    together, apart = (kmer_frequencies(rows, 3, both_strands=both) for both in (True, False))
    assert np.array_equal(together[0], together[1])
    assert apart.shape == (2, 64)
    assert np.flatnonzero(apart[0]).tolist() == [0, 1, 4]  # AAA, AAC, ACA
    random = np.random.default_rng(1)
    rows = draw(random, 100, [0.4, 0.1, 0.25, 0.25])
    rows += [CODEC.reverse_complement(row) for row in draw(random, 100, [0.4, 0.1, 0.25, 0.25])]
    labels = np.repeat([0, 1], 100)
    fits = [
        fit_kmers(rows[::2], labels[::2], rows[1::2], labels[1::2], 2, sizes=(1, 2), both_strands=b)
        for b in (True, False)
    ]
    right = [(fit.probabilities(rows[1::2]).argmax(1) == labels[1::2]).mean() for fit in fits]
    assert right[0] < 0.75 < 0.95 < right[1]


def of_gc(shares: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
    return [
        random.choice([7, 8, 9, 10], 60, p=[(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2]).astype(np.uint8)
        for gc in shares
    ]


def test_numbers_are_fitted_one_by_one() -> None:
    random = np.random.default_rng(0)
    rows = of_gc(random.uniform(0.2, 0.8, 240), random)
    strong = np.array([np.isin(ids, (8, 9)).mean() for ids in rows])
    # The share itself, noise, one that is known of some, and one that never changes.
    y = np.stack([100 * strong + 7, random.normal(size=240), np.where(np.arange(240) % 3, -strong, np.nan)], 1)
    y = np.concatenate([y, np.full((240, 1), 5.0)], 1)
    fitted = fit_values(rows[:160], y[:160], rows[160:200], y[160:200], numbers=True, sizes=(1, 2, 3))
    found = fitted.values(rows[200:])
    assert found.shape == (40, 4)
    assert np.abs(found[:, 0] - y[200:, 0]).max() < 1
    assert np.abs(found[:, 2] + strong[200:]).max() < 0.02
    # What cannot be told is not told: a strong penalty leaves nearly the mean.
    assert found[:, 1].std() < 0.3
    assert (found[:, 3] == 5).all()
    assert fitted.strengths[3] is None
    # The models do not change what the next one reads.
    assert np.array_equal(found, fitted.values(rows[200:]))
    assert [row["k"] for row in fitted.table] == [1, 2, 3]
    assert fitted.k == min(fitted.table, key=lambda row: row["valid_loss"])["k"]


def test_labels_have_probabilities_of_their_own() -> None:
    random = np.random.default_rng(1)
    y = random.integers(0, 2, (300, 2)).astype(np.float64)
    rows = of_gc(0.3 + 0.4 * y[:, 0], random)
    # The second label is a word; the first is not known of every fourth sequence.
    word = np.array([7, 7, 10, 10, 7, 10], np.uint8)
    for ids, there in zip(rows, y[:, 1], strict=True):
        if there:
            ids[10:16], ids[40:46] = word, word
    y[::4, 0] = np.nan
    fitted = fit_values(rows[:200], y[:200], rows[200:250], y[200:250], numbers=False, sizes=(1, 2, 3, 4))
    p = fitted.values(rows[250:])
    known = ~np.isnan(y[250:, 0])
    assert ((p[known, 0] > 0.5) == (y[250:, 0][known] > 0.5)).mean() > 0.85
    assert ((p[:, 1] > 0.5) == (y[250:, 1] > 0.5)).mean() > 0.85
    assert fitted.k >= 3
