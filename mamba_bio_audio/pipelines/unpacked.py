"""Limits how much a compressed file may unpack to.

A few megabytes of gzip can hold terabytes of one letter. Everything here that unpacks a file counts the unpacked bytes,
and stops with a message if there are more than any real data set has: more than a terabyte (the largest genomes have
0.16), or more than both 1 GB and 200 times the compressed size (DNA compresses four- to fivefold).
`$MAMBA_BIO_AUDIO_MAX_UNPACKED_GB`, or a command's `--max-unpacked-gb`, replaces both limits by one in gigabytes.
"""

from __future__ import annotations

import gzip
import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, cast

from mamba_bio_audio.errors import InputError

VARIABLE = "MAMBA_BIO_AUDIO_MAX_UNPACKED_GB"
GB = 10**9
MAX_BYTES, FREE_BYTES, MAX_RATIO = 1000 * GB, GB, 200
# Limit for a table or list that is held in memory as a whole.
MAX_TABLE_BYTES = 4 * GB
_PIECE_BYTES = 1 << 20


class Unpacked:
    """Checks how much one compressed file unpacks to.

    Args:
        path: path of the file, for messages.
        packed_bytes: its compressed size; None if unknown (standard input), in which case the ratio is not checked.
        most_bytes: a smaller limit than the module's, for contents held in memory.
    """

    def __init__(self, path: str | os.PathLike[str], packed_bytes: int | None, most_bytes: int | None = None) -> None:
        self.path = str(path)
        chosen = _chosen()
        ratio = math.inf if packed_bytes is None else max(FREE_BYTES, MAX_RATIO * packed_bytes)
        self.limit = chosen if chosen is not None else min(MAX_BYTES, most_bytes or MAX_BYTES, ratio)

    def check(self, total_bytes: int) -> None:
        """Refuse the file if it has unpacked to too many bytes.

        Raises:
            InputError: `total_bytes` exceeds the limit.
        """
        if total_bytes > self.limit:
            raise InputError(
                f"{self.path}: unpacks to more than {self.limit / GB:,.6g} GB, far more than such a file holds; check "
                f"where it comes from. If it is sound, allow more with --max-unpacked-gb of mba prepare, or with "
                f"{VARIABLE}=GIGABYTES"
            )


class Unpacking(gzip.GzipFile):
    """A gzip stream that unpacks to no more than is allowed.

    Args:
        packed: the compressed file; left open.
        unpacked: the limit.
    """

    def __init__(self, packed: IO[bytes], unpacked: Unpacked) -> None:
        super().__init__(fileobj=packed)
        self._unpacked = unpacked

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self._unpacked.check(self.tell())
        return data


@contextmanager
def open_packed(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a plain or gzip file, recognised by content, for reading bytes; for tables and lists.

    Raises:
        InputError: during reading, if it unpacks to more than a table may hold.
        OSError, EOFError, zlib.error: it cannot be read, or is damaged.
    """
    with open(path, "rb") as handle:
        if handle.peek(2)[:2] == b"\x1f\x8b":
            limit = Unpacked(path, os.path.getsize(path), MAX_TABLE_BYTES)
            with Unpacking(handle, limit) as stream:
                yield io.BufferedReader(cast(io.RawIOBase, stream), _PIECE_BYTES)
        else:
            yield handle


def read_packed(path: str | os.PathLike[str]) -> bytes:
    """Read a file, unpacked if it is gzip; for tables and lists that are held in memory.

    Raises:
        InputError: it unpacks to more than a table may hold.
        OSError, EOFError, zlib.error: it cannot be read, or is damaged.
    """
    with open_packed(path) as handle:
        return b"".join(iter(partial(handle.read, _PIECE_BYTES), b""))


@contextmanager
def unpacking_at_most(gigabytes: float | None) -> Iterator[None]:
    """Set the limit for a block of code and the processes started in it; None changes nothing."""
    before = os.environ.get(VARIABLE)
    if gigabytes is not None:
        os.environ[VARIABLE] = repr(gigabytes)
    try:
        yield
    finally:
        if before is not None:
            os.environ[VARIABLE] = before
        else:
            os.environ.pop(VARIABLE, None)


def _chosen() -> int | None:
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not 0 < gigabytes < math.inf:
        raise InputError(f"{VARIABLE}={text}: not a size; give a number of gigabytes above 0")
    return round(gigabytes * GB)
