"""A positive control for classification: real sequence in which every class has a repeat family planted of its own.

    copies in a record ~ Poisson(length / spacing);   each copy: the family's consensus, each base exchanged with p

A window of L bases holds no copy with probability exp(-L / spacing); then nothing tells the class and a guess
is right once in C times. With a copy the class is certain. So no classifier can be right more often than

    ceiling(L) = 1 - (1 - 1 / C) exp(-L / spacing)

and one that reaches it has found and remembered one short signal anywhere in L bases.

Copies replace bases instead of being inserted: every record keeps its length and every base its place, so that
neither lengths nor coordinates nor the alignment of loci between classes change, and files of blocks or
intervals stay true. All families have the same composition, as near as their length allows.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from Bio.bgzf import BgzfWriter
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import Maker, atomic_path, new_folder, write_json, write_text
from mamba_bio_audio.pipelines.dna.records import Record, read_records, write_record
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.pipelines.draws import for_synthesis

WORD = 24  # No family shares a word of so many bases with the sequence or with another family.
MAX_DRAWS = 20
_ACGT = np.frombuffer(b"ACGT", dtype=np.uint8)
_BASE = np.full(256, 4, dtype=np.uint8)  # Letter -> 0..3, 4 for all others.
for _i, _letters in enumerate((b"Aa", b"Cc", b"Gg", b"Tt")):
    _BASE[list(_letters)] = _i


@dataclass(frozen=True)
class Copy:
    """One planted copy, [start, start + family length) of a record, 0-based; `mutations` bases differ."""

    record: str
    start: int
    strand: str
    mutations: int


def ceiling(length: int, *, classes: int = 4, spacing: float = 20_000) -> float:
    """Highest accuracy that windows of `length` bases allow.

    >>> [round(ceiling(2**k), 2) for k in (10, 12, 14, 16)]
    [0.29, 0.39, 0.67, 0.97]
    """
    return 1 - (1 - 1 / classes) * math.exp(-length / spacing)


def ceiling_of_windows(predictions: str, copies: Path, *, at_least: int = 1) -> dict[str, Any]:
    """Highest accuracy that the copies in these very windows allow, beside what was reached; few loci stray from the formula.

    Args:
        predictions: text of the TSV that `mba evaluate` writes: class, record, start0, end, predicted, p_<class> each.
        copies: `copies.tsv` of the control.
        at_least: bases of a copy that must lie in a window to count; with 1 the ceiling can be passed only by luck;
            with more it is nearer to what can be recognised.

    Returns:
        `windows`, `with_copy` (share), `ceiling`, and the accuracy `accuracy_with_copy`, `accuracy_without`.
    """
    places: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for row in csv.DictReader(io.StringIO(copies.read_text(encoding="utf-8")), delimiter="\t"):
        places.setdefault((row["class"], row["record"]), []).append((int(row["start0"]), int(row["end"])))
    rows = list(csv.DictReader(io.StringIO(predictions), delimiter="\t"))
    if not rows:
        raise InputError("no predictions; give the table that mba evaluate writes")
    inside, right = [], []
    for row in rows:
        start, end = int(row["start0"]), int(row["end"])
        found = places.get((row["class"], row["record"].rsplit(":", 1)[-1]), [])
        inside.append(any(min(end, high) - max(start, low) >= at_least for low, high in found))
        right.append(row["class"] == row["predicted"])
    classes = sum(name.startswith("p_") for name in rows[0])
    mask, correct = np.array(inside), np.array(right)
    share = float(mask.mean())
    return {
        "windows": len(rows),
        "with_copy": share,
        "ceiling": share + (1 - share) / classes,
        "accuracy_with_copy": float(correct[mask].mean()) if mask.any() else None,
        "accuracy_without": float(correct[~mask].mean()) if not mask.all() else None,
    }


def draw_families(
    names: Sequence[str], sequences: Iterable[bytes], *, bases: int = 300, seed: int = 0
) -> dict[str, bytes]:
    """A consensus of `bases` letters for every class, found nowhere else.

    Args:
        names: the classes.
        sequences: everything that the families must not occur in, on either strand.
        bases: length of a family, at least 24.
        seed: random seed for the draws.

    Raises:
        InputError: 20 draws all shared a word with the sequences; the families are too many or too short.
    """
    if bases < WORD:
        raise InputError(f"a family of {bases} bases is too short; it needs at least {WORD}")
    kept = [np.frombuffer(sequence, dtype=np.uint8) for sequence in sequences]
    letters = np.resize(_ACGT, bases)
    for draw in range(MAX_DRAWS):
        families = [for_synthesis(seed, draw, i).permutation(letters) for i in range(len(names))]
        # Unique within a family: a palindromic word meets itself on the other strand.
        words = np.concatenate([np.unique(_words_of_both_strands(family)) for family in families])
        if len(np.unique(words)) == len(words) and not any(np.isin(_words(codes), words).any() for codes in kept):
            return {name: family.tobytes() for name, family in zip(names, families, strict=True)}
    raise InputError(f"{len(names)} families of {bases} bases share words of {WORD} with the sequence or each other")


def plant(
    record: Record,
    family: bytes,
    *,
    key: Sequence[int],
    spacing: float = 20_000,
    divergence: float = 0.1,
    both_strands: bool = True,
) -> tuple[Record, list[Copy]]:
    """Replace bases of a record by diverged copies of a family.

    Args:
        record: header and length stay as they are.
        family: the consensus.
        key: whole numbers that seed the draws, together with the record's name.
        spacing: mean distance of copies in bases.
        divergence: probability that a base of a copy is exchanged for one of the other three.
        both_strands: each copy on a random strand, as real repeats lie; else all on the given one.

    Returns:
        The new record, and its copies in the order of their places. Copies fall independently of each other, so
        a few overlap; the later one wins.
    """
    name = int.from_bytes(hashlib.sha256(record.name.encode()).digest()[:8], "little")
    random = for_synthesis(*key, name)
    codes = np.frombuffer(record.sequence, dtype=np.uint8).copy()
    places = len(codes) - len(family) + 1
    count = int(random.poisson(len(codes) / spacing)) if places > 0 else 0
    copies = []
    consensus = np.frombuffer(family, dtype=np.uint8)
    for start in np.sort(random.integers(0, max(places, 1), count)).tolist():
        shift = np.where(random.random(len(consensus)) < divergence, random.integers(1, 4, len(consensus)), 0)
        copy = _ACGT[(_BASE[consensus] + shift) % 4]
        strand = "-" if both_strands and random.random() < 0.5 else "+"
        if strand == "-":
            copy = _ACGT[3 - _BASE[copy[::-1]]]
        codes[start : start + len(copy)] = copy
        copies.append(Copy(record.name, start, strand, int((shift > 0).sum())))
    return Record(record.header, codes.tobytes()), copies


def plant_files(
    files: Mapping[str, Path],
    out: Path,
    *,
    bases: int = 300,
    spacing: float = 20_000,
    divergence: float = 0.1,
    both_strands: bool = True,
    seed: int = 0,
    force: bool = False,
) -> dict[str, Any]:
    """Write `out`/<class>/<file> with planted families, `copies.tsv` and `manifest.json`; returns the manifest.

    Headers, among them `split=`, order and lengths of records are those of the sources. The output is
    BGZF-compressed, upper case where a copy lies and as written elsewhere.

    Args:
        files: FASTA file of every class.
        out: folder to make.
        force: replace an earlier result of this function.
    """
    with new_folder(out, Maker("plant families"), inputs=[*files.values()], force=force) as folder:
        return _plant_files(files, folder, bases, spacing, divergence, both_strands, seed)


def _plant_files(
    files: Mapping[str, Path],
    out: Path,
    bases: int,
    spacing: float,
    divergence: float,
    both_strands: bool,
    seed: int,
) -> dict[str, Any]:
    names = sorted(files)
    sequences = {name: list(read_records(files[name])) for name in names}
    everything = [record.sequence for name in names for record in sequences[name]]
    families = draw_families(names, everything, bases=bases, seed=seed)
    rows = ["class\tfile\trecord\tstart0\tend\tstrand\tidentity"]
    described: dict[str, Any] = {}
    for number, name in enumerate(names):
        target = out / name / _bgzf_name(files[name].name)
        target.parent.mkdir(parents=True, exist_ok=True)
        count = length = 0
        with atomic_path(target) as temporary, BgzfWriter(str(temporary), "wb") as handle:
            for record in sequences[name]:
                planted, copies = plant(
                    record,
                    families[name],
                    key=(seed, number),
                    spacing=spacing,
                    divergence=divergence,
                    both_strands=both_strands,
                )
                write_record(cast(IO[bytes], handle), planted)
                count, length = count + len(copies), length + len(record.sequence)
                for copy in copies:
                    place = f"{target.name}\t{copy.record}\t{copy.start}\t{copy.start + bases}"
                    rows.append(f"{name}\t{place}\t{copy.strand}\t{1 - copy.mutations / bases:.4f}")
        described[name] = {
            "source": str(files[name]),
            "source_sha256": _sha256(files[name]),
            "file": f"{name}/{target.name}",
            "sha256": _sha256(target),
            "records": len(sequences[name]),
            "bases": length,
            "copies": count,
            "family": families[name].decode(),
        }
    lengths = [1 << k for k in range(10, 21, 2)]
    manifest = {
        "kind": "mamba-bio-audio positive control",
        "format": 1,
        "seed": seed,
        "family_bases": bases,
        "spacing_bases": spacing,
        "divergence": divergence,
        "both_strands": both_strands,
        "placement": "replacement",
        "ceiling": {str(length): ceiling(length, classes=len(names), spacing=spacing) for length in lengths},
        "classes": described,
    }
    write_text(out / "copies.tsv", "\n".join(rows) + "\n")
    write_json(out / "manifest.json", manifest)
    return manifest


def _words(codes: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Every word of 24 known bases as a number."""
    if len(codes) < WORD:
        return np.zeros(0, dtype=np.uint64)
    values = _BASE[codes]
    count = len(values) - WORD + 1
    words = np.zeros(count, dtype=np.uint64)
    for at in range(WORD):
        words = (words << np.uint64(2)) | (values[at : at + count] & 3).astype(np.uint64)
    unknown = np.concatenate([[0], np.cumsum(values > 3)])
    return words[unknown[WORD:] == unknown[:-WORD]]


def _words_of_both_strands(codes: NDArray[np.uint8]) -> NDArray[np.uint64]:
    codec = DnaTokenizer()
    reverse = codec.decode(codec.reverse_complement(codec.encode(codes))).encode()
    return np.concatenate([_words(codes), _words(np.frombuffer(reverse, dtype=np.uint8))])


def _bgzf_name(name: str) -> str:
    return name if name.endswith(".gz") else f"{name}.gz"


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
