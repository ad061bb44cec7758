"""`mba prepare apes`: assemblies of species as classes, split by homologous group."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

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
    join: int | None = Field(
        None,
        ge=1000,
        description="Instead of whole assemblies, join loci that are aligned between the species of --from (records of the "
        "same name, whose headers say their split and where they lie, such as hg19=chr22:1-100000): those that begin in the "
        "same so many bases become one record.",
    )
    loci: str = Field("*", description="With --join: names of the FASTA files to read, as a glob.")
    substitute: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="With --join: replace this share of the bases, independently in each species, as if the sequence were "
        "another individual's.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="With --join: random seed of the substitutions.")

    @model_validator(mode="after")
    def _goes_together(self) -> ApesOptions:
        joined = {"join", "loci", "substitute", "seed"}
        changed = [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]
        if self.join is None:
            others = [name for name in changed if name in joined]
        else:
            shared = {*PrepareOptions.model_fields, *joined, "source", "species", "max_unpacked_gb"}
            others = [name for name in changed if name not in shared]
        if others:
            verb = "goes with" if self.join is None else "does not go with"
            raise ValueError(f"--{others[0].replace('_', '-')} {verb} --join; leave it out")
        if self.join is not None and self.source is None:
            raise ValueError("--join takes files at hand; name their folder with --from")
        return self


def run(options: ApesOptions) -> Prepared:
    """Fetch or take assemblies of several species and split them by homologous chromosomes. Resumes when run again."""
    from mamba_bio_audio.pipelines.dna import apes, loci
    from mamba_bio_audio.pipelines.unpacked import unpacking_at_most

    with unpacking_at_most(options.max_unpacked_gb), terminal(options) as reporter:
        if options.join is not None and options.source is not None:
            how = loci.Joining(options.join, options.loci, options.substitute, options.seed)
            where: dict[str, Any] = {"species": options.species, "force": options.force, "reporter": reporter}
            manifest = loci.join_loci(options.out, options.source, how, **where)
            return prepared(options, manifest, loci.summary_rows, "classify dna/apes")
        manifest = apes.prepare_species(
            options.out,
            options,
            source=options.source,
            url=options.url,
            downloads=options.downloads,
            force=options.force,
            reporter=reporter,
        )
    return prepared(options, manifest, apes.summary_rows, "classify dna/species")
