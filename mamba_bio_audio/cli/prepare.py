"""`mba prepare`: data sets ready for training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mamba_bio_audio.cli import prepare_apes, prepare_audio, prepare_hg38
from mamba_bio_audio.cli.options import DebugOption, ForceOption, JsonOption
from mamba_bio_audio.files import to_json
from mamba_bio_audio.jobs.common import counters
from mamba_bio_audio.text import show, table

app = typer.Typer(help="Check, index and split data.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Check, index and split data."""


@app.command("genome")
def genome(
    fasta: Annotated[list[Path], typer.Argument(help="FASTA (plain, BGZF, gzip) or 2bit files, or folders of them.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to make; give it as data.path.")],
    intervals: Annotated[
        Path | None, typer.Option(help="BED (record, start, end, split) or TSV with the splits.")
    ] = None,
    contigs: Annotated[
        list[str] | None,
        typer.Option(help="primary (default), all, or a name or region like chr1:1-1,000,000; repeat for several."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|REGEX", help="Records to leave out: a name, or what matches whole names; repeatable."
        ),
    ] = None,
    min_length: Annotated[int, typer.Option(min=0, help="Leave out records of fewer bases.")] = 0,
    valid_fraction: Annotated[float, typer.Option(min=0, max=1, help="Share of validation blocks.")] = 0.05,
    test_fraction: Annotated[float, typer.Option(min=0, max=1, help="Share of test blocks.")] = 0.05,
    split_by: Annotated[str, typer.Option(help="blocks, or records to hold out whole chromosomes.")] = "blocks",
    block_bases: Annotated[int | None, typer.Option(min=2, help="Length of the blocks that are split.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of blocks.")] = 0,
    allow_shared_bases: Annotated[bool, typer.Option(help="Accept splits with bases in common.")] = False,
    allow_duplicates: Annotated[
        bool,
        typer.Option(
            "--allow-duplicates",
            help="Accept that over a fifth of a held-out split is in train too, and leave no small record out for it.",
        ),
    ] = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Index any genome, count its bases, split it, check the splits for shared bases, write a manifest."""
    from mamba_bio_audio.pipelines.dna.prepare import prepare_genome

    with counters(as_json) as progress:
        prepared = prepare_genome(
            [str(path) for path in fasta],
            out,
            intervals=intervals,
            contigs=contigs[0] if contigs and len(contigs) == 1 else contigs or "primary",
            exclude=exclude or [],
            min_length=min_length,
            valid_fraction=valid_fraction,
            test_fraction=test_fraction,
            split_by=split_by,
            block_bases=block_bases,
            split_seed=seed,
            allow_shared_bases=allow_shared_bases,
            allow_duplicates=allow_duplicates,
            force=force,
            note=lambda text: show(text, file=sys.stderr),
            progress=progress,
        )
    if as_json:
        show(to_json(prepared.manifest))
        return
    show(table(prepared.rows))
    show(f"next: mba pretrain dna/tiny --set data.path={out}")


app.command("apes")(prepare_apes.apes)
app.command("hg38")(prepare_hg38.hg38)
app.command("audio")(prepare_audio.audio)
app.command("sc09")(prepare_audio.sc09)
app.command("youtubemix")(prepare_audio.youtubemix)
