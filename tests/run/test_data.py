"""Files that change while they are trained on."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.run.begin import Session
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.outcomes import Trained
from mamba_bio_audio.run.train import train
from mamba_bio_audio.training.checkpoints import last_position
from mamba_bio_audio.training.steps import Steps

TRAIN = {
    "model.d_model": 8,
    "train.length": 32,
    "train.tokens_per_step": 64,
    "train.steps": 6,
    "train.validate_every": 6,
    "train.validation_tokens": 256,
    "train.checkpoint_every": 2,
    "train.log_every": 1,
}


def dna(folder: Path) -> tuple[str, dict[str, Any], Path]:
    letters = np.random.default_rng(0).choice(list("ACGT"), 4000)
    file = folder / "toy.fa"
    file.write_text(">a\n" + "".join(letters) + "\n")
    return "dna/tiny", {"data.path": file, "model.num_layers": 1}, file


def classes(folder: Path) -> tuple[str, dict[str, Any], Path]:
    for number, name in enumerate("xy"):
        letters = np.random.default_rng(number).choice(list("ACGT"), 6000)
        (folder / f"{name}.fa").write_text(f">{name}\n" + "".join(letters) + "\n")
    file = folder / "y.fa"
    settings = {
        "data.path": f"{{x: {folder / 'x.fa'}, y: {file}}}",
        "data.block_bases": 500,
        "data.evaluation_windows": 4,
    }
    settings |= {"model.num_layers": 1, "train.length_warmup": "[]", "train.ema": "null"}
    return "dna/species@tiny", settings, file


def audio(folder: Path) -> tuple[str, dict[str, Any], Path]:
    for name in "abcdefghijkl":
        noise = np.random.default_rng(ord(name)).uniform(-0.5, 0.5, 1600)
        soundfile.write(folder / f"{name}.wav", noise, 16000)
    return "audio/tiny", {"data.path": folder}, folder / "b.wav"


def go(recipe: str, settings: dict[str, Any], out: Path, resume: bool = False) -> Trained:
    config = load_config(recipe, [f"{key}={value}" for key, value in (TRAIN | settings).items()])
    return train(config, out, Session("cpu", quiet=True, resume=resume))


@pytest.fixture
def at_step(monkeypatch):
    """Do something at the end of a step, before anything is saved."""
    step_end = Steps.on_train_batch_end

    def arrange(step: int, act: Any, patch: Any = monkeypatch) -> None:
        def end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == step and (batch_idx + 1) % self.accumulate == 0:
                act()
            step_end(self, trainer, module, outputs, batch, batch_idx)

        patch.setattr(Steps, "on_train_batch_end", end)

    return arrange


def overwrite(file: Path) -> None:
    """Other contents of the same size, a moment later."""
    data = bytearray(file.read_bytes())
    data[-1000:-10] = data[-1000:-10][::-1]
    file.write_bytes(data)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 5_000_000_000))


@pytest.mark.parametrize("kind", [dna, classes, audio])
@pytest.mark.parametrize("change", [overwrite, Path.unlink], ids=["overwritten", "removed"])
def test_a_file_changed_in_place_ends_the_training_before_anything_is_saved(
    kind, change, tmp_path, at_step, monkeypatch
):
    """Fails before: the training went on with the new contents and said nothing."""
    (tmp_path / "data").mkdir()
    recipe, settings, file = kind(tmp_path / "data")
    kept = file.read_bytes()
    go(recipe, settings, tmp_path / "whole")
    with monkeypatch.context() as patch:
        at_step(3, lambda: change(file), patch)
        with pytest.raises(InputError, match=rf"{file}: the file changed during the training.*restore .*--resume"):
            go(recipe, settings, tmp_path / "run")
    assert last_position(tmp_path / "run").step == 2
    file.write_bytes(kept)
    go(recipe, settings, tmp_path / "run", resume=True)
    for name in ("metrics.csv", "checkpoints/last.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_change_in_the_last_step_is_noticed_at_the_end(tmp_path, at_step):
    recipe, settings, file = dna(tmp_path)
    at_step(6, lambda: overwrite(file))
    with pytest.raises(InputError, match="the file changed during the training"):
        go(recipe, settings, tmp_path / "run")
    assert last_position(tmp_path / "run").step == 4
    assert "result" not in json.loads((tmp_path / "run" / "manifest.json").read_text())


def test_a_file_that_is_touched_or_copied_back_does_not_stop_it(tmp_path, at_step):
    recipe, settings, file = dna(tmp_path)

    def copy_back() -> None:
        shutil.copy(file, tmp_path / "copy")
        os.replace(tmp_path / "copy", file)
        os.utime(file, ns=(0, 1_000_000_000))

    at_step(3, copy_back)
    assert go(recipe, settings, tmp_path / "run").step == 6
