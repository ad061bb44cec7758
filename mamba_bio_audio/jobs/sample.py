"""`mba sample`: new sequences from a trained model; streamed to disk, resumable, in constant memory."""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.jobs.contract import Cli, Device, Force, Options, Resume, RunFolder, Which
from mamba_bio_audio.jobs.sample_progress import Rate, showing
from mamba_bio_audio.jobs.sample_report import check_report, discard_report, measure, write_page
from mamba_bio_audio.jobs.sample_results import SampleResult
from mamba_bio_audio.run.sampling import HOW
from mamba_bio_audio.text import show

if TYPE_CHECKING:
    from mamba_bio_audio.inference.paths import Stepper
    from mamba_bio_audio.pipelines.sample_writer import SampleWriter
    from mamba_bio_audio.run.config import RunConfig
    from mamba_bio_audio.run.sampling import Fitted

COMMAND = "sample"
PANEL = "Use"
# Symbols of samples below which their bits are too uncertain for a warning.
_LEAST_FOR_DRIFT = 1 << 12


def _prompts(given: Any) -> Any:
    """Several, one, or none."""
    return () if given is None else (given,) if isinstance(given, str) else given


def _length(given: Any) -> Any:
    """A number, or None for `inf`."""
    if isinstance(given, str) and given != "inf" and not (given.isascii() and given.isdigit()):
        raise ValueError(f"{given!r} is neither a number of symbols nor inf")
    return None if given == "inf" else given


class SampleOptions(Options):
    """Options of `mba sample`.

    Attributes:
        length: None goes on until a signal, or the end of what a file holds; so does `seconds` = inf. One of them is given.
        prompt: several, or one as text.
    """

    run: RunFolder
    length: Annotated[int | None, BeforeValidator(_length), Cli(metavar="N|inf", text=True)] = Field(
        None,
        ge=1,
        le=2**62,
        description="Bases or audio samples to generate for each sample, without the prompt; inf goes on until Ctrl-C.",
    )
    seconds: Annotated[float | None, Cli(metavar="S|inf")] = Field(
        None, gt=0, description="Audio: the same in seconds, rounded to the nearest sample; instead of --length."
    )
    num_samples: int = Field(1, ge=1, description="Number of samples, of each prompt where there are several.")
    out: Path | None = Field(
        None,
        description="FASTA file; audio: FILE.wav, FILE.flac, or a folder for several; default, or -: standard output, "
        "FASTA or WAV, as it is made.",
    )
    prompt: Annotated[tuple[str, ...], BeforeValidator(_prompts), Cli(metavar="BASES|PATH")] = Field(
        (), description="What the samples continue: bases, or an audio file or a folder of them; repeatable."
    )
    prompt_file: str | None = Field(
        None,
        description="DNA of any length to continue: FILE[:RECORD[:START-END]], FASTA or 2bit; each record begins "
        "--num-samples samples.",
    )
    class_: Annotated[tuple[str, ...], Cli(flag="--class", metavar="NAME")] = Field(
        (),
        description="Audio models trained on classes: the class of the samples; repeatable, or all: --num-samples of each.",
    )
    guidance: float = Field(
        0.0,
        ge=0,
        le=100,
        description="With --class: by how much to overstate the class; 0 samples as trained, 1 to 4 at twice the cost say more "
        "of the class and vary less.",
    )
    best_of: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Make so many of each sample and keep the one whose bits per symbol stray least, eighth by eighth; at so "
        "many times the cost. Default: as fitted for the run, where --temperature and the like are, else 1.",
    )
    usual_bits: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="With --best-of: bits per symbol from which to stray least. Default: those that pieces drawn as fitted "
        "for the run have, or else validation's.",
    )
    hold: float | None = Field(
        None,
        ge=0,
        le=10,
        description="Let the temperature follow the bits of what is drawn, to keep them near validation's: 0 leaves it as "
        "it is, 0.2 to 0.8 keep long samples from fading away and from turning into noise; slower.",
    )
    keep_prompt: bool = Field(
        False,
        description="Write the prompt, as the model read it, before its continuation; log-likelihoods leave it out.",
    )
    temperature: float | None = Field(
        None,
        ge=0,
        description="Divides the logits; 0 always picks the most probable symbol. Default: as fitted for the run (mba "
        "evaluate RUN --metrics sampling) where none of --top-k, --top-p, --min-p, --hold is given, else 1.",
    )
    top_k: int | None = Field(None, ge=1, description="Keep only the k most probable symbols.")
    top_p: float | None = Field(
        None, description="Nucleus sampling: keep the most probable symbols up to this cumulative probability."
    )
    min_p: float | None = Field(
        None,
        description="Keep the symbols that are at least this many times as probable as the most probable one, such as 0.01.",
    )
    seed: int = Field(0, ge=0, description="Random seed for sampling.")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Precision of the matrices; bf16 is faster on a GPU, and a slightly different model."
    )
    which: Which = "best"
    batch_size: int = Field(16, ge=1, description="Samples generated at a time; does not change them.")
    device: Device = "auto"
    resume: Resume = Field(False, description="Continue interrupted sampling into --out.")
    report: bool = Field(
        True,
        description="Compare the samples with the data of the run, and write OUT.report.json; audio: also "
        "OUT.report.html, to look at and listen to.",
    )
    force: Force = False

    @model_validator(mode="after")
    def _check(self) -> SampleOptions:
        if self.resume and self.force:
            raise ValueError("--resume continues interrupted sampling and --force replaces it; give one of them")
        if self.prompt and self.prompt_file is not None:
            raise ValueError("--prompt and --prompt-file both say what the samples continue; give one of them")
        if self.keep_prompt and not self.prompt and self.prompt_file is None:
            raise ValueError("--keep-prompt keeps what --prompt or --prompt-file gives; give one of them")
        if self.guidance and not self.class_:
            raise ValueError("--guidance is towards a class; give --class")
        if self.several and self.class_:
            raise ValueError("--best-of chooses by bits, not by class, of which --guidance says more; give one of them")
        if self.usual_bits is not None and not self.several:
            raise ValueError("--usual-bits is what --best-of compares with; give both")
        if self.several and self.target is None:
            raise ValueError("--best-of chooses among whole samples; give --out")
        if len({"length", "seconds"} & self.model_fields_set) != 1:
            raise ValueError("give either --length, in symbols, or --seconds, of audio")
        if self.endless and self.num_samples > 1:
            raise ValueError("--length inf makes one sample; leave out --num-samples")
        if self.endless and self.several:
            raise ValueError("--length inf makes one sample; leave out --best-of")
        return self

    def in_symbols(self, config: RunConfig) -> SampleOptions:
        """The same with `seconds` as `length`.

        Raises:
            InputError: they are no length here.
        """
        from mamba_bio_audio.pipelines.domains import domain_of

        if self.seconds is None:
            return self
        domain = domain_of(config.data.kind)
        rate = domain.rate_hz(config.data)
        if rate is None:
            raise InputError(f"--seconds is for audio; give --length, in {domain.unit}s")
        length = None if self.seconds == math.inf else math.floor(min(self.seconds * rate, 2**62) + 0.5)
        if length == 0:
            raise InputError(f"--seconds {self.seconds:g} is less than half a sample at {rate:,} Hz; choose more")
        return self.model_copy(update={"length": length, "seconds": None})

    @property
    def says_how(self) -> bool:
        """Whether it is said how symbols are drawn; if not, fitted settings may."""
        return any(getattr(self, name) is not None for name in HOW)

    @property
    def several(self) -> bool:
        """Whether the best of several is kept of each sample."""
        return (self.best_of or 1) > 1

    @property
    def endless(self) -> bool:
        """Whether samples go on until a signal."""
        return self.length is None and self.seconds in (None, math.inf)

    @property
    def target(self) -> Path | None:
        """Where samples go; None is standard output."""
        return None if self.out is None or str(self.out) == "-" else self.out

    def check_json(self) -> None:
        """Samples and result cannot both go to standard output."""
        if self.target is None:
            raise InputError("--json prints the result on standard output, where the samples go too; give --out FILE")


def run(options: SampleOptions) -> SampleResult:
    """Sample DNA as FASTA, audio as WAV or FLAC: recurrently, in constant memory, streamed to disk and resumable."""
    from mamba_bio_audio.jobs.common import counter, resolve_device, standard_output

    out = standard_output(options.out)
    if out is None and options.resume:
        raise InputError("--resume needs --out: what went to standard output cannot be continued")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}")
    if out is not None and out.exists() and not (options.force or options.resume):
        raise InputError(f"{out} exists; choose another --out, or replace it with --force")

    from mamba_bio_audio.pipelines.domains import domain_of
    from mamba_bio_audio.run.described import describe
    from mamba_bio_audio.run.sampling import read_fitted

    # What does not depend on the weights is refused before torch is imported.
    described = describe(options.run)
    if described is None and options.class_:
        raise InputError(f"{options.run}: weights without a run configuration have no classes; leave --class out")
    if described is not None:
        options = options.in_symbols(described.config)
    given, fitted = options, None if options.says_how else read_fitted(options.run)
    if fitted is not None:
        # Chosen among whole samples, by bits.
        chooses = not (options.class_ or options.endless or out is None)
        fitted = fitted.model_copy(update={"best_of": options.best_of or (fitted.best_of if chooses else 1)})
        usual = None if fitted.best_of == 1 else options.usual_bits or fitted.usual_bits
        options = options.model_copy(update=fitted.draws | {"best_of": fitted.best_of, "usual_bits": usual})
    writer = None if described is None else _writer(options, described.config, described.manifest)
    device = resolve_device(options.device)

    from mamba_bio_audio.run import saved

    model = saved.load_language_model(options.run, options.which).to(device)
    if model.codec is None:
        raise InputError(f"{options.run}: weights without a codec cannot be sampled by this command; use mba.generate")
    settings = None
    if fitted is not None:
        from mamba_bio_audio.models.weights import weights_hash

        overriding = ", ".join(f"--{name.replace('_', '-')}" for name in HOW)
        settings = f"drawn at {fitted.text}, as fitted for this run; {overriding} override it"
        if fitted.weights_sha256 != weights_hash(model):
            settings = f"drawn at temperature 1: {fitted.path} was fitted to other weights of this run; fit again"
            options, fitted, writer = given, None, None
    domain = domain_of(model.config.data.kind)
    measured = domain.measures(out) if options.report and out is not None else None
    # Nothing is measured anew beside samples that are complete already.
    if measured is not None and not (options.resume and out is not None and out.exists()):
        check_report(measured)
    writer = writer or _writer(options, model.config, model.manifest)
    for remark in writer.remarks:
        show(f"warning: {remark}", file=sys.stderr)
    with showing(domain.unit, domain.rate_hz(model.config.data), options.quiet, device) as (progress, reading):
        result = sample(model, options, device, progress, writer, reading, fitted=fitted)
    if settings is not None:
        result = result.model_copy(update={"settings": settings})
    if result.written is None or out is None:
        return result
    earlier = domain.measures(out)
    removed = [] if earlier is None else discard_report(earlier)
    if measured is None or result.stopped_by:
        return result.model_copy(update={"removed": removed} if removed else {})
    with counter("comparing", f"{domain.unit}s", options.quiet) as progress:
        report, corpus = measure(options.run, out, model.config, model.manifest, progress=progress)
    text = domain.show_measured(report)
    # Only what lasts can be listened to; pictures of the rest are the report's.
    if domain.rate_hz(model.config.data) is not None and (page := write_page(out, report, domain, corpus)) is not None:
        text += f"\n{page}"
    return result.model_copy(update={"report": report, "report_text": text})


def sample(
    model: Any,
    options: SampleOptions,
    device: str,
    progress: Callable[[int, int | None], None] | None = None,
    writer: SampleWriter | None = None,
    reading: Callable[[int, int], None] | None = None,
    *,
    fitted: Fitted | None = None,
) -> SampleResult:
    """Sample from a loaded model, without measuring the samples.

    Symbols stream into the folder `OUT.part`, from which an interrupted or killed sampling continues; `out` appears whole.
    An `out` that is complete stays with `resume`, and is refused if it was sampled with other options.

    Args:
        model: on `device`, of a run.
        options: `device` and `report` are ignored.
        device: "cpu" or "cuda".
        progress: called with (symbols done, symbols in all).
        writer: made for these options; None makes one.
        reading: called with (symbols read, symbols in all) while the prompts of a batch are read.
        fitted: the settings of the run, where the options draw so, which is noted beside the samples.

    Raises:
        InputError: a bad prompt or target, or a complete one made otherwise, before anything is sampled.
    """
    from mamba_bio_audio.files import locked, unfinished
    from mamba_bio_audio.inference.generate import prepared
    from mamba_bio_audio.inference.row_files import RowFiles
    from mamba_bio_audio.models.weights import weights_hash
    from mamba_bio_audio.pipelines.sample_writer import Sampled
    from mamba_bio_audio.run.environment import environment
    from mamba_bio_audio.run.sampling import drift, fitted_since
    from mamba_bio_audio.run.saved import describe_which
    from mamba_bio_audio.signals import StopSignal

    options = options.in_symbols(model.config)
    out, config, force = options.target, model.config, options.force
    draws = _draws(options)
    writer = writer or _writer(options, config, model.manifest)
    rows_asked, each = writer.num_samples or options.num_samples, options.best_of or 1
    if options.length is None and rows_asked > 1:
        raise InputError(f"--length inf makes one sample, but there are {rows_asked:,} prompts or classes; name one")
    if options.length is None and out is not None and writer.most is None:
        raise InputError("--length inf goes to standard output here; leave out --out")
    valid_nats = model.manifest.get("result", {}).get("valid_nats")
    usual = valid_nats if options.usual_bits is None else options.usual_bits * math.log(2)
    if each > 1 and usual is None:
        raise InputError(
            f"{options.run}: no validation bits are known of these weights, so --best-of cannot choose; give --usual-bits"
        )
    # What is drawn, of which the best are written.
    drawn = writer if each == 1 else _writer(options, config, model.manifest, each)
    result = SampleResult(out=out, num_samples=rows_asked, length=options.length, precision=options.precision)
    size: dict[str, Any] = {"length": options.length, "num_samples": rows_asked, "batch_size": options.batch_size}
    of_class = {"class_": list(drawn.classes)} if drawn.classes else {}
    rows_together = min(options.batch_size, rows_asked * each)
    initial = writer.start.get("initial")
    stepper = prepared(
        model, rows=rows_together, precision=options.precision, reading=reading, initial=initial, **draws
    )
    result = result.model_copy(update={"path": stepper.path})
    size |= {"precision": options.precision, "path": stepper.path}
    if out is None:
        return result.model_copy(update={"stopped_by": _stream(stepper, writer, draws | size | of_class, progress)})
    prompt = options.prompt if len(options.prompt) > 1 else next(iter(options.prompt), None)
    settings = draws | size | {"prompt": prompt, **writer.settings, "keep_prompt": options.keep_prompt}
    settings |= {"weights": weights_hash(model), "device": device}
    if each > 1:
        settings["best_of"] = each
    if options.usual_bits is not None:
        settings["usual_bits"] = options.usual_bits
    if model.classes:
        settings["class"] = list(dict.fromkeys(writer.classes)) or None
    rows = RowFiles(unfinished(out), settings, drawn)
    if options.resume and out.exists() and not rows.folder.exists():
        with fitted_since(fitted is not None):
            writer.check_complete(rows.settings)
        return result.model_copy(update={"already_complete": True})
    writer.check_target(replace=force or options.resume)
    rate = Rate()

    def count(done: int, total: int) -> None:
        rate.count(done)
        if progress is not None:
            progress(done, None if options.length is None else total)

    with locked(out), StopSignal() as stop:
        writer.check_target(replace=True)
        with fitted_since(fitted is not None):
            rows.begin(resume=options.resume, force=force)
        length = options.length or writer.most
        how = draws | size | of_class | {"length": length, "num_samples": rows_asked * each} | dict(drawn.start)
        nats = rows.sample(stepper, progress=count, stop=lambda: stop.number is not None, **how)
        stopped = None if stop.number is None else signal.Signals(stop.number).name
        if nats is None and options.length is None:
            # The end of a recording that has no other.
            _, length, nats = rows.position()
        elif nats is None:
            assert stopped is not None
            return result.model_copy(update={"stopped_by": stopped})
        else:
            stopped = None
        assert length is not None
        kept: Sequence[int] = range(rows_asked)
        if each > 1:
            from mamba_bio_audio.inference.best import least, stray

            # An earlier version, which may have begun these, kept the whole alone.
            along = [[row] for row in nats] if rows.along is None else rows.along.tolist()
            kept = least(stray(along, length, usual), each)
            settings |= {"kept": list(kept), "log_likelihoods": list(nats)}
            nats = tuple(nats[row] for row in kept)
        # Again: hours may have gone by.
        writer.check_target(replace=True)
        sampled = Sampled(
            rows=[rows.path(row) for row in kept],
            length=length,
            log_likelihood=nats,
            settings=settings | ({"fitted": True} if fitted else {}),
            which=describe_which(config, options.which),
            symbols_per_second=rate.per_second,
            environment=environment(device),
        )
        written = writer.finish(sampled, rows.folder)
        rows.remove()
    found: dict[str, Any] = {"written": written, "length": length}
    if valid_nats is not None:
        bits, valid = -sum(nats) / math.log(2) / length / rows_asked, valid_nats / math.log(2)
        along = [] if rows.along is None or options.length is None else rows.bits_along(length, kept)
        found["bits"] = {"samples": bits, "along": along, "valid": valid}
        # With guidance these are not the bits of what the model has learnt.
        usual_bits = None if fitted is None else fitted.usual_bits
        warning = None if options.guidance else drift(bits, along, valid, draws, options.run, usual_bits)
        if warning is not None and length * rows_asked >= _LEAST_FOR_DRIFT:
            found["drift"] = warning
    return result.model_copy(update=found | ({"stopped_by": stopped} if stopped else {}))


def _draws(options: SampleOptions) -> dict[str, Any]:
    """How symbols are drawn, as options of `generate_blocks`."""
    temperature = 1.0 if options.temperature is None else options.temperature
    draws = {"temperature": temperature} | {name: getattr(options, name) for name in ("top_k", "top_p", "seed")}
    # Samples that were begun before there were these go on.
    later = {"guidance": options.guidance or None, "min_p": options.min_p, "hold": options.hold or None}
    return draws | {name: value for name, value in later.items() if value is not None}


def _writer(options: SampleOptions, config: RunConfig, manifest: Mapping[str, Any], each: int = 1) -> SampleWriter:
    """The writer of the run's domain; with `each` of so many of each sample, into the folder that they are chosen from.

    Raises:
        InputError: a prompt or target that it cannot use.
    """
    from mamba_bio_audio.files import unfinished
    from mamba_bio_audio.pipelines.domains import domain_of
    from mamba_bio_audio.pipelines.sample_writer import SampleRequest

    options, classes = options.in_symbols(config), _classes(options, config)
    request = SampleRequest(
        run=options.run,
        out=options.target if each == 1 or options.target is None else unfinished(options.target),
        length=options.length,
        num_samples=options.num_samples * each * max(1, len(classes)),
        prompts=options.prompt,
        draws=_draws(options)
        | {"precision": options.precision, "best_of": options.best_of or 1, "usual_bits": options.usual_bits},
        config=config.data,
        data=manifest.get("data", {}),
        prompt_file=options.prompt_file,
        classes=tuple(name for name in classes for _ in range(options.num_samples * each)),
        keep_prompt=options.keep_prompt,
    )
    return domain_of(config.data.kind).writer(request)


def _classes(options: SampleOptions, config: RunConfig) -> tuple[str, ...]:
    """The classes that are asked for, each once.

    Raises:
        InputError: the model has no such class, or none at all.
    """
    if not options.class_:
        return ()
    known = config.model.class_names
    if not known:
        raise InputError(f"{options.run}: this model was trained without classes (model.classes); leave --class out")
    asked = known if "all" in options.class_ and "all" not in known else tuple(dict.fromkeys(options.class_))
    for name in asked:
        if name not in known:
            raise InputError(f"--class {name}: this model's classes are {', '.join(known)}; or give all")
    return asked


def _stream(
    stepper: Stepper,
    writer: SampleWriter,
    options: Mapping[str, Any],
    progress: Callable[[int, int | None], None] | None,
) -> str | None:
    """Sample to standard output; returns the name of the signal that stopped it."""
    from mamba_bio_audio.inference.generate import generate_blocks
    from mamba_bio_audio.signals import StopSignal

    length = options["length"]
    total = None if length is None else length * options["num_samples"]
    with StopSignal() as stop:
        for block in writer.stream(generate_blocks(stepper, **options, **writer.start), sys.stdout):
            rows, symbols = block.tokens.shape
            if progress is not None:
                progress(block.row * (length or 0) + rows * (block.position + symbols), total)
            if stop.number is not None:
                return signal.Signals(stop.number).name
    return None
