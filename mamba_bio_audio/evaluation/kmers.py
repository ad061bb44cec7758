"""The bar for a deep classifier: logistic regression on k-mer frequencies.

    x = frequencies of the k-mers of a sequence, a k-mer and its reverse complement counted together, standardised;
    p = softmax(W x + b), W with an L2 penalty

What it answers: how much of the task is composition, without order beyond k bases. k from 3 to 6 and the strength of
the penalty are chosen on validation, so the bar is not too low. A network that does not clear it has learnt nothing
that a table of short words does not know.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.tokenizer import A, T

SIZES = (3, 4, 5, 6)
# Inverse penalties; features are standardised.
STRENGTHS = (0.001, 0.01, 0.1)
Rows = Sequence[NDArray[np.uint8]]


class KmerBaseline(NamedTuple):
    """The chosen model and what it was chosen from."""

    k: int
    strength: float
    trained_on: int  # sequences
    table: list[dict[str, Any]]  # k, strength, validation accuracy of every candidate
    model: Any

    def probabilities(self, rows: Rows) -> NDArray[np.float64]:
        """Class probabilities (n, K) of token id sequences."""
        return np.asarray(self.model.predict_proba(kmer_frequencies(rows, self.k)))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {"k": self.k, "strength": self.strength, "trained_on": self.trained_on, "candidates": self.table}


def kmer_frequencies(rows: Rows, k: int) -> NDArray[np.float32]:
    """Shares of the canonical k-mers, (n, (4^k + palindromes) / 2); k-mers with an unknown base are left out.

    >>> kmer_frequencies([np.array([7, 7, 10], dtype=np.uint8)], 1).tolist()  # AAT: A and T are one, C and G another
    [[1.0, 0.0]]
    """
    column = canonical_columns(k)
    shares = np.zeros((len(rows), int(column.max()) + 1), dtype=np.float32)
    for share, ids in zip(shares, rows, strict=True):
        found = count_kmers(ids, k, column)
        share[:] = found / max(1, found.sum())
    return shares


def canonical_columns(k: int) -> NDArray[np.int64]:
    """Number of every word's canonical k-mer (4^k,), base-4 digits A 0 to T 3; a word and its complement share one."""
    words = np.arange(4**k)
    reverse, rest = np.zeros_like(words), words.copy()
    for _ in range(k):
        reverse = reverse * 4 + (3 - rest % 4)
        rest //= 4
    kept = words[words <= reverse]
    return np.searchsorted(kept, np.minimum(words, reverse))


def count_kmers(ids: NDArray[np.uint8], k: int, column: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each canonical k-mer occurs in token ids; those with an unknown base are left out.

    Args:
        column: of `canonical_columns`.
    """
    size = int(column.max()) + 1
    known = (ids >= A) & (ids <= T)
    base = np.where(known, ids - A, 0).astype(np.int32)
    count = len(ids) - k + 1
    if count < 1:
        return np.zeros(size, dtype=np.int64)
    word, whole = np.zeros(count, dtype=np.int32), np.ones(count, dtype=bool)
    for at in range(k):
        word = word * 4 + base[at : at + count]
        whole &= known[at : at + count]
    return np.bincount(column[word[whole]], minlength=size)


def fit_kmers(
    train: Rows,
    train_labels: NDArray[np.int64],
    valid: Rows,
    valid_labels: NDArray[np.int64],
    classes: int,
    *,
    sizes: Sequence[int] = SIZES,
) -> KmerBaseline:
    """Fit every candidate on `train` and choose the most accurate on `valid`, among equals the smaller k.

    Raises:
        InputError: a class has no training sequence.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    missing = set(range(classes)) - set(train_labels.tolist())
    if missing:
        raise InputError(f"the k-mer baseline found no training sequence of class number {min(missing)}")
    table, best, chosen = [], -1.0, None
    for k in sizes:
        known, unseen = kmer_frequencies(train, k), kmer_frequencies(valid, k)
        for strength in STRENGTHS:
            model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
            with warnings.catch_warnings():
                # Stopping early only adds to the penalty, and validation chooses.
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(known, train_labels)
            accuracy = float((model.predict(unseen) == valid_labels).mean())
            table.append({"k": k, "strength": strength, "valid_accuracy": accuracy})
            if accuracy > best:
                best, chosen = accuracy, (k, strength, model)
    assert chosen is not None
    return KmerBaseline(chosen[0], chosen[1], len(train), table, chosen[2])
