"""Shows names from untrusted input safely: on a terminal, in a page, in a FASTA header, in a table.

The name of a record, file or class may contain anything: escape sequences that move the cursor or rewrite a line, marks
that reverse the direction of text (CVE-2021-42574), line breaks that split a header, bytes that are not UTF-8, and in a
table a formula that a spreadsheet would evaluate. Only `printable` and `cell` deal with this.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TextIO

# Control characters, invisible format and direction marks, lone surrogates, line and paragraph separators.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_FORMULA = ("=", "+", "-", "@")


def printable(text: object, *, lines: bool = False) -> str:
    r"""Text with invisible characters escaped as in Python: `\n`, `\x1b`, `\u202e`.

    Args:
        text: anything that `str` accepts. A byte of a path that is not UTF-8 (a surrogate in Python) becomes `\xff`.
        lines: keep line breaks and tabs, for messages and tables of several lines.
    """
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(
        character if character in kept or unicodedata.category(character) not in _HIDDEN else _written(character)
        for character in text
    )


def _written(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def is_utf8(text: str) -> bool:
    """Whether a text can be encoded as UTF-8; a path with other bytes cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def cell(text: object) -> str:
    """One cell of a TSV or CSV table for people: a single line, and never a formula.

    Text that starts with `=`, `+`, `-` or `@` is prefixed with `'`, which marks it as text for spreadsheets; numbers and
    a lone sign (a strand) stay as they are.
    """
    shown = printable(text)
    if not shown.startswith(_FORMULA) or len(shown) == 1:
        return shown
    try:
        float(shown)
    except ValueError:
        return f"'{shown}"
    return shown


def some(names: Sequence[str]) -> str:
    """The first twelve names, and how many more there are."""
    return ", ".join(names[:12]) + (f" and {len(names) - 12:,} more" if len(names) > 12 else "")


def apart(columns: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Columns of a table beside others; one that has the name of another is called `predicted_NAME`."""
    return [f"predicted_{name}" if name in taken else name for name in columns]


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Format (what, value) rows in two aligned columns; names in them are made `printable`."""
    shown = [(printable(what), printable(value)) for what, value in rows]
    width = max(len(what) for what, _ in shown)
    return "\n".join(f"{what:<{width}}  {value}" for what, value in shown)


def show(text: object, *, file: TextIO | None = None, end: str = "\n", flush: bool = False) -> None:
    """Print `printable` lines for people, to standard output or `file`."""
    print(printable(text, lines=True), file=file, end=end, flush=flush)
