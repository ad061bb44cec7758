"""The size of a model from its configuration is the size of the model."""

import re

import pytest
import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.build import build, build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.size import count_parameters, kept_per_position
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.run.config import merge_recipe, model_config
from mamba_bio_audio.run.recipes import recipe_names, variants_of


def built(config, head=None) -> int:
    with torch.device("meta"):
        return build(config, head).num_parameters()


@pytest.mark.parametrize("mixer", ["mamba", "mamba-complex", "s4d", "s4d-real"])
@pytest.mark.parametrize(
    "ssm",
    [
        {},
        {"selective": "bc"},
        {"selective": "dt"},
        {"proj_bias": True, "conv_bias": False},
        {"expand": 3, "d_state": 5, "d_conv": 3, "dt_rank": 7},
    ],
)
def test_isotropic(mixer, ssm):
    for more in (
        {},
        {"tie_embeddings": False, "vocab_multiple": 5},
        {"inputs": 13, "classes": ["a", "b"], "vocab_multiple": 5},
    ):
        config = model_config({"mixer": mixer, "d_model": 24, "num_layers": 3, "vocab_size": 12, "ssm": ssm} | more)
        assert count_parameters(config) == built(config)
        for head in (
            HeadConfig(classes=("a", "b", "c")),
            HeadConfig(task="bases", classes=("a", "b"), complement=tuple(range(12))),
        ):
            assert count_parameters(config, head) == built(config, head)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"down_blocks": False},
        {"pools": [2, 3, 4], "expand": 3},
        {"mixer": "s4d", "ssm": {"proj_bias": True}},
        {"pools": [4], "stages": [{"num_layers": 2}, {"mixer": "transformer", "num_layers": 3}, {"num_layers": 2}]},
        {"pools": [4], "mixer": "transformer", "options": {"window": 4, "mlp": "gelu", "mlp_bias": True}},
        {
            "pools": [4],
            "stages": [{}, {"mixer": "transformer", "options": {"heads": 2, "mlp_expand": 4, "bias": True}}, {}],
        },
    ],
)
def test_unet(more):
    config = model_config({"backbone": "unet", "d_model": 16, "num_layers": 2, "vocab_size": 256} | more)
    assert count_parameters(config) == built(config)


def test_packaged_recipes():
    seen = set()
    names = recipe_names()
    names += [f"{name}@{variant}" for name in names for variant in variants_of(name)]
    for name in names:
        values = merge_recipe(name)["model"] | {"vocab_size": 256 if name.startswith("audio") else 12}
        # Its width and its state decide; layers only repeat.
        config = model_config(values | {"num_layers": min(2, values["num_layers"])})
        if config.model_dump_json() not in seen:
            seen.add(config.model_dump_json())
            assert count_parameters(config) == built(config), name
    assert len(seen) > 15


def test_descriptions_of_variants_tell_their_parameters():
    told = 0
    for name in recipe_names():
        for variant, description in variants_of(name).items():
            if found := re.search(r"\(([\d,]+) parameters\)", description):
                values = merge_recipe(f"{name}@{variant}")["model"] | {"vocab_size": 12}
                assert count_parameters(model_config(values)) == int(found[1].replace(",", "")), f"{name}@{variant}"
                told += 1
    assert told > 10


def test_kept_per_position():
    assert kept_per_position(ModelConfig(d_model=8, num_layers=3)) == 24
    # Attention and MLP.
    assert kept_per_position(ModelConfig(mixer="transformer", d_model=8, num_layers=3)) == 48
    # 2 blocks of 8 on the way down and up, and at the centre 2 of 16 channels for every 4 samples.
    assert kept_per_position(UNetConfig(d_model=8, num_layers=2, pools=(4,))) == 16 + 16 + 8


@pytest.mark.parametrize(
    "values",
    [
        {"d_model": 1 << 20, "num_layers": 10_000},
        {"d_model": 1 << 20, "num_layers": 1},
        {"d_model": 64, "num_layers": 1, "vocab_multiple": 1 << 20, "ssm": {"expand": 1024, "dt_rank": 1 << 20}},
        {"d_model": 1 << 16, "num_layers": 1, "backbone": "unet", "expand": 1024, "pools": [65536] * 16},
    ],
)
def test_models_beyond_the_machine_are_refused_with_numbers(values, monkeypatch):
    monkeypatch.setattr("mamba_bio_audio.models.build.available_memory", lambda: 1 << 30)
    config = model_config(values | {"vocab_size": 12})
    with pytest.raises(InputError, match=r"a model of [\d,^]+ parameters takes at least .* GiB free; lower model"):
        build_model(config)


def test_small_models_pass_where_the_system_says_nothing(monkeypatch):
    monkeypatch.setattr("mamba_bio_audio.models.build.available_memory", lambda: None)
    assert build_model(ModelConfig(d_model=8, num_layers=1, vocab_size=12)).num_parameters() > 0
