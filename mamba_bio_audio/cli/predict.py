"""`mba predict`: class probabilities of sequences."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from mamba_bio_audio.cli.options import DebugOption, DeviceOption, ForceOption, JsonOption, QuietOption, WhichOption
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import check_file, unfinished
from mamba_bio_audio.jobs.common import counters, resolve_device, standard_output
from mamba_bio_audio.text import show


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run of mba classify, or an export of one.")],
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="FASTA or FASTQ, also gzip, - is standard input; or recordings."),
    ],
    out: Annotated[Path | None, typer.Option("--out", help="TSV file; default, or -: standard output.")] = None,
    mode: Annotated[
        Literal["windows", "stream"],
        typer.Option(help="Average windows, or read each record once with the state carried."),
    ] = "windows",
    length: Annotated[int | None, typer.Option(min=1, help="Of the windows; default the training length.")] = None,
    strand: Annotated[
        Literal["both", "forward", "reverse"] | None, typer.Option(help="Default for DNA: the mean of both.")
    ] = None,
    max_unknown: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Windows with a larger share of N are left out; default as trained."),
    ] = None,
    chunk: Annotated[int, typer.Option(min=1, help="Symbols read at once; does not change results.")] = 1 << 16,
    which: WhichOption = "best",
    device: DeviceOption = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue what is in OUT.part.")] = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Class probabilities of every record, in input order; a record that cannot be scored gets a row with the reason."""
    out = standard_output(out)
    if out is not None and out.is_dir():
        raise InputError(f"{out} is a folder; give a file")
    if resume and force:
        raise InputError("--resume continues a prediction and --force replaces it; give one of them")
    if out is not None and out.exists() and not (force or resume):
        raise InputError(f"{out} exists; choose another --out, or replace it with --force")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}")
    if as_json and out is None:
        raise InputError("--json prints the summary on standard output, where the rows go too; give --out a file")
    resolved = resolve_device(device)

    from mamba_bio_audio.files import to_json
    from mamba_bio_audio.jobs.predict import describe_predictions, ours, predict_files

    if out is not None and resume and out.exists() and not unfinished(out).exists():
        check_file(out, "predict", ours, force=True)
        show(f"{out}: already complete")
        return
    with counters(quiet) as progress:
        summary = predict_files(
            run,
            files,
            out,
            which=which,
            device=resolved,
            mode=mode,
            length=length,
            strand=strand,
            max_unknown=max_unknown,
            chunk=chunk,
            resume=resume,
            force=force,
            progress=progress,
        )
    if as_json:
        show(to_json(summary))
    elif not quiet:
        show(describe_predictions(summary), file=sys.stderr if out is None else sys.stdout)
    if summary["stopped_by"]:
        raise typer.Exit(130)
