"""What is said of a grid whose best cell lies at its edge."""

import itertools

import pytest

from mamba_bio_audio.jobs.sampling_fit import SamplingResult, untried

CUTS = ((1.0, 0.0), (0.95, 0.0), (0.9, 0.0), (1.0, 0.01), (1.0, 0.03))
GRID = [
    {"temperature": t, "top_p": top_p, "min_p": min_p}
    for t, (top_p, min_p) in itertools.product((1.05, 1.0, 0.9), CUTS)
]


@pytest.mark.parametrize(
    ("temperature", "top_p", "min_p", "expected"),
    [
        (1.0, 0.95, None, None),
        (1.0, None, None, None),
        (1.0, None, 0.01, None),
        (0.9, None, None, "temperatures below 0.9"),
        (1.05, 0.95, None, "temperatures above 1.05"),
        (1.0, 0.9, None, "top-p below 0.9"),
        (1.0, None, 0.03, "min-p above 0.03"),
        (0.9, 0.9, None, "temperatures below 0.9 and top-p below 0.9"),
    ],
)
def test_what_lies_beyond_the_edge(temperature, top_p, min_p, expected):
    assert untried(temperature, top_p, min_p, GRID) == expected
    # Grids of before there was min-p.
    before = [{"temperature": row["temperature"], "top_p": row["top_p"]} for row in GRID if not row["min_p"]]
    if min_p is None:
        assert untried(temperature, top_p, min_p, before) == expected


def test_without_a_grid_nothing_does():
    assert untried(0.7, None, None, []) is None


@pytest.mark.parametrize(("temperature", "told"), [(1.5, True), (0.5, True), (1.0, False)])
def test_a_temperature_at_the_edge_is_told_where_there_is_no_grid(temperature, told):
    made = SamplingResult(
        run="r",
        which="best",
        weights_sha256="",
        temperature=temperature,
        top_p=None,
        likelihood_temperature=temperature,
        likelihood={"0.5": 2.0, "1": 1.9, "1.5": 2.0},
        likelihood_symbols=10,
        valid_bits=1.9,
        seed=0,
        seconds={"likelihood": 1.0},
        device="cpu",
        made="",
    )
    assert ("That is the edge of what was tried, 0.5 to 1.5" in made.text()) == told
