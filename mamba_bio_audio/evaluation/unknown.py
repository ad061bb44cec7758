"""Which sequences a classifier should call unknown: a temperature and a threshold, both fitted to validation.

    p = mean over strands of softmax(z / T)            z: logits of a strand
    probability rule: unknown where max p is below the threshold
    energy rule:      unknown where the mean over strands of T logsumexp(z / T) is (Liu et al. 2020)

T is the temperature with the least validation loss (Guo et al. 2017). The threshold leaves a chosen share of validation
known. Of the two rules the one is taken that tells validation sequences from shuffled ones better. What that says of other
foreign sequence has to be measured on it: what resembles a known class, such as a near species, is seldom called unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax
from sklearn.metrics import roc_auc_score

Rule = Literal["probability", "energy"]
Logits = NDArray[np.float64]  # (strands, n, K)
# The largest temperature that is looked at, as a logarithm; the smallest is its inverse.
HIGHEST = 3.0


class Fit(NamedTuple):
    """How unknown sequences are recognised.

    Attributes:
        separation: area under the ROC curve of validation against shuffled sequences, by rule.
        nats: validation loss at temperature 1 and at the fitted one.
    """

    temperature: float
    rule: Rule
    threshold: float
    separation: dict[str, float]
    nats: tuple[float, float]

    def unknown(self, logits: Logits) -> float:
        """Share of sequences that are called unknown."""
        return float((scores(logits, self.temperature, self.rule) < self.threshold).mean())


def probabilities(logits: Logits, temperature: float) -> NDArray[np.float64]:
    """Class probabilities (n, K), the mean of the strands."""
    return np.asarray(softmax(logits / temperature, axis=-1).mean(0))


def scores(logits: Logits, temperature: float, rule: Rule) -> NDArray[np.float64]:
    """How known each sequence looks, (n,)."""
    if rule == "probability":
        return np.asarray(probabilities(logits, temperature).max(1))
    return np.asarray(temperature * logsumexp(logits / temperature, axis=-1).mean(0))


def nats(logits: Logits, labels: NDArray[np.int64], temperature: float) -> float:
    """Mean -log p of the true class."""
    own = probabilities(logits, temperature)[np.arange(len(labels)), labels]
    return float(np.abs(np.log(np.maximum(own, 1e-300))).mean())


def fit(logits: Logits, labels: NDArray[np.int64], shuffled: Logits, keep: float) -> Fit:
    """Temperature, rule and threshold.

    Args:
        logits: of validation sequences.
        labels: (n,) their classes.
        shuffled: logits of the same sequences with their letters in random order.
        keep: share of the validation sequences that stay known, at least.
    """
    found = minimize_scalar(
        lambda log: nats(logits, labels, float(np.exp(log))), bounds=(-HIGHEST, HIGHEST), method="bounded"
    )
    temperature = float(np.exp(found.x))
    known = np.repeat([1, 0], [logits.shape[1], shuffled.shape[1]])
    separation = {
        rule: float(roc_auc_score(known, np.concatenate([scores(z, temperature, rule) for z in (logits, shuffled)])))
        for rule in get_args(Rule)
    }
    rule: Rule = "energy" if separation["energy"] > separation["probability"] else "probability"
    # So many of validation are below it as may be, and no more; less rounding of the product.
    ranked = np.sort(scores(logits, temperature, rule))
    threshold = float(ranked[int((1 - keep) * len(ranked) + 1e-9)])
    return Fit(temperature, rule, threshold, separation, (nats(logits, labels, 1.0), nats(logits, labels, temperature)))


def shuffle(rows: Sequence[NDArray[Any]], seed: int = 0) -> list[NDArray[Any]]:
    """Each row with its symbols in random order: the same composition, and nothing else in common."""
    random = np.random.default_rng(seed)
    return [random.permutation(row) for row in rows]
