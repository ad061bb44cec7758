"""What is said of a grid whose best cell lies at its edge."""

import itertools

import pytest

from mamba_bio_audio.jobs.sampling_fit import untried

GRID = [{"temperature": t, "top_p": p} for t, p in itertools.product((1.05, 1.0, 0.9), (1.0, 0.95, 0.9))]


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 0.95, None),
        (1.0, None, None),
        (0.9, None, "temperatures below 0.9"),
        (1.05, 0.95, "temperatures above 1.05"),
        (1.0, 0.9, "top-p below 0.9"),
        (0.9, 0.9, "temperatures below 0.9 and top-p below 0.9"),
    ],
)
def test_what_lies_beyond_the_edge(temperature, top_p, expected):
    assert untried(temperature, top_p, GRID) == expected


def test_without_a_grid_nothing_does():
    assert untried(0.7, None, []) is None
