"""`mba prepare apes`: assemblies of species as classes, split by homologous group."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from mamba_bio_audio.jobs.prepare import At, Downloads, MaxUnpackedGb, Prepared, PrepareOptions, Url, prepared, terminal
from mamba_bio_audio.pipelines.dna.prepare_settings import SpeciesSettings

COMMAND = "prepare apes"
PANEL = "Data"


class ApesOptions(PrepareOptions, SpeciesSettings):
    """Options of `mba prepare apes`."""

    source: Annotated[Path | None, At] = Field(
        None, description="Folder with one folder of FASTA files per species; nothing is downloaded."
    )
    url: Url = Field(None, description="Mirror of NCBI's genomes/all.")
    downloads: Downloads = None
    max_unpacked_gb: MaxUnpackedGb = None


def run(options: ApesOptions) -> Prepared:
    """Fetch or take assemblies of several species and split them by homologous chromosomes. Resumes when run again."""
    from mamba_bio_audio.pipelines.dna.apes import prepare_species, summary_rows
    from mamba_bio_audio.pipelines.unpacked import unpacking_at_most

    with unpacking_at_most(options.max_unpacked_gb), terminal(options) as reporter:
        manifest = prepare_species(
            options.out,
            options,
            source=options.source,
            url=options.url,
            downloads=options.downloads,
            force=options.force,
            reporter=reporter,
        )
    return prepared(options, manifest, summary_rows, "classify dna/species")
