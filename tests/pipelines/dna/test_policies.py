from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.policies import lay_out, training_windows
from mamba_bio_audio.pipelines.spans import Interval
from mamba_bio_audio.run.config import load_config

TRAIN_INTERVALS = 34_021
INTERVAL = 1 << 17
# Longer than the human genome, and too short at its end for the windows grown there.
RECORDS = {"chr": TRAIN_INTERVALS * (INTERVAL // 2) + INTERVAL // 2}


def human_intervals() -> list[Interval]:
    """As many intervals of 131,072 as the published training split has, overlapping as they do there."""
    step = INTERVAL // 2
    return [Interval("chr", at * step, at * step + INTERVAL, "train") for at in range(TRAIN_INTERVALS)]


@pytest.mark.parametrize(
    ("policy", "length", "windows", "tokens"),
    [
        # Mamba, E.3.1: 2^17 / L pieces, all used; above 2^17 two windows an interval.
        ("tile", 131_072, 34_021, 4_459_200_512),
        ("tile", 1_024, 34_021 * 128, 4_459_200_512),
        ("grow-ends", 1_024, 34_021 * 128, 4_459_200_512),
        ("grow-ends", 131_072, 34_021, 4_459_200_512),
        ("grow-ends", 262_144, 2 * 34_021, 2 * 34_021 * 262_144),
        ("grow-ends", 1_048_576, 2 * 34_021, 2 * 34_021 * 1_048_576),
        # HyenaDNA: one window an interval at any length.
        ("head", 1_024, 34_021, 34_021 * 1_024),
        ("grow-both", 1_024, 34_021, 34_021 * 1_024),
        ("grow-both", 1_048_576, 34_021, 34_021 * 1_048_576),
        # Caduceus: 2^20 / L windows an interval, 35.7 B tokens at any length.
        ("grow-right", 131_072, 8 * 34_021, 34_021 * 1_048_576),
        ("grow-right", 1_048_576, 34_021, 34_021 * 1_048_576),
    ],
)
def test_windows_per_epoch_are_those_of_the_publications(policy, length: int, windows: int, tokens: int) -> None:
    found, slid = lay_out(human_intervals(), RECORDS, length, policy)
    assert len(found) == windows
    # A window of L inputs that ends with its interval lacks the one target beyond.
    assert 0 <= tokens - found.targets <= windows
    assert windows * length == tokens
    assert (slid > 0) == (length > INTERVAL or policy == "grow-right")
    assert found.start.min() >= 0
    assert (found.start + found.size).max() <= RECORDS["chr"]
    assert set(found.size.tolist()) <= {length, length + 1}


def test_policies_by_hand() -> None:
    """The windows of an interval longer and of one shorter than L = 10, by policy."""
    long, short = Interval("r", 40, 65, "train"), Interval("r", 80, 86, "train")
    expected = {
        "tile": ([(40, 51), (50, 61), (60, 65)], [(80, 86)]),
        "head": ([(40, 51)], [(80, 86)]),
        "grow-both": ([(40, 51)], [(78, 89)]),
        "grow-ends": ([(40, 51), (50, 61), (60, 65)], [(80, 91), (75, 86)]),
        "grow-right": ([(40, 51), (50, 61), (60, 71), (70, 80)], [(80, 91), (90, 101), (100, 111), (110, 120)]),
    }
    for policy, per_interval in expected.items():
        for interval, spans in zip((long, short), per_interval, strict=True):
            found, slid = lay_out([interval], {"r": 1000}, 10, policy, grow_to=40)
            assert ([tuple(found[at])[1:] for at in range(len(found))], slid) == (spans, 0), policy
    # An interval that is as wide already, or wider, stays as it is.
    for width, windows in ((20, [(40, 51), (50, 60)]), (25, expected["tile"][0])):
        found, _ = lay_out([Interval("r", 40, 40 + width, "train")], {"r": 1000}, 10, "grow-right", grow_to=20)
        assert [tuple(found[at])[1:] for at in range(len(found))] == windows
    with pytest.raises(InputError, match=r"10 does not divide it.*data.grow_to"):
        lay_out([long], {"r": 1000}, 10, "grow-right", grow_to=45)


@given(
    st.sampled_from(["grow-both", "grow-ends", "grow-right"]),
    st.integers(1, 60),
    st.integers(0, 59),
    st.integers(1, 20),
    st.sampled_from([1, 4, 8, 16]),
)
def test_record_ends_slide(policy, size: int, start: int, width: int, length: int) -> None:
    start = min(start, size - 1)
    interval = Interval("r", start, min(start + width, size), "train")
    found, slid = lay_out([interval], {"r": size}, length, policy, grow_to=16)
    wide, none_slid = lay_out([Interval("r", start + 100, interval.end + 100, "train")], {"r": 500}, length, policy, 16)
    assert none_slid == 0
    # As on a long record, but moved back by what would lie outside; shorter only where the record is.
    assert found.size.tolist() == [min(int(n), size) for n in wide.size]
    moved = 0
    for index in range(len(found)):
        place = int(wide.start[index]) - 100
        inside = min(max(place, 0), size - int(found.size[index]))
        assert found.start[index] == inside
        moved += inside != place or found.size[index] != wide.size[index]
    assert moved == slid


def test_random_lays_out_whole_windows_with_room() -> None:
    found, _ = lay_out([Interval("r", 40, 65, "train"), Interval("r", 80, 86, "train")], {"r": 1000}, 10, "random")
    assert [tuple(found[at])[1:] for at in range(len(found))] == [(40, 51), (50, 61), (54, 65), (80, 86)]
    assert found.back.tolist() == [0, 5, 5, 0]
    assert found.ahead.tolist() == [5, 4, 0, 0]
    some = found.select(found.start > 45)
    assert (some.back.tolist(), some.ahead.tolist()) == ([5, 5, 0], [4, 0, 0])


@pytest.fixture
def genome(write_fasta) -> Genome:
    return Genome(write_fasta("g.fa", {"a": "ACGTACGTAC" * 2 + "ACGTACGTNN" + "N" * 10 + "ACGTRCGTAC"}))


def test_unknown_windows_are_skipped(genome: Genome) -> None:
    intervals = [Interval("a", 0, 50, "train")]
    found = training_windows(intervals, genome, 9, max_unknown=0.1)
    # Windows at 0, 9, 18, 27, 36, 45 have 0, 0, 0, 9, 5, 0 unknown bases of 10, of 5 in the last.
    assert [found.windows[i].start for i in range(len(found.windows))] == [0, 9, 18, 45]
    assert (found.laid_out, found.too_unknown, found.clean) == (6, 2, 6)
    everything = training_windows(intervals, genome, 9)
    # Only the window with a single known base is of no use.
    assert len(everything.windows) + everything.too_unknown == 6
    assert everything.windows.size.min() >= 2


@given(
    st.lists(
        st.tuples(st.integers(0, 38), st.integers(1, 12), st.sampled_from(["train", "valid", "test"])), max_size=6
    ),
    st.sampled_from(["tile", "random", "head", "grow-both", "grow-ends", "grow-right"]),
)
def test_nothing_of_another_split_is_read(rows, policy) -> None:
    """Under drop and trim; and the counts are those of sets of bases."""
    intervals = [Interval("r", start, min(start + size, 40), split) for start, size, split in rows]
    bases = {
        split: {b for i in intervals if i.split == split for b in range(i.start, i.end)}
        for split in ("train", "valid", "test")
    }
    held = bases["valid"] | bases["test"]

    class Known:
        records = {"r": 40}  # noqa: RUF012

        @staticmethod
        def statistics(record):
            return type("S", (), {"unknown": 0})

    options = {"policy": policy, "grow_to": 16}
    allowed = training_windows(intervals, Known, 8, shared="allow", **options)
    laid = [set(range(allowed.windows[i].start, allowed.windows[i].end)) for i in range(len(allowed.windows))]
    laid_out, _ = lay_out([i for i in intervals if i.split == "train"], {"r": 40}, 8, **options)
    every = [set(range(laid_out[i].start, laid_out[i].end)) for i in range(len(laid_out))]
    read = set().union(*every)
    assert allowed.shared_bases == {f"train/{split}": len(read & bases[split]) for split in ("valid", "test")}
    assert allowed.clean == sum(not window & held for window in every)
    dropped = training_windows(intervals, Known, 8, shared="drop", **options)
    kept = [set(range(dropped.windows[i].start, dropped.windows[i].end)) for i in range(len(dropped.windows))]
    assert kept == [window for window in laid if not window & held]
    trimmed = training_windows(intervals, Known, 8, shared="trim", **options)
    kept = [set(range(trimmed.windows[i].start, trimmed.windows[i].end)) for i in range(len(trimmed.windows))]
    assert not any(window & held for window in kept)
    assert trimmed.dropped + trimmed.trimmed == trimmed.shared_windows == dropped.dropped
    for found in (dropped, trimmed):
        if found.windows.back is not None:
            for i in range(len(found.windows)):
                _, start, end = found.windows[i]
                room = range(start - found.windows.back[i], end + found.windows.ahead[i])
                assert not set(room) & held
    if any(allowed.shared_bases.values()):
        with pytest.raises(InputError, match="bases of other splits"):
            training_windows(intervals, Known, 8, shared="error", **options)


def test_a_human_genome_at_every_length_stays_quick(tmp_path: Path) -> None:
    """Laying out 34,021 intervals and counting what they share takes bounded memory: columns of 16 bytes a window."""
    found, _ = lay_out(human_intervals(), RECORDS, 1024, "grow-ends")
    assert found.record.nbytes + found.start.nbytes + found.size.nbytes <= 16 * len(found)


@pytest.mark.parametrize(
    ("recipe", "policy", "windows"),
    [
        ("dna/hg38@1.4m-paper", "grow-ends", 34_021 * 128),
        ("dna/hg38@1.4m-len1m-paper", "grow-ends", 2 * 34_021),
        ("dna/hg38@1.4m-hyenadna", "grow-both", 34_021),
        ("dna/hg38-caduceus@1k", "grow-right", 34_021 * 1024),
    ],
)
def test_recipes_read_the_published_windows(recipe: str, policy: str, windows: int, tmp_path: Path) -> None:
    config = load_config(recipe, [f"data.path={tmp_path}"])
    assert (config.data.windows, config.data.shared_bases) == (policy, "allow")
    # The published codes read windows whatever their share of N; the paper does not say.
    assert config.data.max_unknown == (0.1 if recipe.endswith("-paper") else 1)
    per_interval, _ = lay_out(human_intervals()[:10], RECORDS, config.train.length, config.data.windows)
    assert len(per_interval) * 34_021 == windows * 10


def test_a_window_needs_two_known_bases(write_fasta) -> None:
    """One known base is no target on one of the strands; two are, whatever `max_unknown` allows."""
    genome = Genome(write_fasta("w.fa", {"a": "NANNN" + "NAANN" + "NNNNN" + "ANNNC"}))
    intervals = [Interval("a", at, at + 5, "train") for at in (0, 5, 10, 15)]
    found = training_windows(intervals, genome, 4)
    assert found.windows.start.tolist() == [5, 15]
    assert found.too_unknown == 2


def test_limits_hold_at_equality(write_fasta) -> None:
    genome = Genome(write_fasta("w.fa", {"a": "ACGTACGTac" + "ACGTACGtac" + "ACGTACGTNN" + "ACGTACGNNN"}))
    intervals = [Interval("a", at, at + 10, "train") for at in (0, 10, 20, 30)]
    found = training_windows(intervals, genome, 9, max_lower=0.2, max_unknown=0.2)
    assert found.windows.start.tolist() == [0, 20]
    assert (found.too_unknown, found.too_lower) == (1, 1)
