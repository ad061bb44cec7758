"""Windows of one length and the tiling of spans into them."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamba_bio_audio.pipelines.spans import Interval, Span
from mamba_bio_audio.pipelines.windows import Windows, evenly_spaced, tile

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
    assert [windows[i] for i in range(len(windows))] == [
        Span("a", 0, 5),
        Span("a", 4, 9),
        Span("a", 8, 10),
        Span("b", 3, 5),
    ]
    assert len(tile([], 4)) == 0
    with pytest.raises(ValueError, match="at least 1"):
        tile([], 0)


def test_windows_of_a_human_genome_stay_small() -> None:
    windows = tile([Span("chr", at << 17, at + 1 << 17) for at in range(34_021)], 1024)
    assert len(windows) == 34_021 * 128
    assert windows.record.nbytes + windows.start.nbytes + windows.size.nbytes <= 16 * len(windows)


@pytest.mark.parametrize("length", [1, 7, 100, 1000])
def test_tiles_without_shared_symbols_cover_each_once(length: int) -> None:
    spans = [Span("a", 0, 100), Span("c", 30, 37), Span("b", 5, 6)]
    windows = tile(spans, length, shared=0)
    seen: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    for index in range(len(windows)):
        file, start, stop = windows[index]
        assert 1 <= stop - start <= length
        seen[file] += range(start, stop)
    assert seen == {"a": list(range(100)), "b": [5], "c": list(range(30, 37))}
    assert windows.targets == 108
    assert windows.select(windows.size == length).targets == sum(length * (n // length) for n in (100, 7, 1))
    assert len(tile([], length, shared=0)) == 0
    with pytest.raises(ValueError):
        tile(spans, 0, shared=0)


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
    assert evenly_spaced(9, 1).tolist() == [4]
    assert evenly_spaced(10, 2).tolist() == [2, 7]
    assert evenly_spaced(100, 4).tolist() == [12, 37, 62, 87]
    assert evenly_spaced(3, 3).tolist() == [0, 1, 2]


def test_evenly_spaced_by_hand() -> None:
    assert evenly_spaced(10, 5).tolist() == [1, 3, 5, 7, 9]
    assert evenly_spaced(3, 10).tolist() == [0, 1, 2]
    assert (np.diff(evenly_spaced(1000, 300)) > 0).all()


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
