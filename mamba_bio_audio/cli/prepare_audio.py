"""`mba prepare audio`, `sc09` and `youtubemix`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mamba_bio_audio.cli.options import DebugOption, ForceOption, JsonOption, QuietOption
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import to_json
from mamba_bio_audio.jobs.common import counter
from mamba_bio_audio.text import show, table

OutOption = Annotated[Path, typer.Option("--out", help="Folder to make; give it as data.path.")]
BadFilesOption = Annotated[
    Literal["error", "exclude"], typer.Option(help="Files that cannot be used: stop, or leave out and list them.")
]
FromOption = Annotated[Path | None, typer.Option("--from", help="Use this archive, folder or file instead.")]
MaxUnpackedOption = Annotated[
    float, typer.Option(min=0, help="Refuse an archive that unpacks to more than this many gigabytes.")
]


def audio(
    folder: Annotated[list[Path], typer.Argument(help="WAV, FLAC, OGG or MP3 files, or folders of them.")],
    out: OutOption,
    rate: Annotated[int, typer.Option(min=1000, max=384_000, help="Hz of what is written.")] = 16_000,
    piece_seconds: Annotated[
        float | None, typer.Option(min=0.01, help="Cut recordings into pieces of this length.")
    ] = None,
    valid_fraction: Annotated[float, typer.Option(min=0, max=1, help="Share of validation.")] = 0.06,
    test_fraction: Annotated[float, typer.Option(min=0, max=1, help="Share of test.")] = 0.06,
    bad_files: BadFilesOption = "error",
    force: ForceOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Decode any recordings completely, name bad ones, write mono FLAC at one rate, split by file."""
    from mamba_bio_audio.pipelines.audio.prepare import prepare_audio

    with counter("preparing", "recordings", quiet) as progress:
        manifest = prepare_audio(
            [str(path) for path in folder],
            out,
            rate_hz=rate,
            piece_s=piece_seconds,
            valid_fraction=valid_fraction,
            test_fraction=test_fraction,
            bad_files=bad_files,
            force=force,
            progress=progress,
        )
    _show(manifest, out, "audio/tiny", as_json)


def sc09(
    out: OutOption,
    source: FromOption = None,
    version: Annotated[Literal["v0.02", "v0.01"], typer.Option(help="Of Speech Commands.")] = "v0.02",
    url: Annotated[str | None, typer.Option(help="Download the archive from here.")] = None,
    bad_files: BadFilesOption = "error",
    max_unpacked_gb: MaxUnpackedOption = 64.0,
    force: ForceOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Spoken digits of Speech Commands (CC BY 4.0) with their official lists, counted; 2.4 GB are downloaded."""
    from mamba_bio_audio.pipelines.audio.prepare import SPEECH_COMMANDS, prepare_sc09

    if source is None:
        from mamba_bio_audio.pipelines.download import download

        release = SPEECH_COMMANDS[version]
        address = url or release.url
        # Beside the folder, so that an interrupted download goes on and another preparation needs none.
        archive = out.parent / release.url.rsplit("/", 1)[-1]
        with counter("downloading", "bytes", quiet) as progress:
            download(address, archive, size=release.size_bytes, hashes={"sha256": release.sha256}, progress=progress)
        source = archive
    elif url is not None:
        raise InputError("--from uses a file at hand and --url downloads one; give one of them")
    with counter("checking", "clips", quiet) as progress:
        manifest = prepare_sc09(
            source,
            out,
            version=version,
            bad_files=bad_files,
            force=force,
            max_unpacked_bytes=int(max_unpacked_gb * 1e9),
            progress=progress,
        )
    _show(manifest, out, "audio/sc09@small", as_json)


def youtubemix(
    out: OutOption,
    source: Annotated[Path, typer.Option("--from", help="youtubemix.zip, its folder, or the one long recording.")],
    bad_files: BadFilesOption = "error",
    max_unpacked_gb: MaxUnpackedOption = 64.0,
    force: ForceOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """One-minute clips of solo piano as SaShiMi uses them. The data are gated and not to be redistributed, so they must be at
    hand: see huggingface.co/datasets/krandiash/youtubemix."""
    from mamba_bio_audio.pipelines.audio.prepare import prepare_youtubemix

    with counter("preparing", "recordings", quiet) as progress:
        manifest = prepare_youtubemix(
            source,
            out,
            bad_files=bad_files,
            force=force,
            max_unpacked_bytes=int(max_unpacked_gb * 1e9),
            progress=progress,
        )
    _show(manifest, out, "audio/youtubemix@8192-paper", as_json)


def _show(manifest: dict[str, Any], out: Path, recipe: str, as_json: bool) -> None:
    if as_json:
        show(to_json(manifest))
        return
    from mamba_bio_audio.pipelines.audio.prepare import manifest_rows

    show(table(manifest_rows(manifest)))
    show(f"next: mba pretrain {recipe} --set data.path={out}")
