"""Every key of a configuration with its type, default and help, read from the sections' own fields."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mamba_bio_audio.layers.contract import mixers
from mamba_bio_audio.models.config import of_family
from mamba_bio_audio.run.config import RunConfig
from mamba_bio_audio.run.words import KINDS, section_of

_SIGNS = {Ge: (">=", "ge"), Gt: (">", "gt"), Le: ("<=", "le"), Lt: ("<", "lt")}
_NAMES = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true | false",
    Path: "path",
    type(None): "null",
    Any: "anything",
}


class Key(NamedTuple):
    """One key: where it stands, what it takes, and what it does.

    Attributes:
        path: as in `--set PATH=VALUE`; [] stands for the number of an item.
        of: the kinds of its section that have it, comma-separated; empty where the section has no kinds.
        takes: type and bounds in words.
        default: as YAML writes it; "required" where there is none.
        help: one line.
    """

    path: str
    of: str
    takes: str
    default: str
    help: str


def all_keys() -> list[Key]:
    """Every key there is, in the order of the sections; one row where several kinds have the same."""
    merged: dict[Key, list[str]] = {}
    for key in _of(RunConfig, ""):
        merged.setdefault(key._replace(of=""), []).append(key.of)
    for name, (config, preset) in mixers().items():
        for key in () if of_family(name) else _of(config, "model.options."):
            own = key.path.removeprefix("model.options.")
            found = key._replace(default=_written(preset[own])) if own in preset else key
            merged.setdefault(found, []).append(name)
    return [key._replace(of=", ".join(dict.fromkeys(filter(None, kinds)))) for key, kinds in merged.items()]


def in_words(field: FieldInfo) -> tuple[str, str]:
    """What a field without sections takes, and its default."""
    return _bounded(_takes(field.annotation)[0], _bounds(field.metadata)), _default(field)


def _of(section: type[BaseModel], prefix: str, kind: str = "") -> Iterator[Key]:
    """The keys of a section of this kind, and of the sections in it."""
    for name, field in section.model_fields.items():
        path, (takes, sections, many) = f"{prefix}{name}", _takes(field.annotation)
        help_text = field.description or ""
        if not sections:
            if any(path == f"{outer}.{key}" for outer, (key, _) in KINDS.items()):
                continue
            yield Key(path, kind, *in_words(field), help_text)
            continue
        if many or takes:
            yield Key(path, kind, "list of sections" if many else f"section | {takes}", _default(field), help_text)
        chosen, usual = KINDS.get(path, ("", ""))
        if chosen:
            kinds = [str(inner.model_fields[chosen].default) for inner in sections]
            yield Key(f"{path}.{chosen}", kind, " | ".join(kinds), usual, f"kind of the section {path}")
        for inner in sections:
            own_kind = str(inner.model_fields[chosen].default) if chosen else kind
            yield from _of(inner, f"{path}{'[]' if many else ''}.", own_kind)


def _bounded(takes: str, bounds: str) -> str:
    """Bounds stand behind the number that they are of, not behind `null`."""
    words = takes.removesuffix(" | null")
    return f"{words} {bounds}{takes[len(words) :]}" if bounds else takes


def _takes(annotation: Any) -> tuple[str, list[type[BaseModel]], bool]:
    """A type in words, the sections among its alternatives, and whether it is a list of sections."""
    if section := section_of(annotation):
        return "", [section], False
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        words, sections, many = _takes(inside[0])
        return _bounded(words, _bounds(inside[1:])), sections, many
    if origin is typing.Literal:
        return " | ".join(str(value) for value in inside), [], False
    if origin in (typing.Union, types.UnionType):
        parts = [_takes(member) for member in inside]
        words = " | ".join(dict.fromkeys(filter(None, (words for words, _, _ in parts))))
        return words, [section for _, found, _ in parts for section in found], any(many for _, _, many in parts)
    if origin in (tuple, list):
        items = [part for part in inside if part is not Ellipsis]
        words, sections, _ = _takes(items[0])
        if sections:
            return "", sections, True
        if len(items) > 1:
            return f"[{', '.join(_takes(item)[0] for item in items)}]", [], False
        return f"list of {words}", [], False
    if origin is dict:
        return f"mapping to {_takes(inside[1])[0]}", [], False
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation))), [], False


def _bounds(metadata: Any) -> str:
    found = []
    for item in metadata:
        parts = item.metadata if isinstance(item, FieldInfo) else [item]
        for part in parts:
            for kind, (sign, attribute) in _SIGNS.items():
                if isinstance(part, kind):
                    found.append(f"{sign} {_number(getattr(part, attribute))}")
    return ", ".join(found)


def _number(value: Any) -> str:
    if isinstance(value, int) and value > 10**6 and value & (value - 1) == 0:
        return f"2^{value.bit_length() - 1}"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        value = field.default_factory()  # type: ignore[call-arg]
        return "as its keys" if isinstance(value, BaseModel) else _written(value)
    return "required" if field.default is PydanticUndefined else _written(field.default)


def _written(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if str(value) else '""'
