"""Audio through the commands: pretrain, resume, evaluate, load, export."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import mamba_bio_audio as mba
from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.models.unet import UNetModel
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec

SETTINGS = [
    "model.d_model=8",
    "train.length=256",
    "train.tokens_per_step=1024",
    "train.micro_batch=2",
    "train.steps=6",
    "train.validate_every=2",
    "train.checkpoint_every=1",
    "train.log_every=1",
]


def mba_command(*arguments: object) -> int:
    """Run the command in this process; its exit code."""
    with pytest.raises(SystemExit) as stop:
        command([str(argument) for argument in arguments])
    code = stop.value.code
    return 0 if code is None else int(code)


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    """Twenty short tones in noise."""
    folder = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    for number in range(20):
        time = np.arange(1000 + number) / 16_000
        audio = 0.4 * np.sin(2 * np.pi * 220 * 2 ** (number / 12) * time) + 0.01 * rng.standard_normal(len(time))
        soundfile.write(folder / f"{number}.wav", audio, 16_000)
    return folder


def arguments(tones: Path, out: Path, *more: str) -> list[object]:
    sets = [part for key in (*SETTINGS, f"data.path={tones}", *more) for part in ("--set", key)]
    return ["pretrain", "audio/tiny", *sets, "--out", out, "--quiet", "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tones, tmp_path_factory) -> Path:
    """A finished run, uninterrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert mba_command(*arguments(tones, out)) == 0
    return out


def test_a_run_on_audio(trained, tones, capsys):
    manifest = json.loads((trained / "manifest.json").read_text())
    assert manifest["data"]["quantizer"] == "mu-law 8 bit standard"
    assert manifest["data"]["recordings"] == 20
    assert [len(file["sha256"]) for file in manifest["data"]["files"]] == [64]
    with (trained / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["valid_bits"]] == ["2", "4", "6"]
    assert float(rows[-1]["valid_bits"]) < 8
    assert mba_command("pretrain", "audio/tiny", "--set", f"data.path={tones}", "--dry-run", "--json") == 0
    dry = json.loads(capsys.readouterr().out)
    assert dry["parameters"] == 102_288
    assert dry["config"]["model"]["vocab_size"] == 256


def test_streamed_training_gives_the_same_curve(trained, tones, tmp_path):
    out = tmp_path / "run"
    assert mba_command(*arguments(tones, out, "train.stream_chunk=64")) == 0
    curves = [(run / "metrics.csv").read_text().splitlines() for run in (out, trained)]
    last = [float(curve[-1].split(",")[-3]) for curve in curves]
    assert last[0] == pytest.approx(last[1], rel=1e-4)


def test_changed_recordings_are_refused(trained, tones, tmp_path, capsys):
    other = tmp_path / "tones"
    other.mkdir()
    for file in tones.glob("*.wav"):
        (other / file.name).write_bytes(file.read_bytes())
    assert mba_command("evaluate", trained, "--quiet", "--device", "cpu") == 0
    audio, rate = soundfile.read(tones / "3.wav")
    before = (tones / "3.wav").read_bytes()
    try:
        soundfile.write(tones / "3.wav", audio[::-1], rate)
        assert mba_command("evaluate", trained, "--quiet", "--device", "cpu") == 2
        assert "not the file that" in capsys.readouterr().err
    finally:
        (tones / "3.wav").write_bytes(before)


def test_evaluate_names_the_quantiser(trained, capsys):
    assert mba_command("evaluate", trained, "--json", "--quiet", "--device", "cpu") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["quantizer"] == "mu-law 8 bit standard"
    assert result["scored"] == 1018 + 1019
    assert list(result["yardsticks"]) == ["unigram", "order 1", "order 2", "LPC-32"]
    assert result["yardsticks"]["LPC-32"] < result["yardsticks"]["unigram"]
    assert mba_command("evaluate", trained, "--quiet", "--device", "cpu") == 0
    text = capsys.readouterr().out
    assert "bits per sample             mu-law 8 bit standard" in text
    assert "above LPC-32: it has learnt less than that." in text


def test_load_and_export(trained, tmp_path):
    model = mba.load(trained)
    assert isinstance(model, UNetModel)
    assert isinstance(model.codec, AudioCodec)
    assert model.codec.vocab_size == 256
    out = tmp_path / "export"
    assert mba_command("export", trained, "--out", out) == 0
    assert "mu-law 8 bit standard" in (out / "README.md").read_text()
    again = mba.load(out)
    assert again.codec.description == model.codec.description
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
