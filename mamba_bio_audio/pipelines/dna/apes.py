"""Prepares species classification from whole assemblies: `mba prepare apes`.

    out/<species>/chromosomes.fa.gz     records chr1, chr2, ...; headers state split= and group=
    out/groups.tsv                      class, record, group: which chromosomes are homologous
    out/regions.tsv                     class, record, start0, end: satellites or other regions, if given
    out/manifest.json                   sources with checksums, settings, counts

Pitfalls that this avoids: assemblies of different generations, whose gaps give the class away; case, because repeat
masking differs (everything is written in upper case); unplaced contigs and the mitochondrion (left out); chromosomes
of equal number, which are not homologous between apes, so that a split by number tests on sequence whose homologue was
trained on (splits follow homologous groups, and any other split is checked against them).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from Bio.bgzf import BgzfWriter

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import Maker, atomic_path, growing_folder, read_json, write_json, write_text
from mamba_bio_audio.pipelines.dna.assemblies import (
    APES,
    NCBI,
    Assembly,
    AssemblyReport,
    by_accession,
    check_homologues,
    find_assembly,
    read_report,
)
from mamba_bio_audio.pipelines.dna.genome import find_fasta_files
from mamba_bio_audio.pipelines.dna.homology import (
    Key,
    check_homology,
    hold_out,
    homologous_groups,
    numbers_refused,
    read_splits,
)
from mamba_bio_audio.pipelines.dna.prepare_settings import SpeciesSettings, chromosomes
from mamba_bio_audio.pipelines.dna.records import Record, read_records, write_record
from mamba_bio_audio.pipelines.download import download
from mamba_bio_audio.pipelines.reporter import Reporter
from mamba_bio_audio.pipelines.split_names import SPLITS

KIND = "mamba-bio-audio prepared species"
FASTA_NAME = "chromosomes.fa.gz"
DONE_NAME = ".chromosomes.json"
MANIFEST_NAME = "manifest.json"
MAKER = Maker("prepare apes", (MANIFEST_NAME, "groups.tsv", "regions.tsv", f"*/{FASTA_NAME}*", f"*/{DONE_NAME}"))


@dataclass
class SpeciesSource:
    """Source of one species.

    Attributes:
        species: class name.
        assembly: the known assembly; None for files of an assembly that is not listed and has no report.
        files: FASTA files, plain or any gzip.
        report: its assembly report, if there is one.
        origin: address, SHA-256 and so on of every file, for the manifest.
        chromosomes: record name -> chromosome.
    """

    species: str
    assembly: Assembly | None
    files: list[Path]
    report: AssemblyReport | None
    origin: list[dict[str, Any]] = field(default_factory=list)
    chromosomes: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name of the assembly."""
        return self.assembly.stem if self.assembly else self.report.name if self.report else "unknown assembly"


def prepare_species(
    out: Path,
    settings: SpeciesSettings | None = None,
    *,
    source: Path | None = None,
    url: str | None = None,
    downloads: Path | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Download or take assemblies, name their chromosomes, and split by homologous group; returns the manifest.

    Running it again after an interruption continues: downloads resume, and finished species are kept.

    Args:
        out: folder to create, to be given as `data.path`.
        settings: species, assemblies and splits; None for the defaults. The split "numbers" is refused: see the module.
        source: folder with a folder per species, which contains FASTA and, if available, `*_assembly_report.txt`; nothing
            is downloaded.
        url: address of the tree of assemblies, instead of NCBI's.
        downloads: folder for downloaded files; None means `<out>.downloads`.
        force: replace what an earlier run with other settings left.
        reporter: receives notes, and progress in bytes.

    Raises:
        InputError: the settings are refused, or the files are wrong.
        NetworkError: a download failed.
    """
    settings, reporter = settings or SpeciesSettings(), reporter or Reporter()
    split, groups, regions = settings.split, settings.groups, settings.beds()
    if split == "numbers":
        raise InputError(numbers_refused())
    folder = downloads or out.with_name(f"{out.name}.downloads")
    given: list[Path] = [path for path in (source, downloads, groups, *regions.values()) if path is not None]
    if split != "homology":
        given.append(Path(split))
    with growing_folder(out, MAKER, MANIFEST_NAME, inputs=given, force=force) as out:
        if source is not None:
            sources = _from_folder(source, settings.species)
        else:
            wanted = [find_assembly(name, settings.generation) for name in settings.species or APES]
            sources = [_fetch(assembly, folder, url, reporter) for assembly in wanted]
        names = [item.species for item in sources]
        if len(names) < 2 or len(set(names)) < len(names):
            raise InputError(f"{', '.join(names) or 'no species'}: give at least two different species to classify")
        _check_generation(sources, settings.mix_generations)
        for item in sources:
            item.chromosomes = _name_chromosomes(item)
        homologues = {
            (item.species, chromosome): ((item.assembly and item.assembly.homologues) or {}).get(chromosome)
            for item in sources
            for chromosome in dict.fromkeys(item.chromosomes.values())
        }
        by_chromosome = homologous_groups(homologues, groups, accept_unknown=settings.unknown_homology)
        splits = (
            hold_out(by_chromosome, chromosomes(settings.valid), chromosomes(settings.test))
            if split == "homology"
            else read_splits(Path(split), by_chromosome)
        )
        check_homology(splits, by_chromosome)
        for name in names:
            lacking = [s for s in SPLITS if s not in {splits[key] for key in splits if key[0] == name}]
            if lacking:
                raise InputError(
                    f"{name}: no chromosome is left for {lacking[0]}; choose other groups with --valid and --test"
                )
        _refuse_others(out, names)
        converted = {item.species: _convert(item, out, splits, by_chromosome, reporter) for item in sources}
        rows = [f"{name}\tchr{chromosome}\t{group}" for (name, chromosome), group in by_chromosome.items()]
        write_text(out / "groups.tsv", "class\trecord\tgroup\n" + "\n".join(rows) + "\n")
        if regions:
            write_text(out / "regions.tsv", _regions(sources, regions))
        manifest = {
            "kind": KIND,
            "format": 1,
            "split_by": split,
            "held_out_groups": {s: sorted({by_chromosome[k] for k in splits if splits[k] == s}) for s in SPLITS},
            "unknown_homology": settings.unknown_homology,
            "mixed_generations": settings.mix_generations,
            "species": converted,
        }
        write_json(out / MANIFEST_NAME, manifest)
        return manifest


def summary_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The manifest as lines for people: (what, value)."""
    rows = []
    for name, row in manifest["species"].items():
        left = f"; left out {row['left_out_records']:,} others" if row["left_out_records"] else ""
        rows.append(
            (
                name,
                f"{row['assembly']}: {len(row['chromosomes'])} chromosomes, {row['bases']:,} bases, "
                f"{row['unknown_percent']:.3f} % N, {row['lower_case_percent']:.1f} % were lower case{left}",
            )
        )
    rows += [(f"{split} groups", ", ".join(found)) for split, found in manifest["held_out_groups"].items()]
    return rows


def _refuse_others(out: Path, names: Sequence[str]) -> None:
    """Refuse species left by an unfinished run with other settings, which would become classes of this one."""
    for done in sorted(out.glob(f"*/{DONE_NAME}")):
        if done.parent.name not in names:
            raise InputError(f"{done.parent}: an unfinished run left this species; start again with --force")


def _fetch(assembly: Assembly, folder: Path, url: str | None, reporter: Reporter) -> SpeciesSource:
    base, own = url or NCBI, folder / assembly.stem
    reporter.note(f"{assembly.species}: {assembly.url('', base)}")
    published: dict[str, str] = {}
    try:
        sums = download(assembly.url("md5checksums.txt", base), own / "md5checksums.txt")
        for line in Path(sums.path).read_text(encoding="utf-8").splitlines():
            digest, _, name = line.partition("  ")
            published[name.strip().removeprefix("./")] = digest.strip()
    except InputError:
        # Mirrors often lack the list; then only gzip's own checksums are checked, and the SHA-256 is recorded.
        if url is None:
            raise
        reporter.note(f"{assembly.species}: no md5checksums.txt at this address; hashes are recorded but not checked")
    done, origin = {}, []
    for suffix in ("_assembly_report.txt", "_genomic.fna.gz"):
        name = f"{assembly.stem}{suffix}"
        hashes = {"md5": published[name]} if name in published else None
        progress = reporter.part(f"downloading {name}")
        done[suffix] = download(assembly.url(name, base), own / name, hashes=hashes, progress=progress)
        # The address is recorded even if an earlier run downloaded the file.
        origin.append(done[suffix]._asdict() | {"url": assembly.url(name, base)})
    report = read_report(done["_assembly_report.txt"].path)
    if assembly.accession not in report.accessions:
        found = ", ".join(report.accessions)
        raise InputError(
            f"{report.path}: describes {found} instead of {assembly.accession}; remove it to fetch it again"
        )
    files = [Path(done["_genomic.fna.gz"].path)]
    return SpeciesSource(assembly.species, assembly, files, report, origin)


def _from_folder(folder: Path, species: Sequence[str]) -> list[SpeciesSource]:
    if not folder.is_dir():
        raise InputError(f"--from {folder}: no such folder; give a folder with one folder per species")
    names = species or sorted(child.name for child in folder.iterdir() if child.is_dir() and child.name[0] != ".")
    sources = []
    for name in names:
        own = folder / name
        if not own.is_dir():
            raise InputError(f"--from {folder}: no folder {name!r} in it; give a folder with one folder per species")
        files = [Path(path) for path in find_fasta_files(own)]
        reports = sorted(own.glob("*assembly_report.txt*"))
        if len(reports) > 1:
            raise InputError(f"{own}: two assembly reports; keep only the one that belongs to these files")
        report = read_report(reports[0]) if reports else None
        assembly = None
        if report is not None:
            listed = [found for found in map(by_accession, report.accessions) if found is not None]
            assembly = next((found for found in listed if found.species == name), listed[0] if listed else None)
            if assembly is not None and assembly.species != name:
                raise InputError(
                    f"{reports[0]}: describes {assembly.species} ({assembly.stem}), but the folder is {name!r}; rename it"
                )
        origin = [{"path": str(path), "size_bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files]
        sources.append(SpeciesSource(name, assembly, files, report, origin))
    return sources


def _check_generation(sources: Sequence[SpeciesSource], mix: bool) -> None:
    known = {item.species: set(item.assembly.generations) for item in sources if item.assembly is not None}
    unknown = [item.species for item in sources if not known.get(item.species)]
    shared = set.intersection(*known.values()) if known and not unknown else set()
    if mix or shared or len(unknown) == len(sources):
        return
    listed = ", ".join(f"{s.species}: {s.label} ({'/'.join(known.get(s.species, ())) or 'unknown'})" for s in sources)
    raise InputError(
        f"assemblies of different generations ({listed}), whose gaps and runs of N would give the species away; "
        "take all from one generation, or accept this with --mix-generations"
    )


def _name_chromosomes(item: SpeciesSource) -> dict[str, str]:
    """Record name in the FASTA -> chromosome, from the report or, without one, from names like chr1 and 2A."""
    if item.report is not None:
        if item.assembly is not None:
            check_homologues(item.report, item.assembly)
        rows = item.report.chromosomes()
        return {name: chromosome for chromosome, row in rows.items() for name in row.names}
    found: dict[str, str] = {}
    for path in item.files:
        plain = path.name.split(".")[0]
        names = [record.name for record in read_records(path)]
        for name in names:
            # A single record in a file chr7.fna is HyenaDNA's layout, in which records are named by accessions.
            text = plain if len(names) == 1 and not re.fullmatch(r"chr\w+", name) else name
            match = re.fullmatch(r"(?:chr)?(\d{1,2}[ABab]?|[XYZW])", text)
            if match:
                found[name] = match[1].upper() if match[1][-1] in "ab" else match[1]
    if not found:
        raise InputError(
            f"{item.files[0].parent}: no record has the name of a chromosome (chr1, 1); put NCBI's "
            "*_assembly_report.txt, which says which record is which, beside the FASTA"
        )
    return found


def _convert(
    item: SpeciesSource, out: Path, splits: Mapping[Key, str], groups: Mapping[Key, str], reporter: Reporter
) -> dict[str, Any]:
    """Write a species' chromosomes, unless an earlier run did so from the same files with the same splits."""
    folder = out / item.species
    target, done = folder / FASTA_NAME, folder / DONE_NAME
    own = {c: (splits[item.species, c], groups[item.species, c]) for c in dict.fromkeys(item.chromosomes.values())}
    key = json.loads(
        json.dumps({"sources": [one["sha256"] for one in item.origin], "assembly": item.label, "chromosomes": own})
    )
    if target.is_file() and done.is_file():
        before = read_json(done)
        if before.get("key") == key and before["result"]["sha256"] == _sha256(target):
            reporter.note(f"{item.species}: already converted")
            return dict(before["result"])
    folder.mkdir(parents=True, exist_ok=True)
    expected = item.report.chromosomes() if item.report is not None else {}
    reported = {name for row in item.report.rows for name in row.names} if item.report is not None else None
    chromosomes: dict[str, dict[str, Any]] = {}
    totals = {"bases": 0, "unknown": 0, "lower": 0, "left_out_records": 0, "left_out_bases": 0}
    # Level 3 is four times as fast on bases as the default of 6, and 4 % larger.
    with atomic_path(target) as temporary, BgzfWriter(str(temporary), "wb", compresslevel=3) as handle:
        for path in item.files:
            for record in read_records(path):
                chromosome = item.chromosomes.get(record.name)
                if chromosome is None:
                    if reported is not None and record.name not in reported:
                        raise InputError(
                            f"{path}: record {record.name!r} is not in {item.report.path}; use files of one assembly"  # type: ignore
                        )
                    totals["left_out_records"] += 1
                    totals["left_out_bases"] += len(record.sequence)
                    continue
                row = _write_chromosome(cast(IO[bytes], handle), item, record, chromosome, own[chromosome], path)
                length = expected[chromosome].length if expected else None
                if length not in (None, row["bases"]):
                    raise InputError(
                        f"{path}: record {record.name!r} has {row['bases']:,} bases, but {length:,} in the report; the files "
                        "are of different assemblies, or truncated; download them again"
                    )
                if chromosome in chromosomes:
                    raise InputError(
                        f"{path}: chromosome {chromosome} of {item.species} occurs twice; remove one of them"
                    )
                chromosomes[chromosome] = row
                for name in ("bases", "unknown", "lower"):
                    totals[name] += row.pop(name) if name != "bases" else row[name]
                reporter.note(f"{item.species}: chr{chromosome}, {row['bases']:,} bases")
    missing = [c for c in own if c not in chromosomes]
    if missing:
        target.unlink()
        raise InputError(
            f"{item.files[0]}: chromosome {missing[0]} of {item.species} is missing; use the complete file"
        )
    result = {
        "assembly": item.label,
        "generations": list(item.assembly.generations) if item.assembly else [],
        "file": f"{item.species}/{FASTA_NAME}",
        "sha256": _sha256(target),
        "bases": totals["bases"],
        "unknown_percent": 100 * totals["unknown"] / totals["bases"],
        "lower_case_percent": 100 * totals["lower"] / totals["bases"],
        "left_out_records": totals["left_out_records"],
        "left_out_bases": totals["left_out_bases"],
        "chromosomes": chromosomes,
        "sources": item.origin,
    }
    write_json(done, {"key": key, "result": result})
    return result


def _write_chromosome(
    handle: IO[bytes], item: SpeciesSource, record: Record, chromosome: str, place: tuple[str, str], path: Path
) -> dict[str, Any]:
    split, group = place
    foreign = record.foreign_letter()
    if foreign or not record.sequence:
        what = f"{foreign[1]!r} at position {foreign[0]:,} is not a base" if foreign else "is empty"
        raise InputError(f"{path}: record {record.name!r}: {what}; repair the file")
    upper = record.sequence.upper()
    header = f"chr{chromosome} species={item.species} split={split} group={group} source={record.name}"
    write_record(handle, Record(header, upper))
    known = sum(upper.count(letter) for letter in (b"A", b"C", b"G", b"T"))
    lower = len(record.sequence) - len(record.sequence.translate(None, b"abcdefghijklmnopqrstuvwxyz"))
    row = {"record": record.name, "split": split, "group": group, "bases": len(upper)}
    return row | {"unknown": len(upper) - known, "lower": lower}


def _regions(sources: Sequence[SpeciesSource], beds: Mapping[str, Path]) -> str:
    """BED files of species, with any names of chromosomes, as one table with the names of the prepared FASTA."""
    lines = ["class\trecord\tstart0\tend"]
    by_species = {item.species: item for item in sources}
    for species, path in beds.items():
        if species not in by_species:
            raise InputError(f"--regions {species}={path}: no species {species!r}; choose from {', '.join(by_species)}")
        item = by_species[species]
        names = item.chromosomes | {f"{p}{c}": c for c in item.chromosomes.values() for p in ("", "chr")}
        try:
            rows = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read ({error}); check the file") from None
        found = 0
        for number, line in enumerate(rows, start=1):
            if not line.strip() or re.match(r"#|track\b|browser\b", line):
                continue
            fields = line.split("\t")
            if len(fields) < 3 or not (fields[1].isdecimal() and fields[2].isdecimal()):
                raise InputError(f"{path}: line {number:,}: not BED; write record, start and end, separated by tabs")
            # Regions of contigs that were left out are of no use.
            if fields[0] in names:
                lines.append(f"{species}\tchr{names[fields[0]]}\t{int(fields[1])}\t{int(fields[2])}")
                found += 1
        if not found:
            raise InputError(f"{path}: no region lies on a chromosome of {species}; use a BED file of this assembly")
    return "\n".join(lines) + "\n"


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
