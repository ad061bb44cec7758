"""Samples of audio below the command: the range of a prompt, the index, the rate."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.workflow.sample_audio import Rate, index_text, read_prompt, sample_audio


def sampled(tmp_path, variant: str, **more):
    """Forty samples behind a prompt that lies between 0.1 and 0.3."""
    soundfile.write(tmp_path / "clip.wav", np.linspace(0.1, 0.3, 500), 16_000, subtype="FLOAT")
    model = build_model(UNetConfig(d_model=8, num_layers=1, pools=(2,), vocab_size=256), seed=0).eval()
    model.codec = AudioCodec(variant=variant)
    model.config = SimpleNamespace(data=SimpleNamespace(gain=1.0))
    options = {
        "which": "best",
        "weights": "none",
        "length": 40,
        "num_samples": 1,
        "batch_size": 1,
        "prompt": str(tmp_path / "clip.wav"),
        "draws": {"temperature": 1.0, "top_k": None, "top_p": None, "seed": 0},
        "device": "cpu",
        "resume": False,
        "force": True,
    }
    assert sample_audio(model, tmp_path, tmp_path / "out.wav", **options | more) is None
    return soundfile.read(tmp_path / "out.wav")[0]


def test_a_prompt_says_what_range_sashimi_levels_lie_in(tmp_path) -> None:
    audio = sampled(tmp_path, "sashimi")
    assert audio.min() >= 0.0999
    assert audio.max() <= 0.3001
    wide = sampled(tmp_path, "standard")
    # An untrained model draws all levels alike.
    assert wide.min() < 0 < 0.3 < wide.max()


def test_prompts_are_read_at_the_models_rate_and_gain(tmp_path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full((800, 2), 0.25), 8000)
    prompt = read_prompt(str(tmp_path / "a.wav"), AudioCodec(), gain=2.0)
    assert len(prompt.levels) == 1600
    assert abs(AudioCodec().decode(prompt.levels[800:801])[0] - 0.5) < 0.02


@pytest.mark.parametrize(
    ("more", "message"), [({"length": 2**31}, "holds up to"), ({"num_samples": 2}, "one file holds one")]
)
def test_what_cannot_be_written_is_refused(tmp_path, more, message) -> None:
    with pytest.raises(InputError, match=message):
        sampled(tmp_path, "standard", **more)


def test_index_is_in_rising_order() -> None:
    rows = [line.split("\t") for line in index_text([-10.0, -30.0, -20.0], 10, ["a", "b", "c"]).splitlines()[1:]]
    assert [(row[0], row[1], row[2]) for row in rows] == [("0", "b", "1"), ("1", "c", "2"), ("2", "a", "0")]
    assert float(rows[0][4]) == pytest.approx(3 / np.log(2), rel=1e-5)


def test_rate_leaves_the_first_block_out() -> None:
    rate = Rate()
    assert rate.per_second is None
    rate.count(100)
    assert rate.per_second is None
    rate.count(300)
    assert rate.per_second > 0
