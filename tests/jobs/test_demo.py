"""The demo, shortened; its full run is what `make demo` does."""

import json
import re
from types import SimpleNamespace

import pytest

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.jobs.evaluate_results import LikelihoodResult
from mamba_bio_audio.jobs.sample import SampleResult
from mamba_bio_audio.pipelines.scores import LikelihoodNotes, Scores
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
    name = next(iter(packaged_models()))
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
def test_audio_demo_leaves_a_playable_file_and_a_spectrogram(tmp_path, capsys):
    import soundfile

    out = tmp_path / "demo"
    shorter = ["train.steps=4", "train.tokens_per_step=4096", "train.validate_every=4", "model.d_model=8"]
    sets = [part for key in shorter for part in ("--set", key)]
    arguments = ["demo", "--audio", "--out", str(out), "--quiet", "--device", "cpu", *sets]
    with pytest.raises(SystemExit) as stop, pytest.MonkeyPatch.context() as patch:  # noqa: PT012
        # Two seconds of a tenth of the rate.
        patch.setattr("mamba_bio_audio.jobs.demo._RATE_HZ", 1000)
        command(arguments)
    captured = capsys.readouterr()
    assert not stop.value.code, captured.err
    assert soundfile.info(out / "sample.wav").frames == 2000
    assert (out / "spectrogram.png").read_bytes().startswith(b"\x89PNG")
    assert "synthetic" in captured.out
    assert "LPC-32" in captured.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "demo-synthetic-tones"]


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
