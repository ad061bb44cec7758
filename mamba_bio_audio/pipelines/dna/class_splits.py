"""Which labelled regions are training, validation and test, without homologous sequence on two sides.

What the data says wins. Otherwise whole groups, or contiguous blocks, are drawn by a seed.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.classes_config import DnaClassesConfig
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.intervals import SPLIT_ALIASES, SPLITS, Interval, shared_bases, split_blocks
from mamba_bio_audio.pipelines.dna.labelled import Labelled, Region, header_tag, numbered_lines
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer


def assign_splits(labelled: Labelled, config: DnaClassesConfig, length: int) -> None:
    """Give every region its split; regions may be cut for it.

    Args:
        labelled: changed in place.
        config: how.
        length: of a window, the guard between blocks of different splits.

    Raises:
        InputError: a homologous group lies in two splits, or the splits are incomplete.
    """
    table = config.groups or prepared_file(config, "groups.tsv")
    if table is not None:
        groups = _read_groups(labelled, table)
        labelled.regions = [replace(region, locus=groups(region)) for region in labelled.regions]
    # Rows of a table or a BED are parts that name their own splits; blocks and intervals cut whole records.
    rows = config.labels is not None or not labelled.genomes
    _refuse_unused(config, rows, labelled.examples)
    if rows:
        labelled.origin = _split_wholes(labelled, config)
    else:
        labelled.origin = _split_genomes(labelled, config, length, table is not None)
    if table is not None:
        _refuse_shared(labelled)
    elif config.labels is not None and config.shared_bases == "error":
        _refuse_overlaps(labelled, config.labels)
    for split in SPLITS:
        present = {region.label for region in labelled.regions if region.split == split}
        wanted = split == "train" or bool(present)
        lacking = [name for i, name in enumerate(labelled.classes) if i not in present]
        if wanted and lacking:
            raise InputError(
                f"the {split} split has nothing of class {lacking[0]!r} (splits: {labelled.origin}); "
                + ("set another data.split_seed, name" if "split_seed" in labelled.origin else "correct")
                + " the splits in the data, or choose data.classes"
            )


def prepared_file(config: DnaClassesConfig, name: str) -> str | None:
    """A table that `mba prepare apes` left in the folder of `data.path`, where there is one."""
    if not isinstance(config.path, str):
        return None
    path = Path(config.path).expanduser() / name
    return str(path) if path.is_file() else None


def _refuse_unused(config: DnaClassesConfig, rows: bool, examples: bool) -> None:
    """A setting that this source cannot follow must not be passed over in silence."""
    if rows and (config.intervals is not None or config.split in ("intervals", "header", "blocks")):
        what = "data.intervals" if config.intervals is not None else f"data.split={config.split}"
        raise InputError(f"{what} goes with FASTA per class; a table or a BED names splits in its own column split")
    if examples and config.split == "blocks":
        raise InputError("data.split=blocks cuts records and data.sampling=examples keeps them whole; choose one")
    if examples and config.matched:
        raise InputError("data.matched goes with data.sampling=windows; examples are taken whole")


def _split_genomes(labelled: Labelled, config: DnaClassesConfig, length: int, grouped: bool) -> str:
    """Splits of whole records of FASTA per class."""
    if config.intervals is not None and config.split in ("auto", "intervals"):
        intervals = _read_intervals(config.intervals, labelled)
        if config.shared_bases == "error":
            for source, name in enumerate(labelled.classes):
                shared = shared_bases([interval for at, interval in intervals if at == source])
                pair = next((pair for pair, count in shared.items() if count), None)
                if pair is not None:
                    raise InputError(
                        f"{config.intervals}: {shared[pair]:,} bases of class {name!r} are in two splits, {pair}. A model "
                        f"would be tested on what it was trained on. Correct the intervals, or accept it with "
                        f"data.shared_bases=allow"
                    )
        labelled.regions = _cut(labelled, intervals)
        return config.intervals
    tags = {}
    if config.split in ("auto", "header"):
        tags = {
            (source, name): _known_split(value, f"{path}: record {name!r}")
            for source, genome in enumerate(labelled.genomes)
            for path in genome.paths
            for name, value in header_tag(path, "split").items()
        }
    if config.split == "header" or tags:
        labelled.regions = [
            replace(region, split=_tag(tags, labelled.genomes[region.source], region)) for region in labelled.regions
        ]
        return "split= in the FASTA headers"
    if labelled.examples:
        return _split_wholes(labelled, config)
    if grouped and config.split != "blocks":
        labelled.regions = _draw_groups(labelled.regions, config, len)
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
    )
    return f"blocks drawn by split_seed {config.split_seed}, a guard of {length:,} bases between splits"


def _tag(tags: dict[tuple[int, str], str], genome: Genome, region: Region) -> str:
    split = tags.get((region.source, genome.bare_name(region.record)))
    if split is None:
        raise InputError(
            f"{genome.paths[genome.genome_of(region.record)]}: record {region.record!r} has no split= in its header; "
            f"add it to every record, or set data.split=blocks"
        )
    return split


def _split_wholes(labelled: Labelled, config: DnaClassesConfig) -> str:
    """Splits that rows name; what they leave open is drawn by seed, equal and overlapping sequences together."""
    named = [region.split for region in labelled.regions]
    if any(named) and not all(named):
        first = labelled.regions[named.index(None)]
        raise InputError(f"data.path: {first.record!r} names no split and others do; give all of them one, or none")

    def weight(region: Region) -> int:
        return 1 if labelled.examples else len(region)

    if all(named):
        if "valid" in named or config.valid_fraction == 0:
            return "the data"
        train = [region for region in labelled.regions if region.split == "train"]
        rest = [region for region in labelled.regions if region.split != "train"]
        own = config.model_copy(update={"test_fraction": 0.0})
        labelled.regions = [*_draw_groups(train, own, weight, _related(labelled, train)), *rest]
        return f"the data; {config.valid_fraction:.0%} of its training part is validation, by split_seed {config.split_seed}"
    labelled.regions = _draw_groups(labelled.regions, config, weight, _related(labelled, labelled.regions))
    return f"drawn by split_seed {config.split_seed}"


def _related(labelled: Labelled, regions: Sequence[Region]) -> list[str]:
    """A key per region; regions of one locus, or of the same sequence on either strand, share it."""
    codec = DnaTokenizer()
    sequences = []
    for region in regions:
        ids = labelled.fetch(region, region.start, region.end)
        sequences.append(min(ids.tobytes(), codec.reverse_complement(ids).tobytes()).hex())
    nodes = {name: at for at, name in enumerate(dict.fromkeys([*sequences, *(f"locus {r.locus}" for r in regions)]))}
    edges = [(nodes[key], nodes[f"locus {region.locus}"]) for key, region in zip(sequences, regions, strict=True)]
    rows, columns = np.array(edges).T
    shape = (len(nodes), len(nodes))
    _, component = connected_components(coo_array((np.ones(len(edges)), (rows, columns)), shape=shape), directed=False)
    smallest: dict[int, str] = {}
    for key in sorted(sequences, reverse=True):
        smallest[int(component[nodes[key]])] = key
    return [smallest[int(component[nodes[key]])] for key in sequences]


def _draw_groups(
    regions: Sequence[Region],
    config: DnaClassesConfig,
    weight: Callable[[Region], int],
    keys: Sequence[str] | None = None,
) -> list[Region]:
    """Whole groups to test, then to validation, until each has its share; the rest trains."""
    weights: dict[str, int] = defaultdict(int)
    keys = [region.locus for region in regions] if keys is None else keys
    for name, region in zip(keys, regions, strict=True):
        weights[name] += weight(region)
    names = sorted(weights)
    order = np.random.Generator(np.random.Philox(key=[config.split_seed, 0])).permutation(len(names))
    total, taken, split_of = sum(weights.values()), 0, {}
    test = config.test_fraction * total
    valid = test + config.valid_fraction * (total - test)
    for at in order.tolist():
        # A group goes where its middle falls.
        middle = taken + weights[names[at]] / 2
        split_of[names[at]] = "test" if middle < test else "valid" if middle < valid else "train"
        taken += weights[names[at]]
    return [replace(region, split=split_of[name]) for name, region in zip(keys, regions, strict=True)]


def _cut(labelled: Labelled, intervals: Iterable[tuple[int, Interval]]) -> list[Region]:
    """Regions as (source, interval) pairs say."""
    whole = {(region.source, region.record): region for region in labelled.regions}
    cut = []
    for source, interval in intervals:
        region = whole.get((source, interval.record))
        if region is None:
            continue
        grouped = region.locus != f"{labelled.classes[region.label]}/{region.record}"
        locus = region.locus if grouped else f"{region.locus}:{interval.start}-{interval.end}"
        cut.append(replace(region, start=interval.start, end=interval.end, split=interval.split, locus=locus))
    return cut


def _read_intervals(path: str, labelled: Labelled) -> list[tuple[int, Interval]]:
    """(source, interval) of each line: TSV naming record, start0, end, split and, where needed, class or file; or BED."""
    columns = {"record": 0, "start0": 1, "end": 2, "split": 3}
    found: list[tuple[int, Interval]] = []
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
        found.append((source, Interval(record, start, end, _known_split(row["split"], where))))
    if not found:
        raise InputError(f"{path}: no interval in it")
    return found


def _find(labelled: Labelled, row: dict[str, str], where: str) -> tuple[int, str]:
    """Source and record of a line."""
    found = []
    for source, genome in enumerate(labelled.genomes):
        if row.get("class") not in (None, labelled.classes[source]):
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
            f"{labelled.classes[source]}: {next(iter(genome.records))}, ..."
            for source, genome in enumerate(labelled.genomes)
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


def _refuse_shared(labelled: Labelled) -> None:
    """A model must not be tested on the homologue of what it was trained on."""
    splits: dict[str, dict[str, Region]] = defaultdict(dict)
    for region in labelled.regions:
        splits[region.locus].setdefault(str(region.split), region)
    for group, found in splits.items():
        if len(found) > 1:
            where = "; ".join(f"{r.record} of {labelled.classes[r.label]} in {split}" for split, r in found.items())
            raise InputError(
                f"the homologous group {group!r} is in several splits: {where}. A model would be tested on the "
                f"homologue of what it was trained on; put whole groups into one split"
            )


def _refuse_overlaps(labelled: Labelled, path: str) -> None:
    """Lines of a BED that share bases must not be in two splits."""
    first: dict[str, Region] = {}
    for region in labelled.regions:
        other = first.setdefault(region.locus, region)
        if other.split != region.split:
            raise InputError(
                f"{path}: the overlapping regions {region.locus} are in two splits, {other.split} and {region.split}. A "
                f"model would be tested on what it was trained on. Correct the splits, or accept it with "
                f"data.shared_bases=allow"
            )


def _known_split(text: str, where: str) -> str:
    split = SPLIT_ALIASES.get(text.lower(), text.lower())
    if split not in SPLITS:
        raise InputError(f"{where}: unknown split {text!r}; allowed: {', '.join(SPLITS)} (val means valid)")
    return split


def shared_sequences(labelled: Labelled) -> dict[str, int]:
    """Examples of one split that stand, on either strand, in another too: {"train/valid": 0, ...}."""
    codec = DnaTokenizer()
    found: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    for region in labelled.regions:
        ids = labelled.fetch(region, region.start, region.end)
        found[str(region.split)].append(min(ids.tobytes(), codec.reverse_complement(ids).tobytes()))
    shared = {}
    for i, first in enumerate(SPLITS):
        known = set(found[first])
        for second in SPLITS[i + 1 :]:
            shared[f"{first}/{second}"] = sum(sequence in known for sequence in found[second])
    return shared
