"""Parses FASTA text that comes in pieces, cut anywhere, and checks every line.

A record gets the layout of its lines, letter counts, and runs of unknown and of lower-case letters. Only a few pieces of
text are held at a time, however long the lines: a chromosome in a single line is legal.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError

CHUNK_BYTES = 1 << 23
# No header is longer; a file of another kind may have no line breaks at all.
MAX_HEADER_BYTES = 1 << 20
BLANKS = b" \t\v\f"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# Letters that stand only for amino acids; a file rich in them is a protein FASTA.
PROTEIN_ONLY = np.frombuffer(b"EFIJLOPQZefijlopqz", dtype=np.uint8)
_IS_ALLOWED = np.zeros(256, dtype=bool)
_IS_ALLOWED[[*range(65, 91), *range(97, 123), *b"-*."]] = True
_IS_UNKNOWN = np.ones(256, dtype=bool)
_IS_UNKNOWN[list(b"ACGTacgt")] = False
_IS_LOWER = np.zeros(256, dtype=bool)
_IS_LOWER[97:123] = True
_LINE_ENDS = b"\r\n"


class UnevenFastaError(InputError):
    """FASTA that cannot be read at random positions as it is, but that `mba prepare genome` can repair."""

    def __init__(self, path: str, problem: str) -> None:
        name = os.path.basename(path)
        self.problem = problem
        super().__init__(f"{path}: {problem}; `mba prepare genome {name} --out DIR` writes a repaired copy to DIR")


@dataclass
class FastaRecord:
    name: str
    title: str
    line_number: int
    offset: int
    length: int = 0
    line_bases: int = 0
    line_bytes: int = 0
    # Number of a line that is shorter than the others: no base may follow it.
    short_line: int | None = None
    counts: list[int] = field(default_factory=list)
    run_starts: list[NDArray[np.int64]] = field(default_factory=list)
    run_ends: list[NDArray[np.int64]] = field(default_factory=list)
    lower_starts: list[NDArray[np.int64]] = field(default_factory=list)
    lower_ends: list[NDArray[np.int64]] = field(default_factory=list)


def refuse_protein_and_rna(where: str, protein_letters: int, uracils: int, letters: int) -> None:
    """Refuse sequence that is not DNA, judging by its letters.

    Args:
        where: file, and class if there is one.
        protein_letters: number of letters that stand only for amino acids (`PROTEIN_ONLY`).
        uracils: number of U.
        letters: number of all letters.
    """
    if protein_letters > 0.02 * letters:
        raise InputError(f"{where}: its letters are those of a protein, not of DNA; give nucleotide sequence")
    if uracils > 0.1 * letters:
        raise InputError(f"{where}: its letters are those of RNA; write T for U, as `seqkit seq --rna2dna` does")


class FastaParser:
    """Turns decompressed FASTA text, fed in pieces, into records, and checks every line."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.records: list[FastaRecord] = []
        # The unfinished line at the end of the text read so far: its parts, or once it is long, its counts.
        self.pending: list[bytes] = []
        self.pending_bytes = 0
        self.open: _OpenLine | None = None
        self.seen: dict[str, int] = {}
        # Letters of the current record; amino-acid letters and U in the whole file.
        self.letters = np.zeros(256, dtype=np.int64)
        self.protein_letters = self.uracils = 0
        self.lines = 0
        self.offset = 0

    def feed(self, text: bytes) -> None:
        """Parse the next piece of text, which may be cut anywhere."""
        if self.open is not None:
            end = text.find(b"\n")
            self._part(self.open, text if end < 0 else text[:end])
            if end < 0:
                return
            self._end(self.open)
            text = text[end + 1 :]
        cut = text.rfind(b"\n") + 1
        if cut:
            self._lines(b"".join([*self.pending, text[:cut]]))
            self.pending, self.pending_bytes = [], 0
        if cut < len(text):
            self.pending.append(text[cut:])
            self.pending_bytes += len(text) - cut
        if self.pending_bytes > MAX_HEADER_BYTES:
            line = b"".join(self.pending)
            self.pending, self.pending_bytes = [], 0
            if line.startswith(b">"):
                self._header(line, 0, self.lines + 1)
            self.open = _OpenLine(self.lines + 1)
            self._part(self.open, line)

    def finish(self) -> list[FastaRecord]:
        last = b"".join(self.pending)
        if last:
            self._lines(last)
        if self.open is not None:
            self._end(self.open)
        if not self.records:
            raise InputError(f"{self.path}: contains no FASTA record; records begin with a line `>name`")
        self._close(self.records[-1])
        refuse_protein_and_rna(
            self.path, self.protein_letters, self.uracils, sum(record.length for record in self.records)
        )
        return self.records

    def _lines(self, text: bytes) -> None:
        """Parse whole lines; only the last line of the file may lack its newline."""
        codes = np.frombuffer(text, dtype=np.uint8)
        ends = np.flatnonzero(codes == 10)
        if not text.endswith(b"\n"):
            ends = np.append(ends, len(text))
        starts = np.concatenate([[0], ends[:-1] + 1])
        # `>` at the start of a line; the first character of a blank line is its own newline.
        headers = np.flatnonzero(codes[starts] == ord(">")).tolist()
        first = headers[0] if headers else len(starts)
        if first:
            self._sequence(text, codes, starts[:first], ends[:first], 0)
        for at, header in enumerate(headers):
            last = headers[at + 1] if at + 1 < len(headers) else len(starts)
            self._header(
                text[starts[header] : ends[header]],
                self.offset + int(ends[header]) + 1,
                self.lines + header + 1,
            )
            if last > header + 1:
                span = slice(header + 1, last)
                self._sequence(text, codes, starts[span], ends[span], header + 1)
        self.lines += len(starts)
        self.offset += len(text)

    def _part(self, line: "_OpenLine", text: bytes) -> None:
        """Count part of a sequence line without keeping it."""
        record = self._owner(text, line.number)
        line.size += len(text)
        if line.returned and text:
            raise self._returns_inside(record, line.number)
        line.returned |= text.endswith(b"\r")
        bases = text.removesuffix(b"\r")
        if b"\r" in bases:
            raise self._returns_inside(record, line.number)
        line.bases += len(bases)
        self._count(record, bases, line.number, line.bases)

    def _end(self, line: "_OpenLine") -> None:
        """Finish a long line."""
        record = self.records[-1]
        self._layout(record, np.array([line.bases]), np.array([line.size + 1]), line.number)
        self.lines += 1
        self.offset += line.size + 1
        self.open = None

    def _owner(self, text: bytes, line_number: int) -> FastaRecord:
        """The record to which letters belong."""
        if self.records:
            return self.records[-1]
        if text.startswith(BYTE_ORDER_MARK):
            raise UnevenFastaError(self.path, "begins with a byte-order mark, as some editors write it")
        if text.lstrip(BLANKS).startswith(b">"):
            raise UnevenFastaError(self.path, f"line {line_number:,}: blanks before `>`")
        raise InputError(
            f"{self.path}: line {line_number:,}: {text[:20]!r} precedes the first header, so this is not FASTA; records "
            "begin with a line `>name`"
        )

    def _returns_inside(self, record: FastaRecord, line_number: int) -> InputError:
        return UnevenFastaError(
            self.path, f"record {record.name!r}: carriage returns inside lines from line {line_number:,} on"
        )

    def _header(self, line: bytes, offset: int, line_number: int) -> None:
        if self.records:
            self._close(self.records[-1])
        where = f"{self.path}: line {line_number:,}"
        if b"\r" in line[:-1]:
            raise UnevenFastaError(
                self.path, f"line {line_number:,}: bare carriage returns (old Macintosh line breaks)"
            )
        name, title = header_name(line, where, self.seen)
        self.seen[name] = line_number
        self.records.append(FastaRecord(name, title, line_number, offset))

    def _close(self, record: FastaRecord) -> None:
        if not record.length:
            raise UnevenFastaError(self.path, f"record {record.name!r} at line {record.line_number:,} is empty")
        letters = self.letters
        counts = [int(letters[ord(letter)] + letters[ord(letter.lower())]) for letter in "ACGTN"]
        record.counts = [*counts, record.length - sum(counts), int(letters[ord("a") : ord("z") + 1].sum())]
        self.protein_letters += int(letters[PROTEIN_ONLY].sum())
        self.uracils += int(letters[ord("U")] + letters[ord("u")])
        letters[:] = 0

    def _sequence(
        self,
        text: bytes,
        codes: NDArray[np.uint8],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        first_line: int,
    ) -> None:
        """Parse the lines between two headers, or as many of them as have been read."""
        line_number = self.lines + first_line + 1
        bases = ends - starts
        bases -= (bases > 0) & (codes[ends - 1] == 13)
        line_bytes = ends - starts + 1
        filled = np.flatnonzero(bases)
        if not self.records and not filled.size:
            return
        first = int(filled[0]) if filled.size else 0
        record = self._owner(text[starts[first] : ends[first]], line_number + first)
        self._layout(record, bases, line_bytes, line_number)
        if filled.size:
            sequence = text[starts[0] : ends[-1]].translate(None, _LINE_ENDS)
            if len(sequence) != int(bases.sum()):
                raise self._returns_inside(record, line_number)
            self._count(record, sequence, line_number, record.line_bases)

    def _layout(
        self, record: FastaRecord, bases: NDArray[np.int64], line_bytes: NDArray[np.int64], line_number: int
    ) -> None:
        """Check that all lines of a record but the last have the same length.

        Args:
            record: record that they belong to.
            bases: number of letters in each line.
            line_bytes: length of each line with its line break.
            line_number: number of the first line.
        """
        filled = np.flatnonzero(bases)
        where = f"record {record.name!r}"
        ragged = "all lines of a record but the last must have the same length"
        follows = "line {:,} follows line {:,}, which is blank or has another length"
        if filled.size and not record.line_bases and filled[0] and record.short_line is None:
            record.short_line = line_number
        if filled.size and record.short_line is not None:
            at = line_number + int(filled[0])
            raise UnevenFastaError(self.path, f"{where}: {follows.format(at, record.short_line)}: {ragged}")
        if filled.size and not record.line_bases:
            record.line_bases = int(bases[0])
            # This counts a newline that a single line at the end of the file may lack, but no second line will need it.
            record.line_bytes = int(line_bytes[0])
        if not record.line_bases:
            record.short_line = line_number if record.short_line is None else record.short_line
            return
        odd = np.flatnonzero((bases != record.line_bases) | (line_bytes != record.line_bytes))
        if odd.size:
            first_odd = int(odd[0])
            record.short_line = record.short_line or line_number + first_odd
            later = filled[filled > first_odd]
            if later.size:
                at = line_number + int(later[0])
                raise UnevenFastaError(self.path, f"{where}: {follows.format(at, record.short_line)}: {ragged}")
            if bases[first_odd] > record.line_bases:
                longer = f"line {record.short_line:,} is longer than the lines before it"
                raise UnevenFastaError(self.path, f"{where}: {longer}: {ragged}")

    def _count(self, record: FastaRecord, sequence: bytes, line_number: int, line_bases: int) -> None:
        """Count letters that start in line `line_number`, in lines of `line_bases` letters."""
        for begin in range(0, len(sequence), CHUNK_BYTES):
            codes = np.frombuffer(sequence, dtype=np.uint8)[begin : begin + CHUNK_BYTES]
            letters = np.bincount(codes, minlength=256)
            wrong = np.flatnonzero((letters > 0) & ~_IS_ALLOWED)
            if wrong.size:
                at = int(np.flatnonzero(~_IS_ALLOWED[codes])[0])
                problem = (
                    f"record {record.name!r}, position {record.length + at + 1:,} (counted from 1): {chr(codes[at])!r} is "
                    f"not a sequence letter (near line {line_number + (begin + at) // line_bases:,})"
                )
                if codes[at] in BLANKS:
                    raise UnevenFastaError(self.path, problem)
                raise InputError(f"{self.path}: {problem}; remove it")
            self.letters += letters
            for table, starts, ends in (
                (_IS_UNKNOWN, record.run_starts, record.run_ends),
                (_IS_LOWER, record.lower_starts, record.lower_ends),
            ):
                if letters[table].any():
                    mask = np.zeros(len(codes) + 2, dtype=np.int8)
                    mask[1:-1] = table[codes]
                    edges = np.flatnonzero(np.diff(mask)) + record.length
                    starts.append(edges[0::2])
                    ends.append(edges[1::2])
            record.length += len(codes)


@dataclass
class _OpenLine:
    """A long line of sequence, as far as it has been read."""

    number: int
    size: int = 0  # bytes, without the line break
    bases: int = 0
    returned: bool = False  # whether the part read so far ends with a carriage return


def header_name(line: bytes, where: str, seen: Mapping[str, int]) -> tuple[str, str]:
    """Name and title of a record from its header line.

    Args:
        line: header line including its `>`.
        where: file and line, for messages.
        seen: names that came before, with their line numbers.

    Raises:
        InputError: the name is missing or a duplicate, or the header is not UTF-8 or too long.
    """
    if len(line) > MAX_HEADER_BYTES:
        raise InputError(f"{where}: a header of more than {MAX_HEADER_BYTES:,} bytes; restore lost line breaks")
    try:
        words = line[1:].decode("utf-8").split(maxsplit=1)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: the header is not UTF-8 text; rename the record in plain ASCII") from error
    if not words:
        raise InputError(f"{where}: a header `>` without a name; give the record a name")
    name = words[0]
    if name in seen:
        raise InputError(
            f"{where}: duplicate record {name!r}, first seen at line {seen[name]:,}; names must be unique in a file, so "
            "rename or remove one of them"
        )
    return name, words[1].strip() if len(words) > 1 else ""
