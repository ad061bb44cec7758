"""Compressed files that unpack to far more than a data set holds: one message, before memory or disk are full."""

import gzip
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from Bio.bgzf import BgzfWriter

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines import unpacked
from mamba_bio_audio.pipelines.dna.assemblies import read_report
from mamba_bio_audio.pipelines.dna.bgzf import recompress
from mamba_bio_audio.pipelines.dna.fasta_index import build_index
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.intervals import read_intervals
from mamba_bio_audio.pipelines.dna.records import read_records
from mamba_bio_audio.pipelines.unpacked import GB, VARIABLE, Unpacked

BOMB = b">a\n" + b"A" * 4_000_000 + b"\n"
MESSAGE = r"unpacks to more than 0\.001 GB, far more than such a file holds.*MAX_UNPACKED_GB=GIGABYTES"


def test_default_limits_lie_above_any_assembly() -> None:
    """The largest genomes, of some ferns and lungfish, have about 160 and 90 billion bases; DNA packs four- to fivefold."""
    for bases in (91 * GB, 160 * GB):
        Unpacked("x", bases // 5).check(bases + bases // 60)
    # Small, but almost all of it N.
    Unpacked("x", 10_000).check(GB)
    with pytest.raises(InputError, match="more than 1 GB"):
        Unpacked("x", 1_000_000).check(GB + 1)
    with pytest.raises(InputError, match="more than 1,?000 GB"):
        Unpacked("x", 10 * GB).check(1000 * GB + 1)
    with pytest.raises(InputError, match="more than 1,?000 GB"):
        Unpacked("standard input", None).check(1000 * GB + 1)


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "nan", "inf"])
def test_the_limit_is_a_setting(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "2000")
    Unpacked("x", 1).check(2000 * GB)
    monkeypatch.setenv(VARIABLE, text)
    if not text:
        assert Unpacked("x", 1).limit == GB
        return
    with pytest.raises(InputError, match=f"{VARIABLE}={text}: .*give a number"):
        Unpacked("x", 1)


def bgzf(path: Path) -> None:
    with BgzfWriter(str(path), "wb") as handle:
        handle.write(BOMB)


def ordinary(path: Path) -> None:
    path.write_bytes(gzip.compress(BOMB))


READERS: dict[str, tuple[Callable[[Path], None], Callable[[Path], object]]] = {
    "index": (bgzf, lambda path: build_index(str(path))),
    "recompress": (ordinary, lambda path: recompress(path, path.with_name("out.fa.gz"))),
    "records": (ordinary, lambda path: list(read_records(path))),
    "records of BGZF": (bgzf, lambda path: list(read_records(path))),
    "intervals": (ordinary, lambda path: read_intervals(path, Genome(path.with_name("g.fa")))),
    "report": (ordinary, read_report),
}


@pytest.mark.parametrize("reader", READERS)
def test_bombs(reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAMBA_BIO_AUDIO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "g.fa").write_text(">a\nACGT\n")
    path = tmp_path / "x.fa.gz"
    pack, read = READERS[reader]
    pack(path)
    monkeypatch.setenv(VARIABLE, "0.001")
    with pytest.raises(InputError, match=f"x.fa.gz: {MESSAGE}"):
        read(path)
    assert not list(tmp_path.glob("*out*"))


def test_a_bomb_on_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "0.001")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(gzip.compress(BOMB)))))
    with pytest.raises(InputError, match=f"standard input: {MESSAGE}"):
        list(read_records("-"))


def test_the_ratio_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked, "FREE_BYTES", 1 << 20)
    ordinary(tmp_path / "x.fa.gz")
    with pytest.raises(InputError, match="unpacks to more than"):
        list(read_records(tmp_path / "x.fa.gz"))
