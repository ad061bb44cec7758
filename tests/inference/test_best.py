"""Which of several samples is kept."""

import itertools

import numpy as np
import pytest

from mamba_bio_audio.inference.best import chances, least, stray


def test_a_row_strays_by_its_parts_and_not_by_their_mean():
    # Four symbols a part and 2 nats a symbol; the second is half noise and half silence, the third a little off throughout.
    along = -4 * np.array([[2.0] * 8, [4.0] * 4 + [0.0] * 4, [2.5] * 8])
    np.testing.assert_allclose(stray(along, 32, 2.0), [0, 2, 0.5])
    assert stray(along[1:2].sum(1, keepdims=True), 32, 2.0) == pytest.approx(0)
    assert least(stray(along, 32, 2.0), 3) == [0]
    assert least([3.0, 1.0, 2.0, 0.0, 5.0, 5.0], 2) == [1, 3, 4]


def test_parts_of_lengths_that_eight_does_not_divide():
    for length in (3, 8, 13, 100):
        along = np.bincount(np.arange(length) * 8 // length, minlength=8) * -1.5
        assert stray([along], length, 1.5) == pytest.approx(0)
        assert stray([along], length, 1.0) == pytest.approx(0.5)


def test_the_chance_to_be_kept_is_that_over_all_groups():
    strays = [0.3, 0.1, 0.7, 0.1, 0.5]
    for each in (1, 2, 3, 5):
        groups = list(itertools.combinations(range(5), each))
        kept = [min(group, key=strays.__getitem__) for group in groups]
        np.testing.assert_allclose(chances(strays, each), np.bincount(kept, minlength=5) / len(groups))
