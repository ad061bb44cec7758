import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mamba_bio_audio.cli.main import run
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna import fasta_repair
from mamba_bio_audio.pipelines.dna.fasta_index import build_index
from mamba_bio_audio.pipelines.dna.fasta_parser import UnevenFastaError
from mamba_bio_audio.pipelines.dna.fasta_repair import Repair, repair
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.prepare import prepare_genome
from mamba_bio_audio.pipelines.dna.prepare_settings import GenomeSettings
from mamba_bio_audio.pipelines.dna.records import Record, read_records
from mamba_bio_audio.pipelines.reporter import Reporter

# Text, what is repaired (record, line, kind), and the records.
CASES: dict[str, tuple[bytes, list[tuple[str, int, str]], list[tuple[str, bytes]]]] = {
    "short line": (b">a x\nACGT\nAC\nACGT\n", [("a", 3, "line of another length")], [("a x", b"ACGTACACGT")]),
    "long line": (b">a\nACGT\nACGTA\n", [("a", 3, "line of another length")], [("a", b"ACGTACGTA")]),
    "short line before a long one": (
        b">a\nACGT\nAC\nACGTA\n",
        [("a", 3, "line of another length"), ("a", 4, "line of another length")],
        [("a", b"ACGTACACGTA")],
    ),
    "blank line": (b">a\nACGT\n\nACGT\n>b\nA\n", [("a", 3, "blank line")], [("a", b"ACGTACGT"), ("b", b"A")]),
    "blank line first": (b">a\n\nACGT\n", [("a", 2, "blank line")], [("a", b"ACGT")]),
    "trailing blanks": (
        b">a\nACGT  \nACGT\t\n   \n",
        [("a", 2, "blanks"), ("a", 3, "blanks"), ("a", 4, "blank line")],
        [("a", b"ACGTACGT")],
    ),
    "blocks of ten": (b">a\nACGTACGTAC ACG\n", [("a", 2, "blanks")], [("a", b"ACGTACGTACACG")]),
    "indented": (b"  >a\n  acgn\n", [("a", 1, "blanks"), ("a", 2, "blanks")], [("a", b"acgn")]),
    "byte-order mark": (b"\xef\xbb\xbf>a\nACGT\n", [("", 1, "byte-order mark")], [("a", b"ACGT")]),
    "macintosh": (b">a\rACGT\rAC\r", [("a", line, "carriage return") for line in (1, 2, 3)], [("a", b"ACGTAC")]),
    "mixed ends": (
        b">a\r\nACGT\rACGT\nACGT\r\n",
        [("a", 1, "carriage return"), ("a", 2, "carriage return"), ("a", 4, "carriage return")],
        [("a", b"ACGTACGTACGT")],
    ),
    "empty record": (
        b">a\nAC\n>b y\n>c\nAC\n",
        [("b", 3, "record without sequence, left out")],
        [("a", b"AC"), ("c", b"AC")],
    ),
    "empty last record": (b">a\nAC\n>b\n", [("b", 3, "record without sequence, left out")], [("a", b"AC")]),
    "blank record": (
        b">a\nAC\n>b\n\n>c\nA\n",
        [("b", 3, "record without sequence, left out"), ("b", 4, "blank line")],
        [("a", b"AC"), ("c", b"A")],
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("piece_bytes", [1, 1 << 20])
def test_repairs(case: str, pack: bool, piece_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        fasta_repair, "_PIECE_BYTES", max(piece_bytes, 3 if "mark" in case else 1)
    )  # the mark is never cut
    text, repairs, records = CASES[case]
    source = tmp_path / ("x.fa.gz" if pack else "x.fa")
    source.write_bytes(gzip.compress(text) if pack else text)
    if not pack:
        with pytest.raises(UnevenFastaError, match=r"`mba prepare genome x\.fa --out DIR` writes a repaired copy"):
            build_index(str(source))
    found = repair(source, tmp_path / "y.fa.gz")
    assert found.first == [Repair(*place) for place in repairs]
    assert found.counts == {kind: sum(place[2] == kind for place in repairs) for _, _, kind in repairs}
    assert list(read_records(tmp_path / "y.fa.gz")) == [Record(header, letters) for header, letters in records]
    assert build_index(str(tmp_path / "y.fa.gz")).names == tuple(header.split()[0] for header, _ in records)
    assert (gzip.decompress if pack else bytes)(source.read_bytes()) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b">a\nACGT\n\nAC1T\n", r"x\.fa: record 'a', position 7 .*'1' is not a sequence letter \(line 4\)"),
        (b">a\nA\n\nA\n>b\nA\n>a\nA\n", r"x\.fa: line 7: duplicate record 'a', first seen at line 1"),
        (b">a\nA\n\nA\n>\nA\n", r"x\.fa: line 5: a header `>` without a name"),
        (b">a\nA\n\nA\n>\xff\nA\n", r"x\.fa: line 5: the header is not UTF-8"),
        (b"\nAC\n>a\nA\n", r"x\.fa: line 2: b'AC' precedes the first header"),
        (b">a\n>b\n\n", r"x\.fa: contains no record with sequence"),
    ],
)
def test_other_faults_stay_errors(text: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.fa").write_bytes(text)
    with pytest.raises(InputError, match=message):
        repair(tmp_path / "x.fa", tmp_path / "y.fa.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["x.fa"]


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.sampled_from([b">a", b">b x", b">c", b"ACGT", b"ACG", b"acgtn", b"", b" ", b"AC GT", b"A"]), max_size=12
    ),
    st.lists(st.sampled_from([b"\n", b"\r\n", b"\r"]), min_size=12, max_size=12),
)
def test_repaired_records_are_those_of_a_simple_reader(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], ends: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("repair")
    (folder / "x.fa").write_bytes(b"".join(line + end for line, end in zip(lines, ends, strict=False)))
    expected: list[tuple[bytes, bytes]] = []
    sound = True
    for line in lines:
        if line.startswith(b">"):
            expected.append((line[1:], b""))
        elif letters := line.replace(b" ", b""):
            sound &= bool(expected)
            if expected:
                expected[-1] = (expected[-1][0], expected[-1][1] + letters)
    expected = [record for record in expected if record[1]]
    sound &= len({header for header, _ in expected}) == len(expected) > 0
    try:
        repair(folder / "x.fa", folder / "y.fa.gz")
    except InputError:
        assert not sound
        return
    assert sound
    found = [(record.header.encode(), record.sequence) for record in read_records(folder / "y.fa.gz")]
    assert found == expected
    build_index(str(folder / "y.fa.gz"))


def test_long_records_are_wrapped_at_80(tmp_path: Path, random_dna) -> None:
    text = random_dna(900_001)
    (tmp_path / "x.fa").write_text(f">a\n{text[:50]}\n\n{text[50:]}\n")
    repair(tmp_path / "x.fa", tmp_path / "y.fa.gz")
    lines = gzip.decompress((tmp_path / "y.fa.gz").read_bytes()).decode().split("\n")
    assert "".join(lines[1:]) == text
    assert {len(line) for line in lines[1:-2]} == {80}


def test_prepare_genome_repairs_into_its_own_copy(
    tmp_path: Path, random_dna, capsys: pytest.CaptureFixture[str]
) -> None:
    sequence = random_dna(9000)
    text = (
        f"\ufeff>chr1 one\n{sequence[:70]}\n\n{sequence[70:90]} \n{sequence[90:]}\r\n>chr2\n>chr3\n{sequence[::-1]}\n"
    )
    source = tmp_path / "in" / "x.fa"
    source.parent.mkdir()
    source.write_text(text, encoding="utf-8", newline="")
    before = source.read_bytes()
    with pytest.raises(SystemExit) as caught:
        run(["pretrain", "dna/tiny", "--set", f"data.path={source}", "--out", str(tmp_path / "run")])
    assert caught.value.code == 2
    assert "`mba prepare genome x.fa --out DIR` writes a repaired copy" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(["prepare", "genome", str(source), "--out", str(tmp_path / "out")])
    shown = capsys.readouterr()
    assert f"writing a repaired copy to {tmp_path / 'out'}" in shown.err
    assert "line of another length (2)" in shown.out
    assert "record chr1, line 3: blank line" in shown.out
    assert source.read_bytes() == before
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    (file,) = manifest["files"]
    assert file["repaired_from"] == str(source)
    assert file["path"] == str(tmp_path / "out" / "x.fa.gz")
    assert file["repairs"]["counts"] == {
        "byte-order mark": 1,
        "blank line": 1,
        "blanks": 1,
        "line of another length": 2,
        "carriage return": 1,
        "record without sequence, left out": 1,
    }
    assert {"record": "chr2", "line": 6, "what": "record without sequence, left out"} in file["repairs"]["first"]
    genome = Genome(tmp_path / "out" / "x.fa.gz")
    assert genome.codec.decode(genome.fetch("chr1", 0, 9000)) == sequence


def test_the_index_of_a_copy_moves_with_it(tmp_path: Path, own_cache: Path, random_dna) -> None:
    """It is not built again when the prepared folder is first used, and none is left of a failed preparation."""
    (tmp_path / "x.fa").write_text(f">a\n\n{random_dna(9000)}\n")
    prepare_genome(tmp_path / "x.fa", tmp_path / "out")
    (kept,) = own_cache.rglob("*.index")
    written = kept.stat().st_mtime_ns
    Genome(tmp_path / "out" / "x.fa.gz")
    assert list(own_cache.rglob("*.index")) == [kept]
    assert kept.stat().st_mtime_ns >= written
    with pytest.raises(InputError, match="too few to split"):
        prepare_genome(tmp_path / "x.fa", tmp_path / "other", GenomeSettings(split_by="records"))
    assert list(own_cache.rglob("*.index")) == [kept]


def test_errors_name_the_file_as_given(tmp_path: Path) -> None:
    (tmp_path / "x.fa").write_bytes(b">p\nMKVLAAGIVGLPNLE\n\nLFQERFIL\n")
    (tmp_path / "y.fa.gz").write_bytes(gzip.compress(b">a\nACGT\n>a\nACGT\n"))
    for name, message in (("x.fa", "those of a protein"), ("y.fa.gz", "line 3: duplicate record 'a', first seen")):
        with pytest.raises(InputError, match=message) as caught:
            prepare_genome(tmp_path / name, tmp_path / "out")
        assert str(caught.value).startswith(str(tmp_path / name))


def test_prepare_tells_progress_of_each_part(tmp_path: Path, random_dna, monkeypatch) -> None:
    (tmp_path / "x.fa.gz").write_bytes(gzip.compress(f">a\n\n{random_dna(9000)}\n".encode()))
    told: list[str] = []
    reporter = Reporter()
    monkeypatch.setattr(reporter, "progress", lambda what, done, total: told.append(what))
    prepare_genome(tmp_path / "x.fa.gz", tmp_path / "out", reporter=reporter)
    assert list(dict.fromkeys(told)) == [
        "recompressing x.fa.gz",
        "repairing x.fa.gz",
        "indexing x.fa.gz",
        "comparing splits",
    ]
