"""Target blocks have their context and lie in the split."""

import numpy as np
import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.target_blocks import strata, target_blocks
from mamba_bio_audio.pipelines.spans import Span


@pytest.fixture
def genome(write_fasta, random_dna) -> Genome:
    return Genome(
        write_fasta("g.fa", {"a": random_dna(200, 0) + "N" * 50 + random_dna(250, 1), "b": random_dna(90, 2)})
    )


def test_every_block_has_its_context(genome) -> None:
    spans = [Span("a", 100, 500), Span("b", 0, 90)]
    blocks = target_blocks(spans, genome, size=10, context=120, count=1000)
    # All of [120, 500) but the unknown stretch; record b is too short.
    assert [b.start for b in blocks] == [*range(120, 200, 10), *range(250, 500, 10)]
    assert all(b.end - b.start == 10 and b.record == "a" for b in blocks)
    few = target_blocks(spans, genome, size=10, context=120, count=3)
    assert len(few) == 3
    assert set(few) < set(blocks)
    assert target_blocks(spans, genome, size=10, context=490, count=9) == [Span("a", 490, 500)]


def test_a_context_longer_than_any_record_is_refused(genome) -> None:
    with pytest.raises(InputError, match=r"500 bases before it.*possible context is 490"):
        target_blocks([Span("a", 100, 500)], genome, size=10, context=500, count=9)
    with pytest.raises(InputError, match="no stretch of 100 bases, a quarter of the shortest context; add a shorter"):
        target_blocks([Span("b", 0, 90)], genome, size=100, context=1, count=9)


def test_strata_part_the_bases():
    rng = np.random.default_rng(0)
    known, lower = rng.random((6, 8)) < 0.9, rng.random((6, 8)) < 0.4
    gc = np.array([0.1, 0.35, 0.42, 0.47, 0.6, 1.0])
    parts = strata(known, lower, gc, ["a", "a", "b", "b", "b", "c"])
    assert parts[0].members is known
    for kind in ("case", "gc", "record"):
        members = [part.members for part in parts if part.kind == kind]
        assert (np.sum(members, axis=0) == known).all(), kind
    assert [part.name for part in parts if part.kind == "gc"][:2] == ["GC 0% to 35%", "GC 35% to 40%"]
    # Nothing to compare: one case, one record.
    assert {part.kind for part in strata(known, known, gc, ["a"] * 6)} == {"all", "case", "gc"}
    assert {part.kind for part in strata(known, np.zeros_like(known), gc, ["a"] * 6)} == {"all", "gc"}
