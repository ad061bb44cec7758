"""`mba predict`: classes, labels or numbers of the records of files, as a table."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.jobs.contract import Cli, Device, Force, Options, Result, Resume, Which

if TYPE_CHECKING:
    from mamba_bio_audio.inference.predict import Prediction
    from mamba_bio_audio.inference.prediction_table import PredictionTable
    from mamba_bio_audio.pipelines.contract import Item
    from mamba_bio_audio.pipelines.corpus import Ids

COMMAND = "predict"
PANEL = "Use"
Progress = Callable[[str, int, int | None], None]


class PredictOptions(Options):
    """Options of `mba predict`.

    Attributes:
        run: also the folder of a judge or recogniser of digits, which `mba evaluate --metrics sc09-judge` names.
    """

    run: Annotated[Path, Cli(argument=True, metavar="RUN")] = Field(
        description="Run of mba classify or mba finetune, or an export of one."
    )
    files: Annotated[tuple[str, ...], Cli(argument=True, metavar="FILE...")] = Field(
        description="FASTA or FASTQ, plain or gzip (- is standard input), or recordings."
    )
    out: Path | None = Field(
        None,
        description="TSV file; default, or -: standard output. For bases and tracks a name whose suffix says how: .bed "
        "(classes), .bw or .bedgraph (numbers), or .tsv.",
    )
    mode: Literal["windows", "stream"] = Field(
        "windows",
        description="Average windows of the training length (windows), or read each record once, carrying the state (stream).",
    )
    length: int | None = Field(None, ge=1, description="Length of the windows; default: the training length.")
    strand: Literal["both", "forward", "reverse"] | None = Field(
        None, description="Strands to read; default for DNA: the mean of both."
    )
    max_unknown: float | None = Field(
        None, ge=0, le=1, description="Skip windows with a larger share of N; default: as in training."
    )
    paired: bool = Field(
        False,
        description="FILEs are paired reads, two by two (R1, then R2); a row is a pair, the mean of its two reads.",
    )
    min_length: int = Field(1, ge=1, description="Do not score records, or reads of a pair, that are shorter.")
    threshold: Annotated[str | None, Cli(metavar="P|calibrated")] = Field(
        None,
        description="Predict `unknown` where the largest probability is below this; calibrated: by what mba evaluate --metrics "
        "unknown fitted.",
    )
    summary: Path | None = Field(None, description="TSV file of the shares of the classes in each file.")
    chunk: int = Field(1 << 16, ge=1, description="Symbols read at once; does not change results.")
    which: Which = "best"
    device: Device = "auto"
    resume: Resume = False
    force: Force = False

    @model_validator(mode="after")
    def _check(self) -> PredictOptions:
        if self.resume and self.force:
            raise ValueError("--resume continues a prediction and --force replaces it; give one of them")
        if self.threshold not in (None, "calibrated"):
            try:
                good = 0 < float(str(self.threshold)) <= 1
            except ValueError:
                good = False
            if not good:
                raise ValueError(f"--threshold {self.threshold}: give a probability between 0 and 1, or calibrated")
        return self

    def check_json(self) -> None:
        """Rows and summary cannot both go to standard output."""
        if self.out is None or str(self.out) == "-":
            raise InputError("--json prints the summary on standard output, where the rows go too; give --out FILE")


class PredictResult(Result):
    """Summary of a table of predictions; a judge of digits has no length, strand or weights to choose.

    Attributes:
        used: known symbols that some window read.
        scored: records with a prediction.
        predicted: records by class or label; empty for numbers.
        shares: of each file, records and symbols of each class or label, `unknown`, and of what was not scored.
        totals: of each file, records and symbols in all.
        written: files of predictions along records.
        not_scored: records without probabilities, by the reason.
        stopped_by: name of the signal that ended it early.
        already_complete: a table that was complete before; nothing was done.
        record: what a record of these data is called.
    """

    weights: str | None = None
    mode: str | None = None
    length: int | None = None
    strand: str | None = None
    max_unknown: float | None = None
    files: list[str] = Field(default_factory=list)
    run: str | None = None
    which: str | None = None
    trained_length: int | None = None
    records: int = 0
    used: int = 0
    unit: str | None = None
    scored: int = 0
    predicted: dict[str, int] = Field(default_factory=dict)
    shares: dict[str, dict[str, tuple[int, int]]] = Field(default_factory=dict)
    totals: dict[str, tuple[int, int]] = Field(default_factory=dict)
    threshold: float | None = None
    rule: str | None = None
    temperature: float | None = None
    paired: bool | None = None
    min_length: int | None = None
    summary_file: str | None = Field(None, exclude=True)
    not_scored: dict[str, int] = Field(default_factory=dict)
    stopped_by: str | None = None
    already_complete: str | None = None
    written: list[str] = Field(default_factory=list)
    record: str = Field("record", exclude=True)
    shown_on: Literal["standard output", "standard error", "nothing"] = Field("standard output", exclude=True)

    def text(self) -> str:
        """The summary, unless rows went to standard output."""
        return self.summary() if self.shown_on == "standard output" else ""

    def notes(self) -> str:
        """The summary, where rows went to standard output."""
        return self.summary() if self.shown_on == "standard error" else ""

    def summary(self) -> str:
        """Counts and what was left out."""
        if self.already_complete:
            return f"{self.already_complete}: already complete, whatever is asked for now; --force makes it again"
        counts = ", ".join(f"{label} {count:,}" for label, count in self.predicted.items() if count)
        counts = counts or (f"{self.scored:,} scored" if self.scored else "none scored")
        records = f"{self.records:,} {self.record}{'s' if self.records != 1 else ''}"
        lines = [f"{records}, {self.used:,} {self.unit}s used: {counts}"]
        if self.mode == "windows" and self.length != self.trained_length:
            lines.append(
                f"windows of {self.length:,} {self.unit}s; the model was trained at {self.trained_length:,} {self.unit}s"
            )
        if len(self.shares) > 1 and self.predicted:
            lines += [f"  {file}: {_shares_text(found, self.totals[file])}" for file, found in self.shares.items()]
        if self.rule is not None:
            what = "largest probability" if self.rule == "probability" else "energy"
            lines.append(f"unknown: {what} below {self.threshold:.4g} at temperature {self.temperature:.3g}")
        if self.summary_file is not None:
            lines.append(f"shares of the classes: {self.summary_file}")
        if self.written:
            lines.append(f"written: {', '.join(self.written)}")
        if missing := sum(self.not_scored.values()):
            reasons = "; ".join(f"{count:,} x {reason}" for reason, count in list(self.not_scored.items())[:5])
            lines.append(f"{missing:,} not scored: {reasons}")
        return "\n".join(lines)

    @property
    def exit_code(self) -> int:
        """130 after a signal."""
        return 130 if self.stopped_by else 0


def _shares_text(found: dict[str, tuple[int, int]], total: tuple[int, int]) -> str:
    """Shares of the records of a file, largest first; with several labels of a record they add up to more than 1."""
    rows = sorted(found.items(), key=lambda row: -row[1][0])
    return ", ".join(f"{name} {records / total[0]:.1%}" for name, (records, _) in rows)


def _write_shares(path: Path, table: PredictionTable, unit: str) -> None:
    """A row for each file and class."""
    from mamba_bio_audio.files import write_text

    lines = [f"file\tpredicted\trecords\tshare\t{unit}s\tshare_of_{unit}s"]
    for file, found in table.shares.items():
        totals = table.totals[file]
        for name, (records, size) in sorted(found.items(), key=lambda row: -row[1][0]):
            ratios = (records / totals[0], size / max(1, totals[1]))
            lines.append(f"{file}\t{name}\t{records}\t{ratios[0]:.6g}\t{size}\t{ratios[1]:.6g}")
    write_text(path, "\n".join(lines) + "\n")


def run(options: PredictOptions) -> PredictResult:
    """Write classes, labels or numbers of every record, in input order; one without gets a row with the reason."""
    from mamba_bio_audio.files import begins_with, check_file, unfinished
    from mamba_bio_audio.inference.position_files import ours_or_along
    from mamba_bio_audio.jobs.common import check_inputs, counters, resolve_device, standard_output

    out = standard_output(options.out)
    if out is not None and options.resume and out.exists() and not unfinished(out).exists():
        check_file(out, "predict", ours_or_along, force=True)
        if options.summary is not None:
            raise InputError(
                f"{out}: already complete, and --summary is counted as rows are written; use --force for both"
            )
        return PredictResult(already_complete=str(out))
    check_inputs(options.files)
    if out is not None:
        inputs: list[Path | str] = [options.run, *options.files]
        check_file(out, "predict", ours_or_along, inputs, force=options.force or options.resume)
        if options.summary is not None and options.summary.resolve() == out.resolve():
            raise InputError(f"--summary {options.summary}: is also --out; give it a name of its own")
    elif options.resume:
        raise InputError("--resume needs --out: what went to standard output cannot be continued")
    if options.summary is not None:
        check_file(
            options.summary, "predict", begins_with("file\tpredicted\t"), options.files, force=True, option="--summary"
        )
    device = resolve_device(options.device)
    with counters(options.quiet) as progress:
        ask = _ask_judge if (options.run / "judge.json").exists() else _ask_classifier
        found = ask(options, out, device, progress)
    shown_on = "nothing" if options.quiet else "standard error" if out is None else "standard output"
    return PredictResult(**found, shown_on=shown_on)


def _ask_classifier(options: PredictOptions, out: Path | None, device: str, progress: Progress) -> dict[str, Any]:
    """Write the rows; returns what the result says."""
    from mamba_bio_audio.files import locked
    from mamba_bio_audio.inference.predict import Reading, joined, predict_records
    from mamba_bio_audio.inference.prediction_table import PredictionTable
    from mamba_bio_audio.inference.streaming import Passes
    from mamba_bio_audio.models.weights import weights_hash
    from mamba_bio_audio.pipelines.domains import domain_of
    from mamba_bio_audio.run import saved
    from mamba_bio_audio.signals import StopSignal
    from mamba_bio_audio.training.config import resolve_precision

    model = saved.load_classifier(options.run, options.which)
    if not model.task.rows:
        from mamba_bio_audio.jobs.predict_along import write_along

        return write_along(options, model, out, device, progress)
    if options.summary is not None and model.outputs.name == "numbers":
        raise InputError("--summary gives shares of classes or labels, and this model predicts numbers; leave it out")
    config = model.config
    domain = domain_of(config.data.kind)
    symbols = domain.symbols(config.data, config.train.length)
    strand = options.strand or symbols.strands[0]
    if strand not in symbols.strands:
        raise InputError(f"--strand {strand}: {domain.name} has no strands; leave it out")
    reading = Reading(
        length=options.length or config.train.length,
        mode=options.mode,
        strand=strand,
        max_unknown=symbols.max_unknown if options.max_unknown is None else options.max_unknown,
        batch_symbols=1 << (14 if device == "cpu" else 18),
    )
    weights = weights_hash(model)
    rule = _rule(options, model, weights, strand)
    if rule is not None:
        reading = replace(reading, temperature=rule["temperature"])
    settings: dict[str, Any] = {
        "weights": weights,
        "mode": reading.mode,
        "length": reading.length,
        "strand": strand,
        "max_unknown": reading.max_unknown,
        "files": list(options.files),
    }
    # Only where they are given, so that what an earlier version began can be continued.
    settings |= rule or {}
    settings |= {"paired": True} if options.paired else {}
    settings |= {"min_length": options.min_length} if options.min_length > 1 else {}
    if options.paired:
        together: Iterator[tuple[Item, ...]] = domain.pairs(options.files, config.data)
    else:
        together = ((item,) for item in domain.records(options.files, config.data))
    model.to(device)
    items: deque[Item] = deque()
    read = 0

    def count(symbols_read: int) -> None:
        nonlocal read
        read += symbols_read
        progress(f"{symbols.unit}s read", read, None)

    with (
        locked(out) if out else nullcontext(),
        StopSignal() as stop,
        PredictionTable(
            out, symbols.unit, model.outputs, model.labels, settings, resume=options.resume, force=options.force
        ) as table,
    ):

        def ids() -> Iterator[Ids | str]:
            # Kept until its prediction comes, which is in the same order.
            mates: tuple[Item, ...] = ()

            def heads() -> Iterator[Item]:
                nonlocal mates
                for mates in together:
                    yield _head(mates)

            for item in table.unfinished(heads()):
                items.append(item)
                for mate in mates:
                    short = not isinstance(mate.symbols, str) and 0 < mate.length < options.min_length
                    yield f"shorter than --min-length {options.min_length:,}" if short else mate.symbols

        passes = Passes(
            device=device,
            narrow=resolve_precision(config.train.precision, device) == "bf16",
            chunk=options.chunk,
            stop=lambda: stop.number is not None,
            progress=count,
        )
        waiting: list[Prediction] = []
        for prediction in predict_records(model, ids(), symbols, reading, passes):
            waiting.append(prediction)
            if len(waiting) < 1 + options.paired:
                continue
            item = items.popleft()
            prediction = joined(waiting) if options.paired else prediction
            waiting = []
            table.add(item, prediction, _is_unknown(prediction, rule))
            progress(f"{domain.record}s", table.rows, None)
            if not items:
                table.flush()
        table.complete = stop.number is None
    if options.summary is not None:
        _write_shares(options.summary, table, symbols.unit)
    more = {
        "run": str(options.run),
        "summary_file": options.summary and str(options.summary),
        "which": options.which,
        "trained_length": config.train.length,
    }
    return settings | more | _counts(table, symbols.unit, stop.number) | {"record": domain.record}


def _rule(options: PredictOptions, model: Any, weights: str, strand: str) -> dict[str, Any] | None:
    """Temperature, rule and threshold of `--threshold`; None without it.

    Raises:
        InputError: the model has no use for it, or a calibrated one was fitted to sequence that is read in another way.
    """
    from mamba_bio_audio.inference.prediction_table import UNKNOWN
    from mamba_bio_audio.run.unknown import read_calibrated

    if options.threshold is None:
        return None
    if model.outputs.name != "classes":
        raise InputError("--threshold is for classifiers of classes, which are unknown where none fits; leave it out")
    if UNKNOWN in model.labels:
        raise InputError(f"--threshold: one of the classes is called {UNKNOWN!r}; leave it out")
    if options.threshold == "calibrated":
        fitted = read_calibrated(options.run, weights)
        other = {
            "--mode stream": options.mode == "stream",
            f"--length {options.length}": options.length not in (None, fitted.length),
            f"--strand {strand}": fitted.strand not in (None, strand),
        }
        if (wrong := next((name for name, there in other.items() if there), None)) is not None:
            how = "" if fitted.strand is None else f", strand {fitted.strand}"
            raise InputError(
                f"{wrong}: the calibrated threshold was fitted to windows of {fitted.length:,}{how}, and means nothing for "
                "other readings; predict in the same way, or give --threshold a probability"
            )
        return fitted.model_dump(include={"temperature", "rule", "threshold"})
    return {"temperature": 1.0, "rule": "probability", "threshold": float(options.threshold)}


def _is_unknown(prediction: Prediction, rule: dict[str, Any] | None) -> bool:
    p = prediction.probabilities
    if rule is None or p is None:
        return False
    found = prediction.energy if rule["rule"] == "energy" else p.max()
    assert found is not None
    return bool(found < rule["threshold"])


def _head(mates: tuple[Item, ...]) -> Item:
    """What the row of one record, or of a pair, is called."""
    if len(mates) == 1:
        return mates[0]._replace(symbols="")
    return mates[0]._replace(length=sum(mate.length for mate in mates), symbols="")


def _ask_judge(options: PredictOptions, out: Path | None, device: str, progress: Progress) -> dict[str, Any]:
    """The same by the judge or recogniser of generated digits, which hears the first second of each recording."""
    from mamba_bio_audio.evaluation.digits import open_judge
    from mamba_bio_audio.evaluation.judge import judge_clips
    from mamba_bio_audio.files import locked
    from mamba_bio_audio.inference.predict import Prediction
    from mamba_bio_audio.inference.prediction_table import PredictionTable
    from mamba_bio_audio.models.tasks import OUTPUTS
    from mamba_bio_audio.models.weights import weights_hash
    from mamba_bio_audio.pipelines.audio.digits import CLIP_SAMPLES, RATE_HZ, one_second
    from mamba_bio_audio.pipelines.audio.records import clips
    from mamba_bio_audio.pipelines.audio.speech_commands import DIGITS
    from mamba_bio_audio.signals import StopSignal

    chosen = (options.which, options.mode, options.length, options.strand, options.max_unknown)
    more = (options.paired, options.min_length, options.threshold, options.summary)
    if chosen != ("best", "windows", None, None, None) or more != (False, 1, None, None):
        raise InputError(
            f"{options.run}: a judge of digits hears the first second of each file; leave out --which, --mode, --length, "
            "--strand, --max-unknown, --paired, --min-length, --threshold and --summary"
        )
    judge, _ = open_judge(options.run, device)
    # A recogniser's last class is none of them.
    labels = [*DIGITS, "none"][: judge.head.out_features]
    settings = {"weights": weights_hash(judge), "mode": "judge", "files": list(options.files)}
    with (
        locked(out) if out else nullcontext(),
        StopSignal() as stop,
        PredictionTable(
            out, "sample", OUTPUTS["classes"], labels, settings, resume=options.resume, force=options.force
        ) as table,
    ):
        for item in table.unfinished(clips(options.files, RATE_HZ, CLIP_SAMPLES)):
            if isinstance(item.symbols, str):
                found = Prediction(None, item.length, 0, 0, item.symbols)
            else:
                p = judge_clips(judge, one_second(item.symbols)[None]).probabilities[0]
                found = Prediction(p, item.length, len(item.symbols), 1, "")
            table.add(item, found)
            table.flush()
            progress("recordings", table.rows, None)
            if stop.number is not None:
                break
        table.complete = stop.number is None
    return settings | {"run": str(options.run)} | _counts(table, "sample", stop.number) | {"record": "recording"}


def _counts(table: PredictionTable, unit: str, stopped: int | None) -> dict[str, Any]:
    return {
        "records": table.rows,
        "used": table.used,
        "unit": unit,
        "scored": table.scored,
        "predicted": {
            label: table.predicted[label]
            for label in [*table.labels, *(name for name in table.predicted if name not in table.labels)]
            if "predicted" in table.columns
        },
        "shares": table.shares,
        "totals": table.totals,
        "not_scored": dict(table.reasons),
        "stopped_by": None if stopped is None else signal.Signals(stopped).name,
    }
