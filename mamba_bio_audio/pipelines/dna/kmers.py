"""The bar for a deep classifier: logistic regression on k-mer frequencies.

    x = frequencies of the k-mers of a sequence, a k-mer and its reverse complement counted together, scaled to variance 1;
    p = softmax(W x + b), W with an L2 penalty

What it answers: how much of the task is composition, without order beyond k bases. The bar is tuned as the network is, on
validation loss: k from 1 to 8, and on until two longer words in a row do no better, and for each k the penalty moves along a
logarithmic grid until both its neighbours are worse. Where a choice ends at the edge of what was tried, or the budget leaves
word lengths out, the result says so. A network that does not clear the bar has learnt nothing that a table of short words
does not know.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.tokenizer import A, T
from mamba_bio_audio.pipelines.scores import labelled_sequences

# Word lengths; from the second on, the search ends where two in a row have done no better.
SIZES, ALWAYS_TRIED = tuple(range(1, 11)), 8
# Inverse penalties are 10 ** (step / 2). Each search starts at 0.001 and moves a step at a time: where weak penalties leave
# hardly any gradient, a fit that continues from the previous one does not move, and would hide what a stronger one is worth.
FIRST_STEP, LAST_STEP, START_STEP = -14, 6, -6
# Up to this k counts are dense where a sequence fills more than this share of the table; else only words found are kept.
DENSE_K, DENSE_SHARE = 6, 0.25
# Products of a feature and a weight in one pass over the training sequences, above which a k is left out: about a second
# on one core. Dense tables are about eight times as fast a product.
MOST_WORK, DENSE_GAIN = 1 << 29, 8
# A step that gains less than this many nats on validation ends a search.
LEAST_GAIN = 1e-4
# At most so many training sequences, and so many bases (0.5 GiB of counts), which takes minutes on one core.
MOST_SEQUENCES, MOST_BASES = 40_000, 1 << 26
Rows = Sequence[NDArray[np.uint8]]


class KmerBaseline(NamedTuple):
    """The chosen model and what it was chosen from."""

    k: int
    strength: float  # inverse of the L2 penalty, sklearn's C
    trained_on: int  # sequences
    table: list[dict[str, Any]]  # k, strength, validation loss and accuracy of every candidate
    model: Any
    edges: list[str]  # choices at the edge of the grid, in words
    left_out: list[int]  # word lengths that the budget did not allow
    both_strands: bool = True  # a word and its reverse complement are counted together
    dense: bool | None = None  # of `kmer_frequencies`

    def probabilities(self, rows: Rows) -> NDArray[np.float64]:
        """Class probabilities (n, K) of token id sequences."""
        shares = kmer_frequencies(rows, self.k, self.both_strands, self.dense)
        return np.asarray(self.model.predict_proba(shares), dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "k": self.k,
            "strength": self.strength,
            "trained_on": self.trained_on,
            "candidates": self.table,
            "edges": self.edges,
            "left_out": self.left_out,
        }


def kmer_baseline(data: Any) -> KmerBaseline:
    """Fitted on the first sequences of the training stream of labelled DNA, chosen on its validation windows."""
    rows, labels = training_sequences(data)
    valid, valid_labels = labelled_sequences(data.evaluation_dataset("valid"))
    return fit_kmers(rows, labels, valid, valid_labels, len(data.corpus.classes))


def training_sequences(
    data: Any, at_most: int = MOST_SEQUENCES, most_bases: int = MOST_BASES
) -> tuple[list[NDArray[np.uint8]], NDArray[np.int64]]:
    """Token ids and classes of the first sequences of the training stream, as many as the baseline is fitted on."""
    stream = data.stream()
    there = len(data.training_windows(data.length))
    count = max(50 * len(data.corpus.classes), min(at_most, most_bases // data.length, 20 * there))
    if data.corpus.labelled.examples:
        count = min(count, there)
    examples = [stream.example(sample) for sample in range(count)]
    return [example.ids for example in examples], np.array([example.label for example in examples], dtype=np.int64)


def kmer_frequencies(rows: Rows, k: int, both_strands: bool = True, dense: bool | None = None) -> Any:
    """Shares of the k-mers, (n, columns), float32; k-mers with an unknown base are left out.

    Args:
        both_strands: count a word and its reverse complement together: (4^k + palindromes) / 2 columns, else 4^k.
        dense: whether a NumPy array is returned, or a SciPy CSR matrix; None: an array up to k = 6.

    >>> kmer_frequencies([np.array([7, 7, 10], dtype=np.uint8)], 1).tolist()  # AAT: A and T are one, C and G another
    [[1.0, 0.0]]
    """
    column = canonical_columns(k) if both_strands else np.arange(4**k)
    count = int(column.max()) + 1
    if k <= DENSE_K if dense is None else dense:
        shares = np.zeros((len(rows), count), dtype=np.float32)
        for share, ids in zip(shares, rows, strict=True):
            found = count_kmers(ids, k, column)
            share[:] = found / max(1, found.sum())
        return shares
    from scipy.sparse import csr_matrix

    values: list[NDArray[np.float32]] = []
    columns: list[NDArray[np.int32]] = []
    ends = [0]
    for ids in rows:
        words, counts = np.unique(column[_words(ids, k)], return_counts=True)
        values.append((counts / max(1, counts.sum())).astype(np.float32))
        columns.append(words.astype(np.int32))
        ends.append(ends[-1] + len(words))
    return csr_matrix((np.concatenate(values), np.concatenate(columns), ends), shape=(len(rows), count))


def _columns(k: int, both_strands: bool) -> int:
    return (4**k + (2**k if k % 2 == 0 else 0)) // 2 if both_strands else 4**k


def _is_dense(rows: Rows, k: int, columns: int) -> bool:
    return k <= DENSE_K and float(np.mean([len(ids) for ids in rows])) > DENSE_SHARE * columns


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
    return np.bincount(column[_words(ids, k)], minlength=int(column.max()) + 1)


def _words(ids: NDArray[np.uint8], k: int) -> NDArray[np.int32]:
    """Base-4 numbers of the k-mers without an unknown base, in order."""
    known = (ids >= A) & (ids <= T)
    base = np.where(known, ids - A, 0).astype(np.int32)
    count = max(0, len(ids) - k + 1)
    word, whole = np.zeros(count, dtype=np.int32), np.ones(count, dtype=bool)
    for at in range(k):
        word = word * 4 + base[at : at + count]
        whole &= known[at : at + count]
    return word[whole]


def fit_kmers(
    train: Rows,
    train_labels: NDArray[np.int64],
    valid: Rows,
    valid_labels: NDArray[np.int64],
    classes: int,
    *,
    sizes: Sequence[int] = SIZES,
    most_work: int = MOST_WORK,
    both_strands: bool = True,
) -> KmerBaseline:
    """Fit on `train` for each k and penalty, and choose the least loss on `valid`.

    Args:
        sizes: word lengths, ascending.
        most_work: products of one pass over `train` above which a k is left out, the first of `sizes` never.
        both_strands: whether a word and its reverse complement are one, as for sequences of which no strand is known.

    Raises:
        InputError: a class has no training sequence.
    """
    missing = set(range(classes)) - set(train_labels.tolist())
    if missing:
        raise InputError(f"the k-mer baseline found no training sequence of class number {min(missing)}")
    longest = max(map(len, train))
    sizes = [k for k in sizes if k <= longest] or list(sizes[:1])
    allowed = [k for k in sizes if k == sizes[0] or _work(train, k, _columns(k, both_strands)) * classes <= most_work]
    table: list[dict[str, Any]] = []
    best, chosen, worse = np.inf, None, 0
    left_out = [k for k in sizes if k not in allowed]
    tried = []
    for k in allowed:
        dense = _is_dense(train, k, _columns(k, both_strands))
        known, unseen = (kmer_frequencies(rows, k, both_strands, dense) for rows in (train, valid))
        candidate = fit_regression(known, train_labels, unseen, valid_labels)
        table += [{"k": k} | row for row in candidate.table]
        tried.append(k)
        worse = worse + 1 if candidate.loss > best - LEAST_GAIN else 0
        if candidate.loss < best:
            best, chosen = candidate.loss, (k, dense, candidate)
        if worse >= 2 and k >= ALWAYS_TRIED:
            left_out = []
            break
    assert chosen is not None
    k, dense, candidate = chosen
    edges = []
    if k == tried[-1] and k < longest:
        edges.append(f"k = {k} is the largest tried")
    if candidate.step in (FIRST_STEP, LAST_STEP):
        edges.append(f"the penalty 1/{candidate.strength:g} is the last tried")
    return KmerBaseline(k, candidate.strength, len(train), table, candidate.model, edges, left_out, both_strands, dense)


class Regression(NamedTuple):
    """Logistic regression with the penalty of least loss on validation."""

    step: int  # of the grid of penalties
    loss: float  # nats
    model: Any  # of sklearn
    table: list[dict[str, Any]]  # strength, validation loss and accuracy of every candidate

    @property
    def strength(self) -> float:
        """Inverse of the L2 penalty, sklearn's C."""
        return _strength(self.step)


def fit_regression(known: Any, labels: NDArray[np.int64], unseen: Any, valid_labels: NDArray[np.int64]) -> Regression:
    """The best penalty for features (n, columns): along the grid, first to weaker ones, until the loss rises.

    Args:
        known, labels: of training.
        unseen, valid_labels: of validation.
    """
    import copy

    from scipy.sparse import issparse
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # A sparse table cannot be centred; the unpenalised intercepts make up for it, so that the model is the same.
    scaler = StandardScaler(with_mean=not issparse(known), copy=False)  # both tables are this function's to change
    known, unseen = scaler.fit_transform(known), scaler.transform(unseen)
    regression = LogisticRegression(max_iter=300, tol=1e-5, warm_start=True)
    table: list[dict[str, Any]] = []

    def fit(step: int) -> Regression:
        regression.C = _strength(step)
        with warnings.catch_warnings():
            # Stopping early only adds to the penalty, and validation chooses.
            warnings.simplefilter("ignore", ConvergenceWarning)
            regression.fit(known, labels)
        p = np.asarray(regression.predict_proba(unseen), dtype=np.float64)
        own = p[np.arange(len(p)), valid_labels]
        loss = float(-np.log(np.maximum(own, 1e-12)).mean())
        right = float((p.argmax(1) == valid_labels).mean())
        table.append({"strength": regression.C, "valid_nats": loss, "valid_accuracy": right})
        return Regression(step, loss, make_pipeline(scaler, copy.deepcopy(regression)), table)

    best = first = fit(START_STEP)
    best = _climb(fit, best, 1)
    return best if best is not first else _climb(fit, first, -1)


def _climb(fit: Callable[[int], Regression], best: Regression, by: int) -> Regression:
    while FIRST_STEP <= best.step + by <= LAST_STEP:
        following = fit(best.step + by)
        gain = best.loss - following.loss
        best = following if gain > 0 else best
        if gain < LEAST_GAIN:
            break
    return best


def _strength(step: int) -> float:
    return float(f"{10 ** (step / 2):.3g}")


def _work(rows: Rows, k: int, columns: int) -> float:
    """Products of one pass over all rows, for each class."""
    if _is_dense(rows, k, columns):
        return len(rows) * columns / DENSE_GAIN
    return sum(min(len(ids), columns) for ids in rows)
