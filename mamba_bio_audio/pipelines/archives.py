"""Reads archives from untrusted sources: within a size limit, and never writing outside the given folder."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any, cast

from mamba_bio_audio.errors import InputError

# Far above every published data set that is read here: Speech Commands unpacks to 4 GB, YouTubeMix to half a GB.
MAX_UNPACKED_BYTES = 64 * 10**9
# More than any header or clip has; tarfile reads whole headers into memory, whatever size they claim.
_MAX_READ_BYTES = 128 << 20
_PACKED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


class _Bounded:
    """The unpacked bytes of a tar archive; refuses to return very many at once."""

    def __init__(self, source: Path) -> None:
        with source.open("rb") as file:
            head = file.read(6)
        unpack = next((opened for magic, opened in _PACKED.items() if head.startswith(magic)), open)
        self.file: IO[bytes] = unpack(source, "rb")

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_READ_BYTES:
            raise InputError(f"a header or member claims {size:,} bytes; download the archive again")
        return self.file.read(size)

    def seek(self, position: int) -> int:
        return self.file.seek(position)

    def tell(self) -> int:
        return self.file.tell()

    def close(self) -> None:
        self.file.close()


def check_unpacked(source: Path, unpacked_bytes: int, limit_bytes: int) -> None:
    """Refuse an archive that unpacks to more than the limit.

    Raises:
        InputError: it unpacks to more.
    """
    if unpacked_bytes > limit_bytes:
        raise InputError(
            f"{source}: unpacks to {unpacked_bytes:,} bytes or more, but only {limit_bytes:,} are allowed; if the archive "
            "is genuine, raise --max-unpacked-gb"
        )


def tar_members(source: Path, limit_bytes: int) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield name, size in bytes and contents of every ordinary file in a tar archive, compressed or not, in its order.

    Raises:
        InputError: the archive is damaged, or unpacks to more than `limit_bytes`.
    """
    with (
        _readable(source, "tar"),
        closing(_Bounded(source)) as unpacked,
        tarfile.open(fileobj=cast(IO[bytes], unpacked), mode="r:") as archive,
    ):
        total = 0
        for member in archive:
            # A sparse member states a larger size than it has in the archive.
            total += member.size
            check_unpacked(source, max(total, member.offset_data + member.size), limit_bytes)
            stream = archive.extractfile(member) if member.isfile() else None
            if stream is not None:
                yield member.name.removeprefix("./"), member.size, stream
        # A damaged header ends the list of members early; reading to the end detects the wrong checksum.
        while archive.fileobj is not None and archive.fileobj.read(1 << 20):
            check_unpacked(source, archive.fileobj.tell(), limit_bytes)


def unpack_zip(source: Path, folder: Path, limit_bytes: int) -> None:
    """Unpack a zip archive into a folder; names that lead out of it are changed to stay inside.

    Raises:
        InputError: the archive is damaged or encrypted, or unpacks to more than `limit_bytes` or the free disk space.
    """
    with _readable(source, "zip"), zipfile.ZipFile(source) as archive:
        # No member yields more bytes than it states: reading stops there, and then the checksum is wrong.
        total = sum(member.file_size for member in archive.infolist())
        check_unpacked(source, total, limit_bytes)
        free = shutil.disk_usage(folder).free
        if total > free:
            raise InputError(
                f"{source}: unpacks to {total:,} bytes, but only {free:,} are free in {folder.parent}; free some space"
            )
        archive.extractall(folder)


@contextmanager
def _readable(source: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise error if str(error).startswith(str(source)) else InputError(f"{source}: {error}") from None
    except zipfile.BadZipFile as error:
        raise InputError(f"{source}: not a complete zip archive ({error}); download it again") from None
    # RuntimeError: encrypted; NotImplementedError: unknown compression.
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, RuntimeError, UnicodeError) as error:
        raise InputError(f"{source}: not a readable {kind} archive ({error}); download it again") from None
    except OSError as error:
        # Errors of the disk have a number; those of damaged bzip2 and gzip data have none.
        if error.errno is not None:
            raise
        raise InputError(f"{source}: not a readable {kind} archive ({error}); download it again") from None
