"""Reading from a folder that somebody else may have filled, without leaving it."""

from __future__ import annotations

import os
from pathlib import Path

from mamba_bio_audio.errors import InputError


def inside(folder: Path, name: str | Path) -> Path:
    """The path of a file in a folder; the file need not exist.

    A link out of the folder could put somebody's private file into a report or an export, and reading a pipe could hang
    for ever.

    Args:
        folder: the folder, which may itself be a link.
        name: path relative to it.

    Raises:
        InputError: the file lies outside the folder, because of a link or its name, or is not a regular file.
    """
    path = folder / name
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(folder)):
        raise InputError(f"{path}: leads out of {folder} to {real}, so it is not read; put the file itself there")
    if real.exists() and not real.is_file():
        raise InputError(f"{path}: not a regular file; remove it")
    return path
