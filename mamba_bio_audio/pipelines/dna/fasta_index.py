"""Indexes of FASTA and 2bit files, kept on disk.

What `fasta_scan` finds is kept as `NAME.fai`, `NAME.gzi` and `NAME.mba.npz` beside the FASTA where that folder
may be written to, else in the user's cache (`$MAMBA_BIO_AUDIO_CACHE`, `$XDG_CACHE_HOME/mamba_bio_audio` or
`~/.cache/mamba_bio_audio`; setting the first also keeps indexes out of the data folders). Files appear whole
or not at all, and a changed FASTA is read anew.
"""

import contextlib
import hashlib
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from filelock import FileLock

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import atomic_path, write_text
from mamba_bio_audio.pipelines.dna.fasta_scan import FastaIndex, Runs, file_key, index_fasta
from mamba_bio_audio.pipelines.dna.twobit import SIGNATURES, index_twobit

FORMAT_VERSION = 2
CACHE_VARIABLE = "MAMBA_BIO_AUDIO_CACHE"


@dataclass(frozen=True)
class IndexFiles:
    """An index with the places of its files on disk; a 2bit file has no `.fai`."""

    index: FastaIndex
    store_path: str
    fai_path: str
    gzi_path: str | None


def load_index(path: str | os.PathLike[str], *, index_beside: bool = True) -> IndexFiles:
    """The index of a FASTA file, from disk when it is there and still true, else built and stored.

    Concurrent processes wait for the first and then read what it wrote.

    Args:
        path: plain or BGZF FASTA file.
        index_beside: may index files be put beside the FASTA? Never done in folders without write permission.
    """
    path = os.path.abspath(path)
    key = file_key(path)
    folders = _index_folders(path, index_beside)
    # One that is there already is read from beside the FASTA in any case.
    readable = [*folders, Path(os.path.dirname(path))]
    for folder in readable:
        if (found := _read(path, key, folder)) is not None:
            return found
    with _lock(path):
        for folder in readable:
            if (found := _read(path, key, folder)) is not None:
                return found
        index = build_index(path)
        failures = []
        for folder in folders:
            try:
                return _write(index, folder)
            except OSError as error:
                failures.append(f"{folder}: {error.strerror}")
    raise InputError(
        f"{path}: no place to keep its index ({'; '.join(failures)}). Set {CACHE_VARIABLE} to a folder that "
        "can be written to."
    )


def build_index(path: str) -> FastaIndex:
    """Read a FASTA or 2bit file once, check it, and return its index and statistics; nothing is written."""
    file_key(path)
    try:
        with open(path, "rb") as handle:
            head = handle.read(18)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}). Check it and its permissions."
        ) from error
    return index_twobit(path) if head[:4] in SIGNATURES else index_fasta(path)


def lower_runs(files: IndexFiles) -> Runs:
    """Stretches of lower-case letters of every record, read from disk."""
    try:
        with open(files.store_path, "rb") as handle, np.load(handle, allow_pickle=False) as data:
            return Runs(data["lower_offsets"], data["lower_starts"], data["lower_ends"])
    except (OSError, ValueError, KeyError, EOFError, zlib.error, struct.error, zipfile.BadZipFile) as error:
        raise InputError(f"{files.store_path}: the index is gone or damaged ({error}). Run again.") from error


def cache_folder() -> Path:
    """Folder for indexes and other files that can be made again."""
    if configured := os.environ.get(CACHE_VARIABLE):
        return Path(configured).expanduser().absolute()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base).expanduser().absolute() / "mamba_bio_audio"
    return Path("~/.cache/mamba_bio_audio").expanduser().absolute()


def _index_folders(path: str, index_beside: bool) -> list[Path]:
    """Where the index of a file may lie, the preferred place first."""
    folder, name = os.path.split(path)
    digest = hashlib.sha256(os.path.realpath(path).encode()).hexdigest()[:16]
    places = [base / "genomes" / f"{digest}-{name}" for base in (cache_folder(), _temporary_cache())]
    # The permission bits count for root as well, so that a data folder marked read-only stays untouched.
    writable = os.access(folder, os.W_OK) and os.stat(folder).st_mode & 0o222
    if index_beside and writable and not os.environ.get(CACHE_VARIABLE):
        return [Path(folder), *places]
    return places


def _temporary_cache() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir()) / f"mamba_bio_audio-{user}"


@contextlib.contextmanager
def _lock(path: str) -> Iterator[None]:
    """Let one process at a time build the index of a file; without a place for the lock file, go ahead."""
    name = hashlib.sha256(os.path.realpath(path).encode()).hexdigest()[:16] + ".lock"
    for base in (cache_folder(), _temporary_cache()):
        lock = FileLock(base / "locks" / name)
        try:
            (base / "locks").mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError:
            continue
        try:
            yield
        finally:
            lock.release()
        return
    yield


def _names(path: str, folder: Path) -> tuple[Path, Path, Path]:
    name = os.path.basename(path)
    return folder / f"{name}.mba.npz", folder / f"{name}.fai", folder / f"{name}.gzi"


def _read(path: str, key: tuple[int, int], folder: Path) -> IndexFiles | None:
    """The index kept in a folder, or None when it is missing, damaged, or of another state of the file."""
    store, fai, gzi = _names(path, folder)
    try:
        with store.open("rb") as handle, np.load(handle, allow_pickle=False) as data:
            if (int(data["format"]), int(data["size_bytes"]), int(data["mtime_ns"])) != (
                FORMAT_VERSION,
                *key,
            ):
                return None
            names = data["names"].tobytes().decode()
            index = FastaIndex(
                path=path,
                size_bytes=key[0],
                mtime_ns=key[1],
                sha256=str(data["sha256"]),
                kind=str(data["kind"]),  # type: ignore[arg-type]
                names=tuple(names.split("\n")),
                **{name: data[name] for name in ("fai", "gzi", "counts", "run_offsets", "run_starts", "run_ends")},
            )
        if index.kind != "2bit" and fai.read_text(encoding="utf-8") != index.fai_text:
            return None
        if index.compressed and gzi.read_bytes() != index.gzi_bytes:
            return None
    # A damaged store can fail in as many ways as a zip of arrays can; each means: build it again.
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        zlib.error,
        struct.error,
        zipfile.BadZipFile,
        NotImplementedError,
    ):
        return None
    return IndexFiles(index, str(store), str(fai), str(gzi) if index.compressed else None)


def _write(index: FastaIndex, folder: Path) -> IndexFiles:
    folder.mkdir(parents=True, exist_ok=True)
    store, fai, gzi = _names(index.path, folder)
    if index.kind != "2bit":
        write_text(fai, index.fai_text)
    lower = index.lower
    assert lower is not None
    if index.compressed:
        with atomic_path(gzi) as temporary:
            temporary.write_bytes(index.gzi_bytes)
    # Last, because its presence says that the others are complete.
    with atomic_path(store) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(
            stream,
            format=FORMAT_VERSION,
            size_bytes=index.size_bytes,
            mtime_ns=index.mtime_ns,
            sha256=index.sha256,
            kind=index.kind,
            names=np.frombuffer("\n".join(index.names).encode(), dtype=np.uint8),
            fai=index.fai,
            gzi=index.gzi,
            counts=index.counts,
            run_offsets=index.run_offsets,
            run_starts=index.run_starts,
            run_ends=index.run_ends,
            lower_offsets=lower.offsets,
            lower_starts=lower.starts,
            lower_ends=lower.ends,
        )
    # Lower case is read when it is asked for: in a soft-masked human genome it is as long as all the rest.
    return IndexFiles(replace(index, lower=None), str(store), str(fai), str(gzi) if index.compressed else None)
