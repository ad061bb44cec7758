"""What is known along a genome: numbers of bigWig files, or classes of the lines of a BED file.

Coordinates are 0-based, the end is excluded.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.bed import check_span, integer, numbered_lines
from mamba_bio_audio.pipelines.dna.genome import Genome

BIGWIG = (".bw", ".bigwig")
# The class of bases that no line names.
NONE = "none"


class TrackValues(Protocol):
    """Labels along a genome.

    Attributes:
        outputs: "numbers" or "classes".
        names: of the tracks, or of the classes.
        files: that they are read from.
    """

    outputs: str
    names: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def has(self) -> Mapping[str, Collection[str]]:
        """Records of which each file says something, by its name."""

    def fetch(self, record: str, start: int, end: int, *, reverse: bool) -> NDArray[Any]:
        """Labels of the bases [start, end) from the first one on: float32 (n, K), or classes int64 (n,); of one strand."""


def open_tracks(given: str | Sequence[str] | Mapping[str, str] | None, genome: Genome, config: Any) -> TrackValues:
    """The labels of `data.tracks`.

    Args:
        given: files.
        genome: that they are of.
        config: `missing` and `stranded`.

    Raises:
        InputError: there are none, they are not of this genome, or cannot be read.
    """
    if not given:
        raise InputError("data.tracks: missing; give bigWig files, or a BED file of classes")
    if isinstance(given, Mapping):
        files = dict(given)
    else:
        paths = [given] if isinstance(given, str) else list(given)
        names = [Path(path).name.removesuffix(".gz").rsplit(".", 1)[0] for path in paths]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"data.tracks: two files are called {twice!r}; name them, data.tracks={{a: ..., b: ...}}")
        files = dict(zip(names, paths, strict=True))
    files = {name: str(Path(path).expanduser()) for name, path in files.items()}
    numbers = [path for path in files.values() if path.lower().endswith(BIGWIG)]
    if len(numbers) == len(files):
        return BigWigs(files, genome, missing=config.missing)
    if numbers or len(files) > 1:
        raise InputError("data.tracks: give either bigWig files (.bw), or one BED file of classes")
    return BedClasses(next(iter(files.values())), genome, stranded=config.stranded)


class BigWigs:
    """Numbers of bigWig files, one track each; `missing` "zero" or "ignore" says what a base without a value is."""

    outputs = "numbers"

    def __init__(self, files: Mapping[str, str], genome: Genome, *, missing: str) -> None:
        self.names = tuple(files)
        self.files = tuple(files.values())
        self.missing = missing
        self._process = -1
        self._readers: list[Any] = []
        # Name of each record in each file.
        self._called: list[dict[str, str]] = []
        for path, reader in zip(self.files, self._open(), strict=True):
            called = {}
            for name, length in reader.chroms().items():
                try:
                    record = genome.resolve(name)
                except InputError:
                    continue
                if genome.records[record] != length:
                    raise InputError(
                        f"{path}: {name} has {length:,} bases, but {record!r} of the genome {genome.records[record]:,}; it is "
                        f"of another assembly"
                    )
                called[record] = name
            if not called:
                raise InputError(
                    f"{path}: has no record of the genome ({', '.join(list(genome.records)[:5])}); it names "
                    f"{', '.join(list(reader.chroms())[:5])}"
                )
            self._called.append(called)

    @property
    def has(self) -> dict[str, Collection[str]]:
        """Records in which there is any value; a header may name others."""
        found: dict[str, Collection[str]] = {}
        for name, reader, called in zip(self.names, self._open(), self._called, strict=True):
            whole = {record: reader.values(own, bins=1, fillna=None) for record, own in called.items()}
            found[name] = {record for record, value in whole.items() if not np.isnan(value).all()}
        return found

    def _open(self) -> list[Any]:
        """Readers of this process: a worker that shared its parent's would share its place in the file."""
        import pybigtools

        if self._process != os.getpid():
            readers = []
            for path in self.files:
                try:
                    readers.append(pybigtools.open(path))  # type: ignore[no-untyped-call]
                except (ValueError, OSError, pybigtools.BBIReadError) as error:
                    raise InputError(f"{path}: cannot be read as a bigWig: {error}") from None
            self._readers, self._process = readers, os.getpid()
        return self._readers

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": -1, "_readers": []}

    def fetch(self, record: str, start: int, end: int, *, reverse: bool) -> NDArray[np.float32]:
        """Values (n, K), the same on both strands."""
        values = np.full((end - start, len(self.files)), np.nan, np.float32)
        for at, (reader, called) in enumerate(zip(self._open(), self._called, strict=True)):
            if record in called:
                values[:, at] = reader.values(called[record], start, end, fillna=None)
        wrong = np.argwhere(np.isinf(values))
        if len(wrong):
            base, track = wrong[0].tolist()
            raise InputError(
                f"{self.files[track]}: {record}: base {start + base:,} is {values[base, track]:g}; correct the file"
            )
        return np.nan_to_num(values, nan=0.0) if self.missing == "zero" else values


class BedClasses:
    """Classes of the lines of a BED file; a base that none names is of the class `none`."""

    outputs = "classes"

    def __init__(self, path: str, genome: Genome, *, stranded: bool) -> None:
        lines: list[tuple[str, int, int, str, str]] = []
        for number, line in numbered_lines(path, "cannot be read as BED ({error}); check the path and the file"):
            where = f"{path}: line {number:,}"
            fields = [field.strip() for field in (line.split("\t") if "\t" in line else line.split())]
            if fields[0] in ("track", "browser") and fields[0] not in genome.records:
                continue
            if len(fields) < 3:
                raise InputError(f"{where}: {len(fields)} columns; BED needs record, start and end")
            try:
                record = genome.resolve(fields[0])
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
            start, end = (integer(text, what, where) for text, what in ((fields[1], "start"), (fields[2], "end")))
            check_span(start, end, record, genome.records[record], "base", where)
            strand = fields[5] if len(fields) > 5 else "."
            if strand not in ("+", "-", ".") or (stranded and strand == "."):
                raise InputError(
                    f"{where}: strand {strand!r}; "
                    + ("with data.stranded write + or -" if stranded else "write +, - or .")
                )
            lines.append((record, start, end, fields[3] if len(fields) > 3 and fields[3] else "yes", strand))
        if not lines:
            raise InputError(f"{path}: contains no regions; BED needs lines of record, start, end and class")
        names = sorted({name for *_, name, _ in lines} - {NONE})
        if not names:
            raise InputError(f"{path}: every region is of the class {NONE!r}, as is everything else; name a class")
        self.names = (NONE, *names)
        self.files: tuple[str, ...] = (path,)
        self.has: Mapping[str, Collection[str]] = {Path(path).name: {record for record, *_ in lines}}
        number_of = {name: at for at, name in enumerate(self.names)}
        # Per strand and record: starts, ends and classes, sorted and disjoint.
        self._lines: list[dict[str, NDArray[np.int64]]] = []
        for other in ("-", "+"):
            by_record: dict[str, list[tuple[int, int, int]]] = {}
            for record, start, end, name, strand in lines:
                if not stranded or strand != other:
                    by_record.setdefault(record, []).append((start, end, number_of[name]))
            self._lines.append({record: _disjoint(own, path, record, self.names) for record, own in by_record.items()})

    def fetch(self, record: str, start: int, end: int, *, reverse: bool) -> NDArray[np.int64]:
        """Classes (n,) of the forward or the reverse strand."""
        found = np.zeros(end - start, np.int64)
        own = self._lines[reverse].get(record)
        if own is None:
            return found
        for at in range(int(np.searchsorted(own[1], start, "right")), int(np.searchsorted(own[0], end, "left"))):
            low, high, label = own[:, at].tolist()
            found[max(low, start) - start : min(high, end) - start] = label
        return found


def _disjoint(lines: list[tuple[int, int, int]], path: str, record: str, names: Sequence[str]) -> NDArray[np.int64]:
    """Starts, ends, classes (3, n), sorted; lines of one class that overlap are joined, those of several refused."""
    lines.sort()
    joined = [lines[0]]
    for start, end, label in lines[1:]:
        low, high, before = joined[-1]
        if start < high and label != before:
            raise InputError(
                f"{path}: {record}:[{start:,}, {min(end, high):,}) is both {names[before]} and {names[label]}; a base has one "
                f"class, so give it one"
            )
        if start <= high and label == before:
            joined[-1] = (low, max(high, end), label)
        else:
            joined.append((start, end, label))
    return np.array(joined, dtype=np.int64).T
