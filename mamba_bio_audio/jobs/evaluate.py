"""`mba evaluate`: how well a model predicts or classifies held-out data, beside what simple models reach on the same data."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import check_folder, write_json
from mamba_bio_audio.jobs.common import counters, resolve_device
from mamba_bio_audio.jobs.contract import Cli, Device, Options, Overrides, RunFolder, Which
from mamba_bio_audio.jobs.digits_results import DigitsResult, JudgeResult
from mamba_bio_audio.jobs.evaluate_digits import evaluate_digits, listeners
from mamba_bio_audio.jobs.evaluate_kept import keep, keep_context, keep_labelled, keep_recall
from mamba_bio_audio.jobs.evaluate_lengths import LengthsResult, by_length, read_lengths
from mamba_bio_audio.jobs.evaluate_recall import RecallOptions, evaluate_recall
from mamba_bio_audio.jobs.evaluate_results import ClassesResult, ContextResult, LikelihoodResult
from mamba_bio_audio.jobs.evaluate_suite import Asked, evaluate_suite
from mamba_bio_audio.jobs.recall_results import RecallResult
from mamba_bio_audio.jobs.sampling_fit import SamplingResult, fit_sampling
from mamba_bio_audio.jobs.suite_options import SuiteOptions
from mamba_bio_audio.jobs.suite_results import SuiteResult
from mamba_bio_audio.jobs.unknown_fit import UnknownResult, fit_unknown
from mamba_bio_audio.jobs.values_results import ValuesResult
from mamba_bio_audio.pipelines.contract import Domain, Progress
from mamba_bio_audio.pipelines.domains import domain_of
from mamba_bio_audio.pipelines.scores import Measured, Scored, Scores

if TYPE_CHECKING:
    from mamba_bio_audio.evaluation.likelihood import Likelihood
    from mamba_bio_audio.run.config import RunConfig

COMMAND = "evaluate"
PANEL = "Measure"
Evaluated = (
    SuiteResult
    | UnknownResult
    | LikelihoodResult
    | ClassesResult
    | ValuesResult
    | ContextResult
    | RecallResult
    | DigitsResult
    | JudgeResult
    | SamplingResult
    | LengthsResult
)


class EvaluateOptions(RecallOptions, SuiteOptions):
    """Options of `mba evaluate`."""

    run: RunFolder
    split: Literal["train", "valid", "test"] = Field("test", description="Which split is scored.")
    which: Which = "best"
    length: int | None = Field(
        None, ge=1, description="Length of windows (that of training), or of pieces for sampling."
    )
    context: Annotated[str | None, Cli(metavar="N,N,...")] = Field(
        None, description="Instead, score the same bases with each of these numbers of bases before them."
    )
    lengths: Annotated[str | None, Cli(metavar="N,N,...")] = Field(
        None,
        description="Instead, of a synthetic task: share of right answers in sequences of each of these lengths, such as "
        "64,256 or 2^6..2^20; --num-samples sequences each (256).",
    )
    blocks: int = Field(256, ge=1, description="With --context: number of blocks of target bases.")
    block_bases: int | None = Field(
        None,
        ge=1,
        description="With --context: bases of a block; long ones measure far more bases in little more time.",
    )
    out: Path | None = Field(
        None,
        description="With --context and --recall: folder for tables and picture; default: RUN. With --suite: folder of the "
        "results; default: runs/SUITE.",
    )
    baselines: bool = Field(True, description="Also fit simple models, such as Markov models or k-mers.")
    strand: Literal["both", "forward", "reverse"] = Field(
        "both", description="Strands that a classifier of DNA reads; both takes the mean."
    )
    metrics: Literal["likelihood", "sampling", "unknown", "sc09", "sc09-judge"] = Field(
        "likelihood",
        description="What is measured; sampling: fit how mba sample draws, the temperature (audio: and top-p, min-p, hold, "
        "best of several) at which generated pieces are most like held-out data, and keep it in the run; unknown: fit which "
        "sequences a classifier calls unknown, and keep it in the run for mba predict --threshold calibrated; sc09: generate "
        "spoken digits and have a judge score them (FID, IS, mIS, AM, NDB); sc09-judge: only train that judge and the "
        "recogniser, or show those that are kept.",
    )
    num_samples: int | None = Field(
        None,
        ge=4,
        description="Clips for sc09 (2048, or 10240 with --protocol paper); pieces per setting for sampling (4, on a GPU 8).",
    )
    keep: float = Field(0.95, gt=0, lt=1, description="With unknown: share of validation sequences that stay known.")
    foreign: Annotated[tuple[str, ...], Cli(metavar="FILE")] = Field(
        (), description="With unknown: also say how much of this file is called unknown; repeatable."
    )
    seed: int = Field(0, ge=0, description="With sampling and --recall: random seed of what is drawn.")
    protocol: Literal["plain", "paper"] = Field(
        "plain", description="With sc09: score all samples, or those that the published protocol selects."
    )
    temperature: float | None = Field(
        None, ge=0, description="With sc09: divides the logits of the clips that are generated; default: 1."
    )
    top_p: float | None = Field(None, description="With sc09: nucleus sampling of these clips; default: all symbols.")
    guidance: float | None = Field(
        None,
        gt=0,
        le=100,
        description="With sc09 and a model of classes: by how much to overstate the class, as mba sample.",
    )
    judge: Literal["small", "resnext"] | None = Field(
        None, description="With sc09: which judge; default: resnext on a GPU, small on a CPU."
    )
    judge_epochs: int | None = Field(
        None, ge=1, description="With sc09 and sc09-judge: epochs that judge and recogniser are trained for."
    )
    max_bases: int | None = Field(
        None,
        ge=1,
        description="Score at most this many bases (samples of audio), in windows spread evenly over the split.",
    )
    overrides: Overrides = ()
    device: Device = "auto"

    @property
    def contexts(self) -> list[int]:
        """The numbers of `context` in rising order, each once."""
        return sorted({int(part.replace("_", "")) for part in (self.context or "").split(",") if part})

    @field_validator("lengths")
    @classmethod
    def _lengths(cls, lengths: str | None) -> str | None:
        if lengths is not None:
            read_lengths(lengths)
        return lengths

    @field_validator("context")
    @classmethod
    def _numbers(cls, context: str | None) -> str | None:
        parts = [] if context is None else context.replace("_", "").split(",")
        if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
            raise ValueError(
                f"got {context!r}; write whole numbers above 0, separated by commas, for example 1024,16384"
            )
        return context

    @model_validator(mode="after")
    def _goes_together(self) -> EvaluateOptions:
        given = self.model_fields_set & (set(SuiteOptions.model_fields) - set(Options.model_fields) - {"suite"})
        changed = sorted(name for name in given if getattr(self, name) != SuiteOptions.model_fields[name].default)
        if self.suite is None and changed:
            raise ValueError(f"--{changed[0]} goes with --suite; leave it out")
        recall = [name for name in RecallOptions.model_fields if name not in Options.model_fields]
        changed = [name for name in recall if getattr(self, name) != RecallOptions.model_fields[name].default]
        if changed and not self.recall:
            raise ValueError(f"--{changed[0]} goes with --recall; leave it out")
        if self.recall and self.context is not None:
            raise ValueError("--recall and --context are two evaluations; give one of them")
        other = self.context is not None or self.recall
        if self.suite is not None and (self.metrics != "likelihood" or other):
            raise ValueError("--suite trains and scores classifiers; leave out --metrics, --context and --recall")
        if self.recall and self.metrics != "likelihood":
            raise ValueError("--recall measures by likelihood; leave out --metrics")
        if self.max_bases is not None and (self.metrics != "likelihood" or other):
            raise ValueError(
                "--max-bases goes with the likelihood of whole windows; --context has --blocks instead, and --recall --trials"
            )
        if self.block_bases is not None and self.context is None:
            raise ValueError("--block-bases goes with --context; leave it out")
        if self.lengths is not None and (self.metrics, self.suite, other) != ("likelihood", None, False):
            raise ValueError("--lengths goes without --metrics, --context, --recall and --suite; leave them out")
        if self.metrics != "unknown" and (self.foreign or self.keep != 0.95):
            raise ValueError("--keep and --foreign go with --metrics unknown; leave them out")
        if self.metrics != "sc09" and (self.temperature, self.top_p, self.guidance) != (None, None, None):
            raise ValueError(
                "--temperature, --top-p and --guidance say how the clips of --metrics sc09 are drawn; leave them out"
            )
        return self


def run(options: EvaluateOptions) -> Evaluated:
    """Score each symbol of a split once, beside simple models; or a classifier's accuracy, beside one on k-mers."""
    from mamba_bio_audio.run.packaged import find_model

    with counters(options.quiet) as progress:
        if options.suite is not None:
            out = options.out or Path("runs") / options.suite
            device = resolve_device(options.device)
            return evaluate_suite(Asked(options.suite, options.run, out, options, options.overrides, device, progress))
        if options.metrics == "sampling":
            windows = options.model_copy(update={"length": None})
            return fit_sampling(open_run(windows, progress=progress), options, progress)
        if options.metrics == "unknown":
            return fit_unknown(open_run(options, progress=progress), options, progress)
        if options.lengths is not None:
            return by_length(open_run(options, progress=progress), options, read_lengths(options.lengths), progress)
        if options.metrics == "sc09-judge":
            return _prepare_judge(options, progress)
        if options.metrics == "sc09":
            return _evaluate_digits(options, progress)
        if options.context is not None or options.recall:
            if options.out is not None:
                check_folder(options.out)
            elif not options.run.exists() and find_model(options.run):
                raise InputError(
                    f"{options.run}: a packaged model, in whose folder nothing is written; give --out FOLDER"
                )
            found: ContextResult | RecallResult
            if options.recall:
                opened = _open_streaming(options, "--recall", progress=progress)
                recalled = evaluate_recall(opened, _positions(opened.device), progress)
                found = keep_recall(options.run, options.out, recalled)
            else:
                found = keep_context(options.run, options.out, _evaluate_context(options, progress))
            return found.model_copy(update={"written": ()}) if options.quiet else found
        result = evaluate(options, progress)
    # A run keeps what its own best weights reach on its own data, at the length that it was trained at.
    own = not options.overrides and options.length is None and options.max_bases is None and options.which == "best"
    own = own and (options.run / "config.yaml").exists()
    if isinstance(result, ClassesResult):
        return keep_labelled(options.run, result) if own else result
    if isinstance(result, ValuesResult):
        return keep_labelled(options.run, result) if own else result
    if own and options.baselines:
        result = keep(
            options.run, result, lambda: write_json(options.run / f"evaluate-{options.split}.json", result.to_json())
        )
    if result.model.nats is None or not math.isfinite(result.model.nats):
        raise RuntimeError(f"the model's likelihood is {result.model.nats}; its weights are not usable")
    return result


def evaluate(
    options: EvaluateOptions, progress: Progress | None = None
) -> LikelihoodResult | ClassesResult | ValuesResult:
    """A model on a split, beside simple models on the same symbols or sequences; nothing is written.

    Each symbol of the split is scored once, with everything before it in its window as context. A classifier is scored on
    the fixed sequences of the split.

    Args:
        options: which run, split, weights, length; `context` and `metrics` are not looked at.
        progress: called with (what, done, in all), for example ("batches", 3, 10).
    """
    opened = open_run(options, progress=progress)
    return (
        _evaluate_likelihood(opened, progress) if opened.config.head is None else _evaluate_labelled(opened, progress)
    )


class Opened(NamedTuple):
    """A run with its data, checked to be those that it was trained on."""

    options: EvaluateOptions
    device: str
    model: Any
    config: RunConfig
    data: Any
    described: dict[str, Any]  # summary() of the data
    domain: Domain

    @property
    def precision(self) -> str:
        """bf16 or fp32."""
        from mamba_bio_audio.training.config import resolve_precision

        return resolve_precision(self.config.train.precision, self.device)

    def asked(self) -> dict[str, Any]:
        """Facts about the run that every result contains."""
        from mamba_bio_audio.models.weights import weights_hash

        return {
            "run": str(self.options.run),
            "which": self.options.which,
            "weights_sha256": weights_hash(self.model),
            "overrides": list(self.options.overrides),
        }

    def source(self) -> dict[str, Any]:
        """Facts about the data that every result contains."""
        return {key: self.described[key] for key in ("files", "split_source")}

    def need_language_model(self, what: str) -> None:
        """Refuse a classifier."""
        if self.config.head is not None:
            raise InputError(f"{what} needs a language model, got a classifier ({self.options.run}); leave it out")


def open_run(options: EvaluateOptions, *, length: int | None = None, progress: Progress | None = None) -> Opened:
    """Model, configuration and data of a run.

    Args:
        options: which run, split and weights.
        length: length of the windows; None means that of the options, or else of the training.
        progress: as for `evaluate`.
    """
    from mamba_bio_audio.run import saved
    from mamba_bio_audio.run.config import RunConfig
    from mamba_bio_audio.run.data import check_same_data, open_data

    device = resolve_device(options.device)
    model: Any = saved.load(options.run, options.which)
    if not isinstance(model.config, RunConfig):
        raise InputError(
            f"{options.run}: weights without a run configuration; mba evaluate needs a run or an export of one"
        )
    config = _override_data(model.config, options)
    length = length or options.length or config.train.length
    batch = max(1, _positions(device) // length)
    data = open_data(config, device, length=length, batch_size=batch, progress=progress)
    data.setup()
    described = data.summary()
    if not options.overrides and model.manifest:
        check_same_data(model.manifest.get("data", {}), described, options.run)
    return Opened(options, device, model, config, data, described, domain_of(config.data.kind))


def _override_data(config: RunConfig, options: EvaluateOptions) -> RunConfig:
    """A run's configuration with other data, or another precision."""
    from mamba_bio_audio.run.config import override, validate

    for text in options.overrides:
        if not text.startswith(("data.", "train.precision=")):
            raise InputError(
                f"--set {text}: evaluation accepts data.* and train.precision; the model stays as it was trained"
            )
    return validate(override(config.model_dump(mode="json"), options.overrides), str(options.run), check_files=True)


def _positions(device: str) -> int:
    """Number of positions processed by a model at a time."""
    return 2**14 if device == "cpu" else 2**18


def _told(progress: Progress | None, what: str) -> Callable[[int, int | None], None] | None:
    return None if progress is None else lambda done, total: progress(what, done, total)


def _evaluate_likelihood(opened: Opened, progress: Progress | None) -> LikelihoodResult:
    from mamba_bio_audio.evaluation.likelihood import evaluate_likelihood
    from mamba_bio_audio.pipelines.stream import loader
    from mamba_bio_audio.run import saved

    options, data = opened.options, opened.data
    if options.max_bases is not None and options.max_bases < data.length:
        raise InputError(
            f"--max-bases {options.max_bases:,} is less than one window of {data.length:,} {data.codec.unit}s; give more, "
            "or a shorter --length"
        )
    if options.baselines:
        opened.domain.check_yardsticks(data)

    def measure(batches: Any, what: str) -> Likelihood:
        how = opened.device, opened.precision, _told(progress, what)
        return evaluate_likelihood(opened.model, batches, *how, answered=opened.config.data.answered)

    def score(windows: Any, what: str) -> Scored:
        return _scored(measure(loader(windows, data.batch_size, opened.config.data.num_workers), what))

    found = measure(data.evaluation_dataloader(options.split, max_tokens=options.max_bases), "batches")
    measured = Measured(
        split=options.split,
        scored=found.count,
        groups={int(group): _scored(scores) for group, scores in found.groups.items()},
        max_symbols=options.max_bases,
        trained_length=opened.config.train.length,
        yardsticks=options.baselines,
        correct=found.correct,
    )
    return LikelihoodResult(
        **opened.asked(),
        weights=saved.describe_which(opened.config, options.which),
        split=options.split,
        length=data.length,
        **opened.source(),
        scored=found.count,
        model=Scores.of(found.nats_per_base),
        beside=opened.domain.beside_likelihood(data, measured, score, progress),
    )


def _scored(likelihood: Likelihood) -> Scored:
    return Scored(model=Scores.of(likelihood.nats_per_base), scored=likelihood.count)


def _evaluate_labelled(opened: Opened, progress: Progress | None) -> ClassesResult | ValuesResult:
    from mamba_bio_audio.evaluation.classes import evaluate_classes
    from mamba_bio_audio.evaluation.values import evaluate_values
    from mamba_bio_audio.inference.streaming import Passes

    options = opened.options
    if options.max_bases is not None:
        raise InputError(
            "--max-bases is for language models; a classifier's windows are set by data.evaluation_windows"
        )
    how: Any = {
        "split": options.split,
        "strand": options.strand,
        "passes": Passes(opened.device, opened.precision == "bf16", opened.config.train.chunk),
        "progress": _told(progress, "sequences"),
    }
    of: Any = (opened.model, opened.data, opened.domain)
    said: Any = opened.asked() | opened.source()
    if opened.model.task.rows and opened.model.outputs.name == "classes":
        return ClassesResult(**said, **evaluate_classes(*of, **how, baselines=options.baselines))
    return ValuesResult(**said, **evaluate_values(*of, **how, baselines=options.baselines))


def _open_streaming(options: EvaluateOptions, what: str, *, length: int | None = None, progress: Progress) -> Opened:
    """A language model that reads on from a state, with its data."""
    opened = open_run(options, length=length, progress=progress)
    opened.need_language_model(what)
    if opened.model.streaming == "none":
        raise InputError(
            f"{what} needs a model that can carry a state, which {opened.config.model.unstreamed} layers cannot "
            f"({options.run}); leave it out"
        )
    return opened


def _evaluate_context(options: EvaluateOptions, progress: Progress) -> ContextResult:
    from mamba_bio_audio.evaluation.context import bar_under, nats_under, position_sums, summarise
    from mamba_bio_audio.pipelines.scores import perplexity

    contexts = options.contexts
    opened = _open_streaming(options, "--context", length=contexts[-1], progress=progress)
    model, data = opened.model, opened.data
    size = options.block_bases or max(1, contexts[0] // 4)
    blocks = opened.domain.target_blocks(data, options.split, size=size, context=contexts[-1], count=options.blocks)
    model.to(opened.device).eval()
    way: Any = {
        "positions": _positions(opened.device),
        "device": opened.device,
        "narrow": opened.precision == "bf16",
    }
    nats = nats_under(model, blocks, contexts, **way, progress=_told(progress, "batches"))
    bar = opened.domain.copy_bar(data, contexts, progress) if options.baselines else None
    copied = None if bar is None else bar_under(bar, blocks, contexts, progress=_told(progress, "copies, blocks"))
    # A fifth of what the matched part costs, or the whole split where that is less.
    budget = max(1, options.blocks // 4) * contexts[-1]
    at_once = max(1, _positions(opened.device) // contexts[-1])
    by_position = position_sums(
        model, data.evaluation_dataloader(options.split, batch_size=at_once, max_tokens=budget), **way
    )
    return ContextResult(
        **opened.asked(),
        split=options.split,
        contexts=contexts,
        block_bases=blocks.size,
        blocks=blocks.count,
        target_bases=int(blocks.strata[0].members.sum()),
        trained_length=opened.config.train.length,
        longest_context_inside_split=blocks.inside,
        matched=summarise(nats, blocks.strata, contexts),
        **(
            {}
            if bar is None or copied is None
            else {"bar": bar.name, "copied": summarise(copied, blocks.strata, contexts)}
        ),
        by_position=[
            {
                "first": row.first,
                "last": row.last,
                "count": row.scored,
                "nats": row.nats / row.scored,
                "perplexity": perplexity(row.nats / row.scored),
            }
            for row in by_position
        ],
    )


def _evaluate_digits(options: EvaluateOptions, progress: Progress) -> DigitsResult:
    from mamba_bio_audio.evaluation.digits import samples_wanted

    count = samples_wanted(options.num_samples, options.protocol)
    opened = open_run(options, progress=progress)
    opened.need_language_model("--metrics sc09")
    return evaluate_digits(opened, count, progress)


def _prepare_judge(options: EvaluateOptions, progress: Progress) -> JudgeResult:
    """Judge and recogniser alone; the run need have no weights yet."""
    from mamba_bio_audio.run.data import open_data
    from mamba_bio_audio.run.described import read_config

    config = _override_data(read_config(options.run), options)
    if config.head is not None:
        raise InputError(f"--metrics sc09-judge needs a language model, got a classifier ({options.run}); leave it out")
    data = open_data(config, resolve_device(options.device))
    data.setup()
    heard_by = listeners(options, domain_of(config.data.kind).digits(data), data.summary(), progress)
    return JudgeResult(judge=heard_by.judged_by, recogniser=heard_by.recognised_by)
