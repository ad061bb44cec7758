"""Prepares FASTA files as a folder for `data.path`: `mba prepare genome`."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import Maker, new_folder, write_json, write_text
from mamba_bio_audio.pipelines.dna.bgzf import is_ordinary_gzip, recompress
from mamba_bio_audio.pipelines.dna.duplicates import LIMIT, WORD, describe_duplicates, find_duplicates, without
from mamba_bio_audio.pipelines.dna.fasta_index import load_index, move_index
from mamba_bio_audio.pipelines.dna.fasta_parser import UnevenFastaError
from mamba_bio_audio.pipelines.dna.fasta_repair import LISTED, repair
from mamba_bio_audio.pipelines.dna.genome import Genome, check_genome_names, find_fasta_files
from mamba_bio_audio.pipelines.dna.intervals import (
    chosen_spans,
    read_intervals,
    split_blocks,
    without_records,
    write_intervals,
)
from mamba_bio_audio.pipelines.dna.prepare_settings import GenomeSettings
from mamba_bio_audio.pipelines.dna.sources import INTERVALS_NAME, MANIFEST_NAME, PREPARED_KIND
from mamba_bio_audio.pipelines.dna.statistics import describe, describe_contigs
from mamba_bio_audio.pipelines.reporter import Reporter
from mamba_bio_audio.pipelines.spans import Interval, merge, shared_symbols
from mamba_bio_audio.pipelines.split_names import SPLITS

MAKER = Maker("prepare genome")
# Above this size, comparing the splits takes long enough to be announced.
MANY_BASES = 100_000_000
# Number of repairs shown; the manifest lists more.
SHOWN_REPAIRS = 5


def prepare_genome(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    settings: GenomeSettings | None = None,
    *,
    force: bool = False,
    dry_run: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Check, index, count and split FASTA files; write intervals.tsv and manifest.json to a folder.

    The sequence is not copied: the manifest records the paths (relative and absolute) and checksums of the FASTA files.
    Only files that cannot be read at random positions are copied into the folder: ordinary gzip is recompressed, and
    files of uneven layout are repaired (see `fasta_repair.py`), with a list of the repairs in the manifest.

    Args:
        paths: FASTA (plain, BGZF or gzip) or 2bit files, or folders of them.
        out: folder to create; new, empty, or with `force` an earlier result of this function.
        settings: what to use, and how to split it; None for the defaults.
        force: replace what an earlier run left in `out`.
        dry_run: check everything, and keep nothing but indexes of the files as given.
        reporter: receives notes and progress in bytes or bases.

    Returns:
        The manifest.

    Raises:
        InputError: FASTA or intervals are bad, splits share bases, or `out` holds something else.
    """
    settings, reporter = settings or GenomeSettings(), reporter or Reporter()
    found = find_fasta_files(paths)
    check_genome_names(found)
    folder = Path(os.path.realpath(Path(out).expanduser()))
    given = [paths] if isinstance(paths, str | os.PathLike) else paths
    inputs = [*map(str, given), *found, *([] if settings.intervals is None else [str(settings.intervals)])]
    with new_folder(folder, MAKER, inputs=inputs, force=force, dry_run=dry_run) as work:
        manifest = write_prepared(found, work, folder, settings, reporter)
    for file in manifest["files"]:
        if file["path"] == str(folder / file["name"]):
            move_index(work / file["name"], None if dry_run else file["path"])
    return manifest


def write_prepared(
    found: Sequence[str], work: Path, folder: Path, settings: GenomeSettings, reporter: Reporter
) -> dict[str, Any]:
    """Carry out `prepare_genome` in `work`, which will become `folder`; returns the manifest."""
    copies = {path: os.path.join(work, _packed_name(path)) for path in found}
    copied: dict[str, dict[str, Any]] = {}
    try:
        for path in found:
            if (copy := _readable(path, copies[path], folder, reporter)) is not None:
                copied[path] = copy
        readable = [copies[path] if path in copied else path for path in found]
        manifest, text = _examine(readable, folder, settings, reporter)
    except BaseException as error:
        for place in copies.values():
            move_index(place, None)
        if isinstance(error, InputError):
            # The copies vanish with the folder, so the message names the given files instead.
            text = str(error)
            for path, place in copies.items():
                text = text.replace(place, path)
            raise InputError(text) from None
        raise
    for path, file in zip(found, manifest["files"], strict=True):
        if path in copied:
            file |= {**copied[path], "path": str(folder / file["name"]), "relative_path": file["name"]}
    write_text(work / INTERVALS_NAME, text)
    # Written last, because it makes the folder a prepared one.
    write_json(work / MANIFEST_NAME, manifest)
    return manifest


def _packed_name(path: str) -> str:
    """Name for the copy of a file; readers recognise BGZF by its name."""
    name = os.path.basename(path)
    return name if name.lower().endswith((".gz", ".bgz")) else f"{name}.gz"


def _readable(path: str, copy: str, folder: Path, reporter: Reporter) -> dict[str, Any] | None:
    """Index a file; if it cannot be read at random positions, copy it first.

    Returns:
        The manifest's entries about the copy; None if there is none.
    """
    name = os.path.basename(path)

    def part(verb: str) -> Callable[[int, int | None], None]:
        return reporter.part(f"{verb} {name}")

    known: dict[str, Any] | None = None
    if is_ordinary_gzip(Path(path)):
        reporter.note(f"{path}: ordinary gzip, recompressing to BGZF in {folder}")
        recompress(Path(path), Path(copy), part("recompressing"))
        known = {"recompressed_from": path}
    try:
        load_index(path if known is None else copy, progress=part("indexing"))
    except UnevenFastaError as error:
        reporter.note(f"{path}: {error.problem}; writing a repaired copy to {folder}, the file itself is not changed")
        repairs = repair(Path(path), Path(copy), part("repairing"))
        load_index(copy, progress=part("indexing"))
        return {"repaired_from": path, "repairs": repairs.to_dict()}
    return known


def _examine(
    paths: list[str], folder: Path, settings: GenomeSettings, reporter: Reporter
) -> tuple[dict[str, Any], str]:
    """Manifest and text of the intervals file for a genome; writes nothing but indexes."""
    genome = Genome(paths)
    let_in = chosen_spans(genome, settings.contig_policy)
    exclude, min_length = settings.exclude, settings.min_length
    spans = without_records(genome, let_in, exclude, min_length)
    if settings.intervals is not None:
        kept = {span.record for span in spans}
        listed = read_intervals(settings.intervals, genome, let_in)
        chosen = [interval for interval in listed if interval.record in kept]
        if not chosen:
            raise InputError(f"{settings.intervals}: no interval is left after --exclude and --min-length; relax them")
        split_source = os.path.abspath(settings.intervals)
    else:
        chosen = split_blocks(
            genome,
            seed=settings.seed,
            fractions={"valid": settings.valid_fraction, "test": settings.test_fraction},
            block_bases=settings.block_bases,
            spans=spans,
            whole=settings.split_by == "records",
        )
        split_source = f"{settings.split_by} chosen by split_seed {settings.seed}"
    shared = shared_symbols(chosen)
    if any(shared.values()) and not settings.allow_shared_bases:
        counts = ", ".join(f"{pair} {count:,}" for pair, count in shared.items() if count)
        raise InputError(
            f"{split_source}: splits have bases in common ({counts}), so a model would be tested on what it was trained "
            "on; correct the intervals, or accept this with --allow-shared-bases"
        )
    if sum(len(interval) for interval in chosen) > MANY_BASES:
        reporter.note(f"comparing {WORD}-mers of the splits")
    leave_out = not settings.allow_duplicates
    duplicates = find_duplicates(genome, chosen, leave_out=leave_out, progress=reporter.part("comparing splits"))
    if duplicates.excessive and leave_out:
        rows = "\n".join(
            f"  {what}: {value}".replace("  : ", "    ") for what, value in describe_duplicates(duplicates.to_dict())
        )
        raise InputError(
            f"{split_source}: more than {LIMIT:.0%} of a held-out split, or of a record too large to be left out of it, "
            f"also occurs in train (haplotypes, alternative loci, duplications):\n{rows}\nA model would be tested on what "
            "it was trained on; put such records into one split with --intervals, leave them out with --exclude NAME, "
            "--min-length or --contigs, or accept this with --allow-duplicates"
        )
    chosen = without(chosen, duplicates.left_out)
    manifest = _manifest(genome, chosen, folder, split_source, shared)
    manifest |= describe_contigs(genome, settings.contig_policy, spans)
    if exclude or min_length:
        manifest["contigs"] |= {"exclude": list(exclude), "min_length": min_length}
    manifest["duplicates"] = duplicates.to_dict()
    return manifest, write_intervals(chosen, genome)


def summary_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """A prepared folder's manifest, or `DnaCorpus.summary()`, as lines for people: (what, value)."""
    rows = [
        ("files", f"{len(summary['files']):,}"),
        *(
            ("recompressed", f"{file['recompressed_from']} to {file['path']}")
            for file in summary["files"]
            if "recompressed_from" in file
        ),
        *(row for file in summary["files"] if "repairs" in file for row in _repair_rows(file)),
        ("records", f"{summary['records']:,}"),
        ("bases", f"{summary['bases']:,}"),
        ("contigs", _contigs(summary["contigs"])),
        (
            "not A, C, G, T",
            f"{summary['unknown_percent']:.3f} % (N {summary['n_percent']:.3f} %, other letters "
            f"{summary['other_letters_percent']:.5f} %): read as N, never scored",
        ),
        ("lower case (masked)", f"{summary['lower_case_percent']:.2f} %"),
        ("split by", summary["split_source"]),
    ]
    if summary["aliases"]:
        named = [f"{alias} is {record}" for alias, record in summary["aliases"].items()]
        rows.append(("names by alias", _listed(named)))
    for split in SPLITS:
        counts = summary["splits"][split]
        unknown = 100 * counts["unknown_bases"] / max(counts["bases"], 1)
        rows.append((split, f"{counts['bases']:,} bases in {counts['intervals']:,} intervals, {unknown:.2f} % N"))
    if "training_windows" in summary:
        rows += _window_rows(summary)
    else:
        rows.append(("bases in two splits", _pairs(summary["shared_bases"])))
        if "duplicates" in summary:
            rows += describe_duplicates(summary["duplicates"])
    return rows


def _repair_rows(file: dict[str, Any]) -> list[tuple[str, str]]:
    """Repairs of a file by kind, and the first places."""
    counts, first = file["repairs"]["counts"], file["repairs"]["first"]
    kinds = ", ".join(f"{what} ({count:,})" for what, count in counts.items())
    rows = [("repaired", f"{file['repaired_from']} to {file['path']}: {kinds}")]
    for place in first[:SHOWN_REPAIRS]:
        record = f"record {place['record']}, " if place["record"] else ""
        rows.append(("", f"{record}line {place['line']:,}: {place['what']}"))
    more = sum(counts.values()) - len(first[:SHOWN_REPAIRS])
    if more:
        rows.append(("", f"and {more:,} more; the first {LISTED} of each kind are in the manifest"))
    return rows


def _window_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Windows that the policy laid out, those that hold bases of other splits, and those that are read."""
    length, laid_out, clean = summary["length"], summary["laid_out_windows"], summary["clean_windows"]
    slid = f", {summary['slid_windows']:,} moved inside their record" if summary["slid_windows"] else ""
    rows = [
        ("windows", f"{laid_out:,} of {length:,} bases an epoch under {summary['window_policy']}{slid}"),
        ("bases in two splits", _pairs(summary["shared_bases"])),
    ]
    if laid_out != clean:
        fate = {
            "allow": "all are read (data.shared_bases=allow)",
            "drop": f"{summary['dropped_windows']:,} dropped",
            "trim": f"{summary['trimmed_windows']:,} trimmed, {summary['dropped_windows']:,} dropped",
        }[summary["shared_policy"]]
        rows.append(("windows without them", f"{clean:,} of {laid_out:,}; of the others {fate}"))
    skipped = f", {summary['skipped_windows']:,} skipped (unknown bases)"
    if summary["case"] == "drop":
        skipped += f", {summary['lower_windows']:,} skipped (more than {summary['max_lower']:.0%} lower case)"
    if summary["case"] == "weight":
        skipped += f"; lower case weighs {summary['lower_weight']:g}"
    rows.append(("training windows", f"{summary['training_windows']:,}{skipped}"))
    if summary["weights"] is not None:
        total = sum(summary["weights"].values())
        shares = [f"{name} {weight / total:.1%}" for name, weight in summary["weights"].items()]
        rows.append(("shares by weight", _listed(shares)))
    return rows


def _contigs(contigs: dict[str, Any]) -> str:
    """Used and unused records, by name."""
    used, left_out = contigs["used"], contigs["left_out"]
    policy = contigs["policy"] if isinstance(contigs["policy"], str) else "as listed"
    text = f"{len(used):,} ({policy}): {_listed(used, 30)}"
    return text + (f"; left out {len(left_out):,}: {_listed(left_out)}" if left_out else "")


def _listed(names: list[str], limit: int = 6) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit:,} more" if len(names) > limit else "")


def _pairs(shared: dict[str, int]) -> str:
    """Shared bases per pair of splits as text; 0 if there are none."""
    named = ", ".join(f"{count:,} {pair}" for pair, count in shared.items() if count)
    return named or "0"


def _manifest(
    genome: Genome, intervals: list[Interval], folder: Path, split_source: str, shared: dict[str, int]
) -> dict[str, Any]:
    description = describe(genome)
    for file in description["files"]:
        file["relative_path"] = os.path.relpath(file["path"], folder)
    splits = {}
    for split in SPLITS:
        own = [interval for interval in intervals if interval.split == split]
        union = merge(own)
        unknown = sum(int(genome.count_unknown(span.record, span.start, span.end)) for span in union)
        bases = sum(span.end - span.start for span in union)
        splits[split] = {"intervals": len(own), "bases": bases, "unknown_bases": unknown}
    return {
        "kind": PREPARED_KIND,
        "format": 1,
        **description,
        "split_source": split_source,
        "splits": splits,
        "shared_bases": shared,
    }
