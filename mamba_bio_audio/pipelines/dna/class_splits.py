"""Assigns labelled regions to training, validation and test, without homologous sequence on both sides.

Splits named in the data take precedence. Otherwise whole groups, or contiguous blocks, are drawn with a seed.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.class_draws import draw_groups
from mamba_bio_audio.pipelines.dna.class_duplicates import (
    between_splits,
    identities,
    in_train,
    near_duplicates,
    place,
    related,
)
from mamba_bio_audio.pipelines.dna.class_rows import numbered_lines
from mamba_bio_audio.pipelines.dna.class_tags import splits_of, tags_of
from mamba_bio_audio.pipelines.dna.classes_config import DnaClassesConfig
from mamba_bio_audio.pipelines.dna.duplicates import LIMIT, WORD
from mamba_bio_audio.pipelines.dna.intervals import split_blocks
from mamba_bio_audio.pipelines.dna.labelled import Labelled
from mamba_bio_audio.pipelines.draws import Draws
from mamba_bio_audio.pipelines.spans import Interval, Region, Span, shared_symbols
from mamba_bio_audio.pipelines.split_names import SPLITS, split_meanings


def assign_splits(labelled: Labelled, config: DnaClassesConfig, length: int) -> None:
    """Assign a split to every region; regions may be cut to do so.

    Args:
        labelled: changed in place.
        config: how.
        length: length of a window, which is the guard between blocks of different splits.

    Raises:
        InputError: a homologous group lies in two splits, one split contains too much of another, or the splits are
            incomplete.
    """
    table = config.groups or prepared_file(config, "groups.tsv")
    if table is not None:
        groups = _read_groups(labelled, table)
        labelled.regions = [replace(region, locus=groups(region)) for region in labelled.regions]
    # Rows of a table or a BED, and files named after splits, are parts that are never cut; others are whole records.
    parts = config.labels is not None or not labelled.genomes or any(region.split for region in labelled.regions)
    _refuse_unused(config, parts, labelled.examples)
    if parts:
        labelled.origin = _split_wholes(labelled, config)
    else:
        labelled.origin = _split_genomes(labelled, config, length, table is not None)
    if table is not None:
        _refuse_shared(labelled, "homologous group")
    elif config.shared_bases != "allow" and any(r.locus.startswith("group ") for r in labelled.regions):
        # Of a column of the table, named or found.
        _refuse_shared(labelled, "group")
    elif config.labels is not None and config.shared_bases != "allow":
        _refuse_overlaps(labelled, config.labels)
    _check_classes(labelled)
    if labelled.examples:
        _compare(labelled)
        labelled.between = between_splits(labelled)
        if config.shared_bases == "error":
            refuse_duplicates(labelled)
        elif config.shared_bases == "drop":
            _drop_known(labelled)
    if config.few is not None:
        _keep_few(labelled, config.few, config.split_seed)


def _keep_few(labelled: Labelled, few: int, seed: int) -> None:
    """Leave out all but so many training examples of each class."""
    if not labelled.examples:
        raise InputError("data.few: counts examples, and these are windows drawn from longer sequence; leave it null")
    kept: set[int] = set()
    for label in range(len(labelled.classes)):
        own = [at for at, r in enumerate(labelled.regions) if r.split == "train" and r.label == label]
        if len(own) < few:
            what = f"class {labelled.classes[label]!r}" if labelled.values is None else "the data"
            raise InputError(f"data.few is {few:,}, but {what} has {len(own):,} training examples; lower it")
        order = Draws.FEW.random(seed, label).permutation(len(own))
        kept |= {own[at] for at in order[:few].tolist()}
    labelled.regions = [r for at, r in enumerate(labelled.regions) if r.split != "train" or at in kept]
    each = " of each class" if labelled.values is None else ""
    labelled.origin += f"; {few:,} training examples{each} by split_seed {seed}"


def _check_classes(labelled: Labelled) -> None:
    """Refuse a split that lacks a class; only train must be there."""
    for split in SPLITS:
        present = {region.label for region in labelled.regions if region.split == split}
        wanted = split == "train" or bool(present)
        lacking = [name for i, name in enumerate(labelled.classes) if i not in present]
        if wanted and lacking:
            raise InputError(
                f"the {split} split has no sequence of class {lacking[0]!r} (splits: {labelled.origin}); "
                + _remedy(labelled, lacking[0])
            )


def _drop_known(labelled: Labelled) -> None:
    """Leave out the validation examples that are also in train, exactly or nearly."""
    known = in_train(labelled)
    there = any(region.split == "valid" for region in labelled.regions)
    kept = [region for region in labelled.regions if region.split != "valid" or place(region) not in known]
    labelled.dropped = len(labelled.regions) - len(kept)
    labelled.regions = kept
    if there and not any(region.split == "valid" for region in kept):
        raise InputError(
            f"data.shared_bases=drop: every example of validation is also in train (splits: {labelled.origin}); have the "
            f"splits drawn with data.split=draw"
        )
    _check_classes(labelled)


def _compare(labelled: Labelled) -> None:
    """Find equal and nearly equal regions, once."""
    if not labelled.identity:
        labelled.identity = identities(labelled)
        labelled.near = near_duplicates(labelled)


def _remedy(labelled: Labelled, name: str) -> str:
    """What to do about a split without a class."""
    if "split_seed" not in labelled.origin:
        return "correct the splits in the data, or choose data.classes"
    if labelled.origin.startswith("blocks"):
        return "set another data.split_seed or smaller data.block_bases, name the splits, or choose data.classes"
    label = labelled.classes.index(name)
    loci = len({region.locus for region in labelled.regions if region.label == label})
    return (
        f"every class needs an unrelated example or record for each split, but {name!r} has {loci:,} in all, some "
        f"perhaps related; provide more, set data.test_fraction=0, name the splits in the data, or choose data.classes"
    )


def refuse_duplicates(labelled: Labelled) -> None:
    """Refuse held-out splits of which train contains more than is allowed for a genome."""
    for pair in ("train/valid", "train/test"):
        row = labelled.between.get(pair)
        if row is None:
            continue
        split = pair.partition("/")[2]
        if not labelled.examples and row["near"] > LIMIT * row["of"]:
            raise InputError(
                f"{row['near']:,} of the {row['of']:,} windows that {split} is scored on share more than half of their "
                f"{WORD}-mers with the training sequences of their class ({row['example'][0]}; splits: "
                f"{labelled.origin}), as strains or copies do, so a model would be tested on what it was trained on; keep "
                f"related records in one split with data.groups, or accept this with data.shared_bases=allow"
            )
        if labelled.examples and row["equal"] + row["near"] > LIMIT * row["of"]:
            raise InputError(
                f"of {row['of']:,} examples of {split}, {row['equal']:,} are also in train and {row['near']:,} are nearly "
                f"the same as one there ({row['example'][0]!r} and {row['example'][1]!r}), more than {LIMIT:.0%} (splits: "
                f"{labelled.origin}), so a model would be tested on what it was trained on; correct the splits, have them "
                f"drawn with data.split=draw, or accept this with data.shared_bases=allow, which keeps the splits of a "
                f"published benchmark as they are"
            )


def prepared_file(config: DnaClassesConfig, name: str) -> str | None:
    """A table that `mba prepare apes` left in the folder of `data.path`, where there is one."""
    if not isinstance(config.path, str):
        return None
    path = Path(config.path).expanduser() / name
    return str(path) if path.is_file() else None


def _refuse_unused(config: DnaClassesConfig, parts: bool, examples: bool) -> None:
    """Refuse settings that have no meaning for this kind of source."""
    if parts and (config.intervals is not None or config.split in ("intervals", "header", "blocks")):
        what = "data.intervals" if config.intervals is not None else f"data.split={config.split}"
        raise InputError(
            f"{what} requires FASTA files per class; tables, BED and files named after splits name their splits themselves, or "
            f"set data.split=draw"
        )
    if examples and config.split == "blocks":
        raise InputError(
            "data.split=blocks cuts records, but data.sampling=examples keeps them whole; change one of them"
        )
    if examples and config.matched:
        raise InputError("data.matched requires data.sampling=windows (examples are read whole); set it to false")


def _split_genomes(labelled: Labelled, config: DnaClassesConfig, length: int, grouped: bool) -> str:
    """Splits of whole records of FASTA per class."""
    if config.intervals is not None and config.split in ("auto", "intervals"):
        intervals = _read_intervals(config.intervals, labelled)
        if config.shared_bases != "allow":
            for source, name in _class_of_source(labelled).items():
                shared = shared_symbols([interval for at, interval in intervals if at == source])
                pair = next((pair for pair, count in shared.items() if count), None)
                if pair is not None:
                    raise InputError(
                        f"{config.intervals}: {shared[pair]:,} bases of class {name!r} are in two splits, {pair}, so a model "
                        f"would be tested on what it was trained on; correct the intervals, or accept this with "
                        f"data.shared_bases=allow"
                    )
        labelled.regions = _cut(labelled, intervals, grouped)
        return config.intervals
    if config.split in ("auto", "header"):
        splits = _header_splits(labelled)
        if any(splits):
            labelled.regions = [replace(r, split=split) for r, split in zip(labelled.regions, splits, strict=True)]
            return "split= in the FASTA headers"
        if config.split == "header":
            raise InputError(
                "data.split=header: no FASTA header names a split; add split=train, split=valid or split=test to each"
            )
    if labelled.examples:
        return _split_wholes(labelled, config)
    if grouped and config.split != "blocks":
        keys = [region.locus for region in labelled.regions]
        labelled.regions = _draw(labelled.regions, keys, config, labelled.examples)
        return f"groups drawn by split_seed {config.split_seed}"
    fractions = {"valid": config.valid_fraction * (1 - config.test_fraction), "test": config.test_fraction}
    labelled.regions = _cut(
        labelled,
        [
            (source, interval)
            for source, genome in enumerate(labelled.genomes)
            for interval in _guarded(
                split_blocks(genome, seed=config.split_seed, fractions=fractions, block_bases=config.block_bases),
                length,
            )
        ],
        grouped,
    )
    return f"blocks drawn by split_seed {config.split_seed}, a guard of {length:,} bases between splits"


def _header_splits(labelled: Labelled) -> list[str | None]:
    """The split of each region by the header of its record."""

    def said(region: Region) -> tuple[str, dict[str, str]]:
        genome = labelled.genomes[region.source]
        where = f"{genome.paths[genome.genome_of(region.record)]}: record {region.record!r}"
        return where, tags_of(f"{genome.bare_name(region.record)} {genome.title(region.record)}")

    return splits_of(map(said, labelled.regions), "FASTA headers")


def _split_wholes(labelled: Labelled, config: DnaClassesConfig) -> str:
    """Splits that the data name; any that are missing are drawn with a seed, related sequences together."""
    if any(region.split for region in labelled.regions):
        if config.valid_fraction == 0 or any(region.split == "valid" for region in labelled.regions):
            return "the data"
        train = [region for region in labelled.regions if region.split == "train"]
        rest = [region for region in labelled.regions if region.split != "train"]
        own = config.model_copy(update={"test_fraction": 0.0})
        labelled.regions = [*_draw_related(labelled, train, own), *rest]
        return f"the data; {config.valid_fraction:.0%} of its training part is validation, by split_seed {config.split_seed}"
    labelled.regions = _draw_related(labelled, labelled.regions, config)
    return f"drawn by split_seed {config.split_seed}"


def _draw_related(labelled: Labelled, regions: Sequence[Region], config: DnaClassesConfig) -> list[Region]:
    """Splits that keep equal, overlapping and nearly equal sequences together; the latter not under shared_bases=allow."""
    if not labelled.examples and config.labels is None and labelled.genomes:
        # Whole genomes in files called after splits are not compared.
        return _draw(regions, [region.locus for region in regions], config, labelled.examples)
    _compare(labelled)
    keys = related(regions, labelled.identity)
    drawn = _draw(regions, keys, config, labelled.examples)
    if config.shared_bases == "allow":
        return drawn
    # A draw that separates no near-duplicates stands.
    near = related(regions, labelled.identity, labelled.near)
    first: dict[int, str | None] = {}
    if all(first.setdefault(key, region.split) == region.split for key, region in zip(near, drawn, strict=True)):
        return drawn
    _refuse_few_groups(labelled, regions, keys, near, 1 + (config.valid_fraction > 0) + (config.test_fraction > 0))
    return _draw(regions, near, config, labelled.examples)


def _refuse_few_groups(
    labelled: Labelled, regions: Sequence[Region], keys: Sequence[int], near: Sequence[int], splits: int
) -> None:
    """Near-duplicates may chain a class into so few groups that no draw can split it."""
    apart: dict[int, set[int]] = defaultdict(set)
    together: dict[int, set[int]] = defaultdict(set)
    for key, group, region in zip(keys, near, regions, strict=True):
        apart[region.label].add(key)
        together[region.label].add(group)
    for label, groups in sorted(together.items()):
        if len(groups) < splits <= len(apart[label]):
            raise InputError(
                f"{len(apart[label]):,} different sequences of class {labelled.classes[label]!r} form only {len(groups):,} "
                f"group{'s' * (len(groups) > 1)} of near-duplicates, and {splits} splits need one each; provide more, name the "
                f"splits in the data, or allow near-duplicates to be separated with data.shared_bases=allow"
            )


def _draw(regions: Sequence[Region], keys: Sequence[Any], config: DnaClassesConfig, examples: bool) -> list[Region]:
    """Whole groups to test, then to validation, until each has its share; the rest trains."""
    splits = draw_groups(
        keys,
        [region.label for region in regions],
        [1 if examples else len(region) for region in regions],
        test=config.test_fraction,
        valid=config.valid_fraction,
        seed=config.split_seed,
    )
    return [replace(region, split=split) for region, split in zip(regions, splits, strict=True)]


def _cut(labelled: Labelled, intervals: Iterable[tuple[int, Interval]], grouped: bool) -> list[Region]:
    """Regions as (source, interval) pairs say; each a locus of its own unless records have groups."""
    whole = {(region.source, region.record): region for region in labelled.regions}
    cut = []
    for source, interval in intervals:
        region = whole.get((source, interval.record))
        if region is None:
            continue
        locus = region.locus if grouped else f"{region.locus}:{interval.start}-{interval.end}"
        cut.append(replace(region, start=interval.start, end=interval.end, split=interval.split, locus=locus))
    return cut


def _read_intervals(path: str, labelled: Labelled) -> list[tuple[int, Interval]]:
    """(source, interval) of each line: TSV naming record, start0, end, split and, where needed, class or file; or BED."""
    columns = {"record": 0, "start0": 1, "end": 2, "split": 3}
    found: list[tuple[int, Span, str]] = []
    words: dict[str, str] = {}
    for number, line in numbered_lines(Path(path).expanduser()):
        where = f"{path}: line {number:,}"
        fields = [part.strip() for part in (line.split("\t") if "\t" in line else line.split())]
        if not found and "start0" in fields:
            columns = {name: at for at, name in enumerate(fields)}
            missing = [name for name in ("record", "start0", "end", "split") if name not in columns]
            if missing:
                raise InputError(f"{where}: the header lacks {', '.join(missing)}")
            continue
        if len(fields) < 4 or len(fields) < len(columns):
            raise InputError(f"{where}: {len(fields)} columns; expected {', '.join(columns)}")
        row = {name: fields[at] for name, at in columns.items()}
        if not (row["start0"].isdecimal() and row["end"].isdecimal()):
            raise InputError(f"{where}: start and end must be whole numbers, not {row['start0']!r} and {row['end']!r}")
        source, record = _find(labelled, row, where)
        start, end, length = int(row["start0"]), int(row["end"]), labelled.genomes[source].records[record]
        if not start < end <= length:
            raise InputError(
                f"{where}: [{start:,}, {end:,}) is not inside {record!r} of {length:,} bases; starts count from 0 and "
                f"the end is excluded"
            )
        words.setdefault(row["split"], where)
        found.append((source, Span(record, start, end), row["split"]))
    if not found:
        raise InputError(f"{path}: no intervals; expected lines of record, start, end, split")
    meant = split_meanings(words)
    return [(source, Interval(span.record, span.start, span.end, meant[word])) for source, span, word in found]


def _class_of_source(labelled: Labelled) -> dict[int, str]:
    """Class of each source; sources are in alphabetical order, classes in that of data.classes."""
    return {region.source: labelled.classes[region.label] for region in labelled.regions}


def _find(labelled: Labelled, row: dict[str, str], where: str) -> tuple[int, str]:
    """Source and record of a line."""
    found = []
    class_of = _class_of_source(labelled)
    for source, genome in enumerate(labelled.genomes):
        if row.get("class") not in (None, class_of[source]):
            continue
        names = {name: path for path in genome.paths for name in (os.path.basename(path), path)}
        if "file" in row and os.path.basename(row["file"]) not in names:
            continue
        try:
            found.append((source, genome.resolve(row["record"], row.get("file"))))
        except InputError:
            continue
    if len(found) != 1:
        known = "; ".join(
            f"{class_of[source]}: {next(iter(genome.records))}, ..." for source, genome in enumerate(labelled.genomes)
        )
        problem = "is in several classes: add a column class" if found else f"is in none of the files ({known})"
        raise InputError(f"{where}: record {row['record']!r} {problem}")
    return found[0]


def _guarded(intervals: list[Interval], guard: int) -> list[Interval]:
    """Intervals that begin `guard` bases after the end of another split's in the same record, or later."""
    kept: list[Interval] = []
    for interval in intervals:
        start = interval.start
        if kept and kept[-1].record == interval.record and kept[-1].split != interval.split:
            start = max(start, kept[-1].end + guard)
        if start < interval.end:
            kept.append(replace(interval, start=start))
    return kept


def _read_groups(labelled: Labelled, source: str) -> Callable[[Region], str]:
    """From a region to its homologous group."""

    def bare(region: Region) -> str:
        return labelled.genomes[region.source].bare_name(region.record) if labelled.genomes else region.record

    if source == "record":
        return bare
    lines = list(numbered_lines(Path(source).expanduser()))
    header = lines[0][1].split("\t") if lines else []
    missing = [name for name in ("class", "record", "group") if name not in header]
    if missing:
        raise InputError(f"{source}: the header lacks {', '.join(missing)}; it must name class, record and group")
    columns = [header.index(name) for name in ("class", "record", "group")]
    table = {}
    for number, line in lines[1:]:
        fields = line.split("\t")
        if len(fields) != len(header):
            raise InputError(f"{source}: line {number:,}: {len(fields)} columns instead of {len(header)}")
        name, record, group = (fields[column].strip() for column in columns)
        table[name, record] = group

    def group_of(region: Region) -> str:
        key = (labelled.classes[region.label], bare(region))
        if key not in table:
            raise InputError(f"{source}: no group for record {key[1]!r} of class {key[0]!r}; add a line for it")
        return table[key]

    return group_of


def _refuse_shared(labelled: Labelled, what: str) -> None:
    """Refuse groups that are in several splits."""
    splits: dict[str, dict[str, Region]] = defaultdict(dict)
    for region in labelled.regions:
        splits[region.locus].setdefault(str(region.split), region)
    for group, found in splits.items():
        if len(found) > 1:
            where = "; ".join(f"{r.record} of {labelled.classes[r.label]} in {split}" for split, r in found.items())
            raise InputError(
                f"the {what} {group.removeprefix('group ')!r} is in several splits: {where}, so a model would be tested on "
                f"relatives of what it was trained on; put each group into one split, or have splits drawn with "
                f"data.split=draw" + (", or accept this with data.shared_bases=allow" if what == "group" else "")
            )


def _refuse_overlaps(labelled: Labelled, path: str) -> None:
    """Refuse lines of a BED that share bases and are in two splits."""
    first: dict[str, Region] = {}
    for region in labelled.regions:
        other = first.setdefault(region.locus, region)
        if other.split != region.split:
            raise InputError(
                f"{path}: the overlapping regions {region.locus} are in two splits, {other.split} and {region.split}, so a "
                f"model would be tested on what it was trained on; correct the splits, or accept this with "
                f"data.shared_bases=allow"
            )
