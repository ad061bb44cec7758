"""`mba prepare hg38`: the human reference with the published split."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from mamba_bio_audio.cli.options import DebugOption, ForceOption, JsonOption, QuietOption
from mamba_bio_audio.jobs.common import counter
from mamba_bio_audio.text import show, table


def hg38(
    out: Annotated[Path, typer.Option("--out", help="Folder to make; give it as data.path.")],
    source: Annotated[
        Literal["basenji", "ucsc"],
        typer.Option(help="basenji: its FASTA and BED; ucsc: soft-masked FASTA of UCSC, split of Enformer."),
    ] = "basenji",
    at_hand: Annotated[
        Path | None, typer.Option("--from", help="Folder that holds the two files; no download.", exists=True)
    ] = None,
    url: Annotated[str | None, typer.Option(help="Address of a folder that holds them.")] = None,
    downloads: Annotated[Path | None, typer.Option(help="Folder for fetched files; default OUT.downloads.")] = None,
    quiet: QuietOption = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Fetch or take hg38 and the 34,021 / 2,213 / 1,937 published intervals. Resumes when run again."""
    from mamba_bio_audio.files import to_json
    from mamba_bio_audio.pipelines.dna.hg38 import prepare_hg38

    with counter("preparing", "bytes", quiet) as progress:
        prepared = prepare_hg38(
            out,
            source=source,
            at_hand=at_hand,
            url=url,
            downloads=downloads,
            force=force,
            say=(lambda text: None) if quiet else (lambda text: show(text, file=sys.stderr)),
            progress=progress,
        )
    if as_json:
        show(to_json(prepared.manifest))
        return
    show(table(prepared.rows))
    show(f"next: mba pretrain dna/hg38@1.4m-paper --set data.path={out}")
