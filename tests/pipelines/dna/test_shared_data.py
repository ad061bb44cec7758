"""The real human set with its own intervals, where this checkout has it."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from mamba_bio_audio.pipelines.data import DataModule
from mamba_bio_audio.pipelines.dna.config import DnaDataConfig


@pytest.fixture
def data(shared_dna: Path) -> DataModule:
    module = DataModule(DnaDataConfig(path=str(shared_dna / "human")), length=1024, batch_size=8, seed=0)
    module.setup()
    return module


def test_human_intervals(data: DataModule) -> None:
    summary = data.summary()
    assert [summary["splits"][split]["intervals"] for split in ("train", "valid", "test")] == [326, 26, 50]
    assert summary["splits"]["train"]["bases"] == 42_404_325
    assert summary["bases"] == 55_660_158
    assert not any(summary["shared_bases"].values())
    assert summary["split_source"].endswith("intervals.tsv (found in data.path)")
    # The haplotypes are in the folder but in no split.
    assert not any("LPA" in interval.record for interval in data.corpus.intervals)
    assert 0.39 < summary["composition"]["C"] + summary["composition"]["G"] < 0.41


def test_checksums_and_bases_are_those_of_the_files(data: DataModule, shared_dna: Path) -> None:
    listed = {}
    for line in (shared_dna.parent / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split(maxsplit=1)
        listed[os.path.basename(name.lstrip("*"))] = digest
    assert all(listed[file.name] == file.sha256 for file in data.corpus.genome.fingerprint())
    record = "hg38.chr16_186964-397118:chr16:186964-397118"
    with gzip.open(shared_dna / "human" / "hg38.chr16_186964-397118.fa.gz", "rt") as handle:
        truth = "".join(line.strip() for line in handle if not line.startswith(">"))
    assert data.codec.decode(data.corpus.genome.fetch(record, 0, data.corpus.genome.records[record])) == truth


def test_evaluation_scores_every_base_once(data: DataModule) -> None:
    evaluation = data.corpus.evaluation_windows("test")
    assert evaluation.scored == evaluation.symbols - 2
    sample = data.evaluation_dataset("test", max_tokens=50 * 1024)
    assert sum(int((example["targets"] != -100).sum()) for example in sample) > 45 * 1024
    assert np.unique(evaluation.windows.size).max() == 1025


def test_shared_folder_is_left_alone(data: DataModule, shared_dna: Path) -> None:
    assert not [name for name in os.listdir(shared_dna / "human") if name.endswith((".fai", ".gzi", ".npz"))]
