"""What a run or an export says of itself, without its weights (torch-free)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from mamba_bio_audio import files
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import inside
from mamba_bio_audio.run.config import RunConfig, read_values, validate
from mamba_bio_audio.run.packaged import find_model


class Description(NamedTuple):
    """Configuration and manifest of a run."""

    config: RunConfig
    manifest: dict[str, Any]


def describe(run: str | Path) -> Description | None:
    """The description of what `saved.load` opens; None where nothing but the weights describes it.

    Raises:
        InputError: there is no such run, or its description is damaged.
    """
    path = find_model(run)
    if (path / "config.yaml").exists():
        return Description(read_config(path), read_manifest(path))
    if not (path / "config.json").exists():
        return None
    place = path / "config.json"
    ours = read_json(place).get("mamba_bio_audio")
    if not isinstance(ours, dict) or not isinstance(ours.get("config"), dict):
        return None
    config = validate(ours["config"], str(place), saved=True)
    return Description(config, checked_manifest(ours.get("manifest", {}), place))


def read_config(run: Path) -> RunConfig:
    """A run's resolved configuration."""
    path = inside(run, "config.yaml")
    if not path.exists():
        raise InputError(f"{run}: not a run folder: it has no config.yaml; give the folder that mba pretrain wrote")
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: not a configuration: {error}; restore the file") from None
    return validate(read_values(text, str(path)), str(path), saved=True)


def read_manifest(run: Path) -> dict[str, Any]:
    """A run's `manifest.json`, or an empty dict."""
    path = inside(run, "manifest.json")
    if not path.exists():
        return {}
    return checked_manifest(read_json(path), path)


def checked_manifest(manifest: Any, place: Path) -> dict[str, Any]:
    """A manifest as this program writes it.

    Raises:
        InputError: something else.
    """
    data = manifest.get("data", {}) if isinstance(manifest, dict) else None
    files = data.get("files", []) if isinstance(data, dict) else None
    sound = (
        isinstance(files, list)
        and all(isinstance(file, dict) and {"name", "sha256"} <= set(file) for file in files)
        and isinstance(manifest.get("sessions", []), list)
    )
    if not sound:
        raise InputError(f"{place}: not a manifest of this program; restore the file")
    return manifest


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object."""
    try:
        value = files.read_json(path)
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}; restore the file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; restore the file") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a JSON object; restore the file")
    return value
