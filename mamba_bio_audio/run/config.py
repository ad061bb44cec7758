"""The configuration of a run: its sections, their validation, and the messages about mistakes (torch-free).

It comes from a recipe (`recipes.py`) or from a saved run; `--set a.b=c` is merged last, then everything is validated
once and every mistake is reported together.
"""

from __future__ import annotations

import copy
import difflib
import re
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.pipelines.contract import DataSection
from mamba_bio_audio.pipelines.domains import domain_of, domains
from mamba_bio_audio.plain_yaml import dump, parse
from mamba_bio_audio.run.recipes import apply_overrides, locate, own_values, recipe_values
from mamba_bio_audio.run.words import KINDS, item_of, member_of, section_of, typed
from mamba_bio_audio.training.config import TrainConfig

if typing.TYPE_CHECKING:
    DataConfig = DataSection
else:
    DataConfig = typing.Annotated[
        typing.Union[tuple(kind for domain in domains() for kind in domain.kinds.values())],  # noqa: UP007
        Field(discriminator="kind"),
    ]
# Keys of earlier versions that had no effect.
GONE = {"train.strategy"}
AnyModelConfig = typing.Annotated[ModelConfig | UNetConfig, Field(discriminator="backbone")]


class RunConfig(BaseModel):
    """Everything that defines a run: pretraining, or with a head classification."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = Field("", description="one line for `mba configs`")
    name: str | None = Field(None, description="run folder under runs/; null takes the recipe's name")
    seed: int = Field(0, ge=0, lt=2**63, description="initialisation, data order and augmentation")
    data: DataConfig
    model: AnyModelConfig
    head: HeadConfig | None = Field(None, description="what is predicted of a sequence; only with labelled data")
    train: TrainConfig

    @field_validator("name")
    @classmethod
    def _a_folder_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"\w[\w.-]{0,99}", name):
            raise ValueError(
                "must be a folder name: a letter, digit or _, then letters, digits, _, - and dots, at most 100 characters; "
                "for a folder outside runs/ use --out"
            )
        return name

    @model_validator(mode="before")
    @classmethod
    def _default_kinds(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: _with_kind(name, section) for name, section in values.items()}

    @model_validator(mode="after")
    def _head_for_labels(self) -> RunConfig:
        tasks = self.data.tasks
        if tasks and self.head is None:
            raise ValueError(f"head: missing; data.kind={self.data.kind} is for models with a head; add a section head")
        if self.head is not None and not tasks:
            raise ValueError(
                f"head: requires labelled data, and data.kind={self.data.kind} has none; remove the section"
            )
        if self.head is not None and self.head.task not in tasks:
            kinds = [
                name for domain in domains() for name, kind in domain.kinds.items() if self.head.task in kind.tasks
            ]
            raise ValueError(
                f"head.task: data.kind={self.data.kind} is for {', '.join(tasks)}; for {self.head.task} set "
                f"data.kind={' or '.join(kinds) or 'another'}"
            )
        return self

    @model_validator(mode="after")
    def _classes_of_generation(self) -> RunConfig:
        if self.head is not None and self.model.classes is not None:
            raise ValueError("model.classes: a classifier predicts classes and is not told them; set it to null")
        return self

    @model_validator(mode="after")
    def _init_of_language_models(self) -> RunConfig:
        if self.head is not None and self.train.init is not None:
            raise ValueError("train.init: is for language models; with a head name the model in head.pretrained")
        return self

    @model_validator(mode="after")
    def _audible(self) -> RunConfig:
        if self.train.listen and not self.data.audible:
            kinds = [name for domain in domains() for name, section in domain.kinds.items() if section.audible]
            raise ValueError(
                f"train.listen requires data.kind={' or '.join(kinds)} (got {self.data.kind}); set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _whole_frames(self) -> RunConfig:
        chunked = {"stream_chunk": None, "truncate_chunk": None, "sequence_parallel": 1}
        for key, off in chunked.items():
            if self.model.unstreamed is not None and getattr(self.train, key) != off:
                raise ValueError(
                    f"train.{key}: requires layers with a state of constant size, which {self.model.unstreamed} layers do "
                    f"not have; set train.{key}={'null' if off is None else off}, or use another mixer"
                )
            if self.head is not None and self.head.readings > 1 and getattr(self.train, key) != off:
                raise ValueError(
                    f"train.{key}: head.task={self.head.task} reads whole windows, from both strands; set "
                    f"train.{key}={'null' if off is None else off}"
                )
        if not isinstance(self.model, UNetConfig):
            longest = max(self.train.length, *(stage.length for stage in self.train.length_warmup), 0)
            if self.model.longest is not None and longest > self.model.longest:
                raise ValueError(
                    f"train.length: {longest:,} is more than the {self.model.longest:,} positions for which the model's "
                    "layers are made; set max_length in model.options to the longest length"
                )
            return self
        if self.train.lr_layer_decay != 1:
            raise ValueError("train.lr_layer_decay: needs layers one after another, not a U-Net; set it to 1")
        if self.model.pools and self.train.sequence_parallel > 1:
            raise ValueError(
                "train.sequence_parallel: cannot pass the states of a U-Net's pools from device to device; set it to 1, "
                "and use train.stream_chunk for long sequences"
            )
        period = self.model.period
        # "auto" will be such a multiple, chosen when the training begins.
        chunk = None if self.train.stream_chunk == "auto" else self.train.chunk
        lengths = {"length": self.train.length, "stream_chunk": chunk}
        lengths |= {f"length_warmup.{i}.length": stage.length for i, stage in enumerate(self.train.length_warmup)}
        for key, length in lengths.items():
            if length is not None and length % period:
                near = sorted({max(1, length // period) * period, -(-length // period) * period})
                raise ValueError(
                    f"train.{key}: {length:,} is not a multiple of {period:,}, the product of model.pools "
                    f"{list(self.model.pools)}; near values: {' and '.join(map(str, near))}"
                )
        return self

    @property
    def first_sample(self) -> str:
        """Options of `mba sample` to try; empty where it cannot draw from such a model."""
        stateless = isinstance(self.model, ModelConfig) and self.model.stateless
        return "" if self.head is not None or stateless else domain_of(self.data.kind).first_sample


def _with_kind(name: str, section: Any) -> Any:
    """A section with its kind filled in where it is left out."""
    if name not in KINDS or not isinstance(section, dict):
        return section
    key, default = KINDS[name]
    return {key: default} | section


def model_config(values: Any) -> ModelConfig | UNetConfig:
    """Validate a model section on its own.

    Raises:
        ValidationError: pydantic's.
    """
    adapter: TypeAdapter[ModelConfig | UNetConfig] = TypeAdapter(AnyModelConfig)
    return adapter.validate_python(_with_kind("model", values))


def merge_recipe(recipe: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Recipe, its variants and bases, and `a.b=c` overrides as one plain dict, not yet validated.

    Raises:
        InputError: no such recipe or variant, or it is not plain YAML, or an override cannot be placed.
    """
    values = recipe_values(recipe)
    apply_overrides(values, overrides)
    return typed(values, RunConfig)


def read_values(text: str, source: str) -> dict[str, Any]:
    """The YAML of a whole configuration as a plain dict, not yet validated; `source` is named in errors.

    Raises:
        InputError: it is not plain YAML, or no mapping.
    """
    values = parse(text, source)
    if not isinstance(values, dict):
        raise InputError(f"{source}: must be a mapping of keys; restore the file")
    return typed(values, RunConfig)


def override(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of plain values with `a.b=c` overrides applied."""
    values = copy.deepcopy(values)
    apply_overrides(values, overrides)
    return typed(values, RunConfig)


def load_config(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Load, merge and validate; a model that it begins with is left to `pretrained.configure`.

    Args:
        recipe: packaged name, or path of a YAML file (also of a run's `config.yaml`); `@` and variants may follow.
        overrides: `a.b=c` texts, values as in YAML.

    Raises:
        InputError: listing every mistake with its path and what is allowed there.
    """
    return validate(merge_named(recipe, overrides), recipe, check_files=True)


def merge_named(recipe: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """`merge_recipe`, and the name of the run folder where the recipe has none."""
    merged = merge_recipe(recipe, overrides)
    if merged.get("name") is None:
        merged["name"] = locate(recipe).folder_name
    return merged


def written_values(recipe: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What the user wrote himself, in files or with `--set`, without what packaged recipes say."""
    values = own_values(recipe)
    apply_overrides(values, overrides)
    return typed(values, RunConfig)


def validate(values: dict[str, Any], source: str, *, check_files: bool = False, saved: bool = False) -> RunConfig:
    """Validate a merged configuration.

    Args:
        values: plain.
        source: named in errors.
        check_files: whether missing files are mistakes.
        saved: whether they come from a run or an export, where keys that no longer exist are ignored.

    Raises:
        InputError: listing every mistake.
    """
    problems = []
    if saved and isinstance(values, dict):
        values = {
            name: {key: value for key, value in section.items() if f"{name}.{key}" not in GONE}
            if isinstance(section, dict)
            else section
            for name, section in values.items()
        }
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


# Keys of the data section that name files and folders.
_FILE_KEYS = ("path", "intervals", "labels", "groups", "regions")


def named_files(config: RunConfig) -> list[str]:
    """Files and folders that a configuration names."""
    data = config.data.model_dump()
    names = [name for key in _FILE_KEYS for name in _flat(data.get(key)) if name not in config.data.packaged]
    names += [config.train.init, None if config.head is None else config.head.pretrained]
    return [str(Path(name).expanduser()) for name in names if name is not None]


def _missing_files(data: Any) -> list[str]:
    """Messages about files that the data section names and that do not exist."""
    if not isinstance(data, dict):
        return []
    section: Any = member_of(DataConfig, str(data.get("kind", KINDS["data"][1])))
    if section is None:
        return []
    problems = []
    if "path" in section.model_fields and not data.get("path"):
        data = data | {"path": None}
        problems.append(
            f"data.path: missing; allowed: {section.model_fields['path'].description} Set it with --set data.path=..."
        )
    keys = [key for key in _FILE_KEYS if key in section.model_fields]
    for key, value in ((key, data.get(key)) for key in keys):
        for name in _flat(value):
            if isinstance(name, str) and name not in section.packaged and not (name and _there(name)):
                hint = "; ${...} is taken literally, nothing is substituted" if "${" in name else ""
                shown = name if 0 < len(name) <= 1000 else _short(name)
                problems.append(f"data.{key}: {shown}: no such file or folder{hint}")
    return problems


def _there(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        # Too long for a name, a zero byte, or the home of an unknown user.
        return False


def _flat(value: Any) -> list[Any]:
    """A value, or the values in lists and mappings of them."""
    if isinstance(value, dict):
        value = list(value.values())
    return [item for part in value for item in _flat(part)] if isinstance(value, list) else [value]


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML."""
    return dump(config.model_dump(mode="json"))


class _Place(typing.NamedTuple):
    """Where a problem is, as a user writes it."""

    path: str
    annotation: Any  # type of the value that belongs there
    rules: Sequence[Any]  # its bounds
    unknown: bool  # the last part of the path is not a key


def _place(location: Sequence[Any]) -> _Place:
    """Follow pydantic's location through sections, kinds of sections and lists, down to a key."""
    keys: list[str] = []
    annotation: Any = RunConfig
    rules: Sequence[Any] = ()
    for part in location:
        section = section_of(annotation)
        if section is not None:
            keys.append(str(part))
            field = section.model_fields.get(str(part))
            if field is None:
                return _Place(".".join(keys), section, (), unknown=True)
            annotation, rules = field.annotation, field.metadata
        elif member_of(annotation, str(part)) is not None:
            # The kind of a section, which is not a part of the path.
            annotation = member_of(annotation, str(part))
        elif isinstance(part, int) and section_of(item_of(annotation)) is not None:
            keys.append(str(part))
            annotation = item_of(annotation)
        else:
            break
    return _Place(".".join(keys), annotation, rules, unknown=False)


def _keys(annotation: Any, kind: str) -> list[str]:
    section = section_of(annotation) or section_of(item_of(annotation)) or member_of(annotation, kind)
    if section is None:
        # A section that may be left out.
        inside = [section_of(part) for part in typing.get_args(annotation) if part is not type(None)]
        section = inside[0] if len(inside) == 1 else None
    return list(section.model_fields) if section else []


def _describe(problem: Any) -> str:
    """One line: path, what is wrong, what is allowed."""
    place = _place(problem["loc"])
    path = place.path
    if path in GONE:
        return f"{path}: a key of earlier versions that had no effect; remove it"
    if place.unknown and problem["type"] == "extra_forbidden":
        known = list(place.annotation.model_fields)
        close = difflib.get_close_matches(path.split(".")[-1], known, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{path}: unknown key; {hint}allowed: {', '.join(known)}"
    keys = _keys(place.annotation, KINDS[path][1] if path in KINDS else "")
    allowed = "" if keys else "allowed: " + " ".join([_type_text(place.annotation), *_bounds(place.rules)])
    if problem["type"] == "union_tag_invalid":
        key, context = KINDS[path][0], problem["ctx"]
        kinds = context["expected_tags"].replace("'", "").replace(", ", " | ")
        return f"{path}.{key}: there is no {context['tag']!r}; allowed: {kinds}"
    if problem["type"] == "missing" and keys:
        return f"{path}: this section is missing; its keys: {', '.join(keys)}"
    if problem["type"] == "missing":
        return f"{path}: missing; {allowed}; set it in the recipe or with --set {path}=..."
    if problem["type"] in ("model_type", "model_attributes_type"):
        return f"{path}: must be a section with keys, not a value; its keys: {', '.join(keys)}"
    message = problem["msg"].removeprefix("Value error, ")
    if not path:
        # Between sections; the message names the keys.
        return message
    if "; allowed: " in message:
        return f"{path}: {message}"
    given = problem.get("input")
    shown = f" (got {_short(given)})" if isinstance(given, str | int | float | bool | type(None)) else ""
    return f"{path}: {message}{shown}" + (f"; {allowed}" if allowed else "")


def _short(given: Any) -> str:
    text = given if isinstance(given, str) else str(given)
    return repr(given) if len(text) <= 200 else f"{text[:100]!r}... of {len(text):,} characters"


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
    if origin is dict:
        return f"mapping of names to {_type_text(arguments[1])}"
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "{" + ", ".join(annotation.model_fields) + "}"
    return {int: "whole number", float: "number", str: "text", bool: "true | false"}.get(annotation, str(annotation))
