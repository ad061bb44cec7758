import itertools
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.corpus import Example
from mamba_bio_audio.pipelines.data import CorpusStream, DataModule, batch_of
from mamba_bio_audio.pipelines.dna.class_windows import WindowSampler, draw_evaluation_windows
from mamba_bio_audio.pipelines.dna.classes import summary_rows
from mamba_bio_audio.pipelines.dna.classes_config import DnaClassesConfig
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.pipelines.spans import Region
from mamba_bio_audio.pipelines.stream import Stretch

L = 64


def module(path, *, length: int = L, batch_size: int = 6, seed: int = 0, **options) -> DataModule:
    where = {name: options.pop(name) for name in ("start_sample", "rank", "world_size") if name in options}
    config = DnaClassesConfig(path=path, **options)
    return DataModule(config, length=length, batch_size=batch_size, seed=seed, **where)


def batches(data: DataModule, count: int) -> list[dict[str, torch.Tensor]]:
    return list(itertools.islice(data.train_dataloader(), count))


def drawn(stream: CorpusStream, sample: int) -> Region:
    """The window of a sample, drawn anew."""
    region: Region = stream.windows.window(stream.sample(sample))[0]
    return region


def stacked(found: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    return torch.cat([torch.cat([batch["tokens"], batch["targets"]], 1) for batch in found])


@pytest.fixture
def paths(write_fasta, random_dna) -> list[str]:
    """Two classes of three records each, of the same names; class y is made of A and C only."""
    made = []
    for seed, (name, letters) in enumerate((("x", "ACGT"), ("y", "AC"))):
        records = {}
        for number, (size, part) in enumerate(((4000, "train"), (500, "train"), (1000, "val"), (1000, "test"))):
            records[f"r{number} split={part}"] = random_dna(size, 10 * seed + number, letters)
        made.append(write_fasta(f"{name}.fa", records))
    return made


def test_batch() -> None:
    batch = batch_of([Example(np.array([7, 8, 9], np.uint8), 1), Example(np.array([10], np.uint8), 0)], 4, pad_id=4)
    assert batch["tokens"].tolist() == [[7, 8, 9, 4], [10, 4, 4, 4]]
    assert batch["targets"].tolist() == [[-100, -100, 1, -100], [0, -100, -100, -100]]


def test_windows_have_one_length_and_the_right_class(paths) -> None:
    data = module(paths, reverse_complement=False)
    found = stacked(batches(data, 40))
    labels = found[:, -1]
    assert found.shape == (240, 2 * L)
    assert set(labels.tolist()) == {0, 1}
    assert 90 < (labels == 0).sum() < 150  # classes are uniform, whatever their size
    only_ac = ((found[:, :L] == 7) | (found[:, :L] == 8)).all(1)
    assert torch.equal(only_ac.long(), labels)


def test_windows_lie_in_the_training_split(paths) -> None:
    data = module(paths)
    data.setup()
    stream = data.stream()
    assert isinstance(stream.windows, WindowSampler)
    seen = [drawn(stream, i) for i in range(300)]
    assert {window.record for window in seen} == {"r0", "r1"}
    assert all(w.start >= 0 and w.end <= {"r0": 4000, "r1": 500}[w.record] and len(w) == L for w in seen)


def test_every_start_is_drawn_the_last_too(write_fasta, random_dna) -> None:
    """Of a region one base longer than a window both starts are drawn, for training and for evaluation."""
    files = []
    for seed, name in enumerate("xy"):
        parts = enumerate(("train", "val", "test"))
        files.append(write_fasta(f"{name}.fa", {f"{p} split={p}": random_dna(L + 1, 10 * seed + n) for n, p in parts}))
    data = module(files)
    data.setup()
    assert {drawn(data.stream(), i).start for i in range(100)} == {0, 1}
    starts = {
        window.start
        for seed in range(40)
        for window in draw_evaluation_windows(data.corpus.labelled, "test", L, per_class=5, seed=seed, max_unknown=1)
    }
    assert starts == {0, 1}


def test_contigs_by_length_or_uniform(paths) -> None:
    for contigs, expected in (("length", 437 / (437 + 3937)), ("uniform", 0.5)):
        data = module(paths, contigs=contigs)
        stream = data.stream()
        names = Counter(drawn(stream, i).record for i in range(1000))
        assert abs(names["r1"] / 1000 - expected) < 0.05


def test_matched_windows_are_the_same_place_of_every_class(paths) -> None:
    data = module(paths, matched=True)
    data.setup()
    stream = data.stream()
    windows = [drawn(stream, i) for i in range(40)]
    for x, y in zip(windows[::2], windows[1::2], strict=True):
        assert (x.label, y.label) == (0, 1)
        assert (x.record, x.start) == (y.record, y.start)
    # Both from the same strand: of class y, A and C forwards and G and T on the other strand.
    found = [stream.example(i) for i in range(40)]
    reverse = [set(ids.tolist()) <= {9, 10} for ids, label in (example[:2] for example in found) if label == 1]
    assert any(reverse)
    assert not all(reverse)


def test_reverse_complement(paths) -> None:
    plain, both = module(paths, reverse_complement=False), module(paths)
    plain.setup(), both.setup()
    codec = plain.codec
    turned = 0
    for i in range(60):
        forward, ids = plain.stream().example(i).ids, both.stream().example(i).ids
        turned += not np.array_equal(forward, ids)
        assert np.array_equal(forward, ids) or np.array_equal(codec.reverse_complement(forward), ids)
    assert 15 < turned < 45


def test_length_stages(paths) -> None:
    data = module(paths)
    data.stretches = [Stretch(16, 24, 0, 0, 2), Stretch(L, 6, 1)]
    found = batches(data, 3)
    assert [tuple(batch["tokens"].shape) for batch in found] == [(24, 16), (24, 16), (6, L)]


def test_evaluation_windows_are_fixed_and_apart(paths) -> None:
    data = module(paths, evaluation_windows=10)
    windows = data.corpus.evaluation_windows("test").windows
    assert windows == module(paths, evaluation_windows=10, seed=5).corpus.evaluation_windows("test").windows
    assert windows != module(paths, evaluation_windows=10, split_seed=5).corpus.evaluation_windows("test").windows
    assert Counter(window.label for window in windows) == {0: 10, 1: 10}
    assert {window.record for window in windows} == {"r3"}
    for label in (0, 1):
        starts = [window.start for window in windows if window.label == label]
        assert all(after - before >= L for before, after in pairwise(starts))
    # 1000 bases hold 15 windows of 64: no window is drawn twice to reach a number.
    assert len(module(paths, evaluation_windows=500).corpus.evaluation_windows("test").windows) == 30
    dataset = data.evaluation_dataset("test", max_tokens=4 * L)
    assert [int(item["targets"][-1]) for item in dataset] == [0, 0, 1, 1]


def test_unknown_bases_are_not_drawn(write_fasta, random_dna) -> None:
    gap = random_dna(600, 1) + "N" * 5000 + random_dna(600, 2)
    records = {f"{split} split={split}": gap for split in ("train", "val", "test")}
    found = [write_fasta(f"{name}.fa", records) for name in ("x", "y")]
    # The splits hold the same sequence.
    data = module(found, max_unknown=0.0, shared_bases="allow")
    assert not (stacked(batches(data, 10))[:, :L] == 11).any()
    windows = data.corpus.evaluation_windows("test").windows
    assert 10 < len(windows) < 40
    assert not any((data.corpus.labelled.fetch(w) == 11).any() for w in windows)


def strains(random_dna, seed: int, count: int = 6) -> dict[str, str]:
    """Genomes of 2,000 bases that differ in every hundredth base."""
    genome = random_dna(2000, seed)
    turned = str.maketrans("ACGT", "CATG")
    return {
        f"s{n}": "".join(base.translate(turned) if at % 100 == n else base for at, base in enumerate(genome))
        for n in range(count)
    }


def test_windows_of_strains_stand_in_train(write_fasta, random_dna) -> None:
    """Blocks of their genomes in different splits are the same sequence all the same."""
    found = [write_fasta(f"{name}.fa", strains(random_dna, seed)) for seed, name in enumerate("xy")]
    with pytest.raises(
        InputError, match=r"\d+ of the \d+ windows that valid is scored on share .* their class .*=allow"
    ):
        module(found, split="blocks", block_bases=400).setup()
    data = module(found, split="blocks", block_bases=400, shared_bases="allow")
    summary = data.summary()
    near = summary["near_sequences"]
    assert all(
        near[f"train/{split}"] > 0.5 * len(data.corpus.evaluation_windows(split).windows) for split in ("valid", "test")
    )
    assert any("windows are nearly the same" in text for _, text in summary_rows(summary))
    # Unrelated records of one class, and what another class has: neither tells a window's class.
    other = {f"r{n}": random_dna(2000, 10 + n) for n in range(6)}
    found = [write_fasta(f"{name}.fa", other) for name in "uv"]
    assert not any(module(found, split="blocks", block_bases=400).summary()["near_sequences"].values())


def test_windows_in_train_are_those_of_a_simple_count(write_fasta, random_dna, monkeypatch) -> None:
    monkeypatch.setattr("mamba_bio_audio.pipelines.dna.class_duplicates.PIECE_BASES", 150)
    complement = str.maketrans("ACGT", "TGCA")
    text, other = random_dna(1000, 1), random_dna(1000, 2)
    held = {
        # Each window of 63 bases and its target has a few words, or all, of train, on either strand.
        "a split=val": text[300:340] + random_dna(300, 3) + text[95:215].translate(complement)[::-1],
        "b split=test": random_dna(400, 4) + text[700:780],
    }
    found = [
        write_fasta("x.fa", {"t split=train": text, "short split=train": "ACGT", **held}),
        write_fasta(
            "y.fa", {"t split=train": other, "a split=val": random_dna(300, 5), "b split=test": random_dna(300, 6)}
        ),
    ]
    data = module(found, shared_bases="allow")

    def words(sequence: str) -> set[str]:
        every = {sequence[at : at + 31] for at in range(len(sequence) - 30)}
        return {min(word, word.translate(complement)[::-1]) for word in every}

    for split in ("valid", "test"):
        near = 0
        for window in data.corpus.evaluation_windows(split).windows:
            sequence = data.codec.decode(data.corpus.labelled.fetch(window))
            own = words(sequence)
            near += len(own & words((text, other)[window.label])) > 0.5 * len(own)
        assert near
        assert data.corpus.labelled.between[f"train/{split}"]["near"] == near


def test_more_training_sequence_than_is_compared_is_said(write_fasta, random_dna, monkeypatch) -> None:
    monkeypatch.setattr("mamba_bio_audio.pipelines.dna.class_duplicates.MAX_TRAIN_BASES", 1000)
    found = [write_fasta(f"{name}.fa", strains(random_dna, seed)) for seed, name in enumerate("xy")]
    summary = module(found, split="blocks", block_bases=400).summary()
    assert ("in two splits", "not compared: train has more than 134,217,728 bases") in summary_rows(summary)


def test_too_long_a_window(paths) -> None:
    with pytest.raises(InputError, match=r"class 'x' has no training stretch of 5,000 bases, the longest is 4,000"):
        batches(module(paths, length=5000), 1)
    with pytest.raises(InputError, match=r"the test split has no window of 2,000 bases for class 'x'"):
        module(paths, length=2000).evaluation_dataset("test")


def test_examples_keep_their_length_and_come_once_an_epoch(tmp_path: Path, random_dna) -> None:
    lines = ["sequence\tlabel\tsplit"]
    sizes = [20 + i for i in range(12)]
    lines += [f"{random_dna(size, size)}\t{'ab'[i % 2]}\ttrain" for i, size in enumerate(sizes)]
    lines += [f"{random_dna(30, 100 + i)}\t{'ab'[i % 2]}\t{('val', 'test')[i // 2]}" for i in range(4)]
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n")
    data = module(str(tmp_path / "t.tsv"))
    found = torch.cat([batch["tokens"] for batch in batches(data, 2)])
    assert sorted((found != 4).sum(1).tolist()) == sizes
    summary = data.summary()
    assert summary["sampling"] == "examples"
    assert summary["splits"]["test"]["evaluation_windows"] == 2
    with pytest.raises(InputError, match="has 31 bases, more than train.length 30; set train.length=31"):
        module(str(tmp_path / "t.tsv"), length=30).setup()


def test_shared_sequences_are_reported(tmp_path: Path, random_dna) -> None:
    lines = ["sequence\tlabel\tsplit", "ACGTT\ta\ttrain", "AACGT\ta\ttest", "GGGGG\tb\ttrain", "TTTTT\tb\ttest"]
    lines += ["ACC\ta\tvalid", "GTT\tb\tvalid"]
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n")
    data = module(str(tmp_path / "t.tsv"), shared_bases="allow")
    assert data.summary()["shared_sequences"] == {"train/valid": 0, "train/test": 1, "valid/test": 0}
    assert any(name == "in two splits" for name, _ in summary_rows(data.summary()))


def test_a_prepared_folder_brings_its_groups_and_regions(write_fasta, random_dna, tmp_path: Path) -> None:
    for seed, name in enumerate("xy"):
        records = {
            f"chr{i} split={part}": random_dna(1000, 10 * seed + i)
            for i, part in ((1, "train"), (2, "val"), (3, "test"))
        }
        write_fasta(f"data/{name}/chromosomes.fa", records)
    folder = tmp_path / "data"
    groups = "class\trecord\tgroup\n" + "".join(f"{c}\tchr{i}\t{i}\n" for c in "xy" for i in (1, 2, 3))
    (folder / "groups.tsv").write_text(groups)
    (folder / "regions.tsv").write_text("class\trecord\tstart0\tend\nx\tchr3\t0\t300\nx\tchr3\t200\t500\n")
    data = module(str(folder))
    data.setup()
    assert {region.locus for region in data.corpus.labelled.regions} == {"1", "2", "3"}
    masks = data.corpus.strata("test")
    for window, inside in zip(data.corpus.evaluation_windows("test").windows, masks["inside regions"], strict=True):
        assert inside == (window.label == 0 and window.start + L / 2 < 500)
    assert np.array_equal(masks["outside regions"], ~masks["inside regions"])
    assert masks["inside regions"].any()
    (tmp_path / "other.tsv").write_text("class\trecord\tstart0\tend\nhuman\tNC_000001.11\t0\t300\n")
    data = module(str(folder), regions=str(tmp_path / "other.tsv"))
    with pytest.raises(InputError, match="use the names of classes and records of the data"):  # noqa: PT012
        data.setup()
        data.corpus.strata("test")
    (folder / "groups.tsv").write_text(groups.replace("x\tchr3\t3", "x\tchr3\t1"))
    with pytest.raises(InputError, match="homologous group '1' is in several splits"):
        module(str(folder)).setup()


def test_examples_obey_max_unknown(write_fasta, tmp_path: Path, random_dna) -> None:
    """In tables and in BED alike: what has more unknown bases than windows may have is left out, counted and said."""
    gaps = {"x1": "N" * 5, "y2": "N" * 4, "z3": "R" * 6}
    texts = {f"{name}{i}": random_dna(40, 10 * i) for i in range(12) for name in "xyz"}
    texts |= {name: texts[name][: -len(gap)] + gap for name, gap in gaps.items()}
    (tmp_path / "t.tsv").write_text(
        "id\tsequence\tlabel\n" + "".join(f"{name}\t{text}\t{name[0]}\n" for name, text in texts.items())
    )
    fasta = write_fasta("g.fa", texts)
    (tmp_path / "g.bed").write_text("".join(f"{name}\t0\t40\t{name[0]}\n" for name in texts))
    for options in ({"path": str(tmp_path / "t.tsv")}, {"path": fasta, "labels": str(tmp_path / "g.bed")}):
        data = module(**options, shared_bases="allow")
        summary = data.summary()
        assert summary["left_out"] == {"regions": 2, "names": ["x1", "z3"]}
        assert sum(row["regions"] for row in summary["splits"].values()) == 34
        assert ("left out", "2 with more than 10% bases other than A, C, G, T: x1, z3") in summary_rows(summary)
        assert module(**options, shared_bases="allow", max_unknown=0.15).summary()["left_out"]["regions"] == 0
        assert module(**options, shared_bases="allow", max_unknown=0.0).summary()["left_out"]["regions"] == 3
    (tmp_path / "t.tsv").write_text("sequence\tlabel\nACGT\ta\nNNNN\tb\n")
    with pytest.raises(
        InputError, match=r"class 'b': every example has more than 10% bases .*'line 3'\); raise data.max"
    ):
        module(str(tmp_path / "t.tsv")).setup()


def test_one_sequence_under_two_labels(tmp_path: Path, random_dna) -> None:
    codec = DnaTokenizer()
    lines = ["sequence\tlabel\tsplit"]
    lines += [f"{random_dna(40, i)}\t{'ab'[i % 2]}\t{s}" for i, s in enumerate(["train"] * 16 + ["test"] * 4)]
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n")
    options = {"valid_fraction": 0, "shared_bases": "allow"}
    data = module(str(tmp_path / "t.tsv"), **options)
    assert data.summary()["label_conflicts"]["ceiling"] == {"all": 1, "train": 1, "valid": None, "test": 1}
    assert not [row for row in summary_rows(data.summary()) if row[0] == "two labels"]
    for i, label, split in ((0, "b", "train"), (1, "a", "train"), (1, "b", "train"), (17, "a", "test")):
        text = random_dna(40, i)
        if i == 17:
            text = codec.decode(codec.reverse_complement(codec.encode(text)))
        lines.append(f"{text}\t{label}\t{split}")
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n")
    data = module(str(tmp_path / "t.tsv"), **options)
    found = data.corpus.label_conflicts()
    assert (found["sequences"], found["regions"]) == (3, 7)
    assert found["example"] == ["line 2", "a", "line 22", "b"]
    # Of sequence 0 one of two, of 1 two of three, of 17 one of two can be right.
    assert found["ceiling"] == {"all": 21 / 24, "train": 17 / 19, "valid": None, "test": 4 / 5}
    (text,) = [value for name, value in summary_rows(data.summary()) if name == "two labels"]
    assert text.startswith("3 sequences have several labels, on one strand or the other, in 7 examples (line 2: a, ")
    assert text.endswith("accuracy on all examples cannot exceed 87.50 %")


def test_windows_of_classes_are_drawn_by_seed_stage_and_sample(write_fasta, random_dna) -> None:
    """What sample i of a stage is follows from three draws of its own: class, region, start."""
    paths = [
        write_fasta(
            f"{name}.fa", {f"r{i} split={s}": random_dna(900, i) for i, s in enumerate(("train", "val", "test"))}
        )
        for name in "xy"
    ]
    stages = [Stretch(16, 5, 0, 0, 2), Stretch(16, 5, 1, 0, 2), Stretch(L, 5, 2)]
    data = module(paths, seed=7, reverse_complement=False)
    data.stretches = stages
    found = batches(data, 6)
    seen = set()
    for stage, (length, batch) in enumerate(((16, found[:2]), (16, found[2:4]), (L, found[4:]))):
        for sample in range(10):
            bits = np.random.Philox(key=[7, 3], counter=[sample, stage, 0, 0])
            which, _, within = np.random.Generator(bits).random(3).tolist()
            label, start = int(2 * which), int(within * (900 - length + 1))
            expected = data.corpus.labelled.genomes[label].fetch("r0", start, start + length)
            row = batch[sample // 5]["tokens"][sample % 5]
            assert row.tolist() == expected.tolist()
            assert int(batch[sample // 5]["targets"][sample % 5, -1]) == label
            seen.add((label, start))
    assert len(seen) > 25


def test_examples_of_a_stage_come_in_a_permutation_of_its_own(tmp_path: Path, random_dna) -> None:
    lines = ["sequence\tlabel\tsplit"]
    lines += [f"{random_dna(20 + i, i)}\t{'ab'[i % 2]}\ttrain" for i in range(30)]
    lines += [f"{random_dna(60, 100 + i)}\t{'ab'[i % 2]}\t{('val', 'test')[i // 2]}" for i in range(4)]
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n")
    orders = []
    for seed in (0, 1):
        data = module(str(tmp_path / "t.tsv"), seed=seed)
        data.stretches = [Stretch(L, 6, 0, 0, 10), Stretch(L, 6, 1)]
        found = torch.cat([batch["tokens"] for batch in batches(data, 15)])
        numbers = ((found != 4).sum(1) - 20).tolist()  # their lengths tell them apart
        for low, stage, epoch in ((0, 0, 0), (30, 0, 1), (60, 1, 0)):
            bits = np.random.Philox(key=[seed, 1], counter=[0, stage, 0, epoch])
            orders.append(numbers[low : low + 30])
            assert orders[-1] == np.random.Generator(bits).permutation(np.arange(30)).tolist()
    assert len({tuple(order) for order in [*orders, list(range(30))]}) == 7


def test_large_tables_tell_how_far_they_are(tmp_path: Path, random_dna) -> None:
    letters = random_dna(5100 * 40)
    rows = [f"{letters[40 * i : 40 * i + 40]}\t{'ab'[i % 2]}" for i in range(5100)]
    (tmp_path / "t.tsv").write_text("sequence\tlabel\n" + "\n".join(rows) + "\n")
    told: list[tuple[str, int, int | None]] = []
    config = DnaClassesConfig(path=str(tmp_path / "t.tsv"))
    data = DataModule(config, length=L, batch_size=4, seed=0, progress=lambda *row: told.append(row))
    data.setup()
    assert told == [
        ("reading t.tsv, rows", 4096, None),
        ("equal sequences", 4096, 5100),
        ("near-duplicates by 31-mers, sequences", 4096, 5100),
        ("near-duplicates by 15-mers, sequences", 4096, 5100),
    ]
    assert data.corpus.labelled.progress is None


def test_records_shorter_than_a_window_change_no_evaluation_windows(write_fasta, random_dna) -> None:
    files = []
    for name, short in (("with", {"a split=test": random_dna(L - 1, 5)}), ("without", {})):
        records = {"t split=train": random_dna(500, 1)} | short | {"z split=test": random_dna(2000, 2)}
        files.append([write_fasta(f"{name}/{label}.fa", records) for label in "xy"])
    found = [module(paths, evaluation_windows=10).corpus.evaluation_windows("test").windows for paths in files]
    places = [[(window.record, window.start) for window in windows] for windows in found]
    assert len(places[0]) == 20
    assert places[0] == places[1]
    # Both classes are one file, which is told.
    described = module(files[0], evaluation_windows=10).corpus.summary()
    assert described["same_files"] == [("x/x.fa", "y/y.fa")]
    assert "x/x.fa and y/y.fa are the same sequence" in dict(summary_rows(described))["two labels"]
