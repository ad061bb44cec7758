"""Labelled DNA from tables, FASTA per class, BED with labels, and the folders of GenomicBenchmarks.

Every source becomes regions: spans with a class, a locus and, where the source names one, a split. Class names are sorted
before they are numbered, so that a number never depends on the order of files.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.class_rows import (
    LAYOUT,
    Columns,
    Progress,
    Row,
    check_alphabet,
    has_header_labels,
    is_table_name,
    numbered_lines,
    read_labelled_fasta,
    read_split_files,
    read_table,
    read_text_folders,
    split_word_of,
    visible_folders,
)
from mamba_bio_audio.pipelines.dna.class_tags import splits_of
from mamba_bio_audio.pipelines.dna.classes_config import DnaClassesConfig
from mamba_bio_audio.pipelines.dna.genome import FileFingerprint, Genome, find_fasta_files, genome_name, is_fasta_name
from mamba_bio_audio.pipelines.dna.label_values import values_of
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.pipelines.spans import Region, Span, merge
from mamba_bio_audio.pipelines.split_names import is_split_word, refuse_split_names
from mamba_bio_audio.text import some

# Genomes up to this size are held in memory, one byte per base; larger ones are read window by window.
MEMORY_BASES = 1 << 30


@dataclass
class Labelled:
    """Labelled sequence and how to read it.

    Attributes:
        classes: names in the order of their numbers.
        regions: everything there is, in a fixed order.
        genomes: readers of FASTA files; empty for sequences that are held in memory.
        sequences: record -> ids (L,), for sources without a genome.
        names, values: of labels that are no single class (`label_values.values_of`); None where there are classes.
        examples: each region is one example; else windows are drawn from them.
        origin: where the splits come from, in words; empty until they are there.
        left_out: regions with too many unknown bases; see `leave_out_unknown`.
        dropped: number of validation examples that were left out because they are also in train (`data.shared_bases`).
        progress: called while regions are compared, as by `open_labelled`.
        identity, near, between: what `class_duplicates` found of equal and nearly equal regions; empty until asked for.
    """

    classes: tuple[str, ...]
    regions: list[Region]
    genomes: list[Genome]
    sequences: dict[str, NDArray[np.uint8]]
    examples: bool
    files: list[FileFingerprint]
    origin: str = ""
    names: tuple[str, ...] = ()
    values: NDArray[np.float32] | None = None
    left_out: list[Region] = field(default_factory=list)
    dropped: int = 0
    identity: dict[tuple[int, str, int, int], int] = field(default_factory=dict)
    near: list[tuple[int, int]] = field(default_factory=list)
    between: dict[str, dict[str, Any]] = field(default_factory=dict)
    progress: Progress | None = None
    _memory: dict[tuple[int, str], NDArray[np.uint8]] = field(default_factory=dict)

    def load(self) -> None:
        """Read genomes of moderate size into memory, before workers start."""
        wanted = dict.fromkeys((region.source, region.record) for region in self.regions)
        if self.genomes and sum(self.genomes[source].records[record] for source, record in wanted) <= MEMORY_BASES:
            for source, record in wanted:
                genome = self.genomes[source]
                self._memory[source, record] = genome.fetch(record, 0, genome.records[record])

    def fetch(self, region: Region) -> NDArray[np.uint8]:
        """Token ids (len(region),) of a region, on its strand."""
        if not self.genomes:
            return self.sequences[region.record][region.start : region.end]
        held = self._memory.get((region.source, region.record))
        ids = self.genomes[region.source].fetch(*region) if held is None else held[region.start : region.end]
        return DnaTokenizer().reverse_complement(ids) if region.reverse else ids


def open_labelled(config: DnaClassesConfig, progress: Progress | None = None, task: str = "classes") -> Labelled:
    """Detect what kind of source `data.path` is, and read it.

    Args:
        config: what to read.
        task: what for: classes, multilabel or regression.
        progress: called with (what, done, in all), for example ("reading t.tsv, rows", 4096, None).

    Raises:
        InputError: there is nothing usable; the message names file, line and remedy.
    """
    path = config.path
    if not path:
        raise InputError(
            "data.path is not set: give a table, FASTA files, or a folder with a folder per class. "
            "For example --set data.path=folder"
        )
    use_splits = config.split != "draw"
    if config.labels is not None:
        if isinstance(path, Mapping):
            raise InputError("data.labels requires one FASTA in data.path, not a mapping of classes")
        labelled = _from_bed(config.labels, Genome(path, progress=progress), use_splits)
    else:
        rows = None if isinstance(path, Mapping) else _rows(path, config, progress, task)
        if rows is not None:
            labelled = _in_memory(*rows, use_splits, task, config)
        else:
            labelled = _from_fasta(_sources(path, config.files, config.classes), use_splits, progress)
    if task == "classes":
        labelled = _choose_classes(labelled, config.classes)
    else:
        _check_values(labelled, config, task)
    labelled.progress = progress
    if config.sampling != "auto":
        labelled.examples = config.sampling == "examples"
    return labelled


def leave_out_unknown(labelled: Labelled, max_unknown: float) -> None:
    """Leave out examples with too many bases other than A, C, G, T, as windows with too many are not drawn.

    Raises:
        InputError: a class has no other example.
    """
    codec = DnaTokenizer()
    kept: list[Region] = []
    for region in labelled.regions:
        if labelled.genomes:
            unknown = int(labelled.genomes[region.source].count_unknown(*region))
        else:
            unknown = codec.count_unknown(labelled.fetch(region))
        (kept if unknown <= max_unknown * len(region) else labelled.left_out).append(region)
    present = {region.label for region in kept}
    for label, name in enumerate(labelled.classes):
        if label not in present:
            raise InputError(
                f"class {name!r}: every example has more than {max_unknown:.0%} bases other than A, C, G, T (the first is "
                f"{next(r.record for r in labelled.left_out if r.label == label)!r}); raise data.max_unknown, or choose "
                f"data.classes"
            )
    labelled.regions = kept


def _check_values(labelled: Labelled, config: DnaClassesConfig, task: str) -> None:
    """Refuse sources and settings that have no meaning for labels which are no single class."""
    if labelled.values is None:
        raise InputError(
            f"head.task={task}: {config.path} names a class for each file, folder or region; give a table with the columns "
            f"sequence and label, or FASTA with headers >name|label"
        )
    if config.classes is not None:
        raise InputError(f"data.classes: is for head.task=classes, not {task}; leave it null")
    if config.sampling == "windows":
        raise InputError(f"data.sampling=windows: with head.task={task} a label is of a whole sequence; set it to auto")


def _choose_classes(labelled: Labelled, wanted: list[str] | None) -> Labelled:
    """Only these classes, numbered in this order."""
    if wanted is not None:
        unknown = [name for name in wanted if name not in labelled.classes]
        if unknown:
            raise InputError(f"data.classes: no class {unknown[0]!r} in the data; it has {some(labelled.classes)}")
        number = {labelled.classes.index(name): i for i, name in enumerate(wanted)}
        kept = [replace(r, label=number[r.label]) for r in labelled.regions if r.label in number]
        labelled = replace(labelled, classes=tuple(wanted), regions=kept)
    if len(labelled.classes) < 2:
        raise InputError(
            f"data.path: only one class, {some(labelled.classes)}, but a classifier needs two or more. "
            f"Accepted: a table, a FASTA file or a folder per class, or {LAYOUT}"
        )
    return labelled


def _rows(
    path: str | list[str], config: DnaClassesConfig, progress: Progress | None, task: str
) -> tuple[list[Row], list[Path], str] | None:
    """Sequences that stand one by one, their files, and what to call those; None for FASTA per class.

    A label may be missing where it is no single class.
    """
    empty = task != "classes"
    columns = Columns.of(config.columns)
    if task == "classes" and len(columns.labels) > 1:
        raise InputError(
            f"data.columns: label names {len(columns.labels)} columns, but head.task=classes predicts one class; name one of "
            f"them, or set head.task to multilabel or regression"
        )
    given = [Path(one).expanduser() for one in ([path] if isinstance(path, str) else path)]
    if len(given) == 1 and given[0].is_dir():
        folder = given[0]
        if _has_text_folders(folder):
            return *read_text_folders(folder), str(folder)
        files = _split_files(folder, config.files)
        return (
            None
            if files is None
            else (read_split_files(files, progress, columns, empty_labels=empty), files, str(folder))
        )
    if len(given) > 1 and all(split_word_of(one) for one in given):
        return read_split_files(given, progress, columns, empty_labels=empty), given, str(given[0].parent)
    tables = [one for one in given if is_table_name(one.name)]
    if len(given) > 1 and tables:
        raise InputError(
            f"data.path: {tables[0]}: several tables must be named train, dev and test, one for each split; rename them, or "
            f"give one table with a column split"
        )
    if tables:
        return read_table(given[0], progress, columns, empty_labels=empty), given, str(given[0])
    fasta = len(given) == 1 and given[0].is_file() and given[0].suffix != ".2bit"
    if fasta and has_header_labels(given[0], recur=task == "classes"):
        return read_labelled_fasta(given[0], progress), given, str(given[0])
    return None


def _has_text_folders(folder: Path) -> bool:
    """Whether the folders in a folder are splits, all of them, with text files below them or no FASTA."""
    children = visible_folders(folder)
    if not children or not all(is_split_word(child.name) for child in children):
        return False
    texts = any(file.suffix == ".txt" for child in children for file in child.glob("*/*"))
    return texts or not any(is_fasta_name(file.name) for child in children for file in child.rglob("*"))


def _split_files(folder: Path, pattern: str) -> list[Path] | None:
    """train.tsv, dev.tsv, test.tsv or train.fna, test.fna of a folder; None where there are none."""
    if visible_folders(folder):
        return None
    files = sorted(file for file in folder.iterdir() if file.is_file() and fnmatch(file.name, pattern))
    called = [file for file in files if split_word_of(file) is not None]
    # Notes and lists may lie beside FASTA.
    tables = not any(is_fasta_name(file.name) for file in called)
    alike = [file for file in files if (is_table_name(file.name) if tables else is_fasta_name(file.name))]
    others = [file for file in alike if file not in called and not file.name.lower().endswith((".txt", ".txt.gz"))]
    if called and others:
        raise InputError(
            f"{folder}: {called[0].name} is named after a split but {others[0].name} is not; move one of them out of the "
            f"folder, or select files with data.files"
        )
    if others and tables and not any(is_fasta_name(file.name) for file in files):
        raise InputError(
            f"{folder}: no FASTA in it; give the table itself, data.path={others[0]}, or name tables train.tsv, dev.tsv, "
            f"test.tsv"
        )
    return called or None


def _in_memory(
    rows: list[Row], files: list[Path], where: str, use_splits: bool, task: str, config: DnaClassesConfig
) -> Labelled:
    names: tuple[str, ...] = ()
    values = None
    check_alphabet(rows if task == "classes" else [row._replace(label=task) for row in rows], where)
    said: Iterable[tuple[str, Mapping[str, str]]] = ((row.where, row.tags) for row in rows)
    splits = splits_of(said, "sequences") if use_splits else [None] * len(rows)
    codec = DnaTokenizer()
    if task == "classes":
        classes = _sorted_classes((row.label for row in rows), where)
        number = {name: i for i, name in enumerate(classes)}
        labels = [number[row.label] for row in rows]
    else:
        # One stratum, as far as splits are concerned.
        classes, labels = (task,), [0] * len(rows)
        columns = Columns.of(config.columns if is_table_name(files[0].name) else None).labels
        names, values = values_of(rows, columns, task, where)
    sequences: dict[str, NDArray[np.uint8]] = {}
    regions = []
    digest = hashlib.sha256()
    for at, (row, split, label) in enumerate(zip(rows, splits, labels, strict=True)):
        sequences[row.name] = codec.encode(row.sequence)
        locus = f"group {row.group}" if row.group else row.name
        own = -1 if values is None else at
        regions.append(Region(row.name, 0, len(row.sequence), label, split, locus, row=own))
        digest.update(f"{';'.join((row.label, *row.more))}\t{split}\t{row.name}\t{row.sequence}\n".encode())
    size = sum(file.stat().st_size for file in files)
    fingerprint = FileFingerprint(os.path.basename(where), where, size, digest.hexdigest())
    return Labelled(classes, regions, [], sequences, True, [fingerprint], names=names, values=values)


def _sorted_classes(labels: Iterable[str], where: str) -> tuple[str, ...]:
    """Class names of a column; splits in the place of labels are refused."""
    classes = tuple(sorted(set(labels)))
    if classes and all(is_split_word(name) for name in classes):
        raise InputError(
            f"{where}: the labels are {some(classes)}, which are names of splits; label every sequence with its class"
        )
    return classes


def _from_fasta(
    sources: list[tuple[str, str | None, list[str]]], use_splits: bool, progress: Progress | None
) -> Labelled:
    """Whole records of FASTA files per class.

    Args:
        sources: (class, word for a split, files); without a word splits come later, or from the headers.
    """
    classes = tuple(sorted({name for name, _, _ in sources}))
    genomes = [Genome(files, progress=progress) for _, _, files in sources]
    said = [(files[0], {} if word is None else {"file or folder": word}) for _, word, files in sources]
    splits = splits_of(said, "files") if use_splits else [None] * len(sources)
    regions, files = [], []
    for source, ((name, word, _), genome, split) in enumerate(zip(sources, genomes, splits, strict=True)):
        place = name if word is None else f"{name}/{word}"
        regions += [
            Region(record, 0, length, classes.index(name), split, f"{place}/{record}", source)
            for record, length in genome.records.items()
            if length
        ]
        files += [replace(file, name=f"{place}/{file.name}") for file in genome.fingerprint()]
    return Labelled(classes, regions, genomes, {}, False, files)


def _from_bed(path: str, genome: Genome, use_splits: bool) -> Labelled:
    """Record, start, end, label and, optionally, split; or BED6 and, optionally, split; a line of names may stand first."""
    rows: list[tuple[str, str, int, int]] = []
    strands: list[bool] = []
    said: list[tuple[str, Mapping[str, str]]] = []
    for number, line in numbered_lines(Path(path).expanduser()):
        where = f"{path}: line {number:,}"
        fields = [part.strip() for part in (line.split("\t") if "\t" in line else line.split())]
        if not rows and len(fields) > 1 and fields[1].lower() in ("start", "start0", "chromstart"):
            continue
        if fields[0] in ("track", "browser") and fields[0] not in genome.records:
            continue
        if len(fields) not in (4, 5, 6, 7):
            raise InputError(
                f"{where}: {len(fields)} columns; expected record, start, end, label and, optionally, split, or score, strand "
                f"and, optionally, split"
            )
        if len(fields) > 5 and fields[5] not in ("+", "-", "."):
            raise InputError(f"{where}: the strand, column 6, is {fields[5]!r}; write +, - or .")
        if not all(re.fullmatch(r"\d{1,18}", text, re.ASCII) for text in fields[1:3]):
            raise InputError(f"{where}: start and end must be whole numbers, not {fields[1]!r} and {fields[2]!r}")
        try:
            record = genome.resolve(fields[0])
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        start, end = int(fields[1]), int(fields[2])
        if not start < end <= genome.records[record]:
            raise InputError(
                f"{where}: [{start:,}, {end:,}) is not inside {record!r} of {genome.records[record]:,} bases; starts "
                f"count from 0 and the end is excluded"
            )
        if not fields[3]:
            raise InputError(f"{where}: no label")
        rows.append((fields[3], record, start, end))
        strands.append(len(fields) > 5 and fields[5] == "-")
        said.append((where, {"split": fields[-1]} if len(fields) in (5, 7) else {}))
    if not rows:
        raise InputError(f"{path}: no regions; expected lines of record, start, end, label")
    splits = splits_of(said, "regions") if use_splits else [None] * len(rows)
    classes = _sorted_classes((label for label, *_ in rows), path)
    numbers = {name: i for i, name in enumerate(classes)}
    # The spans of a record are sorted and disjoint; the last one that begins at or before a region holds it.
    unions = sorted(merge((row[1:] for row in rows), adjacent=False))
    loci = [unions[bisect_right(unions, Span(record, start, sys.maxsize)) - 1] for _, record, start, _ in rows]
    regions = [
        Region(record, start, end, numbers[label], split, f"{record}:{locus.start}-{locus.end}", reverse=reverse)
        for (label, record, start, end), split, locus, reverse in zip(rows, splits, loci, strands, strict=True)
    ]
    text = Path(path).expanduser().read_bytes()
    own = FileFingerprint(os.path.basename(path), path, len(text), hashlib.sha256(text).hexdigest())
    return Labelled(classes, regions, [genome], {}, True, [*genome.fingerprint(), own])


def _sources(
    path: str | list[str] | Mapping[str, str | list[str]], pattern: str, wanted: list[str] | None
) -> list[tuple[str, str | None, list[str]]]:
    """(class, word for a split, FASTA files) of each class, or of each class and split where folders or files name splits."""
    remedy = (
        f"Accepted with splits: {LAYOUT}; folders train and test with a FASTA or a folder per class; a folder per class "
        f"with train.fa and test.fa; train.fna and test.fna with headers >name|label; train.tsv, dev.tsv, test.tsv"
    )
    if isinstance(path, str) and (folder := Path(path).expanduser()).is_dir():
        children = [child for child in visible_folders(folder) if any(child.iterdir())]
        if children and all(is_split_word(child.name) for child in children):
            return [
                (name, child.name, files)
                for child in children
                for name, files in _class_files(str(child), pattern, wanted).items()
            ]
    by_class = _class_files(path, pattern, wanted)
    refuse_split_names(by_class, "data.path", remedy)
    words = {file: split_word_of(Path(file)) for files in by_class.values() for file in files}
    if not any(words.values()):
        return [(name, None, files) for name, files in sorted(by_class.items())]
    labelled = next((file for file, word in words.items() if word and has_header_labels(Path(file))), None)
    if labelled is not None:
        raise InputError(
            f"data.path: {labelled} names its classes in its headers (>name|label), so the folders are data sets, not "
            f"classes; give one of them, data.path={os.path.dirname(labelled)}"
        )
    silent = next((file for file, word in words.items() if word is None), None)
    if silent is not None:
        named = next(file for file, word in words.items() if word)
        raise InputError(f"data.path: {named} is named after a split but {silent} is not. {remedy}")
    return [
        (name, word, [file for file in files if words[file] == word])
        for name, files in sorted(by_class.items())
        for word in dict.fromkeys(words[file] for file in files)
    ]


def _class_files(
    path: str | list[str] | Mapping[str, str | list[str]], pattern: str, wanted: list[str] | None
) -> dict[str, list[str]]:
    """FASTA files of each class; folders of classes that are not wanted are not looked into."""

    def below(folder: str) -> list[str]:
        found = find_fasta_files(folder)
        if not os.path.isdir(os.path.expanduser(folder)):
            return found
        kept = [file for file in found if fnmatch(os.path.basename(file), pattern)]
        if not kept:
            raise InputError(f"{folder}: no FASTA file there is called {pattern} (data.files)")
        return kept

    if isinstance(path, Mapping):
        return {
            name: [file for one in ([given] if isinstance(given, str) else given) for file in below(one)]
            for name, given in path.items()
            if wanted is None or name in wanted
        }
    if isinstance(path, str):
        folder = Path(path).expanduser()
        children = visible_folders(folder) if folder.is_dir() else []
        if children:
            loose = sorted(file.name for file in folder.iterdir() if file.is_file() and is_fasta_name(file.name))
            if loose:
                raise InputError(
                    f"{folder}: {loose[0]} lies beside the folders of the classes and belongs to none; move it into "
                    f"one, or name the classes: data.path={{a: ..., b: ...}}"
                )
            used = [child for child in children if (child.name in wanted if wanted else any(child.iterdir()))]
            return {child.name: below(str(child)) for child in used}
    files = [file for one in ([path] if isinstance(path, str) else path) for file in below(one)]
    names = [genome_name(file) for file in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(
            f"data.path: two files would be the class {twice!r}; name the classes: data.path={{a: ..., b: ...}}"
        )
    return {name: [file] for name, file in zip(names, files, strict=True)}
