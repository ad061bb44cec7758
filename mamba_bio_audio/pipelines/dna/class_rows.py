"""Reads individually labelled sequences: table rows, FASTA records named `>name|label`, or GenomicBenchmarks files.

sequence <tab> label <tab> split <tab> id          a TSV, CSV or Parquet table; other names by `data.columns`
train.tsv  dev.tsv  test.tsv                       one table per split (GUE); Parquet in parts too (Hugging Face)
train.fna  test.fna       >name|label              one FASTA file per split (Nucleotide Transformer)
train|test / class / id.txt                        one sequence per file (GenomicBenchmarks)
"""

from __future__ import annotations

import csv
import io
import itertools
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.class_tags import SPLIT_KEYS, tags_of
from mamba_bio_audio.pipelines.dna.fasta_parser import PROTEIN_ONLY, refuse_protein_and_rna
from mamba_bio_audio.pipelines.dna.genome import genome_name, is_fasta_name
from mamba_bio_audio.pipelines.dna.records import read_records
from mamba_bio_audio.pipelines.split_names import is_split_word
from mamba_bio_audio.pipelines.unpacked import open_packed

LAYOUT = "train|test / class / id.txt"
_TABLE = re.compile(r"\.(tsv|csv|txt|tab)(\.gz)?$|(-\d{5}-of-\d{5})?\.parquet$", re.IGNORECASE)
# A field may be as long as a chromosome; its line is in memory anyway.
_FIELD_LIMIT = 2**31 - 1
# As pandas writes it; a class may be called NA or None.
_MISSING = ("nan", "<na>")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
T = TypeVar("T")


Progress = Callable[[str, int, int | None], None]
_STEP = 4096


def counted(items: Iterable[T], what: str, progress: Progress | None, total: int | None = None) -> Iterator[T]:
    """Yield the items; `progress` is called with (what, done, total) from time to time."""
    for done, item in enumerate(items):
        if progress is not None and done % _STEP == 0 and done:
            progress(what, done, total)
        yield item


class Row(NamedTuple):
    """One labelled sequence.

    Attributes:
        label: cell of the label column, or of the first of several.
        tags: tags that name its split, as `class_tags.splits_of` reads them.
        name: its unique name.
        where: file and line, for messages.
        more: cells of further label columns.
        group: cell of the group column; empty where there is none.
    """

    label: str
    tags: Mapping[str, str]
    name: str
    sequence: str
    where: str
    more: tuple[str, ...] = ()
    group: str = ""


class Columns(NamedTuple):
    """Names of the columns of a table, in lower case.

    Attributes:
        labels: one, or several where a sequence has several labels.
        split: None: whichever of `SPLIT_KEYS` there are.
        id: None: the column id where there is one, else the number of the line.
        group: None: the column group where there is one.
    """

    sequence: str = "sequence"
    labels: tuple[str, ...] = ("label",)
    split: str | None = None
    id: str | None = None
    group: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, str | list[str]] | None) -> Columns:
        """From `data.columns`."""
        names = {key: _lower(value) for key, value in (given or {}).items() if key != "label"}
        labels = (given or {}).get("label", "label")
        return cls(**names, labels=tuple(map(_lower, [labels] if isinstance(labels, str) else labels)))

    def required(self) -> list[str]:
        """Columns that a table must have."""
        given = (self.split, self.id, self.group)
        return [self.sequence, *self.labels, *(name for name in given if name is not None)]


def _lower(name: Any) -> Any:
    return str(name).strip().lower()


def is_table_name(name: str) -> bool:
    """Whether a file is a table, judging by its name."""
    return _TABLE.search(name) is not None


def split_word_of(path: Path) -> str | None:
    """The split that a data file is named after (train.tsv.gz, dev.csv, test.fna); None for any other file."""
    if is_fasta_name(path.name):
        stem = genome_name(path.name)
    elif is_table_name(path.name):
        stem = _TABLE.sub("", path.name)
    else:
        return None
    return stem if is_split_word(stem) else None


def read_split_files(
    paths: Sequence[Path],
    progress: Progress | None = None,
    columns: Columns = Columns(),
    *,
    empty_labels: bool = False,
) -> list[Row]:
    """Read the rows of files that are named after splits: tables, or FASTA with `>name|label`."""
    rows: list[Row] = []
    files: dict[str, Path] = {}
    for path in paths:
        word = split_word_of(path)
        assert word is not None
        # Parts of one table, as Hugging Face writes them: train-00000-of-00002.parquet.
        part = re.search(r"-(\d{5})-of-\d{5}\.parquet$", path.name)
        other = files.setdefault(f"{word.lower()} {part[1] if part else ''}", path)
        if other is not path:
            raise InputError(
                f"{path}: {other.name} beside it is also the {word} split; choose one of them with data.files"
            )
        place = f"{word}/{part[1]}/" if part else f"{word}/"
        if is_table_name(path.name):
            found = read_table(path, progress, columns, empty_labels=empty_labels)
        else:
            found = read_labelled_fasta(path, progress)
        rows += [row._replace(tags={"file name": word, **row.tags}, name=place + row.name) for row in found]
    return rows


def read_table(
    path: Path, progress: Progress | None = None, columns: Columns = Columns(), *, empty_labels: bool = False
) -> list[Row]:
    """Read TSV, CSV or Parquet with columns for sequence, label and, optionally, split, id and group.

    Args:
        path: the table; its first line names the columns.
        progress: as for `counted`.
        columns: what they are called.
        empty_labels: accept empty cells as labels, which then mean that nothing is known.
    """
    one = () if empty_labels else columns.labels
    cells = _parquet(path, one) if path.name.lower().endswith(".parquet") else _text_cells(path)
    where, header = next(cells)
    written = [name.strip() for name in header]
    header = [name.lower() for name in written]
    missing = [name for name in columns.required() if name not in header]
    if missing:
        raise InputError(
            f"{where}: the header lacks {', '.join(missing)}; it names {', '.join(written[:12])}. Say which columns are which, "
            f"for example data.columns={{sequence: {written[0] or 'seq'}, label: {written[-1] or 'target'}}}"
        )
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{where}: two columns are called {twice!r}; rename one of them")
    keys = [key for key in SPLIT_KEYS if key in header] if columns.split is None else [columns.split]
    group = columns.group or ("" if "group" in columns.labels else "group")
    rows: list[Row] = []
    seen: dict[str, str] = {}
    for where, values in counted(cells, f"reading {path.name}, rows", progress):
        if len(values) != len(header):
            count = f"{len(values)} column{'s' * (len(values) > 1)}"
            raise InputError(f"{where}: has {count}, but the header has {len(header)}; correct the row")
        row = dict(zip(header, (value.strip() for value in values), strict=True))
        _check_sequence(row[columns.sequence], where)
        labels = [row[name] for name in columns.labels]
        if not (empty_labels or all(labels)):
            raise InputError(f"{where}: no {columns.labels[labels.index('')]}; add it, or remove the row")
        if not empty_labels and labels[0].lower() in _MISSING:
            raise InputError(
                f"{where}: the {columns.labels[0]} is {labels[0]!r}, as programs write what is missing; add it, or remove the "
                "row"
            )
        line = where.rpartition(": ")[2]
        name = row.get(columns.id or "id") or line.replace(",", "")
        if name in seen:
            raise InputError(f"{where}: the id {name!r} is already used in {seen[name]}; make the ids unique")
        seen[name] = line
        # A split column of any name is the split.
        tags = {"split" if key == columns.split else key: row[key] for key in keys}
        rows.append(Row(labels[0], tags, name, row[columns.sequence], where, tuple(labels[1:]), row.get(group, "")))
    if not rows:
        raise InputError(f"{path}: has a header and no rows; add rows, or leave the file out")
    return rows


def _text_cells(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(where, cells) of each line of TSV or CSV; the first has the names of the columns."""
    # After the header, a line that starts with # is a row, because a label may start with it.
    lines = numbered_lines(path, comments=False)
    first = next(((number, line) for number, line in lines if not line.startswith("#")), None)
    if first is None:
        raise InputError(
            f"{path}: empty; the first line must name the columns sequence, label and, optionally, split and id"
        )
    csv.field_size_limit(_FIELD_LIMIT)
    # Spreadsheets write semicolons where numbers have a decimal comma.
    delimiter = next((sign for sign in "\t,;" if sign in first[1]), ",")
    for number, line in itertools.chain([first], lines):
        where = f"{path}: line {number:,}"
        yield where, _fields(line, delimiter, where)


def _parquet(path: Path, single: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The same of a Parquet file; missing values and NaN are empty, and lists are joined by `;`.

    Args:
        path: the file.
        single: columns, in lower case, that may not have several values in a row.
    """
    try:
        from pyarrow import ArrowException, types
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise InputError(
            f"{path}: Parquet is read with pyarrow, which is not installed; pip install 'mamba-bio-audio[tables]'"
        ) from None
    try:
        with ParquetFile(path) as file:
            schema = file.schema_arrow
            several = next((one.name for one in schema if types.is_list(one.type) and _lower(one.name) in single), None)
            if several is not None:
                raise InputError(
                    f"{path}: the column {several!r} has several values in a row; set head.task=multilabel, or name another "
                    "column in data.columns"
                )
            yield f"{path}: row 1", list(schema.names)
            number = 0
            for batch in file.iter_batches(4096):
                for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    number += 1
                    yield f"{path}: row {number:,}", [_text(value) for value in row]
    except (ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read as Parquet ({error}); check the file") from None


def _text(value: Any) -> str:
    """A value of a Parquet file as the cell of a table."""
    if isinstance(value, list):
        return ";".join(map(_text, value))
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    # NaN is what differs from itself.
    return "" if value is None or value != value else str(value)


def _fields(line: str, delimiter: str, where: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise InputError(
                f"{where}: a cell in quotes does not end in its line; cells of several lines are not read, so write it on one"
            ) from None
        raise InputError(f"{where}: cannot be read as a row ({error}); correct it") from None


def header_label(header: str) -> str | None:
    """The class in a header `name|label`, as in the Nucleotide Transformer's data; None if there is none."""
    name, bar, label = header.split(maxsplit=1)[0].rpartition("|") if header.strip() else ("", "", "")
    return label if bar and name and label else None


def has_header_labels(path: Path, *, recur: bool = True) -> bool:
    """Whether every record of a FASTA file is named `name|label`, with labels that recur, as classes do."""
    labels = Counter[str]()
    for record in read_records(path):
        label = header_label(record.header)
        if label is None:
            return False
        labels[label] += 1
    return 1 < len(labels) < labels.total() if recur else bool(labels)


def read_labelled_fasta(path: Path, progress: Progress | None = None) -> list[Row]:
    """Read FASTA whose headers are `name|label`."""
    rows: list[Row] = []
    seen: set[str] = set()
    for number, record in enumerate(counted(read_records(path), f"reading {path.name}, records", progress), start=1):
        label = header_label(record.header)
        if label is None:
            raise InputError(
                f"{path}: record {number:,}: the header {record.header[:60]!r} names no class; in a file named after a "
                f"split, write headers like >name|label, or give a folder per split with a FASTA file per class, such as "
                f"{split_word_of(path) or 'train'}/human.fa"
            )
        name = record.name.rpartition("|")[0]
        where = f"{path}: record {name!r}"
        sequence = record.sequence.decode("latin-1")
        _check_sequence(sequence, where)
        # Names recur if one region of a genome was taken for several classes.
        name = name if name not in seen else f"{name} (record {number})"
        rows.append(Row(label, tags_of(record.header), name, sequence, where))
        seen.add(name)
    return rows


def read_text_folders(folder: Path) -> tuple[list[Row], list[Path]]:
    """Read GenomicBenchmarks: train|test / class / id.txt, one sequence per file."""
    rows: list[Row] = []
    files: list[Path] = []
    for split_folder in visible_folders(folder):
        for class_folder in visible_folders(split_folder):
            texts = sorted(class_folder.iterdir(), key=lambda file: (len(file.name), file.name))
            texts = [file for file in texts if not file.name.startswith(".")]
            strange = next((file for file in texts if file.suffix != ".txt"), None)
            if strange is not None:
                raise InputError(f"{strange}: not a sequence (expected {LAYOUT}); move it out of the folder")
            for file in texts:
                sequence = "".join(line for _, line in numbered_lines(file, comments=False))
                _check_sequence(sequence, str(file))
                name = f"{split_folder.name}/{class_folder.name}/{file.stem}"
                rows.append(Row(class_folder.name, {"folder": split_folder.name}, name, sequence, str(file)))
            files += texts
    if not rows:
        raise InputError(f"{folder}: contains no sequence; lay it out as {LAYOUT}")
    return rows, files


def visible_folders(folder: Path) -> list[Path]:
    """Subfolders of a folder, sorted by name, without hidden ones."""
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def check_alphabet(rows: Sequence[Row], where: str) -> None:
    """Refuse proteins and RNA, class by class: a class of RNA among DNA would be recognised by its U alone."""
    letters: dict[str, np.ndarray] = {}
    for row in rows:
        counts = letters.setdefault(row.label, np.zeros(128, dtype=np.int64))
        counts += np.bincount(np.frombuffer(row.sequence.encode(), dtype=np.uint8), minlength=128)
    for label, counts in letters.items():
        uracils = int(counts[ord("U")] + counts[ord("u")])
        refuse_protein_and_rna(f"{where}: class {label!r}", int(counts[PROTEIN_ONLY].sum()), uracils, int(counts.sum()))


def _check_sequence(sequence: str, where: str) -> None:
    if not sequence:
        raise InputError(f"{where}: the sequence is empty; remove it")
    if not (sequence.isascii() and sequence.isalpha()):
        wrong = re.search(r"[^A-Za-z]", sequence)
        assert wrong is not None
        raise InputError(
            f"{where}: {wrong[0]!r} at position {wrong.start() + 1:,} of the sequence is not a base; remove it"
        )


def numbered_lines(path: Path, comments: bool = True) -> Iterator[tuple[int, str]]:
    """Yield the lines of a plain or gzip text file with their numbers from 1, without blank lines.

    With `comments`, lines that start with # are left out too.
    """
    try:
        with open_packed(path) as handle, io.TextIOWrapper(handle, encoding="utf-8-sig", newline=None) as file:
            for number, line in enumerate(file, start=1):
                control = _CONTROL.search(line)
                if control is not None:
                    raise InputError(
                        f"{path}: line {number:,}: contains the control character U+{ord(control[0]):04X}; save the file as "
                        "plain text"
                    )
                if line.strip() and not (comments and line.startswith("#")):
                    yield number, line.rstrip("\r\n")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); check the file") from None
