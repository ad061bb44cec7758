"""Reading from a folder that somebody else may have filled: its own files only."""

from __future__ import annotations

import os
from pathlib import Path

from mamba_bio_audio.errors import InputError


def inside(folder: Path, name: str | Path) -> Path:
    """The path of a file in a folder, which need not exist.

    A link that leads out of the folder would put somebody's private file into a report or an export, and a pipe would
    wait for ever.

    Args:
        folder: may itself be a link.
        name: relative to it.

    Raises:
        InputError: it lies outside of the folder, through a link or its name, or it is no regular file.
    """
    path = folder / name
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(folder)):
        raise InputError(f"{path}: leads out of {folder}, to {real}; it is not read. Put the file itself there")
    if real.exists() and not real.is_file():
        raise InputError(f"{path}: not a file; remove it")
    return path
