"""Splits drawn with a seed: groups of related sequences stay whole, and every class with enough groups is in every split.

A plain draw in random order is kept if it is complete, so that the splits of a seed stay what they were. Otherwise the draw
is stratified: each class gives a group to every split, then each group goes where its classes lack most.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.pipelines.draws import for_groups

# Orders to try where groups contain several classes; where each contains one, the first order works.
ATTEMPTS = 20


def draw_groups(
    keys: Sequence[Any], labels: Sequence[int], weights: Sequence[int], *, test: float, valid: float, seed: int
) -> list[str]:
    """The split of each of n sequences; those of one key stay together.

    Args:
        keys: (n,) the group of each; they can be sorted.
        labels: (n,) class numbers.
        weights: (n,) what the shares are counted in: examples or bases.
        test: share of test.
        valid: share of validation in what is not test.
        seed: random seed for the draw.
    """
    groups: dict[Any, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for key, label, weight in zip(keys, labels, weights, strict=True):
        groups[key][label] += weight
    names = sorted(groups)
    contents = [groups[name] for name in names]
    shares = {"test": test, "valid": valid * (1 - test), "train": (1 - test) * (1 - valid)}
    wanted = {split: share for split, share in shares.items() if share > 0}
    order = for_groups(seed, 0).permutation(len(names))
    chosen = plain = _in_turn(contents, order, test, valid)
    number_of_groups = Counter(label for content in contents for label in content)
    attempts = ATTEMPTS if min(number_of_groups.values(), default=0) >= len(wanted) else 0
    for attempt in range(1, attempts + 1):
        if _complete(contents, chosen, wanted):
            break
        chosen = _stratified(contents, order, wanted)
        order = for_groups(seed, attempt).permutation(len(names))
    else:
        chosen = chosen if _complete(contents, chosen, wanted) else plain
    split_of = dict(zip(names, chosen, strict=True))
    return [split_of[key] for key in keys]


def _in_turn(contents: Sequence[Mapping[int, int]], order: NDArray[np.int64], test: float, valid: float) -> list[str]:
    """Groups in order to test, then to validation, until each has its share; a group goes where its middle falls."""
    sizes = [sum(content.values()) for content in contents]
    total, taken = sum(sizes), 0
    first = test * total
    second = first + valid * (total - first)
    chosen = [""] * len(contents)
    for at in order.tolist():
        middle = taken + sizes[at] / 2
        chosen[at] = "test" if middle < first else "valid" if middle < second else "train"
        taken += sizes[at]
    return chosen


def _complete(contents: Sequence[Mapping[int, int]], chosen: Sequence[str], wanted: Iterable[str]) -> bool:
    """Whether every class is in every split."""
    present = {(label, split) for content, split in zip(contents, chosen, strict=True) for label in content}
    return all((label, split) in present for label, _ in present for split in wanted)


def _stratified(
    contents: Sequence[Mapping[int, int]], order: NDArray[np.int64], shares: Mapping[str, float]
) -> list[str]:
    """Each class's groups over the splits by their shares."""
    sizes = [sum(content.values()) for content in contents]
    totals: dict[int, int] = defaultdict(int)
    own: dict[int, list[int]] = defaultdict(list)
    # From small to large, equal ones in random order: what a split must have should not overfill it.
    rising = sorted(order.tolist(), key=sizes.__getitem__)
    for at in rising:
        for label, weight in contents[at].items():
            totals[label] += weight
            own[label].append(at)
    left = {(label, split): shares[split] * total for label, total in totals.items() for split in shares}
    chosen: list[str | None] = [None] * len(contents)
    present: set[tuple[int, str]] = set()

    def give(at: int, split: str) -> None:
        chosen[at] = split
        for label, weight in contents[at].items():
            left[label, split] -= weight
            present.add((label, split))

    # First the classes with the fewest groups, each one group to every split that has none of it.
    for label in sorted(own, key=lambda label: (len(own[label]), label)):
        free = iter(own[label])
        for split in sorted(shares, key=shares.__getitem__):
            if (label, split) not in present:
                at = next((at for at in free if chosen[at] is None), None)
                if at is not None:
                    give(at, split)
    # Then from large to small, where the group's classes lack most.
    for at in reversed(rising):
        if chosen[at] is None:
            content = contents[at]

            def lack(split: str, content: Mapping[int, int] = content) -> float:
                return sum(weight * left[label, split] / totals[label] for label, weight in content.items())

            give(at, max(shares, key=lack))
    return [str(split) for split in chosen]
