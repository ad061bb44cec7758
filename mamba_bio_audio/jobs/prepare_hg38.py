"""`mba prepare hg38`: the human reference with the published split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from mamba_bio_audio.jobs.prepare import At, Downloads, MaxUnpackedGb, Prepared, PrepareOptions, Url, prepared, terminal

COMMAND = "prepare hg38"
PANEL = "Data"


class Hg38Options(PrepareOptions):
    """Options of `mba prepare hg38`."""

    source: Literal["basenji", "ucsc"] = Field(
        "basenji",
        description="Origin of the files: FASTA and BED of basenji, or the soft-masked FASTA of UCSC with Enformer's split.",
    )
    at_hand: Annotated[Path | None, At] = Field(
        None, description="Folder that already holds the two files; nothing is downloaded."
    )
    url: Url = Field(None, description="Address of a folder that holds the two files.")
    downloads: Downloads = None
    max_unpacked_gb: MaxUnpackedGb = None


def run(options: Hg38Options) -> Prepared:
    """Fetch or take hg38 and the 34,021 / 2,213 / 1,937 published intervals. Resumes when run again."""
    from mamba_bio_audio.pipelines.dna.hg38 import prepare_hg38, summary_rows
    from mamba_bio_audio.pipelines.unpacked import unpacking_at_most

    with unpacking_at_most(options.max_unpacked_gb), terminal(options) as reporter:
        manifest = prepare_hg38(
            options.out,
            source=options.source,
            at_hand=options.at_hand,
            url=options.url,
            downloads=options.downloads,
            force=options.force,
            reporter=reporter,
        )
    return prepared(options, manifest, summary_rows, "pretrain dna/hg38@1.4m-paper")
