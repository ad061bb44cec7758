"""What libsndfile reads without a word but not as it is: streams one after another in a file, lengths that headers do not
give, files cut short.

Formats: RIFF (IBM & Microsoft 1991), RF64 (EBU Tech 3306), Ogg (RFC 3533), the Xing and LAME info frame of MP3.
"""

from __future__ import annotations

import mmap
import os
import re
from typing import NamedTuple

# Programs that write to a pipe leave 0 as a size, or the largest numbers of 31 or 32 bits, some rounded down.
_PIPE_SIZES = (range(0x7FFFF000, 0x80000001), range(0xFFFFF000, 0x100000000))
# The header of a frame, empty side information (9, 17 or 32 bytes, after a checksum), and a tag with a number of frames
# other than 0.
_INFO_FRAME = re.compile(
    rb"\xff[\xe2-\xff].{2,4}\x00{9,32}(?:Xing|Info)\x00\x00\x00[\x01\x03\x05\x07\x09\x0b\x0d\x0f](?!\x00{4})", re.S
)
_FIRST_PAGE = re.compile(rb"OggS\x00[\x02\x03\x06\x07]")
# From the lowest bit rate to the highest (8 to 320 kbit/s).
_MP3_RATES = 64
_ID3_MOST = 1 << 28
# Other files that some programs tag as if they were MP3.
_NO_MP3 = (b"fLaC", b"FORM", b"OggS", b"RIFF")


class Part(NamedTuple):
    """Bytes of a file that libsndfile reads completely when they are a file of their own.

    Attributes:
        start, stop: first byte, and the one after the last.
        head: replaces the first bytes.
        claimed: length that the part pretends to have while it is opened, so that libsndfile guesses more samples than
            there are instead of fewer.
    """

    start: int
    stop: int
    head: bytes = b""
    claimed: int | None = None


class PartFile:
    """A part as a file for soundfile; what lies beyond its end but not beyond its claim reads as zeros."""

    def __init__(self, path: str, part: Part) -> None:
        self._part, self._size, self._at = part, part.stop - part.start, 0
        self._claimed = part.claimed or self._size
        self._file = open(path, "rb")  # noqa: SIM115 (closed by `close`)

    def stop_claiming(self) -> None:
        """From now on it ends where it ends."""
        self._claimed = self._size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go somewhere, counted from the start, from here, or from the claimed end."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._claimed}[whence]
        return self._at

    def tell(self) -> int:
        """The position."""
        return self._at

    def read(self, size: int) -> bytes:
        """The next bytes."""
        size = max(0, min(size, self._claimed - self._at))
        self._file.seek(self._part.start + self._at)
        found = self._file.read(max(0, min(size, self._size - self._at)))
        replaced = self._part.head[self._at : self._at + len(found)]
        found = (replaced + found[len(replaced) :]).ljust(size, b"\0")
        self._at += size
        return found

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Streams(NamedTuple):
    """What a file holds.

    Attributes:
        parts: read one after another; none where libsndfile reads all of the file as it is.
        oddity: why it cannot be read as it is, where there are parts.
    """

    parts: list[Part]
    oddity: str | None


WHOLE = Streams([], None)


def streams_of(path: str) -> Streams:
    """What a file holds, from its bytes."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] in (b"RIFF", b"RF64"):
            return _wav(path)
        if size == 0 or not (
            head[:4] == b"OggS" or head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0")
        ):
            return WHOLE
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _ogg(data) if head[:4] == b"OggS" else _mp3(data)


def _wav(path: str) -> Streams:
    found = _Riff.of(path)
    if found.data_size == 0 and found.behind > 0:
        # As libsndfile understands a size that is not known.
        with open(path, "rb") as file:
            head = file.read(found.data_at)[:-4] + b"\xff" * 4
        size = os.path.getsize(path)
        return Streams([Part(0, size, head)], "its header claims no samples, but data follow")
    return WHOLE


def _ogg(data: mmap.mmap) -> Streams:
    """A chain: streams begin at first pages that do not follow another first page."""
    starts, end = [], 0
    for found in _FIRST_PAGE.finditer(data):
        at = found.start()
        if at != end or at == 0:
            starts.append(at)
        lacing = data[at + 27 : at + 27 + data[at + 26]] if at + 26 < len(data) else b""
        end = at + 27 + len(lacing) + sum(lacing)
    if len(starts) < 2:
        return WHOLE
    return Streams(
        [Part(low, high) for low, high in zip(starts, [*starts[1:], len(data)], strict=True)],
        f"it is a chain of {len(starts)} Ogg streams",
    )


def _mp3(data: mmap.mmap) -> Streams:
    """Parts begin at info frames, and where the bytes that one counts end before another frame."""
    first = _after_id3(data)
    if data[first : first + 4] in _NO_MP3:
        return WHOLE
    informed = [found.start() for found in _INFO_FRAME.finditer(data)]
    starts = sorted({first if not informed or informed[0] > first + 4096 else informed[0], *informed})
    for at in informed:
        tag = re.compile(b"Xing|Info").search(data, at)
        assert tag is not None
        if data[tag.end() + 3] & 2 and len(data) > tag.end() + 12:
            end = at + int.from_bytes(data[tag.end() + 8 : tag.end() + 12], "big")
            end += 128 if data[end : end + 3] == b"TAG" else 0
            if data[end : end + 1] == b"\xff" and data[end + 1 : end + 2] >= b"\xe2":
                starts = sorted({*starts, end})
    # A tag before the first frame belongs to it.
    edges = [0, *starts[1:], len(data)]
    parts = []
    for at, low, high in zip(starts, edges, edges[1:], strict=False):
        parts.append(Part(low, high, claimed=None if at in informed else (high - low) * _MP3_RATES))
    if len(parts) > 1:
        return Streams(parts, f"it is {len(parts)} MP3 streams one after another")
    return WHOLE if informed else Streams(parts, "it is an MP3 without an info frame, which would give its length")


def _after_id3(data: mmap.mmap) -> int:
    """Where audio begins, behind a tag at the start of the file."""
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    size = 0
    for byte in data[6:10]:
        size = size << 7 | byte & 127
    return 10 + min(size, _ID3_MOST)


class _Riff(NamedTuple):
    """Sizes in the header of a WAV file."""

    promised: int  # of the whole file, without 8 bytes; 0 if unknown
    data_at: int  # position of the samples; 0 if there are none
    data_size: int  # bytes of samples; 0 if unknown
    behind: int  # bytes that the file has behind what its header promises

    @classmethod
    def of(cls, path: str) -> _Riff:
        """Read the header."""
        size = os.path.getsize(path)
        data_at = data_size = long_data = 0
        with open(path, "rb") as file:
            head = file.read(12)
            promised = int.from_bytes(head[4:8], "little")
            at = 12
            while len(chunk := file.read(8)) == 8:
                length = int.from_bytes(chunk[4:], "little")
                if chunk[:4] == b"ds64":  # EBU Tech 3306: sizes that do not fit into 32 bits
                    sizes = file.read(16)
                    promised, long_data = int.from_bytes(sizes[:8], "little"), int.from_bytes(sizes[8:], "little")
                elif chunk[:4] == b"data":
                    data_at, data_size = at + 8, long_data or (0 if _of_a_pipe(length) else length)
                    break
                at += 8 + length + length % 2
                file.seek(at)
        if head[:4] == b"RIFF" and _of_a_pipe(promised):
            promised = 0
        behind = 0
        if data_at and chunk[4:] == b"\0\0\0\0":
            # One byte may be the padding of an odd last chunk.
            behind = size - max(data_at, promised + 9 if promised > data_at else 0)
        return cls(promised, data_at, data_size, behind)


def _of_a_pipe(size: int) -> bool:
    return size == 0 or any(size in sizes for sizes in _PIPE_SIZES)


def missing_bytes(path: str, log: str) -> int:
    """Bytes that a header claims but the file lacks; libsndfile silently reads such files.

    Args:
        path: the file.
        log: what libsndfile noted about its header.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        riff = file.read(4) in (b"RIFF", b"RF64")
    if not riff:
        # As AIFF, AU and W64.
        claims = re.findall(r": (\d+) \(should be (\d+)\)", log)
        return max([0, *(int(claim) - int(real) for claim, real in claims if not _of_a_pipe(int(claim)))])
    found = _Riff.of(path)
    if found.data_size and found.data_at + found.data_size > size:
        return found.data_at + found.data_size - size
    # One byte may be the padding of an odd last chunk.
    return max(0, found.promised + 8 - size - 1) if found.promised else 0


def ogg_ends(path: str) -> bool:
    """Whether the last page is complete and flagged as the end of the stream; Ogg does not state its length anywhere."""
    with open(path, "rb") as file:
        # A page has at most 65,307 bytes.
        file.seek(max(0, os.path.getsize(path) - 65_307))
        tail = file.read()
    page = tail.rfind(b"OggS")
    if not 0 <= page < len(tail) - 26:
        return False
    sizes = tail[page + 27 : page + 27 + tail[page + 26]]
    return bool(tail[page + 5] & 4) and page + 27 + tail[page + 26] + sum(sizes) <= len(tail)
