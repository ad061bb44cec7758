"""BED files: stretches of records, 0-based, end excluded."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from typing import NamedTuple

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.corpus import Stored
from mamba_bio_audio.pipelines.spans import Span
from mamba_bio_audio.pipelines.unpacked import read_packed


class NamedSpan(NamedTuple):
    """A line of a BED file; the name is empty where there is none."""

    span: Span
    name: str


def read_regions(path: str, stored: Stored, unit: str) -> list[NamedSpan]:
    """Spans of a BED file (record, start, end, and optionally a name), in its order, checked against the records.

    Args:
        path: the file, plain or gzip.
        stored: records that the spans are of.
        unit: unit of lengths, singular.

    Raises:
        InputError: a line is not of this form, its record is unknown, or it ends beyond the record; names the line.
    """
    found: list[NamedSpan] = []
    for number, line in numbered_lines(path, "cannot be read as BED ({error}); check the path and the file"):
        where = f"{path}: line {number:,}"
        fields = [field.strip() for field in (line.split("\t") if "\t" in line else line.split())]
        if fields[0] in ("track", "browser") and fields[0] not in stored.records:
            continue
        if len(fields) < 3:
            raise InputError(f"{where}: {len(fields)} columns; BED needs record, start and end")
        try:
            record = stored.resolve(fields[0])
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        start, end = (integer(text, what, where) for text, what in ((fields[1], "start"), (fields[2], "end")))
        check_span(start, end, record, stored.records[record], unit, where)
        found.append(NamedSpan(Span(record, start, end), fields[3] if len(fields) > 3 else ""))
    if not found:
        raise InputError(f"{path}: contains no regions; BED needs lines of record, start, end")
    return found


def check_span(start: int, end: int, record: str, length: int, unit: str, where: str) -> None:
    """Refuse a span that is empty or not inside its record.

    Raises:
        InputError: it is; the message begins with `where`.
    """
    if start < 0:
        raise InputError(f"{where}: start {start:,} is negative; starts count from 0")
    if start >= end:
        raise InputError(
            f"{where}: start {start:,} is not before end {end:,}; starts count from 0, the end is excluded"
        )
    if end > length:
        raise InputError(
            f"{where}: end {end:,} lies beyond {record!r}, which has {length:,} {unit}s. "
            "Are the intervals of another assembly?"
        )


def numbered_lines(path: str, problem: str) -> Iterable[tuple[int, str]]:
    """Lines of a text file, plain or gzip, with their numbers from 1, without blank lines and comments.

    Args:
        path: the file.
        problem: message after the file's name if it cannot be read, with `{error}`.
    """
    try:
        text = read_packed(path).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{path}: {problem.format(error=error)}") from error
    # Not str.splitlines, which also ends lines at characters that no editor shows as an end.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and not line.startswith("#"):
            yield number, line


def integer(text: str, name: str, where: str) -> int:
    """A whole number of a table."""
    if not re.fullmatch(r"[+-]?\d{1,18}", text, flags=re.ASCII):
        raise InputError(f"{where}: {name} is {text!r}, not a whole number")
    return int(text)
