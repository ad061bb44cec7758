"""k-mers and our model on whole genomes and fragments, in a toy of two compositions."""

import csv
from pathlib import Path

import numpy as np
import pytest

from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer

RECIPE = """\
model: {d_model: 8, num_layers: 1, ssm: {d_state: 4}}
head: {pool: mean}
data: {kind: dna-classes}
train: {length: 64, tokens_per_step: 512, steps: 4, lr: 1.0e-2, validate_every: 2, checkpoint_every: 4}
"""


@pytest.fixture
def genomes(script):
    return script("genomes")


def write_classes(folder: Path, count: int = 12) -> Path:
    random = np.random.default_rng(0)
    folder.mkdir()
    for name, p in (("at", [0.4, 0.1, 0.1, 0.4]), ("gc", [0.1, 0.4, 0.4, 0.1])):
        texts = ("".join(random.choice(list("ACGT"), size=600, p=p)) for _ in range(count))
        (folder / f"{name}.fa").write_text("".join(f">{name}{i}\n{text}\n" for i, text in enumerate(texts)))
    return folder


def test_errors_change_their_share_of_bases(genomes):
    row = DnaTokenizer().encode("ACGTN" * 4000)
    (changed,) = genomes.with_errors([row], 0.1)
    assert np.mean(changed != row) == pytest.approx(0.08, abs=0.01)
    assert np.array_equal(changed[4::5], row[4::5])
    assert set(changed.tolist()) == set(row.tolist())
    assert np.array_equal(row, DnaTokenizer().encode("ACGTN" * 4000))


def test_balanced_accuracy_is_the_mean_over_classes(genomes):
    y = np.array([0] * 90 + [1] * 10)
    p = np.tile([0.9, 0.1], (100, 1))
    p[-5:] = [0.1, 0.9]
    found = genomes.scores(p, y, np.arange(100))
    assert (found["accuracy"], found["balanced_accuracy"]) == ("0.9500", "0.7500")
    assert 0.5 <= float(found["low"]) < 0.75 < float(found["high"]) <= 1


def test_a_row_for_each_length_error_and_model(genomes, tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    data, out = write_classes(tmp_path / "toy"), tmp_path / "o.csv"
    genomes.main(data, out, length=[0, 64], error=[0.0, 0.1], windows=60, recipe=str(tmp_path / "r.yaml"), settings=[])
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["length"], row["errors"]) for row in rows] == [
        (length, error) for length in ("whole", "64") for error in ("0.0", "0.0", "0.1", "0.1")
    ]
    assert [row["model"].split(",")[0] for row in rows] == ["k-mers", "ours"] * 4
    assert all(float(row["balanced_accuracy"]) > 0.9 for row in rows if row["model"].startswith("k-mers"))
    assert rows[0]["genomes"] == rows[0]["test"] != rows[4]["test"]
