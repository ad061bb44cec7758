from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.policies import count_unknown
from mamba_bio_audio.pipelines.dna.windows import evaluation_windows
from mamba_bio_audio.pipelines.spans import Interval
from mamba_bio_audio.pipelines.windows import Windows

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
        assert evaluation.symbols == len(union)
        assert evaluation.first_of_record == sum(at == 0 for _, at in union)
        assert evaluation.unknown == sum(at > 0 and text[record][at] == "N" for record, at in union)
        assert evaluation.scored == sum(at > 0 and text[record][at] != "N" for record, at in union)
        assert count_unknown(evaluation.windows, genome).tolist() == [
            text[span.record][span.start : span.end].count("N")
            for span in (evaluation.windows[index] for index in range(len(evaluation.windows)))
        ]

    check()
