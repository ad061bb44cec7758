"""Ordinary gzip to BGZF: the same text in blocks that can be read at random positions (SAM specification, section 4.1)."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from Bio.bgzf import BgzfWriter

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import atomic_path
from mamba_bio_audio.pipelines.unpacked import Unpacked, Unpacking

# Small, because BgzfWriter copies all it holds for every block of 65,536 bytes.
_CHUNK_BYTES = 1 << 19


def is_ordinary_gzip(path: Path) -> bool:
    """Whether a file is gzip, but not BGZF; by its first bytes."""
    with path.open("rb") as file:
        head = file.read(18)
    return head[:2] == b"\x1f\x8b" and not (len(head) == 18 and head[3] & 4 and head[12:14] == b"BC")


def recompress(source: Path, target: Path, progress: Callable[[int, int | None], None] | None = None) -> None:
    """Write the text of a gzip file as BGZF, atomically.

    Args:
        source: gzip of either kind; every checksum in it is verified on the way.
        target: file to make, ending in .gz.
        progress: called with (compressed bytes read, compressed bytes in all).

    Raises:
        InputError: `source` is cut off or damaged, or unpacks to far more than a FASTA file holds.
    """
    with writing(target) as write, reading(source, progress) as read:
        while data := read(_CHUNK_BYTES):
            write(data)


@contextmanager
def reading(
    source: Path, progress: Callable[[int, int | None], None] | None = None
) -> Iterator[Callable[[int], bytes]]:
    """A function that gives the next so many bytes of text of a plain or gzip file; checks of gzip included."""
    total = os.path.getsize(source)
    with source.open("rb") as raw:
        packed = raw.peek(2)[:2] == b"\x1f\x8b"
        text = Unpacking(raw, Unpacked(source, total)) if packed else raw

        def read(count: int) -> bytes:
            try:
                data = text.read(count)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise InputError(
                    f"{source}: damaged gzip ({error}); the file is truncated or damaged, fetch it again"
                ) from None
            if progress is not None:
                progress(raw.tell(), total)
            return data

        yield read


@contextmanager
def writing(target: Path) -> Iterator[Callable[[bytes], None]]:
    """A function that appends text to a BGZF file, which appears when all of it is there."""
    with atomic_path(target) as temporary, temporary.open("wb") as out:
        # Into a file object of ours, whose end and errors are seen.
        writer = BgzfWriter(fileobj=out)
        try:
            yield writer.write
            writer.flush()
        except RuntimeError:
            # A block that deflate makes longer: nothing written in a few letters.
            raise InputError(f"{target}: there is no text in it; give a FASTA file") from None
        # `close` would close `out` too; the empty block marks the end.
        out.write(_END)
        out.flush()
        os.fsync(out.fileno())


# The empty block that ends every BGZF file.
_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
