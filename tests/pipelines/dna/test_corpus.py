import itertools
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.corpus import Example
from mamba_bio_audio.pipelines.data import CorpusStream, DataModule, batch_of
from mamba_bio_audio.pipelines.dna.config import DnaDataConfig
from mamba_bio_audio.pipelines.dna.corpus import apportion
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.policies import count_unknown
from mamba_bio_audio.pipelines.dna.prepare import summary_rows
from mamba_bio_audio.pipelines.spans import Interval, Span, merge
from mamba_bio_audio.pipelines.windows import Windows, evaluation_windows

L = 32


def module(path: str, *, length: int = L, batch_size: int = 4, seed: int = 0, **options) -> DataModule:
    where = {name: options.pop(name) for name in ("start_sample", "rank", "world_size") if name in options}
    config = DnaDataConfig(path=path, **options)
    return DataModule(config, length=length, batch_size=batch_size, seed=seed, **where)


def batches(data: DataModule, count: int) -> list[dict[str, torch.Tensor]]:
    return list(itertools.islice(data.train_dataloader(), count))


def rows(found: list[dict[str, torch.Tensor]]) -> list[list[int]]:
    return torch.cat([batch["tokens"] for batch in found]).tolist()


def stream_of(data: DataModule) -> CorpusStream:
    """The one stream of a training without length stages."""
    stream = data.train_dataloader().dataset.streams[0][0]
    assert isinstance(stream, CorpusStream)
    return stream


@pytest.fixture
def path(write_fasta, random_dna) -> str:
    return write_fasta("g.fa", {"a": random_dna(5000, 0), "b": random_dna(1000, 1)})


def seen(*ids: int) -> Example:
    """Bases as a genome is read: N is not scored."""
    return Example(np.array(ids, np.uint8), unscored=np.array(ids) == 11)


def test_batch_is_padded_and_shifted() -> None:
    batch = batch_of([seen(7, 8, 9, 10), seen(7, 11, 8)], 3, pad_id=4)
    assert batch["tokens"].tolist() == [[7, 8, 9], [7, 11, 8]]
    assert batch["targets"].tolist() == [[8, 9, 10], [-100, 8, -100]]
    batch = batch_of([seen(7, 8)], 4, pad_id=4)
    assert batch["tokens"].tolist() == [[7, 8, 4, 4]]
    assert batch["targets"].tolist() == [[8, -100, -100, -100]]
    assert batch["tokens"].dtype == batch["targets"].dtype == torch.int64


def test_batches_are_windows_of_the_training_split(path: str) -> None:
    data = module(path)
    epoch = -(-len(data_windows(data)) // 4)
    found = batches(data, epoch)
    assert all(batch["tokens"].shape == batch["targets"].shape == (4, L) for batch in found)
    for batch in found:
        inside = batch["targets"][:, :-1] != -100
        assert (batch["targets"][:, :-1][inside] == batch["tokens"][:, 1:][inside]).all()
    windows = data_windows(data)
    expected = sorted(
        batch_of([data.corpus.read(windows[i])], L, pad_id=4)["tokens"][0].tolist() for i in range(len(windows))
    )
    assert sorted(rows(found)[: len(windows)]) == expected


def is_reversed(stream: CorpusStream, sample: int) -> bool:
    return stream.corpus.is_reversed(stream.sample(sample))


def place(stream: CorpusStream, sample: int) -> Span:
    return stream.corpus.place(stream.windows, stream.sample(sample))


def data_windows(data: DataModule):
    return data.corpus.windows(data.length)


def test_each_epoch_is_another_permutation(path: str) -> None:
    data = module(path)
    count = len(data_windows(data))
    stream = stream_of(data)
    epochs = [[stream.window_index(epoch * count + k) for k in range(count)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    other = stream_of(module(path, seed=1))
    assert [other.window_index(k) for k in range(count)] != epochs[0]


@pytest.mark.parametrize("reverse_complement", [False, True])
def test_resume_equals_uninterrupted(path: str, reverse_complement: bool) -> None:
    # More than an epoch, with another batch size after the interruption.
    whole = rows(batches(module(path, reverse_complement=reverse_complement), 100))
    first = rows(batches(module(path, reverse_complement=reverse_complement), 37))
    rest = module(path, reverse_complement=reverse_complement, start_sample=37 * 4, batch_size=7)
    assert [*first, *rows(batches(rest, 36))] == whole


def test_reverse_complement_depends_on_seed_and_sample_only(path: str) -> None:
    forward = stream_of(module(path))
    both = stream_of(module(path, reverse_complement=True))
    coins = [is_reversed(both, sample) for sample in range(2000)]
    assert 900 < sum(coins) < 1100
    assert coins == [is_reversed(both, sample) for sample in range(2000)]
    for sample in range(50):
        expected = forward.example(sample).ids
        if coins[sample]:
            expected = forward.corpus.codec.reverse_complement(expected)
        assert both.example(sample).ids.tolist() == expected.tolist()
    assert not any(is_reversed(forward, sample) for sample in range(50))


def test_contig_shorter_than_the_window_is_padded(write_fasta) -> None:
    path = write_fasta("g.fa", {"short": "ACGTN", "one": "A"})
    data = module(path, valid_fraction=0, test_fraction=0, max_unknown=0.5)
    batch = batches(data, 1)[0]
    assert batch["tokens"][0].tolist() == [7, 8, 9, 10, 11] + [4] * (L - 5)
    assert batch["targets"][0].tolist() == [8, 9, 10] + [-100] * (L - 3)
    with pytest.raises(InputError, match="the valid split has no base"):
        data.evaluation_dataset("valid")


@pytest.mark.parametrize("size", [60, 500])
def test_genome_smaller_than_one_window(size: int, write_fasta, random_dna) -> None:
    data = module(write_fasta("g.fa", {"r": random_dna(size)}), length=1024)
    assert (batches(data, 1)[0]["targets"] != -100).any()
    for split in ("train", "valid", "test"):
        scored = sum(int((example["targets"] != -100).sum()) for example in data.evaluation_dataset(split))
        assert scored == data.corpus.evaluation_windows(split).scored > 0


def test_nothing_to_train_on(write_fasta) -> None:
    data = module(write_fasta("g.fa", {"r": "N" * 500 + "RYRY" * 100}), valid_fraction=0, test_fraction=0)
    with pytest.raises(InputError, match=r"no window to train on: 900 bases.*29 windows; 29 skipped"):
        data.train_dataloader()


def test_evaluation_counts_and_groups(write_fasta, random_dna, tmp_path: Path) -> None:
    for name, seed in (("x", 0), ("y", 1)):
        write_fasta(f"f/{name}.fa", {"r": random_dna(3000, seed, "ACGTACGTACGTACGTN")})
    data = module(str(tmp_path / "f"))
    dataset = data.evaluation_dataset("valid")
    spans = data.corpus.spans("valid")
    known = {0: 0, 1: 0}
    for record, start, end in spans:
        ids = data.corpus.genome.fetch(record, max(start, 1), end)
        known[data.corpus.genome.genome_of(record)] += int((ids != 11).sum())
    scored = {0: 0, 1: 0}
    for example in dataset:
        scored[int(example["group"])] += int((example["targets"] != -100).sum())
    assert scored == known
    assert sum(scored.values()) == data.corpus.evaluation_windows("valid").scored
    batch = next(iter(data.evaluation_dataloader("valid", 3)))
    assert batch["group"].shape == (3,)
    with pytest.raises(InputError, match="not 'dev'"):
        data.evaluation_dataset("dev")


def test_evaluation_windows_are_on_record(path: str) -> None:
    """The manifest's fingerprint of a split's windows is that of every other data module's, and of no other windows."""

    def recorded(**options) -> str:
        return module(path, **options).summary()["splits"]["valid"]["evaluation_windows_sha256"]

    assert recorded() == recorded(seed=5, windows="random", reverse_complement=True)
    assert recorded() != recorded(split_seed=1)
    assert recorded() != recorded(length=L + 1)


def test_evaluation_max_tokens(path: str) -> None:
    data = module(path)
    few = data.evaluation_dataset("train", max_tokens=10 * L)
    assert len(few) == 10
    starts = [few.windows[index].start for index in range(10)]
    assert starts == [data.evaluation_dataset("train", max_tokens=10 * L).windows[i].start for i in range(10)]
    assert len(data.evaluation_dataset("train", max_tokens=1)) == 1
    assert len(data.evaluation_dataset("train", max_tokens=10**9)) == len(data.evaluation_dataset("train"))


def test_what_becomes_of_shared_bases(path: str, tmp_path: Path) -> None:
    (tmp_path / "x.bed").write_text("a 0 1000 train\na 900 2000 valid\na 1900 3000 test\n")
    intervals = str(tmp_path / "x.bed")
    with pytest.raises(
        InputError, match=r"100 between train and valid, 100 between valid and test.*drop, trim or allow"
    ):
        module(path, intervals=intervals, shared_bases="error").setup()
    shared = {"train/valid": 100, "train/test": 0, "valid/test": 100}
    allowed = module(path, intervals=intervals, shared_bases="allow")
    summary = allowed.summary()
    assert summary["shared_bases"] == shared
    # 32 tiles, of which the four from 896 on hold bases of validation.
    assert (summary["training_windows"], summary["clean_windows"]) == (32, 28)
    assert summary["splits"]["valid"]["bases"] == 1100
    for policy, windows, trimmed in (("drop", 28, 0), ("trim", 29, 1)):
        data = module(path, intervals=intervals, shared_bases=policy)
        summary = data.summary()
        assert summary["shared_bases"] == shared
        assert (summary["training_windows"], summary["trimmed_windows"]) == (windows, trimmed)
        assert summary["dropped_windows"] == 32 - windows
        assert [summary["splits"][split]["bases"] for split in ("train", "valid", "test")] == [900, 1000, 1100]
        read = [data_windows(data)[index] for index in range(len(data_windows(data)))]
        assert max(span.end for span in read) == (897 if policy == "drop" else 900)
    rows = dict(summary_rows(summary))
    assert rows["bases in two splits"] == "100 train/valid, 100 valid/test"
    assert rows["windows without them"] == "28 of 32; of the others 1 trimmed, 3 dropped"


def test_grown_windows_are_counted_after_growth(path: str, tmp_path: Path) -> None:
    (tmp_path / "x.bed").write_text("a 100 120 train\na 200 230 train\na 130 150 test\na 1000 1100 valid\n")
    data = module(path, intervals=str(tmp_path / "x.bed"), windows="grow-ends", shared_bases="allow")
    read = [tuple(data_windows(data)[index])[1:] for index in range(len(data_windows(data)))]
    assert read == [(100, 133), (87, 120), (200, 233), (197, 230)]
    assert data.summary()["shared_bases"] == {"train/test": 3, "train/valid": 0, "valid/test": 0}
    # As warm-up stages see it: longer intervals are tiled.
    assert [size for size in data.training_windows(16).size] == [17, 4, 17, 14]
    clean = module(path, intervals=str(tmp_path / "x.bed"), windows="grow-ends")
    assert [tuple(data_windows(clean)[index])[1:] for index in range(len(data_windows(clean)))] == read[1:]
    with pytest.raises(InputError, match=r"data.windows=grow-ends, training windows of 32 bases.*3 of test"):
        module(path, intervals=str(tmp_path / "x.bed"), windows="grow-ends", shared_bases="error").setup()


def test_random_windows_move_inside_their_interval(path: str, tmp_path: Path) -> None:
    (tmp_path / "x.bed").write_text("a 100 400 train\na 390 420 test\nb 10 40 train\nb 500 1000 valid\n")
    options = {"intervals": str(tmp_path / "x.bed"), "windows": "random"}
    data = module(path, **options)
    stream = stream_of(data)
    count = len(data_windows(data))
    spans = [place(stream, sample) for sample in range(300 * count)]
    assert all((span.record, span.start, span.end) == ("b", 10, 40) for span in spans if span.record == "b")
    inside = [span for span in spans if span.record == "a"]
    assert all(span.start >= 100 and span.end <= 390 and span.end - span.start == L + 1 for span in inside)
    # Every start that can be is found but those near to the test split, whose windows stay where they are.
    assert {span.start for span in inside} >= set(range(100, 330))
    again = stream_of(module(path, **options, start_sample=7))
    assert [place(again, sample) for sample in range(50)] == spans[:50]
    other = stream_of(module(path, **options, seed=1))
    assert [place(other, sample) for sample in range(50)] != spans[:50]
    whole, rest = rows(batches(module(path, **options), 9)), module(path, **options, start_sample=8)
    assert rows(batches(rest, 7)) == whole[8:]


def test_a_random_window_never_moves_into_unknown_bases(write_fasta, random_dna) -> None:
    text = random_dna(100) + "N" * 200 + random_dna(100)
    options = {"valid_fraction": 0, "test_fraction": 0, "windows": "random"}
    stream = stream_of(module(write_fasta("g.fa", {"a": text}), **options))
    for sample in range(300):
        assert stream.example(sample).ids.tolist().count(11) <= 3


@pytest.fixture
def two_genomes(write_fasta, random_dna, tmp_path: Path) -> str:
    for name, size, seed in (("big", 6000, 0), ("small", 900, 1)):
        write_fasta(f"two/{name}.fa", {"r": random_dna(size, seed)})
    return str(tmp_path / "two")


def test_genomes_are_weighted(two_genomes: str) -> None:
    options = {"weights": {"big": 1, "small": 3}, "valid_fraction": 0, "test_fraction": 0}
    data = module(two_genomes, **options)
    count = len(data_windows(data))
    own = data.summary()["windows_per_genome"]
    assert own == {"big": 188, "small": 29}
    stream = stream_of(data)
    taken = [[stream.window_index(epoch * count + k) for k in range(count)] for epoch in range(8)]
    genome_of = [data.corpus.genome.genome_of(data_windows(data)[index].record) for index in range(count)]
    assert [sum(genome_of[index] for index in epoch) for epoch in taken] == [163] * 8
    for epoch in taken:
        first_half = [genome_of[index] for index in epoch[: count // 2]]
        assert 0.5 < sum(first_half) / len(first_half) < 1
    # Each genome is gone round evenly: no window of it is read twice more often than another.
    for genome, size in ((0, 188), (1, 29)):
        visits = Counter(index for epoch in taken for index in epoch if genome_of[index] == genome)
        assert len(visits) == size
        assert max(visits.values()) - min(visits.values()) <= 1
    assert taken[0] != taken[1]
    whole = rows(batches(data, 70))
    assert rows(batches(module(two_genomes, **options, start_sample=61 * 4), 9)) == whole[61 * 4 :]
    assert dict(summary_rows(data.summary()))["shares by weight"] == "big 25.0%, small 75.0%"


def test_weights_name_genomes(two_genomes: str) -> None:
    only = module(two_genomes, weights={"small": 2}, valid_fraction=0, test_fraction=0)
    stream = stream_of(only)
    read = {data_windows(only)[stream.window_index(k)].record for k in range(2 * len(data_windows(only)))}
    assert read == {"small:r"}
    with pytest.raises(InputError, match="data.weights: no genome 'tiny'; there are big, small"):
        module(two_genomes, weights={"tiny": 1}).setup()
    with pytest.raises(ValueError, match="one of them above 0"):
        DnaDataConfig(weights={"big": 0})
    assert apportion(10, [1, 1, 1]) == [4, 3, 3]
    assert apportion(7, [0, 2, 5]) == [0, 2, 5]


def test_case_policies(write_fasta, random_dna) -> None:
    text = random_dna(320) + random_dna(320, 1).lower() + random_dna(160, 2) + random_dna(160, 3).lower()
    path = write_fasta("g.fa", {"r": text})
    options = {"valid_fraction": 0, "test_fraction": 0}
    plain = module(path, **options)
    assert plain.summary()["case"] == "upper"
    # Tokens never depend on case, and under `upper` neither does what is scored.
    upper = module(write_fasta("u.fa", {"r": text.upper()}), **options)
    assert rows(batches(plain, 20)) == rows(batches(upper, 20))
    dropping = module(path, case="drop", max_lower=0.5, **options)
    summary = dropping.summary()
    assert (summary["training_windows"], summary["lower_windows"]) == (15, 15)
    for index in range(len(data_windows(dropping))):
        assert dropping.corpus.genome.lower_case(*data_windows(dropping)[index]).mean() <= 0.5
    assert "15 skipped (more than 50% lower case)" in dict(summary_rows(summary))["training windows"]
    for weight in (0.0, 0.25, 1.0):
        data = module(path, case="weight", lower_weight=weight, reverse_complement=True, **options)
        stream = stream_of(data)
        scored = {True: 0, False: 0}
        seen = {True: 0, False: 0}
        for sample in range(600):
            row = stream.read(range(sample, sample + 1))
            lower = data.corpus.genome.lower_case(*place(stream, sample))
            lower = (lower[::-1] if is_reversed(stream, sample) else lower)[1:]
            for case in (True, False):
                seen[case] += int((lower == case).sum())
                scored[case] += int(((row["targets"][0, : len(lower)] != -100).numpy() & (lower == case)).sum())
        assert scored[False] == seen[False]
        assert scored[True] / seen[True] == pytest.approx(weight, abs=0.02)
    assert rows(batches(data, 20)) == rows(batches(module(path, reverse_complement=True, **options), 20))
    again = stream_of(module(path, case="weight", lower_weight=0.25, **options))
    targets = stream_of(module(path, case="weight", lower_weight=0.25, **options)).read(range(30))["targets"]
    assert torch.equal(again.read(range(30))["targets"], targets)


def test_intervals_file_in_the_folder_is_used(write_fasta, random_dna, tmp_path: Path) -> None:
    write_fasta("f/g.fa", {"r": random_dna(1000)})
    (tmp_path / "f" / "intervals.tsv").write_text(
        "file\trecord\tstart0\tend\tsplit\ng.fa\tr\t0\t500\ttrain\ng.fa\tr\t500\t700\tval\n"
    )
    data = module(str(tmp_path / "f"))
    assert data.summary()["splits"]["valid"]["bases"] == 200
    assert data.summary()["split_source"] == f"{tmp_path / 'f' / 'intervals.tsv'} (found in data.path)"
    (tmp_path / "x.bed").write_text("r 0 900 train\n")
    other = module(str(tmp_path / "f"), intervals=str(tmp_path / "x.bed"))
    assert other.summary()["splits"]["train"]["bases"] == 900


def test_summary_is_json_with_true_numbers(write_fasta) -> None:
    data = module(write_fasta("g.fa", {"r": "AACGT" * 200 + "acgtn" * 100}), valid_fraction=0, test_fraction=0)
    summary = json.loads(json.dumps(data.summary()))
    assert summary["bases"] == summary["splits"]["train"]["bases"] == 1500
    assert summary["splits"]["train"]["scored_bases"] == 1399
    assert summary["unknown_percent"] == pytest.approx(100 * 100 / 1500)
    assert summary["lower_case_percent"] == pytest.approx(100 * 500 / 1500)
    assert summary["composition"] == pytest.approx({"A": 500 / 1400, "C": 3 / 14, "G": 3 / 14, "T": 3 / 14})
    assert summary["training_windows"] + summary["skipped_windows"] == 47
    assert summary["length"] == L
    assert summary["files"][0]["name"] == "g.fa"


def test_wrong_settings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.path is not set"):
        module(None).setup()  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"data.intervals: .*no such file"):
        module(str(tmp_path), intervals="nowhere.bed").setup()
    with pytest.raises(ValueError, match="rank"):
        module("x", rank=2, world_size=2)
    with pytest.raises(ValueError, match="below 1"):
        DnaDataConfig(valid_fraction=0.6, test_fraction=0.6)


def test_evaluation_batches_carry_no_common_padding(write_fasta, random_dna) -> None:
    """What is left is scored as in whole windows."""
    path = write_fasta("g.fa", {"a": random_dna(700, 0), "b": random_dna(300, 1)})
    data = module(path, length=2048, batch_size=1, valid_fraction=0.4, test_fraction=0.2, block_bases=100)
    whole = data.evaluation_dataset("valid")
    for index, batch in enumerate(data.evaluation_dataloader("valid")):
        kept = batch["tokens"].shape[1]
        assert kept % (256 if kept > 256 else 32) == 0
        assert kept < 2048
        assert torch.equal(batch["tokens"][0], whole[index]["tokens"][:kept])
        assert torch.equal(batch["targets"][0], whole[index]["targets"][:kept])
        assert (whole[index]["targets"][kept:] == -100).all()


def test_progress_of_files_that_are_indexed(path: str) -> None:
    told: list[tuple[str, int, int | None]] = []

    def tell(what: str, done: int, total: int | None) -> None:
        told.append((what, done, total))

    config = DnaDataConfig(path=path)
    for expected in ([("indexing g.fa", os.path.getsize(path), os.path.getsize(path))], []):
        data = DataModule(config, length=L, batch_size=4, seed=0, progress=tell)
        data.setup()
        assert told == expected
        told.clear()


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
    def unknown(span: Span) -> int:
        return int(genome.count_unknown(*span))

    @given(spans_strategy)
    def check(intervals: list[Interval]) -> None:
        union = {(i.record, at) for i in intervals for at in range(i.start, i.end)}
        evaluation = evaluation_windows(merge(intervals), length, unknown=unknown)
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
