"""benchmarks/device/kmers_torch.py: the k-mer bar by torch is the one of scikit-learn."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from mamba_bio_audio.pipelines.dna.kmers import fit_regression, kmer_frequencies
from mamba_bio_audio.pipelines.dna.tokenizer import A, N

K = 4
pytestmark = pytest.mark.filterwarnings("ignore:Sparse")


@pytest.fixture
def by_torch(script):
    return script("device.kmers_torch")


@pytest.fixture(scope="module")
def windows():
    """300 windows of 200 bases, of three classes that differ by a word, and their classes; some bases are unknown."""
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    ids = rng.integers(0, 4, (300, 200)).astype(np.uint8) + A
    for at in np.flatnonzero(labels):
        start = rng.integers(190)
        ids[at, start : start + 6] = A + labels[at] - 1
    ids[rng.random(ids.shape) < 0.02] = N
    return list(ids), labels


def test_shares_are_those_of_the_package(by_torch, windows):
    found = by_torch.shares_of(windows[0], K, "cpu")
    expected = kmer_frequencies(windows[0], K, dense=True)
    np.testing.assert_array_equal(found.rows.to_dense().numpy(), expected)
    np.testing.assert_array_equal(found.columns.to_dense().numpy(), expected.T)


def test_the_fit_is_that_of_scikit_learn(by_torch, windows):
    rows, labels = windows
    train, valid = (rows[:200], labels[:200]), (rows[200:], labels[200:])
    shares = [csr_matrix(kmer_frequencies(part, K)) for part, _ in (train, valid)]
    theirs = fit_regression(shares[0], train[1], shares[1], valid[1])
    unseen = by_torch.shares_of(valid[0], K, "cpu", both=False).rows
    ours = by_torch.fit(by_torch.shares_of(train[0], K, "cpu"), train[1], unseen, valid[1], 3)
    assert [row["strength"] for row in ours.table] == [row["strength"] for row in theirs.table]
    for own, row in zip(ours.table, theirs.table, strict=True):
        assert own["valid_nats"] == pytest.approx(row["valid_nats"], abs=1e-3)
    assert ours.strength == theirs.strength
