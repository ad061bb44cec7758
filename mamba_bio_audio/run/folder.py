"""The folder of a run: which files belong to it, and which command made it."""

from __future__ import annotations

from pathlib import Path

from mamba_bio_audio.files import Maker
from mamba_bio_audio.pipelines.domains import domains
from mamba_bio_audio.run.sampling import SETTINGS_NAME
from mamba_bio_audio.run.unknown import UNKNOWN_NAME

# Everything that a training, and the commands that read its run, write into the run folder.
RUN_FILES = (
    "config.yaml",
    "manifest.json",
    "metrics.csv",
    "model.safetensors",
    "best_samples.safetensors",
    "checkpoints/last.safetensors",
    "checkpoints/best.safetensors",
    "tensorboard/events.out.tfevents.*",
    "tensorboard/hparams.yaml",
    *(
        name.format(split)
        for split in ("train", "valid", "test")
        for name in (
            "evaluate-{}.json",
            "evaluate-lengths-{}.json",
            "evaluate-context-{}.json",
            "evaluate-context-{}.csv",
            "evaluate-context-{}-position.csv",
            "evaluate-context-{}.png",
            "evaluate-recall-{}.json",
            "evaluate-recall-{}.csv",
            "evaluate-recall-{}.png",
            "predictions-{}.tsv",
            "confusion-{}.png",
        )
    ),
    "report.html",
    SETTINGS_NAME,
    UNKNOWN_NAME,
    *(name for domain in domains() for name in domain.run_files()),
)


def run_maker(command: str) -> Maker:
    """The command that makes a run folder: pretrain, classify, or demo."""
    return Maker(command, RUN_FILES)


def has_weights(run: Path) -> bool:
    """Whether a run holds weights, which make it worth more than the run that it replaces."""
    return (run / "model.safetensors").exists() or any((run / "checkpoints").glob("last.*"))


def remove_unfinished(run: Path) -> None:
    """Delete what a killed training left half-written, going by the names that `atomic_path` gives; nothing else."""
    for name in RUN_FILES:
        for left in run.glob(str(Path(name).with_name(f".{Path(name).name}.*.tmp"))):
            if left.is_file() and left.name.split(".")[-2].isdecimal():
                left.unlink()
