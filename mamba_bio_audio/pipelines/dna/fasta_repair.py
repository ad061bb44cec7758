"""Repairs untidy FASTA so that it can be read at random positions, and lists what was changed.

Only the layout is repaired: lines of uneven length, blank lines, blanks in lines and before `>`, carriage returns of any
kind, a byte-order mark, and records without a letter (which are left out). Names, letters and their case are kept.
Faults in them (duplicate names, digits in the sequence) are errors, reported with the line in the given file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.bgzf import reading, writing
from mamba_bio_audio.pipelines.dna.fasta_parser import BLANKS, BYTE_ORDER_MARK, MAX_HEADER_BYTES, header_name
from mamba_bio_audio.pipelines.dna.records import LINE_BASES, wrapped
from mamba_bio_audio.pipelines.dna.tokenizer import LETTERS

MARK = "byte-order mark"
RETURN = "carriage return"
BLANK = "blanks"
BLANK_LINE = "blank line"
UNEVEN = "line of another length"
EMPTY = "record without sequence, left out"
# Most changes listed of each kind; all are counted.
LISTED = 20
_PIECE_BYTES = 1 << 20
_FLUSH_LINES = 1 << 13
# A line, or the part of it read so far, and its line break: LF, CRLF or CR.
_LINE = re.compile(rb"([^\r\n]*)(\r\n|\r|\n|\Z)")


class Repair(NamedTuple):
    """One change, and where it is in the given file.

    Attributes:
        record: name of the record; empty before the first.
        line: line of the file, counted from 1.
        what: kind of change.
    """

    record: str
    line: int
    what: str


class Repairs(NamedTuple):
    """All changes to a file.

    Attributes:
        counts: number of changes of each kind.
        first: the first `LISTED` changes of each kind, in file order.
    """

    counts: dict[str, int]
    first: list[Repair]

    def to_dict(self) -> dict[str, Any]:
        """The changes as plain values for a manifest."""
        return {"counts": self.counts, "first": [repair._asdict() for repair in self.first]}


def repair(source: Path, target: Path, progress: Callable[[int, int | None], None] | None = None) -> Repairs:
    """Rewrite the records of a FASTA file, plain or gzip, as BGZF in lines of 80 letters, atomically.

    Args:
        source: the file, which is only read. Lines of any length are read a piece at a time.
        target: file to create, ending in .gz.
        progress: called with (bytes read, bytes in total).

    Raises:
        InputError: there are faults beyond the layout; names the line in `source`.
    """
    with reading(source, progress) as read, writing(target) as write:
        repairer = _Repairer(str(source), write)
        for text, end in _lines(read):
            repairer.feed(text, end)
        return repairer.finish()


def _lines(read: Callable[[int], bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield parts of lines, each with its line break, which is empty if the line continues."""
    while piece := read(_PIECE_BYTES):
        if piece.endswith(b"\r"):
            piece += read(1)
        for match in _LINE.finditer(piece):
            if match[0]:
                yield match[1], match[2]


class _Repairer:
    """Takes parts of lines, writes sound records, and notes the changes."""

    def __init__(self, path: str, write: Callable[[bytes], None]) -> None:
        self.path, self.write = path, write
        self.counts: Counter[str] = Counter()
        self.first: list[Repair] = []
        self.seen: dict[str, int] = {}
        self.line = 1
        # The current line: its header text, or its number of letters; blanks are noted once per line.
        self.begins = True
        self.header: bytes | None = None
        self.letters = 0
        self.blank = False
        # The current record.
        self.name = ""
        self.title: bytes | None = None  # header that has not been written yet
        self.title_line = 0
        self.position = 0
        self.width = 0
        self.odd = 0  # number of a line that is shorter than the first, which is a fault once letters follow
        self.waiting = bytearray()
        self.in_record = False

    def feed(self, text: bytes, end: bytes) -> None:
        if self.begins:
            if self.line == 1 and text.startswith(BYTE_ORDER_MARK):
                text = text.removeprefix(BYTE_ORDER_MARK)
                self._note(MARK)
            stripped = text.lstrip(BLANKS)
            self.blank |= stripped != text
            if not stripped and not end:
                return
            if stripped.startswith(b">"):
                self._close()
                self.header = b""
                text = stripped
            self.begins = False
        if self.header is not None:
            self.header += text
            if len(self.header) > MAX_HEADER_BYTES:
                header_name(self.header, f"{self.path}: line {self.line:,}", self.seen)
        else:
            self._sequence(text)
        if end:
            self._end(end)

    def finish(self) -> Repairs:
        if not self.begins:
            self._end(b"")
        self._close()
        if not self.seen:
            raise InputError(f"{self.path}: contains no record with sequence; give another file")
        return Repairs(dict(self.counts), sorted(self.first, key=lambda repair: repair.line))

    def _end(self, end: bytes) -> None:
        """Finish a line."""
        if self.header is not None:
            self._begin(self.header)
        elif not self.letters:
            self._note(BLANK_LINE)
        else:
            if self.odd:
                self._note(UNEVEN, self.odd)
                self.odd = 0
            self.width = self.width or self.letters
            if self.letters > self.width:
                self._note(UNEVEN)
            elif self.letters < self.width:
                self.odd = self.line
        if self.blank and (self.header is not None or self.letters):
            self._note(BLANK)
        if b"\r" in end:
            self._note(RETURN)
        self.header, self.letters, self.blank, self.begins = None, 0, False, True
        self.line += 1

    def _begin(self, header: bytes) -> None:
        self.title, self.title_line, self.in_record = header.rstrip(), self.line, True
        words = header[1:].split(maxsplit=1)
        self.name = words[0].decode("utf-8", "replace") if words else ""
        self.position = self.width = self.odd = 0

    def _sequence(self, text: bytes) -> None:
        letters = text.translate(None, BLANKS)
        self.blank |= len(letters) != len(text)
        if not letters:
            return
        if not self.in_record:
            raise InputError(
                f"{self.path}: line {self.line:,}: {letters[:20]!r} precedes the first header, so this is not FASTA; "
                "records begin with a line `>name`"
            )
        if letters.translate(None, LETTERS):
            at = next(i for i, code in enumerate(letters) if code not in LETTERS)
            raise InputError(
                f"{self.path}: record {self.name!r}, position {self.position + at + 1:,} (counted from 1): "
                f"{chr(letters[at])!r} is not a sequence letter (line {self.line:,}); remove it"
            )
        if self.title is not None:
            name, _ = header_name(self.title, f"{self.path}: line {self.title_line:,}", self.seen)
            self.seen[name] = self.title_line
            self.write(self.title + b"\n")
            self.title = None
        self.letters += len(letters)
        self.position += len(letters)
        self.waiting += letters
        if len(self.waiting) >= LINE_BASES * _FLUSH_LINES:
            self._flush()

    def _flush(self) -> None:
        whole = len(self.waiting) // LINE_BASES * LINE_BASES
        if whole:
            self.write(wrapped(bytes(self.waiting[:whole])))
            del self.waiting[:whole]

    def _close(self) -> None:
        """Finish a record."""
        if self.title is not None:
            self._note(EMPTY, self.title_line)
            self.title = None
        self._flush()
        if self.waiting:
            self.write(bytes(self.waiting) + b"\n")
            self.waiting.clear()

    def _note(self, what: str, line: int | None = None) -> None:
        self.counts[what] += 1
        if self.counts[what] <= LISTED:
            self.first.append(Repair(self.name, line or self.line, what))
