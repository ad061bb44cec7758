"""Reads YAML as plain text: mappings, lists and words, nothing that is evaluated.

YAML guesses types (`no` is false, `010` is 8, `1e5` is text) and can do far more than a configuration should: tags name
Python objects, an alias repeated ten times at each of nine levels makes a billion entries, a key given twice silently
wins. Here every unquoted word stays the text that was written, as `Plain`; what it means is decided by the type of the
field that it is for (`run/words.py`). Tags, anchors, aliases and repeated keys are refused.
"""

from __future__ import annotations

from typing import Any

import yaml

from mamba_bio_audio.errors import InputError

_DEEPEST = 32
_LONGEST = 4 << 20
_NULLS = ("", "~", "null", "Null", "NULL")


class Plain(str):
    """An unquoted word.

    Attributes:
        null: the word means null if the field can be null.
        argument: the word is a whole command-line value, in which a list or mapping is still text.
    """

    null: bool
    argument: bool

    def __new__(cls, text: str, *, null: bool = False, argument: bool = False) -> Plain:
        """Make a word from its text and how it was written."""
        word = super().__new__(cls, text)
        word.null, word.argument = null, argument
        return word


def parse(text: str, source: str) -> Any:
    """Read one YAML document.

    Args:
        text: the document.
        source: its name in messages.

    Returns:
        dict, list, str (a quoted scalar), `Plain`, or None for an empty document.

    Raises:
        InputError: it is not YAML, or uses more than mappings, lists and words; names the line.
    """
    if len(text) > _LONGEST:
        raise InputError(
            f"{source}: {len(text):,} characters are too long for a configuration; the limit is {_LONGEST:,}"
        )
    root: list[Any] = []
    # Open containers: (container, key that waits for its value).
    stack: list[list[Any]] = []

    def put(value: Any, line: int) -> None:
        if not stack:
            if root:
                raise InputError(f"{source}, line {line}: a second document starts; put one configuration in a file")
            root.append(value)
            return
        container, key = stack[-1]
        if isinstance(container, list):
            container.append(value)
        elif key is None:
            if not isinstance(value, str):
                raise InputError(f"{source}, line {line}: a key must be a word, not a list or a mapping")
            if value in container:
                raise InputError(f"{source}, line {line}: duplicate key {str(value)!r} in this section; keep one")
            stack[-1][1] = str(value)
        else:
            container[key] = value
            stack[-1][1] = None

    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = event.start_mark.line + 1
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                raise InputError(
                    f"{source}, line {line}: anchors (&) and aliases (*) are not supported; write the value out, or quote "
                    "it"
                )
            if getattr(event, "tag", None) is not None:
                raise InputError(f"{source}, line {line}: tags ({event.tag}) are not supported; remove it, or quote it")
            if isinstance(event, yaml.ScalarEvent):
                plain = event.style is None
                put(Plain(event.value, null=event.value in _NULLS) if plain else event.value, line)
            elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
                if len(stack) >= _DEEPEST:
                    raise InputError(f"{source}, line {line}: nested deeper than {_DEEPEST} levels; flatten it")
                container: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
                put(container, line)
                stack.append([container, None])
            elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
                stack.pop()
    except yaml.YAMLError as error:
        raise InputError(f"{source} is not valid YAML: {error}") from None
    return root[0] if root else None


def dump(values: Any) -> str:
    """Write plain values (dict, list, str, numbers, None) as YAML that `parse` and any other reader restore unchanged."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1_000_000)
