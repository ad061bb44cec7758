"""Models that come with the package, opened by their name (torch-free).

Each is a folder of `packaged/` as `mba export` writes it, in bf16. Its `config.json` says under `about` in the manifest what
the model saw, where that came from under which licence, and what the model may be used for (`About`). They are made by
`scripts/package_model.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mamba_bio_audio.errors import InputError

# Arguments of `mba evaluate` that score a few of the bases, or of the samples, that come with the package.
CHECK_LENGTH, CHECK_BASES, CHECK_DATA = 1024, 4096, ("data.path=demo", "data.num_workers=0")
CHECK = (
    *("--no-baselines", "--length", str(CHECK_LENGTH), "--max-bases", str(CHECK_BASES)),
    *(word for text in CHECK_DATA for word in ("--set", text)),
)
FOLDER = Path(str(files("mamba_bio_audio"))) / "packaged"


class Source(BaseModel):
    """Where some of the data came from.

    Attributes:
        data: the data, in words.
        source: package or archive, with its version.
        licence: of that package or archive.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str
    source: str
    licence: str


class About(BaseModel):
    """What a model's numbers do not tell.

    Attributes:
        name: by which the model is opened.
        weights_sha256: hash of the weights that all this is true of.
        saw: what it was trained on, in a few words.
        use: what it may be used for.
        licence: of the weights.
        sources: of the data.
        limits: sentences for the model card.
        measured: other results, such as on variants of known effect; sentences.
        check_nats: nats per base or sample of `mba evaluate NAME` with the arguments `CHECK`, on a CPU: whoever installs the
            model gets the same to 0.001. None where no data for it come with the package.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    weights_sha256: str
    saw: str
    use: str
    licence: str
    sources: tuple[Source, ...]
    limits: tuple[str, ...] = ()
    measured: tuple[str, ...] = ()
    check_nats: float | None = None


def read_about(manifest: Mapping[str, Any]) -> About | None:
    """What a model's manifest says under `about`; None where there is nothing.

    Raises:
        InputError: it says something else than this program writes.
    """
    if manifest.get("about") is None:
        return None
    try:
        return About.model_validate(manifest["about"])
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, ("about", *problem["loc"])))
        raise InputError(f"{where} in the model's manifest: {problem['msg']}; restore the file") from None


def about(model: Any) -> About | None:
    """What a loaded model's manifest says under `about`; None where there is nothing, or its weights are others by now.

    Raises:
        InputError: as for `read_about`.
    """
    from mamba_bio_audio.models.weights import weights_hash

    found = read_about(model.manifest)
    return found if found is not None and found.weights_sha256 == weights_hash(model) else None


def packaged_models(kind: str | None = None) -> dict[str, Path]:
    """Folders of the packaged models by name, in order of name; only those that read a kind of data, where one is given."""
    found = {path.parent.name: path.parent for path in sorted(FOLDER.glob("*/config.json"))}
    return {name: folder for name, folder in found.items() if kind in (None, _kind(folder))}


def _kind(folder: Path) -> str:
    ours = json.loads((folder / "config.json").read_text(encoding="utf-8"))["mamba_bio_audio"]
    return str(ours["config"]["data"]["kind"])


def find_model(given: str | Path) -> Path:
    """What a user means by RUN: a file or folder (`~` is the home folder), or else the name of a packaged model.

    A path that exists wins over a name.

    Raises:
        InputError: there is neither.
    """
    path = Path(os.path.expanduser(given))
    if path.exists():
        return path
    packaged = packaged_models()
    if str(given) in packaged:
        return packaged[str(given)]
    names = f"; packaged models: {', '.join(packaged)}" if packaged else ""
    raise InputError(f"{given}: no such run, folder or file{names}")
