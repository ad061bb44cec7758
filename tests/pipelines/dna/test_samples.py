"""The report on samples: each measure against a count by hand, and what each of them is there to find."""

import numpy as np
import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.samples import (
    composition,
    describe_samples,
    divergence,
    dust_scores,
    sample_report,
    spectrum_of,
)
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.pipelines.spans import Span

CODEC = DnaTokenizer()


class Genome:
    def __init__(self, **records: np.ndarray) -> None:
        self.records = records

    def fetch(self, record: str, start: int, end: int) -> np.ndarray:
        return self.records[record][start:end]


def draw(seed: int, length: int, shares=(0.3, 0.2, 0.2, 0.3)) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.arange(7, 11, dtype=np.uint8), length, p=shares)


def test_composition_by_hand():
    rows = [CODEC.encode("ACGTCGNN"), CODEC.encode("CCG")]
    result = composition(rows)
    assert result["gc"] == pytest.approx(7 / 9)
    # CG: two in the first, one in the second; 4 C, 3 G, 9 known bases.
    assert result["cpg"] == pytest.approx(3 * 9 / (4 * 3))
    assert result["low_complexity"] is None
    assert composition([CODEC.encode("NN")]) == {"gc": None, "cpg": None, "low_complexity": None}


def test_dust_scores_by_hand():
    text = "A" * 64 + "AC" * 32 + "N" + "A" * 63
    scores = dust_scores(CODEC.encode(text))
    # 62 triplets: all equal; 31 of each of two; the window with an unknown base is left out.
    assert scores.tolist() == [62 * 61 / 2 / 61, 2 * 31 * 30 / 2 / 61]
    assert (dust_scores(draw(0, 64_000, (0.25,) * 4)) < 2).all()


def test_divergence_by_hand():
    a, b = np.array([1, 0, 1]), np.array([0, 2, 0])
    assert divergence(a, a * 5) == 0
    assert divergence(a, b) == pytest.approx(1)
    assert divergence(np.array([3, 1]), np.array([1, 3])) == pytest.approx(0.75 * np.log2(1.5) + 0.25 * np.log2(0.5))
    assert divergence(a, np.zeros(3, int)) is None


def test_spectrum_is_of_both_strands():
    row = draw(1, 5000)
    assert (spectrum_of([row]) == spectrum_of([CODEC.reverse_complement(row)])).all()
    assert spectrum_of([row]).sum() == 4995


def test_report_tells_recital_drift_and_repeats():
    train, valid = draw(2, 60_000), draw(3, 20_000)
    genome = Genome(t=train, v=valid)
    fresh = draw(4, 4000)
    # The last quarter recites the training data, and is followed by a run.
    recited = np.concatenate([draw(5, 2500), train[10_000:11_000], np.full(500, 7, np.uint8)])
    result = sample_report([fresh, recited], genome, [("t", 0, 60_000)], [("v", 0, 20_000)], bins=4)
    assert (result["samples"], result["bases"]) == (2, 8000)
    assert result["own"]["longest_match"] >= 1000
    match = result["match"]
    assert match["sequence"] == 1
    assert match["position"] <= 2500
    assert match["start"] == 10_000 - (2500 - match["position"])
    assert match["strand"] == "+"
    assert [row["longest_match"] >= 500 for row in result["along"]] == [False, False, True, True]
    assert result["along"][0]["low_complexity"] == 0
    assert result["along"][3]["low_complexity"] > 0.2
    assert result["along"][3]["divergence"] > result["along"][0]["divergence"]
    assert result["valid"]["bases"] == 8000
    assert 8 <= result["valid"]["longest_match"] <= 20
    assert abs(result["valid"]["longest_match"] - result["chance_match"]) < 5
    # Held-out sequence of the same amount is as far as an honest sample is.
    honest = sample_report([draw(6, 8000)], genome, [("t", 0, 60_000)], [("v", 0, 20_000)])
    assert honest["own"]["divergence"] == pytest.approx(honest["valid"]["divergence"], rel=0.2)
    assert result["own"]["divergence"] > honest["own"]["divergence"]
    text = describe_samples(result)
    assert "The longest match, 1,00" in text
    assert "t:[10,000, " in text or "t:[9,99" in text


def test_a_slice_is_compared_with_as_much_held_out_sequence():
    """Slices of the same source as the training data are no further from it than their held-out slices, however small."""
    train, valid = draw(2, 400_000), draw(3, 40_000)
    genome = Genome(t=train, v=valid)
    spans = [Span("t", 0, 400_000)], [Span("v", 0, 40_000)]
    same = sample_report([draw(4, 4000)], genome, *spans)
    assert len(same["along"]) == 8
    for row in same["along"]:
        assert row["valid"]["bases"] == 500
        # Half a bit from the whole, as is any slice of this size.
        assert 0.4 < row["divergence"] < 0.8
        assert row["divergence"] == pytest.approx(row["valid"]["divergence"], rel=0.15)
        assert abs(row["longest_match"] - row["valid"]["longest_match"]) <= 4
        assert row["divergence"] > 3 * same["own"]["divergence"]
    places = {row["valid"]["divergence"] for row in same["along"]}
    assert len(places) == 8, "each slice has held-out sequence of its own"
    drifting = np.concatenate([draw(5, 3500), draw(6, 500, (0.05, 0.45, 0.45, 0.05))])
    excess = [
        row["divergence"] / row["valid"]["divergence"] for row in sample_report([drifting], genome, *spans)["along"]
    ]
    assert max(excess[:7]) < 1.15
    assert excess[7] > 1.2
    text = describe_samples(same)
    assert text.count("  validation") == 8


def test_a_sample_longer_than_any_held_out_span_is_compared_with_several():
    genome = Genome(t=draw(2, 60_000), v=draw(3, 6000))
    spans = [Span("v", 0, 900), Span("v", 1000, 1900), Span("v", 2000, 5000)]
    result = sample_report([draw(4, 4000), draw(5, 12)], genome, [Span("t", 0, 60_000)], spans, bins=2)
    assert result["valid"]["bases"] == 4012
    assert [row["valid"]["bases"] for row in result["along"]] == [2006, 2006]
    # No more than there is.
    assert sample_report([draw(4, 9000)], genome, [Span("t", 0, 60_000)], spans)["valid"]["bases"] == 4800
    assert "valid" not in sample_report([draw(4, 9000)], genome, [Span("t", 0, 60_000)])


def test_report_reads_a_share_of_a_large_genome_and_says_so():
    genome = Genome(t=draw(2, 5 * 2**20))
    result = sample_report([draw(4, 500)], genome, [("t", 0, 5 * 2**20)], reference_bases=2 * 2**20)
    assert result["train"]["bases"] == 2 * 2**20
    assert result["train"]["of"] == 5 * 2**20
    assert "valid" not in result
    assert "2,097,152 of 5,242,880 training bases" in describe_samples(result)


def test_report_without_data_and_of_nothing():
    result = sample_report([CODEC.encode("ACGTACGT")], bins=16)
    assert "train" not in result
    assert len(result["along"]) == 8
    assert "samples" in describe_samples(result)
    with pytest.raises(InputError, match="no bases"):
        sample_report([])
