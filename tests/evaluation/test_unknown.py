"""Temperature, threshold and rule by which a classifier calls sequences unknown."""

import numpy as np
import pytest
from scipy.special import softmax

from mamba_bio_audio.evaluation.unknown import fit, nats, probabilities, scores, shuffle


def drawn(random: np.random.Generator, count: int, sharpness: float, overconfident: float = 1.0):
    """Logits (1, n, 3) and labels drawn from their softmax; the logits are then stretched."""
    z = random.normal(size=(1, count, 3)) * sharpness
    labels = np.array([random.choice(3, p=softmax(row)) for row in z[0]])
    return z * overconfident, labels


def test_the_temperature_undoes_overconfidence():
    random = np.random.default_rng(0)
    z, labels = drawn(random, 4000, 2.0, overconfident=3.0)
    found = fit(z, labels, random.normal(size=(1, 500, 3)), keep=0.9)
    assert found.temperature == pytest.approx(3, rel=0.1)
    assert found.nats == (pytest.approx(nats(z, labels, 1)), pytest.approx(nats(z, labels, found.temperature)))
    assert found.nats[1] < found.nats[0] - 0.2
    assert found.unknown(z) == pytest.approx(0.1, abs=0.002)


def test_the_better_rule_is_taken():
    random = np.random.default_rng(1)
    z, labels = drawn(random, 500, 3.0)
    # As sure, but all logits are smaller: only the energy shows it.
    low = fit(z, labels, drawn(random, 500, 3.0)[0] - 20, keep=0.95)
    assert (low.rule, low.separation["energy"]) == ("energy", 1.0)
    assert low.unknown(drawn(random, 500, 3.0)[0] - 20) == 1
    # Unsure, with the same energy: only the probability shows it.
    flat = np.zeros((1, 500, 3))
    flat += np.sort(scores(z, 1, "energy"))[None, :, None] + 5
    unsure = fit(z, labels, flat, keep=0.95)
    assert (unsure.rule, unsure.separation["energy"]) == ("probability", pytest.approx(0, abs=0.05))
    assert unsure.unknown(flat) == 1


def test_no_more_than_asked_for_are_unknown():
    random = np.random.default_rng(2)
    for count in (7, 20, 21, 119):
        z, labels = drawn(random, count, 2.0)
        assert 0.1 - 1 / count < fit(z, labels, z - 1, keep=0.9).unknown(z) <= 0.1


def test_strands_are_averaged():
    z = np.array([[[0.0, 2.0]], [[0.0, -2.0]]])
    assert probabilities(z, 1.0)[0] == pytest.approx([0.5, 0.5])
    assert scores(z, 2.0, "energy") == pytest.approx([np.log(1 + np.e) + np.log(1 + 1 / np.e)])


def test_shuffled_rows_keep_their_letters():
    rows = [np.arange(50), np.arange(20)]
    mixed = shuffle(rows)
    assert [sorted(row) for row in mixed] == [list(row) for row in rows]
    assert not any(np.array_equal(a, b) for a, b in zip(rows, mixed, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(mixed, shuffle(rows), strict=True))
