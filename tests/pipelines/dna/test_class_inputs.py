"""Tables and BED files as people have them: any names of columns, Parquet, groups, strands, track lines, gzip by content."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.data import DataModule
from mamba_bio_audio.pipelines.dna.class_rows import Columns, read_table
from mamba_bio_audio.pipelines.dna.classes import DnaClassesCorpus
from mamba_bio_audio.pipelines.dna.classes_config import DnaClassesConfig
from mamba_bio_audio.pipelines.dna.labelled import open_labelled
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer

CODEC = DnaTokenizer()
RANDOM = np.random.default_rng(0)


def bases(length: int = 50) -> str:
    return "".join(RANDOM.choice(list("ACGT"), size=length))


def config(path: Path, **more) -> DnaClassesConfig:
    return DnaClassesConfig.model_validate({"kind": "dna-classes", "path": str(path), **more})


def splits(corpus: DnaClassesCorpus) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for region in corpus.labelled.regions:
        names[str(region.split)].append(region.record)
    return names


def test_any_names_of_columns(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("Enhancer ID,DNA,y,z,chrom,part\ne1,ACGTA,1,0.5,chr1,train\ne2,GGGTT,0,2,chr2,val\n")
    given = {"sequence": "dna", "label": ["Y", "z"], "split": "part", "id": "enhancer id", "group": "chrom"}
    first, second = read_table(table, columns=Columns.of(given))
    assert (first.name, first.sequence, first.label, first.more, first.group) == ("e1", "ACGTA", "1", ("0.5",), "chr1")
    assert first.tags == {"split": "train"}
    assert second.tags == {"split": "val"}
    with pytest.raises(
        InputError, match=r"lacks sequence, label; it names Enhancer ID, DNA.*data.columns=\{sequence: Enh"
    ):
        read_table(table)


def test_an_id_column_that_is_named_must_be_there(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("name,sequence,label\na,ACGT,1\n")
    assert read_table(table)[0].name == "line 2"
    with pytest.raises(InputError, match="the header lacks nmae; it names name, sequence"):
        read_table(table, columns=Columns.of({"id": "nmae"}))


def test_a_class_has_one_column(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("sequence,m1,m2\nACGT,1,0\nACGA,0,1\n")
    columns = {"label": ["m1", "m2"]}
    with pytest.raises(InputError, match=r"label names 2 columns, but head.task=classes predicts one"):
        open_labelled(config(table, columns=columns))
    assert open_labelled(config(table, columns=columns), task="multilabel").names == ("m1", "m2")


def test_a_header_alone_is_no_table(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("sequence,label\n")
    with pytest.raises(InputError, match=r"t\.csv: has a header and no rows; add rows"):
        read_table(table)


@pytest.mark.parametrize(
    "given",
    [{"seq": "a"}, {"sequence": ["a", "b"]}, {"label": ["a", "A"]}, {"label": "a", "group": "a"}, {"label": []}],
)
def test_columns_that_do_not_exist_are_refused(given):
    with pytest.raises(ValueError, match="columns"):
        config(Path(), columns=given)


def test_empty_labels_where_they_may_be(tmp_path):
    table = tmp_path / "t.tsv"
    table.write_text("sequence\tlabel\nACGT\t\nGGTT\t1\n")
    with pytest.raises(InputError, match=r"line 2: no label; add it"):
        read_table(table)
    assert [row.label for row in read_table(table, empty_labels=True)] == ["", "1"]


@pytest.mark.parametrize(("name", "columns"), [("gene", {"group": "gene"}), ("group", None)])
def test_rows_of_a_group_stay_in_one_split(tmp_path, name, columns):
    """Named by data.columns, or so called."""
    rows = [(f"r{i}", bases(), i % 2, f"g{i // 4}") for i in range(80)]
    table = tmp_path / "train.csv"
    table.write_text(f"id,sequence,label,{name}\n" + "".join(f"{a},{b},{c},{d}\n" for a, b, c, d in rows))
    corpus = DnaClassesCorpus(config(table, columns=columns), length=50)
    group = {name: gene for name, _, _, gene in rows}
    found = {split: {group[name] for name in names} for split, names in splits(corpus).items()}
    assert all(found.values())
    assert sum(map(len, found.values())) == 20
    assert {window.locus for window in corpus.evaluation_windows("test").windows} == {
        f"group {g}" for g in found["test"]
    }


def test_a_folder_without_dev_draws_it_from_train_by_groups(tmp_path):
    header = "sequence,label,gene\n"
    train = [(bases(), i % 2, f"g{i // 4}") for i in range(80)]
    (tmp_path / "train.csv").write_text(header + "".join(f"{a},{b},{c}\n" for a, b, c in train))
    (tmp_path / "test.csv").write_text(header + "".join(f"{bases()},{i % 2},t{i}\n" for i in range(10)))
    corpus = DnaClassesCorpus(config(tmp_path, columns={"group": "gene"}), length=50)
    found = {
        split: {r.locus for r in corpus.labelled.regions if r.split == split} for split in ("train", "valid", "test")
    }
    assert not found["train"] & found["valid"]
    assert len(splits(corpus)["valid"]) == 8
    assert len(splits(corpus)["test"]) == 10
    assert {r.label for r in corpus.labelled.regions if r.split == "valid"} == {0, 1}
    # A group on both sides would be a test on relatives, whether its column is named or found.
    with (tmp_path / "test.csv").open("a") as file:
        file.write(f"{bases()},1,g3\n")
    with pytest.raises(InputError, match=r"the group 'g3' is in several splits"):
        DnaClassesCorpus(config(tmp_path, columns={"group": "gene"}), length=50)
    for split in ("train", "test"):
        table = tmp_path / f"{split}.csv"
        table.write_text(table.read_text().replace("gene", "group"))
    with pytest.raises(InputError, match=r"the group 'g3' is in several splits.* data.shared_bases=allow"):
        DnaClassesCorpus(config(tmp_path), length=50)
    DnaClassesCorpus(config(tmp_path, shared_bases="allow"), length=50)


def test_parquet_in_parts(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    sequences = [bases() for _ in range(30)]
    names = ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")
    for at, name in enumerate(names):
        own = sequences[10 * at : 10 * at + 10]
        table = pyarrow.table({"sequence": own, "label": [i % 2 for i in range(10)]})
        parquet.write_table(table, tmp_path / f"{name}.parquet")
    corpus = DnaClassesCorpus(config(tmp_path, valid_fraction=0), length=50)
    assert corpus.classes == ("0", "1")
    found = splits(corpus)
    assert (len(found["train"]), len(found["test"])) == (20, 10)
    assert found["test"][0] == "test/00000/row 1"
    fetched = [CODEC.decode(corpus.fetch(region)) for region in corpus.labelled.regions]
    assert fetched == [*sequences[20:], *sequences[:20]]
    (tmp_path / "train-00000-of-00002.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(InputError, match=r"train-00000-of-00002.parquet: cannot be read as Parquet"):
        DnaClassesCorpus(config(tmp_path), length=50)


def test_what_parquet_holds_beside_text(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def read(labels, task="classes", sequence=None):
        own = sequence or [bases() for _ in labels]
        parquet.write_table(pyarrow.table({"sequence": own, "label": labels}), tmp_path / "t.parquet")
        return open_labelled(config(tmp_path / "t.parquet"), task=task)

    found = read([["p", "q"], ["q"], []] * 2, "multilabel")
    assert (found.names, found.values.tolist()) == (("p", "q"), [[1, 1], [0, 1], [0, 0]] * 2)
    with pytest.raises(InputError, match="'label' has several values in a row; set head.task=multilabel"):
        read([["p", "q"], ["q"], ["p"]])
    # NaN is no class.
    with pytest.raises(InputError, match="row 3: no label"):
        read([0.0, 1.0, float("nan")])
    assert np.isnan(read([0.5, 1.0, float("nan")], "regression").values[2, 0])
    assert read(["a", "b"], sequence=[b"ACGT", b"GGCC"]).classes == ("a", "b")


def test_gzip_by_content(tmp_path):
    rows = "sequence,label\n" + "".join(f"{bases()},{i % 2}\n" for i in range(30))
    (tmp_path / "t.csv").write_bytes(gzip.compress(rows.encode()))
    assert len(open_labelled(config(tmp_path / "t.csv")).regions) == 30


@pytest.fixture
def genome(tmp_path) -> tuple[Path, str]:
    text = bases(400)
    (tmp_path / "g.fa").write_text(f">chr1\n{text}\n")
    return tmp_path / "g.fa", text


def test_bed6_is_read_on_its_strand(genome, tmp_path):
    path, text = genome
    bed = tmp_path / "l.bed"
    lines = ["browser position chr1:1-100", 'track name="peaks" useScore=1', "# notes"]
    lines += ["chr1\t0\t40\ta\t960\t+", "chr1\t50\t90\tb\t0\t-", "chr1\t100\t140\ta\t.\t."]
    bed.write_text("\n".join(lines) + "\n")
    labelled = open_labelled(config(path, labels=str(bed)))
    fetched = [CODEC.decode(labelled.fetch(region)) for region in labelled.regions]
    opposite = CODEC.decode(CODEC.reverse_complement(CODEC.encode(text[50:90])))
    assert fetched == [text[:40], opposite, text[100:140]]
    labelled.load()
    assert [CODEC.decode(labelled.fetch(region)) for region in labelled.regions] == fetched
    assert [region.split for region in labelled.regions] == [None] * 3


def test_bed6_with_splits(genome, tmp_path):
    path, _ = genome
    bed = tmp_path / "l.bed"
    rows = [("a", "train"), ("b", "train"), ("a", "test"), ("b", "test"), ("a", "val"), ("b", "val")]
    bed.write_text("".join(f"chr1\t{60 * i}\t{60 * i + 40}\t{n}\t0\t-\t{s}\n" for i, (n, s) in enumerate(rows)))
    labelled = open_labelled(config(path, labels=str(bed)))
    assert [region.split for region in labelled.regions] == ["train", "train", "test", "test", "valid", "valid"]
    bed.write_text("chr1\t0\t40\ta\t0\tplus\n")
    with pytest.raises(InputError, match=r"line 1: the strand, column 6, is 'plus'; write \+, - or \."):
        open_labelled(config(path, labels=str(bed)))
    bed.write_text("chr1\t0\t40\ta\t0\t+\ttrain\textra\n")
    with pytest.raises(InputError, match=r"line 1: 8 columns; expected"):
        open_labelled(config(path, labels=str(bed)))


def test_batches_are_as_long_as_the_longest_example(tmp_path):
    """Whatever the recipe's length, and cut examples cannot come of it."""
    rows = [f"{bases(20 + i % 11)}\t{'ab'[i % 2]}\t{('train', 'valid', 'test')[i % 3]}" for i in range(60)]
    (tmp_path / "t.tsv").write_text("sequence\tlabel\tsplit\n" + "\n".join(rows) + "\n")
    data = DataModule(config(tmp_path / "t.tsv"), length=128, batch_size=4, seed=0)
    longest = max(len(region) for region in data.corpus.windows(128))
    batches = [data.stream().batch(number) for number in range(5)]
    assert {batch["tokens"].shape for batch in batches} == {(4, longest)}
    scored = sorted((batch["targets"] != -100).nonzero()[:, 1].max().item() for batch in batches)
    assert scored[-1] == longest - 1
    for batch in data.evaluation_dataloader("valid"):
        assert batch["tokens"].shape[1] == 32
