"""`mba prepare sc09`: the spoken digits of Speech Commands, with the official split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mamba_bio_audio.jobs.prepare import (
    At,
    BadFiles,
    CheckedOptions,
    MaxArchiveGb,
    Prepared,
    UnhealthyOption,
    Url,
    prepared,
    terminal,
)
from mamba_bio_audio.pipelines.audio.prepare_settings import AudioSettings

COMMAND = "prepare sc09"
PANEL = "Data"


class Sc09Options(CheckedOptions):
    """Options of `mba prepare sc09`."""

    source: Annotated[Path | None, At] = Field(
        None, description="Archive of Speech Commands, or the folder it unpacks to; nothing is downloaded."
    )
    version: Literal["v0.02", "v0.01"] = Field("v0.02", description="Version of Speech Commands.")
    url: Url = Field(None, description="Download the archive from this address.")
    bad_files: BadFiles = "error"
    unhealthy: UnhealthyOption = "accept"
    max_unpacked_gb: MaxArchiveGb = 64.0

    @model_validator(mode="after")
    def _one_origin(self) -> Sc09Options:
        if self.source is not None and self.url is not None:
            raise ValueError("--from uses a local file and --url downloads one; give one of them")
        if self.dry_run and self.source is None:
            raise ValueError("--dry-run downloads nothing; give the archive with --from")
        return self


def run(options: Sc09Options) -> Prepared:
    """Prepare the spoken digits of Speech Commands (CC BY 4.0) with their official split; downloads 2.4 GB."""
    from mamba_bio_audio.pipelines.audio.prepare import manifest_rows, prepare_sc09
    from mamba_bio_audio.pipelines.audio.speech_commands import SPEECH_COMMANDS
    from mamba_bio_audio.pipelines.download import download

    with terminal(options) as reporter:
        source = options.source
        if source is None:
            release = SPEECH_COMMANDS[options.version]
            # Beside the folder, so that an interrupted download resumes and another preparation needs none.
            source = options.out.parent / release.url.rsplit("/", 1)[-1]
            download(
                options.url or release.url,
                source,
                size=release.size_bytes,
                hashes={"sha256": release.sha256},
                progress=reporter.part(f"downloading {source.name}"),
            )
        manifest = prepare_sc09(
            source,
            options.out,
            version=options.version,
            settings=AudioSettings(bad_files=options.bad_files, unhealthy=options.unhealthy),
            force=options.force,
            dry_run=options.dry_run,
            max_unpacked_bytes=int(options.max_unpacked_gb * 1e9),
            reporter=reporter,
        )
    return prepared(options, manifest, manifest_rows, "pretrain audio/sc09@small")
