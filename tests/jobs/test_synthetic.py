"""Synthetic tasks through the commands: trained on fresh data, judged by their answers."""

import csv
import json
from pathlib import Path

import pytest
import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.jobs import evaluate, evaluate_lengths, pretrain
from mamba_bio_audio.models import answers
from mamba_bio_audio.run import saved
from mamba_bio_audio.run.config import load_config

SMALL = (
    "data.vocab=4", "data.examples=600", "model.d_model=16", "model.num_layers=2", "train.length=8", "train.steps=90",
    "train.tokens_per_step=512", "train.lr=2e-2", "train.validate_every=30", "train.validation_tokens=4800",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """An induction head of 8 symbols."""
    out = tmp_path_factory.mktemp("synthetic") / "run"
    options = pretrain.PretrainOptions(recipe="synthetic/induction", overrides=SMALL, out=out, device="cpu", quiet=True)
    found = pretrain.run(options)
    assert "of the answers right" in found.text()
    assert "mba sample" not in found.text()
    return out


def test_validations_tell_the_accuracy(run):
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["valid_nats"]]
    assert [row["step"] for row in rows] == ["30", "60", "90"]
    assert all(0 <= float(row["valid_accuracy"]) <= 1 for row in rows)
    best = min(rows, key=lambda row: float(row["valid_nats"]))
    result = json.loads((run / "manifest.json").read_text())["result"]
    assert result["answers_right"] == pytest.approx(float(best["valid_accuracy"]))
    # By chance it is a third.
    assert result["answers_right"] > 0.9


def test_the_evaluation_counts_right_answers(run):
    found = evaluate.run(evaluate.EvaluateOptions(run=run, device="cpu", quiet=True))
    assert found.scored == 600
    told = json.loads((run / "evaluate-test.json").read_text())
    assert (told["chance"], told["sequences"]) == (pytest.approx(1 / 3), 600)
    model = saved.load(run)
    data = evaluate.open_run(evaluate.EvaluateOptions(run=run, device="cpu", quiet=True)).data
    rows = data.evaluation_dataset("test")
    tokens, targets = (torch.stack([rows[at][name] for at in range(600)]) for name in ("tokens", "targets"))
    with torch.no_grad():
        choice = model(tokens).logits[:, -1].argmax(-1)
    assert told["accuracy"] == pytest.approx((choice == targets[:, -1]).double().mean().item())
    assert f"{told['accuracy']:.2%} of 600 answers in 600 unseen sequences of 8 symbols are right" in found.text()


def test_answers_by_length(run):
    found = evaluate.run(evaluate.EvaluateOptions(run=run, lengths="16,2^3", num_samples=300, device="cpu", quiet=True))
    assert [(row.length, row.sequences, row.answers) for row in found.rows] == [(8, 300, 300), (16, 300, 300)]
    # Sequences of the trained length are the first of the split.
    model = saved.load(run)
    rows = evaluate.open_run(evaluate.EvaluateOptions(run=run, device="cpu", quiet=True)).data.evaluation_dataset(
        "test"
    )
    tokens, targets = (torch.stack([rows[at][name] for at in range(300)]) for name in ("tokens", "targets"))
    with torch.no_grad():
        right = (model(tokens).logits[:, -1].argmax(-1) == targets[:, -1]).double().mean().item()
    assert found.rows[0].right == pytest.approx(right)
    assert found.streamed
    assert f"{right:.2%}" in found.text()
    kept = json.loads((run / "evaluate-lengths-test.json").read_text())
    assert kept["rows"][0]["right"] == found.rows[0].right
    # It is no evaluation of a split.
    assert [path.name for path in saved.evaluation_files(run)] in ([], ["evaluate-test.json"])


def test_lengths_that_do_not_fit_are_told(run, monkeypatch):
    real = answers.answers

    def small(model, tokens, targets):
        if tokens.shape[1] > 16:
            raise torch.OutOfMemoryError
        return real(model, tokens, targets)

    monkeypatch.setattr(answers, "answers", small)
    found = evaluate.run(evaluate.EvaluateOptions(run=run, lengths="8..64", num_samples=4, device="cpu", quiet=True))
    assert [row.right is None for row in found.rows] == [False, False, True, True]
    assert found.text().endswith("from 32 on: out of memory")


def test_a_model_that_reads_no_longer_sequences_says_so(tmp_path):
    overrides = (*SMALL, "model.mixer=hyena", "model.num_layers=1", "model.options={max_length: 16}", "train.steps=2")
    pretrain.run(
        pretrain.PretrainOptions(
            recipe="synthetic/induction", overrides=overrides, out=tmp_path / "run", device="cpu", quiet=True
        )
    )
    found = evaluate.run(
        evaluate.EvaluateOptions(run=tmp_path / "run", lengths="8..32", num_samples=4, device="cpu", quiet=True)
    )
    assert [row.right is None for row in found.rows] == [False, False, True]
    assert not found.streamed
    assert "from 32 on: a sequence of 32 positions" in found.text()


def test_lengths_that_make_no_sense_are_refused(run):
    assert evaluate_lengths.read_lengths("2^6..2^8, 100,1_000") == [64, 100, 128, 256, 1000]
    for text in ("", "0", "2^6..", "8..4", "x", "2^41", "1..2..3"):
        with pytest.raises(ValueError, match="got"):
            evaluate_lengths.read_lengths(text)
    with pytest.raises(InputError, match="at least 3 symbols"):
        evaluate.run(evaluate.EvaluateOptions(run=run, lengths="2,8", device="cpu", quiet=True))


def test_training_samples_cannot_be_evaluated(run):
    with pytest.raises(InputError, match="are made fresh; evaluate valid or test"):
        evaluate.run(evaluate.EvaluateOptions(run=run, split="train", device="cpu", quiet=True))


def test_a_resumed_training_goes_on_with_the_next_samples(run, tmp_path):
    def train(steps: int, *, resume: bool) -> None:
        overrides = (*SMALL, f"train.steps={steps}", "train.lr_min=2e-2", "train.warmup=0", "train.log_every=1")
        pretrain.run(
            pretrain.PretrainOptions(
                recipe="synthetic/induction", overrides=overrides, out=out, device="cpu", quiet=True, resume=resume
            )
        )

    rows = []
    for stops in ((10,), (4, 10)):
        out = tmp_path / str(len(stops))
        for steps in stops:
            train(steps, resume=steps != stops[0])
        rows.append((out / "metrics.csv").read_text().splitlines()[-1])
    assert rows[0] == rows[1]


def test_a_synthetic_recipe_has_no_files():
    with pytest.raises(InputError, match="data.path: unknown key"):
        load_config("synthetic/induction", ["data.path=x"])
