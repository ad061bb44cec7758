"""Learning rates of the parts of a model, and what its loss is divided by."""

import pytest
import torch

from mamba_bio_audio.models.build import build
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.training.config import TrainConfig
from mamba_bio_audio.training.optim import build_optimizer, divisor


def test_rates_of_parts():
    """The head has its own; each layer has half of the next one's, the embedding half of the first layer's."""
    model = build(ModelConfig(d_model=8, num_layers=3, vocab_size=12), HeadConfig(classes=("a", "b")), seed=0)
    config = TrainConfig(
        steps=1, length=8, tokens_per_step=8, lr=0.8, lr_head=3.0, lr_ssm=0.4, lr_layer_decay=0.5, weight_decay=0.1
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, config).param_groups
    rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    decays = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert rates.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    expected = {
        "head.weight": 3.0,
        "backbone.norm_f.weight": 0.8,
        "backbone.layers.2.mixer.in_proj.weight": 0.8,
        "backbone.layers.1.mixer.in_proj.weight": 0.4,
        "backbone.layers.0.mixer.in_proj.weight": 0.2,
        "backbone.layers.0.mixer.A_log": 0.1,
        "backbone.embedding.weight": 0.1,
    }
    assert {name: rates[name] for name in expected} == pytest.approx(expected)
    assert decays["backbone.layers.0.mixer.in_proj.weight"] == 0.1
    assert decays["backbone.layers.0.mixer.A_log"] == decays["backbone.embedding.weight"] == 0


def test_a_loss_is_divided_by_positions_or_by_answers():
    """Whether they are scored or not, so that batches of the same shape weigh the same."""
    model = build(ModelConfig(d_model=8, num_layers=1, vocab_size=12), None, seed=0)
    targets = torch.full((3, 10), -100)
    targets[:, -2:] = 1
    assert divisor(model, targets, None) == 30
    assert divisor(model, targets, 2) == 6
