"""Finds examples that give each other away: one sequence with two labels, and sequence of one split that is in another.

Equal sequences, on either strand, are found as a whole. Nearly equal ones are found by the 31-mers with which
`duplicates.py` compares genomes: two examples are near-duplicates if they share more than a fifth of the words of the one
that has fewer. For short examples it is more than 0.3 of their 15-mers instead. Either way, a changed base or a shift by a
few bases is detected in sequences of 36 bases or more.

Training windows are drawn afresh all the time. Of the evaluation windows it is counted how many are in the training part
of their own class, judging by more than half of their 31-mers: for example strains of one species, in blocks of their
genomes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mamba_bio_audio.pipelines.dna.class_rows import counted
from mamba_bio_audio.pipelines.dna.duplicates import LIMIT, WORD, words_and_starts
from mamba_bio_audio.pipelines.dna.labelled import Labelled
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer, N
from mamba_bio_audio.pipelines.spans import Region
from mamba_bio_audio.pipelines.split_names import SPLITS

# Approximate maximum number of words to keep; about 50 bytes each while they are sorted and paired.
MAX_WORDS = 1 << 23
# In an example below this length a single changed base may leave too few 31-mers, so 15-mers are compared, with a limit
# that is still exceeded if a base in the middle of 36 has changed.
SHORT, SHORT_WORD, SHORT_LIMIT = 69, 15, 0.3
# Short examples are compared with examples below this length.
SHORT_PARTNER = 100
# A word of more examples than this links only neighbours and the first one, so that repeats do not make it quadratic.
FULL_PAIRS = 8
# Regions are read together up to this many bases, so that the arrays stay in a core's cache.
PIECE_BASES = 1 << 17
# Copies of repeats can together have a fifth of a window's words; half of them means that its locus is there.
WINDOW_LIMIT = 0.5
# Windows are compared with as much training sequence as is read in about ten seconds, by at most CLASS_WORDS words per
# class, unless that leaves fewer than WINDOW_WORDS of a window.
MAX_TRAIN_BASES = 1 << 27
CLASS_WORDS, WINDOW_WORDS = 1 << 17, 64


def identities(labelled: Labelled) -> dict[tuple[int, str, int, int], int]:
    """Number of each region's sequence: equal for equal sequences on either strand, and in the order of the sequences."""
    codec = DnaTokenizer()
    canonical: dict[tuple[int, str, int, int], bytes] = {}
    for region in counted(labelled.regions, "equal sequences", labelled.progress, len(labelled.regions)):
        ids = labelled.fetch(region)
        canonical[place(region)] = min(ids.tobytes(), codec.reverse_complement(ids).tobytes())
    rank = {sequence: number for number, sequence in enumerate(sorted(set(canonical.values())))}
    return {where: rank[sequence] for where, sequence in canonical.items()}


def place(region: Region) -> tuple[int, str, int, int]:
    """Location of a region."""
    return region.source, region.record, region.start, region.end


def joined(edges: Sequence[tuple[Hashable, Hashable]]) -> dict[Hashable, int]:
    """Connected component of every node of a graph given by its edges."""
    nodes = {name: at for at, name in enumerate(dict.fromkeys(end for edge in edges for end in edge))}
    rows = np.array([nodes[first] for first, _ in edges], dtype=np.int64)
    columns = np.array([nodes[second] for _, second in edges], dtype=np.int64)
    graph = coo_array((np.ones(len(edges)), (rows, columns)), shape=(len(nodes), len(nodes)))
    _, component = connected_components(graph, directed=False)
    return {name: int(component[at]) for name, at in nodes.items()}


def related(regions: Sequence[Region], identity: Mapping[Any, int], near: Sequence[tuple[int, int]] = ()) -> list[int]:
    """A key per region: the smallest sequence number among its relatives.

    Regions are related if they have the same sequence or locus, or if their sequences are `near` (pairs of numbers).
    """
    own = [identity[place(region)] for region in regions]
    edges: list[tuple[Hashable, Hashable]] = [(key, f"locus {r.locus}") for key, r in zip(own, regions, strict=True)]
    present = set(own)
    edges += [(first, second) for first, second in near if first in present and second in present]
    component = joined(edges)
    smallest: dict[int, int] = {}
    for key in sorted(present, reverse=True):
        smallest[component[key]] = key
    return [smallest[component[key]] for key in own]


def near_duplicates(labelled: Labelled) -> list[tuple[int, int]]:
    """Pairs of sequence numbers that are near-duplicates of each other; `labelled.identity` must be set."""
    first = {labelled.identity[place(region)]: region for region in reversed(labelled.regions)}
    every = max(1, -(-sum(len(region) for region in first.values()) // MAX_WORDS))
    short = sorted(number for number, region in first.items() if len(region) < SHORT_PARTNER)
    found: list[tuple[int, int]] = []
    for numbers, size, one_in, limit in ((sorted(first), WORD, every, LIMIT), (short, SHORT_WORD, 1, SHORT_LIMIT)):
        words, owners = _words(labelled, [first[number] for number in numbers], size, one_in)
        totals = np.bincount(owners, minlength=len(numbers))
        lengths = np.array([len(first[number]) for number in numbers], dtype=np.int64)
        pairs, counts = _count_pairs(words, owners, len(numbers))
        left, right = pairs // max(1, len(numbers)), pairs % max(1, len(numbers))
        near = counts > limit * np.minimum(totals[left], totals[right])
        if size == SHORT_WORD:
            near &= np.minimum(lengths[left], lengths[right]) < SHORT
        found += [(numbers[a], numbers[b]) for a, b in zip(left[near].tolist(), right[near].tolist(), strict=True)]
    return found


def _words(
    labelled: Labelled, regions: Sequence[Region], size: int, every: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Every word of every region once, sorted by word and then by region; and the region's index."""
    words, owners = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.int64)]
    gap = np.full(1, N, dtype=np.uint8)
    pieces: list[NDArray[np.uint8]] = []
    starts: list[int] = []
    first = length = 0
    told = counted(regions, f"near-duplicates by {size}-mers, sequences", labelled.progress, len(regions))
    for number, region in enumerate(told):
        ids = labelled.fetch(region)
        # An unknown base separates regions, so that no word spans two of them.
        pieces += [ids, gap]
        starts.append(length)
        length += len(ids) + 1
        if length > PIECE_BASES or number == len(regions) - 1:
            found, at = words_and_starts(np.concatenate(pieces), every, size)
            words.append(found)
            owners.append(first + np.searchsorted(starts, at, side="right") - 1)
            pieces, starts, first, length = [], [], number + 1, 0
    word, owner = np.concatenate(words), np.concatenate(owners)
    # Stable, so that the owners of a word stay in order.
    order = np.argsort(word, kind="stable")
    word, owner = word[order], owner[order]
    fresh = np.ones(len(word), dtype=bool)
    fresh[1:] = (word[1:] != word[:-1]) | (owner[1:] != owner[:-1])
    return word[fresh], owner[fresh]


def _count_pairs(
    words: NDArray[np.uint64], owners: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs a * count + b of owners a < b that have words in common, and the number of these words."""
    if not len(words):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    starts = np.flatnonzero(np.concatenate([[True], words[1:] != words[:-1]]))
    sizes = np.diff(np.append(starts, len(words)))
    run = np.repeat(np.arange(len(starts)), sizes)
    long = (sizes > FULL_PAIRS)[run]
    found: list[NDArray[np.int64]] = []
    for step in range(1, FULL_PAIRS):
        near = np.flatnonzero((run[step:] == run[:-step]) & (~long[step:] | (step == 1)))
        found.append(owners[near] * count + owners[near + step])
    first = starts[run]
    far = np.flatnonzero(long & (np.arange(len(words)) - first > 1))
    found.append(owners[first[far]] * count + owners[far])
    return np.unique(np.concatenate(found), return_counts=True)  # type: ignore[return-value]


def between_splits(labelled: Labelled) -> dict[str, dict[str, Any]]:
    """Count regions of a later split that are also in an earlier one, for each pair of splits, ready for JSON.

    Returns:
        {"train/valid": {"equal": count, "near": count, "of": regions of valid, "example": names of two}, ...}; a region that
        equals one is not counted as near another.
    """
    members: dict[str, dict[int, list[Region]]] = {split: defaultdict(list) for split in SPLITS}
    for region in labelled.regions:
        members[str(region.split)][labelled.identity[place(region)]].append(region)
    partners: dict[int, list[int]] = defaultdict(list)
    for a, b in labelled.near:
        partners[a].append(b)
        partners[b].append(a)
    found: dict[str, dict[str, Any]] = {}
    for i, first in enumerate(SPLITS):
        known = members[first]
        for second in SPLITS[i + 1 :]:
            equal = near = 0
            example = None
            for number, regions in members[second].items():
                other = number if number in known else next((n for n in partners[number] if n in known), None)
                if other is None:
                    continue
                equal += len(regions) if other == number else 0
                near += len(regions) if other != number else 0
                example = example or [regions[0].record, known[other][0].record]
            of = sum(map(len, members[second].values()))
            found[f"{first}/{second}"] = {"equal": equal, "near": near, "of": of, "example": example}
    return found


def in_train(labelled: Labelled) -> set[tuple[int, str, int, int]]:
    """Places of the regions of later splits that are also in train, exactly or nearly; `labelled.identity` must be set."""
    train = {labelled.identity[place(region)] for region in labelled.regions if region.split == "train"}
    known = set(train)
    for a, b in labelled.near:
        if a in train or b in train:
            known |= {a, b}
    return {
        place(region)
        for region in labelled.regions
        if region.split != "train" and labelled.identity[place(region)] in known
    }


def windows_in_train(labelled: Labelled, windows: Mapping[str, Sequence[Region]]) -> dict[str, dict[str, Any]]:
    """Count evaluation windows that are in the training part of their own class, as `between_splits` does for examples.

    Args:
        labelled: labelled data with splits.
        windows: windows of valid and of test.

    Returns:
        {"train/valid": {"equal": 0, "near": count, "of": windows, "example": name of a record}, ...}; {} if there is too
        much training sequence to compare.
    """
    train: dict[int, list[Region]] = defaultdict(list)
    for region in labelled.regions:
        if region.split == "train":
            train[region.label].append(region)
    if sum(len(region) for regions in train.values() for region in regions) > MAX_TRAIN_BASES:
        return {}
    found: dict[str, dict[str, Any]] = {
        f"train/{split}": {"equal": 0, "near": 0, "of": len(own), "example": None} for split, own in windows.items()
    }
    for label in sorted(train):
        held = [(split, window) for split, own in windows.items() for window in own if window.label == label]
        if not held:
            continue
        longest = max(len(window) for _, window in held)
        bases = sum(len(window) for _, window in held)
        every = max(1, min(bases // CLASS_WORDS, longest // WINDOW_WORDS))
        words, owners = _words(labelled, [window for _, window in held], WORD, every)
        unique, row = np.unique(words, return_inverse=True)
        seen = np.zeros(len(unique) + 1, dtype=bool)
        for ids in _pieces(labelled, train[label]):
            here, _ = words_and_starts(ids, every)
            at = np.searchsorted(unique, here)
            seen[at[unique[np.minimum(at, len(unique) - 1)] == here] if len(unique) else at[:0]] = True
        total = np.bincount(owners, minlength=len(held))
        shared = np.bincount(owners, seen[row], len(held))
        for number in np.flatnonzero(shared > WINDOW_LIMIT * total).tolist():
            split, window = held[number]
            pair = found[f"train/{split}"]
            pair["near"] += 1
            pair["example"] = pair["example"] or [f"{window.record}:{window.start + 1:,}-{window.end:,}"]
    return found


def _pieces(labelled: Labelled, regions: Sequence[Region]) -> Iterator[NDArray[np.uint8]]:
    """Yield token ids of regions in pieces that contain every 31-mer once; small regions are joined by an unknown base."""
    gap = np.full(1, N, dtype=np.uint8)
    waiting: list[NDArray[np.uint8]] = []
    size = 0
    for region in regions:
        for start in range(region.start, region.end, PIECE_BASES):
            ids = labelled.fetch(replace(region, start=start, end=min(start + PIECE_BASES + WORD - 1, region.end)))
            waiting += [ids, gap]
            size += len(ids)
            if size >= PIECE_BASES:
                yield np.concatenate(waiting)
                waiting, size = [], 0
    if waiting:
        yield np.concatenate(waiting)


def label_conflicts(labelled: Labelled) -> dict[str, Any]:
    """Count equal sequences with several labels, and the accuracy that a classifier can reach at most, ready for JSON.

    Returns:
        sequences: number of distinct sequences with several labels; regions: number of regions that have them; example:
        [name, class, name, class] of two; ceiling: highest possible accuracy by split (None if empty) and for "all".
    """
    counts: dict[str, dict[int, Counter[int]]] = {split: defaultdict(Counter) for split in ("all", *SPLITS)}
    first: dict[int, Region] = {}
    example = None
    for region in labelled.regions:
        number = labelled.identity[place(region)]
        other = first.setdefault(number, region)
        if example is None and other.label != region.label:
            example = [part for r in (other, region) for part in (r.record, labelled.classes[r.label])]
        for split in {"all", region.split} & counts.keys():
            counts[str(split)][number][region.label] += 1
    torn = [labels for labels in counts["all"].values() if len(labels) > 1]
    ceiling = {}
    for split, by_sequence in counts.items():
        total = sum(labels.total() for labels in by_sequence.values())
        best = sum(max(labels.values()) for labels in by_sequence.values())
        ceiling[split] = best / total if total else None
    return {
        "sequences": len(torn),
        "regions": sum(labels.total() for labels in torn),
        "example": example,
        "ceiling": ceiling,
    }
