"""`mba evaluate --recall`: does the model use what it read long ago?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.jobs.contract import Cli, Options
from mamba_bio_audio.jobs.evaluate_results import Interval
from mamba_bio_audio.jobs.recall_results import RecallResult, RecallRow
from mamba_bio_audio.pipelines.contract import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mamba_bio_audio.pipelines.scores import CopyBar, RecallTrials

CONTROL, FOREIGN = "control", "foreign control"


class RecallOptions(Options):
    """Options of `mba evaluate --recall`."""

    recall: bool = Field(
        False,
        description="Instead, let real pieces of 256 bases come again after a distance (exactly, with substitutions, on "
        "the other strand) and say what the model gains on the second copy.",
    )
    distances: Annotated[str, Cli(metavar="N,N,...")] = Field(
        "64,256,1024,4096,16384,65536,262144", description="With --recall: bases between the copies."
    )
    trials: int = Field(128, ge=2, description="With --recall: stretches drawn from the split for each distance.")
    copies: Annotated[str, Cli(metavar="N,N,...")] = Field(
        "1", description="With --recall: how often the piece is there, end to end, before it comes again."
    )
    mutated: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="With --recall: share of substituted bases in the first copy of the variant mutated.",
    )

    @field_validator("distances", "copies")
    @classmethod
    def _whole(cls, text: str) -> str:
        if not all(part.strip().isdecimal() and int(part) > 0 for part in text.replace("_", "").split(",")):
            raise ValueError(f"got {text!r}; write whole numbers above 0, separated by commas, for example 64,1024")
        return text

    def numbers(self, text: str) -> list[int]:
        """The numbers of an option in rising order, each once."""
        return sorted({int(part) for part in text.replace("_", "").split(",")})


def evaluate_recall(opened: Any, positions: int, progress: Progress | None) -> RecallResult:
    """Score the trials of every distance with the model and, where asked for, with copies.

    Args:
        opened: the run with its data (`evaluate.Opened`).
        positions: positions processed by the model at a time.
        progress: called with (what, done, in all).

    Raises:
        InputError: no distance fits into the split.
    """
    options, data, domain = opened.options, opened.data, opened.domain
    trials: list[RecallTrials] = []
    left_out: dict[int, str] = {}
    for distance in options.numbers(options.distances):
        try:
            found = domain.recall_trials(
                data,
                options.split,
                distance,
                count=options.trials,
                copies=options.numbers(options.copies),
                mutated=options.mutated,
                seed=options.seed,
            )
        except InputError as error:
            left_out[distance] = str(error)
            continue
        trials.append(found)
    if not trials:
        raise InputError(next(iter(left_out.values())))
    contexts = sorted({some.context for some in trials})
    bar = domain.copy_bar(data, contexts, progress) if options.baselines else None
    opened.model.to(opened.device).eval()
    rows: list[RecallRow] = []
    for some in trials:
        rows += _rows(opened, some, bar, positions, progress)
    return RecallResult(
        **opened.asked(),
        split=options.split,
        unit=data.codec.unit,
        piece=trials[0].target.shape[1],
        mutated=options.mutated,
        seed=options.seed,
        trained_length=opened.config.train.length,
        bar="" if bar is None else bar.name,
        recall=rows,
        not_measured={f"{distance:,}": reason for distance, reason in left_out.items()},
    )


def _rows(
    opened: Any, trials: RecallTrials, bar: CopyBar | None, positions: int, progress: Progress | None
) -> list[RecallRow]:
    """Every variant at one distance."""
    from mamba_bio_audio.evaluation.recall import recall_bar, recall_nats

    variants = len(trials.pieces)
    read = len(trials.target) * (trials.lead.shape[1] + variants * (trials.context - trials.lead.shape[1]))
    own = recall_nats(
        opened.model,
        trials,
        known=list(opened.data.codec.sample_ids),
        positions=positions,
        device=opened.device,
        narrow=opened.precision == "bf16",
        progress=_counted(progress, f"distance {trials.distance:,}", read),
    )
    copied: dict[str, NDArray[np.float64]] = {}
    if bar is not None:
        whole = len(trials.target) * variants * trials.context
        copied = recall_bar(bar, trials, _counted(progress, f"distance {trials.distance:,}, copies", whole))
    rows = []
    for variant in trials.pieces:
        if variant in (CONTROL, FOREIGN):
            continue
        row: dict[str, Any] = {"nats": float(own[variant].mean()), "control_nats": float(own[CONTROL].mean())}
        row |= {"gain": _gain(own, variant, CONTROL), "gain_over_foreign": _gain(own, variant, FOREIGN)}
        if copied:
            row["bar_nats"] = float(copied[variant].mean())
            row |= {"bar_gain": _gain(copied, variant, CONTROL)}
            row |= {"bar_gain_over_foreign": _gain(copied, variant, FOREIGN)}
        rows.append(
            RecallRow(
                distance=trials.distance, context=trials.context, variant=variant, trials=len(trials.target), **row
            )
        )
    return rows


def _gain(nats: dict[str, NDArray[np.float64]], variant: str, control: str) -> Interval:
    from mamba_bio_audio.evaluation.resampling import bootstrap_mean

    return Interval(**bootstrap_mean(nats[control] - nats[variant]).to_dict())


def _counted(progress: Progress | None, what: str, total: int) -> Callable[[int], None] | None:
    """Adds up symbols that were read."""
    if progress is None:
        return None
    done = 0

    def count(symbols: int) -> None:
        nonlocal done
        done += symbols
        progress(what, min(done, total), total)

    return count
