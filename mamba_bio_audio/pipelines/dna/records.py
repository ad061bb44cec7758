"""Reads the records of a FASTA or FASTQ file in order, once from start to end.

For sequence that is read as a whole: prediction, conversion. Any gzip (BGZF too) and standard input work, which random
access (`genome.py`) cannot offer. Only one record is in memory at a time, and only once, however its lines are wrapped.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, cast

import numpy as np

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.contract import Item
from mamba_bio_audio.pipelines.corpus import Ids
from mamba_bio_audio.pipelines.dna.fasta_parser import BYTE_ORDER_MARK, MAX_HEADER_BYTES
from mamba_bio_audio.pipelines.dna.tokenizer import LETTERS, DnaTokenizer
from mamba_bio_audio.pipelines.unpacked import Unpacked, Unpacking

STDIN = "-"
LINE_BASES = 80
_PIECE_LINES = 1 << 14
_PIECE_BYTES = 1 << 20
_OTHER_FORMATS = ((b"BZh", "bzip2"), (b"PK\x03\x04", "zip"), (b"\xfd7zXZ", "xz"), (b"(\xb5/\xfd", "zstd"))


@dataclass(frozen=True)
class Record:
    """One sequence as written in a file.

    Attributes:
        header: the rest of the line after `>` or `@`, without line break.
        sequence: letters as written; may be empty.
    """

    header: str
    sequence: bytes

    @property
    def name(self) -> str:
        """First word of the header; empty if there is none."""
        return self.header.split(maxsplit=1)[0] if self.header.strip() else ""

    def foreign_letter(self) -> tuple[int, str] | None:
        """Position (from 1) and value of the first character that is not a sequence letter; None if there is none."""
        # In pieces, because checking a whole chromosome at once would take as much memory again.
        for begin in range(0, len(self.sequence), _PIECE_BYTES):
            piece = self.sequence[begin : begin + _PIECE_BYTES]
            if piece.translate(None, LETTERS):
                at = next(i for i, code in enumerate(piece) if code not in LETTERS)
                return begin + at + 1, chr(piece[at])
        return None

    def is_rna(self) -> bool:
        """Whether there is U and no T, in upper or lower case."""
        return any(u in self.sequence for u in (b"U", b"u")) and not any(t in self.sequence for t in (b"T", b"t"))


def read_records(path: str | os.PathLike[str]) -> Iterator[Record]:
    """Yield the records of a FASTA or FASTQ file, recognised by content, plain or gzip; `-` is standard input.

    Raises:
        InputError: it is not such a file, is truncated or damaged (names the number of the record), or unpacks to far
            more than such a file holds (see `pipelines/unpacked.py`).
    """
    name = "standard input" if str(path) == STDIN else str(path)
    done, kind = 0, "text"

    def counted(record: Record) -> Record:
        nonlocal done
        done += 1
        return record

    try:
        with _open(str(path), name) as handle:
            if handle.peek(3).startswith(BYTE_ORDER_MARK):
                handle.read(len(BYTE_ORDER_MARK))
            first = _first_character(handle)
            if first not in (b">", b"@"):
                what = "empty" if not first else f"begins with {first.decode('latin-1')!r}"
                raise InputError(f"{name}: {what}; give FASTA, which begins with `>`, or FASTQ, which begins with `@`")
            kind = "FASTA" if first == b">" else "FASTQ"
            yield from map(counted, _fasta(handle) if first == b">" else _fastq(handle))
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: after record {done:,}: cannot be read ({reason}); check the file") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}: after record {done:,}: not sound {kind} ({error}); correct the file") from error


def items(files: Iterable[str]) -> Iterator[Item]:
    """Yield the records of FASTA and FASTQ files as token ids; a record that is not DNA has the reason instead."""
    codec = DnaTokenizer()
    for file in files:
        for record in read_records(file):
            symbols: Ids | str
            if foreign := record.foreign_letter():
                symbols = f"{foreign[1]!r} at position {foreign[0]:,} is not a base"
            elif record.is_rna():
                symbols = "RNA (U): write T for U"
            else:
                symbols = codec.encode(record.sequence)
            item = Item(str(file), record.name, len(record.sequence), symbols)
            # During prediction a chromosome is held only once, as ids.
            del record, symbols
            yield item


def pairs(files: Iterable[str]) -> Iterator[tuple[Item, Item]]:
    """Yield the pairs of reads of FASTQ or FASTA files, which come two by two: forward reads, then those of their mates.

    Both reads have the name of their pair (`pair_name`).

    Raises:
        InputError: the number of files is odd, a file is its own mate, or has more reads than its mate's, or two reads have
            different names.
    """
    names = list(files)
    if len(names) % 2:
        raise InputError(f"--paired takes files two by two, R1 then R2, and got {len(names)}")
    for first, second in zip(names[::2], names[1::2], strict=True):
        if os.path.realpath(first) == os.path.realpath(second):
            raise InputError(f"{second}: given as the file of its own mates; --paired takes R1 and then R2")
        for number, (a, b) in enumerate(itertools.zip_longest(items([first]), items([second])), start=1):
            if a is None or b is None:
                longer, shorter = (first, second) if b is None else (second, first)
                raise InputError(
                    f"{longer}: has a read {number:,}, but {shorter} has none; give the two files of one sequencing run"
                )
            name = pair_name(a.name, b.name)
            if name is None:
                raise InputError(
                    f"{second}: read {number:,} is {b.name!r}, but in {first} it is {a.name!r}; both files need the same "
                    "order"
                )
            yield a._replace(name=name), b._replace(name=name)


def pair_name(first: str, second: str) -> str | None:
    """What two reads are called together: their name, without 1 and 2 at the end where they differ in that; None of others.

    Names that are the same stay as they are: the last number of SRR12.1 counts reads.
    """
    if first == second:
        return first
    ends = re.fullmatch(r"(.+)[/._]1", first), re.fullmatch(r"(.+)[/._]2", second)
    if ends[0] is None or ends[1] is None or ends[0][1] != ends[1][1]:
        return None
    return ends[0][1]


def write_record(handle: IO[bytes], record: Record) -> None:
    """Append a record as FASTA, 80 letters per line."""
    handle.write(b">" + record.header.encode() + b"\n")
    whole = len(record.sequence) // LINE_BASES * LINE_BASES
    for at in range(0, whole, LINE_BASES * _PIECE_LINES):
        handle.write(wrapped(record.sequence[at : min(at + LINE_BASES * _PIECE_LINES, whole)]))
    if whole < len(record.sequence):
        handle.write(record.sequence[whole:] + b"\n")


def wrapped(sequence: bytes) -> bytes:
    """Wrap letters, a multiple of 80, into lines of 80."""
    lines = np.frombuffer(sequence, dtype=np.uint8).reshape(-1, LINE_BASES)
    return np.concatenate([lines, np.full((len(lines), 1), 10, np.uint8)], axis=1).tobytes()


@contextmanager
def _open(path: str, name: str) -> Iterator[io.BufferedReader]:
    """Open the text of a file, unpacked; standard input is left open."""
    if path != STDIN and os.path.isdir(path):
        raise InputError(f"{path} is a folder; give FASTA or FASTQ files")
    raw = cast(io.BufferedReader, sys.stdin.buffer) if path == STDIN else open(path, "rb")  # noqa: SIM115
    try:
        head = raw.peek(4)[:4]
        for magic, kind in _OTHER_FORMATS:
            if head.startswith(magic):
                raise InputError(f"{name}: compressed with {kind}; unpack it, or compress it with gzip")
        if head[:2] == b"\x1f\x8b":
            size = None if path == STDIN else os.path.getsize(path)
            with Unpacking(raw, Unpacked(name, size)) as packed:
                yield io.BufferedReader(cast(io.RawIOBase, packed), 1 << 20)
        else:
            yield raw
    finally:
        if path != STDIN:
            raw.close()


def _first_character(handle: io.BufferedReader) -> bytes:
    """The first character that is not a blank; it stays unread."""
    while head := handle.peek(1)[:1]:
        if not head.isspace():
            return head
        handle.read(1)
    return b""


def _fasta(handle: io.BufferedReader) -> Iterator[Record]:
    header: str | None = None
    # In a list, so that nothing here keeps a record alive that is used elsewhere.
    letters = [io.BytesIO()]
    begins = True  # whether the piece starts a line; long lines come in several pieces
    while piece := handle.readline(_PIECE_BYTES):
        if begins and piece.startswith(b">"):
            if header is not None:
                yield Record(header, letters.pop().getvalue())
                letters.append(io.BytesIO())
            while (
                not piece.endswith(b"\n") and len(piece) <= MAX_HEADER_BYTES and (more := handle.readline(_PIECE_BYTES))
            ):
                piece += more
            if b"\r" in piece.strip():
                raise ValueError(
                    "its lines end with only a carriage return; convert it, for example with tr '\\r' '\\n'"
                )
            if len(piece) > MAX_HEADER_BYTES:
                raise ValueError(f"a header of more than {MAX_HEADER_BYTES:,} bytes; have its line breaks been lost?")
            header = piece[1:].strip().decode("utf-8", "replace")
        else:
            # Blanks inside a line are ignored; some programs write blocks of ten letters.
            letters[0].write(piece.translate(None, b" \t\r\n\v\f"))
        begins = piece.endswith(b"\n")
    if header is not None:
        yield Record(header, letters.pop().getvalue())


def _fastq(handle: io.BufferedReader) -> Iterator[Record]:
    # Brings all of Biopython's formats with it, which readers of FASTA do not wait for.
    from Bio.SeqIO.QualityIO import FastqGeneralIterator

    text = io.TextIOWrapper(handle, encoding="latin-1")
    try:
        for header, sequence, _ in FastqGeneralIterator(text):
            yield Record(header, sequence.encode("latin-1"))
    finally:
        text.detach()
