"""Lines of any length: a chromosome in one line is legal, and is read a piece at a time."""

import gzip
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna import fasta_parser, fasta_scan, records
from mamba_bio_audio.pipelines.dna.fasta_index import build_index
from mamba_bio_audio.pipelines.dna.records import read_records

ROOT = Path(__file__).resolve().parents[3]
MEGABYTE = 10**6


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of more than 4 bytes are long ones."""
    monkeypatch.setattr(fasta_parser, "MAX_HEADER_BYTES", 4)
    monkeypatch.setattr(fasta_scan, "CHUNK_BYTES", 3)
    monkeypatch.setattr(fasta_parser, "CHUNK_BYTES", 3)
    monkeypatch.setattr(records, "_PIECE_BYTES", 3)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("ending", [0, 1, 2])
@pytest.mark.parametrize("width", [1, 2, 5, 9, 13, 40])
def test_pieces_change_nothing(newline: bytes, ending: int, width: int, tmp_path: Path, small_pieces: None) -> None:
    sequences = [b"ACGTNNNNacgtACGTNNNACGTacgNryTT", b"A", b"NNNNNNNNNNNNN"]
    lines = []
    for number, sequence in enumerate(sequences):
        lines += [b">r%d" % number, *(sequence[at : at + width] for at in range(0, len(sequence), width))]
    path = tmp_path / "x.fa"
    path.write_bytes(newline.join(lines) + newline * ending)
    index = build_index(str(path))
    places = [path.read_bytes().index(b">r%d" % n) + 3 + len(newline) for n in range(3)]
    alone = len(sequences[-1]) <= width and ending == 0
    expected = [
        [len(s), place, min(width, len(s)), min(width, len(s)) + len(newline)]
        for s, place in zip(sequences, places, strict=True)
    ]
    if alone:
        expected[-1][3] = expected[-1][2] + 1
    assert index.fai.tolist() == expected
    assert index.counts[:, 4].tolist() == [8, 0, 13]
    assert index.counts[:, 6].tolist() == [9, 0, 0]
    assert index.run_starts.tolist() == [4, 16, 26, 0]
    assert index.run_ends.tolist() == [8, 19, 29, 13]
    assert index.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [record.sequence for record in read_records(path)] == sequences


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b">a\nACGTACGT\nACGTACGTA\n", "line 3 is longer"),
        (b">a\nACGTACGT\nACGTA\nACGTACGT\n", "line 4 follows line 3"),
        (b">a\nACGTACGT\n\nACGTACGT\n", "line 4 follows line 3"),
        (b">a\nACGTACG\rTACGT\n", "carriage returns inside lines from line 2"),
        (b">a\nACGTACGT\r\rACGT\n", "carriage returns inside lines from line 2"),
        (b">a\nACGTACGT\rA", "carriage returns inside lines from line 2"),
        (b">a\nACGTACGTACG1ACGT\n", r"position 12 .*'1' is not a sequence letter \(near line 2\)"),
        (b"ACGTACGTACGT\n>a\nACGT\n", "line 1: b'ACGT.*precedes the first header"),
        (b">abcdef\nACGT\n", "line 1: a header of more than 4 bytes"),
    ],
)
def test_faults_of_long_lines(text: bytes, message: str, tmp_path: Path, small_pieces: None) -> None:
    (tmp_path / "x.fa").write_bytes(text)
    with pytest.raises(InputError, match=message):
        build_index(str(tmp_path / "x.fa"))


LIMITED = """
import re, resource, sys
{imports}
taken = int(re.search(r"VmData:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (taken + {limit}, taken + {limit}))
path = sys.argv[1]
{program}
"""
INDEX = """
genome = Genome(path)
statistics = genome.statistics("a")
assert statistics.length == 200_000_000, statistics
assert genome.codec.decode(genome.fetch("a", 199_999_992, 200_000_000)) == "ACGTTGCN"
print(statistics.counts)
"""
RECORDS = """
for record in read_records(path):
    assert record.foreign_letter() is None and not record.is_rna()
    print(record.name, len(record.sequence))
"""


def limited(program: str, imports: str, limit: int, path: Path) -> str:
    """What a program prints that may take so many bytes of memory beside its imports."""
    code = LIMITED.format(imports=imports, program=program, limit=limit)
    # A fixed threshold returns every freed block to the system: what is counted does not depend on the heap's history.
    allocator = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"}
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **threads, **allocator}
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def long_line(path: Path, piece: bytes, packed: bool = False, megabases: int = 200) -> None:
    """A record of so many million bases in one line."""
    with gzip.open(path, "wb", compresslevel=1) if packed else path.open("wb") as handle:
        handle.write(b">a\n")
        for _ in range(megabases - 1):
            handle.write(piece)
        handle.write(piece[:-1] + b"N\n")


PIECE = b"ACGTTGCA" * (MEGABYTE // 8)


# Half a gigabyte is written and read.
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as Linux does")
def test_a_line_of_200_million_bases(tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    long_line(path, PIECE)
    genome = "from mamba_bio_audio.pipelines.dna.genome import Genome"
    counts = limited(INDEX, genome, 130 * MEGABYTE, path)
    assert eval(counts) == {"A": 49_999_999, "C": 50_000_000, "G": 50_000_000, "T": 50_000_000, "N": 1, "other": 0} | {
        "lower": 0
    }
    reader = "from mamba_bio_audio.pipelines.dna.records import read_records"
    # A record is whole in memory, once.
    assert limited(RECORDS, reader, 260 * MEGABYTE, path) == "a 200000000\n"
    packed = tmp_path / "x.fa.gz"
    long_line(packed, b"A" * MEGABYTE, packed=True)
    assert limited(RECORDS, reader, 260 * MEGABYTE, packed) == "a 200000000\n"


PREDICT = """
class Model:
    streaming = "constant"
    def __call__(self, tokens, state=None, logits="last"):
        share = (tokens == 7).float().mean(1)
        return SimpleNamespace(state=None, logits=torch.stack([share, 1 - share], 1)[:, None])
    def values(self, scores):
        return scores.double().softmax(-1)

items = (item.symbols for item in DOMAIN.records([path], None))
reading = Reading(length=65_536, mode={mode!r}, batch_symbols=1 << 20)
(found,) = predict_records(Model(), items, DOMAIN.symbols(None, 65_536), reading)
print(found.length, found.used, found.windows)
"""


# The model, however small, reads 200 million bases.
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as Linux does")
@pytest.mark.parametrize(("mode", "windows"), [("windows", 2 * -(-50 * MEGABYTE // 65_536)), ("stream", 2)])
def test_prediction_of_a_record_of_50_million_bases(mode: str, windows: int, tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    long_line(path, PIECE, megabases=50)
    imports = (
        "import torch\nfrom types import SimpleNamespace\n"
        "from mamba_bio_audio.inference.predict import Reading, predict_records\n"
        "from mamba_bio_audio.pipelines.dna.domain import DOMAIN\ntorch.set_num_threads(1)"
    )
    # The record, its symbols and the work of one batch; a third copy of the record does not fit.
    found = limited(PREDICT.replace("{mode!r}", repr(mode)), imports, 145 * MEGABYTE, path)
    assert found == f"50000000 49999999 {windows}\n"


def test_used_bases_are_the_union_of_both_strands_windows() -> None:
    torch = pytest.importorskip("torch")
    from types import SimpleNamespace

    from mamba_bio_audio.inference.predict import Reading, predict_records
    from mamba_bio_audio.pipelines.contract import Symbols

    class Model:
        streaming = "constant"

        def __call__(self, tokens, state=None, logits="last"):
            return SimpleNamespace(state=None, logits=torch.zeros(len(tokens), 1, 2))

        def values(self, scores):
            return scores.double().softmax(-1)

    # Windows of 4: forward [0, 4) [4, 8) [6, 10), reverse [6, 10) [2, 6) [0, 4); the unknown ones are left out.
    ids = np.array([7, 8, 11, 11, 11, 7, 8, 9, 10, 11], dtype=np.uint8)
    symbols = Symbols("base", 4, known=lambda ids: (ids >= 7) & (ids <= 10), reverse=lambda ids: ids[::-1])
    (found,) = predict_records(Model(), [ids], symbols, Reading(length=4, max_unknown=0.5))
    assert (found.windows, found.used) == (5, 6)
