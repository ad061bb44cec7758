"""The bar for a deep model of labelled sequences: regression on k-mer frequencies.

    x = frequencies of the k-mers of a sequence, a k-mer and its reverse complement counted together, scaled to variance 1;
    p = softmax(W x + b), W with an L2 penalty; for each of several labels a p of its own, for each number W x + b

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


class KmerValues(NamedTuple):
    """A model for each label or number, all on words of one length, and what they were chosen from."""

    k: int
    strengths: list[float | None]  # inverse L2 penalty of each output; None where training says nothing of it
    trained_on: int  # sequences
    table: list[dict[str, Any]]  # k and mean validation loss of every candidate
    models: list[Any]  # of sklearn; a constant where training says nothing more
    edges: list[str]
    left_out: list[int]
    dense: bool

    def values(self, rows: Rows) -> NDArray[np.float64]:
        """Probabilities of labels, or numbers (n, K), of token id sequences."""
        shares = kmer_frequencies(rows, self.k, dense=self.dense)
        return np.stack([_said(model, shares) for model in self.models], 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "k": self.k,
            "strengths": self.strengths,
            "trained_on": self.trained_on,
            "candidates": self.table,
            "edges": self.edges,
            "left_out": self.left_out,
        }


def kmer_values(data: Any) -> KmerValues:
    """Fitted to the labels or numbers of the first training sequences, chosen on the validation sequences."""
    rows, y = training_sequences(data)
    valid, valid_y = labelled_sequences(data.evaluation_dataset("valid"))
    return fit_values(rows, y, valid, valid_y, numbers=data.corpus.outputs == "numbers")


def kmer_baseline(data: Any) -> KmerBaseline:
    """Fitted on the first sequences of the training stream of labelled DNA, chosen on its validation windows."""
    rows, labels = training_sequences(data)
    valid, valid_labels = labelled_sequences(data.evaluation_dataset("valid"))
    return fit_kmers(rows, labels, valid, valid_labels, len(data.corpus.classes))


def training_sequences(
    data: Any, at_most: int = MOST_SEQUENCES, most_bases: int = MOST_BASES
) -> tuple[list[NDArray[np.uint8]], NDArray[Any]]:
    """Token ids and classes (n,), or labels (n, K), of the first training sequences, as many as the baseline is fitted on."""
    stream = data.stream()
    there = len(data.training_windows(data.length))
    count = max(50 * len(data.corpus.classes), min(at_most, most_bases // data.length, 20 * there))
    if data.corpus.labelled.examples:
        count = min(count, there)
    examples = [stream.example(sample) for sample in range(count)]
    return [example.ids for example in examples], np.array([example.label for example in examples])


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

    def fit(known: Any, unseen: Any) -> Regression:
        return fit_regression(known, train_labels, unseen, valid_labels)

    found = _search(train, valid, classes, fit, sizes, most_work, both_strands)
    chosen = found.model
    edges = found.edges + [f"the penalty 1/{chosen.strength:g} is the last tried"] * chosen.at_edge
    return KmerBaseline(
        found.k,
        chosen.strength,
        len(train),
        found.table,
        chosen.model,
        edges,
        found.left_out,
        both_strands,
        found.dense,
    )


def fit_values(
    train: Rows,
    y: NDArray[Any],
    valid: Rows,
    valid_y: NDArray[Any],
    *,
    numbers: bool,
    sizes: Sequence[int] = SIZES,
    most_work: int = MOST_WORK,
) -> KmerValues:
    """Fit a model to each output: logistic regression to labels, linear regression to numbers, on k-mers of one length.

    The length is that of the least mean loss on `valid`, of numbers the mean squared error over their variance in training;
    every output has a penalty of its own.

    Args:
        y, valid_y: (n, K), labels 1 or 0, or numbers; NaN is not known.
        sizes, most_work: as for `fit_kmers`.
    """

    def fit(known: Any, unseen: Any) -> _Outputs:
        parts = [_fit_output(known, own, unseen, other, numbers) for own, other in zip(y.T, valid_y.T, strict=True)]
        losses = [part.loss for part in parts if isinstance(part, Regression)]
        loss = float(np.mean(losses)) if losses else 0.0
        return _Outputs(loss, parts, [{"valid_loss": loss}])

    found = _search(train, valid, y.shape[1], fit, sizes, most_work)
    fitted = [part for part in found.model.parts if isinstance(part, Regression)]
    last = sum(part.at_edge for part in fitted)
    return KmerValues(
        found.k,
        [part.strength if isinstance(part, Regression) else None for part in found.model.parts],
        len(train),
        found.table,
        [part.model if isinstance(part, Regression) else part for part in found.model.parts],
        found.edges + [f"{last:,} of {len(fitted):,} penalties are the last tried"] * (last > 0),
        found.left_out,
        found.dense,
    )


class _Outputs(NamedTuple):
    loss: float  # mean
    parts: list[Any]  # of each output `Regression`, or a constant
    table: list[dict[str, Any]]


def _fit_output(known: Any, y: NDArray[Any], unseen: Any, valid_y: NDArray[Any], numbers: bool) -> Any:
    """A model of one output, or its mean where training knows one value alone."""
    there, seen = ~np.isnan(y), ~np.isnan(valid_y)
    own = y[there].astype(np.float64)
    if not len(own) or own.min() == own.max():
        return float(own.mean()) if len(own) else 0.0
    if not seen.any():
        unseen, valid_y, seen = known, y, there
    other = valid_y[seen].astype(np.float64)
    kind = np.float64 if numbers else np.int64
    return fit_regression(known[there], own.astype(kind), unseen[seen], other.astype(kind), numbers=numbers)


def _said(model: Any, shares: Any) -> NDArray[np.float64]:
    """What a model says of frequencies, which it may not change: others are asked after it."""
    if isinstance(model, float):
        return np.full(shares.shape[0], model)
    own = shares.copy()
    found = model.predict_proba(own)[:, 1] if hasattr(model, "predict_proba") else model.predict(own)
    return np.asarray(found, dtype=np.float64)


class _Found(NamedTuple):
    k: int
    dense: bool
    model: Any  # of the k with the least `loss`
    table: list[dict[str, Any]]
    edges: list[str]
    left_out: list[int]


def _search(
    train: Rows,
    valid: Rows,
    outputs: int,
    fit: Callable[[Any, Any], Any],
    sizes: Sequence[int],
    most_work: int,
    both_strands: bool = True,
) -> _Found:
    """What `fit` makes of the frequencies of training and validation, for the k that does best; it has `loss` and `table`."""
    longest = max(map(len, train))
    sizes = [k for k in sizes if k <= longest] or list(sizes[:1])
    allowed = [k for k in sizes if k == sizes[0] or _work(train, k, _columns(k, both_strands)) * outputs <= most_work]
    table: list[dict[str, Any]] = []
    best, chosen, worse = np.inf, None, 0
    left_out = [k for k in sizes if k not in allowed]
    tried = []
    for k in allowed:
        dense = _is_dense(train, k, _columns(k, both_strands))
        known, unseen = (kmer_frequencies(rows, k, both_strands, dense) for rows in (train, valid))
        candidate = fit(known, unseen)
        table += [{"k": k} | row for row in candidate.table]
        tried.append(k)
        worse = worse + 1 if candidate.loss > best - LEAST_GAIN else 0
        if candidate.loss < best:
            best, chosen = candidate.loss, (k, dense, candidate)
        if worse >= 2 and k >= ALWAYS_TRIED:
            left_out = []
            break
    assert chosen is not None
    k = chosen[0]
    edges = [f"k = {k} is the largest tried"] * (k == tried[-1] and k < longest)
    return _Found(*chosen, table, edges, left_out)


class Regression(NamedTuple):
    """Regression with the penalty of least loss on validation."""

    step: int  # of the grid of penalties
    loss: float  # nats; of numbers the mean squared error over their variance in training
    model: Any  # of sklearn
    table: list[dict[str, Any]]  # strength, validation loss and, of classes, accuracy of every candidate

    @property
    def at_edge(self) -> bool:
        """Whether the penalty is the first or last of the grid."""
        return self.step in (FIRST_STEP, LAST_STEP)

    @property
    def strength(self) -> float:
        """Inverse of the L2 penalty, sklearn's C."""
        return _strength(self.step)


def fit_regression(
    known: Any, labels: NDArray[Any], unseen: Any, valid_labels: NDArray[Any], *, numbers: bool = False
) -> Regression:
    """The best penalty for features (n, columns): along the grid, first to weaker ones, until the loss rises.

    Args:
        known, labels: of training.
        unseen, valid_labels: of validation.
        numbers: labels are numbers, and not classes: linear regression instead of logistic.
    """
    import copy

    from scipy.sparse import issparse
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # A sparse table cannot be centred; the unpenalised intercepts make up for it, so that the model is the same.
    scaler = StandardScaler(with_mean=not issparse(known), copy=False)  # both tables are this function's to change
    known, unseen = scaler.fit_transform(known), scaler.transform(unseen)
    logistic = LogisticRegression(max_iter=300, tol=1e-5, warm_start=True)
    linear = Ridge(solver="lsqr", max_iter=300, tol=1e-6)
    variance = float(labels.var())
    table: list[dict[str, Any]] = []

    def fit(step: int) -> Regression:
        strength = _strength(step)
        logistic.C, linear.alpha = strength, 1 / strength
        model = linear if numbers else logistic
        with warnings.catch_warnings():
            # Stopping early only adds to the penalty, and validation chooses.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(known, labels)
        if numbers:
            loss = float(((model.predict(unseen) - valid_labels) ** 2).mean()) / variance
            table.append({"strength": strength, "valid_error": loss})
        else:
            p = np.asarray(model.predict_proba(unseen), dtype=np.float64)
            own = p[np.arange(len(p)), valid_labels]
            loss = float(-np.log(np.maximum(own, 1e-12)).mean())
            right = float((p.argmax(1) == valid_labels).mean())
            table.append({"strength": strength, "valid_nats": loss, "valid_accuracy": right})
        return Regression(step, loss, make_pipeline(scaler, copy.deepcopy(model)), table)

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
