"""`mba evaluate --recall`: a table, JSON and a picture, beside a model that copies."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.jobs.evaluate import EvaluateOptions, run
from mamba_bio_audio.jobs.values_results import read_evaluation
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.contract import SequenceModel
from mamba_bio_audio.pipelines.domains import domain_of
from mamba_bio_audio.run.config import load_config, to_yaml
from mamba_bio_audio.run.saved import evaluation_files
from mamba_bio_audio.training.steps import save_weights


@pytest.fixture(scope="module")
def dna(tmp_path_factory) -> Path:
    """An untrained model of random sequence in which 300 bases come again and again, exactly or not."""
    folder = tmp_path_factory.mktemp("recall")
    draws = np.random.default_rng(0)
    ids = draws.integers(0, 4, 26_000)
    for number, start in enumerate(range(500, 18_000, 900)):
        changed = draws.random(300) < 0.1 * (number % 2)
        ids[start + 400 : start + 700] = (ids[start : start + 300] + changed) % 4
    text = "".join("ACGT"[i] for i in ids)
    (folder / "g.fa").write_text(f">one\n{text}\n")
    (folder / "x.bed").write_text("one\t0\t8000\ttrain\none\t8000\t18000\tvalid\none\t18000\t26000\ttest\n")
    settings = [f"data.path={folder / 'g.fa'}", f"data.intervals={folder / 'x.bed'}", "model.vocab_size=12"]
    settings += ["train.length=64", "model.d_model=8", "model.num_layers=1"]
    config = load_config("dna/tiny", settings)
    made = folder / "run"
    made.mkdir()
    (made / "config.yaml").write_text(to_yaml(config))
    save_weights(build_model(config.model, seed=0), made / "model.safetensors")
    return made


def options(folder: Path, **more) -> EvaluateOptions:
    given = {"run": folder, "device": "cpu", "recall": True, "distances": "64,1024,65536", "trials": 4}
    return EvaluateOptions.model_validate(given | more)


def test_recall_is_kept_as_a_table_json_and_a_picture(dna) -> None:
    result = run(options(dna))
    assert [(row.distance, row.variant) for row in result.recall] == [
        (distance, variant) for distance in (64, 1024) for variant in ("exact", "mutated", "reverse complement")
    ]
    assert result.not_measured == {
        "65,536": "no stretch of the split has the 131,072 bases that a distance of 65,536 takes"
    }
    exact = result.recall[0]
    # An untrained model of random bases gains nothing; one that copies does, and nearly all that there is.
    assert abs(exact.gain.value) < 0.2
    assert exact.bar_gain.value > 1
    assert exact.bar_gain.low > 0.9
    assert exact.bar_gain_over_foreign.value == pytest.approx(exact.bar_gain.value, abs=0.1)
    mutated, reverse = result.recall[1:3]
    assert 0.3 < mutated.bar_gain.value < exact.bar_gain.value
    assert reverse.bar_nats < exact.control_nats
    text = result.text()
    assert "256 bases come again after a distance" in text
    assert "65,536  not measured: no stretch" in text
    assert f"written: {dna}/evaluate-recall-test.json" in text
    kept = json.loads((dna / "evaluate-recall-test.json").read_text())
    assert kept == result.to_json() | {"pictures": ["evaluate-recall-test.png"]}
    assert read_evaluation(kept, domain_of("dna")).recall == result.recall
    with (dna / "evaluate-recall-test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["gain_low"]) == exact.gain.low
    assert (dna / "evaluate-recall-test.png").read_bytes().startswith(b"\x89PNG")
    # Readers of a run's own evaluations are not disturbed.
    assert evaluation_files(dna) == []


def test_without_baselines_only_the_model_is_read(dna, tmp_path) -> None:
    result = run(options(dna, baselines=False, copies="1,2", distances="64", out=tmp_path / "tables", quiet=True))
    assert [row.variant for row in result.recall][-1] == "exact, 2 copies"
    assert result.bar == ""
    assert result.recall[0].bar_gain is None
    assert "copies on" not in result.text()
    assert len(list((tmp_path / "tables").iterdir())) == 3


def test_what_cannot_be_measured_is_refused(dna, monkeypatch) -> None:
    with pytest.raises(InputError, match="no stretch of the split has the 131,072 bases"):
        run(options(dna, distances="65536", quiet=True))
    for wrong in ({"distances": "0"}, {"copies": "1,x"}, {"trials": 1}, {"mutated": 0}, {"context": "64"}):
        with pytest.raises(ValidationError):
            options(dna, **wrong)
    with pytest.raises(ValidationError, match="--trials goes with --recall"):
        options(dna, recall=False, distances="64,256,1024,4096,16384,65536,262144", trials=5)
    monkeypatch.setattr(SequenceModel, "streaming", "none")
    with pytest.raises(InputError, match="--recall needs a model that can carry a state"):
        run(options(dna, quiet=True))
