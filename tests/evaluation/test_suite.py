"""Scores of benchmarks and the comparison of two models."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mamba_bio_audio.evaluation import suite
from mamba_bio_audio.evaluation.resampling import Interval
from mamba_bio_audio.evaluation.suite import gain, verdict


def noisy(random: np.random.Generator, y: np.ndarray, strength: float) -> np.ndarray:
    """Probabilities of two classes, rounded so that there are ties."""
    p = np.round(1 / (1 + np.exp(-strength * (2 * y - 1) - random.normal(size=len(y)))), 2)
    return np.stack([1 - p, p], 1)


def test_area_of_several_classes_is_the_mean_of_one_against_the_rest():
    random = np.random.default_rng(1)
    y = random.integers(3, size=150)
    p = random.dirichlet(np.ones(3), size=150)
    expected = roc_auc_score(y, p, multi_class="ovr", average="macro")
    assert suite.test_scores(p, y)["auroc"] == pytest.approx(expected, abs=1e-12)
    assert suite.test_scores(p[y != 2], y[y != 2])["auroc"] is None


def test_gain_is_paired_and_over_seeds():
    random = np.random.default_rng(2)
    y = random.integers(2, size=400)
    good = [noisy(random, y, 1.0) for _ in range(3)]
    bad = [noisy(random, y, 0.1)]
    groups = np.arange(400)
    found = gain(good, bad, y, groups, resamples=200)
    area = [roc_auc_score(y, p[:, 1]) for p in (*good, *bad)]
    assert found.value == pytest.approx(np.mean(area[:3]) - area[3], abs=1e-12)
    assert 0 < found.low < found.value < found.high
    assert verdict(found) == "better"
    assert verdict(gain(bad, good, y, groups, resamples=200)) == "worse"
    # A model against itself differs nowhere, whatever is drawn.
    assert gain(bad, bad, y, groups, resamples=20)[:3] == (0, 0, 0)
    # Sequences that are drawn together are less evidence.
    together = gain(good, bad, y, groups // 40, resamples=200)
    assert together.groups == 10
    assert together.value == found.value


def test_small_and_unsure_differences_do_not_count():
    assert verdict(Interval(0.019, 0.015, 0.023, 100)) == "not separated"
    assert verdict(Interval(0.05, -0.01, 0.11, 100)) == "not separated"
    assert verdict(Interval(-0.05, -0.09, -0.01, 100)) == "worse"
    assert verdict(Interval(0.05, float("nan"), float("nan"), 1)) == "not separated"
