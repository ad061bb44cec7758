"""Indexes of FASTA and 2bit files, kept in a private cache.

The results of `fasta_scan` and `twobit` are kept in one file per genome in the user's cache (`files/cache.py`), a folder
that no other user may enter. Nothing is written beside the data, and an index found there (`.fai`, `.gzi`, `.mba.npz`)
is never read, so whoever made it cannot change a count, a checksum or a base. If no such folder is available, indexes
are kept in memory and the next command builds them again.

An index is taken from the cache only if its file belongs to this user and is complete, its numbers are consistent, and
the genome is the file that it was made from: with the same size, time of last change and sampled blocks. A genome whose
status has changed (it was moved or linked, or its times were set by hand) is hashed completely and must have the same
SHA-256.
"""

import contextlib
import hashlib
import json
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import atomic_path
from mamba_bio_audio.files.cache import CACHE_VARIABLE, cache_folder
from mamba_bio_audio.pipelines.dna.fasta_parser import CHUNK_BYTES
from mamba_bio_audio.pipelines.dna.fasta_scan import COUNT_NAMES, FastaIndex, Runs, file_key, index_fasta
from mamba_bio_audio.pipelines.dna.twobit import SIGNATURES, index_twobit

FORMAT_VERSION = 4
# Blocks of the genome that are compared whenever its index is opened: the first, the last, and some in between.
SAMPLED_BLOCKS, BLOCK_BYTES = 16, 1 << 16
Progress = Callable[[int, int | None], None]
_LARGEST = 1 << 48
# Most index bytes per genome byte: a run can start at every other base, and a byte of BGZF can hold a thousand bases.
_MOST_BYTES = 1 << 14


@dataclass(frozen=True)
class StoredIndex:
    """An index and its file in the cache; None if it is only in memory."""

    index: FastaIndex
    store: Path | None


class _State(NamedTuple):
    """Identifies one state of a genome file."""

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    sample: str  # SHA-256 of the sampled blocks


# Indexes of this process that could not be stored on disk, by path.
_in_memory: dict[str, tuple[_State, FastaIndex]] = {}


class _RefusedError(Exception):
    """A cached index that must not be used, and why."""


def load_index(path: str | os.PathLike[str], *, progress: Progress | None = None) -> StoredIndex:
    """Load the index of a FASTA or 2bit file from the cache if there is a valid one, else build and store it.

    Concurrent processes wait for the first one and then read what it wrote. An index that is refused (another user's,
    damaged, or of other contents) is rebuilt, with a warning.

    Args:
        path: plain or BGZF FASTA, or 2bit file.
        progress: called with (bytes read, bytes in total) while an index is built.

    Raises:
        InputError: the file cannot be read or is not sound.
    """
    path = os.path.abspath(path)
    state = _state(path)
    try:
        store = _store(path)
    except _RefusedError as error:
        known, index = _in_memory.get(path, (None, None))
        if index is not None and known == state:
            return StoredIndex(index, None)
        warnings.warn(
            f"{error}: the index of {path} is kept only in memory; set {CACHE_VARIABLE} to a folder of your own to keep it",
            RuntimeWarning,
            stacklevel=2,
        )
        index = build_index(path, progress)
        _in_memory[path] = state, index
        return StoredIndex(index, None)
    if (found := _cached(store, path, state)) is not None:
        return found
    with _lock(store):
        if (found := _cached(store, path, state)) is not None:
            return found
        if store.exists() and (reason := _why_not(store, path, state)):
            warnings.warn(f"{store}: {reason}; the index of {path} is rebuilt", RuntimeWarning, stacklevel=2)
        index = build_index(path, progress)
        if _state(path) != state:
            raise InputError(
                f"{path}: changed while it was being read; wait until it is completely written and run again"
            )
        try:
            return _write(store, index, state)
        except OSError as error:
            warnings.warn(
                f"{store}: cannot be written ({error.strerror or error}); the index of {path} is kept only in memory",
                RuntimeWarning,
                stacklevel=2,
            )
            return StoredIndex(index, None)


def build_index(path: str, progress: Progress | None = None) -> FastaIndex:
    """Read a FASTA or 2bit file once, check it, and return its index and statistics; writes nothing."""
    file_key(path)
    try:
        with open(path, "rb") as handle:
            head = handle.read(18)
    except OSError as error:
        raise _unreadable(path, error) from error
    return index_twobit(path, progress) if head[:4] in SIGNATURES else index_fasta(path, progress)


def lower_runs(stored: StoredIndex) -> Runs:
    """Stretches of lower-case letters in every record, read from the cache if they were left there."""
    if stored.index.lower is not None:
        return stored.index.lower
    assert stored.store is not None
    try:
        _, index = _read(stored.store, stored.index.path)
        if index.sha256 != stored.index.sha256:
            raise _RefusedError("it now belongs to another file")
    except (_RefusedError, OSError) as error:
        raise InputError(f"{stored.store}: the index is missing or damaged ({error}); run again") from error
    assert index.lower is not None
    return index.lower


def move_index(path: str | os.PathLike[str], target: str | os.PathLike[str] | None) -> None:
    """Move the cached index of a moved file to `target`, or delete it if `target` is None."""
    try:
        store = _store(os.path.abspath(path))
        if target is None:
            store.unlink(missing_ok=True)
        elif store.exists():
            os.replace(store, _store(os.path.abspath(target)))
        store.with_suffix(".lock").unlink(missing_ok=True)
    except (_RefusedError, OSError):
        # The index is rebuilt when it is needed.
        return


@contextlib.contextmanager
def _lock(store: Path) -> Iterator[None]:
    """Let only one process at a time build an index; if the file system has no locks, go ahead without."""
    lock = FileLock(store.with_suffix(".lock"))
    try:
        lock.acquire()
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _unreadable(path: str, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be read ({error.strerror or error}); check it and its permissions")


def _state(path: str) -> _State:
    size, mtime_ns = file_key(path)
    digest = hashlib.sha256()
    try:
        ctime_ns = os.stat(path).st_ctime_ns
        with open(path, "rb", buffering=0) as handle:
            last = max(size - BLOCK_BYTES, 0)
            for place in sorted({number * last // (SAMPLED_BLOCKS - 1) for number in range(SAMPLED_BLOCKS)}):
                handle.seek(place)
                digest.update(handle.read(BLOCK_BYTES))
    except OSError as error:
        raise _unreadable(path, error) from error
    return _State(size, mtime_ns, ctime_ns, digest.hexdigest())


def _store(path: str) -> Path:
    """Path for the index of a file; its folder is created for this user alone.

    Raises:
        _RefusedError: no such folder is available.
    """
    try:
        folder = cache_folder() / "indexes"
    except InputError as error:
        raise _RefusedError(str(error)) from error
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise _RefusedError(f"{folder}: {error.strerror or error}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise _RefusedError(f"{folder}: not a folder, or a link")
    if problem := _foreign(status):
        raise _RefusedError(f"{folder}: {problem}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _RefusedError(f"{folder}: cannot be written to")
    if hasattr(os, "geteuid") and status.st_mode & 0o077:
        folder.chmod(0o700)
    return folder / f"{hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:32]}.index"


def _foreign(status: os.stat_result) -> str:
    """Why something in the cache may be another user's work; empty if it cannot be."""
    if not hasattr(os, "geteuid"):
        return ""
    if status.st_uid != os.geteuid():
        return "belongs to another user"
    return "may be written to by other users" if status.st_mode & 0o022 else ""


def _cached(store: Path, path: str, state: _State) -> StoredIndex | None:
    """The cached index, if it may be used and belongs to this state of the file."""
    try:
        kept, index = _read(store, path)
    except (_RefusedError, OSError):
        return None
    if (kept.size_bytes, kept.mtime_ns, kept.sample) != (state.size_bytes, state.mtime_ns, state.sample):
        return None
    if kept.ctime_ns != state.ctime_ns:
        if _sha256(path) != index.sha256:
            return None
        try:
            return _write(store, index, state)
        except OSError:
            return StoredIndex(index, None)
    # Lower case is read only on demand: in a soft-masked human genome it is as large as all the rest.
    return StoredIndex(replace(index, lower=None), store)


def _why_not(store: Path, path: str, state: _State) -> str:
    """Why a cached index is not used; empty if that is to be expected, because the file has changed."""
    try:
        kept, _ = _read(store, path)
    except _RefusedError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    if (kept.size_bytes, kept.mtime_ns) == (state.size_bytes, state.mtime_ns):
        return "the file's contents changed, although its size and time did not"
    return ""


def _read(store: Path, path: str) -> tuple[_State, FastaIndex]:
    """Read a complete index from the cache, and the state of the genome that it belongs to.

    Raises:
        OSError: there is no such file.
        _RefusedError: it is another user's, damaged or inconsistent.
    """
    data = _own_bytes(store, (1 << 26) + _MOST_BYTES * os.path.getsize(path))
    digest, payload = data[:32], data[32:]
    if hashlib.sha256(payload).digest() != digest:
        raise _RefusedError("damaged")
    try:
        arrays = load(payload)
        about = json.loads(arrays["about"].tobytes())
        if about["format"] != FORMAT_VERSION:
            raise _RefusedError("written by another version of this program")
        state = _State(*(about[name] for name in _State._fields))
        names, titles = (tuple(arrays[name].tobytes().decode().split("\n")) for name in ("names", "titles"))
        index = FastaIndex(
            path=path,
            size_bytes=state.size_bytes,
            mtime_ns=state.mtime_ns,
            sha256=about["sha256"],
            kind=about["kind"],
            names=names,
            titles=titles,
            **{name: _integers(arrays[name]) for name in _ARRAYS},
            lower=Runs(*(_integers(arrays[f"lower_{name}"]) for name in ("offsets", "starts", "ends"))),
        )
        _check(index, state)
    # Everything that a hostile file can raise in the parsers of tensors, JSON and text.
    except (
        SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        OverflowError,
        RecursionError,
    ) as error:
        raise _RefusedError(f"damaged ({type(error).__name__})") from error
    except MemoryError as error:
        raise _RefusedError("too large for the memory") from error
    return state, index


_ARRAYS = ("fai", "gzi", "counts", "run_offsets", "run_starts", "run_ends")


def _own_bytes(store: Path, most_bytes: int) -> bytes:
    """Read a cache file, which must be a regular file of this user, no link, not writable by others, of plausible size."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(store, flags)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _RefusedError("a link" if store.is_symlink() else error.strerror or str(error)) from error
    with os.fdopen(descriptor, "rb") as handle:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise _RefusedError("not a regular file")
        if problem := _foreign(status):
            raise _RefusedError(problem)
        if status.st_size > most_bytes:
            raise _RefusedError(f"{status.st_size:,} bytes, more than an index of this file can have")
        try:
            return handle.read()
        except MemoryError as error:
            raise _RefusedError("too large for the memory") from error


def _integers(values: NDArray[Any]) -> NDArray[np.int64]:
    if values.dtype not in (np.int64, np.uint32):
        raise ValueError("numbers of another type")
    return values.astype(np.int64)


def _check(index: FastaIndex, state: _State) -> None:
    """Check that the numbers of an index are consistent with each other and with the file.

    Raises:
        ValueError: they are not.
    """
    records = len(index.names)
    shapes = [index.fai.shape == (records, 4), index.counts.shape == (records, len(COUNT_NAMES))]
    shapes += [index.gzi.ndim == 2, index.gzi.shape[-1] == 2, len(index.titles) == records, len(index.sha256) == 64]
    assert index.lower is not None
    runs = (Runs(index.run_offsets, index.run_starts, index.run_ends), index.lower)
    _require(
        *shapes,
        index.kind in ("plain", "bgzf", "2bit"),
        len(set(index.names)) == records,
        all(name and name.split() == [name] for name in index.names),
        *(array.size == 0 or (array.min() >= 0 and array.max() < _LARGEST) for array in (index.fai, index.gzi)),
        *(array.size == 0 or (array.min() >= 0 and array.max() < _LARGEST) for run in runs for array in run),
        index.counts.size == 0 or (index.counts.min() >= 0 and index.counts.max() < _LARGEST),
        all(isinstance(value, int) for value in state[:3]) and isinstance(state.sample, str),
    )
    length, offset, line_bases, line_bytes = index.fai.T
    counts = dict(zip(COUNT_NAMES, index.counts.T, strict=True))
    unknown = counts["N"] + counts["other"]
    known = counts["A"] + counts["C"] + counts["G"] + counts["T"]
    _require((length > 0).all(), (known + unknown == length).all(), (counts["lower"] <= length).all())
    if index.kind == "2bit":
        end, size = offset + -(-length // 4), state.size_bytes
        _require(not index.gzi.size, not line_bases.any(), not line_bytes.any())
    else:
        _require((line_bases > 0).all(), (line_bytes > line_bases).all(), (line_bytes <= line_bases + 2).all())
        end = offset + (length - 1) // line_bases * line_bytes + (length - 1) % line_bases + 1
        size = state.size_bytes
        _require((offset[1:] > end[:-1]).all(), (index.kind == "bgzf") == bool(len(index.gzi)))
    if index.kind == "bgzf":
        size = int(index.gzi[-1, 1]) + (1 << 16)
        _require(not index.gzi[0, 1], (np.diff(index.gzi, axis=0) > 0).all(), index.gzi[-1, 0] < state.size_bytes)
    _require((end <= size).all())
    for (offsets, starts, ends), total in zip(runs, (unknown, counts["lower"]), strict=True):
        _require(offsets.shape == (records + 1,), starts.ndim == 1, starts.shape == ends.shape)
        _require(offsets[0] == 0, (np.diff(offsets) >= 0).all(), offsets[-1] == len(starts), (starts < ends).all())
        owner = np.repeat(np.arange(records), np.diff(offsets))
        apart = (starts[1:] > ends[:-1]) | (owner[1:] != owner[:-1])
        _require(apart.all(), (ends <= length[owner]).all())
        _require((np.bincount(owner, weights=ends - starts, minlength=records) == total).all())


def _require(*facts: Any) -> None:
    if not all(facts):
        raise ValueError("its numbers are inconsistent")


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as handle:
            while data := handle.read(CHUNK_BYTES):
                digest.update(data)
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()


def _write(store: Path, index: FastaIndex, state: _State) -> StoredIndex:
    assert index.lower is not None
    about = {"format": FORMAT_VERSION, **state._asdict(), "sha256": index.sha256, "kind": index.kind}
    texts = {
        "about": json.dumps(about),
        "names": "\n".join(index.names),
        "titles": "\n".join(index.titles),
    }
    arrays: dict[str, NDArray[Any]] = {name: np.frombuffer(text.encode(), np.uint8) for name, text in texts.items()}
    arrays |= {name: _narrow(getattr(index, name)) for name in _ARRAYS}
    arrays |= {f"lower_{name}": _narrow(values) for name, values in index.lower._asdict().items()}
    payload = save(arrays)
    with atomic_path(store) as temporary:
        temporary.touch(mode=0o600)
        with temporary.open("wb") as stream:
            stream.write(hashlib.sha256(payload).digest())
            stream.write(payload)
    store.chmod(0o600)
    return StoredIndex(replace(index, lower=None), store)


def _narrow(values: NDArray[np.int64]) -> NDArray[Any]:
    """The numbers in 32 bits if they fit, which halves the size on disk."""
    return values.astype(np.uint32) if values.size and values.max() < 1 << 32 else values
