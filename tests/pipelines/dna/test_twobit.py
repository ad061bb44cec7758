import re
from pathlib import Path

import numpy as np
import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna import fasta_parser, fasta_scan, twobit
from mamba_bio_audio.pipelines.dna.fasta_index import build_index
from mamba_bio_audio.pipelines.dna.genome import Genome

RECORDS = {
    "chr1": "NNNACGTacgtnnACGTTTGCAaNNacNacgTGCATGCATGCNN",
    "one": "g",
    "chr2": "ACGTGGCATTTACGGGACCAGTAC",
    "only_n": "NNNNN",
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("chunk_bytes", [1, 4, 7, 1 << 20])
def test_every_span_equals_the_fasta(
    order: str, version: int, chunk_bytes: int, write_fasta, write_twobit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twobit, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(fasta_scan, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(fasta_parser, "CHUNK_BYTES", chunk_bytes)
    fasta = Genome(write_fasta("x.fa", RECORDS, width=7))
    packed = Genome(write_twobit("x.2bit", RECORDS, order, version))
    assert packed.records == fasta.records
    assert packed.genomes == ["x"]
    for record, text in RECORDS.items():
        one, other = fasta.statistics(record), packed.statistics(record)
        assert (other.length, other.counts) == (one.length, one.counts)
        assert [*other.run_starts, *other.run_ends] == [*one.run_starts, *one.run_ends]
        for start in range(len(text) + 1):
            for end in range(start, len(text) + 1):
                assert packed.fetch(record, start, end).tolist() == fasta.codec.encode(text[start:end]).tolist()
                lower = [letter.islower() for letter in text[start:end]]
                assert packed.lower_case(record, start, end).tolist() == lower
                assert fasta.lower_case(record, start, end).tolist() == lower
                assert int(packed.count_lower(record, start, end)) == sum(lower)
                assert int(fasta.count_lower(record, start, end)) == sum(lower)
                assert int(packed.count_unknown(record, start, end)) == sum(
                    a not in "ACGTacgt" for a in text[start:end]
                )


def test_letters_below_n_are_not_counted(write_twobit, tmp_path: Path) -> None:
    """Writers put any base below a run of N."""
    data = bytearray(Path(write_twobit("x.2bit", {"a": "ACGTNNNN"})).read_bytes())
    data[-1] = 0b10101010  # AAAA
    (tmp_path / "x.2bit").write_bytes(data)
    genome = Genome(tmp_path / "x.2bit")
    assert genome.statistics("a").counts == {"A": 1, "C": 1, "G": 1, "T": 1, "N": 4, "other": 0, "lower": 0}
    assert genome.codec.decode(genome.fetch("a", 2, 8)) == "GTNNNN"


def test_index_is_kept_and_a_changed_file_noticed(write_twobit, own_cache: Path) -> None:
    path = write_twobit("x.2bit", {"a": "ACGT"})
    genome = Genome(path)
    assert len(list(own_cache.rglob("*.index"))) == 1
    write_twobit("x.2bit", {"a": "ACGTACGTACGT"})
    with pytest.raises(InputError, match="changed since it was indexed"):
        genome.fetch("a", 0, 4)
    assert Genome(path).records == {"a": 12}


def test_truncated_anywhere(write_twobit, tmp_path: Path) -> None:
    data = Path(write_twobit("x.2bit", RECORDS)).read_bytes()
    for size in range(len(data)):
        (tmp_path / "x.2bit").write_bytes(data[:size])
        with pytest.raises(InputError, match=re.escape(str(tmp_path / "x.2bit"))):
            build_index(str(tmp_path / "x.2bit"))


def put(data: bytes, at: int, word: int) -> bytes:
    return data[:at] + int(word).to_bytes(4, "little") + data[at + 4 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: put(data, 4, 7), "2bit version 7"),
        (lambda data: put(data, 8, 0), "contains no record"),
        (lambda data: put(data, 8, 1 << 30), "claims 1,073,741,824 records"),
        (lambda data: data.replace(b"bb", b"aa"), "record 'aa' is in the file twice"),
        (lambda data: data.replace(b"bb", b"b "), "is not a name"),
        (lambda data: data.replace(b"bb", b"\xff\xff"), "not UTF-8"),
        (lambda data: put(data, 19, 1 << 20), "record 'aa': truncated"),
        (lambda data: put(data, 30, 0), "record 'aa' is empty"),
        (lambda data: put(data, 30, 1 << 31), "go beyond the end of the file"),
        (lambda data: put(data, 34, 1 << 31), "2,147,483,648 runs of N"),
        (lambda data: put(data, 34, 9), "9 runs of N"),
        # Both records at one place: any number of them would unpack to any size.
        (lambda data: data.replace(data[26:30], data[19:23]), "record 'bb' overlaps its predecessor"),
        (lambda data: put(data, 19, 4), "record 'aa' overlaps its predecessor"),
        (lambda data: put(data, 42, 100), "runs of N overlap or leave the record"),
        (lambda data: put(data, 42, 0), "runs of N overlap or leave the record"),
    ],
)
def test_damaged(damage, message: str, write_twobit, tmp_path: Path) -> None:
    data = Path(write_twobit("x.2bit", {"aa": "ACNNACGT", "bb": "ACGT"})).read_bytes()
    assert np.frombuffer(data[30:46], "<u4").tolist() == [8, 1, 2, 2]
    (tmp_path / "x.2bit").write_bytes(damage(data))
    with pytest.raises(InputError, match=message):
        build_index(str(tmp_path / "x.2bit"))


def test_runs_that_touch_are_one(tmp_path: Path, write_twobit) -> None:
    """Some writers cut a run in two; counts of unknown and of lower-case bases rely on runs apart from each other."""
    sound = Path(write_twobit("x.2bit", {"a": "ACNNNNGTACNNacgt"})).read_bytes()
    place = 16 + 6
    words = np.array([16, 3, 2, 4, 10, 2, 2, 2, 2, 12, 14, 2, 2, 0], "<u4").tobytes()
    (tmp_path / "y.2bit").write_bytes(sound[:place] + words + sound[-4:])
    index = build_index(str(tmp_path / "y.2bit"))
    assert (index.run_starts.tolist(), index.run_ends.tolist()) == ([2, 10], [6, 12])
    assert index.lower is not None
    assert (index.lower.starts.tolist(), index.lower.ends.tolist()) == ([12], [16])
    one, other = Genome(tmp_path / "x.2bit"), Genome(tmp_path / "y.2bit")
    for start in range(17):
        for end in range(start, 17):
            assert one.fetch("a", start, end).tolist() == other.fetch("a", start, end).tolist()
            assert one.count_unknown("a", start, end) == other.count_unknown("a", start, end)
            assert one.count_lower("a", start, end) == other.count_lower("a", start, end)


@pytest.mark.parametrize("length", range(1, 10))
def test_the_last_packed_byte_is_needed(length: int, write_twobit, tmp_path: Path) -> None:
    text = "ACGTTGCAC"[:length]
    data = Path(write_twobit("x.2bit", {"a": text})).read_bytes()
    genome = Genome(tmp_path / "x.2bit")
    assert genome.codec.decode(genome.fetch("a", 0, length)) == text
    (tmp_path / "x.2bit").write_bytes(data[:-1])
    with pytest.raises(InputError, match=f"its {length} bases go beyond the end of the file"):
        build_index(str(tmp_path / "x.2bit"))
