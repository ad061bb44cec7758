"""Finds the FASTA files and the intervals file that `data.path` and `data.intervals` mean."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.genome import Genome

DEMO = "demo"
INTERVALS_NAME = "intervals.tsv"
MANIFEST_NAME = "manifest.json"
PREPARED_KIND = "mamba-bio-audio prepared genome"


@dataclass(frozen=True)
class Source:
    """Files of a genome and of its split.

    Attributes:
        paths: FASTA files, or folders of them.
        intervals: path of the intervals file; None to split into blocks.
        intervals_origin: "data.intervals", "found in data.path" or "blocks".
        manifest: contents of a prepared folder's manifest.
    """

    paths: list[str]
    intervals: str | None
    intervals_origin: str
    manifest: dict[str, Any] | None = None

    def open(self, progress: Callable[[str, int, int | None], None] | None = None) -> Genome:
        """Open the genome, checked against the prepared folder's manifest if there is one; `progress` as for `Genome`."""
        genome = Genome(self.paths, progress=progress)
        if self.manifest is not None:
            for listed, found in zip(self.manifest["files"], genome.fingerprint(), strict=True):
                if listed["sha256"] != found.sha256:
                    raise InputError(
                        f"{found.path}: changed since it was prepared (SHA-256 {found.sha256[:12]}..., manifest "
                        f"{listed['sha256'][:12]}...); run `mba prepare genome` again"
                    )
        return genome


def locate(path: str | Sequence[str] | None, intervals: str | None = None) -> Source:
    """Find the files behind `data.path` and `data.intervals`.

    A folder with a manifest of `mba prepare genome` stands for the FASTA files named there, any other folder for the
    FASTA files in it. `intervals.tsv` in such a folder is used if `data.intervals` is null.
    """
    if not path:
        raise InputError(
            "data.path is not set; give a FASTA file, a folder of FASTA files, a folder made by `mba prepare genome`, or "
            "`demo`, for example --set data.path=genome.fa"
        )
    if intervals is not None and not os.path.isfile(os.path.expanduser(intervals)):
        raise InputError(f"data.intervals: {intervals}: there is no such file; correct the path")
    given = os.path.expanduser(intervals) if intervals is not None else None
    paths = [path] if isinstance(path, str) else list(path)
    if paths == [DEMO]:
        return Source([demo_folder()], given, "data.intervals" if given else "blocks")
    if len(paths) == 1 and os.path.isdir(folder := os.path.expanduser(paths[0])):
        inside = os.path.join(folder, INTERVALS_NAME)
        found = inside if os.path.isfile(inside) else None
        origin = "data.intervals" if given else "found in data.path" if found else "blocks"
        manifest_path = Path(folder) / MANIFEST_NAME
        manifest = _read_manifest(manifest_path) if manifest_path.is_file() else None
        if manifest is not None:
            if found is None and given is None:
                raise InputError(f"{folder}: {INTERVALS_NAME} is missing; run `mba prepare genome` again")
            return Source(_prepared_files(manifest_path, manifest), given or found, origin, manifest=manifest)
        return Source([folder], given or found, origin)
    return Source(paths, given, "data.intervals" if given else "blocks")


def demo_folder() -> str:
    """Folder of the genome slices that come with the package."""
    return str(files("mamba_bio_audio.pipelines.dna") / "demo")


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """A prepared folder's manifest; None if another program made the file."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); run `mba prepare genome` again") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != PREPARED_KIND:
        return None
    files = manifest.get("files")
    whole = isinstance(files, list) and all(
        isinstance(file, dict) and {"path", "relative_path", "sha256"} <= file.keys() for file in files
    )
    if not whole:
        raise InputError(f"{path}: does not name its FASTA files; run `mba prepare genome` again")
    return manifest


def _prepared_files(manifest_path: Path, manifest: dict[str, Any]) -> list[str]:
    found = []
    for listed in manifest["files"]:
        # The relative path comes first, so that a folder moved together with its FASTA still works.
        candidates = [manifest_path.parent / listed["relative_path"], Path(listed["path"])]
        existing = [candidate for candidate in candidates if candidate.is_file()]
        if not existing:
            raise InputError(
                f"{manifest_path}: the FASTA file {listed['path']} is missing; put it back, or run "
                "`mba prepare genome` again"
            )
        found.append(os.path.abspath(existing[0]))
    return found
