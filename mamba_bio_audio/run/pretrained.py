"""The model that a training begins with (`head.pretrained`, `train.init`), and the architecture that it brings.

The whole section `model` comes from there: weights of one architecture fit no other. What a user sets himself must
agree with it; what a packaged recipe says of the model is for training from scratch, and gives way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.run.config import RunConfig, merge_named, validate, written_values
from mamba_bio_audio.run.described import read_config

if TYPE_CHECKING:
    from mamba_bio_audio.models.build import LanguageModel
    from mamba_bio_audio.models.heads import Classifier

KEYS = ("head.pretrained", "train.init")


def configure(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    run_of: Callable[[str], Path] | None = None,
    gives_way: bool = False,
) -> RunConfig:
    """`config.load_config` for a training: a model that it begins with brings the section `model`.

    Args:
        recipe, overrides: as for `load_config`.
        run_of: name -> run folder, where a run is continued; it has the architecture even if the pretrained model is gone.
        gives_way: what the user says of the model is for training from scratch, too.

    Raises:
        InputError: a mistake in the configuration, or no such model, or the user set another architecture.
    """
    merged = merge_named(recipe, overrides)
    found = named(merged)
    _refuse_random_backbone(merged, found)
    if found is not None:
        run = None if run_of is None else run_of(str(merged["name"]))
        model, source = _architecture(*found, run, labels=bool(merged.get("head")))
        own = {} if gives_way else written_values(recipe, overrides)
        merged = adopt(merged, own, model, source)
    return validate(merged, recipe, check_files=True)


def _refuse_random_backbone(values: Mapping[str, Any], found: tuple[str, str] | None) -> None:
    """Refuse to keep a backbone that nothing has been learnt by."""
    head = values.get("head")
    keys = [key for key in ("freeze", "lora_rank") if isinstance(head, dict) and head.get(key)]
    if keys and (found is None or found[0] != "head.pretrained"):
        raise InputError(
            f"head.{keys[0]} keeps the weights of a pretrained backbone, and this one is random; name a model in "
            f"head.pretrained, or leave head.{keys[0]} out"
        )


def named(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """(key, path) of the pretrained model that a configuration names; None without one.

    Args:
        values: plain values, not yet validated.

    Raises:
        InputError: it names two.
    """
    found = []
    for key in KEYS:
        section, name = key.split(".")
        inside = values.get(section)
        given = inside.get(name) if isinstance(inside, dict) else None
        if isinstance(given, str) and given:
            found.append((key, given))
    if len(found) > 1:
        raise InputError("head.pretrained and train.init both name a model to begin with; set one of them")
    return found[0] if found else None


def adopt(values: dict[str, Any], own: Mapping[str, Any], model: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Values whose section `model` is that of a pretrained model.

    Args:
        values: plain values of the whole configuration.
        own: those among them that the user wrote himself.
        model: the pretrained model's section, complete.
        source: where it comes from, for messages: key and path.

    Raises:
        InputError: the user set a key of the model to something else.
    """
    given = own.get("model")
    wrong = list(_different(given, model, "model")) if isinstance(given, dict) else []
    if wrong:
        raise InputError(
            f"{source} brings its architecture, whose weights fit no other: {'; '.join(wrong)}. Leave these keys out, or "
            f"name another model"
        )
    return {**values, "model": dict(model)}


def _different(given: Mapping[str, Any], found: Mapping[str, Any], path: str) -> Iterator[str]:
    for key, value in given.items():
        place = f"{path}.{key}"
        if key not in found:
            yield f"{place} is no key of a {found.get('backbone', 'model')} model"
        elif isinstance(value, dict) and isinstance(found[key], dict):
            yield from _different(value, found[key], place)
        # null is whatever fits.
        elif value is not None and _plain(value) != _plain(found[key]):
            yield f"{place} is {value}, there {found[key]}"


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _architecture(key: str, path: str, run: Path | None, *, labels: bool) -> tuple[dict[str, Any], str]:
    """The section `model` that a run begins with, or began with; and where it comes from, in words."""
    if run is not None and (run / "config.yaml").exists():
        return read_config(run).model.model_dump(mode="json"), str(run)
    from mamba_bio_audio.run.saved import architecture

    try:
        model = architecture(path)
    except InputError as error:
        raise InputError(f"{key}: {error}") from None
    if labels and model.class_names:
        raise InputError(
            f"{key}: {path}: it generates by class ({', '.join(model.class_names)}) and reads the class of a sequence, which "
            f"a model that predicts labels must not be told; name a model that was trained without model.classes"
        )
    return model.model_dump(mode="json"), f"{key}={path}"


def begin_with(model: LanguageModel | Classifier, key: str, path: str, codec: Any) -> None:
    """Give a new model the weights of a pretrained one of its architecture, in place.

    Args:
        model: language model or classifier.
        key: that names the pretrained model, for messages.
        path: as `saved.load` takes it.
        codec: of the data that the new model will read.

    Raises:
        InputError: the weights cannot be loaded, have another shape, or know other symbols.
    """
    from mamba_bio_audio.run import saved

    try:
        source = saved.load(path)
    except InputError as error:
        raise InputError(f"{key}: {error}") from None
    theirs, ours = _symbols(source.codec), _symbols(codec)
    if theirs not in (None, ours):
        raise InputError(
            f"{key}: {path}: it knows {theirs}, but the data are {ours}; name another model, or other data"
        )
    try:
        model.start_from(source)
    except InputError as error:
        raise InputError(f"{key}: {path}: {error}") from None


def _symbols(codec: Any) -> str | None:
    """What ids mean, in words; None for weights that came without a codec."""
    return None if codec is None else f"{codec.name}, {codec.description}"
