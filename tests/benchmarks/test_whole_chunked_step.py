"""The table of whole, chunked and stepped sequences, at lengths that a CPU reads at once."""

import csv

import pytest
import torch

from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer


@pytest.fixture
def bench(script, monkeypatch):
    bench = script("whole_chunked_step")
    monkeypatch.setattr(bench, "TAIL", 6)
    model = build_model(ModelConfig(d_model=8, num_layers=1, vocab_size=12), seed=0).eval()
    torch.nn.init.normal_(model.embedding.weight, generator=torch.Generator().manual_seed(1))
    model.codec = DnaTokenizer()
    monkeypatch.setattr(bench.mba, "load", lambda name: model)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return bench


def test_every_length_has_its_row(bench, tmp_path):
    bench.main(tmp_path / "same.csv", "tiny", "4,5", 16, 100)
    with (tmp_path / "same.csv").open() as file:
        rows = list(csv.DictReader(file))
    # What is longer than 16 is stepped through at its end only.
    assert [(row["length"], row["chunk"], row["steps"]) for row in rows] == [("16", "1", "15"), ("32", "3", "6")]
    for row in rows:
        assert float(row["chunked"]) < 1e-5
        assert float(row["stepped"]) < 1e-5


def test_a_state_that_is_lost_is_seen(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "advance", lambda *_, **__: None)
    bench.main(tmp_path / "same.csv", "tiny", "5", 16, 100)
    with (tmp_path / "same.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["chunked"]) < 1e-5
    assert float(row["stepped"]) > 1e-3


def test_what_does_not_fit_whole_is_compared_with_its_chunks(bench, tmp_path, monkeypatch):
    read = bench.mba.log_likelihood

    def log_likelihood(model, ids, chunk):
        if chunk == len(ids):
            raise torch.OutOfMemoryError("full")
        return read(model, ids, chunk=chunk)

    monkeypatch.setattr(bench.mba, "log_likelihood", log_likelihood)
    bench.main(tmp_path / "same.csv", "tiny", "5", 16, 100)
    with (tmp_path / "same.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["whole"], row["chunk"]) == ("out of memory", "1")
    assert float(row["chunked"]) < 1e-5
