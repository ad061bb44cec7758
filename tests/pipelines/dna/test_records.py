"""Sequential reading: FASTA and FASTQ, plain, gzip, BGZF and standard input; what is wrong is said."""

import gzip
import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.records import Record, pair_name, pairs, read_records, write_record

FASTA = b">one first record\nACGT\nacgn\n\n>two\r\nGG GG\r\n>empty\n>four\nA"
EXPECTED = [
    Record("one first record", b"ACGTacgn"),
    Record("two", b"GGGG"),
    Record("empty", b""),
    Record("four", b"A"),
]
FASTQ = b"@r1 x\nACGT\n+\nIIII\n@r2\nAC\nGT\n+r2\nII\n@I\n"


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lambda b: gzip.compress(b[:20]) + gzip.compress(b[20:])])
def test_fasta_plain_and_gzip(tmp_path, pack):
    path = tmp_path / "x.bin"
    path.write_bytes(pack(FASTA))
    assert list(read_records(path)) == EXPECTED
    assert [record.name for record in EXPECTED] == ["one", "two", "empty", "four"]
    path.write_bytes(pack(b"\xef\xbb\xbf" + FASTA))
    assert list(read_records(path)) == EXPECTED


def test_bgzf(tmp_path, write_fasta, random_dna):
    sequence = random_dna(200_000)
    found = list(read_records(write_fasta("x.fa.gz", {"a": sequence})))
    assert [(r.name, r.sequence.decode()) for r in found] == [("a", sequence)]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_fastq_also_over_several_lines(tmp_path, pack):
    path = tmp_path / "x.fq"
    path.write_bytes(pack(FASTQ))
    assert list(read_records(path)) == [Record("r1 x", b"ACGT"), Record("r2", b"ACGT")]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_standard_input(monkeypatch, pack):
    stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(pack(FASTA))))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert list(read_records("-")) == EXPECTED


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"ACGT\n", "begins with 'A'"),
        (b"BZh91", "bzip2"),
        (gzip.compress(FASTA * 50, mtime=0)[:-12], "after record"),
        (b"@r1\nACGT\n+\nIII\n", "after record 0: not sound FASTQ"),
        (b"@r1\nACGT\n+\nIIII\n@r2\nAC\n", "after record 1: not sound FASTQ"),
        (b">a\rACGT\r>b\rACGT\r", "after record 0: not sound FASTA .*only a carriage return"),
    ],
)
def test_damage_is_named(tmp_path, content, fault):
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(InputError, match=fault):
        list(read_records(path))


def test_folder_and_missing_file(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        list(read_records(tmp_path))
    with pytest.raises(InputError, match="No such file"):
        list(read_records(tmp_path / "nothing.fa"))


def test_foreign_letters_are_found():
    assert Record("x", b"ACGTNRyk-*.").foreign_letter() is None
    assert Record("x", b"AC1T").foreign_letter() == (3, "1")


@pytest.mark.parametrize("length", [0, 1, 79, 80, 81, 160, 80 * (1 << 14) + 7])
def test_written_records_read_back(tmp_path, length):
    record = Record("a split=test", b"ACGTN" * (length // 5) + b"A" * (length % 5))
    with open(tmp_path / "x.fa", "wb") as handle:
        write_record(handle, record)
        write_record(handle, record)
    assert list(read_records(tmp_path / "x.fa")) == [record, record]
    assert max(map(len, (tmp_path / "x.fa").read_bytes().splitlines())) <= 80


def damaged(base: bytes):
    """A sound file with bytes of it replaced, cut off, or anything at all."""

    def change(draw: tuple[int, int, bytes]) -> bytes:
        start, size, piece = draw
        return base[: start % (len(base) + 1)] + piece + base[start % (len(base) + 1) + size :]

    return st.one_of(
        st.binary(max_size=60), st.tuples(st.integers(0, 10_000), st.integers(0, 40), st.binary(max_size=8)).map(change)
    )


@given(
    st.one_of(*(damaged(base) for base in (FASTA, FASTQ, gzip.compress(FASTA, mtime=0), gzip.compress(FASTQ, mtime=0))))
)
def test_any_bytes_give_records_or_an_input_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(content)
    try:
        for record in read_records(path):
            record.foreign_letter()
            assert b"\n" not in record.sequence
    except InputError:
        pass


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ("r7/1", "r7/2", "r7"),
        ("r7_1", "r7_2", "r7"),
        ("SRR1.1", "SRR1.1", "SRR1.1"),
        ("SRR1.1.1", "SRR1.1.2", "SRR1.1"),
        ("SRR1.1", "SRR1.3", None),
        ("SRR1.2", "SRR1.1", None),
        ("r7/1", "r8/2", None),
        ("r7/1", "r7", None),
    ],
)
def test_names_of_pairs(first, second, together):
    """A number at the end is that of a mate only where the two names differ in it: in SRR1.1 it counts reads."""
    assert pair_name(first, second) == together


def test_pairs_have_the_name_of_both(tmp_path):
    for mate in (1, 2):
        reads = "".join(f"@SRR1.{at} {at}/{mate}\nACGT\n+\nIIII\n" for at in (1, 2, 11))
        (tmp_path / f"r{mate}.fq").write_text(reads)
    found = list(pairs([str(tmp_path / "r1.fq"), str(tmp_path / "r2.fq")]))
    assert [(a.name, b.name) for a, b in found] == [(name, name) for name in ("SRR1.1", "SRR1.2", "SRR1.11")]
