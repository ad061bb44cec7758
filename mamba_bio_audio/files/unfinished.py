"""`OUT.part`: the folder in which an output grows until it is whole, and from which it continues.

`settings.json` in it says what is being made; a continuation must ask for the same. What is continued, and from where, is
the caller's: rows of samples with the model's state, or lines of a table.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files.atomic import read_json, write_json
from mamba_bio_audio.files.folders import Maker, check_replaceable, is_occupied, mark

SETTINGS_NAME = "settings.json"


def unfinished(out: Path) -> Path:
    """The folder in which `out` grows."""
    return out.with_name(f"{out.name}.part")


def begin_unfinished(
    folder: Path, maker: Maker, settings: Mapping[str, Any], *, resume: bool = False, force: bool = False
) -> bool:
    """Make the folder, or check that what is in it can be continued; the caller holds the output's lock.

    Args:
        settings: everything that decides the result, JSON-able.
        resume: continue what is there.
        force: discard what is there.

    Returns:
        Whether there is something to continue.

    Raises:
        InputError: neither was asked for, the settings differ, or the folder is not of this command.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: in the way, and not made by this program; move it away, or choose another --out")
    there = is_occupied(folder)
    if there:
        # Also before continuing: it is deleted at the end.
        check_replaceable(folder, maker)
    if there and force:
        shutil.rmtree(folder)
        there = False
    elif there and not resume:
        raise InputError(f"{folder}: unfinished; continue it with --resume, or discard it with --force")
    # As they come back from JSON, to be comparable.
    wanted: dict[str, Any] = json.loads(json.dumps(settings))
    if there:
        before = _read_settings(folder)
        different = [key for key in {**before, **wanted} if before.get(key) != wanted.get(key)]
        if before and different:
            changes = ", ".join(f"{key} {before.get(key)} -> {wanted.get(key)}" for key in different)
            raise InputError(
                f"{folder}: unfinished, with other settings ({changes}); resume with the same ones, or start anew with --force"
            )
    folder.mkdir(parents=True, exist_ok=True)
    mark(folder, maker)
    write_json(folder / SETTINGS_NAME, wanted)
    return there


def discard_unfinished(folder: Path) -> None:
    """Delete the folder, once its contents have been brought to their final place."""
    shutil.rmtree(folder)


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS_NAME
    if not path.exists():
        # Killed before they were written: nothing has been made yet.
        return {}
    try:
        value = read_json(path)
        if not isinstance(value, dict):
            raise ValueError("no JSON object")
        return value
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); start anew with --force") from None
