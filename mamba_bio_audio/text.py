"""Names that others chose, shown without harm: on a terminal, in a page, in a FASTA header, in a table.

A name of a record, a file or a class may hold anything: escape sequences that move the cursor or rewrite a line, marks
that turn the direction of writing (CVE-2021-42574), line ends that split a header, bytes that are no UTF-8, and in a
table a formula that a spreadsheet would compute. `printable` and `cell` are the only places that deal with it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TextIO

# Control characters, invisible marks of format and direction, lone surrogates, line and paragraph separators.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_FORMULA = ("=", "+", "-", "@")


def printable(text: object, *, lines: bool = False) -> str:
    r"""Text with everything invisible written out, as Python would: `\n`, `\x1b`, `\u202e`.

    Args:
        text: anything with a text form. A byte of a path that is no UTF-8 (a surrogate in Python) becomes `\xff`.
        lines: keep line ends and tabs, for messages and tables of several lines.
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
    """Whether a text can be written as UTF-8; a path with other bytes cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def cell(text: object) -> str:
    """One cell of a TSV or CSV table for people: on one line, and never a formula.

    Text that begins with `=`, `+`, `-` or `@` gets a `'` before it, which spreadsheets read as "this is text"; numbers
    and a lone sign (a strand) stay.
    """
    shown = printable(text)
    if not shown.startswith(_FORMULA) or len(shown) == 1:
        return shown
    try:
        float(shown)
    except ValueError:
        return f"'{shown}"
    return shown


def table(rows: Sequence[tuple[str, str]]) -> str:
    """(what, value) rows in two columns, whatever the names in them hold."""
    shown = [(printable(what), printable(value)) for what, value in rows]
    width = max(len(what) for what, _ in shown)
    return "\n".join(f"{what:<{width}}  {value}" for what, value in shown)


def show(text: object, *, file: TextIO | None = None, end: str = "\n", flush: bool = False) -> None:
    """Print for people: `printable` lines, on standard output or `file`."""
    print(printable(text, lines=True), file=file, end=end, flush=flush)
