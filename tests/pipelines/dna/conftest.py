"""Small genomes on disk, and an index cache of the test's own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from Bio.bgzf import BgzfWriter

WriteFasta = Callable[..., str]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MAMBA_BIO_AUDIO_CACHE", str(folder))
    return folder


@pytest.fixture
def write_fasta(tmp_path: Path) -> WriteFasta:
    """write_fasta(name, {record: sequence}, width=60, newline="\\n") writes plain text or, for *.gz, BGZF."""

    def write(name: str, records: dict[str, str], width: int = 60, newline: str = "\n") -> str:
        text = ""
        for record, sequence in records.items():
            lines = [sequence[at : at + width] for at in range(0, len(sequence), width)]
            text += newline.join([f">{record} a description", *lines]) + newline
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".gz"):
            with BgzfWriter(str(path), "wb") as handle:
                handle.write(text.encode())
        else:
            path.write_bytes(text.encode())
        return str(path)

    return write


@pytest.fixture
def random_dna() -> Callable[..., str]:
    """random_dna(length, seed, letters) draws a sequence."""

    def draw(length: int, seed: int = 0, letters: str = "ACGT") -> str:
        codes = np.frombuffer(letters.encode(), dtype=np.uint8)
        return np.random.default_rng(seed).choice(codes, length).tobytes().decode()

    return draw


@pytest.fixture
def shared_dna() -> Path:
    """The folder of real sequence, where this checkout has it."""
    folder = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "dna"
    if not folder.is_dir():
        pytest.skip("no ../shared/data/dna")
    return folder
