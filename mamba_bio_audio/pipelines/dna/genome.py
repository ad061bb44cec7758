"""Random access to one or more genomes in plain FASTA, BGZF FASTA and 2bit files.

pyfaidx seeks and reads on a single file handle, and a forked process shares its parent's offset: readers that fork with
an open handle silently return wrong sequence (pyfaidx issues 92 and 211). Here every process and thread opens its own
handles at its first read, and the length of every read is checked.

Coordinates are 0-based half-open. Records are named `record` with one file and `genome:record` with several, where
genome is the file name without its FASTA suffixes.
"""

import difflib
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyfaidx
from numpy.typing import ArrayLike, NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.contigs import ACCESSIONS, same_sequence
from mamba_bio_audio.pipelines.dna.fasta_index import StoredIndex, load_index, lower_runs
from mamba_bio_audio.pipelines.dna.fasta_scan import COUNT_NAMES, FastaIndex, Runs
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer, N
from mamba_bio_audio.pipelines.dna.twobit import TwoBitFile
from mamba_bio_audio.text import is_utf8

FASTA_SUFFIXES = (".fa", ".fasta", ".fna", ".2bit")
MAX_OPEN_FILES = 64
# BgzfReader joins blocks by repeated concatenation, so long spans are read in pieces.
PIECE_BASES = 1 << 20


@dataclass(frozen=True)
class RecordStatistics:
    """Letter counts of one record.

    Attributes:
        length: number of bases of any kind.
        counts: number of A, C, G, T, N, other letters, and of lower-case letters among all of these.
        run_starts, run_ends: maximal stretches without A, C, G or T, sorted.
    """

    length: int
    counts: dict[str, int]
    run_starts: NDArray[np.int64]
    run_ends: NDArray[np.int64]

    @property
    def unknown(self) -> int:
        """Number of bases that are not A, C, G or T."""
        return self.counts["N"] + self.counts["other"]


@dataclass(frozen=True)
class FileFingerprint:
    """Identifies the contents of one FASTA file."""

    name: str
    path: str
    size_bytes: int
    sha256: str


class Genome:
    """Reader of FASTA and 2bit files: names, lengths, statistics, and token ids of any span.

    Opening a file for the first time reads it completely (index, statistics, checksum); later it is quick. Nothing is
    written beside the files. An object may be passed to other processes by fork or pickling; file handles are not.

    Args:
        paths: one or more FASTA or 2bit files, or folders, in which every file named *.fa, *.fasta, *.fna (also with
            .gz or .bgz) or *.2bit is taken.
        progress: called with (what, bytes read, bytes in total) while an index is built.
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        progress: Callable[[str, int, int | None], None] | None = None,
    ) -> None:
        self.codec = DnaTokenizer()
        self.paths = find_fasta_files(paths)
        self.genomes = [genome_name(path) for path in self.paths]
        check_genome_names(self.paths)
        self._files: list[StoredIndex] = [load_index(path, progress=of_file(progress, path)) for path in self.paths]
        self.records: dict[str, int] = {}
        # Record name -> (file number, row in that file's index).
        self._rows: dict[str, tuple[int, int]] = {}
        for number, files in enumerate(self._files):
            prefix = f"{self.genomes[number]}:" if len(self.paths) > 1 else ""
            for row, (name, length) in enumerate(zip(files.index.names, files.index.fai[:, 0].tolist(), strict=True)):
                self.records[prefix + name] = length
                self._rows[prefix + name] = (number, row)
        # Per file: unknown bases in all runs before run number i.
        self._unknown_before = [
            np.concatenate([[0], np.cumsum(files.index.run_ends - files.index.run_starts)]) for files in self._files
        ]
        # Records that `resolve` found under another name: alias -> record.
        self.aliases: dict[str, str] = {}
        self._lower_runs: dict[int, Runs] = {}
        self._lower_before: dict[int, NDArray[np.int64]] = {}
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_local"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._local = threading.local()

    def __repr__(self) -> str:
        bases = sum(self.records.values())
        return f"Genome({len(self.paths)} files, {len(self.records):,} records, {bases:,} bases)"

    def fetch(self, record: str, start: int, end: int) -> NDArray[np.uint8]:
        """Token ids of the bases [start, end) of a record, shape (end - start,)."""
        number, row = self._check(record, start, end)
        if self._files[number].index.kind == "2bit":
            return self._twobit(number, row, start, end)
        pieces = [self.codec.encode(text) for text in self._texts(number, row, start, end)]
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.zeros(0, np.uint8), *pieces])

    def lower_case(self, record: str, start: int, end: int) -> NDArray[np.bool_]:
        """Mask of the bases [start, end) in lower case: repeats, in a soft-masked genome."""
        number, row = self._check(record, start, end)
        return _inside(self._lower(number), row, start, end)

    def count_lower(self, record: str, start: ArrayLike, end: ArrayLike) -> NDArray[np.int64]:
        """Exact number of lower-case bases in [start, end), for a single span or arrays of spans."""
        number, row = self._locate(record)
        return _count_in_runs(self._lower(number), self._lower_before[number], row, start, end)

    def _lower(self, number: int) -> Runs:
        """Lower-case stretches of a file, read from its index on first use."""
        if number not in self._lower_runs:
            runs = lower_runs(self._files[number])
            self._lower_before[number] = np.concatenate([[0], np.cumsum(runs.ends - runs.starts)])
            self._lower_runs[number] = runs
        return self._lower_runs[number]

    def _check(self, record: str, start: int, end: int) -> tuple[int, int]:
        """File number and row of a record, checked to have the bases [start, end)."""
        number, row = self._locate(record)
        length = int(self._files[number].index.fai[row, 0])
        if not 0 <= start <= end <= length:
            raise InputError(
                f"{self.paths[number]}: record {record!r} has {length:,} bases; [{start:,}, {end:,}) "
                "(0-based, end excluded) is not inside it; choose a span within it"
            )
        return number, row

    def _twobit(self, number: int, row: int, start: int, end: int) -> NDArray[np.uint8]:
        index = self._files[number].index
        handle = self._handle(number)
        assert isinstance(handle, TwoBitFile)
        try:
            ids = handle.ids(int(index.fai[row, 1]), start, end)
        except OSError as error:
            raise InputError(f"{self.paths[number]}: cannot be read ({error}); check the disk") from error
        unknown = Runs(index.run_offsets, index.run_starts, index.run_ends)
        return np.where(_inside(unknown, row, start, end), np.uint8(N), ids) if end > start else ids

    def _texts(self, number: int, row: int, start: int, end: int) -> Iterator[str]:
        """Yield the letters of [start, end) as in the FASTA file, in pieces."""
        record = name = self._files[number].index.names[row]
        handle = self._handle(number)
        assert isinstance(handle, pyfaidx.Faidx)
        for begin in range(start, end, PIECE_BASES):
            stop = min(begin + PIECE_BASES, end)
            try:
                text = handle.from_file(name, begin + 1, stop)
            except (OSError, ValueError, pyfaidx.FetchError) as error:
                raise InputError(
                    f"{self.paths[number]}: record {record!r}, [{begin:,}, {stop:,}): cannot be read ({error}); check the "
                    "disk, and whether the file changed"
                ) from error
            if len(text) != stop - begin:
                raise InputError(
                    f"{self.paths[number]}: record {record!r}, [{begin:,}, {stop:,}): only {len(text):,} bases were read, "
                    "because the file changed while it was in use; run again"
                )
            yield text

    def resolve(self, name: str, file: str | None = None) -> str:
        """Find the record that a user means.

        Args:
            name: `genome:record`, or a record name that only one file has. It is first taken literally, because records
                may be called `chr3:42000000-44000000`; then as an alias (`chr1`, `1`, `NC_000001.11`, `CM000663.2`).
            file: name of the FASTA file (or of its genome), to choose between files with equal record names.
        """
        prefix, colon, rest = name.partition(":")
        if file is None and name not in self.records and colon and prefix in self.genomes:
            file, name = prefix, rest
        numbers = range(len(self.paths)) if file is None else [self._file_number(file)]
        keys = [(f"{self.genomes[number]}:" if len(self.paths) > 1 else "", number) for number in numbers]
        if file is None and name in self.records:
            return name
        found = [key + name for key, _ in keys if key + name in self.records]
        if not found:
            found = [
                key + record
                for key, number in keys
                for record in self._files[number].index.names
                if same_sequence(name, record)
            ]
            if len(found) == 1:
                self.aliases[name] = found[0]
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(f"record {name!r} is in several files or has several names; write one of {_some(found)}")
        where = self.paths[numbers[0]] if len(numbers) == 1 else f"the {len(self.paths)} FASTA files"
        raise InputError(f"no record {name!r} in {where}; {self._hint(name, numbers)}")

    def genome_of(self, record: str) -> int:
        """Index in `genomes` and `paths` of the file that contains a record."""
        return self._locate(record)[0]

    def bare_name(self, record: str) -> str:
        """Name of a record within its file."""
        number, row = self._locate(record)
        return self._files[number].index.names[row]

    def title(self, record: str) -> str:
        """Text after the name in a record's header; empty for 2bit."""
        number, row = self._locate(record)
        return self._files[number].index.titles[row]

    def scan(self) -> dict[str, RecordStatistics]:
        """Letter counts and unknown stretches of every record, from the stored index."""
        return {name: self.statistics(name) for name in self.records}

    def statistics(self, record: str) -> RecordStatistics:
        """Letter counts and unknown stretches of one record."""
        index, row = self._index(record)
        span = slice(int(index.run_offsets[row]), int(index.run_offsets[row + 1]))
        counts = dict(zip(COUNT_NAMES, index.counts[row].tolist(), strict=True))
        return RecordStatistics(self.records[record], counts, index.run_starts[span], index.run_ends[span])

    def count_unknown(self, record: str, start: ArrayLike, end: ArrayLike) -> NDArray[np.int64]:
        """Exact number of bases other than A, C, G, T in [start, end), for a single span or arrays of spans."""
        number, row = self._locate(record)
        index = self._files[number].index
        runs = Runs(index.run_offsets, index.run_starts, index.run_ends)
        return _count_in_runs(runs, self._unknown_before[number], row, start, end)

    def fingerprint(self) -> list[FileFingerprint]:
        """Name, size and SHA-256 of every file."""
        return [
            FileFingerprint(os.path.basename(path), path, files.index.size_bytes, files.index.sha256)
            for path, files in zip(self.paths, self._files, strict=True)
        ]

    def contents(self) -> list[dict[str, str]]:
        """Name and SHA-256 of every file."""
        return [{"name": file.name, "sha256": file.sha256} for file in self.fingerprint()]

    def _locate(self, record: str) -> tuple[int, int]:
        try:
            return self._rows[record]
        except KeyError:
            return self._rows[self.resolve(record)]

    def _index(self, record: str) -> tuple[FastaIndex, int]:
        number, row = self._locate(record)
        return self._files[number].index, row

    def _handle(self, number: int) -> pyfaidx.Faidx | TwoBitFile:
        """This process's and thread's own handle on a file."""
        local = self._local
        if getattr(local, "pid", None) != os.getpid():
            local.pid = os.getpid()
            local.handles = OrderedDict()
        handles: OrderedDict[int, pyfaidx.Faidx | TwoBitFile] = local.handles
        if number in handles:
            handles.move_to_end(number)
            return handles[number]
        if len(handles) >= MAX_OPEN_FILES:
            handles.popitem(last=False)[1].close()
        handles[number] = self._open(number)
        return handles[number]

    def _open(self, number: int) -> pyfaidx.Faidx | TwoBitFile:
        path, files = self.paths[number], self._files[number]
        try:
            status = os.stat(path)
            if (status.st_size, status.st_mtime_ns) != (files.index.size_bytes, files.index.mtime_ns):
                raise InputError(f"{path}: the file changed since it was indexed; run again")
            if files.index.kind == "2bit":
                return TwoBitFile(path)
            with warnings.catch_warnings():
                # An index beside the FASTA is not read, so its age does not matter.
                warnings.filterwarnings("ignore", message=".*older than FASTA file", category=RuntimeWarning)
                return _Reader(path, files.index)
        except OSError as error:
            raise InputError(f"{path}: cannot be opened ({error}); check the file") from error

    def _file_number(self, file: str) -> int:
        names = [os.path.basename(path) for path in self.paths]
        for candidates in (self.paths, names, self.genomes):
            if file in candidates:
                return candidates.index(file)
        base = os.path.basename(file)
        if base in names:
            return names.index(base)
        raise InputError(f"no FASTA file {file!r} among those given; choose one of {_some(names)}")

    def _hint(self, name: str, numbers: Iterable[int]) -> str:
        """What the user may have meant: the accession of another assembly, a similar name, or one of the records."""
        known = [record for number in numbers for record in self._files[number].index.names]
        if name in ACCESSIONS:
            assembly, chromosome = ACCESSIONS[name]
            return (
                f"it is chromosome {chromosome} of {assembly}, but the file has {_some(known)}; is it another assembly?"
            )
        close = difflib.get_close_matches(name, known[:10_000], n=3)
        return f"did you mean {_some(close)}?" if close else f"choose one of {_some(known)}"


def _inside(runs: Runs, row: int, start: int, end: int) -> NDArray[np.bool_]:
    """Mask of the bases [start, end) of a record that lie in its runs."""
    first, last = int(runs.offsets[row]), int(runs.offsets[row + 1])
    # Runs are sorted and disjoint, so those that touch the span are consecutive.
    first += int(np.searchsorted(runs.ends[first:last], start, side="right"))
    edges = np.zeros(end - start + 1, dtype=np.int8)
    last = first + int(np.searchsorted(runs.starts[first:last], end))
    edges[np.maximum(runs.starts[first:last] - start, 0)] = 1
    edges[np.minimum(runs.ends[first:last], end) - start] = -1
    return np.cumsum(edges[:-1], dtype=np.int8).astype(bool)


def _count_in_runs(
    runs: Runs, totals: NDArray[np.int64], row: int, start: ArrayLike, end: ArrayLike
) -> NDArray[np.int64]:
    """Number of bases of [start, end) in a record's runs; `totals[i]` is the number in all runs before run i."""
    first, last = int(runs.offsets[row]), int(runs.offsets[row + 1])
    starts, ends = runs.starts[first:last], runs.ends[first:last]

    def before(position: NDArray[np.int64]) -> NDArray[np.int64]:
        found = np.searchsorted(starts, position)
        # The last run that starts before the position may reach beyond it.
        beyond = np.maximum(ends[found - 1] - position, 0) if len(ends) else 0
        return totals[first + found] - totals[first] - np.where(found > 0, beyond, 0)

    return before(np.asarray(end, dtype=np.int64)) - before(np.asarray(start, dtype=np.int64))


class _Reader(pyfaidx.Faidx):
    """pyfaidx's reader with an index from memory; it neither reads nor writes index files."""

    def __init__(self, path: str, index: FastaIndex) -> None:
        self._given = index
        super().__init__(path, rebuild=False, build_index=False)

    def read_fai(self) -> None:
        for name, (length, offset, bases, size) in zip(self._given.names, self._given.fai.tolist(), strict=True):
            end = offset + length + -(-length // bases) * (size - bases)
            self.index[name] = pyfaidx.IndexRecord(length, offset, bases, size, end, None)

    def read_gzi(self) -> None:
        self.gzi_index = [_Block(start, None, text, None) for start, text in self._given.gzi.tolist()]

    build_gzi = read_gzi

    def build_index(self) -> None:
        """Do nothing: there is an index."""

    write_gzi = write_fai = build_index


class _Block(pyfaidx.BgzfBlock):
    """A block that bisection passes even if the position is its very first byte.

    pyfaidx would look for such a position at the end of the previous block, which cannot be expressed if that block has
    65,536 bytes, as Biopython's writer makes them.
    """

    __slots__ = ()

    def __lt__(self, other: Any) -> bool:
        return bool(self.ustart <= other)


def of_file(
    progress: Callable[[str, int, int | None], None] | None, path: str
) -> Callable[[int, int | None], None] | None:
    """Adapt a callback for several parts to the progress of one file's index."""
    return None if progress is None else partial(progress, f"indexing {os.path.basename(path)}")


def find_fasta_files(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """Absolute paths of FASTA files; folders are replaced by their FASTA files, sorted by name."""
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not given:
        raise InputError("no FASTA file was given; give at least one")
    found: list[str] = []
    for item in given:
        path = Path(item).expanduser()
        if path.is_dir():
            inside = sorted(
                str(child.absolute()) for child in path.iterdir() if child.is_file() and is_fasta_name(child.name)
            )
            if not inside:
                raise InputError(
                    f"{path}: no FASTA file in this folder; it needs *.fa, *.fasta or *.fna, each also with .gz, or *.2bit"
                )
            found += inside
        elif path.is_file():
            found.append(str(path.absolute()))
        elif path.exists():
            raise InputError(
                f"{path}: neither a file nor a folder; FASTA is read at random positions, so it cannot be a pipe"
            )
        else:
            raise InputError(f"{path}: there is no such file or folder (current folder {Path.cwd()}); correct the path")
    for index, file in enumerate(found):
        if file in found[:index]:
            raise InputError(f"{file}: given twice; give it once")
    return found


def check_genome_names(paths: Sequence[str]) -> None:
    """Refuse FASTA files that would give two genomes the same name, and names that do not fit into a table."""
    there: dict[str, str] = {}
    for path in paths:
        name = genome_name(path)
        file = os.path.basename(path)
        if len(file.splitlines()) > 1 or "\t" in file or not is_utf8(file):
            raise InputError(
                f"{path}: the file name contains a tab, a line break or bytes that are not UTF-8; rename the file"
            )
        if name in there:
            raise InputError(
                f"{path}: has the genome name {name!r}, like {there[name]}, and records are named `genome:record`; "
                "rename one of the files, or give only one of them"
            )
        there[name] = path


def genome_name(path: str) -> str:
    """File name without FASTA and compression suffixes."""
    name = os.path.basename(path)
    for suffixes in ((".gz", ".bgz"), FASTA_SUFFIXES):
        for suffix in suffixes:
            if name.lower().endswith(suffix) and len(name) > len(suffix):
                name = name[: -len(suffix)]
                break
    return name


def is_fasta_name(name: str) -> bool:
    name = name.lower().removesuffix(".gz").removesuffix(".bgz")
    return not name.startswith(".") and name.endswith(FASTA_SUFFIXES)


def _some(names: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:limit])
    return f"{shown} and {len(names) - limit:,} more" if len(names) > limit else shown
