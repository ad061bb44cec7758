"""Clips in TensorBoard: there at every validation, and without any effect on the training."""

import numpy as np
import pytest
import soundfile
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mamba_bio_audio.config import load_config
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.workflow.pretrain import pretrain


def test_clips_are_written_and_change_nothing(tmp_path) -> None:
    rng = np.random.default_rng(0)
    for number in range(20):
        soundfile.write(tmp_path / f"{number}.wav", 0.1 * rng.standard_normal(300), 16_000)
    keys = ["model.d_model=8", "train.length=64", "train.tokens_per_step=64", "train.steps=4", "train.validate_every=2"]
    for listen in (0, 2):
        config = load_config("audio/tiny", [f"data.path={tmp_path}", *keys, f"train.listen={listen}", "train.ema=0.5"])
        pretrain(config, tmp_path / str(listen), device="cpu", quiet=True)
    assert (tmp_path / "0" / "metrics.csv").read_text() == (tmp_path / "2" / "metrics.csv").read_text()
    events = EventAccumulator(str(tmp_path / "2" / "tensorboard"), {"audio": 0, "images": 0})
    events.Reload()
    assert events.Tags()["audio"] == ["clip_0", "clip_1"]
    assert [event.step for event in events.Audio("clip_1")] == [2, 4]
    assert [event.length_frames for event in events.Audio("clip_0")] == [64, 64]
    assert [event.step for event in events.Images("spectrograms")] == [2, 4]


def test_only_audio_is_listened_to() -> None:
    with pytest.raises(InputError, match=r"train\.listen is of data\.kind audio, not dna"):
        load_config("dna/tiny", ["data.path=demo", "train.listen=1"])
