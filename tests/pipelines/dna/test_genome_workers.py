"""Windows read by many processes at once equal a truth that another, simpler reader made.

Peers that share a file handle across a fork return 4 % wrong windows without an error.
"""

import gzip
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mamba_bio_audio.pipelines.dna.bgzf import recompress
from mamba_bio_audio.pipelines.dna.genome import Genome

WORKERS = 8
WINDOWS_PER_WORKER = 12_500
SPREAD = 250  # windows near one place, so that a compressed file is not unpacked for each of them
LENGTH = 257

Span = tuple[str, int, int]
Reader = Callable[[Genome, list[list[Span]], Path], list[list[NDArray[np.uint8]]]]


def truth_of(path: str) -> dict[str, NDArray[np.uint8]]:
    """Token ids by record of a FASTA file, read line by line and letter by letter."""
    contents = Path(path).read_bytes()
    lines: dict[str, list[str]] = {}
    for line in (gzip.decompress(contents) if path.endswith(".gz") else contents).decode().splitlines():
        if line.startswith(">"):
            lines[line[1:].split()[0]] = []
        else:
            lines[next(reversed(lines))].append(line.strip())
    ids = {letter: number for number, letter in enumerate("ACGTN", start=7)}
    return {name: np.array([ids[letter] for letter in "".join(rows).upper()], np.uint8) for name, rows in lines.items()}


def read_forked(genome: Genome, jobs: list[list[Span]], folder: Path) -> list[list[NDArray[np.uint8]]]:
    """Children inherit a genome whose handle is open and has been read from."""
    context = multiprocessing.get_context("fork")
    genome.fetch(*jobs[0][0])
    barrier = context.Barrier(WORKERS)

    def work(worker: int) -> None:
        barrier.wait()
        np.save(folder / f"{worker}.npy", np.concatenate([genome.fetch(*span) for span in jobs[worker]]))

    processes = [context.Process(target=work, args=(worker,)) for worker in range(WORKERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    results = []
    for worker, job in enumerate(jobs):
        sizes = np.cumsum([end - start for _, start, end in job])
        results.append(np.split(np.load(folder / f"{worker}.npy"), sizes[:-1]))
    return results


def read_spawned(genome: Genome, jobs: list[list[Span]], folder: Path) -> list[list[NDArray[np.uint8]]]:
    """Children get the genome by pickling, and do without torch."""
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        spans = [span for job in jobs for span in job]
        found = pool.starmap(genome.fetch, spans, chunksize=len(jobs[0]) // 4)
        assert not any(pool.map(eval, ["'torch' in __import__('sys').modules"] * WORKERS, chunksize=1))
    return [found[at : at + len(jobs[0])] for at in range(0, len(found), len(jobs[0]))]


def write_twobit(path: Path, records: dict[str, str]) -> str:
    """A 2bit file without the letter-by-letter loop of the fixture, which a test compares it with."""
    names = list(records)
    place = 16 + sum(5 + len(name) for name in names)
    directory, data = b"", b""
    codes = np.zeros(256, dtype=np.uint8)
    codes[list(b"TCAGtcag")] = [0, 1, 2, 3] * 2
    for name in names:
        text = np.frombuffer(records[name].encode(), dtype=np.uint8)
        directory += bytes([len(name)]) + name.encode() + np.array([place + len(data)], "<u4").tobytes()
        data += np.array([len(text)], "<u4").tobytes()
        for flags in (text == ord("N"), text >= ord("a")):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
            data += np.concatenate([[len(edges) // 2], edges[::2], np.diff(edges)[::2]]).astype("<u4").tobytes()
        bases = np.concatenate([codes[text], np.zeros(-len(text) % 4, np.uint8)]).reshape(-1, 4)
        data += bytes(4) + (bases @ np.array([64, 16, 4, 1], np.uint8)).astype(np.uint8).tobytes()
    path.write_bytes(np.array([0x1A412743, 0, len(names), 0], "<u4").tobytes() + directory + data)
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize(("read", "windows"), [(read_forked, WINDOWS_PER_WORKER), (read_spawned, 1000)])
def test_eight_workers_read_the_truth(read: Reader, windows: int, write_fasta, random_dna, tmp_path: Path) -> None:
    """100,000 windows through eight forked workers, from every input format in turn."""
    # More BGZF blocks than the reader keeps in memory.
    records = {
        name: "".join(
            (random_dna(1000, at + size).lower() if at % 3 else random_dna(980, at + size) + "N" * 20)
            for at in range(size)
        )
        for name, size in (("a", 7000), ("b", 1000))
    }
    plain = write_fasta("plain.fa", records, width=61)
    # Ordinary gzip, as `mba prepare genome` makes it readable.
    (tmp_path / "ordinary.fa.gz").write_bytes(gzip.compress(Path(plain).read_bytes(), 1))
    recompress(tmp_path / "ordinary.fa.gz", tmp_path / "gzip.fa.gz")
    genome = Genome(
        [
            plain,
            write_fasta("bgzf.fa.gz", records, width=80),
            tmp_path / "gzip.fa.gz",
            write_twobit(tmp_path / "packed.2bit", records),
        ]
    )
    truth = truth_of(plain)
    rng = np.random.default_rng(0)
    jobs: list[list[Span]] = []
    for _ in range(WORKERS):
        job: list[Span] = []
        for number in range(windows // SPREAD):
            record = str(rng.choice(["a", "b"]))
            last = len(truth[record]) - LENGTH
            place = int(rng.integers(0, last))
            name = f"{genome.genomes[number % 4]}:{record}"
            starts = np.minimum(place + rng.integers(0, 100_000, SPREAD), last).tolist()
            job += [(name, start, start + LENGTH) for start in starts]
        jobs.append(job)
    results = read(genome, jobs, tmp_path)
    compared = 0
    for job, found in zip(jobs, results, strict=True):
        for (record, start, end), ids in zip(job, found, strict=True):
            assert np.array_equal(ids, truth[record[-1]][start:end]), (record, start, end)
            compared += 1
    assert compared == WORKERS * windows


def test_two_writers_of_2bit_agree(write_fasta, random_dna, tmp_path: Path) -> None:
    records = {"a": random_dna(1003, 1, "ACGTacgtN"), "bb": "N" + random_dna(50, 2)}
    slow = Path(write_fasta("slow.2bit", records)).read_bytes()
    assert Path(write_twobit(tmp_path / "fast.2bit", records)).read_bytes() == slow
