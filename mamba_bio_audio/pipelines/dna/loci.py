"""Joins loci that are aligned between species to longer records: `mba prepare apes --join`.

    out/<species>/<file>    a record for each stretch of the reference, its loci in order; headers state split=
    out/loci.tsv            class, record, locus, start0, end: where each locus lies in its record
    out/manifest.json       sources with checksums, settings, counts

A locus is a record that has the same name in every species, and whose header says where it lies (`hg19=chr22:1-100000`) and
in which split it is. Between loci of one stretch sequence is missing, so joints are artificial; they lie at homologous places
in all species. With `substitute` a share of the bases is replaced by others, independently in each species, as if the sequence
were another individual's: what a model that has seen a locus knows of it then.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from Bio.bgzf import BgzfWriter

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import Maker, new_folder, write_json, write_text
from mamba_bio_audio.pipelines.dna.records import LINE_BASES, Record, read_records
from mamba_bio_audio.pipelines.reporter import Reporter
from mamba_bio_audio.pipelines.split_names import SPLIT_ALIASES, SPLITS

KIND = "mamba-bio-audio joined loci"
MAKER = Maker("prepare apes --join", ("manifest.json", "loci.tsv", "*/*.fa.gz*"))
_PLACE = re.compile(r"(\S+?):([\d,]+)-[\d,]+(?:\s|$)")


class Joining(NamedTuple):
    """How loci are joined.

    Attributes:
        join: loci that begin in the same so many bases of the reference become one record.
        files: names of the files to read, as a glob; each becomes a file of the same name, with .gz at its end.
        substitute: share of the bases to replace; None for none.
        seed: of the substitutions.
    """

    join: int
    files: str = "*"
    substitute: float | None = None
    seed: int = 0


class _Locus(NamedTuple):
    record: Record
    stretch: str
    place: int
    split: str


def join_loci(
    out: Path,
    source: Path,
    how: Joining,
    *,
    species: tuple[str, ...] = (),
    force: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Join the loci of every species; returns the manifest.

    Args:
        out: folder to make, to be given as `data.path`.
        source: folder with a folder of FASTA files per species.
        how: what is joined and replaced.
        species: folders to take; empty means all that have such files.
        force: replace what an earlier run left.
        reporter: receives the progress.

    Raises:
        InputError: a header does not say where its locus lies or in which split; species have different loci; a stretch
            has loci of two splits.
    """
    reporter = reporter or Reporter()
    found = {
        path.name: paths
        for path in (source / name for name in species or sorted(child.name for child in source.iterdir()))
        if path.is_dir() and (paths := sorted(path.glob(how.files)))
    }
    missing = [name for name in species if name not in found]
    if missing or len(found) < 2:
        what = missing[0] if missing else "two species"
        raise InputError(
            f"--from {source}: no files {how.files} of {what}; give a folder with a folder of them per species"
        )
    rows, counts = ["class\trecord\tlocus\tstart0\tend"], {}
    seen: dict[str, dict[str, tuple[str, int, str]]] = {}
    with new_folder(out, MAKER, inputs=[source], force=force) as work:
        for number, (name, paths) in enumerate(found.items()):
            reporter.progress("species", number, len(found))
            (work / name).mkdir()
            seen[name] = {}
            origin, bases = [], dict.fromkeys(SPLITS, 0)
            for path in paths:
                loci = _read(path, how.join)
                if twice := seen[name].keys() & loci.keys():
                    raise InputError(
                        f"{path}: record {min(twice)!r} is also in another file; give --loci that match one"
                    )
                seen[name] |= {key: (locus.stretch, locus.place, locus.split) for key, locus in loci.items()}
                target = work / name / f"{path.name.removesuffix('.gz')}.gz"
                if target.exists():
                    raise InputError(f"{path}: lies beside {target.name}; give --loci that match one of them")
                rows += _write(target, name, loci, how)
                for locus in loci.values():
                    bases[locus.split] += len(locus.record.sequence)
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                origin.append({"path": str(path), "size_bytes": path.stat().st_size, "sha256": digest})
            counts[name] = {"loci": len(seen[name]), "bases": bases, "sources": origin}
        _check_same(seen)
        write_text(work / "loci.tsv", "\n".join(rows) + "\n")
        records = {(row.split("\t")[1], row.split("\t")[0]) for row in rows[1:]}
        manifest = {
            "kind": KIND,
            "format": 1,
            "join": how.join,
            "substitute": how.substitute,
            "seed": how.seed,
            "records": len({record for record, _ in records}),
            "species": counts,
        }
        write_json(work / "manifest.json", manifest)
    return manifest


def summary_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The manifest as lines for people: (what, value)."""
    rows = []
    for name, row in manifest["species"].items():
        splits = ", ".join(f"{split} {bases:,}" for split, bases in row["bases"].items())
        rows.append((name, f"{row['loci']:,} loci in {manifest['records']:,} records; bases: {splits}"))
    if manifest["substitute"]:
        rows.append(("substituted", f"{manifest['substitute']:.3%} of the bases, seed {manifest['seed']}"))
    return rows


def _read(path: Path, join: int) -> dict[str, _Locus]:
    """Loci of a file by name."""
    found: dict[str, _Locus] = {}
    splits: dict[str, str] = {}
    for record in read_records(path):
        place, tag = _PLACE.search(record.header), re.search(r"\bsplit=(\w+)", record.header)
        word = "" if tag is None else tag[1].lower()
        split = SPLIT_ALIASES.get(word, word)
        if place is None or split not in SPLITS:
            what = "where it lies, such as hg19=chr22:1-100000" if place is None else "its split, such as split=train"
            raise InputError(f"{path}: record {record.name!r}: its header does not say {what}")
        if record.name in found:
            raise InputError(f"{path}: two records {record.name!r}; rename one")
        start = int(place[2].replace(",", "")) - 1
        stretch = f"{place[1].rpartition('=')[2]}_{start // join * join // 1000}k"
        if splits.setdefault(stretch, split) != split:
            raise InputError(
                f"{path}: record {record.name!r} is in {split}, others of its {join:,} bases in {splits[stretch]}; join fewer"
            )
        found[record.name] = _Locus(record, stretch, start, split)
    return found


def _write(path: Path, name: str, loci: Mapping[str, _Locus], how: Joining) -> list[str]:
    """Write the joined records; rows of loci.tsv."""
    stretches: dict[str, list[_Locus]] = {}
    for locus in sorted(loci.values(), key=lambda locus: locus.place):
        stretches.setdefault(locus.stretch, []).append(locus)
    rows = []
    with BgzfWriter(str(path), "wb", compresslevel=3) as handle:
        for stretch, own in stretches.items():
            sequence, start = b"".join(locus.record.sequence for locus in own), 0
            for locus in own:
                end = start + len(locus.record.sequence)
                rows.append(f"{name}\t{stretch}\t{locus.record.name}\t{start}\t{end}")
                start = end
            if how.substitute:
                sequence = substituted(sequence, how.substitute, f"{how.seed} {name} {stretch}")
            lines = [sequence[low : low + LINE_BASES] for low in range(0, len(sequence), LINE_BASES)]
            handle.write(f">{stretch} species={name} split={own[0].split} loci={len(own)}\n".encode())
            handle.write(b"\n".join(lines) + b"\n")
    return rows


def substituted(sequence: bytes, share: float, key: str) -> bytes:
    """The sequence with a share of its bases A, C, G, T replaced by one of the other three, drawn by `key`."""
    draws = np.random.default_rng(list(hashlib.sha256(key.encode()).digest()))
    bases = np.frombuffer(b"ACGT", np.uint8)
    letters = np.frombuffer(sequence.upper(), np.uint8).copy()
    changed = np.flatnonzero((draws.random(len(letters)) < share) & np.isin(letters, bases))
    old = np.searchsorted(bases, letters[changed])
    letters[changed] = bases[(old + draws.integers(1, 4, len(changed))) % 4]
    return letters.tobytes()


def _check_same(seen: Mapping[str, Mapping[str, tuple[str, int, str]]]) -> None:
    first, *others = seen
    for name in others:
        for locus in sorted(seen[first].keys() | seen[name].keys()):
            if seen[first].get(locus) != seen[name].get(locus):
                raise InputError(
                    f"locus {locus!r} is not the same in {first} and {name} (place and split); give aligned loci, the same "
                    "records in every species"
                )
