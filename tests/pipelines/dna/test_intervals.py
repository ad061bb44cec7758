import gzip
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.intervals import chosen_spans, read_intervals, region, split_blocks, write_intervals
from mamba_bio_audio.pipelines.spans import Interval, Span, merge, shared_symbols
from mamba_bio_audio.pipelines.split_names import SPLITS

FRACTIONS = {"valid": 0.05, "test": 0.05}


@pytest.fixture
def genome(write_fasta) -> Genome:
    return Genome(write_fasta("g.fa", {"chr1": "ACGT" * 25, "chr3:42-44": "ACGT" * 5}))


def test_read_bed(genome: Genome, tmp_path: Path) -> None:
    text = "# made by hand\ntrack name=x\nchr1\t0\t10\ttrain\r\n\nchr1 10 20 val\nchr3:42-44\t0\t20\ttest\n"
    expected = [
        Interval("chr1", 0, 10, "train"),
        Interval("chr1", 10, 20, "valid"),
        Interval("chr3:42-44", 0, 20, "test"),
    ]
    (tmp_path / "x.bed").write_text(text)
    assert read_intervals(tmp_path / "x.bed", genome) == expected
    (tmp_path / "x.bed.gz").write_bytes(gzip.compress(text.encode()))
    assert read_intervals(tmp_path / "x.bed.gz", genome) == expected


def test_regions_and_whole_records(genome: Genome, tmp_path: Path) -> None:
    """1-based with the end included, as browsers write them; a record that is called like a region goes first."""
    (tmp_path / "x.bed").write_text("1:1-10 train\nchr1:11-1\ttest\nchr1:1,1-2 valid\n")
    with pytest.raises(InputError, match="line 2: region 'chr1:11-1'"):
        read_intervals(tmp_path / "x.bed", genome)
    (tmp_path / "x.bed").write_text("1:1-10 train\nchr1:11-11\ttest\nchr3:42-44 valid\nCM000663.1\ttrain\n")
    assert read_intervals(tmp_path / "x.bed", genome) == [
        Interval("chr1", 0, 10, "train"),
        Interval("chr1", 10, 11, "test"),
        Interval("chr3:42-44", 0, 20, "valid"),
        Interval("chr1", 0, 100, "train"),
    ]
    assert region("chr1:100-100", genome) == Span("chr1", 99, 100)
    assert genome.codec.decode(genome.fetch(*region("g:chr1:2-4", genome))) == "CGT"


def test_intervals_outside_the_contigs(genome: Genome, tmp_path: Path) -> None:
    path = tmp_path / "x.bed"
    path.write_text("chr1 0 10 train\nchr1 40 60 test\n")
    inside = chosen_spans(genome, ["chr1:1-50", "chr3:42-44"])
    assert inside == [Span("chr1", 0, 50), Span("chr3:42-44", 0, 20)]
    with pytest.raises(
        InputError, match=r"line 2: 'chr1' \[40, 60\) is not in data.contigs, which keeps chr1, chr3:42"
    ):
        read_intervals(path, genome, inside)
    assert len(read_intervals(path, genome, chosen_spans(genome, "all"))) == 2
    with pytest.raises(InputError, match="data.contigs: no record 'chr9'"):
        chosen_spans(genome, ["chr9"])


def test_blocks_of_chosen_contigs(write_fasta, random_dna) -> None:
    records = {"chr1": random_dna(20_000), "chr1_KI270706v1_random": random_dna(9000, 1), "chrM": random_dna(3000, 2)}
    genome = Genome(write_fasta("g.fa", records))
    whole = split_blocks(genome, seed=0, fractions=FRACTIONS)
    assert {interval.record for interval in whole} == set(records)
    spans = chosen_spans(genome, "primary")
    assert [span.record for span in spans] == ["chr1"]
    # An organelle under an accession is told by its header.
    ncbi = Genome(write_fasta("n.fa", {"NC_1 mitochondrion, complete genome": "ACGT", "NC_000001.11": "ACGT"}))
    assert [span.record for span in chosen_spans(ncbi, "primary")] == ["NC_000001.11"]
    some = split_blocks(genome, seed=0, fractions=FRACTIONS, spans=spans)
    assert {interval.record for interval in some} == {"chr1"}
    parts = [Span("chr1", 100, 9000), Span("chr1", 9500, 15_000)]
    inside = split_blocks(genome, seed=0, fractions=FRACTIONS, spans=parts)
    assert merge(inside) == parts
    assert {interval.split for interval in inside} == set(SPLITS)


def test_read_tsv_and_write_it_back(write_fasta, tmp_path: Path) -> None:
    genome = Genome([write_fasta("a.fa", {"r": "ACGTACGT"}), write_fasta("b.fa.gz", {"r": "ACGT"})])
    path = tmp_path / "i.tsv"
    path.write_text("split\tfile\trecord\tstart0\tend\nval\tb.fa.gz\tr\t0\t4\ntrain\ta.fa\tr\t1\t8\n")
    intervals = read_intervals(path, genome)
    assert intervals == [Interval("b:r", 0, 4, "valid"), Interval("a:r", 1, 8, "train")]
    path.write_text(write_intervals(intervals, genome))
    assert path.read_text().splitlines()[0] == "file\trecord\tstart0\tend\tsplit"
    assert read_intervals(path, genome) == intervals


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2\t0\t10\ttrain", "no record '2' in "),
        ("chr1:0-10\ttrain", "region 'chr1:0-10' is not inside 'chr1', which has 100 bases"),
        ("chr1:10-101\ttrain", "region 'chr1:10-101' is not inside"),
        ("chr1:20-10\ttrain", "region 'chr1:20-10' is not inside"),
        ("chr3:42-45\ttrain", "no record 'chr3'"),
        ("chr1\t0\t101\ttrain", "end 101 lies beyond 'chr1', which has 100 bases"),
        ("chr1\t10\t10\ttrain", "start 10 is not before end 10"),
        ("chr1\t-1\t10\ttrain", "start -1 is negative"),
        ("chr1\t0\t10\tholdout", "unknown split 'holdout'; allowed: train, valid, test"),
        ("chr1\t0\t10", "3 columns instead of 4"),
        ("chr1\t0\t10\ttrain\tx", "5 columns instead of 4"),
        ("chr1\t0.5\t10\ttrain", "start0 is '0.5', not a whole number"),
        ("chr1\t0\t1e3\ttrain", "end is '1e3', not a whole number"),
    ],
)
def test_bad_line_is_named(line: str, message: str, genome: Genome, tmp_path: Path) -> None:
    path = tmp_path / "x.bed"
    path.write_text(f"chr1\t0\t10\ttrain\n{line}\n")
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: line 2: .*{message}"):
        read_intervals(path, genome)


def test_bad_file(genome: Genome, tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    for text, message in (
        ("", "no intervals in it"),
        ("record\tstart0\tend\n", "line 1: the header lacks split"),
        ("file\trecord\tstart0\tend\tsplit\nz.fa\tchr1\t0\t5\ttrain\n", "line 2: no FASTA file 'z.fa'"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_intervals(path, genome)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as an intervals file"):
        read_intervals(path, genome)


def test_interval_validates() -> None:
    with pytest.raises(ValueError, match="start < end"):
        Interval("a", 3, 3, "train")
    with pytest.raises(ValueError, match="split must be one of"):
        Interval("a", 0, 3, "dev")


@pytest.mark.parametrize("sizes", [[48_502], [16_568], [60], [5000, 3000, 10, 1], [1_000_000, 200_000]])
@pytest.mark.parametrize("seed", [0, 1])
def test_split_blocks_covers_the_genome_once(sizes: list[int], seed: int, write_fasta, random_dna) -> None:
    genome = Genome(write_fasta("g.fa", {f"r{i}": random_dna(size, i) for i, size in enumerate(sizes)}))
    intervals = split_blocks(genome, seed=seed, fractions=FRACTIONS)
    assert not any(shared_symbols(intervals).values())
    assert merge(intervals) == [Span(f"r{i}", 0, size) for i, size in enumerate(sizes)]
    bases = {split: sum(len(i) for i in intervals if i.split == split) for split in SPLITS}
    for split in ("valid", "test"):
        assert 0.02 < bases[split] / sum(sizes) < 0.1
    for first, second in itertools.pairwise(intervals):
        assert (first.record, first.split) != (second.record, second.split)


def test_split_blocks_gives_each_file_its_share(write_fasta, random_dna, tmp_path: Path) -> None:
    for index, size in enumerate((3000, 50_000, 2)):
        write_fasta(f"f/{index}.fa", {"r": random_dna(size, index)})
    genome = Genome(tmp_path / "f")
    intervals = split_blocks(genome, seed=0, fractions=FRACTIONS)
    seen = {(i.record, i.split) for i in intervals}
    assert seen == {*itertools.product(["0:r", "1:r"], SPLITS), ("2:r", "train")}


def test_split_blocks_avoids_unknown_bases(write_fasta, random_dna) -> None:
    genome = Genome(write_fasta("g.fa", {"r": "N" * 50_000 + random_dna(20_000) + "N" * 30_000}))
    for seed in range(5):
        for interval in split_blocks(genome, seed=seed, fractions=FRACTIONS, block_bases=1000):
            unknown = int(genome.count_unknown(interval.record, interval.start, interval.end))
            assert interval.split == "train" or unknown < len(interval)


def test_split_blocks_too_small(write_fasta) -> None:
    genome = Genome(write_fasta("g.fa", {"r": "ACGT"}))
    with pytest.raises(InputError, match=r"4 bases are too few.*valid, test.*data.intervals"):
        split_blocks(genome, seed=0, fractions=FRACTIONS)
    whole = split_blocks(genome, seed=0, fractions={"valid": 0.0, "test": 0.0})
    assert whole == [Interval("r", 0, 4, "train")]
    with pytest.raises(InputError, match=r"data.block_bases=1,000,000"):
        split_blocks(genome, seed=0, fractions=FRACTIONS, block_bases=1_000_000)


def test_split_blocks_is_the_same_everywhere(write_fasta, random_dna) -> None:
    """It depends on neither the hash seed nor the file's place and name, but on the seed."""
    records = {"a": random_dna(100_000), "b": random_dna(50_000, 1)}
    genome = Genome(write_fasta("g.fa", records))
    moved = Genome(write_fasta("elsewhere/other.fa.gz", records, width=70))
    intervals = split_blocks(genome, seed=3, fractions=FRACTIONS)
    assert split_blocks(moved, seed=3, fractions=FRACTIONS) == intervals
    assert split_blocks(genome, seed=4, fractions=FRACTIONS) != intervals
    program = (
        "import sys; from mamba_bio_audio.pipelines.dna.genome import Genome;"
        "from mamba_bio_audio.pipelines.dna.intervals import split_blocks;"
        "print(split_blocks(Genome(sys.argv[1]), seed=3, fractions={'valid': 0.05, 'test': 0.05}))"
    )
    root = Path(__file__).resolve().parents[3]
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)}
        command = [sys.executable, "-c", program, genome.paths[0]]
        printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert printed.strip() == str(intervals)
