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

from mamba_bio_audio.pipelines.dna.genome import Genome

WORKERS = 8
WINDOWS_PER_WORKER = 2500
LENGTH = 1025

Span = tuple[str, int, int]
Reader = Callable[[Genome, list[list[Span]], Path], list[list[NDArray[np.uint8]]]]


def truth_of(path: str) -> dict[str, NDArray[np.uint8]]:
    """Token ids by record, read line by line and letter by letter."""
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
        found = pool.starmap(genome.fetch, spans, chunksize=WINDOWS_PER_WORKER // 4)
        assert not any(pool.map(eval, ["'torch' in __import__('sys').modules"] * WORKERS, chunksize=1))
    return [found[at : at + len(jobs[0])] for at in range(0, len(found), len(jobs[0]))]


@pytest.mark.slow
@pytest.mark.parametrize("read", [read_forked, read_spawned])
@pytest.mark.parametrize("name", ["x.fa", "x.fa.gz"])
def test_eight_workers_read_the_truth(read: Reader, name: str, write_fasta, random_dna, tmp_path: Path) -> None:
    # More BGZF blocks than the reader keeps in memory.
    letters = "ACGTACGTacgtACGTN"
    records = {"a": random_dna(7_000_000, 1, letters), "b": random_dna(1_000_003, 2, letters)}
    path = write_fasta(name, records, width=61)
    truth = truth_of(path)
    rng = np.random.default_rng(0)
    jobs: list[list[Span]] = []
    for _ in range(WORKERS):
        names = rng.choice(["a", "b"], WINDOWS_PER_WORKER).tolist()
        starts = [int(rng.integers(0, len(truth[record]) - LENGTH)) for record in names]
        jobs.append([(record, start, start + LENGTH) for record, start in zip(names, starts, strict=True)])
    results = read(Genome(path), jobs, tmp_path)
    compared = 0
    for job, found in zip(jobs, results, strict=True):
        for (record, start, end), ids in zip(job, found, strict=True):
            assert np.array_equal(ids, truth[record][start:end]), (record, start, end)
            compared += 1
    assert compared == WORKERS * WINDOWS_PER_WORKER
