"""Trials of recall: what is real, what comes again, what is shared."""

from __future__ import annotations

import numpy as np
import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.recall import PIECE, recall_trials
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.pipelines.spans import Span


class Records:
    """Records in memory, ids; every position is known by the 12 bases there."""

    def __init__(self, **records: np.ndarray) -> None:
        self.records = records

    def fetch(self, record: str, start: int, end: int) -> np.ndarray:
        return self.records[record][start:end]


@pytest.fixture(scope="module")
def genome() -> Records:
    draws = np.random.default_rng(0)
    return Records(
        **{name: draws.integers(7, 11, size).astype(np.uint8) for name, size in (("a", 30_000), ("b", 3_000))}
    )


def place(genome: Records, ids: np.ndarray) -> tuple[str, int]:
    """Where a stretch comes from."""
    found = [(name, row.tobytes().find(ids.tobytes())) for name, row in genome.records.items()]
    return next((name, at) for name, at in found if at >= 0)


@pytest.mark.parametrize(("distance", "context"), [(64, 2_048), (1_024, 2_048), (4_096, 8_192)])
def test_controls_are_real_and_variants_differ_in_the_piece_alone(genome, distance, context) -> None:
    spans = [Span("a", 1_000, 29_000), Span("b", 0, 2_500)]
    found = recall_trials(genome, spans, distance, count=6, seed=3)
    assert found.context == context
    assert list(found.pieces) == ["control", "foreign control", "exact", "mutated", "reverse complement"]
    assert {pieces.shape for pieces in found.pieces.values()} == {(6, PIECE)}
    assert found.gap.shape == (6, distance)
    seen = set()
    for at in range(6):
        parts = [found.lead[at], found.pieces["control"][at], found.gap[at], found.target[at]]
        whole = np.concatenate(parts)
        assert len(whole) == context
        name, start = place(genome, whole)
        span = spans["ab".index(name)]
        assert span.start <= start <= span.end - context
        seen.add((name, start))
        target = found.target[at]
        assert np.array_equal(found.pieces["exact"][at], target)
        assert np.array_equal(DnaTokenizer().reverse_complement(found.pieces["reverse complement"][at]), target)
        changed = found.pieces["mutated"][at] != target
        assert 5 < changed.sum() < 60
        place(genome, found.pieces["foreign control"][at])
        assert not np.array_equal(found.pieces["foreign control"][at], found.pieces["control"][at])
    assert len(seen) == 6
    again = recall_trials(genome, spans, distance, count=6, seed=3)
    assert all(np.array_equal(found.pieces[name], again.pieces[name]) for name in found.pieces)
    other = recall_trials(genome, spans, distance, count=6, seed=4)
    assert not np.array_equal(found.target, other.target)


def test_copies_stand_end_to_end_before_the_gap(genome) -> None:
    found = recall_trials(genome, [Span("a", 0, 30_000)], 64, count=3, copies=[1, 2, 4], mutated=0.5)
    assert list(found.pieces)[-2:] == ["exact, 2 copies", "exact, 4 copies"]
    assert {pieces.shape for pieces in found.pieces.values()} == {(3, 4 * PIECE)}
    before = found.pieces["control"][:, : 2 * PIECE]
    assert np.array_equal(found.pieces["exact, 2 copies"], np.concatenate([before, found.target, found.target], 1))
    assert np.array_equal(found.pieces["exact, 4 copies"], np.tile(found.target, 4))
    last = slice(3 * PIECE, None)
    share = (found.pieces["mutated"][:, last] != found.target).mean()
    assert 0.4 < share < 0.6
    assert np.array_equal(found.pieces["exact"][:, : 3 * PIECE], found.pieces["control"][:, : 3 * PIECE])


def test_unknown_bases_stay_out_of_the_pieces(genome) -> None:
    ids = genome.records["a"].copy()
    ids[::400] = 11
    found = recall_trials(Records(a=ids), [Span("a", 0, 30_000)], 64, count=4)
    assert (found.target < 11).all()
    assert all((pieces < 11).all() for pieces in found.pieces.values())
    ids[::50] = 11
    with pytest.raises(InputError, match="200 draws of 2,048 bases of the split all had unknown bases"):
        recall_trials(Records(a=ids), [Span("a", 0, 30_000)], 64, count=4)


def test_a_split_that_is_too_short_is_named(genome) -> None:
    with pytest.raises(
        InputError, match="no stretch of the split has the 32,768 bases that a distance of 20,000 takes"
    ):
        recall_trials(genome, [Span("a", 0, 30_000)], 20_000, count=4)
