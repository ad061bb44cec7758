import itertools

import numpy as np
import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.evaluation.kmers import fit_kmers, kmer_frequencies
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


def test_baseline_learns_and_chooses_on_validation() -> None:
    random = np.random.default_rng(0)

    def draw(count: int, weights: list[float]) -> list[np.ndarray]:
        return [random.choice([7, 8, 9, 10], 200, p=weights).astype(np.uint8) for _ in range(count)]

    rows = draw(120, [0.3, 0.2, 0.2, 0.3]) + draw(120, [0.2, 0.3, 0.3, 0.2])
    labels = np.repeat([0, 1], 120)
    order = random.permutation(240)
    train, valid = order[:160], order[160:]
    fitted = fit_kmers(
        [rows[i] for i in train], labels[train], [rows[i] for i in valid], labels[valid], 2, sizes=(3, 4)
    )
    assert len(fitted.table) == 6
    best = max(row["valid_accuracy"] for row in fitted.table)
    assert best > 0.9
    assert {"k": fitted.k, "strength": fitted.strength, "valid_accuracy": best} in fitted.table
    p = fitted.probabilities([rows[0], CODEC.reverse_complement(rows[0])])
    assert p.shape == (2, 2)
    assert np.allclose(p[0], p[1])
    with pytest.raises(InputError, match="class number 2"):
        fit_kmers(rows, labels, rows, labels, 3, sizes=(3,))
