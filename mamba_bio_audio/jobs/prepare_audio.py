"""`mba prepare audio`: any recordings, checked to the last sample, at one rate, split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from mamba_bio_audio.jobs.contract import Cli
from mamba_bio_audio.jobs.prepare import CheckedOptions, Prepared, prepared, terminal
from mamba_bio_audio.pipelines.audio.prepare_settings import USUAL_RATE_HZ, AudioSettings

COMMAND = "prepare audio"
PANEL = "Data"


class AudioOptions(CheckedOptions, AudioSettings):
    """Options of `mba prepare audio`."""

    folder: Annotated[tuple[Path, ...], Cli(argument=True)] = Field(
        description="WAV, FLAC, OGG or MP3 files, or others that libsndfile reads, or folders of them."
    )


def run(options: AudioOptions) -> Prepared:
    """Decode any recordings completely, name bad ones, write mono FLAC at one rate, and split by file."""
    from mamba_bio_audio.pipelines.audio.prepare import manifest_rows, prepare_audio

    with terminal(options) as reporter:
        paths = [str(path) for path in options.folder]
        manifest = prepare_audio(
            paths, options.out, options, force=options.force, dry_run=options.dry_run, reporter=reporter
        )
    rate = "" if options.rate == USUAL_RATE_HZ else f" --set data.sample_rate_hz={options.rate}"
    return prepared(options, manifest, manifest_rows, f"pretrain audio/tiny{rate}")
