"""The field's benchmarks: which tasks lie in a folder, how each is scored, and what papers report for them (torch-free).

gue                      [group/]task/train.csv, dev.csv, test.csv             MCC        (DNABERT-2; no download here)
genomic-benchmarks       task/train|test/class/id.txt                          accuracy
nucleotide-transformer   task/train.fna, test.fna, headers >name|label         MCC

Where a benchmark has no validation split, a tenth of train becomes it, related sequences together.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.class_rows import split_word_of, visible_folders
from mamba_bio_audio.pipelines.split_names import is_split_word
from mamba_bio_audio.plain_yaml import parse

SuiteName = Literal["gue", "genomic-benchmarks", "nucleotide-transformer"]
Metric = Literal["mcc", "accuracy"]
METRICS: Mapping[str, Metric] = {"gue": "mcc", "genomic-benchmarks": "accuracy", "nucleotide-transformer": "mcc"}
# Promoters, splice sites, coding sequence and viral genomes are given on the strand that they are read from.
_STRANDED = re.compile(r"prom|splice|coding|covid|virus", re.IGNORECASE)


class Task(NamedTuple):
    """One task of a suite.

    Attributes:
        metric: the official one.
        stranded: its sequences have a known strand, so only that one is read.
        published: model -> value, and what they are, in words; {} where none are known.
    """

    name: str
    path: Path
    metric: Metric
    stranded: bool
    published: Mapping[str, float]
    published_as: str

    def settings(self) -> dict[str, object]:
        """Keys of a `data` section that read the task."""
        return {
            "kind": "dna-classes",
            "path": str(self.path),
            "shared_bases": "drop",
            "reverse_complement": not self.stranded,
        }

    def fingerprint(self) -> str:
        """SHA-256 of its files and their places."""
        digest = hashlib.sha256()
        for file in sorted(file for file in self.path.rglob("*") if file.is_file()):
            place = file.relative_to(self.path)
            if not any(part.startswith(".") for part in place.parts):
                digest.update(f"{place.as_posix()}\t{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
        return digest.hexdigest()


def find_tasks(suite: SuiteName, folder: Path, wanted: Iterable[str] = ()) -> list[Task]:
    """The tasks of a suite that lie in a folder, sorted by name.

    Args:
        suite: which layout.
        folder: of the whole suite, or of one task.
        wanted: names; all where it is empty.

    Raises:
        InputError: there is none, or one that is wanted is missing.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder of the benchmark")
    places = {_name(folder, place): place for place in _places(suite, folder)}
    if not places:
        raise InputError(f"{folder}: no task of {suite} in it; expected folders of {_LAYOUTS[suite]}")
    wanted = list(wanted)
    missing = [name for name in wanted if name not in places]
    if missing:
        raise InputError(f"{folder}: no task {missing[0]!r}; there are {', '.join(sorted(places))}")
    source, numbers = _published(suite)
    return [
        Task(
            name,
            places[name],
            METRICS[suite],
            bool(_STRANDED.search(name)),
            numbers.get(name, {}),
            source,
        )
        for name in sorted(wanted or places, key=lambda name: (re.sub(r"\d+", "", name), name))
    ]


_LAYOUTS = {
    "gue": "train.csv, dev.csv and test.csv (or .tsv, .gz)",
    "genomic-benchmarks": "train|test / class / id.txt",
    "nucleotide-transformer": "train.fna and test.fna (or .fa, .fasta, .gz)",
}


def _places(suite: SuiteName, folder: Path) -> list[Path]:
    """Folders that hold the splits of a task."""
    places = []
    for place in [folder, *(path for path in sorted(folder.rglob("*")) if path.is_dir())]:
        if any(part.startswith(".") for part in place.relative_to(folder).parts):
            continue
        if suite == "genomic-benchmarks":
            names = {child.name for child in visible_folders(place)}
        else:
            names = {word for child in place.iterdir() if child.is_file() and (word := split_word_of(child))}
        if {"train", "test"} <= {name.lower() for name in names if is_split_word(name)}:
            places.append(place)
    return places


def _name(folder: Path, place: Path) -> str:
    """`tf/0` is tf_0, `prom/prom_core_all` is prom_core_all; a task that is given itself keeps its folder's name."""
    parts = place.relative_to(folder).parts or (place.resolve().name,)
    if len(parts) > 1 and parts[-1].lower().startswith(parts[-2].lower()):
        parts = parts[:-2] + parts[-1:]
    return "_".join(parts)


def _published(suite: str) -> tuple[str, dict[str, dict[str, float]]]:
    """What the numbers are, and task -> model -> value."""
    place = files("mamba_bio_audio") / "pipelines" / "dna" / "published.yaml"
    found = parse(place.read_text(encoding="utf-8"), "published.yaml").get(suite)
    if found is None:
        return "", {}
    models = [str(model) for model in found["models"]]
    rows = {
        str(task): dict(zip(models, (float(value) for value in values), strict=True))
        for task, values in found["tasks"].items()
    }
    return f"{found['metric']}, {found['source']}", rows
