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
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.classes_config import DnaClassesConfig
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.intervals import SPLIT_ALIASES, SPLITS, Interval, read_intervals, split_blocks
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
    if config.groups is not None:
        groups = _read_groups(labelled, config.groups)
        labelled.regions = [replace(region, locus=groups(region)) for region in labelled.regions]
    if not labelled.genomes or labelled.examples:
        labelled.origin = _split_examples(labelled, config)
    else:
        labelled.origin = _split_genomes(labelled, config, length)
    if config.groups is not None:
        _refuse_shared(labelled)
    for split in SPLITS:
        present = {region.label for region in labelled.regions if region.split == split}
        wanted = split == "train" or bool(present)
        lacking = [name for i, name in enumerate(labelled.classes) if i not in present]
        if wanted and lacking:
            raise InputError(
                f"the {split} split has nothing of class {lacking[0]!r} (splits from {labelled.origin}); correct the "
                f"splits, or choose data.classes"
            )


def _split_genomes(labelled: Labelled, config: DnaClassesConfig, length: int) -> str:
    """Splits of whole records of FASTA per class."""
    tags = {}
    if config.split in ("auto", "header"):
        tags = {
            (source, name): _known_split(value, path, name)
            for source, genome in enumerate(labelled.genomes)
            for path in genome.paths
            for name, value in header_tag(path, "split").items()
        }
    if config.intervals is not None and config.split in ("auto", "intervals"):
        labelled.regions = _cut(labelled, lambda _, genome: _own_intervals(config.intervals or "", labelled, genome))
        return str(config.intervals)
    if config.split == "header" or tags:
        regions = []
        for region in labelled.regions:
            split = tags.get((region.source, labelled.genomes[region.source].bare_name(region.record)))
            if split is None:
                raise InputError(
                    f"{labelled.genomes[region.source].paths[0]}: record {region.record!r} has no split= in its header "
                    f"as others have; add it, or set data.split=blocks"
                )
            regions.append(replace(region, split=split))
        labelled.regions = regions
        return "split= in the FASTA headers"
    if config.groups is not None:
        labelled.regions = _draw_groups(labelled.regions, config, lambda region: len(region))
        return f"groups drawn by split_seed {config.split_seed}"

    def blocks(_: int, genome: Genome) -> list[Interval]:
        found = split_blocks(
            genome,
            seed=config.split_seed,
            fractions={
                "valid": config.valid_fraction * (1 - config.test_fraction),
                "test": config.test_fraction,
            },
            block_bases=config.block_bases,
        )
        return _guarded(found, length)

    labelled.regions = _cut(labelled, blocks)
    return f"blocks drawn by split_seed {config.split_seed}, a guard of {length:,} bases between splits"


def _split_examples(labelled: Labelled, config: DnaClassesConfig) -> str:
    """Splits that rows name; what they leave open is drawn by seed, equal sequences together."""
    named = [region.split for region in labelled.regions]
    if any(named) and not all(named):
        first = labelled.regions[named.index(None)]
        raise InputError(f"data.path: {first.record!r} names no split and others do; give all of them one, or none")
    codec = DnaTokenizer()

    def key(region: Region) -> str:
        if config.groups is not None:
            return region.locus
        ids = labelled.fetch(region, region.start, region.end)
        return min(ids.tobytes(), codec.reverse_complement(ids).tobytes()).hex()

    if all(named):
        if "valid" in named or config.valid_fraction == 0:
            return "the data"
        train = [region for region in labelled.regions if region.split == "train"]
        rest = [region for region in labelled.regions if region.split != "train"]
        own = config.model_copy(update={"test_fraction": 0.0})
        labelled.regions = [*_draw_groups(train, own, lambda region: 1, key), *rest]
        return f"the data; {config.valid_fraction:.0%} of its training part is validation, by split_seed {config.split_seed}"
    labelled.regions = _draw_groups(labelled.regions, config, lambda region: 1, key)
    return f"drawn by split_seed {config.split_seed}"


def _draw_groups(
    regions: Sequence[Region],
    config: DnaClassesConfig,
    weight: Callable[[Region], int],
    key: Callable[[Region], str] = lambda region: region.locus,
) -> list[Region]:
    """Whole groups to test, then to validation, until each has its share; the rest trains."""
    weights: dict[str, int] = defaultdict(int)
    keys = [key(region) for region in regions]
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


def _cut(labelled: Labelled, intervals_of: Callable[[int, Genome], list[Interval]]) -> list[Region]:
    """Regions as the intervals of each class's genome say."""
    whole = {(region.source, region.record): region for region in labelled.regions}
    cut = []
    for source, genome in enumerate(labelled.genomes):
        for interval in intervals_of(source, genome):
            region = whole.get((source, interval.record))
            if region is None:
                continue
            grouped = region.locus != f"{labelled.classes[region.label]}/{region.record}"
            locus = region.locus if grouped else f"{region.locus}:{interval.start}-{interval.end}"
            cut.append(replace(region, start=interval.start, end=interval.end, split=interval.split, locus=locus))
    return cut


def _own_intervals(path: str, labelled: Labelled, genome: Genome) -> list[Interval]:
    """Of a TSV with a file column, the lines of this genome's files; of another file, all lines."""
    lines = list(numbered_lines(Path(path).expanduser()))
    header = lines[0][1].split("\t") if lines else []
    if "file" not in header:
        return read_intervals(path, genome)
    column = header.index("file")
    # One file name may stand in the folders of several classes: class/name tells them apart.
    every = [(labelled.classes[i], name) for i, g in enumerate(labelled.genomes) for name in _names(g)]
    plain = [name for _, name in every]
    own = labelled.classes[labelled.genomes.index(genome)]
    mine = {f"{own}/{name}" for name in _names(genome)}
    mine |= {name for name in _names(genome) if plain.count(name) == 1}
    kept = [header]
    for number, line in lines[1:]:
        fields = line.split("\t")
        given = fields[column] if len(fields) > column else ""
        if plain.count(given) > 1:
            raise InputError(f"{path}: line {number:,}: several classes have a file {given}; write class/{given}")
        if given not in plain and given not in {f"{c}/{name}" for c, name in every}:
            raise InputError(f"{path}: line {number:,}: no FASTA file {given!r} in data.path")
        if given in mine:
            fields[column] = os.path.basename(given)
            kept.append(fields)
    return read_intervals_text(path, ["\t".join(fields) for fields in kept], genome)


def read_intervals_text(path: str, lines: Iterable[str], genome: Genome) -> list[Interval]:
    """Intervals of lines of a TSV file with a header, as `read_intervals` checks them."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        part = os.path.join(folder, os.path.basename(path).removesuffix(".gz"))
        Path(part).write_text("\n".join(lines) + "\n", encoding="utf-8")
        try:
            return read_intervals(part, genome)
        except InputError as error:
            raise InputError(str(error).replace(part, path)) from None


def _names(genome: Genome) -> list[str]:
    return [os.path.basename(path) for path in genome.paths]


def _guarded(intervals: list[Interval], guard: int) -> list[Interval]:
    """Intervals with `guard` bases left out where one split ends and another begins."""
    kept: list[Interval] = []
    for interval in intervals:
        start = interval.start
        if kept and kept[-1].record == interval.record and kept[-1].split != interval.split:
            start += guard
        if start < interval.end:
            kept.append(replace(interval, start=start))
        else:
            # Nothing is left of it; what follows is still apart from what came before.
            kept.append(replace(interval, start=interval.end - 1))
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


def _known_split(text: str, path: str, record: str) -> str:
    split = SPLIT_ALIASES.get(text.lower(), text.lower())
    if split not in SPLITS:
        raise InputError(f"{path}: record {record!r}: unknown split {text!r} in its header; allowed: {', '.join(SPLITS)}")
    return split


def shared_sequences(labelled: Labelled) -> dict[str, int]:
    """Examples of one split that stand, on either strand, in another too: {"train/valid": 0, ...}."""
    codec = DnaTokenizer()
    found: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    for region in labelled.regions:
        ids: NDArray[np.uint8] = labelled.fetch(region, region.start, region.end)
        found[str(region.split)].append(min(ids.tobytes(), codec.reverse_complement(ids).tobytes()))
    return {
        f"{first}/{second}": sum(sequence in set(found[first]) for sequence in found[second])
        for i, first in enumerate(SPLITS)
        for second in SPLITS[i + 1 :]
    }
