"""`mba prepare genome`: any genome, indexed, checked and split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from mamba_bio_audio.jobs.contract import Cli
from mamba_bio_audio.jobs.prepare import CheckedOptions, MaxUnpackedGb, Prepared, prepared, terminal
from mamba_bio_audio.pipelines.dna.prepare_settings import GenomeSettings

COMMAND = "prepare genome"
PANEL = "Data"


class GenomeOptions(CheckedOptions, GenomeSettings):
    """Options of `mba prepare genome`."""

    fasta: Annotated[tuple[Path, ...], Cli(argument=True)] = Field(
        description="FASTA (plain, BGZF, gzip) or 2bit files, or folders of them."
    )
    max_unpacked_gb: MaxUnpackedGb = None


def run(options: GenomeOptions) -> Prepared:
    """Index any genome, count its bases, split it, check the splits for shared bases, and write a manifest."""
    from mamba_bio_audio.pipelines.dna.prepare import prepare_genome, summary_rows
    from mamba_bio_audio.pipelines.unpacked import unpacking_at_most

    with unpacking_at_most(options.max_unpacked_gb), terminal(options) as reporter:
        manifest = prepare_genome(
            options.fasta, options.out, options, force=options.force, dry_run=options.dry_run, reporter=reporter
        )
    return prepared(options, manifest, summary_rows, "pretrain dna/tiny")
