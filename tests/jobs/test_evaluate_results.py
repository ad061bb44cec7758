"""Results of `mba evaluate`: texts, and reading them back from the JSON of a run."""

import pytest

from mamba_bio_audio.files import to_json
from mamba_bio_audio.jobs.evaluate_results import KmerReport, LikelihoodResult
from mamba_bio_audio.jobs.values_results import read_evaluation
from mamba_bio_audio.pipelines.domains import domain_of
from mamba_bio_audio.pipelines.scores import LikelihoodNotes, Scores

KMERS = {
    "k": 7,
    "strength": 0.001,
    "trained_on": 40_000,
    "candidates": [{"k": k} for k in range(1, 10)],
    "edges": [],
    "left_out": [],
    "count": 10,
    "labels": ["a", "b"],
    "chance": 0.5,
    "accuracy": {"value": 0.954, "low": 0.93, "high": 0.97, "groups": 73},
    "macro_f1": 0.9,
    "nats": 0.1,
    "classes": {},
    "confusion": [[5, 0], [0, 5]],
    "calibration": {"ece": 0.0, "bins": []},
    "strata": {},
}


def test_the_bar_says_how_it_was_chosen() -> None:
    text = KmerReport(**KMERS).chosen()
    assert text.startswith(
        "7-mer logistic regression: 95.4% (93.0% to 97.0%); 40,000 training sequences, k from 1 to 9"
    )
    assert "1/0.001, chosen on validation loss" in text
    assert "better baseline" not in text


def test_the_bar_says_when_it_may_be_too_low() -> None:
    text = KmerReport(**KMERS | {"edges": ["k = 10 is the largest tried"], "left_out": [8, 9]}).chosen()
    assert "at the edge of the grid, so a better baseline may exist: k = 10 is the largest tried" in text
    assert "left out because they would take too long, so a better baseline may exist: k = 8, 9" in text


def likelihood(**more) -> LikelihoodResult:
    notes = more.pop("beside", LikelihoodNotes())
    scores = Scores.of(1.3)
    return LikelihoodResult(weights="best", split="test", length=512, scored=99, model=scores, beside=notes, **more)


def test_a_domain_that_says_nothing_has_a_table_all_the_same() -> None:
    text = likelihood().text()
    assert "test split: 99 symbols scored once, windows of 512" in text
    assert "model (best)                   1.3000   1.8755      3.6693" in text
    assert set(likelihood().to_json()) == {"weights", "split", "length", "scored", "model"}


@pytest.mark.parametrize(
    ("kind", "notes"),
    [
        ("dna", {"bases": 100, "unknown": 0, "first_of_record": 1, "genomes": {}}),
        ("audio", {"quantizer": "mu-law", "sample_rate_hz": 8000, "yardsticks": {"LPC-32": 2.0}}),
    ],
)
def test_results_are_read_back_from_their_json(kind, notes) -> None:
    domain = domain_of(kind)
    result = likelihood(run="here", beside=domain.likelihood_notes(**notes), pictures=("curve.png",))
    found = result.to_json()
    assert list(found)[-len(notes) - 2 :] == ["model", *notes, "pictures"]
    assert {key: found[key] for key in notes} == notes
    assert "beside" not in found
    again = read_evaluation(found, domain)
    assert (again.text(), to_json(again.to_json())) == (result.text(), to_json(found))
    with pytest.raises(ValueError, match="foreign"):
        read_evaluation(found | {"foreign": 1}, domain)
