"""`OUT.part`: the folder in which an output grows until it is complete, and from which it can be continued.

Its `settings.json` says what is being made; continuing requires the same settings. What is continued, and from where, is
up to the caller: rows of samples with the model's state, or lines of a table.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mamba_bio_audio.errors import InputError, OtherSettings
from mamba_bio_audio.files.atomic import read_json, write_json
from mamba_bio_audio.files.folders import Maker, check_replaceable, is_occupied, mark

SETTINGS_NAME = "settings.json"


def unfinished(out: Path) -> Path:
    """The folder in which `out` grows."""
    return out.with_name(f"{out.name}.part")


def begin_unfinished(
    folder: Path,
    maker: Maker,
    settings: Mapping[str, Any],
    *,
    resume: bool = False,
    force: bool = False,
    unsaid: Mapping[str, Any] = MappingProxyType({}),
) -> bool:
    """Create the folder, or check that its contents can be continued; the caller holds the output's lock.

    Args:
        settings: everything that determines the result, as JSON-able values.
        resume: continue existing contents.
        force: discard existing contents.
        unsaid: settings of contents that do not name them, from before they existed.

    Returns:
        Whether there is something to continue.

    Raises:
        InputError: there are contents and neither was requested, or another command made the folder.
        OtherSettings: the settings differ.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: in the way, and not made by this program; move it away, or choose another --out")
    there = is_occupied(folder)
    if there:
        # Checked before continuing too, because the folder is deleted at the end.
        check_replaceable(folder, maker)
    if there and force:
        shutil.rmtree(folder)
        there = False
    elif there and not resume:
        raise InputError(f"{folder}: unfinished; continue it with --resume, or discard it with --force")
    # As JSON returns them, so that they compare equal.
    wanted: dict[str, Any] = json.loads(json.dumps(settings))
    if there:
        # Nothing was written, and so nothing is different, where the process was killed before.
        before = {key: unsaid[key] for key in unsaid if key in wanted} | (_read_settings(folder) or wanted)
        different = [key for key in before | wanted if before.get(key) != wanted.get(key)]
        if different:
            changes = ", ".join(f"{key} {before.get(key)} -> {wanted.get(key)}" for key in different)
            raise OtherSettings(
                f"{folder}: unfinished, with other settings ({changes}); resume with the same settings, or start again "
                "with --force",
                before,
                different,
            )
    folder.mkdir(parents=True, exist_ok=True)
    mark(folder, maker)
    write_json(folder / SETTINGS_NAME, wanted)
    return there


def discard_unfinished(folder: Path) -> None:
    """Delete the folder, once its contents have been moved to their final place."""
    shutil.rmtree(folder)


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS_NAME
    if not path.exists():
        # The process was killed before it wrote them, so nothing has been made yet.
        return {}
    try:
        value = read_json(path)
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        return value
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); start again with --force") from None
