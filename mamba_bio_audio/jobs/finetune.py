"""`mba finetune`: train a model that predicts labels, from scratch or on a pretrained one.

For classes it has another name, `mba classify`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.jobs.pretrain import DryRunResult, TrainOptions, TrainResult, estimate

if TYPE_CHECKING:
    from mamba_bio_audio.run.begin import Session
    from mamba_bio_audio.run.config import RunConfig

COMMAND = "finetune"
PANEL = "Train"


class FinetuneOptions(TrainOptions):
    """Options of `mba finetune`; the recipe has a head."""


class FinetuneResult(TrainResult):
    """How the training of a model with a head ended.

    Attributes:
        valid: scores of the best weights on validation, by name, each with its interval over loci or recordings; None where
            a signal stopped the training.
        valid_accuracy: the accuracy among them, for classes.
        groups: what the intervals are over, in words.
        loss_name: what the loss is, in words.
    """

    valid: dict[str, dict[str, Any]] | None = None
    valid_accuracy: dict[str, Any] | None = None
    groups: str = Field("loci", exclude=True)
    loss_name: str = Field("nats", exclude=True)

    def scores(self) -> list[str]:
        """Validation loss and scores."""
        from mamba_bio_audio.jobs.evaluate_results import Interval
        from mamba_bio_audio.jobs.values_results import SCORES

        lines = []
        if self.ended_by_patience:
            lines.append(f"ended by train.patience at step {self.step:,} of {self.steps:,}")
        if self.valid_nats is not None:
            lines.append(
                f"best validation at step {self.best_step:,}: {self.valid_nats:.4f} {self.loss_name} per {self.per}"
            )
        if self.valid_accuracy is not None:
            row = self.valid_accuracy
            lines.append(
                f"validation accuracy {row['value']:.1%} ({row['low']:.1%} to {row['high']:.1%} over "
                f"{row['groups']:,} {self.groups})"
            )
        given = {name: row for name, row in (self.valid or {}).items() if name != "accuracy"}
        if found := {name: Interval.model_validate(row) for name, row in given.items()}:
            lines.append("validation " + ", ".join(f"{SCORES[name]} {row.plain()}" for name, row in found.items()))
        return lines


def finetune(config: RunConfig, run: Path, session: Session) -> FinetuneResult:
    """Train into the run folder `run` and evaluate the best weights on validation.

    The test split is for one `mba evaluate` at the end.

    Args:
        config: with a head.
        run: folder; must be new or empty unless the session resumes or replaces a run.
        session: how it is trained.
    """
    from mamba_bio_audio.jobs.evaluate import EvaluateOptions, evaluate
    from mamba_bio_audio.models.tasks import outputs_of
    from mamba_bio_audio.pipelines.domains import domain_of
    from mamba_bio_audio.run.described import read_config
    from mamba_bio_audio.run.train import train

    trained = train(config, run, session)
    valid = None
    if trained.stopped_by is None:
        options = {"run": trained.run, "split": "valid", "device": session.device, "baselines": False}
        valid = evaluate(EvaluateOptions.model_validate(options)).headline()
    # With what the data decided.
    head = read_config(Path(trained.run)).head
    assert head is not None
    return FinetuneResult(
        **dict(trained),
        valid=valid,
        valid_accuracy=None if valid is None else valid.get("accuracy"),
        groups=domain_of(config.data.kind).groups,
        loss_name=outputs_of(head).loss_name(head),
    )


def labelled_config(options: TrainOptions) -> RunConfig:
    """The configuration of a recipe with a head.

    Raises:
        InputError: it has none.
    """
    config = options.config()
    if config.head is None:
        raise InputError(
            f"recipe {options.recipe} has no head: train a language model with mba pretrain, or add a section head"
        )
    return config


def run(options: FinetuneOptions) -> FinetuneResult | DryRunResult:
    """Train a model that predicts labels or numbers, from scratch or on a pretrained model (head.pretrained=RUN)."""
    config = labelled_config(options)
    session, folder = options.session(), options.folder(config)
    return estimate(config, folder, session) if options.dry_run else finetune(config, folder, session)
