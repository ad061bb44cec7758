"""Streams of random draws: their numbers never change, and new ones do not collide."""

import numpy as np
import pytest

from mamba_bio_audio.pipelines.draws import Draws, for_blocks, for_groups, for_synthesis

# As in every release: a seed means the same data for ever.
IN_USE = {
    "ORDER": ("training", 1),
    "STRAND": ("training", 2),
    "PLACE": ("training", 3),
    "CASE": ("training", 4),
    "CLASS_WINDOW": ("training of a classifier", 3),
    "CLASS_EVALUATION": ("split", 4),
    "MARKERS": ("long memory", 1),
    "NEEDLE": ("long memory", 2),
    "COPY": ("long memory", 3),
}


def test_numbers_in_use_stay() -> None:
    assert {name: Draws[name].value for name in IN_USE} == IN_USE


def test_new_numbers_are_of_one_stream_alone() -> None:
    """`unique` sees to it that no two streams of one owner are one; numbers that are added occur nowhere else."""
    assert len(Draws) == len(Draws.__members__)
    numbers = [draws.value[1] for draws in Draws]
    for name in set(Draws.__members__) - set(IN_USE):
        assert numbers.count(Draws[name].value[1]) == 1, name


@pytest.mark.parametrize("draws", list(Draws))
def test_draws_depend_on_seed_and_counter_alone(draws: Draws) -> None:
    expected = np.random.Philox(key=[7, draws.value[1]], counter=[3, 1, 0, 0]).random_raw(4).tolist()
    assert draws.bits(7, 3, 1).random_raw(4).tolist() == expected
    assert draws.random(7, 3, 1).bit_generator.random_raw(4).tolist() == expected
    for other in (draws.bits(8, 3, 1), draws.bits(7, 4, 1), draws.bits(7, 3, 2)):
        assert other.random_raw(4).tolist() != expected


def test_keys_of_splits_and_synthetic_sequence() -> None:
    key = np.array([5, 0x0807060504030201], np.uint64)
    assert for_blocks(5, bytes(range(1, 33))).random() == np.random.Generator(np.random.Philox(key=key)).random()
    assert for_groups(5, 2).random() == np.random.Generator(np.random.Philox(key=[5, 2])).random()
    assert for_synthesis(5, 2, 1).random() == np.random.default_rng([5, 2, 1]).random()
