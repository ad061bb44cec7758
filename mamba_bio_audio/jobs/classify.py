"""`mba classify`: `mba finetune` by its name for classes."""

from __future__ import annotations

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.jobs.finetune import FinetuneResult, finetune, labelled_config
from mamba_bio_audio.jobs.pretrain import DryRunResult, TrainOptions, estimate

COMMAND = "classify"
PANEL = "Train"


class ClassifyOptions(TrainOptions):
    """Options of `mba classify`; the recipe has a head for classes."""


def run(options: ClassifyOptions) -> FinetuneResult | DryRunResult:
    """Train a classifier of sequences, from scratch or on a pretrained model (head.pretrained=RUN)."""
    config = labelled_config(options)
    assert config.head is not None
    if config.head.task != "classes":
        raise InputError(
            f"head.task is {config.head.task}: use mba finetune, of which mba classify is the name for classes"
        )
    session, folder = options.session(), options.folder(config)
    return estimate(config, folder, session) if options.dry_run else finetune(config, folder, session)
