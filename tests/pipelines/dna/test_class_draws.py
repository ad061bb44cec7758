from collections import Counter, defaultdict

import numpy as np
import pytest

from mamba_bio_audio.pipelines.dna.class_draws import draw_groups


def draw(keys, labels, weights=None, seed: int = 0, test: float = 0.1, valid: float = 0.1) -> list[str]:
    weights = [1] * len(keys) if weights is None else weights
    return draw_groups(keys, labels, weights, test=test, valid=valid, seed=seed)


@pytest.mark.parametrize("seed", range(5))
def test_groups_of_unequal_size_stay_whole_and_shares_hold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    keys, labels = [], []
    for group in range(120):
        for _ in range(int(rng.integers(1, 12))):
            keys.append(group)
            labels.append(group % 6)
    found = draw(keys, labels, seed=seed, test=0.2, valid=0.25)
    split_of = defaultdict(set)
    for key, split in zip(keys, found, strict=True):
        split_of[key].add(split)
    assert all(len(splits) == 1 for splits in split_of.values())
    assert len(set(zip(labels, found, strict=True))) == 18
    counts = Counter(found)
    for split, share in (("test", 0.2), ("valid", 0.2), ("train", 0.6)):
        assert counts[split] / len(found) == pytest.approx(share, abs=0.02)


def test_three_groups_are_enough() -> None:
    """However large the classes are beside each other, and whatever the seed."""
    keys = [*range(300), *range(300, 303), *range(303, 306)]
    labels = [0] * 300 + [1] * 3 + [2] * 3
    for seed in range(50):
        assert len(set(zip(labels, draw(keys, labels, seed=seed), strict=True))) == 9


def test_one_group_may_be_of_several_classes() -> None:
    """Near-duplicates under two labels: both classes go where the group goes, and still none is left out."""
    keys = [0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 7]
    labels = [0, 1, 1, 2, 2, 0, 0, 1, 2, 0, 1, 2]
    for seed in range(50):
        found = draw(keys, labels, seed=seed)
        assert found[::2][:3] == found[1::2][:3]
        assert found[10] == found[11]
        assert len(set(zip(labels, found, strict=True))) == 9


def test_without_enough_groups_the_plain_draw_stands() -> None:
    keys, labels = list(range(42)), [0] * 40 + [1] * 2
    found = [draw(keys, labels, seed=seed) for seed in range(3)]
    assert all(Counter(splits)["test"] == 4 for splits in found)
    assert found[0] != found[1]


def test_a_split_without_a_share_gets_nothing() -> None:
    keys, labels = list(range(12)), [i % 4 for i in range(12)]
    for seed in range(10):
        found = draw(keys, labels, seed=seed, test=0.0, valid=0.3)
        assert Counter(zip(labels, found, strict=True)).keys() == {(c, s) for c in range(4) for s in ("valid", "train")}
