"""One value type for stretches of sequences, one merge, one subtract."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamba_bio_audio.pipelines.spans import Interval, Region, Span, merge, shared_symbols, size_of, subtract
from mamba_bio_audio.pipelines.split_names import SPLITS

intervals_strategy = st.lists(
    st.builds(
        lambda record, start, size, split: Interval(record, start, start + size, split),
        st.sampled_from("ab"),
        st.integers(0, 40),
        st.integers(1, 20),
        st.sampled_from(SPLITS),
    ),
    max_size=12,
)

SIZE = 40
spans_strategy = st.lists(
    st.builds(
        lambda record, start, size: Span(record, start, min(start + size, SIZE)),
        st.sampled_from("ab"),
        st.integers(0, SIZE - 1),
        st.integers(1, 15),
    ),
    max_size=7,
)


def bases(spans: list) -> set[tuple[str, int]]:
    return {(span.record, at) for span in spans for at in range(span.start, span.end)}


def test_what_a_span_is() -> None:
    """Spans unpack into three values, whatever else they carry, have a size, and sort by place."""
    span, region = Span("a", 5, 1005), Region("a", 5, 1005, 1, "train", "l")
    for one in (span, Interval("a", 5, 1005, "train"), region):
        record, start, end = one
        assert (record, start, end, len(one)) == ("a", 5, 1005, 1000)
    assert str(span) == "a:[5, 1,005)"
    assert sorted([Span("b", 0, 1), Span("a", 7, 9), Span("a", 5, 9)])[0] == Span("a", 5, 9)
    assert size_of([span, Span("b", 1, 2), region]) == 2001
    assert len({span, replace(span)}) == 1
    with pytest.raises(ValueError, match="split must be one of"):
        Interval("a", 0, 1, "dev")
    with pytest.raises(ValueError, match="start < end"):
        Interval("a", 1, 1, "test")


@given(intervals_strategy)
def test_merge_is_the_union(intervals: list[Interval]) -> None:
    union = merge(intervals)
    assert bases(union) == bases(intervals)
    for first, second in itertools.pairwise(union):
        assert first.record != second.record or first.end < second.start


def test_merge_by_hand() -> None:
    """Adjacent spans are joined, unless they are to stay apart; empty ones vanish."""
    spans = [("b", 0, 5), ("a", 10, 20), ("a", 20, 30), ("a", 5, 12), ("a", 40, 41), ("a", 7, 7)]
    assert sorted(merge(spans)) == [Span("a", 5, 30), Span("a", 40, 41), Span("b", 0, 5)]
    assert Span("a", 5, 20) in merge(spans, adjacent=False)


@given(intervals_strategy)
def test_shared_symbols_counts_each_pair(intervals: list[Interval]) -> None:
    sets = {split: bases([i for i in intervals if i.split == split]) for split in SPLITS}
    assert shared_symbols(intervals) == {
        f"{a}/{b}": len(sets[a] & sets[b]) for a, b in itertools.combinations(SPLITS, 2)
    }


@given(spans_strategy, spans_strategy)
def test_subtract(held: list[Span], spans: list[Span]) -> None:
    left = subtract([Interval(span.record, span.start, span.end, "valid") for span in spans], held)
    assert bases(left) == bases(spans) - bases(held)
    assert all(interval.split == "valid" for interval in left)
    counts = [sum(base in bases([interval]) for interval in left) for base in sorted(bases(spans) - bases(held))]
    assert sum(counts) == sum(len(bases([span]) - bases(held)) for span in spans)


def test_pieces_keep_what_belongs_to_their_span() -> None:
    region = Region("a", 0, 10, 1, "train", "l", 3)
    assert subtract([region], [Span("a", 2, 4)]) == [replace(region, end=2), replace(region, start=4)]
