"""Unquoted words of a recipe or of `--set`, as what the type of their field says (torch-free).

Text stays as it was written (`no`, `010`, `1e5`, `${HOME}`, a `#` on the command line), numbers become numbers, and
`null` is null where the field can be null. Nothing is ever inserted: no environment variable, no other key.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from pydantic import BaseModel

from mamba_bio_audio.pipelines.domains import domains
from mamba_bio_audio.plain_yaml import Plain, parse

# Sections that come in kinds: the key that names the kind, and the kind where it is left out.
KINDS = {"data": ("kind", next(iter(domains()[0].kinds))), "model": ("backbone", "isotropic")}
# Words that a switch understands, as in YAML 1.1.
_SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def bracketed(word: Plain) -> bool:
    """Whether a value of the command line is written as a list or mapping."""
    text = word.strip()
    # On a line of its own `#` would begin a comment, which drops what was written.
    one_line = len(text.splitlines()) == 1
    return word.argument and one_line and (text[:1], text[-1:]) in (("[", "]"), ("{", "}"))


def typed(value: Any, annotation: Any) -> Any:
    """Unquoted words as what the field is: text, number, switch, null. What does not fit stays text, for validation.

    Args:
        value: as `parse` gives it, with `Plain` words, or already typed.
        annotation: type of the field, or a section.
    """
    members = _members(annotation)
    if isinstance(value, Plain):
        takes = {typing.get_origin(member) or member for member in members}
        if bracketed(value) and (takes & {list, tuple, dict} or any(map(section_of, members))):
            return typed(parse(value, f"--set ...={value}"), annotation)
        return _word(value, members)
    if isinstance(value, list):
        item = next((item_of(member) for member in members if item_of(member)), Any)
        return [typed(part, item) for part in value]
    if isinstance(value, dict):
        sections = [member for member in members if section_of(member)]
        if len(sections) > 1:
            key, default = next((pair for pair in KINDS.values() if pair[0] in sections[0].model_fields), ("", ""))
            sections = [found] if (found := member_of(annotation, str(value.get(key, default)))) else []
        if sections:
            fields = sections[0].model_fields
            return {key: typed(part, fields[key].annotation if key in fields else Any) for key, part in value.items()}
        entry = next((typing.get_args(member)[1] for member in members if typing.get_origin(member) is dict), Any)
        return {str(key): typed(part, entry) for key, part in value.items()}
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
    """One unquoted word as a value of one of these types."""
    # What may be anything, such as the options of a mixer, may be null.
    if word.null and (type(None) in members or Any in members or not word):
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


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The annotation itself where it is a section, that is a pydantic model."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def member_of(annotation: Any, kind: str) -> type[BaseModel] | None:
    """The section of this kind among those that an annotation allows."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    for member in typing.get_args(annotation):
        section = section_of(member)
        for key, _ in KINDS.values():
            if section and key in section.model_fields and section.model_fields[key].default == kind:
                return section
    return None


def item_of(annotation: Any) -> Any:
    """The type of the items, where the annotation is a list."""
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) in (list, tuple) else None
