"""Audio recipes against the paper: sections 4.4 and E.4, parameter counts to within what is explained."""

import pytest
import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.run.config import RunConfig, load_config
from mamba_bio_audio.run.recipes import recipe_names, variants_of
from mamba_bio_audio.training import probe as training_probe
from mamba_bio_audio.training.probe import Probe

SWEEP = {958464: 1, 479232: 2, 239616: 4, 120832: 8, 61440: 16, 30720: 32, 16384: 64, 8192: 128}


def load(name: str, tmp_path) -> RunConfig:
    return load_config(f"audio/{name}", [f"data.path={tmp_path}"])


def parameters(config: RunConfig) -> int:
    model = config.model.model_copy(update={"vocab_size": 256})
    with torch.device("meta"):
        return build_model(model).num_parameters()


@pytest.mark.parametrize(
    ("name", "published", "blocks"),
    [("sc09@small-paper", 6.1e6, 40), ("sc09@large-paper", 24.3e6, 75), ("youtubemix@8192-paper", 3.5e6, 15)],
)
def test_published_sizes(name, published, blocks, tmp_path):
    config = load(name, tmp_path)
    assert sum(stage.num_layers for stage in config.model.stages) == blocks
    # 2 to 3 % above for SC09, unexplained; 7 % for YouTubeMix, whose complex states the paper does not count.
    assert published < parameters(config) < 1.08 * published


def test_sc09_follows_the_paper(tmp_path):
    for name in ("sc09@small-paper", "sc09@large-paper"):
        config = load(name, tmp_path)
        assert [(stage.ssm.complex, stage.ssm.selective) for stage in config.model.stages] == [(False, True)] * 5
        train = config.train
        assert (train.length, train.sequences_per_step, train.steps, train.clip) == (16_000, 16, 200_000, 0.1)
        assert (train.lr, train.betas, train.weight_decay, train.warmup) == (2e-3, (0.9, 0.95), 0.1, 0.1)
        assert (train.ema, config.data.variant, config.data.pad_target) == (None, "sashimi", "mask")


def test_youtubemix_sweep_follows_the_paper(tmp_path):
    for length, batch in SWEEP.items():
        config = load(f"youtubemix@{length}-paper", tmp_path)
        assert [(stage.ssm.complex, stage.ssm.selective) for stage in config.model.stages] == [(True, True)] * 5
        train = config.train
        assert (train.length, train.sequences_per_step, train.steps) == (length, batch, 200_000)
        assert length % 2048 == 0
        assert (train.lr, train.ema) == (2e-3, None)
        ours = load(f"youtubemix@{length}-lti", tmp_path)
        assert [(stage.ssm.complex, stage.ssm.selective) for stage in ours.model.stages] == [(True, False)] * 5
        assert (ours.train.length, ours.data.variant) == (length, "standard")


@pytest.mark.parametrize("setting", ["stream_chunk=4000", "truncate_chunk=4000", "stream_chunk=auto"])
def test_attention_is_not_streamed(setting, tmp_path):
    with pytest.raises(
        InputError, match=rf"{setting.split('=')[0]}: requires layers with a state of constant size.*=null"
    ):
        load_config("audio/sc09@small-attention", [f"data.path={tmp_path}", f"train.{setting}"])


def test_chunks_of_a_unet_are_chosen_too(tmp_path, monkeypatch):
    sets = [f"data.path={tmp_path}", "train.stream_chunk=auto", "train.length=12000", "train.tokens_per_step=12000"]
    config = load_config("audio/tiny", [*sets, "model.pools=[10,10]"])
    monkeypatch.setattr(training_probe, "probe", lambda model, train, *_: Probe(train.stream_chunk * 1000, 1.0))
    monkeypatch.setattr(training_probe, "_memory_limit", lambda device: 5_000_000)
    assert training_probe.choose_chunk(config.model, config.train, "cpu") == 4000


def test_attention_has_a_dry_run(tmp_path):
    sets = ["model.num_layers=1", "model.d_model=8", "train.length=64", "train.tokens_per_step=64"]
    config = load_config("audio/sc09@small-attention", [f"data.path={tmp_path}", *sets])
    model = config.model.model_copy(update={"vocab_size": 256})
    assert [tokens for tokens, _, _ in training_probe._measure(model, config.train, "cpu", None)] == [64]


def test_variants_say_whose_they_are():
    found = {
        variant: description
        for name in recipe_names()
        if name.startswith("audio/")
        for variant, description in variants_of(name).items()
        if not variant.isdecimal() and variant not in ("small", "large")
    }
    assert found.keys() == {"paper", "lti", "attention", "classes", "8khz"}
    for variant, description in found.items():
        assert "as published" in description if variant == "paper" else description.startswith("ours"), variant
