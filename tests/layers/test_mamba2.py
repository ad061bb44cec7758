"""The Mamba-2 layer beside the one of transformers, and what it is made of."""

import pytest
import torch

from mamba_bio_audio.layers.mamba2 import Mamba2Config, Mamba2Layer, Mamba2State
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.size import count_parameters

WIDTH = 32


def theirs_and_ours(**settings):
    """A layer of transformers in which every parameter matters, and ours with its weights."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    sizes = {"hidden_size": WIDTH, "state_size": 12, "head_dim": 16, "num_heads": 4, "n_groups": 2, "chunk_size": 8}
    config = transformers.Mamba2Config(**sizes | settings)
    torch.manual_seed(0)
    layer = Mamba2Mixer(config, layer_idx=0).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    limit = config.time_step_limit
    ours = Mamba2Layer(
        WIDTH,
        Mamba2Config(
            d_state=config.state_size,
            d_conv=config.conv_kernel,
            head_dim=config.head_dim,
            groups=config.n_groups,
            expand=config.expand,
            conv_bias=config.use_conv_bias,
            proj_bias=config.use_bias,
            dt_limit=None if limit == (0.0, float("inf")) else limit,
        ),
    )
    ours.load_state_dict(layer.state_dict())
    return layer, ours


@pytest.mark.parametrize(
    "settings",
    [{}, {"n_groups": 1}, {"use_bias": True, "use_conv_bias": False}, {"time_step_limit": (0.05, 0.6)}],
    ids=str,
)
def test_equals_transformers(settings):
    theirs, ours = theirs_and_ours(**settings)
    x = torch.randn(2, 29, WIDTH)
    with torch.no_grad():
        expected = theirs(x)
        found, _ = ours(x)
    assert (found - expected).abs().max() <= 2e-6 * expected.abs().max()


def test_step_size_is_clamped():
    _, ours = theirs_and_ours(time_step_limit=(0.05, 0.6))
    _, free = theirs_and_ours()
    free.load_state_dict(ours.state_dict())
    x = torch.randn(1, 9, WIDTH)
    assert not torch.allclose(ours(x)[0], free(x)[0])


def test_published_numbers_of_parameters():
    """Of mixers of width 128, 256 and 512 with 64 and 128 states."""
    counts = {(128, 64): 117_388, (128, 128): 134_412, (256, 64): 431_768, (256, 128): 465_176, (512, 64): 1_653_424}
    for (width, states), count in counts.items():
        config = Mamba2Config(d_state=states)
        assert config.num_parameters(width) == count
        with torch.device("meta"):
            (layer,) = config.layers(width, 1)
        assert sum(p.numel() for p in layer.parameters()) == count


@pytest.mark.parametrize(
    "options", [{"proj_bias": True, "conv_bias": False}, {"head_dim": 8, "groups": 2, "expand": 3}]
)
def test_models_are_counted_without_being_built(options):
    config = ModelConfig(mixer="mamba2", options=options, d_model=16, num_layers=2, vocab_size=8)
    assert count_parameters(config) == build_model(config).num_parameters()
    assert ModelConfig(**config.model_dump()) == config
    assert config.unstreamed is None


def test_initial_values():
    torch.manual_seed(0)
    layer = Mamba2Layer(256, Mamba2Config(head_dim=4))
    step = torch.nn.functional.softplus(layer.dt_bias)
    assert 1e-3 <= step.min() < 2e-3
    assert 0.05 < step.max() <= 0.1
    assert 1 <= layer.A_log.exp().min() < 2
    assert 15 < layer.A_log.exp().max() <= 16
    assert (layer.D == 1).all()
    kept = [name for name, p in layer.named_parameters() if getattr(p, "_no_weight_decay", False)]
    assert kept == ["dt_bias", "A_log", "D"]


def test_what_the_recurrence_needs_stays_wide():
    layer = Mamba2Layer(16, Mamba2Config()).to(torch.bfloat16)
    assert layer.in_proj.weight.dtype == torch.bfloat16
    assert {p.dtype for p in (layer.A_log, layer.D, layer.dt_bias)} == {torch.float32}
    y, state = layer(torch.randn(1, 5, 16, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert isinstance(state, Mamba2State)
    assert (state.tail.dtype, state.ssm.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_dim": 24}, "32 inner channels are not a multiple of 24"),
        ({"head_dim": 8, "groups": 3}, "4 heads are not a multiple of 3 groups"),
        ({"headdim": 8}, "headdim: unknown key; keys of mamba2: d_state"),
    ],
)
def test_wrong_shapes_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(mixer="mamba2", options=options, d_model=16, num_layers=1, vocab_size=8)
