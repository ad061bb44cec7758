"""The run configuration: recipes, overrides, validation (torch-free).

A recipe is a YAML file, by name from the package (`dna/tiny`) or by path. `extends: NAME` takes another recipe as the
base. `--set a.b=c` is merged last, then everything is validated once and every mistake is reported together.

An unquoted word means what the type of its field says: text stays as it was written (`no`, `010`, `1e5`, `${HOME}`, a
`#` on the command line), numbers become numbers, and `null` is null where the field can be null. Nothing is ever
inserted: no environment variable, no other key.
"""

from __future__ import annotations

import copy
import difflib
import re
import types
import typing
from collections.abc import Iterable, Sequence
from decimal import Decimal
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.pipelines.contract import DataSection
from mamba_bio_audio.pipelines.domains import domains
from mamba_bio_audio.plain_yaml import Plain, dump, parse
from mamba_bio_audio.training.config import TrainConfig

# Sections that come in kinds: the key that names the kind, and the kind where it is left out.
KINDS = {"data": ("kind", next(iter(domains()[0].kinds))), "model": ("backbone", "isotropic")}
if typing.TYPE_CHECKING:
    DataConfig = DataSection
else:
    DataConfig = typing.Annotated[
        typing.Union[tuple(kind for domain in domains() for kind in domain.kinds.values())],  # noqa: UP007
        Field(discriminator="kind"),
    ]
# Keys of earlier versions, which did nothing.
GONE = {"train.strategy"}
# What an unquoted word may be for a switch, as in YAML 1.1.
_SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
AnyModelConfig = typing.Annotated[ModelConfig | UNetConfig, Field(discriminator="backbone")]


class RunConfig(BaseModel):
    """Everything that defines a run: pretraining, or with a head classification."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = Field("", description="one line for `mba configs`")
    name: str | None = Field(None, description="run folder under runs/; null takes the recipe's name")
    seed: int = Field(0, ge=0, lt=2**63, description="initialisation, data order and augmentation")
    data: DataConfig
    model: AnyModelConfig
    head: HeadConfig | None = Field(None, description="of a classifier; only with data of labelled sequences")
    train: TrainConfig

    @field_validator("name")
    @classmethod
    def _a_folder_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"\w[\w.-]{0,99}", name):
            raise ValueError(
                "becomes a folder under runs/: a letter, digit or _, then letters, digits, _, - and dots, at most 100 in "
                "all; for a folder elsewhere give --out"
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
        labelled = self.data.labelled
        if labelled and self.head is None:
            raise ValueError(f"head: missing; data.kind {self.data.kind} is for classifiers: add a section head")
        if self.head is not None and not labelled:
            raise ValueError(f"head: is for labelled data, and data.kind {self.data.kind} has no labels; leave it out")
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
            if self.model.growing and getattr(self.train, key) != off:
                raise ValueError(
                    f"train.{key}: requires layers with a constant state, and the state of a transformer grows with what "
                    f"it has read; set train.{key}={'null' if off is None else off}, or use another mixer"
                )
        if not isinstance(self.model, UNetConfig):
            return self
        if self.model.pools and self.train.sequence_parallel > 1:
            raise ValueError(
                "train.sequence_parallel: passes the states of layers from device to device, and a U-Net's pools have "
                "states of their own; set train.sequence_parallel=1, its sequences stream with train.stream_chunk"
            )
        period = self.model.period
        # "auto" is chosen when the training begins, as such a multiple.
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


def merge_recipe(recipe: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Recipe, its bases and `a.b=c` overrides as one plain dict, not yet validated.

    Raises:
        InputError: no such recipe, or it is not plain YAML, or an override cannot be placed.
    """
    values = _based(recipe, ())
    _apply(values, overrides)
    return _typed(values, RunConfig)


def _based(recipe: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """A recipe over its bases, its words not yet typed."""
    if recipe in seen:
        raise InputError(f"recipe {recipe} extends itself through {' -> '.join(seen)}")
    values = parse(recipe_text(recipe), f"recipe {recipe}")
    if not isinstance(values, dict):
        raise InputError(f"recipe {recipe} must be a mapping of keys")
    base = _base(recipe, values.pop("extends", None))
    return values if base is None else _merged(_based(base, (*seen, recipe)), values)


def _base(recipe: str, extends: Any) -> str | None:
    """Name or path of a recipe's base, as its key `extends` gives it."""
    if extends is None or getattr(extends, "null", False):
        return None
    base = str(extends)
    return str(Path(recipe).parent / base) if base.endswith((".yaml", ".yml")) else base


def recipe_files(recipe: str | None) -> list[str]:
    """Files of a user that a recipe is read from: itself and its bases, without those of the package."""
    found = []
    while recipe is not None and recipe.endswith((".yaml", ".yml")):
        found.append(recipe)
        recipe = _base(recipe, parse(recipe_text(recipe), f"recipe {recipe}").get("extends"))
    return found


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Mappings are merged key by key; anything else in `over` replaces what `base` has."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def read_values(text: str, source: str) -> dict[str, Any]:
    """The YAML of a whole configuration as a plain dict, not yet validated; `source` is named in errors.

    Raises:
        InputError: it is not plain YAML, or no mapping.
    """
    values = parse(text, source)
    if not isinstance(values, dict):
        raise InputError(f"{source}: must be a mapping of keys; restore the file")
    return _typed(values, RunConfig)


def override(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of plain values with `a.b=c` overrides applied."""
    values = copy.deepcopy(values)
    _apply(values, overrides)
    return _typed(values, RunConfig)


def _apply(values: dict[str, Any], overrides: Sequence[str]) -> None:
    for text in overrides:
        key, separator, value = text.partition("=")
        keys = key.strip().split(".")
        if not separator or not all(keys):
            raise InputError(f"--set {text}: write it as key=value, for example --set train.lr=1e-3")
        place: Any = values
        for number, name in enumerate(keys):
            last = number == len(keys) - 1
            if isinstance(place, list):
                if not name.isdecimal() or int(name) >= len(place):
                    raise InputError(
                        f"--set {text}: {'.'.join(keys[:number])} is a list of {len(place)}, and {name} is none of its "
                        f"numbers from 0; set the whole list, [a, b]"
                    )
                at: Any = int(name)
                now = place[at]
            else:
                at, now = name, place.get(name)
            if isinstance(now, Plain) and _bracketed(now) and not last:
                now = place[at] = parse(now, f"--set {'.'.join(keys[: number + 1])}")
            if last:
                given = Plain(value, null=value == "null", argument=True)
                # A mapping over a mapping changes the keys that it names.
                whole = isinstance(now, dict) and value.strip().startswith("{")
                place[at] = _merged(now, _collection(given, f"--set {text}", dict)) if whole else given
            elif isinstance(now, dict | list):
                place = now
            elif now is None or getattr(now, "null", False):
                place[at] = place = {}
            else:
                raise InputError(
                    f"--set {text}: {'.'.join(keys[: number + 1])} is {str(now)!r}, not a section with keys"
                )


def _bracketed(word: Plain) -> bool:
    """Whether a value of the command line is written as a list or mapping."""
    text = word.strip()
    # On a line of its own `#` would begin a comment, which drops what was written.
    one_line = len(text.splitlines()) == 1
    return word.argument and one_line and (text[:1], text[-1:]) in (("[", "]"), ("{", "}"))


def _collection(word: Plain, source: str, kind: type) -> Any:
    value = parse(word, source)
    if not isinstance(value, kind):
        raise InputError(f"{source}: write a list as [a, b] and a mapping as {{a: 1, b: 2}}")
    return value


def _typed(value: Any, annotation: Any) -> Any:
    """Unquoted words as what the field is: text, number, switch, null. What does not fit stays text, for validation.

    Args:
        value: as `parse` gives it, with `Plain` words, or already typed.
        annotation: of the field, or a section.
    """
    members = _members(annotation)
    if isinstance(value, Plain):
        takes = {typing.get_origin(member) or member for member in members}
        if _bracketed(value) and (takes & {list, tuple, dict} or any(map(_section, members))):
            return _typed(parse(value, f"--set ...={value}"), annotation)
        return _word(value, members)
    if isinstance(value, list):
        item = next((_item(member) for member in members if _item(member)), Any)
        return [_typed(part, item) for part in value]
    if isinstance(value, dict):
        sections = [member for member in members if _section(member)]
        if len(sections) > 1:
            key, default = next((pair for pair in KINDS.values() if pair[0] in sections[0].model_fields), ("", ""))
            sections = [found] if (found := _member(annotation, str(value.get(key, default)))) else []
        if sections:
            fields = sections[0].model_fields
            return {key: _typed(part, fields[key].annotation if key in fields else Any) for key, part in value.items()}
        entry = next((typing.get_args(member)[1] for member in members if typing.get_origin(member) is dict), Any)
        return {str(key): _typed(part, entry) for key, part in value.items()}
    return value


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a type."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(annotation) for member in _members(part)]
    return [annotation]


def _word(word: Plain, members: Sequence[Any]) -> Any:
    """One unquoted word for a field of these alternatives."""
    if word.null and (type(None) in members or not word):
        return None
    names = {
        name for member in members if typing.get_origin(member) is typing.Literal for name in typing.get_args(member)
    }
    text = str(word)
    if text in names or str in members:
        return text
    if bool in members and text.lower() in _SWITCHES:
        return _SWITCHES[text.lower()]
    if len(text) <= 40 and (int in members or float in members):
        try:
            number = float(text)
        except ValueError:
            return text
        if float in members:
            return number
        if re.fullmatch(r"[+-]?\d+", text):
            return int(text)
        # 1e5 steps are 100,000.
        if abs(number) < 1e30 and number.is_integer() and Decimal(text) == int(Decimal(text)):
            return int(Decimal(text))
    return text


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
        stem = Path(recipe).stem if recipe.endswith((".yaml", ".yml")) else recipe
        merged["name"] = re.sub(r"[^\w.-]+", "-", stem).strip("-.")[:100] or "run"
    return validate(merged, recipe, check_files=True)


def validate(values: dict[str, Any], source: str, *, check_files: bool = False, saved: bool = False) -> RunConfig:
    """Validate a merged configuration.

    Args:
        values: plain.
        source: named in errors.
        check_files: whether files that are named and missing are mistakes.
        saved: it is of a run or an export, where keys that are gone since may stand.

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
    names.append(None if config.head is None else config.head.pretrained)
    return [str(Path(name).expanduser()) for name in names if name is not None]


def _missing_files(data: Any) -> list[str]:
    """What the data section names and is not there."""
    if not isinstance(data, dict):
        return []
    section: Any = _member(DataConfig, str(data.get("kind", KINDS["data"][1])))
    if section is None:
        return []
    problems = []
    path = data.get("path")
    if not path:
        data = data | {"path": None}
        problems.append(
            f"data.path: missing; allowed: {section.model_fields['path'].description} Set it with --set data.path=..."
        )
    keys = [key for key in _FILE_KEYS if key in section.model_fields]
    for key, value in ((key, data.get(key)) for key in keys):
        for name in _flat(value):
            if isinstance(name, str) and name not in section.packaged and not (name and _there(name)):
                hint = "; ${...} is taken as it is written, nothing is inserted" if "${" in name else ""
                shown = name if 0 < len(name) <= 1000 else _short(name)
                problems.append(f"data.{key}: {shown}: no such file or folder{hint}")
    return problems


def _there(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        # Too long for a name, a zero byte, or the home of nobody.
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
    annotation: Any  # of what belongs there
    rules: Sequence[Any]  # its bounds
    unknown: bool  # the last part of the path is no key


def _place(location: Sequence[Any]) -> _Place:
    """Follow pydantic's location through sections, kinds of sections and lists; below a value it says nothing new."""
    keys: list[str] = []
    annotation: Any = RunConfig
    rules: Sequence[Any] = ()
    for part in location:
        section = _section(annotation)
        if section is not None:
            keys.append(str(part))
            field = section.model_fields.get(str(part))
            if field is None:
                return _Place(".".join(keys), section, (), unknown=True)
            annotation, rules = field.annotation, field.metadata
        elif _member(annotation, str(part)) is not None:
            # The kind of a section, which is not a part of the path.
            annotation = _member(annotation, str(part))
        elif isinstance(part, int) and _section(_item(annotation)) is not None:
            keys.append(str(part))
            annotation = _item(annotation)
        else:
            break
    return _Place(".".join(keys), annotation, rules, unknown=False)


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _member(annotation: Any, kind: str) -> type[BaseModel] | None:
    """The section of this kind among those that an annotation allows."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    for member in typing.get_args(annotation):
        section = _section(member)
        for key, _ in KINDS.values():
            if section and key in section.model_fields and section.model_fields[key].default == kind:
                return section
    return None


def _item(annotation: Any) -> Any:
    """What a list is of."""
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) in (list, tuple) else None


def _keys(annotation: Any, kind: str) -> list[str]:
    section = _section(annotation) or _section(_item(annotation)) or _member(annotation, kind)
    return list(section.model_fields) if section else []


def _describe(problem: Any) -> str:
    """One line: path, what is wrong, what is allowed."""
    place = _place(problem["loc"])
    path = place.path
    if path in GONE:
        return f"{path}: a key of earlier versions, which did nothing; leave it out"
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
