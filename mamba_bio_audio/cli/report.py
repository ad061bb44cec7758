"""`mba report`: one page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mamba_bio_audio.cli.options import DebugOption, ForceOption, QuietOption, counter
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.text import show


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    samples: Annotated[
        Path | None,
        typer.Option(
            help="FASTA (default RUN/samples.fa) or, for audio, a file or folder that mba sample wrote.", exists=True
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="HTML file; default RUN/report.html.")] = None,
    quiet: QuietOption = False,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Write one self-contained page: what was trained on what, curves, baselines, samples, provenance."""
    if out is not None and out.exists() and not force:
        raise InputError(f"{out} exists; choose another --out, or replace it with --force")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}")

    from mamba_bio_audio.workflow import report as workflow

    page = out or run / "report.html"
    with counter("comparing", "bases", quiet) as progress:
        sections = workflow.report(run, page, samples=samples, progress=progress)
    show(f"{page}: {', '.join(sections)}")
