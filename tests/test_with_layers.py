"""scripts/with_layers.py: new layers in a trained model."""

from typing import Any

import pytest
import torch

from mamba_bio_audio.models.build import build
from mamba_bio_audio.models.config import ModelConfig
from scripts.with_layers import with_layers


def model() -> Any:
    found: Any = build(ModelConfig(d_model=8, num_layers=2, vocab_size=12), None, seed=0)
    found.codec = None
    return found.eval()


@pytest.mark.parametrize("mlp", ["none", "swiglu"])
def test_it_computes_at_first_what_the_model_does_and_can_learn_more(mlp: str) -> None:
    old = model()
    new = with_layers(old, "mamba,transformer,mamba", {"heads": 1, "mlp": mlp, "rope_theta": None}, 0).eval()
    tokens = torch.randint(7, 11, (2, 50), generator=torch.Generator().manual_seed(0))
    assert torch.equal(new(tokens).logits, old(tokens).logits)
    assert new.model_config.options["transformer"]["rope_theta"] is None
    attention = new.layers[1].mixer
    new(tokens).logits.square().sum().backward()
    assert attention.out_proj.weight.grad.abs().max() > 0
    assert attention.in_proj.weight.abs().max() > 0


def test_a_pattern_that_has_other_layers_of_mamba_is_refused() -> None:
    with pytest.raises(SystemExit, match="the pattern has 1 layers of Mamba, the model mamba, 2 layers x 8"):
        with_layers(model(), "mamba,transformer", {}, 0)
