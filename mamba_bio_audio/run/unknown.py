"""What a classifier calls unknown, kept in the run by `mba evaluate RUN --metrics unknown` (torch-free)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import inside
from mamba_bio_audio.run.described import read_json
from mamba_bio_audio.run.packaged import find_model

UNKNOWN_NAME = "unknown.json"


class Calibrated(BaseModel):
    """Temperature, rule and threshold that belong to some weights, as they are kept among other things.

    Attributes:
        length: symbols per window that they were fitted at.
        strand: strands that were read; None in what an earlier version kept.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    temperature: float = Field(gt=0)
    rule: Literal["probability", "energy"]
    threshold: float
    length: int
    strand: str | None = None
    weights_sha256: str


def read_calibrated(run: Path, weights_sha256: str) -> Calibrated:
    """What was fitted to these weights of a run.

    Raises:
        InputError: nothing was, or it is damaged.
    """
    folder = find_model(run)
    remedy = f"fit it: mba evaluate {run} --metrics unknown"
    if not (folder / UNKNOWN_NAME).exists():
        raise InputError(f"{run}: no threshold has been fitted for it; {remedy}, or give --threshold a probability")
    path = inside(folder, UNKNOWN_NAME)
    try:
        found = Calibrated.model_validate(read_json(path))
    except ValidationError:
        raise InputError(f"{path}: not a calibration of this program; delete it, and {remedy}") from None
    if found.weights_sha256 != weights_sha256:
        raise InputError(f"{path}: was fitted to other weights than these; {remedy}")
    return found
