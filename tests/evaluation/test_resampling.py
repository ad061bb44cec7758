"""Scores of weighted rows: as libraries give them, and as if rows were repeated; and their intervals."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import average_precision_score, matthews_corrcoef, r2_score, roc_auc_score

from mamba_bio_audio.evaluation.classification import classification_report
from mamba_bio_audio.evaluation.reports import labels_report, numbers_report
from mamba_bio_audio.evaluation.resampling import (
    auroc,
    average_precision,
    interval,
    matthews,
    mean_of,
    pearson,
    r2,
    spearman,
)
from mamba_bio_audio.jobs.values_results import ValuesReport

RNG = np.random.default_rng(0)
N = 60
Y = RNG.random(N) < 0.4
# Ties, because every score must count them right.
P = np.round(np.clip(0.35 * Y + RNG.random(N) * 0.65, 0, 1), 1)
X, Z = RNG.normal(size=N), RNG.normal(size=N)
X = X + 0.5 * Z
CHOSEN, TRUE = RNG.integers(0, 3, N), RNG.integers(0, 3, N)

SCORES = {
    "auroc": (auroc(P, Y), lambda at: roc_auc_score(Y[at], P[at])),
    "average precision": (average_precision(P, Y), lambda at: average_precision_score(Y[at], P[at])),
    "mcc": (matthews(CHOSEN, TRUE, 3), lambda at: matthews_corrcoef(TRUE[at], CHOSEN[at])),
    "pearson": (pearson(X, Z), lambda at: pearsonr(X[at], Z[at])[0]),
    "r2": (r2(X, Z), lambda at: r2_score(Z[at], X[at])),
}


@pytest.mark.parametrize("name", SCORES)
def test_a_weight_is_a_repeated_row(name):
    score, of_library = SCORES[name]
    weights = np.stack([np.ones(N), RNG.integers(0, 4, N)]).astype(float)
    expected = [of_library(np.repeat(np.arange(N), row.astype(int))) for row in weights]
    assert score(weights) == pytest.approx(expected, rel=1e-12)


def test_ranks():
    assert spearman(X, Z)(np.ones((1, N)))[0] == pytest.approx(spearmanr(X, Z)[0])


def test_intervals_cover_as_often_as_they_say():
    """Of a correlation that is known, over groups of four rows that are alike."""
    inside = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        a, b = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=60).T
        x, y, groups = np.repeat(a, 4), np.repeat(b, 4), np.repeat(np.arange(60), 4)
        found = interval(0.6, pearson(x, y), groups, resamples=300, seed=seed)
        assert found.groups == 60
        inside += found.low <= 0.6 <= found.high
    assert 86 <= inside <= 100
    # Were rows drawn one by one, the interval would be half as wide.
    alone = interval(0.6, pearson(x, y), np.arange(240), resamples=300)
    assert found.high - found.low > 1.5 * (alone.high - alone.low)


def test_no_interval_from_one_group_or_of_nothing():
    assert np.isnan(interval(0.5, auroc(P, Y), np.zeros(N)).low)
    assert np.isnan(interval(np.nan, auroc(P, np.zeros(N, bool)), np.arange(N)).low)


def test_a_mean_leaves_out_what_is_undefined():
    weights = np.ones((2, N))
    weights[1, Y] = 0
    both = mean_of([auroc(P, Y), pearson(X, Z)])(weights)
    assert both[0] == pytest.approx((roc_auc_score(Y, P) + pearsonr(X, Z)[0]) / 2)
    assert both[1] == pytest.approx(pearsonr(X[~Y], Z[~Y])[0])


def test_classification_report_has_both():
    report = classification_report(np.stack([1 - P, P], 1), Y.astype(int), ["a", "b"])
    assert report["auroc"]["value"] == pytest.approx(roc_auc_score(Y, P))
    assert report["mcc"]["value"] == pytest.approx(matthews_corrcoef(Y, P > 0.5), abs=1e-6)
    assert report["auroc"]["low"] < report["auroc"]["value"] < report["auroc"]["high"]
    several = torch.randn(N, 3, generator=torch.Generator().manual_seed(0)).softmax(-1).double().numpy()
    expected = roc_auc_score(TRUE, several, multi_class="ovr")
    assert classification_report(several, TRUE, list("abc"))["auroc"]["value"] == pytest.approx(expected)
    alone = classification_report(several, np.zeros(N, int), list("abc"))
    assert alone["auroc"] is None
    assert alone["mcc"]["value"] == 0


def test_a_matthews_coefficient_of_one_class_is_that_of_scikit_learn():
    """The value is what its resamples are of: 0 where only one class is chosen, or where only one is there."""
    y = np.arange(20) % 4 == 0
    never = np.full(20, 0.3)
    report = labels_report(never[:, None], y[:, None].astype(float), ["a"], np.arange(20))
    assert report["outputs"]["a"]["mcc"]["value"] == matthews_corrcoef(y, never > 0.5) == 0
    assert report["mean"]["mcc"]["value"] == 0
    both = np.stack([1 - never, never], 1)
    for known in (y.astype(int), np.zeros(20, int)):
        assert classification_report(both, known, ["a", "b"])["mcc"]["value"] == 0


def test_reports_leave_out_what_is_not_known():
    y = np.stack([Y, ~Y, np.zeros(N)], 1).astype(float)
    y[:10, 0] = np.nan
    p = np.stack([P, P, P], 1)
    report = labels_report(p, y, ["a", "b", "never"], np.arange(N))
    assert report["outputs"]["a"]["known"] == N - 10
    assert report["outputs"]["a"]["auroc"]["value"] == pytest.approx(roc_auc_score(Y[10:], P[10:]))
    assert report["outputs"]["never"]["there"] == 0
    assert "auroc" not in report["outputs"]["never"]
    mean = (roc_auc_score(Y[10:], P[10:]) + roc_auc_score(~Y, P)) / 2
    assert report["mean"]["auroc"]["value"] == pytest.approx(mean)
    known = np.stack([Z, np.full(N, 2.0)], 1)
    known[5:9, 0] = np.nan
    numbers = numbers_report(np.stack([X, X], 1), known, ["z", "constant"], np.arange(N))
    at = np.r_[:5, 9:N]
    z = numbers["outputs"]["z"]
    assert z["r2"]["value"] == pytest.approx(r2_score(Z[at], X[at]))
    assert z["spearman"]["value"] == pytest.approx(spearmanr(X[at], Z[at])[0], abs=1e-6)
    assert z["rmse"] == pytest.approx(np.sqrt(((X - Z)[at] ** 2).mean()))
    assert "r2" not in numbers["outputs"]["constant"]


def test_rows_that_are_all_alike_have_no_correlation_and_no_r2():
    """Rounding would make numbers of any size of them."""
    y = np.array([0.0, 0, 0, 3, 0, 0, 0.1])
    sets = np.array([[2.0, 3, 2, 0, 0, 0, 0], [0, 0, 0, 7, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
    for score in (r2(y + 0.1, y), pearson(y + 0.1, y), spearman(np.arange(7.0), y)):
        found = score(sets)
        assert np.isnan(found[:2]).all()
        assert np.isfinite(found[2])
    report = numbers_report(np.stack([y + 0.1], 1), np.stack([y], 1), ["y"], np.arange(7))["mean"]
    assert all(-1e3 < row["low"] <= row["high"] < 1 + 1e-6 for row in report.values())


def test_a_label_of_which_nothing_is_known_has_no_scores():
    y = np.stack([Y, np.full(N, np.nan)], 1).astype(float)
    report = ValuesReport.model_validate(labels_report(np.stack([P, P], 1), y, ["a", "b"], np.arange(N)))
    assert report.outputs["b"] == {"known": 0, "there": None, "f1": None}
    assert "of 1 of 2" in report.text("sequences")
    assert "no scores of b: what is known here is all the same, or nothing is" in report.text("sequences")
    alone = ValuesReport.model_validate(numbers_report(np.stack([X], 1), np.ones((N, 1)), ["x"], np.arange(N)))
    assert "groups" not in alone.text("sequences")
