"""Reads a FASTA file once, and finds its index, statistics and checksum.

The pass over plain or BGZF text validates every line and collects the rows of the standard `.fai` and `.gzi` indexes,
letter counts, runs of unknown bases and the SHA-256 of the file. It holds only a few chunks of text at a time, however
long the lines: a chromosome in a single line is legal.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.fasta_parser import CHUNK_BYTES, FastaParser, FastaRecord
from mamba_bio_audio.pipelines.unpacked import Unpacked

Kind = Literal["plain", "bgzf", "2bit"]
COUNT_NAMES = ("A", "C", "G", "T", "N", "other", "lower")


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
    parser = FastaParser(path)
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


def _assemble(
    path: str,
    key: tuple[int, int],
    sha256: str,
    kind: Kind,
    blocks: list[tuple[int, int]],
    records: list[FastaRecord],
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
