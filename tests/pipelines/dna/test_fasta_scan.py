import gzip
import re
from pathlib import Path

import numpy as np
import pyfaidx
import pytest
from Bio.bgzf import BgzfWriter

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna import fasta_parser, fasta_scan
from mamba_bio_audio.pipelines.dna.fasta_index import build_index


def bgzf(text: bytes, path: Path) -> bytes:
    with BgzfWriter(str(path), "wb") as handle:
        handle.write(text)
    return path.read_bytes()


MALFORMED = {
    "empty": (b"", "the file is empty"),
    "only a newline": (b"\n", "no FASTA record"),
    "not fasta": (b"hello\nworld\n", r"line 1: b'hello' precedes the first header"),
    "header without name": (b">\nACGT\n", "line 1: a header `>` without a name"),
    "empty record": (b">a\nAC\n>b\n>c\nAC\n", "record 'b' at line 3 is empty"),
    "empty last record": (b">a\nAC\n>b\n", "record 'b' at line 3 is empty"),
    "blank record": (b">a\nAC\n>b\n\n\n>c\nA\n", "record 'b' at line 3 is empty"),
    "duplicate name": (b">a 1\nAC\n>b\nAC\n>a 2\nAC\n", "line 5: duplicate record 'a', first seen at line 1"),
    "ragged, short": (b">a\nACGT\nAC\nACGT\n", "record 'a': line 4 follows line 3"),
    "ragged, long": (b">a\nACGT\nACGTA\n", "record 'a': line 3 is longer"),
    "blank line inside": (b">a\nACGT\n\nACGT\n", "record 'a': line 4 follows line 3"),
    "blank line first": (b">a\n\nACGT\n", "record 'a': line 3 follows line 2"),
    "mixed line ends": (b">a\nACGT\r\nACGT\nACGT\n", "record 'a': line 4 follows line 3"),
    "old macintosh": (b">a\rACGT\rACGT\r", "bare carriage returns"),
    "carriage return inside": (b">a\nAC\rGT\n", "carriage returns inside"),
    "digit": (b">a\nACGT\nAC1T\n", r"record 'a', position 7 .*'1' is not a sequence letter \(near line 3\)"),
    "space": (b">a\nACG \nACGT\n", "position 4"),
    "not utf-8 name": (b">\xff\nACGT\n", "line 1: the header is not UTF-8"),
    "utf-16": (">a\nACGT\n".encode("utf-16"), "UTF-16"),
    "RNA": (b">r\nACGUUGCAACGU\n", "those of RNA.*T for U"),
    "protein": (b">p\nMKVLAAGIVGLPNLELFQERFIL\n", "protein"),
    "gzip": (
        gzip.compress(b">a\nACGT\n"),
        r"ordinary gzip.*`mba prepare genome x.fa.gz --out DIR`, which recompresses it.*bgzip",
    ),
    "bzip2": (b"BZh91AY", "bzip2"),
    "zip": (b"PK\x03\x04rest", "zip"),
    "2bit": (b"\x43\x27\x41\x1a\0\0\0\0", "truncated at byte 8"),
}


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("chunk_bytes", [3, 1 << 20])
def test_malformed_file(case: str, chunk_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, message = MALFORMED[case]
    monkeypatch.setattr(fasta_scan, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(fasta_parser, "CHUNK_BYTES", chunk_bytes)
    path = tmp_path / ("x.fa.gz" if case == "gzip" else "x.fa")
    path.write_bytes(data)
    with pytest.raises(InputError, match=re.escape(str(path))) as caught:
        build_index(str(path))
    assert re.search(message, str(caught.value)), str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        build_index(str(tmp_path / "none.fa"))


def test_name_and_contents_disagree(tmp_path: Path) -> None:
    (tmp_path / "plain.fa.gz").write_bytes(b">a\nACGT\n")
    with pytest.raises(InputError, match="not compressed"):
        build_index(str(tmp_path / "plain.fa.gz"))
    bgzf(b">a\nACGT\n", tmp_path / "packed.fa")
    with pytest.raises(InputError, match=r"does not end in .gz"):
        build_index(str(tmp_path / "packed.fa"))


def test_truncated_bgzf_at_any_place(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = b">a\n" + rng.choice(np.frombuffer(b"ACGT", np.uint8), 150_000).tobytes() + b"\n"
    data = bgzf(text, tmp_path / "x.fa.gz")
    for size in (
        10,
        17,
        18,
        500,
        len(data) // 2,
        len(data) - 29,
        len(data) - 28,
        len(data) - 27,
        len(data) - 1,
    ):
        (tmp_path / "x.fa.gz").write_bytes(data[:size])
        with pytest.raises(InputError, match=r"(truncated|ordinary gzip|number of bytes)"):
            build_index(str(tmp_path / "x.fa.gz"))


def test_damaged_bgzf(tmp_path: Path) -> None:
    data = bytearray(bgzf(b">a\n" + b"ACGT" * 1000 + b"\n", tmp_path / "x.fa.gz"))
    for position in (30, 40, len(data) - 34):
        broken = data.copy()
        broken[position] ^= 0xFF
        (tmp_path / "x.fa.gz").write_bytes(broken)
        with pytest.raises(InputError, match="block at byte 0"):
            build_index(str(tmp_path / "x.fa.gz"))


@pytest.mark.parametrize("chunk_bytes", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("ending", ["newline", "none", "blank lines"])
def test_index_equals_that_of_pyfaidx(
    chunk_bytes: int, newline: bytes, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fasta_scan, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(fasta_parser, "CHUNK_BYTES", chunk_bytes)
    lines = [
        b">one some words",
        b"ACGTACGT",
        b"acgtNNNN",
        b"NNRY-",
        b">two",
        b"A",
        b">three",
        b"ACGT",
        b"ACGT",
    ]
    text = newline.join(lines) + {"newline": newline, "none": b"", "blank lines": newline * 2}[ending]
    path = tmp_path / "x.fa"
    path.write_bytes(text)
    index = build_index(str(path))
    if ending != "blank lines":
        peer = pyfaidx.Faidx(str(path), indexname=str(tmp_path / "peer.fai"))
        expected = [(r.rlen, r.offset, r.lenc, r.lenb) for r in peer.index.values()]
        assert list(peer.index) == list(index.names)
        assert index.fai.tolist() == [list(row) for row in expected]
    assert index.fai[:, 0].tolist() == [21, 1, 8]
    # A, C, G, T, N, other, lower
    assert index.counts.tolist() == [[3, 3, 3, 3, 6, 3, 4], [1, 0, 0, 0, 0, 0, 0], [2, 2, 2, 2, 0, 0, 0]]
    assert index.run_offsets.tolist() == [0, 1, 1, 1]
    assert (index.run_starts.tolist(), index.run_ends.tolist()) == ([12], [21])
    assert [values.tolist() for values in index.lower] == [[0, 1, 1, 1], [8], [12]]


def test_very_long_single_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fasta_scan, "CHUNK_BYTES", 1 << 16)
    monkeypatch.setattr(fasta_parser, "CHUNK_BYTES", 1 << 16)
    sequence = np.random.default_rng(0).choice(np.frombuffer(b"ACGTN", np.uint8), 3_000_000).tobytes()
    (tmp_path / "x.fa").write_bytes(b">a\n" + sequence)
    index = build_index(str(tmp_path / "x.fa"))
    assert index.fai[0, 0] == len(sequence)
    assert index.counts[0].tolist() == [
        *(sequence.count(letter) for letter in (b"A", b"C", b"G", b"T", b"N")),
        0,
        0,
    ]
