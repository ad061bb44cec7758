"""Which bases of a genome belong to training, validation and test.

Intervals come from a file (4-column BED, or TSV with the header file, record, start0, end, split) or, without
one, from cutting any genome into contiguous blocks. Coordinates are 0-based half-open.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.bed import check_span, integer, numbered_lines
from mamba_bio_audio.pipelines.dna.contigs import parse_region, primary
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.draws import for_blocks
from mamba_bio_audio.pipelines.spans import Interval, Span, merge, size_of
from mamba_bio_audio.pipelines.split_names import SPLIT_ALIASES, SPLITS

TSV_COLUMNS = ("file", "record", "start0", "end", "split")
MAX_BLOCK_BASES = 1 << 17
MIN_BLOCK_BASES = 1 << 12


def region(text: str, genome: Genome) -> Span:
    """The span that a user writes as `record` or `record:start-end`, 1-based with the end included.

    A record of exactly this name takes precedence, because names may look like regions.
    """
    with contextlib.suppress(InputError):
        record = genome.resolve(text)
        return Span(record, 0, genome.records[record])
    name, start, end = parse_region(text)
    record = genome.resolve(name)
    if start is None or end is None:
        return Span(record, 0, genome.records[record])
    if not 1 <= start <= end <= genome.records[record]:
        raise InputError(
            f"region {text!r} is not inside {record!r}, which has {genome.records[record]:,} bases; regions are "
            "record:start-end, counted from 1 with the end included"
        )
    return Span(record, start - 1, end)


def chosen_spans(genome: Genome, contigs: str | Sequence[str]) -> list[Span]:
    """The disjoint spans that `data.contigs` selects: `primary` or `all` records, or names and regions."""
    if contigs == "all":
        return [Span(record, 0, length) for record, length in genome.records.items()]
    if contigs == "primary":
        by_file: dict[int, list[str]] = {}
        for record in genome.records:
            by_file.setdefault(genome.genome_of(record), []).append(record)
        return [
            Span(record, 0, genome.records[record])
            for records in by_file.values()
            for kept in [set(primary(map(genome.bare_name, records), map(genome.title, records)))]
            for record in records
            if genome.bare_name(record) in kept
        ]
    try:
        return merge(region(text, genome) for text in ([contigs] if isinstance(contigs, str) else contigs))
    except InputError as error:
        raise InputError(f"data.contigs: {error}") from error


def without_records(
    genome: Genome, spans: Sequence[Span], exclude: Sequence[str] = (), min_length: int = 0
) -> list[Span]:
    """Spans of the records that are neither excluded nor short.

    Args:
        genome: genome of the spans.
        spans: of `chosen_spans`.
        exclude: names of records, or regular expressions that match whole names; a literal name takes precedence.
        min_length: shorter records are left out.

    Raises:
        InputError: an expression is invalid or matches nothing, or no record is left.
    """
    named: set[str] = set()
    records = dict.fromkeys(span.record for span in spans)
    for text in exclude:
        found = [record for record in genome.records if text in (record, genome.bare_name(record))]
        if not found:
            try:
                pattern = re.compile(text)
            except re.error as error:
                raise InputError(
                    f"--exclude {text}: neither a record's name nor a regular expression ({error})"
                ) from None
            found = [r for r in genome.records if pattern.fullmatch(r) or pattern.fullmatch(genome.bare_name(r))]
        if not found:
            raise InputError(
                f"--exclude {text}: matches no record; there are {_listed(records)}. An expression must match the whole "
                "name: for names that begin with scaffold write 'scaffold.*'"
            )
        named.update(found)
    kept = [span for span in spans if span.record not in named and genome.records[span.record] >= min_length]
    if not kept:
        raise InputError(
            f"no record is left of {len(records):,} after --exclude and --min-length; the longest has "
            f"{max((genome.records[record] for record in records), default=0):,} bases"
        )
    return kept


def read_intervals(
    path: str | os.PathLike[str], genome: Genome, inside: Iterable[Span] | None = None
) -> list[Interval]:
    """Intervals of a BED or TSV file, in its order, checked against the genome.

    BED: record, start, end, split, no header; or record or region, split. TSV: a header line naming record, start0,
    end, split and, optionally, file, in any order. Split names: train, valid (or val), test. The file may be
    gzip-compressed.

    Args:
        path: path of the file.
        genome: genome of the intervals.
        inside: spans of `data.contigs`; an interval elsewhere is an error.
    """
    allowed: dict[str, list[Span]] | None = None
    if inside is not None:
        allowed = {}
        for span in inside:
            allowed.setdefault(span.record, []).append(span)
    path = str(path)
    intervals: list[Interval] = []
    columns: dict[str, int] | None = None
    width = 4
    resolved: dict[tuple[str, str | None], str] = {}
    for number, line in numbered_lines(path, "cannot be read as an intervals file ({error}); check data.intervals"):
        where = f"{path}: line {number:,}"
        fields = line.split("\t") if "\t" in line else line.split()
        fields = [field.strip() for field in fields]
        if fields[0] in ("track", "browser") and fields[0] not in genome.records:
            continue
        if columns is None:
            if "start0" in fields or "record" in fields:
                columns, width = _header(fields, where), len(fields)
                continue
            columns = {"record": 0, "start0": 1, "end": 2, "split": 3}
        if len(fields) == 2 and width == 4 and "file" not in columns:
            try:
                fields = [*map(str, region(fields[0], genome)), fields[1]]
            except InputError as error:
                raise InputError(f"{where}: {error}") from error
        if len(fields) != width:
            raise InputError(
                f"{where}: {len(fields)} columns instead of {width}; BED needs record, start, end, split (or "
                "record:start-end, split); TSV needs a first "
                f"line naming {', '.join(TSV_COLUMNS)}"
            )
        record, file = fields[columns["record"]], fields[columns["file"]] if "file" in columns else None
        start, end = (integer(fields[columns[name]], name, where) for name in ("start0", "end"))
        split = fields[columns["split"]]
        split = SPLIT_ALIASES.get(split.lower(), split.lower())
        if split not in SPLITS:
            raise InputError(
                f"{where}: unknown split {fields[columns['split']]!r}; allowed: {', '.join(SPLITS)} (val means valid)"
            )
        if (record, file) not in resolved:
            try:
                resolved[record, file] = genome.resolve(record, file)
            except InputError as error:
                raise InputError(f"{where}: {error}") from error
        name = resolved[record, file]
        check_span(start, end, name, genome.records[name], "base", where)
        if allowed is not None and not any(s.start <= start and end <= s.end for s in allowed.get(name, [])):
            raise InputError(
                f"{where}: {name!r} [{start:,}, {end:,}) is not in data.contigs, which keeps {_listed(allowed)}; add it "
                "there, or set data.contigs=all"
            )
        intervals.append(Interval(name, start, end, split))
    if not intervals:
        raise InputError(f"{path}: no intervals in it; BED needs lines of record, start, end, split")
    return intervals


def write_intervals(intervals: Iterable[Interval], genome: Genome) -> str:
    """Text of a TSV file that `read_intervals` reads back."""
    lines = ["\t".join(TSV_COLUMNS)]
    for interval in intervals:
        file = os.path.basename(genome.paths[genome.genome_of(interval.record)])
        lines.append(f"{file}\t{genome.bare_name(interval.record)}\t{interval.start}\t{interval.end}\t{interval.split}")
    return "\n".join(lines) + "\n"


def split_blocks(
    genome: Genome,
    *,
    seed: int,
    fractions: Mapping[str, float],
    block_bases: int | None = None,
    spans: Iterable[Span] | None = None,
    whole: bool = False,
) -> list[Interval]:
    """Split any genome into contiguous blocks, each given to one split at random.

    Every file is split on its own, so that each split sees every genome where the file is large enough. The
    result depends only on the seed, the settings, and the names and lengths of the records, not on paths.
    Neighbouring blocks of one split become one interval. Blocks at random places are a milder test than whole
    chromosomes: repeats and gene families lie on both sides. Use an intervals file to hold out chromosomes.

    Args:
        seed: random seed for the choice.
        fractions: share of "valid" and of "test" in the known bases, each 0 to below 1; the rest is "train".
        block_bases: length of a block; None: 131,072, or less for a small file so that each split gets its
            share.
        spans: what of the genome is split, as `chosen_spans` gives it; None: all of it.
        whole: give every span to one split as a whole instead of cutting it into blocks.
    """
    wanted = {split: fractions.get(split, 0.0) for split in ("valid", "test")}
    intervals: list[Interval] = []
    by_file: dict[int, list[Span]] = {}
    for span in chosen_spans(genome, "all") if spans is None else spans:
        by_file.setdefault(genome.genome_of(span.record), []).append(span)
    for own in by_file.values():
        intervals += _split_file(genome, own, seed, wanted, block_bases, whole)
    present = {interval.split for interval in intervals}
    missing = [split for split in SPLITS if split not in present and (split == "train" or wanted[split] > 0)]
    if missing:
        bases = size_of(span for own in by_file.values() for span in own)
        needed = f" with data.block_bases={block_bases:,}" if block_bases else " by whole records" if whole else ""
        remedy = "data.split_by=blocks" if whole else "a smaller data.block_bases"
        raise InputError(
            f"{genome.paths[0] if len(genome.paths) == 1 else f'{len(genome.paths)} FASTA files'}: "
            f"{bases:,} bases are too few "
            f"to split{needed}; nothing is left for {', '.join(missing)}; give data.intervals or {remedy}"
        )
    return intervals


def _split_file(
    genome: Genome, spans: list[Span], seed: int, wanted: Mapping[str, float], block_bases: int | None, whole: bool
) -> list[Interval]:
    size = size_of(spans)
    if block_bases is None:
        smallest = min((fraction for fraction in wanted.values() if fraction > 0), default=1.0)
        share = max(2, int(size * smallest))
        # Four blocks to the smallest share average out local oddities; below 4 kb they would cut contexts
        # short.
        block_bases = min(MAX_BLOCK_BASES, max(share // 4, min(share, MIN_BLOCK_BASES)))
    blocks: list[tuple[str, int, int]] = []
    known: list[int] = []
    identity = hashlib.sha256()
    for record, first, last in spans:
        length = last - first
        place = f"{length}" if length == genome.records[record] else f"{first}\t{last}"
        identity.update(f"{genome.bare_name(record)}\t{place}\n".encode())
        pieces = 1 if whole else max(1, round(length / block_bases))
        edges = first + np.linspace(0, length, pieces + 1).astype(np.int64)
        lengths = edges[1:] - edges[:-1]
        known += (lengths - genome.count_unknown(record, edges[:-1], edges[1:])).tolist()
        blocks += [(record, start, end) for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
    order = for_blocks(seed, identity.digest()).permutation(len(blocks)).tolist()
    # A block with hardly any known base would make an empty test split; training skips such blocks anyway.
    usable = [at for at in order if 2 * known[at] >= blocks[at][2] - blocks[at][1] and known[at] > 1]
    chosen = dict.fromkeys(range(len(blocks)), "train")
    quota = {split: fraction * sum(known) for split, fraction in wanted.items() if fraction > 0}
    if len(usable) > len(quota):
        for split, bases in quota.items():
            taken = 0
            # Half a block too much is as good as half a block too little. The first block is always taken, and
            # one is left to train on.
            while len(usable) > 1 and (not taken or taken + known[usable[0]] / 2 <= bases):
                chosen[usable[0]] = split
                taken += known[usable.pop(0)]
    merged: list[Interval] = []
    for at, (record, start, end) in enumerate(blocks):
        if merged and merged[-1].record == record and merged[-1].end == start and merged[-1].split == chosen[at]:
            merged[-1] = Interval(record, merged[-1].start, end, chosen[at])
        else:
            merged.append(Interval(record, start, end, chosen[at]))
    return merged


def _header(fields: list[str], where: str) -> dict[str, int]:
    missing = [name for name in TSV_COLUMNS[1:] if name not in fields]
    if missing:
        raise InputError(f"{where}: the header lacks {', '.join(missing)}; it must name {', '.join(TSV_COLUMNS)}")
    return {name: fields.index(name) for name in TSV_COLUMNS if name in fields}


def _listed(records: Iterable[str], limit: int = 8) -> str:
    names = list(records)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit:,} more" if len(names) > limit else "")
