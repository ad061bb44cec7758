"""Regions of a BED file, checked against the records they are of."""

import gzip

import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.bed import read_regions
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.spans import Span


@pytest.fixture
def genome(tmp_path):
    (tmp_path / "toy.fa").write_text(">chr1 title\n" + "ACGT" * 25 + "\n>track\nACGTACGT\n")
    return Genome(tmp_path / "toy.fa")


def read(genome, tmp_path, text):
    (tmp_path / "regions.bed").write_text(text)
    return read_regions(str(tmp_path / "regions.bed"), genome, "base")


def test_regions_keep_their_order_and_names(genome, tmp_path):
    text = "# made by hand\ntrack name=x\nchr1\t90\t100\tlast\t0\t+\n\n1 0 4\nchr1\t2\t9\n"
    found = read(genome, tmp_path, text.replace("track name=x", "browser hide all"))
    assert found == [(Span("chr1", 90, 100), "last"), (Span("chr1", 0, 4), ""), (Span("chr1", 2, 9), "")]
    # A record may be called like a track line.
    assert read(genome, tmp_path, "track\t0\t8\n") == [(Span("track", 0, 8), "")]


def test_gzip(genome, tmp_path):
    path = tmp_path / "regions.bed.gz"
    path.write_bytes(gzip.compress(b"chr1\t0\t4\n"))
    assert read_regions(str(path), genome, "base") == [(Span("chr1", 0, 4), "")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chr1\t0\t4\nchr9\t0\t4\n", r"regions\.bed: line 2: no record 'chr9' in .*toy\.fa"),
        ("chr1\t0\t101\n", r"line 1: end 101 lies beyond 'chr1', which has 100 bases"),
        ("chr1\t-1\t4\n", "line 1: start -1 is negative"),
        ("chr1\t4\t4\n", "line 1: start 4 is not before end 4"),
        ("chr1\t4\n", "line 1: 2 columns; BED needs record, start and end"),
        ("chr1\ta\t4\n", "line 1: start is 'a', not a whole number"),
        ("# nothing\n", r"regions\.bed: contains no regions"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(genome, tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read(genome, tmp_path, text)


def test_a_missing_file(genome, tmp_path):
    with pytest.raises(InputError, match=r"none\.bed: cannot be read as BED"):
        read_regions(str(tmp_path / "none.bed"), genome, "base")
