"""Small genomes on disk, and an index cache of the test's own."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from Bio.bgzf import BgzfWriter

WriteFasta = Callable[..., str]


def twobit(records: dict[str, str], order: str = "<", version: int = 0) -> bytes:
    """A 2bit file, letter by letter; what is not A, C, G, T becomes N, and lower case is masked."""

    def runs(flags: list[bool]) -> bytes:
        edges = [at for at in range(len(flags) + 1) if (at > 0 and flags[at - 1]) != (at < len(flags) and flags[at])]
        starts, ends = edges[::2], edges[1::2]
        sizes = [end - start for start, end in zip(starts, ends, strict=True)]
        return struct.pack(f"{order}{1 + 2 * len(starts)}I", len(starts), *starts, *sizes)

    width = 8 if version else 4
    names = [name.encode() for name in records]
    place = 16 + sum(1 + len(name) + width for name in names)
    directory, data = b"", b""
    for name, sequence in zip(names, records.values(), strict=True):
        directory += bytes([len(name)]) + name + struct.pack(f"{order}{'Q' if version else 'I'}", place + len(data))
        data += struct.pack(f"{order}I", len(sequence)) + runs([base not in "ACGT" for base in sequence.upper()])
        data += runs([base.islower() for base in sequence]) + bytes(4)
        codes = ["TCAG".find(base) if base in "TCAG" else 0 for base in sequence.upper()]
        codes += [0] * (-len(codes) % 4)
        data += bytes(a << 6 | b << 4 | c << 2 | d for a, b, c, d in zip(*(codes[i::4] for i in range(4)), strict=True))
    return struct.pack(f"{order}4I", 0x1A412743, version, len(records), 0) + directory + data


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MAMBA_BIO_AUDIO_CACHE", str(folder))
    return folder


@pytest.fixture
def write_fasta(tmp_path: Path) -> WriteFasta:
    """write_fasta(name, {record: sequence}, width=60, newline="\\n") writes plain text, for *.gz BGZF, or 2bit."""

    def write(name: str, records: dict[str, str], width: int = 60, newline: str = "\n") -> str:
        text = ""
        for record, sequence in records.items():
            lines = [sequence[at : at + width] for at in range(0, len(sequence), width)]
            text += newline.join([f">{record} a description", *lines]) + newline
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".2bit"):
            path.write_bytes(twobit(records))
        elif name.endswith(".gz"):
            with BgzfWriter(str(path), "wb") as handle:
                handle.write(text.encode())
        else:
            path.write_bytes(text.encode())
        return str(path)

    return write


@pytest.fixture
def write_twobit(tmp_path: Path) -> Callable[..., str]:
    """write_twobit(name, {record: sequence}, order="<", version=0) writes a 2bit file of either byte order."""

    def write(name: str, records: dict[str, str], order: str = "<", version: int = 0) -> str:
        (tmp_path / name).write_bytes(twobit(records, order, version))
        return str(tmp_path / name)

    return write


@pytest.fixture
def random_dna() -> Callable[..., str]:
    """random_dna(length, seed, letters) draws a sequence."""

    def draw(length: int, seed: int = 0, letters: str = "ACGT") -> str:
        codes = np.frombuffer(letters.encode(), dtype=np.uint8)
        return np.random.default_rng(seed).choice(codes, length).tobytes().decode()

    return draw


@pytest.fixture
def shared_dna(shared_data: Path) -> Path:
    """The folder of real sequence."""
    return shared_data / "dna"
