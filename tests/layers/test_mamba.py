"""Initial values of the Mamba layer."""

import math

import pytest
import torch
import torch.nn.functional as F

from mamba_bio_audio.layers.config import SsmConfig
from mamba_bio_audio.layers.mamba import MambaLayer
from mamba_bio_audio.models.config import ModelConfig


def steps_of(**changes):
    """Initial step sizes of 4,096 channels, in fp64."""
    torch.manual_seed(0)
    layer = MambaLayer(2048, SsmConfig(**({"complex": False, "selective": True, "d_state": 1} | changes)))
    bias = layer.dt_proj.bias if layer.selective_dt else layer.dt
    return F.softplus(bias.detach().double())


@pytest.mark.parametrize("selective", [True, False])
def test_step_sizes_are_log_uniform(selective):
    """Between dt_min and dt_max: the paper's 0.001 and 0.1 (section 3.6)."""
    step = steps_of(selective=selective)
    assert 0.001 * (1 - 1e-3) <= step.min() < 0.00103
    assert 0.097 < step.max() <= 0.1 * (1 + 1e-3)
    logs = ((step.log() - math.log(0.001)) / math.log(100)).sort().values
    assert (logs - torch.linspace(0, 1, len(logs))).abs().max() < 0.03


@pytest.mark.parametrize("selective", [True, False])
def test_no_step_is_below_the_floor(selective):
    """Half of the channels of a log-uniform draw from 1e-6 to 1e-2 lie below 1e-4, and are raised to it."""
    step = steps_of(selective=selective, dt_min=1e-6, dt_max=1e-2, dt_floor=1e-4)
    assert step.min() >= 1e-4 * (1 - 1e-3)
    assert 0.45 < (step < 1e-4 * (1 + 1e-3)).double().mean() < 0.55


def test_weights_for_the_kernels():
    """In the order and the shapes of `MixerWeights`: the convolution's without its axis of one input channel."""
    layer = MambaLayer(6, SsmConfig(complex=False, selective=True, d_state=4, d_conv=3, dt_rank=2, proj_bias=True))
    weights = layer.weights()
    shapes = [tuple(weight.shape) for weight in weights[:11]]
    projections = [(24, 6), (24,), (12, 3), (12,), (10, 12), (12, 2), (12,)]
    assert shapes == [*projections, (12, 4), (12,), (6, 12), (6,)]
    assert weights[11:] == (None, None, None)


def test_only_real_layers_select_one_of_B_and_C():
    with pytest.raises(ValueError, match="b alone needs real states"):
        SsmConfig(complex=True, selective="b")


@pytest.mark.parametrize(("init", "expected"), [("n", [-1.0, -2.0, -3.0]), ("1/2", [-0.5] * 3), ("random", None)])
def test_initial_A_of_real_states(init, expected):
    torch.manual_seed(0)
    layer = MambaLayer(1024, SsmConfig(complex=False, selective=True, d_state=3, real_init=init))
    A = -torch.exp(layer.A_log)
    if expected is None:
        logs = layer.A_log.flatten()
        assert abs(logs.mean()) < 0.05
        assert abs(logs.std() - 1) < 0.05
    else:
        torch.testing.assert_close(A, torch.tensor(expected).expand_as(A))


def test_nor_where_the_mixer_says_that_states_are_complex():
    with pytest.raises(ValueError, match=r"ssm\.selective: c alone needs real states"):
        ModelConfig(d_model=8, num_layers=1, mixer="mamba-complex", ssm=SsmConfig(selective="c"))
