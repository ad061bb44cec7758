"""The file of embeddings: it grows in `OUT.part`, and becomes a whole `.npz` or `.parquet`.

    settings.json     what is being embedded
    vectors.f32       the vectors so far, float32, row after row
    records.jsonl     a line for each record that is complete, in order

Vectors are added to the file in place, so that memory depends neither on the length of a record nor on how many there are.
What a killed process leaves is cut back to the records that are complete.
"""

from __future__ import annotations

import io
import json
import os
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import (
    Maker,
    atomic_path,
    begin_unfinished,
    check_file,
    discard_unfinished,
    name_full_disk,
    unfinished,
)
from mamba_bio_audio.inference.embed import Pool
from mamba_bio_audio.inference.streaming import Stopped
from mamba_bio_audio.pipelines.contract import Item
from mamba_bio_audio.text import is_utf8, printable, show

VECTORS_NAME, RECORDS_NAME = "vectors.f32", "records.jsonl"
MAKER = Maker("embed", ("settings.json", VECTORS_NAME, RECORDS_NAME))
SUFFIXES = (".npz", ".parquet")
_KEY = "mamba_bio_audio"
_BLOCK_BYTES, _BLOCK_ROWS = 1 << 22, 1 << 16


def check_suffix(out: Path) -> None:
    """Refuse a name from which no format follows, or whose library is missing.

    Raises:
        InputError: it ends in neither .npz nor .parquet, or pyarrow is not installed.
    """
    if out.suffix not in SUFFIXES:
        raise InputError(f"--out {out}: give a name that ends in .npz or .parquet")
    if out.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise InputError(
            f"--out {out}: Parquet needs pyarrow, which is not installed; install it with pip install "
            "'mamba-bio-audio[tables]', or give a name that ends in .npz"
        )


def ours(path: Path) -> bool:
    """Whether a file is one of embeddings, or empty and so no loss."""
    if not path.stat().st_size:
        return True
    try:
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                return {"embeddings.npy", "offsets.npy", "settings.npy"} <= set(archive.namelist())
        import pyarrow.parquet

        return _KEY.encode() in (pyarrow.parquet.read_schema(path).metadata or {})
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


class Embedded(NamedTuple):
    """A record whose vectors are complete.

    Attributes:
        file: as the user named it.
        name: name of the record.
        length: length in symbols.
        vectors: how many there are.
        note: why there are none, or why they are NaN; else empty.
    """

    file: str
    name: str
    length: int
    vectors: int
    note: str


class Vectors:
    """The vectors of one record in the growing file, read and written like an array (R, D) of float32."""

    def __init__(self, file: BinaryIO, first: int, width: int) -> None:
        self._file, self._first, self._width = file, first, width

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        self._seek(rows.start)
        data = self._file.read((rows.stop - rows.start) * self._width * 4)
        return np.frombuffer(data, "<f4").reshape(-1, self._width).astype(np.float32)

    def __setitem__(self, rows: slice, values: NDArray[np.float32]) -> None:
        self._seek(rows.start)
        self._file.write(np.ascontiguousarray(values, "<f4").tobytes())

    def _seek(self, row: int) -> None:
        self._file.seek((self._first + row) * self._width * 4)


class EmbeddingFile(AbstractContextManager["EmbeddingFile"]):
    """Vectors and records in `OUT.part`, which `finish` makes into `OUT`.

    Args:
        out: ends in .npz or .parquet. The caller holds its lock.
        pool: how many vectors a record has.
        width: channels D.
        settings: everything that decides the vectors; equal ones may be resumed.
        resume, force: continue or discard what is in `OUT.part`.

    Attributes:
        records: those that are complete, also by an earlier run.
        rows: vectors of all of them.
        reasons: how many records have no vectors, or no known symbol, by reason.
    """

    def __init__(
        self, out: Path, pool: Pool, width: int, settings: Mapping[str, Any], *, resume: bool, force: bool
    ) -> None:
        self.out, self.pool, self.width, self.settings = out, pool, width, settings
        self.folder = unfinished(out)
        begin_unfinished(self.folder, MAKER, settings, resume=resume, force=force)
        self.records: list[Embedded] = []
        self.rows = 0
        self.reasons = Counter[str]()
        self._lines = (self.folder / RECORDS_NAME).open("a+", encoding="utf-8")
        (self.folder / VECTORS_NAME).touch()
        self._vectors = (self.folder / VECTORS_NAME).open("r+b")
        self._recover()

    def unfinished(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items after those that an earlier run completed, which must be the same ones."""
        before = len(self.records)
        for number, item in enumerate(items):
            if number >= before:
                yield item
                continue
            if self.records[number][:3] != (_text(item.file), _text(item.name), item.length):
                raise InputError(
                    f"{self.folder}: its record {number + 1:,} is {self.records[number].name!r}, but that record is now "
                    f"{item.name!r}; the files have changed. Start again with --force"
                )

    def begin(self, items: Sequence[Item]) -> list[Vectors]:
        """Room for the vectors of records, all zero; a record without symbols has none, or where each has one, NaN."""
        self._vectors.truncate(self.rows * self.width * 4)
        sizes = [self._size(item) for item in items]
        firsts = np.cumsum([self.rows, *sizes])
        with name_full_disk(self.folder / VECTORS_NAME):
            self._vectors.truncate(int(firsts[-1]) * self.width * 4)
            places = [Vectors(self._vectors, int(first), self.width) for first in firsts[:-1]]
            for item, size, place in zip(items, sizes, places, strict=True):
                if size and (isinstance(item.symbols, str) or not len(item.symbols)):
                    place[0:1] = np.full((1, self.width), np.nan, np.float32)
        return places

    def end(self, items: Sequence[Item], notes: Sequence[str]) -> None:
        """Records whose vectors are complete, with what is to be said of each."""
        with name_full_disk(self.folder / VECTORS_NAME):
            self._vectors.flush()
            os.fsync(self._vectors.fileno())
            for item, note in zip(items, notes, strict=True):
                size = self._size(item)
                record = Embedded(_text(item.file), _text(item.name), item.length, size, printable(note))
                self._lines.write(json.dumps(record) + "\n")
                self._count(record)
            self._lines.flush()

    def finish(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Write `OUT`, which appears whole, and delete `OUT.part`.

        Raises:
            Stopped: `stop` returned True; everything is still in `OUT.part`.
        """
        write = _write_npz if self.out.suffix == ".npz" else _write_parquet
        with atomic_path(self.out) as temporary:
            self._vectors.seek(0)
            write(temporary, self, lambda rows: self._read(rows, stop))
            # Again: hours may have gone by.
            check_file(self.out, "embed", ours, force=True)
        self._close()
        discard_unfinished(self.folder)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._vectors.closed:
            return
        # After a full disk the rest cannot be written either; that is being reported already.
        with suppress(OSError):
            self._close()
        if kind is not None and not self.records:
            # Refused input leaves nothing to continue.
            discard_unfinished(self.folder)
        else:
            show(f"mba: {len(self.records):,} records are in {self.folder}; use --resume to continue", file=sys.stderr)

    def _size(self, item: Item) -> int:
        readable = not isinstance(item.symbols, str)
        return self.pool.rows(item.length if readable else 0)

    def _read(self, rows: int, stop: Callable[[], bool]) -> NDArray[np.float32]:
        if stop():
            raise Stopped
        data = self._vectors.read(rows * self.width * 4)
        return np.frombuffer(data, "<f4").reshape(rows, self.width)

    def _count(self, record: Embedded) -> None:
        self.records.append(record)
        self.rows += record.vectors
        if record.note:
            self.reasons[record.note] += 1

    def _recover(self) -> None:
        """Count the complete records of an earlier run; a line cut short by a kill is cut off."""
        self._lines.seek(0)
        whole = self._lines.read()
        kept = whole[: whole.rfind("\n") + 1]
        self._lines.truncate(len(kept.encode()))
        try:
            for line in kept.splitlines():
                file, name, length, rows, note = json.loads(line)
                self._count(Embedded(str(file), str(name), int(length), int(rows), str(note)))
        except (ValueError, TypeError):
            raise InputError(f"{self.folder / RECORDS_NAME}: damaged; start again with --force") from None
        if self._vectors.seek(0, io.SEEK_END) < self.rows * self.width * 4:
            raise InputError(
                f"{self.folder / VECTORS_NAME}: shorter than its records require; start again with --force"
            )

    def _close(self) -> None:
        self._lines.close()
        self._vectors.close()


def _text(name: str) -> str:
    """A name as text that every format holds: bytes that are not UTF-8, and zeros, as backslash escapes."""
    return name if is_utf8(name) and "\0" not in name else printable(name)


def _settings(file: EmbeddingFile) -> str:
    return json.dumps(file.settings, sort_keys=True)


def _blocks(file: EmbeddingFile, total: int) -> Iterator[tuple[int, int]]:
    step = min(max(1, _BLOCK_BYTES // (4 * file.width)), _BLOCK_ROWS)
    for low in range(0, total, step):
        yield low, min(low + step, total)


def _write_npz(path: Path, file: EmbeddingFile, read: Callable[[int], NDArray[np.float32]]) -> None:
    """Arrays that plain numpy reads, not compressed; the vectors are never in memory as a whole."""
    small = {
        "offsets": np.cumsum([0, *(record.vectors for record in file.records)], dtype=np.int64),
        "records": np.array([record.name for record in file.records], dtype=np.str_),
        "files": np.array([record.file for record in file.records], dtype=np.str_),
        "lengths": np.array([record.length for record in file.records], dtype=np.int64),
        "notes": np.array([record.note for record in file.records], dtype=np.str_),
        "settings": np.array(_settings(file)),
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        # A fixed date: equal vectors give equal files.
        with archive.open(zipfile.ZipInfo("embeddings.npy"), "w", force_zip64=True) as member:
            header = {"descr": "<f4", "fortran_order": False, "shape": (file.rows, file.width)}
            np.lib.format.write_array_header_1_0(member, header)
            for low, high in _blocks(file, file.rows):
                member.write(read(high - low).tobytes())
        for name, array in small.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _write_parquet(path: Path, file: EmbeddingFile, read: Callable[[int], NDArray[np.float32]]) -> None:
    """A row per vector; a record without vectors has one row with its note, and NaN."""
    import pyarrow as pa
    import pyarrow.parquet

    rows, lengths = (
        np.array([getattr(record, name) for record in file.records], np.int64) for name in ("vectors", "length")
    )
    texts = {
        name: pa.array([getattr(record, name) for record in file.records], pa.string())
        for name in ("file", "name", "note")
    }
    fields = [("file", pa.string()), ("record", pa.string()), ("number", pa.int64()), ("length", pa.int64())]
    if not file.pool.whole:
        fields += [("start", pa.int64()), ("end", pa.int64())]
    fields += [("embedding", pa.list_(pa.float32(), file.width)), ("note", pa.string())]
    schema = pa.schema(fields, metadata={_KEY: _settings(file)})
    ends = np.cumsum(np.maximum(rows, 1))
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for low, high in _blocks(file, int(ends[-1]) if len(ends) else 0):
            places = np.arange(low, high)
            owner = np.searchsorted(ends, places, "right")
            there = rows[owner] > 0
            vectors = np.full((high - low, file.width), np.nan, np.float32)
            vectors[there] = read(int(there.sum()))
            start = (places - (ends - np.maximum(rows, 1))[owner]) * file.pool.size
            table = {
                "file": texts["file"].take(pa.array(owner)),
                "record": texts["name"].take(pa.array(owner)),
                "number": pa.array(owner),
                "length": pa.array(lengths[owner]),
                "start": pa.array(start, mask=~there),
                "end": pa.array(np.minimum(start + file.pool.size, lengths[owner]), mask=~there),
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), file.width),
                "note": texts["note"].take(pa.array(owner)),
            }
            writer.write_table(pa.Table.from_arrays([table[name] for name in schema.names], schema=schema))
