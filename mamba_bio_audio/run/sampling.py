"""How the samples of a run are drawn unless somebody says otherwise, and whether they stay near what it was trained on.

`mba evaluate RUN --metrics sampling` fits them and keeps them in the run folder; they belong to the weights that they were
fitted to. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mamba_bio_audio.errors import InputError, OtherSettings
from mamba_bio_audio.files import inside
from mamba_bio_audio.run.described import read_json
from mamba_bio_audio.run.packaged import find_model

SETTINGS_NAME = "sampling.json"
# Options of `mba sample` that say how symbols are drawn.
HOW = ("temperature", "top_k", "top_p", "min_p", "hold")
# By how much the bits of samples may differ from those of validation data.
_MOST = 0.1


class Fitted(BaseModel):
    """Settings fitted to some weights, as `mba evaluate` keeps them among other things."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    path: Path
    temperature: float = Field(gt=0)
    top_p: float | None = Field(gt=0, le=1)
    min_p: float | None = Field(None, gt=0, lt=1)
    hold: float | None = Field(None, gt=0)
    best_of: int = Field(1, ge=1)
    usual_bits: float | None = Field(None, gt=0)
    weights_sha256: str

    @property
    def text(self) -> str:
        """The settings in words."""
        return in_words(self.draws | {"best_of": self.best_of, "usual_bits": self.usual_bits})

    @property
    def draws(self) -> dict[str, float | None]:
        """The settings as options, but for what is kept of several."""
        return {"temperature": self.temperature, "top_p": self.top_p, "min_p": self.min_p, "hold": self.hold}


def in_words(settings: Mapping[str, Any]) -> str:
    """Temperature, and what else differs from plain drawing."""
    plain = {"top_p": 1, "min_p": 0, "hold": 0, "best_of": 1}
    more = [
        f", {name.replace('_', ' ' if name == 'best_of' else '-')} {settings[name]:g}"
        for name, without in plain.items()
        if settings.get(name) not in (None, without)
    ]
    if settings.get("usual_bits") and settings.get("best_of") not in (None, 1):
        more.append(f" near {settings['usual_bits']:g} bits")
    return f"temperature {settings['temperature']:g}" + "".join(more)


def read_fitted(run: Path) -> Fitted | None:
    """The fitted settings of a run; None where there are none.

    Raises:
        InputError: there is no such run, or its settings are damaged.
    """
    folder = find_model(run)
    if not (folder / SETTINGS_NAME).exists():
        return None
    path = inside(folder, SETTINGS_NAME)
    value = read_json(path)
    try:
        return Fitted.model_validate(value | {"path": path})
    except ValidationError:
        raise InputError(
            f"{path}: not sampling settings of this program; delete it, or fit again: mba evaluate {run} --metrics sampling"
        ) from None


@contextmanager
def fitted_since(fitted: bool) -> Iterator[None]:
    """Says so where samples were begun before settings were fitted, which nobody has given.

    Raises:
        InputError: for `OtherSettings` within, with the options that go on as before.
    """
    try:
        yield
    except OtherSettings as error:
        names = (*HOW, "best_of", "usual_bits")
        if not fitted or not set(names) & set(error.names):
            raise
        began = {name: error.made.get(name) for name in names}
        given = " ".join(
            f"--{name.replace('_', '-')} {str(value).removesuffix('.0')}"
            for name, value in began.items()
            if value is not None and (name, value) not in (("hold", 0), ("best_of", 1))
        )
        raise InputError(
            f"{error}. What differs in how symbols are drawn was not given, but has been fitted for the run; as before: "
            f"{given} --resume"
        ) from None


def drift(
    bits: float,
    parts: Sequence[float],
    valid_bits: float | None,
    draws: Mapping[str, Any],
    run: Path,
    usual_bits: float | None = None,
) -> str | None:
    """A warning where samples have become less probable, or more, than validation data are; None where they have not.

    Args:
        bits: of the samples under the model at temperature 1, mean per symbol.
        parts: the same of each eighth of their length; empty where it is not known.
        valid_bits: of validation data.
        draws: how the samples were drawn.
        run: for the advice.
        usual_bits: of samples drawn as was fitted for the run, where these are; nothing is advised of what has as many.
    """
    if valid_bits is None or valid_bits <= 0:
        return None
    values = (bits, *parts[-1:])
    narrowed = draws["temperature"] < 1 or any(draws.get(cut) is not None for cut in ("top_k", "top_p", "min_p"))
    fit = f"fit how they are drawn (mba evaluate {run} --metrics sampling)"
    along = f" (first eighth {parts[0]:.3f}, last {parts[-1]:.3f})" if parts else ""
    told = f"the samples have {bits:.3f} bits per symbol{along}, validation data {valid_bits:.3f}"
    if max(values) > (1 + _MOST) * valid_bits:
        if usual_bits is not None and max(values) <= (1 + _MOST) * usual_bits:
            return f"{told}; those drawn as fitted for this run usually have {usual_bits:.3f}"
        what = f"they drift into what the model finds improbable, which is noise: {fit}, or give a lower --temperature"
    elif min(values) < (1 - _MOST) * valid_bits and not narrowed:
        what = f"they drift into what the model finds too probable, such as silence or repeats: {fit}, or give a prompt"
    else:
        # Draws that keep to the probable symbols have fewer bits without any drift.
        return None
    return f"warning: {told}; {what}"
