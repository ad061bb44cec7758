"""The data of a run: opened, and checked to be what the run was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mamba_bio_audio.config import RunConfig
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.datamodule import DnaDataModule


def open_data(config: RunConfig, device: str, *, index_beside: bool = True) -> DnaDataModule:
    """The data module of a training on `device`; not yet set up."""
    train = config.train
    return DnaDataModule(
        config.data,
        length=train.length,
        batch_size=train.micro_batch_for(device),
        seed=config.seed,
        index_beside=index_beside,
    )


def check_same_data(before: dict[str, Any], now: dict[str, Any], run: Path) -> None:
    """Files and splits must be those that the run was trained on."""
    hashes = {file["name"]: file["sha256"] for file in before.get("files", [])}
    for file in now["files"]:
        if hashes and hashes.get(file["name"]) != file["sha256"]:
            raise InputError(
                f"{file['path']}: not the file that {run} was trained on (SHA-256 {file['sha256'][:12]}..., "
                f"{hashes.get(file['name'], 'none')[:12]}... in its manifest); restore the file"
            )
    if before.get("splits_sha256") not in (None, now["splits_sha256"]):
        raise InputError(f"{run}: the splits are not those that it was trained on; restore {now['split_source']}")
