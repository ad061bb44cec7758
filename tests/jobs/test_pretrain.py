"""What `mba pretrain` and `mba classify` show of a training, without training."""

import json
import math

import pytest

from mamba_bio_audio.files import to_json
from mamba_bio_audio.jobs.classify import ClassifyOptions
from mamba_bio_audio.jobs.finetune import FinetuneOptions, FinetuneResult
from mamba_bio_audio.jobs.pretrain import DryRunResult, PretrainOptions, PretrainResult

TRAINED = {
    "run": "runs/x",
    "step": 1000,
    "steps": 2000,
    "best_step": 900,
    "valid_nats": 1.25,
    "weights_sha256": "ab",
    "valid_bits": 1.8034,
    "valid_perplexity": 3.4903,
    "unit": "base",
    "per": "base",
    "best_samples_step": None,
    "ended_by_patience": False,
    "warning": None,
    "tokens_per_second": 12345.6,
    "stopped_by": None,
}
ESTIMATE = {
    "config": {"train": {"length": 1024, "devices": 4, "nodes": 1, "sequence_parallel": 2, "stream_chunk": 512}},
    "device": "cpu",
    "precision": "fp32",
    "parameters": 1234,
    "trained": 1234,
    "tokens_per_step": 4096,
    "micro_batch": 2,
    "accumulate": 1,
    "tokens": 40960,
    "length_stages": [
        {"length": 512, "start": 0, "stop": 4, "sequences_per_step": 8, "epochs": 0.5, "windows": 64},
    ],
    "stream_chunk_chosen": True,
    "memory_bytes": 3 << 29,
    "seconds_per_step": 0.25,
    "seconds": 2.5,
    "data": {},
}


def test_json_has_the_keys_of_the_manifest_and_no_others():
    result = PretrainResult(**TRAINED, first_sample="--length 1000")
    assert json.loads(to_json(result.to_json())) == TRAINED
    assert list(result.to_json()) == list(TRAINED)
    classified = FinetuneResult(**TRAINED, first_sample="", valid_accuracy=None)
    assert classified.to_json() == TRAINED | {"valid_accuracy": None}
    # A training that was stopped before its first step has no speed; JSON has no NaN.
    slow = PretrainResult(**TRAINED | {"tokens_per_second": math.nan}, first_sample="--length 1000")
    assert json.loads(to_json(slow.to_json()))["tokens_per_second"] is None
    assert "/s; " not in slow.text()
    assert DryRunResult(**ESTIMATE).to_json() == ESTIMATE


def test_text_of_a_training_names_the_next_command():
    text = PretrainResult(**TRAINED, first_sample="--length 1000").text()
    assert "best validation at step 900: 1.2500 nats, 1.8034 bits per base, perplexity 3.4903" in text
    assert "12,346 bases/s; run folder runs/x" in text
    assert text.endswith("next: mba evaluate runs/x   mba sample runs/x --length 1000")
    audio = PretrainResult(
        **TRAINED | {"unit": "sample", "best_samples_step": 800}, first_sample="--seconds 1 --out sample.wav"
    ).text()
    assert "samples closest to recordings at step 800: --which best-samples" in audio
    assert audio.endswith("mba sample runs/x --seconds 1 --out sample.wav")
    accuracy = {"value": 0.75, "low": 0.7, "high": 0.8, "groups": 1234}
    classified = FinetuneResult(
        **TRAINED | {"ended_by_patience": True}, first_sample="", valid_accuracy=accuracy
    ).text()
    assert "ended by train.patience at step 1,000 of 2,000" in classified
    assert "validation accuracy 75.0% (70.0% to 80.0% over 1,234 loci)" in classified
    assert classified.endswith("next: mba evaluate runs/x")
    heard = FinetuneResult(**TRAINED, first_sample="", valid_accuracy=accuracy, groups="recordings")
    assert "70.0% to 80.0% over 1,234 recordings)" in heard.text()
    assert "groups" not in heard.to_json()


def test_a_stopped_training_says_how_to_continue():
    result = PretrainResult(**TRAINED | {"stopped_by": "SIGTERM", "valid_nats": None}, first_sample="--length 1000")
    assert result.text().startswith("stopped by SIGTERM after step 1,000 of 2,000; everything is saved. Continue")
    assert "next:" not in result.text()
    assert "--which last" not in result.text()
    unread = PretrainResult(
        **TRAINED | {"stopped_by": "SIGTERM", "valid_nats": None, "best_step": 0}, first_sample="--length 1000"
    )
    assert "need --which last" in unread.text()
    assert result.exit_code == 130
    assert PretrainResult(**TRAINED, first_sample="--length 1000").exit_code == 0


@pytest.mark.parametrize(
    ("name", "number", "silent"), [("RANK", "0", False), ("RANK", "1", True), ("LOCAL_RANK", "1", True)]
)
def test_only_the_first_process_reports(name, number, silent, monkeypatch):
    monkeypatch.setenv(name, number)
    assert PretrainResult(**TRAINED, first_sample="--length 1000").silent is silent


def test_text_of_an_estimate():
    rows = dict(DryRunResult(**ESTIMATE)._rows())
    assert rows["tokens per step"] == "4,096 = 1 x micro-batch of 2 x length 1,024 x 2 groups of 2 devices"
    assert rows["at length 512"] == "steps 1 to 4, 8 sequences each: 0.5 epochs of 64 windows"
    assert rows["stream chunk"] == "512, the largest that fits"
    assert rows["memory"] == "about 1.50 GiB"
    assert rows["time"] == "about 0.25 s per step, 0:02 in total, without validation"
    assert dict(DryRunResult(**ESTIMATE | {"memory_bytes": None})._rows())["memory"] == "unknown on this system"


def test_options_become_overrides_and_a_folder():
    options = PretrainOptions(recipe="dna/tiny", overrides=("data.path=demo", "seed=1"), seed=7)
    config = options.config()
    assert config.seed == 7
    assert options.folder(config).as_posix() == f"runs/{config.name}"
    with pytest.raises(ValueError, match="seed"):
        PretrainOptions(recipe="dna/tiny", seed=-1)


def test_a_time_is_seconds_minutes_or_hours(monkeypatch):
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    for text, seconds in (("90", 90), ("90s", 90), ("25m", 1500), ("1.5h", 5400), ("0.5", 0.5)):
        for options in (PretrainOptions, ClassifyOptions, FinetuneOptions):
            assert options(recipe="dna/tiny", max_time=text).session().deadline == 100 + seconds
    assert PretrainOptions(recipe="dna/tiny").session().deadline is None
    for wrong in ("0", "-5", "25 m", "1h30m", "m", ""):
        with pytest.raises(ValueError, match="write seconds, minutes or hours above 0"):
            PretrainOptions(recipe="dna/tiny", max_time=wrong)


def test_a_training_whose_time_was_up_is_no_failure():
    result = PretrainResult(**TRAINED | {"stopped_by": "--max-time"}, first_sample="--length 1000")
    assert result.text().startswith("stopped by --max-time after step 1,000 of 2,000; everything is saved. Continue")
    assert result.exit_code == 0
