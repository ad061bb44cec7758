"""Evaluation of a classifier of many classes: what is compared, written and shown does not grow with their pairs."""

import csv
import io
from types import SimpleNamespace

import numpy as np
import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.evaluation import classes as subject
from mamba_bio_audio.jobs.evaluate_results import ClassesResult
from mamba_bio_audio.pipelines.contract import Symbols
from mamba_bio_audio.pipelines.corpus import Example
from mamba_bio_audio.pipelines.scores import ClassNotes
from mamba_bio_audio.pipelines.spans import Region

LENGTH = 12


class Data:
    """Sequences without files."""

    def __init__(self, targets: np.ndarray, classes: int) -> None:
        self.names = tuple(f"c{at}" for at in range(classes))
        self.length = LENGTH
        self.dataset = SimpleNamespace(
            windows=[Region(f"r{at}", 0, LENGTH, int(y), "test", f"l{at // 2}") for at, y in enumerate(targets)],
            corpus=SimpleNamespace(read=lambda region: Example(np.full(len(region), 7, np.uint8), region.label)),
        )

    @property
    def corpus(self):
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        return self.names

    config = None

    def evaluation_dataset(self, split):
        return self.dataset

    def strata(self, split):
        return {}


def probabilities(targets: np.ndarray, classes: int, wrong: dict[int, int]) -> np.ndarray:
    chosen = targets.copy()
    for row, other in wrong.items():
        chosen[row] = other
    p = np.full((len(targets), classes), 0.1 / (classes - 1))
    p[np.arange(len(targets)), chosen] = 0.9
    return p


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch):
    """evaluate(targets, classes, model's p, k-mers' p) -> result, and how many means were resampled."""

    def run(targets, classes, own, bar):
        calls = []
        mean = subject.bootstrap_mean
        monkeypatch.setattr(subject, "bootstrap_mean", lambda *a, **k: calls.append(1) or mean(*a, resamples=50, **k))
        done = [0]

        def classify(model, rows, **options):
            done[0] += len(rows)
            return own[done[0] - len(rows) : done[0]]

        monkeypatch.setattr(subject, "classify", classify)
        fitted = SimpleNamespace(
            probabilities=lambda rows: bar,
            to_dict=lambda: (
                {"k": 4, "strength": 0.1, "trained_on": 9, "candidates": [{"k": 4}]} | {"edges": [], "left_out": []}
            ),
        )
        data = Data(targets, classes)
        domain = SimpleNamespace(
            class_yardstick=lambda data: fitted,
            beside_classes=lambda data: ClassNotes(),
            symbols=lambda config, length: Symbols("base", 4, strands=("both", "forward", "reverse")),
        )
        model = SimpleNamespace(labels=data.classes, to=lambda device: None)
        return subject.evaluate_classes(model, data, domain, split="test"), len(calls)

    yield run
    monkeypatch.undo()


def test_a_strand_that_does_not_exist_is_refused():
    data = Data(np.array([0, 1]), 2)
    domain = SimpleNamespace(symbols=lambda config, length: Symbols("sample", 0))
    model = SimpleNamespace(labels=data.classes)
    with pytest.raises(InputError, match="--strand reverse needs sequences with two strands, got samples"):
        subject.evaluate_classes(model, data, domain, split="test", strand="reverse")


def test_pairs_of_few_classes_are_all_there(evaluate):
    targets = np.repeat(np.arange(4), 6)
    own, bar = probabilities(targets, 4, {0: 1, 7: 0}), probabilities(targets, 4, {0: 1, 1: 1, 18: 2})
    result, _ = evaluate(targets, 4, own, bar)
    names = [f"c{a} against c{b}" for a in range(4) for b in range(a + 1, 4)]
    assert list(result["model"]["pairs"]) == list(result["kmers"]["pairs"]) == list(result["gain"])[1:] == names
    assert "pairs_of" not in result
    assert result["model"]["pairs"]["c0 against c1"]["value"] == pytest.approx(10 / 12)
    assert result["kmers"]["pairs"]["c2 against c3"]["value"] == pytest.approx(11 / 12)
    assert result["gain"]["c0 against c1"]["value"] == pytest.approx(0)
    assert result["gain"]["all"]["value"] == pytest.approx(1 / 24)
    header = result["predictions"].splitlines()[0].split("\t")
    assert header[-4:] == ["p_c0", "p_c1", "p_c2", "p_c3"]


def test_pairs_of_many_classes_are_the_most_confused(evaluate):
    """Of 7,140 pairs of 120 classes 190 are compared, and the table says so."""
    classes = 120
    targets = np.repeat(np.arange(classes), 4)
    own = probabilities(targets, classes, {4 * 50: 70, 4 * 50 + 1: 70, 4 * 3: 9})
    result, means = evaluate(targets, classes, own, probabilities(targets, classes, {}))
    assert list(result["model"]["pairs"])[:2] == ["c50 against c70", "c3 against c9"]
    assert len(result["model"]["pairs"]) == len(result["kmers"]["pairs"]) == len(result["gain"]) - 1 == 190
    assert result["pairs_of"] == 7140
    assert means == 3 * 190 + 1
    text = ClassesResult(**result).text()
    assert "(the 190 pairs that the model confuses most, of 7,140)" in text
    assert len(text) < 40_000
    rows = list(csv.DictReader(io.StringIO(result["predictions"]), delimiter="\t"))
    assert len(rows) == len(targets)
    assert list(rows[200])[-3:] == ["predicted", "p_predicted", "p_class"]
    assert (rows[200]["class"], rows[200]["predicted"], rows[200]["p_predicted"]) == ("c50", "c70", "0.900000")
    assert float(rows[200]["p_class"]) == pytest.approx(0.1 / 119, abs=1e-6)


def test_one_locus_has_no_interval_and_is_described(evaluate):
    targets = np.array([0, 1])
    result, _ = evaluate(targets, 3, probabilities(targets, 3, {}), probabilities(targets, 3, {0: 1}))
    assert "is not better than" in ClassesResult(**result).text()
