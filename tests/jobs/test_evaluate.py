"""`mba evaluate` as a job: what it refuses, and what it leaves in a run that somebody else is writing to."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from pydantic import ValidationError

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import locked
from mamba_bio_audio.jobs.evaluate import EvaluateOptions, run
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.contract import SequenceModel
from mamba_bio_audio.run.config import load_config, to_yaml
from mamba_bio_audio.run.sampling import read_fitted
from mamba_bio_audio.training.steps import save_weights


def made(folder: Path, recipe: str, *overrides: str) -> Path:
    """A run with weights, untrained."""
    config = load_config(recipe, ["train.length=64", "model.d_model=8", *overrides])
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    save_weights(build_model(config.model, seed=0), folder / "model.safetensors")
    return folder


@pytest.fixture
def dna(tmp_path) -> Path:
    text = "".join(np.random.default_rng(0).choice(list("ACGT"), 4000))
    (tmp_path / "g.fa").write_text(f">one\n{text}\n")
    (tmp_path / "x.bed").write_text("one\t0\t3000\ttrain\none\t3000\t3500\tvalid\none\t3500\t4000\ttest\n")
    data = [f"data.path={tmp_path / 'g.fa'}", f"data.intervals={tmp_path / 'x.bed'}", "model.vocab_size=12"]
    return made(tmp_path / "run", "dna/tiny", "model.num_layers=1", *data)


@pytest.fixture
def audio(tmp_path) -> Path:
    (tmp_path / "sounds").mkdir()
    for name in "abc":
        soundfile.write(tmp_path / "sounds" / f"{name}.wav", np.zeros(600), 16_000)
    return made(tmp_path / "audio", "audio/tiny", f"data.path={tmp_path / 'sounds'}", "model.vocab_size=256")


def options(folder: Path, **more) -> EvaluateOptions:
    return EvaluateOptions.model_validate({"run": folder, "device": "cpu", "quiet": True} | more)


def test_a_run_in_use_is_evaluated_and_left_alone(dna) -> None:
    before = sorted(dna.iterdir())
    with locked(dna):
        result = run(options(dna))
        assert sorted(dna.iterdir()) == before
        assert result.scored == 500
        assert f"not written to {dna}" in result.notes()
        assert "in use by" in result.notes()
        # Neither is anything to be written here.
        assert not run(options(dna, max_bases=128)).notes()
    result = run(options(dna))
    assert not result.notes()
    assert (dna / "evaluate-test.json").exists()
    assert not list(dna.parent.glob(".*.lock"))


def test_tables_of_contexts_are_not_written_into_a_run_in_use(dna) -> None:
    with locked(dna):
        result = run(options(dna, context="8,32", blocks=4))
        assert "in use by" in result.notes()
    assert not list(dna.glob("evaluate-context-*"))
    out = dna.parent / "tables"
    with locked(out), pytest.raises(InputError, match="in use by"):
        run(options(dna, context="8,32", blocks=4, out=out))
    assert result.contexts == [8, 32]


def test_tables_of_contexts_do_not_go_into_a_file(dna, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(
        "mamba_bio_audio.jobs.evaluate._evaluate_context", lambda *given: pytest.fail("scored for nothing")
    )
    (tmp_path / "mine.txt").write_text("years")
    with pytest.raises(InputError, match=r"mine\.txt is a file, not a folder; choose another --out"):
        run(options(dna, context="8,32", blocks=4, out=tmp_path / "mine.txt"))


def test_what_the_data_do_not_allow_is_refused(dna, audio) -> None:
    with pytest.raises(InputError, match="--context needs a language model of DNA, got one of audio"):
        run(options(audio, context="8,32"))
    for metrics in ("sc09", "sc09-judge"):
        with pytest.raises(InputError, match="recordings of spoken digits, got one of dna"):
            run(options(dna, metrics=metrics))
    with pytest.raises(InputError, match="folders named zero, .*, got a.wav"):
        run(options(audio, metrics="sc09"))


def test_contexts_need_a_state_that_can_be_carried(dna, monkeypatch) -> None:
    monkeypatch.setattr(SequenceModel, "streaming", "none")
    with pytest.raises(InputError, match="--context needs a model that can carry a state"):
        run(options(dna, context="8,32"))


def test_contexts_are_sorted_and_checked(dna) -> None:
    assert options(dna, context="64,8,6_4").contexts == [8, 64]
    for wrong in ("", "0", "4,-1", "64,1k"):
        with pytest.raises(ValidationError, match="write whole numbers"):
            options(dna, context=wrong)


@pytest.mark.parametrize("metrics", ["likelihood", "sampling", "sc09-judge"])
def test_how_clips_are_drawn_is_refused_where_none_are(dna, metrics) -> None:
    for draw in ({"temperature": 0.5}, {"top_p": 0.9}):
        with pytest.raises(ValidationError, match="--metrics sc09 are drawn"):
            options(dna, metrics=metrics, **draw)


def test_where_nothing_else_tells_the_likelihood_fits_the_temperature(dna) -> None:
    result = run(options(dna, metrics="sampling"))
    assert (result.grid, result.top_p, result.temperature) == ([], None, result.likelihood_temperature)
    assert result.likelihood_symbols == 500
    assert "by the likelihood of 500 validation symbols" in result.text()
    assert read_fitted(dna).temperature == result.temperature
    # The bits at temperature 1 are those of an evaluation, restricted to the four bases.
    assert result.valid_bits <= run(options(dna, split="valid", baselines=False)).model.bits


def test_settings_are_not_kept_in_a_run_in_use(dna) -> None:
    with locked(dna):
        result = run(options(dna, metrics="sampling"))
        assert "in use by" in result.notes()
        assert "kept as" not in result.text()
    assert read_fitted(dna) is None
