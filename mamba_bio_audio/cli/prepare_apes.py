"""`mba prepare apes`: assemblies of species, named, split by homologous group."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from mamba_bio_audio.cli.options import DebugOption, ForceOption, JsonOption, QuietOption
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.jobs.common import counter
from mamba_bio_audio.text import show, table


def apes(
    out: Annotated[Path, typer.Option("--out", help="Folder to make; give it as data.path.")],
    species: Annotated[
        list[str] | None,
        typer.Option(help="Repeatable; a name, or NAME=ACCESSION_ASSEMBLY of NCBI. Default: the five great apes."),
    ] = None,
    generation: Annotated[
        Literal["t2t", "older", "hyenadna"], typer.Option(help="Which published assemblies are fetched.")
    ] = "t2t",
    source: Annotated[
        Path | None, typer.Option("--from", help="Folder with one folder of FASTA per species; no download.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Mirror of NCBI's genomes/all.")] = None,
    downloads: Annotated[Path | None, typer.Option(help="Folder for fetched files; default OUT.downloads.")] = None,
    split: Annotated[str, typer.Option(help="homology, or a TSV naming class, record, split.")] = "homology",
    valid: Annotated[str, typer.Option(help="Human chromosomes whose groups are for validation.")] = "1,3,12,13",
    test: Annotated[str, typer.Option(help="Human chromosomes whose groups are for the test.")] = "5,7,9,10,11",
    groups: Annotated[Path | None, typer.Option(help="TSV naming class, record, group: homologues.")] = None,
    regions: Annotated[
        list[str] | None, typer.Option(metavar="NAME=BED", help="Satellites or other regions of a species; repeatable.")
    ] = None,
    mix_generations: Annotated[bool, typer.Option("--mix-generations", help="Accept unlike assemblies.")] = False,
    unknown_homology: Annotated[bool, typer.Option("--unknown-homology", help="Accept unknown homologues.")] = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Fetch or take assemblies of several species and split them by homologous chromosomes. Resumes when run again."""
    from mamba_bio_audio.files import to_json
    from mamba_bio_audio.pipelines.dna.apes import prepare_species, summary_rows

    beds = {}
    for text in regions or []:
        name, equals, path = text.partition("=")
        if not equals:
            raise InputError(f"--regions {text}: write NAME=BED, for example human=censat.bed")
        beds[name] = Path(path)
    with counter("downloading", "bytes", quiet) as progress:
        manifest = prepare_species(
            out,
            species or [],
            generation=generation,
            source=source,
            url=url,
            downloads=downloads,
            split=split,
            valid=_numbers(valid),
            test=_numbers(test),
            groups=groups,
            regions=beds,
            mix_generations=mix_generations,
            unknown_homology=unknown_homology,
            force=force,
            say=(lambda text: None) if quiet else (lambda text: show(text, file=sys.stderr)),
            progress=progress,
        )
    show(to_json(manifest) if as_json else table(summary_rows(manifest)))
    if not as_json:
        show(f"next: mba classify dna/species --set data.path={out}")


def _numbers(text: str) -> list[str]:
    return [number.strip() for number in text.split(",") if number.strip()]
