"""The demo, shortened; its full run is what `make demo` does."""

import json
import re
from types import SimpleNamespace

import pytest

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.jobs.demo import DemoResult, Melody
from mamba_bio_audio.jobs.evaluate_results import LikelihoodResult
from mamba_bio_audio.jobs.sample_results import SampleResult
from mamba_bio_audio.pipelines.scores import LikelihoodNotes, Scores
from mamba_bio_audio.pipelines.synthetic.tones import MELODY, samples_after_first_note
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.packaged import packaged_models


@pytest.mark.slow
def test_demo_learns_and_leaves_everything(tmp_path, capsys):
    out = tmp_path / "demo"
    arguments = ["demo", "--out", str(out), "--quiet", "--device", "cpu", "--set", "train.steps=120"]
    with pytest.raises(SystemExit) as stop:
        command(arguments)
    captured = capsys.readouterr()
    assert not stop.value.code, captured.err
    assert "Try next" in captured.out
    # A model that needs no training comes first.
    name = next(iter(packaged_models("dna")))
    first, second = captured.err.index(f"{name}, a packaged model"), captured.err.index("1/4")
    assert first < second
    (shown,) = re.findall(r"a sample: (\w+)\n.*human (\d\.\d+), p_falciparum", captured.err)
    assert set(shown[0]) <= set("ACGT")
    assert len(shown[0]) == 60
    assert float(shown[1]) < 3.5
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "samples.fa").read_text().count(">") == 3
    result = json.loads((out / "evaluate-test.json").read_text())
    assert set(result["genomes"]) == {"human", "fruit_fly", "e_coli", "p_falciparum", "phage_lambda"}
    malaria = result["genomes"]["p_falciparum"]
    assert malaria["model"]["perplexity"] < malaria["markov"]["orders"][1]["perplexity"]
    # A second demo replaces the first; anything else in the folder is left alone.
    (out / "thesis.txt").write_text("years")
    with pytest.raises(SystemExit) as stop:
        command(arguments)
    assert stop.value.code == 2
    assert "holds thesis.txt" in capsys.readouterr().err
    assert (out / "curve.png").exists()


@pytest.mark.slow
def test_audio_demo_leaves_a_playable_file_and_a_spectrogram_and_says_what_it_heard(tmp_path, capsys):
    import soundfile

    out = tmp_path / "demo"
    shorter = [
        "train.steps=4",
        "train.length=256",
        "train.tokens_per_step=1024",
        "train.validate_every=4",
        "model.d_model=8",
    ]
    sets = [part for key in shorter for part in ("--set", key)]
    arguments = ["demo", "--audio", "--out", str(out), "--seed", "3", "--json", "--device", "cpu", *sets]
    with pytest.raises(SystemExit) as stop:
        command(arguments)
    captured = capsys.readouterr()
    # Four steps learn no tune; that is said, and is no failure.
    assert not stop.value.code, captured.err
    result = json.loads(captured.out)
    assert result["melody"]["learnt"] == list(MELODY)
    assert result["melody"]["share"] < 0.7
    assert "order 2" in result["evaluation"]["yardsticks"]
    assert soundfile.info(out / "sample.wav").frames == samples_after_first_note()
    assert json.loads((out / "sample.wav.json").read_text())["seed"] == 3
    assert load_config(str(out / "config.yaml")).seed == 3
    assert (out / "spectrogram.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "demo-synthetic-tune"]


def test_the_notes_heard_are_named_and_judged():
    learnt = [60, 64, 67, 61]
    played = Melody(learnt=learnt, heard=learnt, share=1.0, shuffled=0.2).text()
    assert "C4 E4 G4 C#4" in played
    assert played.endswith("100% of its notes are heard, in random orders 20%: the model plays the tune.")
    for missed in (
        Melody(learnt=learnt, heard=[], share=0.0, shuffled=0.0),
        Melody(learnt=learnt, heard=learnt, share=0.6, shuffled=0.2),
        Melody(learnt=learnt, heard=learnt, share=0.9, shuffled=0.4),
    ):
        assert "not the tune" in missed.text()
        closing = DemoResult(run="r", stopped_by=None, melody=missed, closing="Try next")
        assert closing.exit_code == 0
        assert closing.text() == f"{missed.text()}\n\nTry next"


def test_a_demo_checks_its_settings_before_it_says_that_it_trains(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        command(["demo", "--out", str(tmp_path / "demo"), "--device", "cpu", "--set", "foo=1"])
    assert stop.value.code == 2
    assert "pretraining" not in capsys.readouterr().err


def test_a_demo_that_is_stopped_while_it_samples_ends_so(tmp_path, monkeypatch, capsys):
    out = tmp_path / "demo"
    out.mkdir()
    monkeypatch.setattr("mamba_bio_audio.jobs.demo._Genomes.show_packaged", lambda demo, device: None)
    monkeypatch.setattr("mamba_bio_audio.run.train.train", lambda *given: SimpleNamespace(stopped_by=None, unit="base"))
    found = LikelihoodResult(
        weights="best", split="test", length=8, scored=1, model=Scores.of(1.0), beside=LikelihoodNotes()
    )
    monkeypatch.setattr("mamba_bio_audio.jobs.evaluate.evaluate", lambda *given: found)
    stopped = SampleResult(out=None, num_samples=3, length=600, stopped_by="SIGTERM")
    monkeypatch.setattr("mamba_bio_audio.jobs.sample.run", lambda options: stopped)
    with pytest.raises(SystemExit) as stop:
        command(["demo", "--out", str(out), "--quiet", "--device", "cpu"])
    assert stop.value.code == 130
    assert "Error" not in capsys.readouterr().err
