"""Converts ordinary gzip to BGZF, whose blocks can be read at random positions (SAM specification, section 4.1)."""

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

# Small, because BgzfWriter copies everything it holds for every block of 65,536 bytes.
_CHUNK_BYTES = 1 << 19


def is_ordinary_gzip(path: Path) -> bool:
    """Whether a file is gzip but not BGZF, judging by its first bytes."""
    with path.open("rb") as file:
        head = file.read(18)
    return head[:2] == b"\x1f\x8b" and not (len(head) == 18 and head[3] & 4 and head[12:14] == b"BC")


def recompress(source: Path, target: Path, progress: Callable[[int, int | None], None] | None = None) -> None:
    """Write the text of a gzip file as BGZF, atomically.

    Args:
        source: gzip file of either kind; every checksum in it is verified.
        target: file to create, ending in .gz.
        progress: called with (compressed bytes read, compressed bytes in total).

    Raises:
        InputError: `source` is truncated or damaged, or unpacks to far more than a FASTA file holds.
    """
    with writing(target) as write, reading(source, progress) as read:
        while data := read(_CHUNK_BYTES):
            write(data)


@contextmanager
def reading(
    source: Path, progress: Callable[[int, int | None], None] | None = None
) -> Iterator[Callable[[int], bytes]]:
    """Yield a function that returns the next bytes of text of a plain or gzip file, verifying gzip checksums."""
    total = os.path.getsize(source)
    with source.open("rb") as raw:
        packed = raw.peek(2)[:2] == b"\x1f\x8b"
        text = Unpacking(raw, Unpacked(source, total)) if packed else raw

        def read(count: int) -> bytes:
            try:
                data = text.read(count)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise InputError(
                    f"{source}: damaged gzip ({error}): the file is truncated or damaged; download it again"
                ) from None
            if progress is not None:
                progress(raw.tell(), total)
            return data

        yield read


@contextmanager
def writing(target: Path) -> Iterator[Callable[[bytes], None]]:
    """Yield a function that appends text to a BGZF file, which appears once it is complete."""
    with atomic_path(target) as temporary, temporary.open("wb") as out:
        # A file object of our own, so that its end and errors are noticed.
        writer = BgzfWriter(fileobj=out)
        try:
            yield writer.write
            writer.flush()
        except RuntimeError:
            # Deflate made a block longer, which never happens to text of a few letters.
            raise InputError(f"{target}: the input is not text; give a FASTA file") from None
        # `close` would close `out` too; the empty block marks the end.
        out.write(_END)
        out.flush()
        os.fsync(out.fileno())


# The empty block that ends every BGZF file.
_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
