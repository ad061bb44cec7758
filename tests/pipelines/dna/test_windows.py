from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamba_bio_audio.pipelines.audio import windows as audio_windows
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.intervals import Interval, Span
from mamba_bio_audio.pipelines.dna.policies import count_unknown
from mamba_bio_audio.pipelines.dna.windows import (
    Windows,
    evaluation_windows,
    evenly_spaced,
    tile,
)

SIZES = {"a": 60, "b": 25}
spans_strategy = st.lists(
    st.builds(
        lambda record, start, size: (record, min(start, SIZES[record] - 1), min(start + size, SIZES[record])),
        st.sampled_from("ab"),
        st.integers(0, 59),
        st.integers(1, 60),
    ).map(lambda span: Interval(span[0], span[1], max(span[2], span[1] + 1), "test")),
    min_size=1,
    max_size=6,
)


def target_counts(windows: Windows) -> Counter[tuple[str, int]]:
    spans = [windows[index] for index in range(len(windows))]
    return Counter((span.record, at) for span in spans for at in range(span.start + 1, span.end))


@given(spans_strategy, st.integers(1, 70))
def test_tile_scores_every_base_but_the_first_once(intervals: list[Interval], length: int) -> None:
    windows = tile(intervals, length)
    expected = Counter((i.record, at) for i in intervals for at in range(i.start + 1, i.end))
    assert target_counts(windows) == expected
    assert windows.targets == expected.total()
    for index in range(len(windows)):
        span = windows[index]
        assert 2 <= span.end - span.start <= length + 1
        assert any(i.record == span.record and i.start <= span.start and span.end <= i.end for i in intervals)
    assert windows.size.dtype == np.int32


def test_tile_by_hand() -> None:
    windows = tile([Span("a", 0, 10), Span("b", 5, 6), Span("b", 3, 5)], 4)
    assert [windows[i] for i in range(len(windows))] == [("a", 0, 5), ("a", 4, 9), ("a", 8, 10), ("b", 3, 5)]
    assert len(tile([], 4)) == 0
    with pytest.raises(ValueError, match="at least 1"):
        tile([], 0)


def test_windows_of_a_human_genome_stay_small() -> None:
    windows = tile([Span("chr", at << 17, at + 1 << 17) for at in range(34_021)], 1024)
    assert len(windows) == 34_021 * 128
    assert windows.record.nbytes + windows.start.nbytes + windows.size.nbytes <= 16 * len(windows)


@pytest.fixture
def genome(write_fasta) -> Genome:
    return Genome(write_fasta("g.fa", {"a": "ACGTN" * 12, "b": "N" * 10 + "ACGTACGTACGTACG"}))


@pytest.mark.parametrize("length", [1, 3, 8, 100])
def test_evaluation_scores_each_known_base_of_the_union_once(genome: Genome, length: int) -> None:
    @given(spans_strategy)
    def check(intervals: list[Interval]) -> None:
        union = {(i.record, at) for i in intervals for at in range(i.start, i.end)}
        evaluation = evaluation_windows(intervals, genome, length)
        counts = target_counts(evaluation.windows)
        # Every base with a predecessor is a target exactly once; nothing outside the union is one.
        assert counts == Counter(base for base in union if base[1] > 0)
        text = {name: genome.codec.decode(genome.fetch(name, 0, size)) for name, size in SIZES.items()}
        assert evaluation.bases == len(union)
        assert evaluation.first_of_record == sum(at == 0 for _, at in union)
        assert evaluation.unknown == sum(at > 0 and text[record][at] == "N" for record, at in union)
        assert evaluation.scored == sum(at > 0 and text[record][at] != "N" for record, at in union)
        assert count_unknown(evaluation.windows, genome).tolist() == [
            text[span.record][span.start : span.end].count("N")
            for span in (evaluation.windows[index] for index in range(len(evaluation.windows)))
        ]

    check()


@given(st.integers(0, 500), st.integers(1, 600))
def test_evenly_spaced(count: int, wanted: int) -> None:
    chosen = evenly_spaced(count, wanted)
    assert len(chosen) == min(count, wanted)
    assert len(set(chosen.tolist())) == len(chosen)
    assert all(0 <= at < count for at in chosen)
    if len(chosen) > 1:
        gaps = np.diff(chosen)
        assert gaps.max() - gaps.min() <= 1


def test_evenly_spaced_is_centred() -> None:
    """Neither the first nor the last position, but the middles of equal parts."""
    for spaced in (evenly_spaced, audio_windows.evenly_spaced):
        assert spaced(9, 1).tolist() == [4]
        assert spaced(10, 2).tolist() == [2, 7]
        assert spaced(100, 4).tolist() == [12, 37, 62, 87]
        assert spaced(3, 3).tolist() == [0, 1, 2]


def test_fingerprint_tells_every_column() -> None:
    windows = Windows(("a", "b"), np.array([0, 1], np.int32), np.array([5, 7]), np.array([9, 9], np.int32), 8)
    others = [
        replace(windows, records=("a", "c")),
        replace(windows, record=np.array([1, 0], np.int32)),
        replace(windows, start=np.array([5, 6])),
        replace(windows, size=np.array([9, 8], np.int32)),
        windows.select(np.array([1, 0])),
    ]
    assert len({other.fingerprint() for other in (windows, *others)}) == 6
    assert replace(windows).fingerprint() == windows.fingerprint()
