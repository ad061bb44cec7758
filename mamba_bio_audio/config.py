"""The run configuration: recipes, overrides, validation (torch-free).

A recipe is a YAML file, by name from the package (`dna/tiny`) or by path. `extends: NAME` takes another recipe as the
base. `--set a.b=c` is merged last, then everything is validated once and every mistake is reported together.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from yaml import YAMLError

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.pipelines.dna.config import DnaDataConfig
from mamba_bio_audio.training.config import TrainConfig


class RunConfig(BaseModel):
    """Everything that defines a pretraining run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = Field("", description="one line for `mba configs`")
    name: str | None = Field(
        None, pattern=r"^[\w.-]+$", description="run folder under runs/; null takes the recipe's name"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="initialisation, data order and augmentation")
    data: DnaDataConfig
    model: ModelConfig
    train: TrainConfig


def recipe_names() -> list[str]:
    """Names of the packaged recipes, sorted; files that begin with an underscore are only bases."""

    def walk(folder: Traversable, prefix: str) -> Iterable[str]:
        for entry in folder.iterdir():
            if entry.is_dir():
                yield from walk(entry, f"{prefix}{entry.name}/")
            elif entry.name.endswith(".yaml") and not entry.name.startswith("_"):
                yield prefix + entry.name.removesuffix(".yaml")

    return sorted(walk(files("mamba_bio_audio") / "configs", ""))


def recipe_text(recipe: str) -> str:
    """The YAML of a recipe, by packaged name or by path.

    Raises:
        InputError: there is no such recipe.
    """
    path = Path(recipe)
    if recipe.endswith((".yaml", ".yml")):
        if not path.is_file():
            raise InputError(f"recipe {recipe}: no such file")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"recipe {recipe} is not UTF-8 text: {error}") from None
    packaged = files("mamba_bio_audio") / "configs" / f"{recipe}.yaml"
    if not packaged.is_file():
        names = recipe_names()
        close = difflib.get_close_matches(recipe, names, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise InputError(f"recipe {recipe}: {hint}packaged recipes: {', '.join(names)}; or give a .yaml file")
    return packaged.read_text(encoding="utf-8")


def merge_recipe(recipe: str, overrides: Sequence[str] = (), _seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """Recipe, its bases and `a.b=c` overrides as one plain dict, not yet validated."""
    if recipe in _seen:
        raise InputError(f"recipe {recipe} extends itself through {' -> '.join(_seen)}")
    try:
        merged = OmegaConf.create(recipe_text(recipe))
    except (YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"recipe {recipe} is not valid YAML: {error}") from None
    if not isinstance(merged, DictConfig):
        raise InputError(f"recipe {recipe} must be a mapping of keys")
    base = merged.pop("extends", None)
    if base is not None:
        base = str(base)
        if base.endswith((".yaml", ".yml")):
            base = str(Path(recipe).parent / base)
        merged = OmegaConf.merge(merge_recipe(base, (), (*_seen, recipe)), merged)  # type: ignore[assignment]
    _apply(merged, overrides)
    try:
        plain = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(f"recipe {recipe}: {error}") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def override(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of plain values with `a.b=c` overrides applied."""
    merged = OmegaConf.create(values)
    _apply(merged, overrides)
    plain = OmegaConf.to_container(merged)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _apply(merged: DictConfig, overrides: Sequence[str]) -> None:
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key.strip():
            raise InputError(f"--set {override}: write it as key=value, for example --set train.lr=1e-3")
        try:
            # As in a YAML file: numbers, lists, null; the dotted path makes the mapping.
            OmegaConf.update(merged, key.strip(), OmegaConf.create(f"value: {value}").value, force_add=True)
        except (YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
            raise InputError(f"--set {override}: {error}") from None


def load_config(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Load, merge and validate.

    Args:
        recipe: packaged name, or path of a YAML file (also of a run's `config.yaml`).
        overrides: `a.b=c` texts, values as in YAML.

    Raises:
        InputError: listing every mistake with its path and what is allowed there.
    """
    merged = merge_recipe(recipe, overrides)
    if merged.get("name") is None:
        merged["name"] = Path(recipe).stem if recipe.endswith((".yaml", ".yml")) else recipe.replace("/", "-")
    return validate(merged, recipe, check_files=True)


def validate(values: dict[str, Any], source: str, *, check_files: bool = False) -> RunConfig:
    """Validate a merged configuration; `source` is named in the error, together with files that are missing."""
    problems = []
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        # A union reports each of its members; one line per key is enough.
        problems = list(dict.fromkeys(_describe(problem) for problem in error.errors()))
    if check_files:
        problems += _missing_files(values.get("data"))
    if not problems:
        return config
    count = len(problems)
    raise InputError(
        f"configuration of {source}: {count} mistake{'s' if count > 1 else ''}\n"
        + "\n".join(f"  {problem}" for problem in problems)
    )


def _missing_files(data: Any) -> list[str]:
    """What the data section names and is not there."""
    if not isinstance(data, dict):
        return []
    problems = []
    path = data.get("path")
    if not path:
        problems.append(
            "data.path: missing; allowed: FASTA file, list or folder of them, prepared folder, or demo; "
            "set it with --set data.path=..."
        )
    for key, value in (("path", path), ("intervals", data.get("intervals"))):
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str) and name != "demo" and not Path(name).expanduser().exists():
                problems.append(f"data.{key}: {name}: no such file or folder")
    return problems


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def _describe(problem: Any) -> str:
    """One line: path, what is wrong, what is allowed."""
    given_location = [str(part) for part in problem["loc"]]
    # Below a field pydantic names the members of unions and lists; a user knows only the key.
    location = given_location[: _depth(given_location)]
    path = ".".join(location) or "(top level)"
    allowed = _allowed(RunConfig, location)
    if problem["type"] == "extra_forbidden":
        path = ".".join(given_location)
        known = _keys(RunConfig, given_location[:-1])
        close = difflib.get_close_matches(given_location[-1], known, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{path}: unknown key; {hint}allowed: {', '.join(known)}"
    keys = _keys(RunConfig, location)
    if problem["type"] == "missing" and keys:
        return f"{path}: this section is missing; its keys: {', '.join(keys)}"
    if problem["type"] == "missing":
        return f"{path}: missing; {allowed}; set it in the recipe or with --set {path}=..."
    if problem["type"] in ("model_type", "model_attributes_type"):
        return f"{path}: must be a section with keys, not a value; its keys: {', '.join(keys)}"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool | type(None)) else ""
    return f"{path}: {message}{shown}" + (f"; {allowed}" if allowed else "")


def _depth(location: Sequence[str]) -> int:
    """How many parts of a location are keys of the configuration."""
    current: Any = RunConfig
    for depth, part in enumerate(location):
        if not (isinstance(current, type) and issubclass(current, BaseModel)):
            return depth
        if part not in current.model_fields:
            return depth
        current = current.model_fields[part].annotation
    return len(location)


def _field(model: type[BaseModel], location: Sequence[str]) -> Any:
    """The pydantic field at a path, or None."""
    field = None
    current: Any = model
    for part in location:
        if not (isinstance(current, type) and issubclass(current, BaseModel)):
            return field
        field = current.model_fields.get(part)
        if field is None:
            return None
        current = field.annotation
    return field


def _keys(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    annotation = model if not location else getattr(_field(model, location), "annotation", None)
    if typing.get_origin(annotation) in (list, tuple):
        annotation = typing.get_args(annotation)[0]
    return list(annotation.model_fields) if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def _allowed(model: type[BaseModel], location: Sequence[str]) -> str:
    """What a field accepts, in words."""
    field = _field(model, location)
    if field is None or (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
        return ""
    return "allowed: " + " ".join([_type_text(field.annotation), *_bounds(field.metadata)])


def _bounds(rules: Iterable[Any]) -> list[str]:
    return [
        f"{sign} {getattr(rule, name)}"
        for rule in rules
        for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
        if hasattr(rule, name)
    ]


def _type_text(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Annotated:
        rules = _bounds(getattr(arguments[1], "metadata", ()))
        return " ".join([_type_text(arguments[0]), *rules])
    if origin is typing.Literal:
        return " | ".join("true" if a is True else "false" if a is False else str(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type_text(argument) for argument in arguments)
    if origin in (list, tuple):
        return f"list of {_type_text(arguments[0])}"
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "{" + ", ".join(annotation.model_fields) + "}"
    return {int: "whole number", float: "number", str: "text", bool: "true | false"}.get(annotation, str(annotation))
