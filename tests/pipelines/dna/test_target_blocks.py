"""Target blocks have their context and lie in the split."""

import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.target_blocks import target_blocks
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
    with pytest.raises(InputError, match="no stretch of 100 bases, a quarter of the shortest context; give a shorter"):
        target_blocks([Span("b", 0, 90)], genome, size=100, context=1, count=9)
