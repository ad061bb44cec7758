"""Reads 2bit files: two bits per base, with runs of N and of lower case listed separately; any span can be read.

Layout (UCSC, "twoBit sequence archives"): a header of four 32-bit words (signature 0x1A412743, version, number of
records, 0); per record the length of its name in one byte, the name and the 32-bit (version 1: 64-bit) offset of its
data; the data: number of bases, N runs (their number, starts, sizes), lower-case runs likewise, a zero word, and the
bases, four per byte from the highest bits down, T 0, C 1, A 2, G 3. Either byte order.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.fasta_parser import CHUNK_BYTES
from mamba_bio_audio.pipelines.dna.fasta_scan import FastaIndex, file_key, join_runs
from mamba_bio_audio.pipelines.dna.tokenizer import A, C, G, T

SIGNATURES = {b"\x43\x27\x41\x1a": "<", b"\x1a\x41\x27\x43": ">"}
_REMEDY = "; the file is truncated or damaged, download it again"
# Token ids of the four bases in each byte.
_IDS = np.array([T, C, A, G], dtype=np.uint8)[np.arange(256)[:, None] >> np.array([6, 4, 2, 0]) & 3]


@dataclass(frozen=True)
class _Record:
    name: str
    length: int
    packed: int  # offset of the bases
    unknown: tuple[NDArray[np.int64], NDArray[np.int64]]  # starts and ends of the runs of N
    lower: tuple[NDArray[np.int64], NDArray[np.int64]]


class TwoBitFile:
    """An open 2bit file, read by the offsets in its index. Each process and thread needs one of its own.

    Args:
        path: path of the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._handle = open(path, "rb", buffering=0)  # noqa: SIM115

    def close(self) -> None:
        """Close the file."""
        self._handle.close()

    def ids(self, packed: int, start: int, end: int) -> NDArray[np.uint8]:
        """Token ids of bases [start, end) of the record whose bases start at `packed`; N reads as A, C, G or T."""
        first, last = start // 4, -(-end // 4)
        data = _read(self._handle, packed + first, last - first, self.path)
        return _IDS[np.frombuffer(data, dtype=np.uint8)].reshape(-1)[start - 4 * first : end - 4 * first]


def index_twobit(path: str, progress: Callable[[int, int | None], None] | None = None) -> FastaIndex:
    """Check a 2bit file; returns its index, letter counts and checksum, as `index_fasta` does for FASTA."""
    key = file_key(path)
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as handle:
            while data := handle.read(CHUNK_BYTES):
                digest.update(data)
            # The bases are read a second time to be counted.
            records = _directory(handle, path, key[0])
        file = TwoBitFile(path)
        try:
            counts = []
            for record in records:
                counts.append(_count(file, record, key[0], progress))
        finally:
            file.close()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check it and its permissions") from error
    if file_key(path) != key:
        raise InputError(f"{path}: changed while it was being read; wait until it is completely written and run again")
    unknown = join_runs([record.unknown for record in records])
    return FastaIndex(
        path=path,
        size_bytes=key[0],
        mtime_ns=key[1],
        sha256=digest.hexdigest(),
        kind="2bit",
        names=tuple(record.name for record in records),
        titles=("",) * len(records),
        fai=np.array([(record.length, record.packed, 0, 0) for record in records], dtype=np.int64),
        gzi=np.zeros((0, 2), dtype=np.int64),
        counts=np.array(counts, dtype=np.int64),
        run_offsets=unknown.offsets,
        run_starts=unknown.starts,
        run_ends=unknown.ends,
        lower=join_runs([record.lower for record in records]),
    )


def _directory(handle: BinaryIO, path: str, size_bytes: int) -> list[_Record]:
    """All records of the file, with names, sizes, runs and offsets checked."""
    handle.seek(0)
    order = SIGNATURES.get(_read(handle, 0, 4, path), "")
    version, count, reserved = _words(handle, 4, 3, order, path)
    if version not in (0, 1) or reserved:
        raise InputError(f"{path}: unknown 2bit version {version}; convert the file to FASTA")
    if not count:
        raise InputError(f"{path}: contains no record; give another file")
    if count * 6 > size_bytes:
        raise InputError(f"{path}: its header claims {count:,} records{_REMEDY}")
    at, wide = 16, 8 if version else 4
    places: dict[str, int] = {}
    for number in range(1, count + 1):
        (length,) = _read(handle, at, 1, path)
        raw = _read(handle, at + 1, length, path)
        (place,) = _words(handle, at + 1 + length, 1, order, path, wide)
        at += 1 + length + wide
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: record number {number:,}: its name is not UTF-8 text; rename it in plain ASCII"
            ) from error
        if not name or name.split() != [name]:
            raise InputError(f"{path}: record number {number:,}: {name!r} is not a name{_REMEDY}")
        if name in places:
            raise InputError(f"{path}: record {name!r} is in the file twice; rename or remove one of them")
        places[name] = place
    records, begin = [], at
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        # Records that share a stretch of the file could unpack to any size.
        if place < begin:
            raise InputError(f"{path}: record {name!r} overlaps its predecessor{_REMEDY}")
        record = _record(handle, path, name, place, order, size_bytes)
        begin = record.packed + -(-record.length // 4)
        records.append(record)
    by_name = {record.name: record for record in records}
    return [by_name[name] for name in places]


def _record(handle: BinaryIO, path: str, name: str, place: int, order: str, size_bytes: int) -> _Record:
    where = f"{path}: record {name!r}"
    (length,) = _words(handle, place, 1, order, where)
    if not length:
        raise InputError(f"{where} is empty; remove it, or download the file again")
    at = place + 4
    found = []
    for what in ("N", "lower case"):
        (blocks,) = _words(handle, at, 1, order, where)
        # Every run has at least one base.
        if blocks * 8 > size_bytes or blocks > length:
            raise InputError(f"{where}: claims {blocks:,} runs of {what}{_REMEDY}")
        values = np.frombuffer(_read(handle, at + 4, blocks * 8, where), dtype=f"{order}u4").astype(np.int64)
        starts, ends = values[:blocks], values[:blocks] + values[blocks:]
        if blocks and ((starts >= ends).any() or (starts[1:] < ends[:-1]).any() or ends[-1] > length):
            raise InputError(f"{where}: its runs of {what} overlap or leave the record{_REMEDY}")
        # Adjacent runs are merged.
        apart = np.ones(blocks + 1, dtype=bool)
        apart[1:-1] = starts[1:] > ends[:-1]
        found.append((starts[apart[:-1]], ends[apart[1:]]))
        at += 4 + blocks * 8
    packed = at + 4
    if packed + -(-length // 4) > size_bytes:
        raise InputError(f"{where}: its {length:,} bases go beyond the end of the file{_REMEDY}")
    return _Record(name, length, packed, found[0], found[1])


def _count(
    file: TwoBitFile, record: _Record, size_bytes: int, progress: Callable[[int, int | None], None] | None
) -> list[int]:
    """Numbers of A, C, G, T, N, other and lower-case letters in a record."""
    totals = np.zeros(256, dtype=np.int64)
    starts, ends = record.unknown
    for begin in range(0, record.length, CHUNK_BYTES):
        stop = min(begin + CHUNK_BYTES, record.length)
        ids = file.ids(record.packed, begin, stop)
        totals += np.bincount(ids, minlength=256)
        for run in range(int(np.searchsorted(ends, begin, side="right")), int(np.searchsorted(starts, stop))):
            piece = ids[max(int(starts[run]) - begin, 0) : int(ends[run]) - begin]
            totals -= np.bincount(piece, minlength=256)
        if progress is not None:
            progress(record.packed + stop // 4, size_bytes)
    unknown, lower = (int((e - s).sum()) for s, e in (record.unknown, record.lower))
    return [*(int(totals[base]) for base in (A, C, G, T)), unknown, 0, lower]


def _words(handle: BinaryIO, at: int, count: int, order: str, where: str, wide: int = 4) -> list[int]:
    data = _read(handle, at, count * wide, where)
    return [int(word) for word in np.frombuffer(data, dtype=f"{order}u{wide}")]


def _read(handle: BinaryIO, at: int, count: int, where: str) -> bytes:
    """Read exactly `count` bytes from `at`; no file reaches beyond 2^63."""
    if at >= 1 << 63:
        raise InputError(f"{where}: claims an offset of {at:,}{_REMEDY}")
    handle.seek(at, os.SEEK_SET)
    data = handle.read(count)
    while data and len(data) < count:
        more = handle.read(count - len(data))
        if not more:
            break
        data += more
    if len(data) != count:
        raise InputError(f"{where}: truncated at byte {at + len(data):,}{_REMEDY}")
    return data
