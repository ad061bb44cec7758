import gzip
from pathlib import Path

import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.classes_config import DnaClassesConfig
from mamba_bio_audio.pipelines.dna.labelled import Labelled, header_tag, open_labelled


def read(path, **options) -> Labelled:
    return open_labelled(DnaClassesConfig(path=path, **options))


def rows(labelled: Labelled) -> list[tuple[str, str | None, str]]:
    """(class, split, sequence) of every region."""
    from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer

    codec = DnaTokenizer()
    return [
        (labelled.classes[r.label], r.split, codec.decode(labelled.fetch(r, r.start, r.end))) for r in labelled.regions
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.tsv", "sequence\tlabel\tsplit\nacgt\tyeast\ttrain\nGGNA\tape\tval\n"),
        ("t.csv", "split,label,sequence\ntrain,yeast,ACGT\nval,ape,GGNA\n"),
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
        ("sequence\tlabel\nACGT\ta\n\tb\n", "line 3: empty sequence"),
        ("sequence\tlabel\tsplit\nACGT\ta\tholdout\n", "line 2: unknown split 'holdout'"),
        ("sequence\tlabel\nACGT\n", "line 2: 1 columns instead of 2"),
        ("sequence\tlabel\nACGT\ta\n# a note\nACGT\tb\n", "line 3: 1 columns instead of 2"),
        ("sequence\tlabel\tlabel\nACGT\ta\tb\n", "line 1: two columns are called 'label'"),
        ("sequence\tlabel\nACGT\t\n", "line 2: no label"),
        ("sequence\tlabel\tid\nA\ta\tx\nA\tb\tx\n", "two sequences are called 'x'"),
        ("sequence\tlabel\nACGT\ta\n", "one class only"),
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
    with pytest.raises(InputError, match=r"worm/11.fa: not a sequence; expected train"):
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
    with pytest.raises(InputError, match="two files would be class 'y'"):
        read([y, z])


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


def test_header_tag(write_fasta) -> None:
    path = write_fasta("x.fa.gz", {"a species=human split=train": "ACGT", "b split=val": "AC"})
    assert header_tag(path, "split") == {"a": "train", "b": "val"}
    assert header_tag(path, "date") == {}
