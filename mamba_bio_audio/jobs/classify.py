"""`mba classify`: train a classifier, and measure the accuracy of what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.jobs.pretrain import DryRunResult, TrainOptions, TrainResult, estimate

if TYPE_CHECKING:
    from mamba_bio_audio.run.begin import Session
    from mamba_bio_audio.run.config import RunConfig

COMMAND = "classify"
PANEL = "Train"


class ClassifyOptions(TrainOptions):
    """Options of `mba classify`; the recipe has a head."""


class ClassifyResult(TrainResult):
    """How the training of a classifier ended.

    Attributes:
        valid_accuracy: of the best weights on validation, with its interval over loci or recordings; None where a signal
            stopped the training.
        groups: what the interval is over, in words.
    """

    valid_accuracy: dict[str, Any] | None
    groups: str = Field("loci", exclude=True)

    def scores(self) -> list[str]:
        """Validation loss and accuracy."""
        lines = []
        if self.ended_by_patience:
            lines.append(f"ended by train.patience at step {self.step:,} of {self.steps:,}")
        if self.valid_nats is not None:
            lines.append(f"best validation at step {self.best_step:,}: {self.valid_nats:.4f} nats per sequence")
        if self.valid_accuracy is not None:
            row = self.valid_accuracy
            lines.append(
                f"validation accuracy {row['value']:.1%} ({row['low']:.1%} to {row['high']:.1%} over "
                f"{row['groups']:,} {self.groups})"
            )
        return lines


def classify(config: RunConfig, run: Path, session: Session) -> ClassifyResult:
    """Train into the run folder `run` and evaluate the best weights on validation.

    The test split is for one `mba evaluate` at the end.

    Args:
        config: with a head.
        run: folder; must be new or empty unless the session resumes or replaces a run.
        session: how it is trained.
    """
    from mamba_bio_audio.jobs.evaluate import EvaluateOptions, evaluate
    from mamba_bio_audio.jobs.evaluate_results import ClassesResult
    from mamba_bio_audio.pipelines.domains import domain_of
    from mamba_bio_audio.run.train import train

    trained = train(config, run, session)
    accuracy = None
    if trained.stopped_by is None:
        options = {"run": trained.run, "split": "valid", "device": session.device, "baselines": False}
        result = evaluate(EvaluateOptions.model_validate(options))
        assert isinstance(result, ClassesResult)
        accuracy = result.model.accuracy.model_dump()
    return ClassifyResult(**dict(trained), valid_accuracy=accuracy, groups=domain_of(config.data.kind).groups)


def run(options: ClassifyOptions) -> ClassifyResult | DryRunResult:
    """Train a classifier of sequences, from scratch or on a pretrained model (head.pretrained=RUN)."""
    config = options.config()
    if config.head is None:
        raise InputError(
            f"recipe {options.recipe} has no head: train a language model with mba pretrain, or add a section head"
        )
    session, folder = options.session(), options.folder(config)
    return estimate(config, folder, session) if options.dry_run else classify(config, folder, session)
