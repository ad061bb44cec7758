from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.data import DataModule
from mamba_bio_audio.pipelines.dna.class_splits import assign_splits
from mamba_bio_audio.pipelines.dna.classes_config import DnaClassesConfig
from mamba_bio_audio.pipelines.dna.labelled import Labelled, open_labelled
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer

L = 100


def split(path, **options) -> Labelled:
    config = DnaClassesConfig(path=path, **options)
    labelled = open_labelled(config)
    assign_splits(labelled, config, L)
    return labelled


def test_header_tags(write_fasta, random_dna) -> None:
    paths = [
        write_fasta(f"{name}.fa", {"a split=train": random_dna(500), "b split=val": random_dna(300)})
        for name in ("x", "y")
    ]
    labelled = split(paths)
    assert [(r.record, r.split) for r in labelled.regions] == [("a", "train"), ("b", "valid")] * 2
    assert labelled.origin == "split= in the FASTA headers"
    other = write_fasta("z.fa", {"a": random_dna(500)})
    message = (
        r"4 of 5 FASTA headers name a split \(.*record 'a': train\), but 1 do not \(.*z.fa: record 'a'\); .*split=draw"
    )
    with pytest.raises(InputError, match=message):
        split([*paths, other])
    assert split([*paths, other], split="draw", block_bases=100).origin.startswith("blocks drawn by split_seed 0")


def test_a_first_header_without_a_tag_hides_no_others(write_fasta, random_dna) -> None:
    names = {"scaffold": "", **{f"chr{i}": f" split={s}" for i, s in enumerate(["train"] * 3 + ["valid", "test"])}}
    records = {name + tag: random_dna(300, i) for i, (name, tag) in enumerate(names.items())}
    paths = [write_fasta(f"{name}.fa", records) for name in ("x", "y")]
    with pytest.raises(
        InputError, match=r"10 of 12 FASTA headers name a split .* 2 do not \(.*x.fa: record 'scaffold'\)"
    ):
        split(paths)
    for tagless in ("x.fa.gz", "y.fa.gz"):
        write_fasta(tagless, {name.replace("scaffold", "chr9 split=train"): text for name, text in records.items()})
    labelled = split([path + ".gz" for path in paths])
    assert [r.split for r in labelled.regions] == ["train"] * 4 + ["valid", "test"] + ["train"] * 4 + ["valid", "test"]


@pytest.mark.parametrize(
    "tag", ["Split=TRAIN", "SPLIT:train", "set=train", "subset=Train", "fold=train", "partition=train", "split = train"]
)
def test_other_spellings_of_the_tag(write_fasta, random_dna, tag: str) -> None:
    paths = []
    for name in ("x", "y"):
        records = {
            f"a {tag}": random_dna(300),
            f"b {tag.replace('rain', 'est').replace('RAIN', 'EST')}": random_dna(300),
        }
        records |= {f"c {tag.replace('train', 'dev').replace('Train', 'Dev').replace('TRAIN', 'DEV')}": random_dna(300)}
        paths.append(write_fasta(f"{name}.fa", records))
    assert [(r.record, r.split) for r in split(paths).regions] == [("a", "train"), ("b", "test"), ("c", "valid")] * 2


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (("split=train", "split=holdout"), "record 'b': unknown split 'holdout'; allowed: train, valid, test"),
        (("fold=1", "fold=2"), "record 'a': fold=1 does not name a split"),
        (("set=train", "set=7"), "record 'b': set=7 does not name a split"),
        (("split=train set=test", "split=test"), "record 'a': split=train and set=test contradict each other"),
        (("split=val", "split=dev"), "record 'b': split 'dev', but 'val' at .*record 'a', so it is unclear"),
        (("split=train", "split=eval"), "record 'b': split 'eval' could mean validation or test"),
    ],
)
def test_tags_that_are_not_understood(write_fasta, random_dna, tags, message: str) -> None:
    records = {f"{name} {tag}": random_dna(300) for name, tag in zip("ab", tags, strict=True)}
    with pytest.raises(InputError, match=message):
        split([write_fasta(f"{name}.fa", records) for name in ("x", "y")])


def test_other_words_in_headers_are_no_tags(write_fasta, random_dna) -> None:
    header = "r dataset:old offset=3 from a set: of many, unfold=train"
    paths = [write_fasta(f"{name}.fa", {header: random_dna(40_000, i)}) for i, name in enumerate("xy")]
    assert split(paths, block_bases=2000).origin.startswith("blocks drawn")
    # Beside split= a fold of a cross-validation is no split.
    tags = [f"{name} split={name} fold={i}" for i, name in enumerate(("train", "valid", "test"))]
    paths = [write_fasta(f"{name}.fa", {tag: random_dna(300) for tag in tags}) for name in "xy"]
    assert [r.split for r in split(paths).regions] == ["train", "valid", "test"] * 2


def test_split_header_without_tags(write_fasta, random_dna) -> None:
    paths = [write_fasta(f"{name}.fa", {"r": random_dna(500)}) for name in "xy"]
    with pytest.raises(InputError, match="data.split=header: no FASTA header names a split"):
        split(paths, split="header")


def test_blocks_keep_a_guard_of_one_window(write_fasta, random_dna) -> None:
    paths = [write_fasta(f"{name}.fa", {"r": random_dna(40_000, seed)}) for seed, name in enumerate(("x", "y"))]
    labelled = split(paths, block_bases=2000)
    again = split(paths, block_bases=2000)
    assert labelled.regions == again.regions
    assert split(paths, block_bases=2000, split_seed=1).regions != labelled.regions
    for label in (0, 1):
        regions = [r for r in labelled.regions if r.label == label]
        shares = Counter()
        for region in regions:
            shares[region.split] += len(region) / 40_000
        assert set(shares) == {"train", "valid", "test"}
        assert 0.03 < shares["valid"] < 0.15
        assert 0.03 < shares["test"] < 0.15
        for before, after in pairwise(regions):
            gap = after.start - before.end
            assert gap >= L if before.split != after.split else gap >= 0


def test_groups_stay_together(write_fasta, random_dna, tmp_path: Path) -> None:
    records = {f"locus{i}": random_dna(300, i) for i in range(30)}
    paths = [write_fasta("x.fa", records), write_fasta("y.fa", records)]
    labelled = split(paths, groups="record")
    where: dict[str, set] = {}
    for region in labelled.regions:
        where.setdefault(region.record, set()).add(region.split)
        assert region.locus == region.record
    assert all(len(found) == 1 for found in where.values())
    assert {found for (found,) in where.values()} == {"train", "valid", "test"}


def test_homologue_in_training_is_refused(write_fasta, random_dna, tmp_path: Path) -> None:
    x = write_fasta("x.fa", {"chr5 split=train": random_dna(300), "chr17 split=test": random_dna(300)})
    y = write_fasta("y.fa", {"chr4 split=test": random_dna(300), "chr19 split=train": random_dna(300)})
    groups = tmp_path / "groups.tsv"
    table = "class\trecord\tgroup\nx\tchr5\t5+17\nx\tchr17\t5+17\ny\tchr4\t4\ny\tchr19\t19\n"
    groups.write_text(table)
    with pytest.raises(InputError, match=r"group '5\+17' is in several splits: chr5 of x in train; chr17 of x in test"):
        split([x, y], groups=str(groups))
    groups.write_text(table.replace("chr17\t5+17", "chr17\t17"))
    assert {r.locus for r in split([x, y], groups=str(groups)).regions} == {"5+17", "17", "4", "19"}
    groups.write_text("class\trecord\tgroup\nx\tchr5\t1\n")
    with pytest.raises(InputError, match="no group for record 'chr17' of class 'x'"):
        split([x, y], groups=str(groups))


def test_intervals_by_class_and_by_file(write_fasta, random_dna, tmp_path: Path) -> None:
    x, y = (write_fasta(f"{name}/g.fa", {"r": random_dna(900)}) for name in ("x", "y"))
    table = tmp_path / "splits.tsv"
    lines = ["class\trecord\tstart0\tend\tsplit"]
    lines += [
        f"{name}\tr\t{low}\t{high}\t{part}"
        for name in "xy"
        for low, high, part in ((0, 400, "train"), (500, 700, "val"), (700, 900, "test"))
    ]
    table.write_text("\n".join(lines) + "\n")
    labelled = split({"x": x, "y": y}, intervals=str(table))
    assert [(r.label, r.start, r.end, r.split) for r in labelled.regions] == [
        (label, *span) for label in (0, 1) for span in ((0, 400, "train"), (500, 700, "valid"), (700, 900, "test"))
    ]
    assert len({r.locus for r in labelled.regions}) == 6
    shared = "\n".join(lines).replace("500", "300") + "\n"
    table.write_text(shared)
    with pytest.raises(InputError, match="100 bases of class 'x' are in two splits, train/valid"):
        split({"x": x, "y": y}, intervals=str(table))
    assert len(split({"x": x, "y": y}, intervals=str(table), shared_bases="allow").regions) == 6
    table.write_text("r\t0\t400\ttrain\n")
    with pytest.raises(InputError, match="line 1: record 'r' is in several classes: add a column class"):
        split({"x": x, "y": y}, intervals=str(table))
    # The order of data.classes is that of their numbers; the files are told apart by the class.
    table.write_text("\n".join(lines).replace("x\tr\t500", "x\tr\t450") + "\n")
    turned = split({"x": x, "y": y}, intervals=str(table), classes=["y", "x"])
    found = {turned.classes[r.label]: r.start for r in turned.regions if r.split == "valid"}
    assert found == {"x": 450, "y": 500}
    table.write_text("record\tclass\tstart0\tend\tsplit\nr\tx\t0\t901\ttrain\n")
    with pytest.raises(InputError, match=r"line 2: \[0, 901\) is not inside 'r' of 900 bases"):
        split({"x": x, "y": y}, intervals=str(table))
    table.write_text("record\tclass\tstart0\tend\tsplit\nr\tx\t0\t400\ttrain\n")
    with pytest.raises(InputError, match="train split has no sequence of class 'y'"):
        split({"x": x, "y": y}, intervals=str(table))


def test_examples_without_a_split(tmp_path: Path, random_dna) -> None:
    codec = DnaTokenizer()
    lines = ["sequence\tlabel"]
    for i in range(300):
        sequence = random_dna(30, i)
        lines.append(f"{sequence}\t{'ab'[i % 2]}")
        if i < 50:
            # The same sequence from the other strand must not end up in another split.
            lines.append(f"{codec.decode(codec.reverse_complement(codec.encode(sequence)))}\t{'ab'[i % 2]}")
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n")
    labelled = split(str(tmp_path / "t.tsv"))
    counts = Counter(region.split for region in labelled.regions)
    assert abs(counts["test"] - 35) <= 2
    assert abs(counts["valid"] - 32) <= 2
    for i in range(50):
        assert labelled.regions[2 * i].split == labelled.regions[2 * i + 1].split
    assert all(row["equal"] == row["near"] == 0 for row in labelled.between.values())


def test_validation_is_taken_from_training_only(tmp_path: Path, random_dna) -> None:
    lines = ["sequence\tlabel\tsplit"]
    lines += [f"{random_dna(30, i)}\t{'ab'[i % 2]}\t{'test' if i >= 100 else 'train'}" for i in range(120)]
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n")
    labelled = split(str(tmp_path / "t.tsv"))
    assert Counter(region.split for region in labelled.regions) == {"train": 90, "valid": 10, "test": 20}
    assert all(region.split == "test" for region in labelled.regions if int(region.record.split()[1]) >= 102)
    lines[5] = lines[5].replace("\ttrain", "\t")
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n")
    with pytest.raises(
        InputError, match=r"119 of 120 sequences name a split \(.*line 2: train\), but 1 do not \(.*line 6\)"
    ):
        split(str(tmp_path / "t.tsv"))


def test_a_bed_keeps_its_labels_and_splits_where_windows_are_drawn(write_fasta, random_dna, tmp_path: Path) -> None:
    path = write_fasta("g.fa", {f"r{i}": random_dna(900, i) for i in range(4)})
    bed = tmp_path / "g.bed"
    spans = [("r0", 0, 200), ("r0", 250, 450), ("r1", 0, 300), ("r2", 0, 300)]
    splits = ("train", "train", "valid", "test")
    lines = [(*span, "a", name) for span, name in zip(spans, splits, strict=True)]
    lines += [("r0", 500, 800, "b", "train"), ("r1", 400, 600, "b", "valid"), ("r3", 0, 300, "b", "test")]
    bed.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))
    labelled = split(path, labels=str(bed), sampling="windows")
    found = [(r.record, r.start, r.end, labelled.classes[r.label], r.split) for r in labelled.regions]
    assert found == lines
    assert labelled.origin == "the data"


def test_overlapping_regions_stay_together(write_fasta, random_dna, tmp_path: Path) -> None:
    path = write_fasta("g.fa", {"r": random_dna(20_000)})
    bed = tmp_path / "g.bed"
    # Triples that overlap in a chain, the first and the third do not.
    starts = [1000 * i + step for i in range(20) for step in (0, 150, 300)]
    bed.write_text("".join(f"r\t{at}\t{at + 200}\t{'ab'[i % 2]}\n" for i, at in enumerate(starts)))
    labelled = split(path, labels=str(bed), valid_fraction=0.3, test_fraction=0.3)
    assert {r.split for r in labelled.regions} == {"train", "valid", "test"}
    for i in range(20):
        triple = [r for r in labelled.regions if r.start // 1000 == i]
        assert len({r.split for r in triple}) == 1
        assert {r.locus for r in triple} == {f"r:{1000 * i}-{1000 * i + 500}"}
    bed.write_text("r\t0\t200\ta\ttrain\nr\t300\t500\tb\ttrain\nr\t199\t250\ta\ttest\nr\t700\t800\tb\ttest\n")
    with pytest.raises(InputError, match=r"the overlapping regions r:0-250 are in two splits, train and test"):
        split(path, labels=str(bed), valid_fraction=0)
    assert split(path, labels=str(bed), valid_fraction=0, shared_bases="allow").origin == "the data"


def test_header_tags_hold_for_examples_too(write_fasta, random_dna) -> None:
    splits = ["train"] * 3 + ["valid", "test"]
    paths = [
        write_fasta(f"{name}.fa", {f"{name}{i} split={s}": random_dna(90, i) for i, s in enumerate(splits)})
        for name in ("x", "y")
    ]
    assert [r.split for r in split(paths, sampling="examples").regions] == splits * 2


def test_few_examples_are_told_what_helps(tmp_path: Path, random_dna) -> None:
    table = tmp_path / "t.tsv"
    table.write_text("sequence\tlabel\n" + "".join(f"{random_dna(50, i)}\t{'abbbbb'[i % 6]}\n" for i in range(12)))
    message = (
        r"no sequence of class 'a' \(splits: drawn .*\); every class needs .* 'a' has 2 in all.*data.test_fraction=0"
    )
    with pytest.raises(InputError, match=message):
        split(str(table))
    assert {r.split for r in split(str(table), test_fraction=0).regions} == {"train", "valid"}
    table.write_text(f"sequence\tlabel\n{random_dna(50, 0)}\ta\n{random_dna(50, 1)}\tb\n")
    data = DataModule(DnaClassesConfig(path=str(table)), length=50, batch_size=1, seed=0)
    with pytest.raises(InputError, match=r"the valid split is empty .*raise data.valid_fraction"):
        data.evaluation_dataset("valid")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intervals": "i.tsv"}, "data.intervals requires FASTA files per class; tables, BED"),
        ({"split": "header"}, "data.split=header requires FASTA"),
        ({"matched": True}, "data.matched requires data.sampling=windows"),
    ],
)
def test_settings_that_the_source_cannot_follow(tmp_path: Path, random_dna, options, message: str) -> None:
    table = tmp_path / "t.tsv"
    table.write_text("sequence\tlabel\n" + "".join(f"{random_dna(50, i)}\t{'ab'[i % 2]}\n" for i in range(40)))
    with pytest.raises(InputError, match=message):
        split(str(table), **options)


def write_table(path: Path, rows) -> str:
    path.write_text("sequence\tlabel\n" + "".join(f"{sequence}\t{label}\n" for sequence, label in rows))
    return str(path)


def test_drawn_splits_have_every_class(tmp_path: Path, random_dna) -> None:
    rows = [(random_dna(40, 20 * c + i), f"c{c}") for c in range(10) for i in range(20)]
    path = write_table(tmp_path / "t.tsv", rows)
    found = [split(path, split_seed=seed) for seed in range(20)]
    for labelled in found:
        for label in range(10):
            own = Counter(r.split for r in labelled.regions if r.label == label)
            assert own == {"train": 16, "valid": 2, "test": 2}
    assert split(path, split_seed=3).regions == found[3].regions
    assert found[3].regions != found[4].regions
    few = write_table(tmp_path / "few.tsv", [(random_dna(40, i), "abc"[i % 3]) for i in range(9)])
    for seed in range(20):
        assert len({(r.label, r.split) for r in split(few, split_seed=seed).regions}) == 9


def test_complete_draws_of_a_seed_stay_what_they_were(tmp_path: Path, random_dna) -> None:
    path = write_table(tmp_path / "t.tsv", [(random_dna(40, i), "ab"[i % 2]) for i in range(40)])
    found = {(r.record.removeprefix("line "), r.split) for r in split(path, split_seed=1).regions if r.split != "train"}
    # As drawn before draws were stratified.
    test, valid = {(n, "test") for n in ("11", "29", "34", "37")}, {(n, "valid") for n in ("9", "28", "30", "31")}
    assert found == test | valid


def mutated(sequence: str, at: int) -> str:
    return sequence[:at] + "ACGT"[("ACGT".index(sequence[at]) + 1) % 4] + sequence[at + 1 :]


@pytest.mark.parametrize("size", [36, 50, 68, 69, 101, 300])
def test_draws_do_not_separate_near_duplicates(tmp_path: Path, random_dna, size: int) -> None:
    codec = DnaTokenizer()
    rows, family = [], []
    for i in range(60):
        text = random_dna(size + 6, i)
        turned = codec.decode(codec.reverse_complement(codec.encode(mutated(text[:size], 2 * size // 5))))
        for one in (text[:size], mutated(text[:size], size // 2), text[5 : size + 5], turned):
            rows.append((one, "ab"[i % 2]))
            family.append(i)
    path = write_table(tmp_path / "t.tsv", rows)
    for seed in range(3):
        regions = split(path, split_seed=seed).regions
        for i in range(60):
            assert len({r.split for r, own in zip(regions, family, strict=True) if own == i}) == 1
        assert Counter(r.split for r in regions)["test"] in range(16, 33)
    apart = split(path, shared_bases="allow")
    assert sum(row["near"] for row in apart.between.values()) > 20


def test_near_duplicates_in_given_splits(tmp_path: Path, random_dna) -> None:
    rows = [(random_dna(101, i), "ab"[i % 2], "train") for i in range(40)]
    held_out = [(random_dna(101, 100 + i), "ab"[i % 2]) for i in range(20)]
    for i in range(3):
        held_out[i] = (mutated(rows[i][0], 50), held_out[i][1])
    held_out[3] = (rows[3][0], held_out[3][1])
    rows += [(*row, ("test", "valid")[i >= 10]) for i, row in enumerate(held_out)]
    path = tmp_path / "t.tsv"
    text = "sequence\tlabel\tsplit\n" + "".join("\t".join(row) + "\n" for row in rows)
    path.write_text(text)
    message = (
        r"of 10 examples of test, 1 are also in train and 3 are nearly .* \('line 4\d' and 'line \d+'\), more than 20%"
    )
    with pytest.raises(InputError, match=message):
        split(str(path))
    assert split(str(path), shared_bases="allow").between["train/test"] | {"example": 0} == {
        "equal": 1,
        "near": 3,
        "of": 10,
        "example": 0,
    }
    assert split(str(path), split="draw").between["train/test"]["near"] == 0
    path.write_text(text.replace(held_out[1][0], random_dna(101, 200)).replace(held_out[2][0], random_dna(101, 201)))
    labelled = split(str(path))
    assert (labelled.between["train/test"]["equal"], labelled.between["train/test"]["near"]) == (1, 1)


def test_near_duplicates_that_leave_no_choice(tmp_path: Path, random_dna) -> None:
    long = random_dna(3000)
    rows = [(long[10 * i : 10 * i + 100], "a") for i in range(50)] + [(random_dna(100, i), "b") for i in range(50)]
    path = write_table(tmp_path / "t.tsv", rows)
    with pytest.raises(
        InputError, match=r"50 different sequences of class 'a' form only 1 group of near-duplicates, and 3"
    ):
        split(path)
    assert split(path, shared_bases="allow").origin == "drawn by split_seed 0"
