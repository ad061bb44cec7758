"""`mba finetune`: train a model that predicts labels, from scratch or on a pretrained one.

For classes it has another name, `mba classify`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import is_occupied
from mamba_bio_audio.jobs.contract import Result
from mamba_bio_audio.jobs.pretrain import DryRunResult, TrainOptions, TrainResult, estimate
from mamba_bio_audio.run.outcomes import OUT_OF_TIME

if TYPE_CHECKING:
    from mamba_bio_audio.run.begin import Session
    from mamba_bio_audio.run.config import RunConfig

COMMAND = "finetune"
PANEL = "Train"
# Of scores that are not between 0 and 1.
LIMITS = {"r2": (-math.inf, 1.0), "mcc": (-1.0, 1.0), "pearson": (-1.0, 1.0), "spearman": (-1.0, 1.0)}


class FinetuneOptions(TrainOptions):
    """Options of `mba finetune`; the recipe has a head."""

    repeats: int = Field(
        1,
        ge=1,
        le=1000,
        description="Train so many times, in OUT/1, OUT/2 ..., each with another seed and another draw of what data.split_seed "
        "draws (splits, data.few), and give means with their intervals.",
    )
    test: bool = Field(False, description="With --repeats: also score the test split, once for each.")

    @model_validator(mode="after")
    def _test_of_repeats(self) -> FinetuneOptions:
        if self.test and self.repeats == 1:
            raise ValueError("--test goes with --repeats; one run is scored with mba evaluate")
        return self


class FinetuneResult(TrainResult):
    """How the training of a model with a head ended.

    Attributes:
        valid: scores of the best weights on validation, by name, each with its interval over loci or recordings; None where
            the training was stopped.
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
            row = Interval.model_validate(self.valid_accuracy)
            over = (
                "no interval from one of" if row.groups < 2 else f"{row.low:.1%} to {row.high:.1%} over {row.groups:,}"
            )
            lines.append(f"validation accuracy {row.value:.1%} ({over} {self.groups})")
        given = {name: row for name, row in (self.valid or {}).items() if name != "accuracy"}
        if found := {name: Interval.model_validate(row) for name, row in given.items()}:
            lines.append("validation " + ", ".join(f"{SCORES[name]} {row.plain()}" for name, row in found.items()))
        elif self.valid == {}:
            lines.append("validation has no scores: what is known there is all the same, or nothing is")
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


class RepeatsResult(Result):
    """Scores of repeated trainings.

    Attributes:
        run: folder of the runs.
        runs: scores of each run by split and name.
        scores: by split and name: mean, its interval (`low`, `high`) over draws and seeds, standard deviation, number of runs.
        stopped_by: name of the signal that ended it early, or `OUT_OF_TIME`.
    """

    run: str
    runs: list[dict[str, dict[str, float]]]
    scores: dict[str, dict[str, dict[str, float]]]
    stopped_by: str | None = None

    def text(self) -> str:
        """A table."""
        from mamba_bio_audio.jobs.values_results import SCORES

        lines = [] if self.stopped_by is None else [f"stopped by {self.stopped_by}; continue with --resume"]
        lines.append(f"{len(self.runs):,} runs in {self.run}; 95 % intervals of the mean over draws and seeds")
        for split, found in self.scores.items():
            for name, row in found.items():
                bounds = "" if math.isnan(row["low"]) else f" ({row['low']:.3f} to {row['high']:.3f})"
                spread = "" if math.isnan(row["deviation"]) else f", standard deviation of one {row['deviation']:.3f}"
                lines.append(f"{split} {SCORES[name]} {row['mean']:.3f}{bounds}{spread}")
        return "\n".join(lines)

    @property
    def exit_code(self) -> int:
        """130 where a signal ended it."""
        return 130 if self.stopped_by not in (None, OUT_OF_TIME) else 0


def repeat(options: FinetuneOptions) -> RepeatsResult:
    """Train `options.repeats` times, and summarise; a run that is complete is not trained again with --resume."""
    from mamba_bio_audio.jobs.evaluate import EvaluateOptions
    from mamba_bio_audio.jobs.evaluate import run as evaluate_and_keep
    from mamba_bio_audio.run.resume import is_complete

    first = labelled_config(options)
    split_seed = first.data.model_dump().get("split_seed")
    if split_seed is None:
        raise InputError(f"--repeats draws anew what data.split_seed draws, which data.kind={first.data.kind} has not")
    whole = options.folder(first)
    runs: list[dict[str, dict[str, float]]] = []
    stopped, deadline = None, options.session().deadline
    for number in range(options.repeats):
        changed = (f"seed={first.seed + number}", f"data.split_seed={split_seed + number}")
        out = whole / str(number + 1)
        own = options.model_copy(update={"overrides": (*options.overrides, *changed), "seed": None, "out": out})
        resumed = options.resume and is_occupied(out)
        own = own.model_copy(update={"resume": resumed})
        config = labelled_config(own)
        if not (resumed and is_complete(config, out)):
            whole.mkdir(parents=True, exist_ok=True)
            stopped = finetune(config, out, own.session()._replace(deadline=deadline)).stopped_by
            if stopped is not None:
                break
        scores: dict[str, dict[str, float]] = {}
        for split in ("valid", "test") if options.test else ("valid",):
            asked = {"run": out, "split": split, "device": options.device, "baselines": False, "quiet": True}
            found: Any = evaluate_and_keep(EvaluateOptions.model_validate(asked))
            scores[split] = {name: row["value"] for name, row in found.headline().items()}
        runs.append(scores)
    return RepeatsResult(run=str(whole), runs=runs, scores=summary(runs), stopped_by=stopped)


def summary(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean of each score over runs, with Student's interval within what the score can be; NaN where one run tells none.

    The interval is over what differs between runs: seed and draws. All share the sequences that they are tested on, where
    the data name their splits, so it does not say how another test set would differ.
    """
    import numpy as np
    from scipy.stats import t

    found: dict[str, dict[str, dict[str, float]]] = {}
    for split in runs[0] if runs else ():
        for name in runs[0][split]:
            values = np.array([row[split][name] for row in runs if name in row[split]], dtype=np.float64)
            mean, count = float(values.mean()), len(values)
            deviation = float(values.std(ddof=1)) if count > 1 else math.nan
            half = float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count) if count > 1 else math.nan
            # Student's interval knows no limits, and a score has some.
            least, most = LIMITS.get(name, (0.0, 1.0))
            low, high = (min(max(bound, least), most) for bound in (mean - half, mean + half))
            row = {"mean": mean, "low": low, "high": high, "deviation": deviation, "runs": count}
            found.setdefault(split, {})[name] = row
    return found


def run(options: FinetuneOptions) -> FinetuneResult | DryRunResult | RepeatsResult:
    """Train a model that predicts labels or numbers, from scratch or on a pretrained model (head.pretrained=RUN)."""
    if options.repeats > 1 and not options.dry_run:
        return repeat(options)
    config = labelled_config(options)
    session, folder = options.session(), options.folder(config)
    return estimate(config, folder, session) if options.dry_run else finetune(config, folder, session)
