"""Scores generated clips by a judge's features and class probabilities (definitions of SaShiMi's SC09 protocol).

    FID   |m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)), features of the generated and of all training clips
    IS    exp of mean_A KL(p(y|x) || mean_B p(y|x)), A and B a random half each
    mIS   exp of mean KL(p(y|x_i) || p(y|x_j)) over 10,000 random pairs
    AM    KL(mean of training p || mean of generated p) + mean entropy of generated p
    NDB   share of 50 bins (K-means of the training features) whose shares differ, two-proportion z test at 0.05

What they tell: FID, whether the clips as a set resemble the training clips; IS and mIS, whether each clip clearly belongs
to one class and all classes occur (mIS also rewards variety within a class); AM, whether the classes have the right
shares. Lower is better for FID, AM and NDB. They mislead where the judge does: it knows only what it was trained on,
noise can get a confident class, and a model that copies its training clips scores perfectly. So print them beside those
of training clips, test clips, noise and silence, and look at the nearest neighbours. Logarithms are natural. The scores
depend on n: compare only at equal n.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.pipelines.frechet import distance_of_moments, moments

Array = NDArray[np.float64]
_SMALLEST = 1e-12
_PAIRS = 10_000


class Judged(NamedTuple):
    """A judge's output for a set of clips."""

    features: NDArray[np.floating]  # (n, d), input of the judge's last layer
    probabilities: Array  # (n, classes)

    def take(self, index: NDArray[np.int64]) -> Judged:
        """Select clips by index."""
        return Judged(self.features[index], self.probabilities[index])


def inception_score(p: Array, seed: int = 0) -> float:
    """IS from two random halves: the classes of one against the mean of the other."""
    p = _clamp(p)[np.random.default_rng(seed).permutation(len(p))]
    half = len(p) // 2
    return float(np.exp(_kl(p[:half], p[half:].mean(0)).mean()))


def inception_score_pooled(p: Array) -> float:
    """IS as in textbooks: every clip against the mean of all clips."""
    p = _clamp(p)
    return float(np.exp(_kl(p, p.mean(0)).mean()))


def modified_inception_score(p: Array, seed: int = 0, pairs: int = _PAIRS) -> float:
    """mIS over random ordered pairs drawn with replacement."""
    p = _clamp(p)
    i, j = np.random.default_rng(seed).integers(0, len(p), (2, pairs))
    return float(np.exp(_kl(p[i], p[j]).mean()))


def modified_inception_score_exact(p: Array) -> float:
    """mIS over all ordered pairs: mean_i sum p ln p - mean_i p . mean_j ln p."""
    p = _clamp(p)
    log = np.log(p)
    return float(np.exp((p * log).sum(1).mean() - p.mean(0) @ log.mean(0)))


def am_score(train: Array, generated: Array) -> float:
    """KL of the mean class shares, training against generated, plus the mean entropy of generated clips."""
    p = _clamp(generated)
    return float(_kl(_clamp(train).mean(0)[None], p.mean(0))[0] - (p * np.log(p)).sum(1).mean())


class Reference:
    """The training clips, with everything that comparisons need of them computed once.

    Args:
        train: features and probabilities of all training clips.
        seed: random seed for K-means, halves and pairs.
        bins: number of bins of NDB.
    """

    def __init__(self, train: Judged, seed: int = 0, bins: int = 50) -> None:
        from sklearn.cluster import KMeans

        self.train = train
        self.seed = seed
        self.mean, self.root = moments(train.features)
        self.clusters = KMeans(min(bins, len(train.features)), n_init=3, random_state=seed)
        self.clusters.fit(np.asarray(train.features, np.float64))
        self.counts = self._counts(train.features)

    def _counts(self, features: NDArray[np.floating]) -> NDArray[np.int64]:
        found = self.clusters.predict(np.asarray(features, np.float64))
        return np.bincount(found, minlength=self.clusters.n_clusters)

    def frechet_distance(self, features: NDArray[np.floating]) -> float:
        """FID of a set of features."""
        return distance_of_moments(self.mean, self.root, *moments(features))

    def differing_bins(self, features: NDArray[np.floating]) -> float:
        """NDB: fraction of the training features' K-means bins whose share of these features differs, in [0, 1]."""
        from scipy.special import ndtri

        n, m, counts = len(self.train.features), len(features), self._counts(features)
        pooled = (self.counts + counts) / (n + m)
        error = np.sqrt(np.maximum(pooled * (1 - pooled), _SMALLEST) * (1 / n + 1 / m))
        z = np.abs(self.counts / n - counts / m) / error
        return float((z > ndtri(0.975)).mean())

    def scores(self, generated: Judged) -> dict[str, float]:
        """All scores of a set of clips."""
        p = generated.probabilities
        return {
            "FID": self.frechet_distance(generated.features),
            "IS": inception_score(p, self.seed),
            "IS_pooled": inception_score_pooled(p),
            "mIS": modified_inception_score(p, self.seed),
            "mIS_exact": modified_inception_score_exact(p),
            "AM": am_score(self.train.probabilities, p),
            "NDB": self.differing_bins(generated.features),
        }

    def intervals(
        self, generated: Judged, *, resamples: int = 100, fid_resamples: int = 20, level: float = 0.95
    ) -> dict[str, tuple[float, float]]:
        """Basic bootstrap intervals over the generated clips (Davison & Hinkley 1997, section 5.2).

        Resampling repeats clips, which biases some scores, above all FID; the basic interval is reflected about the
        estimate, which removes that bias. NDB gets no interval: its bins are fixed by one K-means.
        """
        measures: dict[str, tuple[Callable[[Judged], float], int]] = {
            "IS": (lambda g: inception_score(g.probabilities, self.seed), resamples),
            "IS_pooled": (lambda g: inception_score_pooled(g.probabilities), resamples),
            "mIS": (lambda g: modified_inception_score(g.probabilities, self.seed), resamples),
            "mIS_exact": (lambda g: modified_inception_score_exact(g.probabilities), resamples),
            "AM": (lambda g: am_score(self.train.probabilities, g.probabilities), resamples),
            "FID": (lambda g: self.frechet_distance(g.features), min(resamples, fid_resamples)),
        }
        tail, found = (1 - level) / 2, {}
        for name, (measure, count) in measures.items():
            generator = np.random.default_rng(self.seed)
            size = len(generated.features)
            values = [measure(generated.take(generator.integers(0, size, size))) for _ in range(count)]
            estimate = measure(generated)
            low, high = (float(np.quantile(values, share)) for share in (tail, 1 - tail))
            found[name] = (2 * estimate - high, 2 * estimate - low)
        return found


def confidence_limit(impostors: Array, share: float = 0.05) -> float:
    """The confidence that at most `share` of the impostors, with probabilities (n, classes), exceed."""
    return float(np.quantile(impostors.max(1), 1 - share, method="higher"))


def recognised(p: Array, threshold: float) -> float:
    """Share of clips whose most probable class exceeds `threshold`; p may leave out the class "no digit"."""
    return float((p.max(1) > threshold).mean())


def nearest_distances(clips: NDArray[np.floating], train: NDArray[np.floating]) -> Array:
    """Euclidean distance (n,) from each clip's features to those of the nearest training clip; small for copies."""
    from sklearn.neighbors import NearestNeighbors

    found, _ = NearestNeighbors(n_neighbors=1).fit(train).kneighbors(clips)
    return np.asarray(found[:, 0], np.float64)


def paper_selection(log_likelihood: Array, seed: int = 0) -> NDArray[np.int64]:
    """Indices of the samples that the published autoregressive figures would be measured on.

    In ascending order of log-likelihood a random half is held out; its lowest 40 % and highest 5 % are dropped (the
    published code searches for better limits, but never moves from these).
    """
    order = np.argsort(log_likelihood, kind="stable")
    half = len(order) // 2
    held_out = np.sort(np.random.default_rng(seed).permutation(len(order))[:half])
    return order[held_out[int(0.4 * half) : int(0.95 * half)]]


def _clamp(p: Array) -> Array:
    return np.maximum(np.asarray(p, np.float64), _SMALLEST)


def _kl(p: Array, q: Array) -> Array:
    return (p * (np.log(p) - np.log(q))).sum(-1)
