"""`mba prepare youtubemix`: solo piano, as SaShiMi uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from mamba_bio_audio.jobs.prepare import (
    At,
    BadFiles,
    ChannelsOption,
    CheckedOptions,
    MaxArchiveGb,
    Prepared,
    UnhealthyOption,
    prepared,
    terminal,
)
from mamba_bio_audio.pipelines.audio.prepare_settings import AudioSettings

COMMAND = "prepare youtubemix"
PANEL = "Data"


class YoutubemixOptions(CheckedOptions):
    """Options of `mba prepare youtubemix`."""

    source: Annotated[Path, At] = Field(
        description="The file youtubemix.zip, the folder it unpacks to, or long recordings, which are cut into minutes."
    )
    channels: ChannelsOption = "mix"
    bad_files: BadFiles = "error"
    unhealthy: UnhealthyOption = "accept"
    max_unpacked_gb: MaxArchiveGb = 64.0


def run(options: YoutubemixOptions) -> Prepared:
    """Prepare one-minute clips of solo piano, as SaShiMi uses them.

    The data are gated and must not be redistributed, so you need your own copy: see
    huggingface.co/datasets/krandiash/youtubemix.
    """
    from mamba_bio_audio.pipelines.audio.prepare import manifest_rows, prepare_youtubemix

    with terminal(options) as reporter:
        manifest = prepare_youtubemix(
            options.source,
            options.out,
            settings=AudioSettings(channels=options.channels, bad_files=options.bad_files, unhealthy=options.unhealthy),
            force=options.force,
            dry_run=options.dry_run,
            max_unpacked_bytes=int(options.max_unpacked_gb * 1e9),
            reporter=reporter,
        )
    return prepared(options, manifest, manifest_rows, "pretrain audio/youtubemix@8192-paper")
