"""Labelled DNA from tables, FASTA per class, BED with labels, and the folders of GenomicBenchmarks.

Every source becomes `Region`s: spans of sequence with a class, a split where the source names one, and a locus. Class
names are sorted before they are numbered, so that a number never depends on the order of files.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.classes_config import DnaClassesConfig
from mamba_bio_audio.pipelines.dna.genome import FileFingerprint, Genome, find_fasta_files, genome_name, is_fasta_name
from mamba_bio_audio.pipelines.dna.intervals import SPLIT_ALIASES, SPLITS
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer

# Genomes up to this size are held in memory, one byte a base; larger ones are read window by window.
MEMORY_BASES = 1 << 30
LAYOUT = "train|test / class / id.txt"


@dataclass(frozen=True)
class Region:
    """The bases [start, end) of a record, all of one class.

    Attributes:
        label: number of the class.
        source: which of the readers has the record.
        split: train, valid or test; None until one is chosen.
        locus: what is drawn anew in a bootstrap; regions of one locus resemble each other, also in other classes.
    """

    label: int
    source: int
    record: str
    start: int
    end: int
    split: str | None
    locus: str

    def __len__(self) -> int:
        return self.end - self.start


@dataclass
class Labelled:
    """Labelled sequence and how to read it.

    Attributes:
        classes: names in the order of their numbers.
        regions: everything there is, in a fixed order.
        genomes: readers of FASTA files; empty for sequences that are held in memory.
        sequences: record -> ids (L,), for sources without a genome.
        examples: each region is one example; else windows are drawn from them.
        origin: where the splits come from, in words; empty until they are there.
    """

    classes: tuple[str, ...]
    regions: list[Region]
    genomes: list[Genome]
    sequences: dict[str, NDArray[np.uint8]]
    examples: bool
    files: list[FileFingerprint]
    origin: str = ""
    _memory: dict[tuple[int, str], NDArray[np.uint8]] = field(default_factory=dict)

    def load(self) -> None:
        """Read genomes of moderate size into memory, before workers start."""
        wanted = dict.fromkeys((region.source, region.record) for region in self.regions)
        if self.genomes and sum(self.genomes[source].records[record] for source, record in wanted) <= MEMORY_BASES:
            for source, record in wanted:
                genome = self.genomes[source]
                self._memory[source, record] = genome.fetch(record, 0, genome.records[record])

    def fetch(self, region: Region, start: int, end: int) -> NDArray[np.uint8]:
        """Token ids (end - start,) of bases [start, end) of the region's record."""
        if not self.genomes:
            return self.sequences[region.record][start:end]
        held = self._memory.get((region.source, region.record))
        return self.genomes[region.source].fetch(region.record, start, end) if held is None else held[start:end]


def open_labelled(config: DnaClassesConfig) -> Labelled:
    """Find out what kind of source `data.path` is, and read it.

    Raises:
        InputError: nothing usable there; the message names file, line and remedy.
    """
    path = config.path
    if not path:
        raise InputError(
            "data.path is not set: give a table, FASTA files, or a folder with a folder per class. "
            "For example --set data.path=folder"
        )
    if config.labels is not None:
        if isinstance(path, Mapping):
            raise InputError("data.labels goes with one FASTA in data.path, not with a mapping of classes")
        labelled = _from_bed(config.labels, Genome(path))
    elif isinstance(path, str) and not os.path.isdir(os.path.expanduser(path)) and not _is_fasta(path):
        labelled = _from_table(Path(path).expanduser())
    elif isinstance(path, str) and _is_layout(folder := Path(path).expanduser()):
        labelled = _from_layout(folder)
    else:
        labelled = _from_fasta(_class_files(path, config.files, config.classes))
    labelled = _choose_classes(labelled, config.classes)
    if config.sampling != "auto":
        labelled.examples = config.sampling == "examples"
    return labelled


def _choose_classes(labelled: Labelled, wanted: list[str] | None) -> Labelled:
    """Only these classes, numbered in this order."""
    if wanted is not None:
        unknown = [name for name in wanted if name not in labelled.classes]
        if unknown:
            raise InputError(f"data.classes: no class {unknown[0]!r} in the data; it has {_some(labelled.classes)}")
        number = {labelled.classes.index(name): i for i, name in enumerate(wanted)}
        kept = [replace(r, label=number[r.label]) for r in labelled.regions if r.label in number]
        labelled = replace(labelled, classes=tuple(wanted), regions=kept)
    if len(labelled.classes) < 2:
        raise InputError(
            f"data.path: one class only, {_some(labelled.classes)}; a classifier needs two or more. "
            f"Accepted: a table, a FASTA file or a folder per class, or {LAYOUT}"
        )
    return labelled


def _from_table(path: Path) -> Labelled:
    """TSV or CSV with a header line naming sequence, label and, optionally, split and id."""
    # After the header a line that begins with # is a row: a label may.
    lines = list(numbered_lines(path, comments=False))
    while lines and lines[0][1].startswith("#"):
        del lines[0]
    if not lines:
        raise InputError(f"{path}: empty; the first line names the columns sequence, label and, optionally, split, id")
    delimiter = "\t" if "\t" in lines[0][1] else ","
    header = [name.strip().lower() for name in next(csv.reader([lines[0][1]], delimiter=delimiter))]
    missing = [name for name in ("sequence", "label") if name not in header]
    if missing:
        raise InputError(
            f"{path}: line {lines[0][0]:,}: the header lacks {', '.join(missing)}; it must name sequence, label and, "
            f"optionally, split and id, in any order"
        )
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}: line {lines[0][0]:,}: two columns are called {twice!r}; rename one of them")
    rows = []
    for number, line in lines[1:]:
        where = f"{path}: line {number:,}"
        values = next(csv.reader([line], delimiter=delimiter))
        if len(values) != len(header):
            raise InputError(f"{where}: {len(values)} columns instead of {len(header)}")
        row = dict(zip(header, (value.strip() for value in values), strict=True))
        rows.append((row["label"], _split(row.get("split"), where), row.get("id") or f"line {number}", row["sequence"]))
        _check_sequence(row["sequence"], where)
        if not row["label"]:
            raise InputError(f"{where}: no label")
    return _in_memory(rows, [path], str(path))


def _from_layout(folder: Path) -> Labelled:
    """GenomicBenchmarks: train|test / class / id.txt, one sequence a file."""
    rows, files = [], []
    for split_folder in sorted(child for child in folder.iterdir() if child.is_dir()):
        split = _split(split_folder.name, str(split_folder))
        for class_folder in sorted(child for child in split_folder.iterdir() if child.is_dir()):
            texts = sorted(class_folder.iterdir(), key=lambda file: (len(file.name), file.name))
            texts = [file for file in texts if not file.name.startswith(".")]
            strange = next((file for file in texts if file.suffix != ".txt"), None)
            if strange is not None:
                raise InputError(f"{strange}: not a sequence; expected {LAYOUT}. Move it out of the folder")
            for file in texts:
                sequence = "".join(line for _, line in numbered_lines(file, comments=False))
                _check_sequence(sequence, str(file))
                rows.append(
                    (class_folder.name, split, f"{split_folder.name}/{class_folder.name}/{file.stem}", sequence)
                )
            files += texts
    if not rows:
        raise InputError(f"{folder}: no sequence in it; expected {LAYOUT}")
    return _in_memory(rows, files, str(folder))


def _in_memory(rows: list[tuple[str, str | None, str, str]], files: list[Path], where: str) -> Labelled:
    codec = DnaTokenizer()
    classes = tuple(sorted({label for label, *_ in rows}))
    number = {name: i for i, name in enumerate(classes)}
    sequences: dict[str, NDArray[np.uint8]] = {}
    regions = []
    for label, split, name, text in rows:
        if name in sequences:
            raise InputError(f"{where}: two sequences are called {name!r}; ids must differ")
        sequences[name] = codec.encode(text)
        regions.append(Region(number[label], 0, name, 0, len(text), split, name))
    digest = hashlib.sha256()
    for label, split, name, text in rows:
        digest.update(f"{label}\t{split}\t{name}\t{text}\n".encode())
    size = sum(file.stat().st_size for file in files)
    return Labelled(
        classes,
        regions,
        [],
        sequences,
        True,
        [FileFingerprint(os.path.basename(where), where, size, digest.hexdigest())],
    )


def _from_fasta(by_class: Mapping[str, list[str]]) -> Labelled:
    """Whole records of FASTA files per class; splits come later or from `split=` in the headers."""
    classes = tuple(sorted(by_class))
    genomes = [Genome(by_class[name]) for name in classes]
    regions = [
        Region(label, label, record, 0, length, None, f"{classes[label]}/{record}")
        for label, genome in enumerate(genomes)
        for record, length in genome.records.items()
        if length
    ]
    files = [
        replace(file, name=f"{name}/{file.name}")
        for name, genome in zip(classes, genomes, strict=True)
        for file in genome.fingerprint()
    ]
    return Labelled(classes, regions, genomes, {}, False, files)


def _from_bed(path: str, genome: Genome) -> Labelled:
    """Record, start, end, label and, optionally, split; 0-based half-open; a line of names may stand first."""
    rows: list[tuple[str, str, int, int, str | None]] = []
    for number, line in numbered_lines(Path(path).expanduser()):
        where = f"{path}: line {number:,}"
        fields = [part.strip() for part in (line.split("\t") if "\t" in line else line.split())]
        if not rows and len(fields) > 1 and fields[1].lower() in ("start", "start0", "chromstart"):
            continue
        if len(fields) not in (4, 5):
            raise InputError(
                f"{where}: {len(fields)} columns; expected record, start, end, label and, optionally, split"
            )
        if not all(re.fullmatch(r"\d+", text, re.ASCII) for text in fields[1:3]):
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
        rows.append((fields[3], record, start, end, _split(fields[4] if len(fields) == 5 else None, where)))
    if not rows:
        raise InputError(f"{path}: no region in it; expected lines of record, start, end, label")
    classes = tuple(sorted({label for label, *_ in rows}))
    loci = _overlapping([(record, start, end) for _, record, start, end, _ in rows])
    regions = [
        Region(classes.index(label), 0, record, start, end, split, loci[record, start])
        for label, record, start, end, split in rows
    ]
    text = Path(path).expanduser().read_bytes()
    own = FileFingerprint(os.path.basename(path), path, len(text), hashlib.sha256(text).hexdigest())
    return Labelled(classes, regions, [genome], {}, True, [*genome.fingerprint(), own])


def _overlapping(spans: list[tuple[str, int, int]]) -> dict[tuple[str, int], str]:
    """(record, start) of each span -> its locus: spans that share bases, directly or through others, are one."""
    loci: dict[tuple[str, int], str] = {}
    members: list[tuple[str, int]] = []
    record, low, high = "", 0, 0
    for name, start, end in [*sorted(spans), ("", 0, 0)]:
        if members and (name != record or start >= high):
            loci |= dict.fromkeys(members, f"{record}:{low}-{high}")
            members = []
        record, low, high = name, start if not members else low, end if not members else max(high, end)
        members.append((name, start))
    return loci


def _class_files(
    path: str | list[str] | Mapping[str, str | list[str]], pattern: str, wanted: list[str] | None
) -> dict[str, list[str]]:
    """FASTA files of each class; folders of classes that nobody wants are not looked into."""

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
        children = sorted(child for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []
        if children:
            loose = sorted(file.name for file in folder.iterdir() if file.is_file() and is_fasta_name(file.name))
            if loose:
                raise InputError(
                    f"{folder}: {loose[0]} lies beside the folders of the classes and would belong to none; move it into "
                    f"one, or name the classes: data.path={{a: ..., b: ...}}"
                )
            used = [child for child in children if (child.name in wanted if wanted else any(child.iterdir()))]
            return {child.name: below(str(child)) for child in used}
    files = [file for one in ([path] if isinstance(path, str) else path) for file in below(one)]
    names = [genome_name(file) for file in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(
            f"data.path: two files would be class {twice!r}; name the classes: data.path={{a: ..., b: ...}}"
        )
    return {name: [file] for name, file in zip(names, files, strict=True)}


def _is_layout(folder: Path) -> bool:
    """Whether a folder has splits as its folders, with classes below them."""
    if not folder.is_dir():
        return False
    names = {child.name for child in folder.iterdir() if child.is_dir()}
    return bool(names) and all(SPLIT_ALIASES.get(name, name) in SPLITS for name in names)


def _is_fasta(path: str) -> bool:
    return not re.search(r"\.(tsv|csv|txt|tab)(\.gz)?$", path.lower())


def _split(text: str | None, where: str) -> str | None:
    if not text:
        return None
    split = SPLIT_ALIASES.get(text.lower(), text.lower())
    if split not in SPLITS:
        raise InputError(f"{where}: unknown split {text!r}; allowed: {', '.join(SPLITS)} (val means valid)")
    return split


def _check_sequence(sequence: str, where: str) -> None:
    if not sequence:
        raise InputError(f"{where}: empty sequence")
    wrong = re.search(r"[^A-Za-z]", sequence)
    if wrong:
        raise InputError(f"{where}: {wrong[0]!r} at position {wrong.start() + 1:,} of the sequence is not a base")


def numbered_lines(path: Path, comments: bool = True) -> Iterator[tuple[int, str]]:
    """Lines of a text file, also gzip-compressed, with their numbers from 1, without blank lines; `comments`: without #."""
    opener: Callable[..., object] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline=None) as file:  # type: ignore[attr-defined]
            for number, line in enumerate(file, start=1):
                if line.strip() and not (comments and line.startswith("#")):
                    yield number, line.rstrip("\r\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def header_tag(path: str, tag: str) -> dict[str, str]:
    """`tag=value` of every FASTA header that has it, by record name; empty when the file's first header has none."""
    values: dict[str, str] = {}
    opener: Callable[..., object] = gzip.open if path.endswith((".gz", ".bgz")) else open
    with opener(path, "rb") as file:  # type: ignore[attr-defined]
        for line in file:
            if line[:1] != b">":
                if not values:
                    break
                continue
            words = line[1:].decode("utf-8", "replace").split()
            found = [word.partition("=")[2] for word in words[1:] if word.startswith(f"{tag}=")]
            if found:
                values[words[0]] = found[0]
            elif not values:
                break
    return values


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
