"""Sample scores against closed forms on constructed cases."""

import numpy as np
import pytest

from mamba_bio_audio.evaluation import audio_metrics as metrics
from mamba_bio_audio.evaluation.audio_metrics import Judged, Reference
from mamba_bio_audio.pipelines.frechet import frechet_distance

RNG = np.random.default_rng(0)


def certain(counts: list[int]) -> np.ndarray:
    """Clips whose class is certain, so many of each."""
    return np.repeat(np.eye(len(counts)), counts, axis=0)


def test_scores_of_certain_classes() -> None:
    p = certain([300] * 10)
    assert metrics.inception_score_pooled(p) == pytest.approx(10)
    assert metrics.inception_score(p) == pytest.approx(10, rel=0.02)
    # Nine of ten pairs differ, and a wrong class costs ln 10^12.
    assert metrics.modified_inception_score_exact(p) == pytest.approx(np.exp(0.9 * 12 * np.log(10)), rel=1e-6)
    assert metrics.am_score(p, p) == pytest.approx(0, abs=1e-9)
    # One class only: nothing to tell apart; the wrong shares cost their divergence.
    one = certain([300] + [0] * 9)
    assert metrics.inception_score_pooled(one) == pytest.approx(1)
    assert metrics.modified_inception_score_exact(one) == pytest.approx(1)
    expected = 0.1 * np.log(0.1) + 0.9 * np.log(0.1 / 1e-12)
    assert metrics.am_score(p, one) == pytest.approx(expected, rel=1e-6)


def test_halves_of_the_inception_score_are_disjoint() -> None:
    """With a class of its own for each clip, no class of one half is in the mean of the other."""
    p = np.eye(8)
    assert metrics.inception_score(p) == pytest.approx(1e12)
    # Against the formula, on the halves that the seed draws.
    p = RNG.dirichlet(np.full(10, 0.3), 31)
    for seed in (0, 5):
        drawn = p[np.random.default_rng(seed).permutation(31)]
        one, other = drawn[:15], drawn[15:].mean(0)
        expected = np.exp((one * np.log(one / other)).sum(1).mean())
        assert metrics.inception_score(p, seed) == pytest.approx(expected, rel=1e-6)


def test_scores_of_no_opinion() -> None:
    p = np.full((100, 10), 0.1)
    assert metrics.inception_score(p) == pytest.approx(1)
    assert metrics.modified_inception_score(p) == pytest.approx(1)
    assert metrics.am_score(p, p) == pytest.approx(np.log(10))


def test_pairs_estimate_the_exact_value_and_am_agrees_with_is() -> None:
    p = RNG.dirichlet(np.full(10, 0.3), 3000)
    p = 0.9 * p + 0.01
    exact = metrics.modified_inception_score_exact(p)
    assert metrics.modified_inception_score(p, pairs=200_000) == pytest.approx(exact, rel=0.05)
    brute = np.mean([(a * np.log(a / p[:200])).sum(1).mean() for a in p[:200]])
    assert metrics.modified_inception_score_exact(p[:200]) == pytest.approx(np.exp(brute))
    entropy = -(p * np.log(p)).sum(1).mean()
    assert metrics.am_score(p, p) == pytest.approx(entropy)
    # Balanced classes: IS = exp(ln 10 - AM).
    assert metrics.inception_score(p) == pytest.approx(np.exp(np.log(10) - entropy), rel=0.02)


def test_differing_bins() -> None:
    train = RNG.standard_normal((2000, 3))
    reference = Reference(Judged(train, np.full((2000, 10), 0.1)))
    assert reference.differing_bins(RNG.standard_normal((2000, 3))) < 0.2
    assert reference.differing_bins(np.zeros((2000, 3))) > 0.9
    assert reference.differing_bins(train) == 0


def test_differing_bins_are_those_beyond_the_97_5_percent_quantile() -> None:
    """Two bins; shares of which the two-proportion z statistic is a little below and above 1.96."""
    train = np.repeat([[0.0], [10.0]], 1000, axis=0)
    reference = Reference(Judged(train, np.full((2000, 10), 0.1)), bins=2)
    for in_first, differ in ((1061, False), (939, False), (1063, True), (937, True)):
        pooled = (1000 + in_first) / 4000
        z = abs(1000 - in_first) / 2000 / np.sqrt(pooled * (1 - pooled) * 2 / 2000)
        assert 1.9 < z < 2.02
        assert (z > 1.959964) == differ
        generated = np.repeat([[0.0], [10.0]], [in_first, 2000 - in_first], axis=0)
        assert reference.differing_bins(generated) == float(differ)


def test_intervals_hold_the_estimate_and_narrow_with_n() -> None:
    def judged(n: int) -> Judged:
        return Judged(RNG.standard_normal((n, 4)), RNG.dirichlet(np.full(10, 0.3), n))

    reference, widths = Reference(judged(2000)), []
    for n in (100, 1600):
        generated = judged(n)
        found = reference.intervals(generated, resamples=60)
        estimates = reference.scores(generated)
        assert estimates["FID"] == frechet_distance(reference.train.features, generated.features)
        for name, (low, high) in found.items():
            if name != "FID":
                assert low < estimates[name] < high, name
        widths.append(found["AM"][1] - found["AM"][0])
    assert widths[1] < widths[0] / 2


def test_threshold_and_recognised_share() -> None:
    confidence = np.linspace(0.1, 0.9, 101)
    p = np.stack([confidence, 1 - confidence], 1)
    noise = p[:51]  # all at 0.5 or above by the other class
    threshold = metrics.confidence_limit(noise)
    assert metrics.recognised(noise, threshold) <= 0.05
    assert metrics.recognised(p[95:], threshold) == pytest.approx((p[95:].max(1) > threshold).mean())


def test_copies_have_no_distance_to_training() -> None:
    train = RNG.standard_normal((50, 6))
    assert metrics.nearest_distances(train[:5], train) == pytest.approx(np.zeros(5))
    assert metrics.nearest_distances(train[:1] + 3.0, train)[0] > 1


def test_the_published_selection() -> None:
    log_likelihood = RNG.standard_normal(10_240)
    chosen = metrics.paper_selection(log_likelihood)
    assert len(chosen) == len(set(chosen.tolist())) == 2816
    kept = log_likelihood[chosen]
    assert kept.min() > np.quantile(log_likelihood, 0.37)
    assert kept.max() < np.quantile(log_likelihood, 0.97)


def test_intervals_leave_half_of_the_rest_on_either_side() -> None:
    """The basic interval at 80 %, from the tenth and the ninetieth percentile of the resampled scores."""
    rng = np.random.default_rng(0)
    reference = Reference(Judged(rng.standard_normal((50, 2)), np.full((50, 10), 0.1)), bins=2)
    generated = Judged(rng.standard_normal((40, 2)), rng.dirichlet(np.full(10, 0.3), 40))
    low, high = reference.intervals(generated, resamples=30, fid_resamples=2, level=0.8)["IS_pooled"]
    draws = np.random.default_rng(reference.seed)
    values = [metrics.inception_score_pooled(generated.probabilities[draws.integers(0, 40, 40)]) for _ in range(30)]
    estimate = metrics.inception_score_pooled(generated.probabilities)
    assert (low, high) == pytest.approx(
        (2 * estimate - np.quantile(values, 0.9), 2 * estimate - np.quantile(values, 0.1))
    )
