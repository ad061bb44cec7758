"""`mba embed`: embeddings of the records of files, for other programs."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.jobs.contract import Cli, Device, Force, Options, Result, Resume, RunFolder, Which

if TYPE_CHECKING:
    from mamba_bio_audio.pipelines.contract import Item

COMMAND = "embed"
PANEL = "Use"
# Records are collected up to these numbers, so that those of similar length can be read together.
_SYMBOLS_AHEAD, _RECORDS_AHEAD = 1 << 20, 4096


class EmbedOptions(Options):
    """Options of `mba embed`."""

    run: RunFolder
    files: Annotated[tuple[str, ...], Cli(argument=True, metavar="FILE...")] = Field(
        description="FASTA or FASTQ, plain or gzip (- is standard input), or recordings."
    )
    out: Path = Field(description="File to write, .npz or .parquet.")
    layer: str = Field(
        "final",
        description="Layer whose output to take: its number from 0, or from -1 backwards; final: the normalised states that "
        "the head reads.",
    )
    pool: str = Field(
        "mean",
        description="One vector per record (mean, last), per 128 symbols (bins:128, any number), or per symbol (none).",
    )
    strand: Literal["forward", "reverse", "both"] = Field(
        "forward", description="Strand of DNA to read; both: the mean of the two, at the same bases."
    )
    class_: Annotated[str | None, Cli(flag="--class", metavar="NAME")] = Field(
        None, description="Audio models trained on classes: embed as sequences of this class; default: of none."
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Precision of the model; bf16 is faster on a GPU and less exact."
    )
    chunk: int | None = Field(
        None, ge=1, description="Symbols read at once; does not change results. Default: by device."
    )
    which: Which = "best"
    device: Device = "auto"
    resume: Resume = False
    force: Force = False

    @field_validator("layer")
    @classmethod
    def _layer(cls, text: str) -> str:
        if text != "final" and not re.fullmatch(r"-?[0-9]{1,6}", text):
            raise ValueError(f"layer is {text!r}; give its number, or final")
        return text

    @model_validator(mode="after")
    def _check(self) -> EmbedOptions:
        if self.resume and self.force:
            raise ValueError("--resume continues embeddings and --force replaces them; give one of them")
        return self


class EmbedResult(Result):
    """Summary of a file of embeddings.

    Attributes:
        vectors: number of vectors, of `width` channels each.
        symbols: symbols in all records.
        not_embedded: records without vectors, or whose vectors are NaN, by reason.
        stopped_by: name of the signal that ended it early.
        already_complete: a file that was complete before; nothing was done.
        of_class: class that the records were embedded as.
        stranded: whether these data have strands to speak of.
        record: what a record of these data is called.
    """

    out: str | None = None
    run: str | None = None
    which: str | None = None
    weights: str | None = None
    layer: str | None = None
    pool: str | None = None
    strand: str | None = None
    of_class: str | None = None
    precision: str | None = None
    files: list[str] = Field(default_factory=list)
    records: int = 0
    symbols: int = 0
    unit: str | None = None
    vectors: int = 0
    width: int = 0
    not_embedded: dict[str, int] = Field(default_factory=dict)
    stopped_by: str | None = None
    already_complete: str | None = None
    stranded: bool = Field(True, exclude=True)
    record: str = Field("record", exclude=True)

    def text(self) -> str:
        """Counts, and which records have no vectors."""
        if self.already_complete:
            return f"{self.already_complete}: already complete, whatever is asked for now; --force makes it again"
        lines = [
            f"{self.records:,} {self.record}{'s' * (self.records != 1)}, {self.symbols:,} {self.unit}s: {self.vectors:,} "
            f"vector{'s' * (self.vectors != 1)} of {self.width:,} channels (layer {self.layer}, pool {self.pool}"
            f"{f', strand {self.strand}' if self.stranded else ''}{f', class {self.of_class}' if self.of_class else ''})"
        ]
        lines += [f"{count:,} without vectors: {reason}" for reason, count in list(self.not_embedded.items())[:5]]
        if len(self.not_embedded) > 5:
            lines.append(f"and {len(self.not_embedded) - 5:,} more reasons, in the file's notes")
        if self.stopped_by is None:
            lines.append(f"wrote {self.out}")
        return "\n".join(lines)

    @property
    def exit_code(self) -> int:
        """130 after a signal."""
        return 130 if self.stopped_by else 0


def run(options: EmbedOptions) -> EmbedResult:
    """Write embeddings of every record, in order; a record that has none stays in the file with the reason."""
    from mamba_bio_audio.files import check_file, locked, name_full_disk, unfinished
    from mamba_bio_audio.inference.embed import Pool, check_layer, embed_rows, longest, missing, turns_of
    from mamba_bio_audio.inference.embedding_file import EmbeddingFile, check_suffix, ours
    from mamba_bio_audio.inference.streaming import Stopped
    from mamba_bio_audio.jobs.common import check_inputs, counters, resolve_device
    from mamba_bio_audio.models.weights import weights_hash
    from mamba_bio_audio.pipelines.domains import domain_of
    from mamba_bio_audio.run import saved
    from mamba_bio_audio.signals import StopSignal

    out = options.out
    pool = Pool.of(options.pool)
    layer: int | Literal["final"] = "final" if options.layer == "final" else int(options.layer)
    check_suffix(out)
    if options.resume and out.exists() and not unfinished(out).exists():
        check_file(out, "embed", ours, force=True)
        return EmbedResult(already_complete=str(out))
    check_inputs(options.files)
    check_file(out, "embed", ours, [options.run, *options.files], force=options.force or options.resume)
    model = saved.load(options.run, options.which)
    if model.codec is None:
        raise InputError(f"{options.run}: these weights came without a codec; read the file yourself and use mba.embed")
    check_layer(model, layer)
    turns_of(model, options.strand)
    data = model.config.data
    found: dict[str, Any] = {}
    settings: dict[str, Any] = {
        "weights": weights_hash(model),
        "layer": options.layer,
        "pool": options.pool,
        "strand": options.strand,
        "precision": options.precision,
        "files": list(options.files),
    }
    if options.class_ is not None:
        try:
            model = model.of_class(options.class_)
        except InputError as error:
            raise InputError(f"{options.run}: {error}") from None
        settings["class"] = found["of_class"] = options.class_
    model.to(resolve_device(options.device))
    domain, most = domain_of(data.kind), longest(model)
    with (
        counters(options.quiet) as progress,
        locked(out),
        name_full_disk(out),
        StopSignal() as stop,
        EmbeddingFile(
            out, pool, model.model_config.d_model, settings, resume=options.resume, force=options.force
        ) as file,
    ):
        read, finished = 0, False

        def stopped() -> bool:
            return stop.number is not None

        def count(symbols: int) -> None:
            nonlocal read
            read += symbols
            progress(f"{domain.unit}s read", read, None)

        try:
            for group in _groups(file.unfinished(_readable(domain.records(options.files, data), most))):
                if stopped():
                    raise Stopped
                places, notes, rows = [], [], []
                for item, place in zip(group, file.begin(group), strict=True):
                    notes.append(item.symbols if isinstance(item.symbols, str) else missing(model, item.symbols))
                    if not isinstance(item.symbols, str) and len(item.symbols):
                        places.append(place)
                        rows.append(item.symbols)
                embed_rows(
                    places,
                    model,
                    rows,
                    layer,
                    pool,
                    strand=options.strand,
                    precision=options.precision,
                    chunk=options.chunk,
                    stop=stopped,
                    progress=count,
                )
                file.end(group, notes)
                progress("records", len(file.records), None)
            file.finish(stopped)
            finished = True
        except Stopped:
            pass
    return EmbedResult(
        **{name: value for name, value in settings.items() if name != "class"},
        **found,
        out=str(out),
        run=str(options.run),
        which=options.which,
        records=len(file.records),
        symbols=sum(record.length for record in file.records),
        unit=domain.unit,
        record=domain.record,
        stranded=len(domain.symbols(data, model.config.train.length).strands) > 1,
        vectors=file.rows,
        width=file.width,
        not_embedded=dict(file.reasons),
        stopped_by=None if finished or stop.number is None else signal.Signals(stop.number).name,
    )


def _readable(items: Iterable[Item], most: int | None) -> Iterator[Item]:
    """The records, those of more than `most` symbols with the reason in place of these."""
    for item in items:
        if most is not None and not isinstance(item.symbols, str) and item.length > most:
            item = item._replace(symbols=f"longer than the {most:,} symbols that this model can read")
        yield item


def _groups(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The records in groups, within which those of similar length are read together."""
    group: list[Item] = []
    symbols = 0
    for item in items:
        group.append(item)
        symbols += 0 if isinstance(item.symbols, str) else item.length
        if symbols >= _SYMBOLS_AHEAD or len(group) == _RECORDS_AHEAD:
            yield group
            group, symbols = [], 0
    if group:
        yield group
