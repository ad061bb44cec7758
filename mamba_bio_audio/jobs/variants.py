"""`mba variants`: variant calls with the model's log-likelihood ratios of every allele."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.jobs.contract import Cli, Device, Force, Options, Result, Resume, RunFolder, Which

if TYPE_CHECKING:
    from mamba_bio_audio.inference.variant_table import VariantTable
    from mamba_bio_audio.pipelines.dna.vcf import Calls

COMMAND = "variants"
PANEL = "Use"
Progress = Callable[[str, int, int | None], None]
# What --force recognises its own files by.
MARK = "##mamba_bio_audio_variants="
USE = "research use only: not validated for diagnosis or treatment"


class VariantsOptions(Options):
    """Options of `mba variants`."""

    run: RunFolder
    calls: Annotated[str | None, Cli(argument=True, metavar="VCF")] = Field(
        None, description="Variant calls: VCF, plain, bgzip or gzip (- is standard input), or BCF."
    )
    genome: Path = Field(description="The genome that the calls belong to: FASTA (plain or BGZF) or 2bit.")
    out: Path | None = Field(
        None,
        description="The calls with INFO fields MBA_*: .vcf, .vcf.gz (BGZF) or .bcf; default, or -: standard output.",
    )
    context: str | None = Field(
        None,
        description="Bases read before a variant: C to 1.125 C, or all from the record's start; default: the training length.",
    )
    window: int = Field(64, ge=1, description="Bases over which the alleles are compared, from the first that differs.")
    strand: Literal["both", "forward", "reverse"] = Field(
        "both", description="Strands to read; both gives their mean too."
    )
    batch: int | None = Field(None, ge=1, description="Windows read at once; does not change results.")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Precision of the model. Of bf16, which is faster on a GPU, it is printed what it changes."
    )
    region: str | None = Field(None, description="Read only these calls, record:start-end, through the file's index.")
    saturation: str | None = Field(
        None, description="Instead of calls, score all SNVs of record:start-end and draw a heat map (OUT as .png)."
    )
    which: Which = "best"
    device: Device = "auto"
    resume: Resume = False
    force: Force = False

    @model_validator(mode="after")
    def _check(self) -> VariantsOptions:
        if self.resume and self.force:
            raise ValueError("--resume continues and --force replaces; give one of them")
        if (self.calls is None) == (self.saturation is None):
            raise ValueError("give a VCF file, or --saturation record:start-end")
        if self.saturation is not None and (self.region is not None or self.out is None or str(self.out) == "-"):
            raise ValueError("--saturation needs --out FILE, and no --region")
        if self.context not in (None, "all") and not (self.context.isascii() and self.context.isdigit()):  # type: ignore[union-attr]
            raise ValueError(f"--context {self.context}: give a number of bases, or all")
        return self

    def check_json(self) -> None:
        """Records and summary cannot both go to standard output."""
        if self.out is None or str(self.out) == "-":
            raise InputError("--json prints the summary on standard output, where the calls go too; give --out FILE")


class VariantsResult(Result):
    """Summary of scored calls.

    Attributes:
        context: bases asked for, "all", or None where nothing was done.
        alleles, scored: of all records, and those with a ratio on every strand.
        not_scored: alleles without, by the reason.
        malformed: lines that are no records; they are in the output as they were.
        messages: the first case of each reason, and of malformed lines.
        median_ratio: median of the absolute ratio, nats; None if nothing was scored.
        bf16_change: median of what bf16 changes, nats, on `bf16_alleles` alleles, whose median is `bf16_ratio` in fp32.
        streamed, windowed: bases read as context, and in windows.
    """

    calls: str | None = None
    genome: str | None = None
    run: str | None = None
    which: str | None = None
    weights: str | None = None
    context: int | str | None = None
    window: int | None = None
    strand: str | None = None
    precision: str | None = None
    records: int = 0
    alleles: int = 0
    scored: int = 0
    not_scored: dict[str, int] = Field(default_factory=dict)
    malformed: int = 0
    messages: list[str] = Field(default_factory=list)
    median_ratio: float | None = None
    bf16_change: float | None = None
    bf16_ratio: float | None = None
    bf16_alleles: int = 0
    streamed: int = 0
    windowed: int = 0
    out: str | None = None
    picture: str | None = None
    stopped_by: str | None = None
    already_complete: str | None = None
    shown_on: Literal["standard output", "standard error", "nothing"] = Field("standard output", exclude=True)

    def text(self) -> str:
        """The summary, unless the calls went to standard output."""
        return self.summary() if self.shown_on == "standard output" else ""

    def notes(self) -> str:
        """The summary, where the calls went to standard output, and what could not be scored."""
        stopped = f"stopped by {self.stopped_by}; use --resume to continue" if self.stopped_by and self.out else ""
        lines = [stopped, *self.messages, self.summary() if self.shown_on == "standard error" else ""]
        return "" if self.shown_on == "nothing" and not self.malformed else "\n".join(line for line in lines if line)

    def summary(self) -> str:
        """Counts, costs and what was left out."""
        if self.already_complete:
            return f"{self.already_complete}: already complete, whatever is asked for now; --force makes it again"
        ratio = "" if self.median_ratio is None else f", median |ratio| {self.median_ratio:.3g} nats"
        records, alleles = _count(self.records, "record"), _count(self.alleles, "allele")
        lines = [f"{records}, {alleles}, {self.scored:,} scored{ratio}"]
        lines.append(f"{self.streamed:,} bases read as context, {self.windowed:,} in windows")
        if self.bf16_change is not None:
            lines.append(
                f"bf16 changes the ratio by {self.bf16_change:.2g} nats (median over {_count(self.bf16_alleles, 'allele')}, "
                f"whose median |ratio| is {self.bf16_ratio:.2g})"
            )
        if self.not_scored:
            reasons = "; ".join(f"{count:,} x {reason}" for reason, count in self.not_scored.items())
            lines.append(f"{_count(sum(self.not_scored.values()), 'allele')} not scored: {reasons}")
        if self.malformed:
            kept = "lines are no records and were" if self.malformed != 1 else "line is no record and was"
            lines.append(f"{self.malformed:,} {kept} kept as {'they are' if self.malformed != 1 else 'it is'}")
        lines.append(USE)
        return "\n".join(lines)

    @property
    def exit_code(self) -> int:
        """130 after a signal, 1 where lines of the file were no records."""
        return 130 if self.stopped_by else 1 if self.malformed else 0


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def run(options: VariantsOptions) -> VariantsResult:
    """Score variant calls by a DNA model: log p(ALT) - log p(REF), given up to whole chromosomes of context on both strands.

    Every record comes back in its place. Alleles that cannot be scored, such as symbolic ones, say why in MBA_WHY.
    """
    from mamba_bio_audio.files import check_file, unfinished
    from mamba_bio_audio.jobs.common import counters, resolve_device, standard_output
    from mamba_bio_audio.pipelines.dna import vcf

    out = standard_output(options.out)
    if out is None and options.resume:
        raise InputError("--resume needs --out: what went to standard output cannot be continued")
    picture = None
    if out is not None:
        vcf.suffix(out)
        if options.resume and out.exists() and not unfinished(out).exists():
            check_file(out, COMMAND, _ours, force=True)
            return VariantsResult(already_complete=str(out))
        inputs: list[Path | str] = [options.run, options.genome, *([options.calls] if options.calls else [])]
        check_file(out, COMMAND, _ours, inputs, force=options.force or options.resume)
        if options.saturation is not None:
            picture = out.with_name(out.name[: -len(vcf.suffix(out))] + ".png")
            check_file(picture, COMMAND, _our_picture, inputs, force=options.force or options.resume)
    device = resolve_device(options.device)
    with counters(options.quiet) as progress:
        found = _score(options, out, picture, device, progress)
    shown_on = "nothing" if options.quiet else "standard error" if out is None else "standard output"
    return VariantsResult(**found, shown_on=shown_on)


def _ours(path: Path) -> bool:
    from mamba_bio_audio.pipelines.dna import vcf

    return vcf.begins_with(path, MARK)


def _our_picture(path: Path) -> bool:
    return MARK.encode() in path.read_bytes()


def _score(
    options: VariantsOptions, out: Path | None, picture: Path | None, device: str, progress: Progress
) -> dict[str, Any]:
    """Score and write; returns what the result says."""
    from mamba_bio_audio.files import Maker, begin_unfinished, check_file, discard_unfinished, locked, unfinished
    from mamba_bio_audio.inference.streaming import Stopped, passes_of
    from mamba_bio_audio.inference.variant_table import VariantTable, bf16_change
    from mamba_bio_audio.inference.variants import STRANDS, scoring_of
    from mamba_bio_audio.models.weights import weights_hash
    from mamba_bio_audio.pipelines.dna import vcf
    from mamba_bio_audio.pipelines.domains import domain_of
    from mamba_bio_audio.run import saved
    from mamba_bio_audio.signals import StopSignal

    model = saved.load_language_model(options.run, options.which)
    if model.codec is None:
        raise InputError(
            f"{options.run}: weights without a codec, so it is not known what their symbols mean; give a run"
        )
    genome = domain_of(model.config.data.kind).genome(options.genome, progress)
    asked: Any = options.context if options.context in (None, "all") else int(options.context)  # type: ignore[arg-type]
    scoring = scoring_of(model, options.window, asked, options.batch, device)
    settings: dict[str, Any] = {
        "weights": weights_hash(model),
        "genome": [file.sha256 for file in genome.fingerprint()],
        "calls": options.calls,
        "calls_state": vcf.size_and_time(options.calls or ""),
        "region": options.region,
        "saturation": options.saturation,
        "context": "all" if scoring.context is None else scoring.context,
        "window": scoring.window,
        "strand": options.strand,
        "precision": options.precision,
    }
    model.to(device)
    read = 0

    def count(symbols: int) -> None:
        nonlocal read
        read += symbols
        progress("bases read", read, None)

    maker = Maker(COMMAND, ("settings.json", "calls.*", "scored.*", "scores-*.npz", "saturation.vcf"))

    @contextmanager
    def folder() -> Iterator[Path]:
        if out is None:
            with tempfile.TemporaryDirectory() as name:
                yield Path(name)
            return
        part = unfinished(out)
        begin_unfinished(part, maker, settings, resume=options.resume, force=options.force)
        try:
            yield part
        except BaseException:
            # Refused input leaves nothing to continue.
            if part.exists() and not any(part.glob("scores-*.npz")):
                discard_unfinished(part)
            raise

    with locked(out) if out else nullcontext(), StopSignal() as stop, folder() as work:
        calls = _read(options, genome, work)
        if out is not None and vcf.suffix(out) == ".bcf":
            vcf.check_bcf(calls, work)
        passes = replace(passes_of(model, options.precision), stop=lambda: stop.number is not None, progress=count)
        table = VariantTable(calls, genome, STRANDS[options.strand], work)
        said = _about(options, settings)
        try:
            table.fill(model, scoring, passes)
            if options.precision == "bf16":
                said |= bf16_change(model, table, scoring, passes)
        except Stopped:
            assert stop.number is not None
            return said | {"stopped_by": signal.Signals(stop.number).name, "out": None if out is None else str(out)}
        said |= table.summary()
        header = [*table.header(), *_header(options, settings, model)]
        lines = table.lines(header)
        if out is None:
            vcf.standard_output(lines, sys.stdout)
            return said
        # Again: hours may have gone by.
        check_file(out, COMMAND, _ours, force=True)
        vcf.write(out, lines, work)
        if picture is not None:
            _draw(table, options, picture)
            said["picture"] = str(picture)
        discard_unfinished(work)
    return said | {"out": str(out)}


def _read(options: VariantsOptions, genome: Any, work: Path) -> Calls:
    """The calls, or all SNVs of a region written as such."""
    from mamba_bio_audio.pipelines.dna import vcf
    from mamba_bio_audio.pipelines.dna.intervals import region
    from mamba_bio_audio.pipelines.dna.variants import saturation

    source = options.calls
    if options.saturation is not None:
        span = region(options.saturation, genome)
        if not (substitutions := saturation(genome, *span)):
            raise InputError(
                f"--saturation {options.saturation}: holds no known base (A, C, G, T); choose another region"
            )
        path = work / "saturation.vcf"
        with path.open("w", encoding="utf-8") as file:
            file.write(f"##fileformat=VCFv4.3\n##contig=<ID={span.record},length={genome.records[span.record]}>\n")
            file.write("\t".join(vcf.COLUMNS) + "\n")
            for variant in substitutions:
                row = [variant.record, variant.start + 1, ".", variant.reference, variant.alternative, ".", ".", "."]
                file.write("\t".join(map(str, row)) + "\n")
        source = str(path)
    assert source is not None
    return vcf.Calls(source, work / "calls.txt", options.region)


def _about(options: VariantsOptions, settings: dict[str, Any]) -> dict[str, Any]:
    kept = ("weights", "context", "window", "strand", "precision")
    said = {key: settings[key] for key in kept} | {"genome": str(options.genome), "run": str(options.run)}
    return said | {"calls": options.calls, "which": options.which}


def _header(options: VariantsOptions, settings: dict[str, Any], model: Any) -> list[str]:
    """What a file says of how it was made, and of what the model is worth."""
    from mamba_bio_audio import __version__
    from mamba_bio_audio.run.packaged import about
    from mamba_bio_audio.text import printable

    made = {
        "version": __version__,
        "model": options.run.name,
        "weights_sha256": settings["weights"],
        "genome": options.genome.name,
        **{key: settings[key] for key in ("context", "window", "strand", "precision")},
    }
    # A quotation mark would end the value.
    shown = {key: printable(value).replace('"', "'") for key, value in made.items()}
    values = ",".join(f'{key}="{value}"' for key, value in shown.items())
    said = about(model)
    # What the model's card says it reaches, on variants of BRCA1 among others.
    measured = said.measured if said is not None else ()
    return [
        f"{MARK}<{values}>",
        f"##mamba_bio_audio_use={USE}",
        *(f"##mamba_bio_audio_measured={printable(sentence)}" for sentence in measured),
    ]


def _draw(table: VariantTable, options: VariantsOptions, picture: Path) -> None:
    from mamba_bio_audio.evaluation.figures import saturation_map

    letters, ratios, first = table.grid()
    assert options.saturation is not None
    title = f"{options.saturation}: log p(alternative) - log p(reference), nats"
    saturation_map(letters, ratios, first, title, MARK, picture)
