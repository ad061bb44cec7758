"""`mba score`: log-likelihood tracks of sequences of any length, and totals of their records or regions."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.jobs.contract import Cli, Device, Force, Options, Result, Resume, Which

COMMAND = "score"
PANEL = "Use"


class ScoreOptions(Options):
    """Options of `mba score`."""

    run: Annotated[Path, Cli(argument=True, metavar="RUN")] = Field(
        description="Run of mba pretrain, an export of one, or a packaged model."
    )
    files: Annotated[tuple[str, ...], Cli(argument=True, metavar="FILE...")] = Field(
        description="FASTA (plain or BGZF) or 2bit files, or recordings."
    )
    out: Path | None = Field(
        None,
        description="Track to write: .bw (bigWig), .bedgraph or .tsv; totals of records or regions go to "
        "OUT.totals.tsv. Without it, or as -, only the totals, to standard output.",
    )
    strand: Literal["forward", "reverse", "both"] = Field(
        "forward", description="Strand that is read; both takes the mean of the two at each base."
    )
    regions: str | None = Field(None, description="BED file: score only these regions, each base once.")
    context: int | None = Field(
        None,
        ge=1,
        description="With --regions: read only so many bases before each; default: the record from its start.",
    )
    bin: int = Field(1, ge=1, description="Bases (samples of audio) per entry of the track, which is their mean.")
    class_: Annotated[str | None, Cli(flag="--class", metavar="NAME")] = Field(
        None, description="Audio models trained on classes: score as sequences of this class; default: of none."
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Precision of the model; bf16 is faster on a GPU and less exact."
    )
    chunk: int | None = Field(
        None, ge=1, description="Symbols read at once, which sets the memory used; default: by the device."
    )
    which: Which = "best"
    device: Device = "auto"
    resume: Resume = False
    force: Force = False

    @model_validator(mode="after")
    def _check(self) -> ScoreOptions:
        if self.resume and self.force:
            raise ValueError("--resume continues a track and --force replaces it; give one of them")
        if self.context is not None and self.regions is None:
            raise ValueError("--context is read before the regions of --regions; give both, or neither")
        if (self.out is None or str(self.out) == "-") and (self.resume or self.force or self.bin != 1):
            raise ValueError("--resume, --force and --bin are for a track; give --out FILE")
        return self


class ScoreResult(Result):
    """Summary of a track.

    Attributes:
        symbols: symbols of the records or regions, each counted once.
        scored: those that have a value.
        log_likelihood_nats: sum over the scored symbols.
        symbols_per_second: symbols read by the model per second in this call; None where too little was read.
        stopped_by: name of the signal that ended it early.
        already_complete: a track that was complete before; nothing was done.
        stranded: whether these data have strands to speak of.
        record: what a record of these data is called.
        table: the totals, where they go to standard output.
    """

    out: str | None = None
    totals: str | None = None
    run: str | None = None
    which: str | None = None
    weights: str | None = None
    files: list[str] = Field(default_factory=list)
    regions: str | None = None
    context: int | None = None
    strand: str | None = None
    precision: str | None = None
    of_class: str | None = None
    unit: str | None = None
    records: int = 0
    symbols: int = 0
    scored: int = 0
    log_likelihood_nats: float | None = None
    nats_per_symbol: float | None = None
    bits_per_symbol: float | None = None
    perplexity: float | None = None
    symbols_per_second: float | None = None
    stopped_by: str | None = None
    already_complete: str | None = None
    stranded: bool = Field(True, exclude=True)
    record: str = Field("record", exclude=True)
    table: str = Field("", exclude=True)

    def text(self) -> str:
        """The totals of records or regions, or what was scored and how well it was predicted."""
        if self.already_complete:
            return f"{self.already_complete}: already complete, whatever is asked for now; --force makes it again"
        return self.table or ("" if self.stopped_by else self.summary())

    def summary(self) -> str:
        """What was scored, and how well it was predicted."""
        unit = self.unit
        what = f"{self.records:,} {self.record}{'s' * (self.records != 1)}"
        how = ", mean of both strands" if self.strand == "both" else f" on the {self.strand} strand"
        lines = [f"{self.scored:,} of {self.symbols:,} {unit}s of {what} scored{how if self.stranded else ''}"]
        if self.nats_per_symbol is not None:
            lines.append(
                f"{self.nats_per_symbol:.5f} nats, {self.bits_per_symbol:.5f} bits per {unit}, "
                f"perplexity {self.perplexity:.4f}"
            )
        if self.symbols_per_second is not None:
            lines.append(f"{self.symbols_per_second:,.0f} {unit}s/s")
        if self.out is not None:
            lines.append(f"wrote {self.out} and {self.totals}")
        return "\n".join(lines)

    def notes(self) -> str:
        """How to continue after a signal; the summary, where the totals went to standard output."""
        if not self.stopped_by:
            return self.summary() if self.table else ""
        if self.out is None:
            return f"stopped by {self.stopped_by}; with --out FILE a track can be continued"
        return f"{self.out}: unfinished; use --resume to continue"

    @property
    def exit_code(self) -> int:
        """130 after a signal."""
        return 130 if self.stopped_by else 0


def run(options: ScoreOptions) -> ScoreResult:
    """Score every known symbol given all symbols before it, in constant memory."""
    from mamba_bio_audio.files import check_file, unfinished
    from mamba_bio_audio.inference.track_files import track_format
    from mamba_bio_audio.jobs.common import counters, resolve_device, standard_output

    out = standard_output(options.out)
    if out is not None:
        track_format(out)
    for file in options.files:
        if file == "-":
            raise InputError("-: mba score reads files, at random positions; save standard input to one")
        if not os.path.exists(os.path.expanduser(file)):
            raise InputError(f"{file}: there is no such file")
    if out is None:
        with tempfile.TemporaryDirectory(prefix="mba-score-") as folder, counters(options.quiet) as progress:
            return _score(options, Path(folder) / "totals", resolve_device(options.device), progress)
    inputs: list[Path | str] = [options.run, *options.files, *([] if options.regions is None else [options.regions])]
    complete = options.resume and out.exists() and not unfinished(out).exists()
    for target in (out, totals_path(out)):
        check_file(target, "score", lambda _: ours(out), inputs, force=options.force or options.resume)
    if complete:
        return ScoreResult(already_complete=str(out))
    device = resolve_device(options.device)
    with counters(options.quiet) as progress:
        return _score(options, out, device, progress)


def totals_path(out: Path) -> Path:
    """The table of totals beside a track."""
    return out.with_name(f"{out.name}.totals.tsv")


def ours(out: Path) -> bool:
    """Whether a track was made by this command: a table of its totals stands beside it."""
    from mamba_bio_audio.files import begins_with
    from mamba_bio_audio.inference.track_files import TOTALS_COLUMNS

    table = totals_path(out)
    return table.is_file() and table.stat().st_size > 0 and begins_with("\t".join(TOTALS_COLUMNS))(table)


def _score(options: ScoreOptions, out: Path, device: str, progress: Any) -> ScoreResult:
    from mamba_bio_audio.files import (
        begin_unfinished,
        check_file,
        discard_unfinished,
        locked,
        name_full_disk,
        unfinished,
    )
    from mamba_bio_audio.inference.streaming import Passes, Stopped, positions
    from mamba_bio_audio.inference.track_files import MAKER, track_format, write_totals, write_track
    from mamba_bio_audio.inference.tracks import finished, plan, score
    from mamba_bio_audio.models.weights import weights_hash
    from mamba_bio_audio.pipelines.bed import read_regions
    from mamba_bio_audio.pipelines.domains import domain_of
    from mamba_bio_audio.run import saved
    from mamba_bio_audio.run.config import RunConfig
    from mamba_bio_audio.signals import StopSignal

    model: Any = saved.load_language_model(options.run, options.which)
    config = model.config
    if not isinstance(config, RunConfig):
        raise InputError(
            f"{options.run}: weights without a run configuration; mba score needs a run or an export of one, or use "
            "mba.log_likelihood with token ids"
        )
    domain = domain_of(config.data.kind)
    symbols = domain.symbols(config.data, config.train.length)
    if options.strand not in symbols.strands:
        raise InputError(f"--strand {options.strand}: {domain.name} has no strands; leave it out")
    stored = domain.stored(options.files, config.data, progress)
    regions = None if options.regions is None else read_regions(options.regions, stored, symbols.unit)
    planned = plan(
        stored.records,
        None if regions is None else [region.span for region in regions],
        strand=options.strand,
        context=options.context,
    )
    longest = max(planned.units, key=lambda unit: unit.length, default=None)
    if model.streaming != "constant" and longest is not None and longest.length > config.train.length:
        raise InputError(
            f"{options.run}: its layers carry no state of constant size, so it scores up to its training length, "
            f"{config.train.length:,} {symbols.unit}s, not the {longest.length:,} of {longest.record}; give shorter records, "
            "or --regions with --context"
        )
    found: dict[str, Any] = {}
    settings: dict[str, Any] = {
        "weights": weights_hash(model),
        "files": [dict(file) for file in stored.contents()],
        "regions": None if regions is None else _hash([[*region.span] for region in regions]),
        "context": options.context,
        "strand": options.strand,
        "precision": options.precision,
    }
    if options.class_ is not None:
        try:
            model = model.of_class(options.class_)
        except InputError as error:
            raise InputError(f"{options.run}: {error}") from None
        settings["class"] = found["of_class"] = options.class_
    model.to(device)
    folder, since = unfinished(out), time.perf_counter()
    track = folder / f"track{track_format(out).suffix}" if out.suffix else None
    earlier = read = 0

    def count(symbols_read: int) -> None:
        nonlocal read
        read += symbols_read
        progress(f"{symbols.unit}s read", earlier + read, planned.symbols)

    with locked(out), StopSignal() as stop:
        begin_unfinished(folder, MAKER, settings, resume=options.resume, force=options.force)
        done = finished(folder)
        earlier = sum(unit.length for unit in planned.units if unit.number in done)
        passes = Passes(
            device=device,
            narrow=options.precision == "bf16",
            chunk=options.chunk or positions(device),
            stop=lambda: stop.number is not None,
            progress=count,
        )
        with suppress(Stopped), name_full_disk(folder):
            score(model, stored, planned, symbols, model.codec.sample_ids, folder, passes)
            seconds = time.perf_counter() - since
            written = write_track(
                track,
                folder,
                planned,
                options.bin,
                symbols.unit,
                passes.stop,
                lambda n: progress("values written", n, None),
            )
            table = folder / "totals.tsv"
            write_totals(table, folder, planned, regions, symbols.unit)
            if track is None:
                found["table"] = table.read_text(encoding="utf-8").rstrip("\n")
            else:
                # Again: hours may have gone by.
                for target in (out, totals_path(out)):
                    check_file(target, "score", lambda _: ours(out), force=True)
                # First the totals, by which the track is known as ours if this is killed in between.
                os.replace(table, totals_path(out))
                os.replace(track, out)
                discard_unfinished(folder)
            found |= {
                "symbols_per_second": read / seconds if read >= positions(device) else None,
                "records": len({area.record for area in planned.areas}),
                "symbols": sum(area.end - area.start for area in planned.areas),
            } | written
    return ScoreResult(
        **found,
        out=None if track is None else str(out),
        totals=None if track is None else str(totals_path(out)),
        run=str(options.run),
        which=options.which,
        weights=settings["weights"],
        files=list(options.files),
        regions=options.regions,
        context=options.context,
        strand=options.strand,
        precision=options.precision,
        unit=symbols.unit,
        record=domain.record,
        stranded=len(symbols.strands) > 1,
        stopped_by=None if "records" in found or stop.number is None else signal.Signals(stop.number).name,
    )


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
