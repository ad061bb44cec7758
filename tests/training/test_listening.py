"""Clips in TensorBoard at every validation, and the weights whose clips are closest to recordings."""

import csv

import numpy as np
import pytest
import soundfile
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mamba_bio_audio as mba
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio.listening import ClipListener
from mamba_bio_audio.run import train as machinery
from mamba_bio_audio.run.begin import Session
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.training.listening import Listening


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    for number in range(20):
        soundfile.write(folder / f"{number}.wav", 0.1 * rng.standard_normal(300), 16_000)
    return folder


def train(noise, out, listen, resume=False, steps=6):
    keys = ["model.d_model=8", "train.length=64", "train.tokens_per_step=64", f"train.steps={steps}"]
    keys += ["train.validate_every=2", "train.checkpoint_every=1", f"data.path={noise}", "train.ema=0.5"]
    config = load_config("audio/tiny", [*keys, f"train.listen={listen}"])
    return machinery.train(config, out, Session("cpu", quiet=True, resume=resume))


@pytest.fixture
def scripted(monkeypatch):
    """Distances as given, one per validation."""
    distances = iter([3.0, 1.0, 2.0, 0.5])
    monkeypatch.setattr(ClipListener, "distance", lambda *_: next(distances))


def rows(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_clips_are_written_and_change_nothing(noise, tmp_path) -> None:
    for listen in (0, 2):
        train(noise, tmp_path / str(listen), listen, steps=4)
    silent, heard = (rows(tmp_path / name) for name in ("0", "2"))
    distances = [row.pop("sample_distance") for row in heard]
    assert [row.pop("sample_distance") for row in silent] == ["", ""]
    assert silent == heard
    assert all(float(distance) > 0 for distance in distances)
    events = EventAccumulator(str(tmp_path / "2" / "tensorboard"), {"audio": 0, "images": 0})
    events.Reload()
    assert events.Tags()["audio"] == ["clip_0", "clip_1"]
    assert [event.step for event in events.Audio("clip_1")] == [2, 4]
    assert [event.length_frames for event in events.Audio("clip_0")] == [64, 64]
    assert [event.step for event in events.Images("spectrograms")] == [2, 4]
    assert [event.step for event in events.Scalars("sample_distance")] == [2, 4]


def test_weights_best_by_samples_are_kept(noise, tmp_path, scripted) -> None:
    summary = train(noise, tmp_path / "run", 1)
    assert summary.best_samples_step == 4
    assert [float(row["sample_distance"]) for row in rows(tmp_path / "run")] == [3, 1, 2]
    kept = mba.load(tmp_path / "run", "best-samples").embedding.weight
    assert not torch.equal(kept, mba.load(tmp_path / "run", "ema").embedding.weight)
    short = tmp_path / "short"
    train(noise, short, 0)
    with pytest.raises(InputError, match=r"no best_samples.safetensors.*train.listen"):
        mba.load(short, "best-samples")


def test_resume_knows_the_best_samples_so_far(noise, tmp_path, scripted, monkeypatch) -> None:
    validations = []
    call = Listening.__call__
    monkeypatch.setattr(Listening, "__call__", lambda *given: validations.append(given[-1]) or call(*given))
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        # A failure after the second validation, as a full disk or a kill would be.
        def fail(self, model, writer, step):
            if step == 6:
                raise RuntimeError("killed")
            return call(self, model, writer, step)

        patch.setattr(Listening, "__call__", fail)
        with pytest.raises(RuntimeError, match="killed"):
            train(noise, out, 1)
    before = (out / "best_samples.safetensors").read_bytes()
    summary = train(noise, out, 1, resume=True)
    assert validations == [6]
    assert [float(row["sample_distance"]) for row in rows(out)] == [3, 1, 2]
    assert summary.best_samples_step == 4
    assert (out / "best_samples.safetensors").read_bytes() == before


def test_only_audio_is_listened_to() -> None:
    with pytest.raises(InputError, match=r"train\.listen requires data\.kind=audio \(got dna\); set it to 0"):
        load_config("dna/tiny", ["data.path=demo", "train.listen=1"])
