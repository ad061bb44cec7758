import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mamba_bio_audio.pipelines.coverage import Coverage
from mamba_bio_audio.pipelines.spans import Span, merge
from mamba_bio_audio.pipelines.windows import Windows, union_of

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


def columns(spans: list[Span]) -> Windows:
    names = ("b", "a", "unused")
    return Windows(
        names,
        np.array([names.index(span.record) for span in spans], dtype=np.int32),
        np.array([span.start for span in spans], dtype=np.int64),
        np.array([span.end - span.start for span in spans], dtype=np.int32),
        64,
    )


@given(spans_strategy, spans_strategy)
def test_counts_equal_those_of_sets(held: list[Span], spans: list[Span]) -> None:
    coverage = Coverage(held)
    assert bool(coverage) == bool(held)
    expected = [len(bases([span]) & bases(held)) for span in spans]
    assert [int(coverage.count(*span)) for span in spans] == expected
    assert coverage.in_windows(columns(spans)).tolist() == expected
    assert coverage.shared(spans) == len(bases(spans) & bases(held))
    wider = [Span(s.record, max(s.start - 2, 0), min(s.end + 3, SIZE)) for s in spans]
    room = coverage.in_windows(columns(spans), back=2, ahead=3).tolist()
    assert room == [len(bases([span]) & bases(held)) for span in wider]


@given(spans_strategy)
def test_union_of_windows(spans: list[Span]) -> None:
    assert sorted(union_of(columns(spans))) == sorted(merge(spans))


@given(spans_strategy, spans_strategy)
def test_longest_free_piece(held: list[Span], spans: list[Span]) -> None:
    cut = Coverage(held).longest_free(columns(spans), {"a": SIZE, "b": SIZE})
    taken = bases(held)
    for index, span in enumerate(spans):
        runs, at = [], span.start
        while at < span.end:
            end = at
            while end < span.end and (span.record, end) not in taken:
                end += 1
            if end > at:
                runs.append((at - end, at))
            at = end + 1
        size, start = min(runs, default=(0, None))
        assert cut.size[index] == -size
        assert start is None or cut[index] == Span(span.record, start, start - size)
