"""Scores of a classifier: known answers, intervals over groups, masks, JSON and picture."""

import json
import math

import numpy as np
import pytest

from mamba_bio_audio.evaluation.classification import classification_report, most_confused
from mamba_bio_audio.evaluation.figures import confusion_picture
from mamba_bio_audio.evaluation.resampling import bootstrap_mean
from mamba_bio_audio.files import to_json
from mamba_bio_audio.jobs.evaluate_results import ClassReport

LABELS = ["fly", "human", "mouse"]


def certain(classes: list[int], confidence: float = 0.8) -> np.ndarray:
    p = np.full((len(classes), 3), (1 - confidence) / 2)
    p[np.arange(len(classes)), classes] = confidence
    return p


def test_report_of_a_hand_counted_case():
    report = classification_report(certain([0, 0, 1, 1, 1, 0]), [0, 0, 1, 1, 0, 1], LABELS)
    assert report["accuracy"]["value"] == pytest.approx(4 / 6)
    assert report["confusion"] == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    fly = report["classes"]["fly"]
    assert (fly["count"], fly["predicted"], fly["precision"], fly["recall"]) == (
        3,
        3,
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
    )
    # Never seen and never predicted: undefined, not zero.
    assert math.isnan(report["classes"]["mouse"]["precision"])
    assert report["macro_f1"] == pytest.approx(2 / 3)
    assert report["chance"] == 0.5
    assert report["nats"] == pytest.approx(-(4 * math.log(0.8) + 2 * math.log(0.1)) / 6)
    # All confidences are 0.8, two thirds are right.
    assert report["calibration"]["ece"] == pytest.approx(0.8 - 2 / 3, abs=1e-6)
    assert [row["count"] for row in report["calibration"]["bins"]] == [6]


def test_calibration_error_is_the_weighted_gap_of_the_table():
    random = np.random.default_rng(0)
    p = random.dirichlet([0.5] * 3, size=500)
    report = classification_report(p, random.integers(0, 3, 500), LABELS)
    table = report["calibration"]["bins"]
    assert sum(row["count"] for row in table) == 500
    gap = sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in table) / 500
    assert report["calibration"]["ece"] == pytest.approx(gap, abs=1e-5)


def test_interval_is_seeded_and_holds_the_truth():
    right = (np.random.default_rng(1).random(400) < 0.7).astype(float)
    first = bootstrap_mean(right, seed=3)
    assert first == bootstrap_mean(right, seed=3)
    assert first != bootstrap_mean(right, seed=4)
    assert first.low < 0.7 < first.high
    # Normal approximation of a proportion, independent sequences.
    half = 1.96 * math.sqrt(first.value * (1 - first.value) / 400)
    assert (first.high - first.low) / 2 == pytest.approx(half, rel=0.1)


def test_interval_over_groups_is_wider_where_a_group_goes_one_way():
    right = np.repeat((np.random.default_rng(2).random(40) < 0.5).astype(float), 10)
    groups = [f"locus{i}" for i in range(40) for _ in range(10)]
    alone, together = bootstrap_mean(right), bootstrap_mean(right, groups)
    assert together.groups == 40
    # Ten equal sequences are worth one: sqrt(10) times as wide.
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(math.sqrt(10), rel=0.15)
    assert math.isnan(bootstrap_mean(right, ["one"] * 400).low)


def test_groups_of_different_size_weigh_by_their_sequences():
    right, groups = [1.0] * 9 + [0.0], ["big"] * 9 + ["small"]
    found = bootstrap_mean(right, groups)
    assert found.value == pytest.approx(0.9)
    # The draws are (big, big), (big, small), (small, small).
    assert (found.low, found.high) == (0.0, 1.0)


def test_a_class_predicted_but_absent_counts_zero_in_macro_f1():
    """It was a mistake each time; only a class that neither occurs nor is predicted has no F1."""
    report = classification_report(certain([0, 0, 2, 1]), [0, 0, 1, 1], LABELS)
    assert report["classes"]["mouse"] | {"recall": None} == {
        "count": 0,
        "predicted": 1,
        "precision": 0.0,
        "recall": None,
        "f1": 0.0,
    }
    assert report["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_intervals_of_strata_are_over_loci():
    """Of a stratum's ten windows in two loci there are two draws to resample, not ten."""
    right = [0] * 5 + [1] * 5 + [1] * 10
    groups = ["a"] * 5 + ["b"] * 5 + [f"c{at}" for at in range(10)]
    inside = np.arange(20) < 10
    report = classification_report(certain(right), [0] * 20, LABELS, groups=groups, strata={"inside": inside})
    accuracy = report["strata"]["inside"]["accuracy"]
    assert accuracy["groups"] == 2
    # The draws are (a, a), (a, b), (b, b).
    assert (accuracy["value"], accuracy["low"], accuracy["high"]) == (0.5, 0.0, 1.0)


def test_intervals_draw_kinds_of_groups(monkeypatch):
    """Groups of one size and one sum are drawn as one kind: the distribution is that of drawing each."""
    random = np.random.default_rng(5)
    sizes = random.integers(1, 4, 300)
    groups = np.repeat(np.arange(300), sizes)
    values = (random.random(len(groups)) < 0.3).astype(float)
    sums = np.bincount(groups, values)
    means = [sums[at].sum() / sizes[at].sum() for at in random.integers(0, 300, (4000, 300))]
    drawn = []
    generator = np.random.default_rng

    class Watched:
        def __init__(self, seed):
            self.own = generator(seed)

        def multinomial(self, count, shares, size):
            drawn.append(len(shares))
            return self.own.multinomial(count, shares, size)

    monkeypatch.setattr(np.random, "default_rng", Watched)
    found = bootstrap_mean(values, groups, resamples=4000)
    # Sizes 1 to 3 with 0 up to as many right.
    assert drawn == [9]
    assert found.groups == 300
    assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.004)


def test_the_most_confused_pairs():
    confusion = [[5, 2, 0, 1], [3, 5, 0, 0], [0, 0, 0, 0], [0, 4, 0, 5]]
    assert most_confused(confusion, 6) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert most_confused(confusion, 3) == [(0, 1), (1, 3), (0, 3)]
    empty = [[5, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 5]]
    # Two classes without a sequence are no pair.
    assert (1, 2) not in most_confused(empty, 6)


def test_tables_of_many_classes_show_the_worst():
    count = 500
    targets = np.repeat(np.arange(count), 4)
    chosen = targets.copy()
    chosen[4 * 123 : 4 * 123 + 3] = 321
    chosen[0] = 1
    p = np.full((len(targets), count), 0.5 / (count - 1))
    p[np.arange(len(targets)), chosen] = 0.5
    report = classification_report(p, targets, [f"class{at}" for at in range(count)])
    text = ClassReport.model_validate(report).text()
    lines = text.splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) < 120
    assert "the classes with the lowest F1 of 500" in text
    shown = [
        line.split()[0] for line in lines[lines.index(next(x for x in lines if x.startswith("class "))) + 1 :][:20]
    ]
    assert shown[:4] == ["class123", "class321", "class0", "class1"]
    pairs = [line.split() for line in lines if line.endswith((" 3", " 1")) and line.startswith("class")]
    assert pairs == [["class123", "class321", "3"], ["class0", "class1", "1"]]
    assert len(report["confusion"]) == count


def test_a_report_read_back_from_json_is_described():
    """Undefined scores are null there."""
    report = classification_report(certain([0, 0, 1]), [0, 1, 1], LABELS)
    text = ClassReport.model_validate(json.loads(to_json(report))).text()
    assert text == ClassReport.model_validate(report).text()
    assert next(line.split() for line in text.splitlines() if line.startswith("mouse")) == [
        "mouse",
        "0",
        "0",
        "-",
        "-",
        "-",
    ]


def test_strata_have_their_own_accuracy():
    inside = [True, True, False, False, False, False]
    report = classification_report(
        certain([0, 1, 1, 0, 0, 0]),
        [0, 1, 1, 0, 1, 1],
        LABELS,
        groups=list("abcdef"),
        strata={"inside": inside, "outside": np.logical_not(inside), "nowhere": [False] * 6},
    )
    assert report["strata"]["inside"]["accuracy"]["value"] == 1.0
    assert report["strata"]["outside"]["accuracy"]["value"] == 0.5
    assert report["strata"]["nowhere"] == {"count": 0, "accuracy": None}
    text = ClassReport.model_validate(report).text()
    assert "accuracy inside: 100.0%" in text
    assert "accuracy nowhere: none" in text


def test_report_is_json_and_a_picture(tmp_path):
    report = classification_report(certain([0, 0, 1]), [0, 1, 1], LABELS)
    assert json.loads(to_json(report))["classes"]["mouse"]["precision"] is None
    confusion_picture(report, tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("p", "y", "fault"),
    [
        (np.ones((2, 3)), [0, 1], "sum to 1"),
        (certain([0]), [3], "0..2"),
        (certain([0])[:, :2], [0], "do not fit"),
        (np.full((1, 3), np.nan), [0], "finite"),
    ],
)
def test_senseless_input_is_refused(p, y, fault):
    with pytest.raises(ValueError, match=fault):
        classification_report(p, y, LABELS)


def test_strata_are_resampled_with_the_seed_of_the_report():
    p, classes = certain([0, 1] * 500), [0] * 1000
    report = classification_report(p, classes, LABELS, seed=7, strata={"all": np.ones(1000, dtype=bool)})
    assert report["strata"]["all"]["accuracy"] == report["accuracy"]
    other = classification_report(p, classes, LABELS, seed=0)
    assert other["accuracy"] != report["accuracy"]
