"""The Frechet distance against closed forms."""

import numpy as np
import pytest

from mamba_bio_audio.pipelines.frechet import frechet_distance

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("n", [20, 64, 300])
def test_identical_sets_have_no_distance(n) -> None:
    """Also with fewer rows (20) than features (100)."""
    features = RNG.standard_normal((n, 100)) @ RNG.standard_normal((100, 100))
    scale = (features**2).sum(1).mean()
    assert abs(frechet_distance(features, features[::-1])) < 1e-6
    assert abs(frechet_distance(features, features)) / scale < 1e-9


def test_frechet_distance_of_shifted_and_scaled_sets() -> None:
    features = RNG.standard_normal((500, 7))
    shift = np.arange(7.0)
    assert frechet_distance(features, features + shift) == pytest.approx((shift**2).sum())
    # Equal means, covariances S and 9 S: Tr(S + 9 S - 2 * 3 S) = 4 Tr S.
    centred = features - features.mean(0)
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * np.cov(centred.T).trace())


def test_frechet_distance_of_general_covariances() -> None:
    from scipy.linalg import sqrtm

    a = RNG.standard_normal((200, 5)) @ RNG.standard_normal((5, 5))
    b = RNG.standard_normal((150, 5)) @ RNG.standard_normal((5, 5)) + 1
    s, t = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + (s + t - 2 * sqrtm(s @ t).real).trace()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
