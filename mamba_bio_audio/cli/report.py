"""`mba report`: one page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mamba_bio_audio.cli.options import DebugOption, ForceOption, QuietOption
from mamba_bio_audio.files import check_file
from mamba_bio_audio.jobs.common import counter
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
    page = out or run / "report.html"
    if run.is_dir():
        # The page in the run's own folder follows the run.
        check_file(
            page, "report", _is_report, [run, *([] if samples is None else [samples])], force=force or out is None
        )

    from mamba_bio_audio.jobs import report as workflow

    with counter("comparing", "bases", quiet) as progress:
        sections = workflow.report(run, page, samples=samples, progress=progress)
    show(f"{page}: {', '.join(sections)}")


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        return b'<meta name="generator" content="mba report">' in file.read(1000)
