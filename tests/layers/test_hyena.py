"""Hyena beside its definition in fp64, with a direct convolution of scipy, and beside the published numbers of parameters."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.signal import lfilter

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference.generate import generate
from mamba_bio_audio.layers.hyena import HyenaConfig, long_convolution
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.size import count_parameters
from mamba_bio_audio.run.config import load_config


def made(width=4, **options):
    torch.manual_seed(0)
    return HyenaConfig(**options).layers(width, 3)[0]


@pytest.mark.parametrize("length", [1, 2, 37, 64])
def test_operator_is_its_definition(length):
    """The filter by NumPy, a position at a time, and the convolution by scipy's `lfilter`."""
    layer = made(max_length=64, filter_width=8).double().requires_grad_(False)
    x = torch.randn(2, length, 4, dtype=torch.float64)
    u = layer.in_proj(x).numpy()
    weight, bias = layer.conv1d.weight[:, 0].numpy(), layer.conv1d.bias.numpy()
    padded = np.pad(u, ((0, 0), (2, 0), (0, 0)))
    short = sum(weight[:, tap] * padded[:, tap : tap + length] for tap in range(3)) + bias
    x0, x1, v = np.split(short, 3, -1)
    w = x1 * v

    # The MLP of a position, with its waves: two bands, 1e-4 and 1.
    h = np.empty((length, 4))
    delta = np.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, 4)
    for position in range(length):
        t = position / 63
        angles = [2 * math.pi * position * band / 64 for band in (1e-4, 1.0)]
        z = np.array([t, *map(math.cos, angles), *(-math.sin(angle) for angle in angles)])
        for part in (layer.filter.first, *layer.filter.hidden):
            z = np.sin(layer.filter.frequency.numpy() * (part.weight.numpy() @ z + part.bias.numpy()))
        h[position] = layer.filter.last.weight.numpy() @ z * np.exp(-t * np.abs(delta))

    y = np.stack([lfilter(h[:, channel], [1.0], w[..., channel], axis=1) for channel in range(4)], -1)
    y += layer.skip.numpy() * w
    expected = layer.out_proj(torch.from_numpy(x0 * y))
    error = ((layer(x)[0] - expected).abs().max() / expected.abs().max()).item()
    assert error < 1e-12


def test_inputs_never_reach_back_by_more_than_rounding():
    """An FFT mixes all positions before it rounds: a large last input moves the others by its rounding, in fp32."""
    torch.manual_seed(0)
    u, taps = torch.randn(1, 8192, 2), torch.randn(8192, 2) / 90
    y = long_convolution(u, taps, torch.zeros(2))
    changed = u.clone()
    changed[:, -1] += 1000
    moved = (long_convolution(changed, taps, torch.zeros(2)) - y)[:, :-1].abs().max().item()
    bound = torch.finfo(torch.float32).eps * 1000 * taps.abs().max().item() * math.log2(2 * 8192)
    assert 0 < moved < bound
    same = long_convolution(u.double(), taps.double(), torch.zeros(2).double())
    assert (y - same).abs().max() < 1e-5


def test_what_it_cannot_do_is_refused():
    layer = made(max_length=16)
    x = torch.randn(1, 16, 4)
    _, state = layer(x)
    with pytest.raises(ValueError, match="cannot carry a state"):
        layer(x, state)
    with pytest.raises(ValueError, match="cannot start a sequence inside a span"):
        layer(x, reset=torch.zeros(1, 16, dtype=torch.bool))
    with pytest.raises(InputError, match=r"17 positions, .* for 16 \(model.options.max_length\)"):
        layer(torch.randn(1, 17, 4))
    config = ModelConfig(pattern="mamba,hyena", d_model=16, num_layers=2, vocab_size=8)
    assert (config.unstreamed, config.longest) == ("hyena", 1024)
    with pytest.raises(InputError, match="cannot carry a state from symbol to symbol"):
        generate(build_model(config), length=3)
    settings = ["data.path=.", "model.mixer=hyena"]
    assert load_config("dna/hg38", settings).model.longest == 1024
    with pytest.raises(InputError, match="train.length: 2,048 is more than the 1,024 positions .*max_length"):
        load_config("dna/hg38", [*settings, "train.length=2048"])
    with pytest.raises(InputError, match="emb_dim: 4 is even"):
        load_config("dna/hg38", [*settings, "model.options.emb_dim=4"])
    with pytest.raises(InputError, match="stages.0.mixer: hyena cannot carry a state"):
        load_config("audio/tiny", ["data.path=.", "model.stages=[{mixer: hyena},{},{},{},{}]"])


def test_bf16_leaves_the_filter_alone():
    """The filter and its convolution are in fp32 in narrow models, and under autocast."""
    layer = made(width=8).bfloat16()
    assert {parameter.dtype for parameter in layer.filter.parameters()} == {torch.float32}
    wide = made(width=8)
    x = torch.randn(1, 500, 8)
    with torch.autocast("cpu", torch.bfloat16):
        narrow, taps = wide(x)[0], wide.filter(500)
    assert taps.dtype == torch.float32
    expected = wide(x)[0]
    assert (narrow - expected).abs().max() < 0.02 * expected.abs().max()


# Gu & Dao 2023, figure 5 left: D, blocks, thousands of parameters.
FIGURE = [(64, 4, 254.0), (96, 5, 638.3), (128, 6, 1298.2), (192, 7, 3272.8), (256, 8, 6535.9)]
FIGURE += [(384, 10, 18_108), (512, 12, 38_373)]


@pytest.mark.parametrize(("width", "blocks", "thousands"), FIGURE)
def test_published_counts_of_the_figure(width, blocks, thousands):
    """Ours as it is by default: biases in the operator and none in the MLP of 4 D, RMS norms, an embedding of 16 rows."""
    config = ModelConfig(mixer="hyena", d_model=width, num_layers=blocks, vocab_size=12, vocab_multiple=16)
    assert count_parameters(config) == blocks * (12 * width**2 + 83 * width + 8768) + 17 * width
    assert round(count_parameters(config) / 1000, 1 if thousands < 10_000 else 0) == thousands


@pytest.mark.parametrize(("width", "blocks", "count"), [(128, 2, 436_096), (256, 4, 3_277_568), (256, 8, 6_550_528)])
def test_released_models_of_hyenadna(width, blocks, count):
    """tiny, small, medium and large of Nguyen et al. 2023, whose MLP has biases, and whose norms have some: one D each."""
    config = ModelConfig(
        mixer="hyena", options={"mlp_bias": True}, d_model=width, num_layers=blocks, vocab_size=12, vocab_multiple=16
    )
    assert count_parameters(config) + (2 * blocks + 1) * width == count


def test_gradients_of_the_filter_reach_every_parameter():
    layer = made()
    y, _ = layer(torch.randn(1, 40, 4))
    F.mse_loss(y, torch.ones_like(y)).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0, name
