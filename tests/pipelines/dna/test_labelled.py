import gzip
from pathlib import Path

import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.classes_config import DnaClassesConfig
from mamba_bio_audio.pipelines.dna.labelled import Labelled, open_labelled


def read(path, **options) -> Labelled:
    return open_labelled(DnaClassesConfig(path=path, **options))


def rows(labelled: Labelled) -> list[tuple[str, str | None, str]]:
    """(class, split, sequence) of every region."""
    from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer

    codec = DnaTokenizer()
    return [(labelled.classes[r.label], r.split, codec.decode(labelled.fetch(r))) for r in labelled.regions]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.tsv", "sequence\tlabel\tsplit\nacgt\tyeast\ttrain\nGGNA\tape\tval\n"),
        ("t.csv", "split,label,sequence\ntrain,yeast,ACGT\nval,ape,GGNA\n"),
        ("t.csv", "split;label;sequence\ntrain;yeast;ACGT\nval;ape;GGNA\n"),
    ],
)
def test_table(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    labelled = read(str(tmp_path / name))
    assert labelled.classes == ("ape", "yeast")  # sorted before numbering
    assert rows(labelled) == [("yeast", "train", "ACGT"), ("ape", "valid", "GGNA")]
    assert labelled.examples


def test_compressed_table_without_splits(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "t.tsv.gz", "wt") as file:
        file.write("label\tsequence\tid\na\tACGT\tx\nb\tAC\ty\n")
    labelled = read(str(tmp_path / "t.tsv.gz"))
    assert rows(labelled) == [("a", None, "ACGT"), ("b", None, "AC")]
    assert [region.record for region in labelled.regions] == ["x", "y"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sequence\tclass\nA\tx\n", "line 1: the header lacks label"),
        ("sequence\tlabel\nACGT\ta\nAC-T\tb\n", "line 3: '-' at position 3"),
        ("sequence\tlabel\nACGT\ta\n\tb\n", "line 3: the sequence is empty"),
        ("sequence\tlabel\tsplit\nACGT\ta\tholdout\n", "line 2: unknown split 'holdout'"),
        ("sequence\tlabel\nACGT\n", "line 2: has 1 column, but the header has 2"),
        ("sequence\tlabel\nACGT\ta\n# a note\nACGT\tb\n", "line 3: has 1 column, but the header has 2"),
        ('sequence,label,note\nACGT,a,"one\ntwo"\nACGT,b,x\n', "line 2: a cell in quotes does not end in its line"),
        ("sequence\tlabel\tlabel\nACGT\ta\tb\n", "line 1: two columns are called 'label'"),
        ("sequence\tlabel\nACGT\t\n", "line 2: no label"),
        ("sequence\tlabel\nACGT\ta\nACGT\tnan\n", "line 3: the label is 'nan', as programs write what is missing"),
        ("sequence\tlabel\tid\nA\ta\tx\nA\tb\tx\n", "the id 'x' is already used"),
        ("sequence\tlabel\nACGT\ta\n", "only one class"),
        ("sequence\tlabel\nACGT\ta\nACGT\tb\x00\n", r"line 3: contains the control character U\+0000"),
        ("", "empty"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.tsv").write_text(text)
    with pytest.raises(InputError, match=message):
        read(str(tmp_path / "t.tsv"))


def test_a_label_may_begin_like_a_comment(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("# from a colleague\nlabel\tsequence\n#1\tACGT\n#2\tAC\n")
    assert rows(read(str(tmp_path / "t.tsv"))) == [("#1", None, "ACGT"), ("#2", None, "AC")]


def test_fasta_beside_the_folders_of_classes_is_refused(write_fasta, tmp_path: Path) -> None:
    for name in ("data/a/x.fa", "data/b/x.fa", "data/c.fa"):
        write_fasta(name, {"r": "ACGT"})
    with pytest.raises(InputError, match=r"c.fa lies beside the folders of the classes"):
        read(str(tmp_path / "data"))


def test_genomic_benchmarks_layout(tmp_path: Path) -> None:
    for split, label, name, text in (
        ("train", "worm", "10", "AAA"),
        ("train", "worm", "9", "CCC"),
        ("train", "human", "0", "GGG"),
        ("test", "human", "0", "TTT"),
        ("test", "worm", "0", "ACG"),
    ):
        folder = tmp_path / split / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.txt").write_text(text)
    labelled = read(str(tmp_path))
    assert labelled.classes == ("human", "worm")
    assert rows(labelled) == [
        ("human", "test", "TTT"),
        ("worm", "test", "ACG"),
        ("human", "train", "GGG"),
        ("worm", "train", "CCC"),
        ("worm", "train", "AAA"),
    ]
    (tmp_path / "train" / "worm" / "11.fa").write_text(">x\nACGT\n")
    with pytest.raises(InputError, match=r"worm/11.fa: not a sequence .expected train"):
        read(str(tmp_path))


def test_folder_of_fasta_per_class(write_fasta, tmp_path: Path) -> None:
    write_fasta("data/b/one.fa", {"r": "ACGT"})
    write_fasta("data/b/two.fa", {"r": "GGGG"})
    write_fasta("data/a/one.fa.gz", {"r": "TTTT"})
    write_fasta("data/unused/other.fa", {"r": "AAAA"})
    labelled = read(str(tmp_path / "data"), files="one.*", classes=["b", "a"])
    assert labelled.classes == ("b", "a")  # the order asked for
    assert sorted(rows(labelled)) == [("a", None, "TTTT"), ("b", None, "ACGT")]
    assert not labelled.examples
    assert {file.name for file in labelled.files} == {"a/one.fa.gz", "b/one.fa"}
    with pytest.raises(InputError, match="no FASTA file there is called one"):
        read(str(tmp_path / "data"), files="one.*")


def test_fasta_files_and_mapping(write_fasta, tmp_path: Path) -> None:
    x, y = write_fasta("x.fa", {"r": "ACGT"}), write_fasta("y.fa", {"r": "GGGG"})
    assert rows(read([y, x])) == [("x", None, "ACGT"), ("y", None, "GGGG")]
    z = write_fasta("sub/y.fa", {"s": "CC"})
    assert rows(read({"second": [y, z.replace("sub/y.fa", "x.fa")], "first": z})) == [
        ("first", None, "CC"),
        ("second", None, "GGGG"),
        ("second", None, "ACGT"),
    ]
    with pytest.raises(InputError, match="two files would be the class 'y'"):
        read([y, z])


def test_numbers_in_headers_need_not_recur(write_fasta) -> None:
    file = write_fasta("n.fa", {f"s{i}|{i / 7:.3f}": "ACGT" for i in range(5)})
    found = open_labelled(DnaClassesConfig(path=file), task="regression")
    assert [row[0] for row in found.values.tolist()] == pytest.approx([i / 7 for i in range(5)], abs=1e-3)


def test_bed_with_labels(write_fasta, tmp_path: Path) -> None:
    fasta = write_fasta("g.fa", {"chr1": "AACCGGTT", "chr2": "ACGTACGT"})
    bed = tmp_path / "labels.bed"
    bed.write_text("# comment\nchr1\t0\t4\tpromoter\ttrain\nchr2\t1\t3\tother\ttest\n")
    labelled = read(fasta, labels=str(bed))
    assert rows(labelled) == [("promoter", "train", "AACC"), ("other", "test", "CG")]
    assert labelled.examples
    for text, message in (
        ("chr1\t0\t9\tx\n", "line 1: .* not inside 'chr1' of 8 bases"),
        ("chr3\t0\t4\tx\n", "line 1: no record 'chr3'"),
        ("chr1\ta\t4\tx\n", "line 1: start and end must be whole numbers"),
        ("chr1\t0\t4\n", "line 1: 3 columns"),
    ):
        bed.write_text(text)
        with pytest.raises(InputError, match=message):
            read(fasta, labels=str(bed))


def test_choice_of_classes(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("sequence\tlabel\nA\tzero\nC\tone\nG\ttwo\n")
    labelled = read(str(tmp_path / "t.tsv"), classes=["zero", "one"])
    assert rows(labelled) == [("zero", None, "A"), ("one", None, "C")]
    assert [region.label for region in labelled.regions] == [0, 1]
    with pytest.raises(InputError, match="no class 'three' in the data; it has one, two, zero"):
        read(str(tmp_path / "t.tsv"), classes=["one", "three"])


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_table_per_split(tmp_path: Path) -> None:
    """GUE: train, dev and test beside each other."""
    write(tmp_path / "d/train.tsv", "sequence\tlabel\nACGT\t0\nGGNA\t1\n")
    write(tmp_path / "d/test.tsv", "sequence\tlabel\nTTTT\t1\n")
    with gzip.open(tmp_path / "d/dev.tsv.gz", "wt") as file:
        file.write("sequence\tlabel\nCC\t0\n")
    expected = [("0", "valid", "CC"), ("1", "test", "TTTT"), ("0", "train", "ACGT"), ("1", "train", "GGNA")]
    assert rows(read(str(tmp_path / "d"))) == expected
    files = [str(tmp_path / "d" / name) for name in ("dev.tsv.gz", "test.tsv", "train.tsv")]
    assert rows(read(files)) == expected
    assert {split for _, split, _ in rows(read(str(tmp_path / "d"), split="draw"))} == {None}
    # One table by itself is a whole data set, whatever it is called.
    assert rows(read(files[2])) == [("0", None, "ACGT"), ("1", None, "GGNA")]
    write(tmp_path / "d/more.tsv", "sequence\tlabel\nCC\t0\n")
    with pytest.raises(InputError, match=r"dev.tsv.gz is named after a split but more.tsv is not"):
        read(str(tmp_path / "d"))
    assert rows(read(str(tmp_path / "d"), files="t*.tsv"))[0] == ("1", "test", "TTTT")
    (tmp_path / "d/more.tsv").unlink()
    write(tmp_path / "d/valid.tsv", "sequence\tlabel\nCC\t0\n")
    with pytest.raises(InputError, match=r"split 'dev', but 'valid' at .*, so it is unclear"):
        read(str(tmp_path / "d"))
    write(tmp_path / "d/valid.tsv", "sequence\tlabel\tsplit\nCC\t0\ttrain\n")
    with pytest.raises(InputError, match=r"valid.tsv: line 2: split=train and file name=valid contradict"):
        read(str(tmp_path / "d"), files="[tv]*")


def test_nucleotide_transformer_folder(write_fasta, tmp_path: Path) -> None:
    write(tmp_path / "nt/train.fna", ">a|0\nACGT\nAA\n>chr1:5|x|1\nGGNA\n>a|1\nTT\n")
    write(tmp_path / "nt/test.fna", ">a|1\nTTTT\n")
    labelled = read(str(tmp_path / "nt"))
    assert labelled.classes == ("0", "1")
    assert labelled.examples
    assert rows(labelled) == [
        ("1", "test", "TTTT"),
        ("0", "train", "ACGTAA"),
        ("1", "train", "GGNA"),
        ("1", "train", "TT"),
    ]
    assert len({region.record for region in labelled.regions}) == 4
    assert rows(read(str(tmp_path / "nt/train.fna")))[0] == ("0", None, "ACGTAA")
    # A folder of such folders is several data sets, not a class each.
    write(tmp_path / "tasks/b/train.fna", ">a|0\nACGT\n>b|1\nACGT\n>c|1\nACGT\n")
    write(tmp_path / "tasks/c/train.fna", ">a|0\nACGT\n>b|1\nACGT\n>c|1\nACGT\n")
    with pytest.raises(
        InputError, match=r"b/train.fna names its classes in its headers .* give one of them, data.path=.*/b"
    ):
        read(str(tmp_path / "tasks"))
    write_fasta("plain/train.fa", {"r": "ACGT"})
    write_fasta("plain/test.fa", {"r": "ACGA"})
    with pytest.raises(InputError, match=r"test.fa: record 1: the header 'r a description' names no class"):
        read(str(tmp_path / "plain"))


def test_folders_of_splits_with_fasta_per_class(write_fasta, tmp_path: Path) -> None:
    for split, base in (("train", "A"), ("dev", "C"), ("test", "G")):
        write_fasta(f"one/{split}/human.fa", {"r": base * 4})
        write_fasta(f"one/{split}/mouse.fa", {"r": base * 5})
        for name, size in (("human", 4), ("mouse", 5)):
            write_fasta(f"two/{name}/{split}.fa", {"r": base * size})
    expected = sorted(
        (name, split, base * size)
        for name, size in (("human", 4), ("mouse", 5))
        for split, base in (("train", "A"), ("valid", "C"), ("test", "G"))
    )
    for folder in ("one", "two"):
        labelled = read(str(tmp_path / folder))
        assert sorted(rows(labelled)) == expected
        assert not labelled.examples
        assert len({file.name for file in labelled.files}) == 6
        assert len({region.locus for region in labelled.regions}) == 6
    write_fasta("two/mouse/more.fa", {"r": "ACGT"})
    with pytest.raises(InputError, match=r"human/dev.fa is named after a split but .*mouse/more.fa is not"):
        read(str(tmp_path / "two"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train.fa", "human.fa"), "train.fa is named after a split but human.fa is not"),
        (("train/x.fa", "human/x.fa"), "'train' is the name of a split, not of a class"),
        (("human_train.fa", "human_test.fa"), "'human_test' and 'human_train' are one class in two splits"),
        (("test-mouse/x.fa", "valid-mouse/x.fa"), "'test-mouse' and 'valid-mouse' are one class in two splits"),
    ],
)
def test_splits_are_never_classes(write_fasta, tmp_path: Path, names, message: str) -> None:
    for name in names:
        write_fasta(f"d/{name}", {"r": "ACGT"})
    with pytest.raises(InputError, match=message):
        read(str(tmp_path / "d"))


def test_split_names_as_keys_and_labels(write_fasta, tmp_path: Path) -> None:
    fasta = write_fasta("x.fa", {"r": "ACGTACGT"})
    with pytest.raises(InputError, match="'Test' is the name of a split, not of a class"):
        read({"Test": fasta, "Train": fasta})
    bed = write(tmp_path / "x.bed", "r\t0\t4\ttrain\nr\t4\t8\tval\n")
    with pytest.raises(InputError, match="the labels are train, val, which are names of splits"):
        read(fasta, labels=str(bed))
    # A label that is a word for a split among others is a label.
    write(tmp_path / "t.tsv", "sequence\tlabel\nA\ttrain\nC\tboat\n")
    assert read(str(tmp_path / "t.tsv")).classes == ("boat", "train")


@pytest.mark.parametrize(
    ("header", "cells", "message"),
    [
        ("Set", ("train", "dev"), None),
        ("fold", ("train", "Test"), None),
        ("fold", ("1", "2"), "line 2: fold=1 does not name a split"),
        ("split\tfold", ("train\t1", "test\t2"), None),
        ("split\tsubset", ("train\ttrain", "test\ttrain"), "line 3: split=test and subset=train contradict"),
        ("partition", ("train", ""), r"1 of 2 sequences name a split \(.*line 2: train\), but 1 do not \(.*line 3\)"),
        ("split", ("eval", "train"), "line 2: split 'eval' could mean validation or test"),
        ("split", ("eval", "test"), None),
    ],
)
def test_columns_that_name_splits(tmp_path: Path, header: str, cells, message: str | None) -> None:
    table = write(tmp_path / "t.tsv", f"sequence\tlabel\t{header}\nA\tx\t{cells[0]}\nC\ty\t{cells[1]}\n")
    if message is not None:
        with pytest.raises(InputError, match=message):
            read(str(table))
        assert rows(read(str(table), split="draw")) == [("x", None, "A"), ("y", None, "C")]
        return
    meant = {"1": "train", "dev": "valid", "eval": "valid"}
    words = [cell.split("\t")[0].lower() for cell in cells]
    assert [split for _, split, _ in rows(read(str(table)))] == [meant.get(word, word) for word in words]


def test_rna_and_protein_are_told(tmp_path: Path) -> None:
    table = write(tmp_path / "t.tsv", "sequence\tlabel\n" + "ACGTACGT\tdna\n" * 50 + "ACGUACGU\trna\n")
    with pytest.raises(InputError, match=r"t.tsv: class 'rna': its letters are those of RNA; write T for U"):
        read(str(table))
    table = write(tmp_path / "t.tsv", "sequence\tlabel\n" + "ACGTACGT\tdna\n" * 50 + "MKVLAAGIVGLPNLELF\tp\n")
    with pytest.raises(InputError, match=r"t.tsv: class 'p': its letters are those of a protein"):
        read(str(table))
    write(tmp_path / "nt/train.fna", ">a|0\nACGU\n>b|1\nUUUU\n")
    with pytest.raises(InputError, match=r"class '0': its letters are those of RNA"):
        read(str(tmp_path / "nt"))
    write(tmp_path / "gb/train/x/1.txt", "ACGUU")
    with pytest.raises(InputError, match=r"class 'x': its letters are those of RNA"):
        read(str(tmp_path / "gb"))


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_sequence_longer_than_a_field_of_csv(tmp_path: Path, quote: str) -> None:
    long = "ACGT" * 40_000
    write(tmp_path / "t.csv", f"sequence,label\n{quote}{long}{quote},x\nA,y\n")
    assert rows(read(str(tmp_path / "t.csv"))) == [("x", None, long), ("y", None, "A")]


def test_damaged_tables(tmp_path: Path) -> None:
    packed = gzip.compress(b"sequence\tlabel\n" + b"ACGT\tx\n" * 100)
    for at in range(10, len(packed)):
        (tmp_path / "t.tsv.gz").write_bytes(packed[:at] + bytes([packed[at] ^ 255]) + packed[at + 1 :])
        with pytest.raises(InputError, match="t.tsv.gz: "):
            read(str(tmp_path / "t.tsv.gz"))
