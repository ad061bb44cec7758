"""Retention beside its quadratic form."""

import math

import pytest
import torch
import torch.nn.functional as F

from mamba_bio_audio.layers.retnet import RetentionConfig, RetentionLayer
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.size import count_parameters

WIDTH, HEADS, LENGTH = 16, 2, 40


def quadratic(layer, x):
    """y (B, L, D) from all pairs of positions: (q_t R(t - s) k_s) gamma^(t - s) v_s with complex rotations."""
    q, k, v, g = layer.in_proj(x).split([WIDTH, WIDTH, 2 * WIDTH, 2 * WIDTH], dim=2)
    q, k, v = (t.unflatten(2, (HEADS, -1)) for t in (q, k, v))
    half = WIDTH // HEADS // 2
    rates = torch.tensor([10_000.0 ** (-i / half) for i in range(half)], dtype=torch.float64)
    q, k = (torch.complex(*t.chunk(2, -1)) for t in (q, k))
    apart = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])  # t - s
    turn = torch.polar(torch.ones(()).double(), apart[..., None] * rates)
    scores = torch.einsum("bthi,tsi,bshi->bhts", q, turn, k.conj()).real / math.sqrt(WIDTH // HEADS)
    gamma = 1 - 2.0 ** (-5 - torch.arange(HEADS).double())
    weights = torch.where(apart >= 0, gamma[:, None, None] ** apart.clamp(min=0), 0.0)
    y = torch.einsum("bhts,bshp->bthp", scores * weights, v)
    y = y / (y.square().mean(-1, keepdim=True) + layer.norm.eps).sqrt()
    return layer.out_proj(y.flatten(2) * layer.norm.weight * F.silu(g))


def test_equals_the_quadratic_form():
    torch.manual_seed(0)
    layer = RetentionLayer(WIDTH, RetentionConfig(heads=HEADS)).double()
    torch.nn.init.normal_(layer.norm.weight)
    x = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    expected = quadratic(layer, x)
    assert (layer(x)[0] - expected).abs().max() <= 1e-12 * expected.abs().max()
    first, state = layer(x[:, :23])
    second, _ = layer(x[:, 23:], state)
    assert (torch.cat([first, second], 1) - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_equals_retention_of_flash_linear_attention():
    """The last output as `naive_retention` of fla_core 0.6.0 and Llama's rotation of transformers 5.24 gave it, within 1e-7."""
    layer = RetentionLayer(WIDTH, RetentionConfig(heads=HEADS)).double().requires_grad_(False)
    for parameter in layer.parameters():
        parameter.copy_((1.7 * torch.arange(1, parameter.numel() + 1).double()).sin().view(parameter.shape))
    x = (0.9 * torch.arange(LENGTH * WIDTH).double()).cos().view(1, LENGTH, WIDTH)
    theirs = [2.8726, -1.5774, -1.1493, 2.8330, -1.9457, -0.7073, 2.7185, -2.2626]
    theirs += [-0.2467, 2.5320, -2.5196, 0.2205, 2.2786, -2.7099, 0.6819, 1.9649]
    torch.testing.assert_close(layer(x)[0][0, -1], torch.tensor(theirs).double(), atol=6e-5, rtol=0)


def test_a_state_does_not_know_where_it_is():
    """A sequence gives the same state wherever in a row it begins."""
    torch.manual_seed(0)
    layer = RetentionLayer(WIDTH, RetentionConfig(heads=HEADS)).double()
    x = torch.randn(1, 9, WIDTH, dtype=torch.float64)
    _, (alone,) = layer(x)
    _, before = layer(torch.randn(1, 100, WIDTH, dtype=torch.float64))
    reset = torch.zeros(1, 9, dtype=torch.bool)
    reset[:, 0] = True
    _, (later,) = layer(x, before, reset=reset)
    torch.testing.assert_close(later, alone, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("options", [{}, {"heads": 2, "expand": 1, "mlp": "swiglu"}])
def test_models_are_counted_without_being_built(options):
    config = ModelConfig(mixer="retnet", options=options, d_model=16, num_layers=2, vocab_size=8)
    model = build_model(config)
    assert count_parameters(config) == model.num_parameters()
    if not options:  # 8 D^2 of retention and 4 D^2 of the MLP a block, beside norms
        assert sum(p.numel() for p in model.layers.parameters() if p.ndim == 2) == 2 * 12 * 16**2
    assert (len(model.layers), model.hidden_layers) == (4, 2)
    assert config.unstreamed is None


def test_wrong_heads_are_told():
    with pytest.raises(ValueError, match=r"options.heads: 3 heads require a width that is a multiple of 6, not 16"):
        ModelConfig(mixer="retnet", options={"heads": 3}, d_model=16, num_layers=1, vocab_size=8)
