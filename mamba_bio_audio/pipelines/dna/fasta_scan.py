"""Reads a FASTA file once, and finds its index, statistics and checksum.

The pass over plain or BGZF text validates every line and collects the rows of the standard `.fai` and `.gzi` indexes,
letter counts, runs of unknown bases and the SHA-256 of the file. It holds only a few chunks of text at a time, however
long the lines: a chromosome in a single line is legal.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.unpacked import Unpacked

Kind = Literal["plain", "bgzf", "2bit"]
CHUNK_BYTES = 1 << 23
# No header is longer; a file of another kind may have no line breaks at all.
MAX_HEADER_BYTES = 1 << 20
BLANKS = b" \t\v\f"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
COUNT_NAMES = ("A", "C", "G", "T", "N", "other", "lower")

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


class Runs(NamedTuple):
    """Stretches of bases within records: those of record r are offsets[r]:offsets[r + 1]; sorted and not adjacent."""

    offsets: NDArray[np.int64]  # (R + 1,)
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


@dataclass(frozen=True)
class FastaIndex:
    """Result of one pass over a FASTA or 2bit file; R records, K BGZF blocks, M runs of unknown bases.

    Coordinates are 0-based half-open, in bases within the record.
    """

    path: str
    size_bytes: int
    mtime_ns: int
    sha256: str
    kind: Kind
    names: tuple[str, ...]
    # (R, 4): length, offset of the first base, bases per line, bytes per line; the last two are 0 for 2bit.
    fai: NDArray[np.int64]
    gzi: NDArray[np.int64]  # (K, 2): compressed and uncompressed start of every block; empty for plain text
    counts: NDArray[np.int64]  # (R, 7): COUNT_NAMES; `lower` counts letters of any kind written in lower case
    run_offsets: NDArray[np.int64]  # (R + 1,): runs of record r are run_offsets[r]:run_offsets[r + 1]
    run_starts: NDArray[np.int64]  # (M,)
    run_ends: NDArray[np.int64]  # (M,)
    titles: tuple[str, ...]  # text after the names in the headers; empty for 2bit
    lower: Runs | None = None  # lower-case letters; None if they were left on disk

    @property
    def compressed(self) -> bool:
        """Whether the file is BGZF."""
        return self.kind == "bgzf"


@dataclass
class _Record:
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


def index_fasta(path: str, progress: Callable[[int, int | None], None] | None = None) -> FastaIndex:
    """Read a FASTA file once, check it, and return its index and statistics; writes nothing.

    Args:
        path: plain or BGZF FASTA.
        progress: called with (bytes read, bytes in total).

    Raises:
        UnevenFastaError: the file must be repaired by `mba prepare genome` first.
        InputError: the file is not sound FASTA.
    """
    key = file_key(path)
    digest = hashlib.sha256()
    parser = _Parser(path)
    blocks: list[tuple[int, int]] = []
    try:
        with open(path, "rb") as handle:
            kind = sniff(path, handle.read(18))
            if kind == "gzip":
                raise InputError(
                    f"{path}: compressed with ordinary gzip, which cannot be read at random positions; run "
                    f"`mba prepare genome {os.path.basename(path)} --out DIR`, which recompresses it into DIR, or "
                    f"`gunzip -c {os.path.basename(path)} | bgzip > NEW.fa.gz` (bgzip comes with samtools/htslib), or "
                    "unpack it"
                )
            compressed = kind == "bgzf"
            handle.seek(0)
            pieces: list[bytes] = []
            waiting_bytes = text_bytes = 0
            unpacked = Unpacked(path, key[0])
            for start, data in _bgzf_blocks(handle, path, digest) if compressed else _plain_blocks(handle, digest):
                if data:
                    blocks.append((start, text_bytes))
                text_bytes += len(data)
                waiting_bytes += len(data)
                pieces.append(data)
                if compressed:
                    unpacked.check(text_bytes)
                if waiting_bytes >= CHUNK_BYTES:
                    parser.feed(b"".join(pieces))
                    pieces, waiting_bytes = [], 0
                    if progress is not None:
                        progress(handle.tell(), key[0])
            parser.feed(b"".join(pieces))
            if progress is not None:
                progress(key[0], key[0])
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from error
    records = parser.finish()
    if file_key(path) != key:
        raise InputError(f"{path}: changed while it was being read; wait until it is completely written and run again")
    return _assemble(path, key, digest.hexdigest(), kind, blocks if compressed else [], records)


def file_key(path: str) -> tuple[int, int]:
    """Size in bytes and time of last change in ns; a file whose key has changed is read again."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; check the path") from error
    return status.st_size, status.st_mtime_ns


def sniff(path: str, head: bytes) -> Kind | Literal["gzip"]:
    """Kind of a file, judging by its first 18 bytes; a misleading name is an error."""
    named_gz = path.lower().endswith((".gz", ".bgz"))
    if not head:
        raise InputError(f"{path}: the file is empty; give a FASTA file")
    if head[:2] == b"\x1f\x8b":
        if not (len(head) >= 18 and head[3] & 4 and head[12:14] == b"BC"):
            return "gzip"
        if not named_gz:
            raise InputError(f"{path}: the file is BGZF-compressed, but its name does not end in .gz; rename it")
        return "bgzf"
    for magic, kind in (
        (b"BZh", "bzip2"),
        (b"PK\x03\x04", "zip"),
        (b"\xfd7zXZ", "xz"),
        (b"(\xb5/\xfd", "zstd"),
    ):
        if head.startswith(magic):
            raise InputError(f"{path}: compressed with {kind}; unpack it, or recompress it with bgzip")
    if head[:4] in (b"\x43\x27\x41\x1a", b"\x1a\x41\x27\x43"):
        return "2bit"
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{path}: the text is UTF-16; save it as plain ASCII or UTF-8")
    if named_gz:
        raise InputError(
            f"{path}: the name ends in .gz, but the file is not compressed; rename it, or compress it with bgzip"
        )
    return "plain"


def _plain_blocks(handle: BinaryIO, digest: "hashlib._Hash") -> Iterator[tuple[int, bytes]]:
    while data := handle.read(CHUNK_BYTES):
        digest.update(data)
        yield 0, data


def _bgzf_blocks(handle: BinaryIO, path: str, digest: "hashlib._Hash") -> Iterator[tuple[int, bytes]]:
    """Yield each block's start in the file and decompressed bytes; the last block must be empty."""
    remedy = "the file is truncated or damaged, download it again, or recompress it with bgzip"
    start = 0
    data = b""
    while head := handle.read(18):
        where = f"{path}: BGZF block at byte {start:,}"
        if len(head) < 18 or head[:2] != b"\x1f\x8b" or head[12:14] != b"BC":
            raise InputError(f"{where}: {'truncated' if len(head) < 18 else 'not a BGZF block'}; {remedy}")
        extra_bytes, block_bytes = struct.unpack("<H4xH", head[10:18])
        body = handle.read(block_bytes + 1 - 18)
        if len(body) != block_bytes + 1 - 18:
            raise InputError(f"{where}: truncated; {remedy}")
        check, text_bytes = struct.unpack("<II", body[-8:])
        try:
            data = zlib.decompress(body[extra_bytes - 6 : -8], wbits=-15, bufsize=65536)
        except zlib.error as error:
            raise InputError(f"{where}: {error}; {remedy}") from error
        if len(data) != text_bytes or zlib.crc32(data) != check:
            raise InputError(f"{where}: checksum mismatch; {remedy}")
        digest.update(head)
        digest.update(body)
        yield start, data
        start += block_bytes + 1
    if data:
        raise InputError(f"{path}: the closing BGZF block is missing at byte {start:,}; {remedy}")


class _Parser:
    """Turns decompressed FASTA text, fed in pieces, into records, and checks every line."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.records: list[_Record] = []
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

    def finish(self) -> list[_Record]:
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

    def _owner(self, text: bytes, line_number: int) -> _Record:
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

    def _returns_inside(self, record: _Record, line_number: int) -> InputError:
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
        self.records.append(_Record(name, title, line_number, offset))

    def _close(self, record: _Record) -> None:
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
        self, record: _Record, bases: NDArray[np.int64], line_bytes: NDArray[np.int64], line_number: int
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

    def _count(self, record: _Record, sequence: bytes, line_number: int, line_bases: int) -> None:
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


def _assemble(
    path: str,
    key: tuple[int, int],
    sha256: str,
    kind: Kind,
    blocks: list[tuple[int, int]],
    records: list[_Record],
) -> FastaIndex:
    unknown = join_runs([_joined(record.run_starts, record.run_ends) for record in records])
    return FastaIndex(
        path=path,
        size_bytes=key[0],
        mtime_ns=key[1],
        sha256=sha256,
        kind=kind,
        names=tuple(record.name for record in records),
        titles=tuple(record.title for record in records),
        fai=np.array([(r.length, r.offset, r.line_bases, r.line_bytes) for r in records], dtype=np.int64),
        gzi=np.array(blocks, dtype=np.int64).reshape(-1, 2),
        counts=np.array([record.counts for record in records], dtype=np.int64),
        run_offsets=unknown.offsets,
        run_starts=unknown.starts,
        run_ends=unknown.ends,
        lower=join_runs([_joined(record.lower_starts, record.lower_ends) for record in records]),
    )


def _joined(
    starts: list[NDArray[np.int64]], ends: list[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Runs of one record; adjacent ones were a single run, cut by reading in pieces."""
    begin = np.concatenate([np.zeros(0, np.int64), *starts])
    end = np.concatenate([np.zeros(0, np.int64), *ends])
    joined = begin[1:] == end[:-1]
    some = np.ones(min(1, len(begin)), bool)
    return begin[np.concatenate([some, ~joined])], end[np.concatenate([~joined, some])]


def join_runs(per_record: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> Runs:
    """Join the runs of all records."""
    nothing = np.zeros(0, np.int64)
    return Runs(
        np.cumsum([0, *(len(starts) for starts, _ in per_record)], dtype=np.int64),
        np.concatenate([nothing, *(starts for starts, _ in per_record)]),
        np.concatenate([nothing, *(ends for _, ends in per_record)]),
    )
