"""What a class is worth, beside the same from the models of the classes and by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from mamba_bio_audio.evaluation.class_worth import class_worth
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.unet_config import UNetConfig

Q, S, NAMES = 20, 21, ("a", "b", "c")
SHAPES = {
    "isotropic": ModelConfig(d_model=16, num_layers=1, vocab_size=Q, inputs=S, classes=NAMES),
    "unet": UNetConfig(d_model=16, num_layers=1, pools=(2, 2), vocab_size=Q, inputs=S, classes=NAMES),
}


def rows(numbers, length=16):
    ids = torch.randint(Q, (len(numbers), length + 1), generator=torch.Generator().manual_seed(0))
    targets = ids[:, 1:].clone()
    tokens = ids[:, :-1] + torch.tensor(numbers)[:, None] * S
    # The last row is short: padding has no class and is not scored.
    tokens[-1, -4:], targets[-1, -4:] = 0, -100
    return {"tokens": tokens, "targets": targets}


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_difference_of_the_likelihoods_of_the_models_of_the_classes(shape):
    model = build_model(SHAPES[shape], seed=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    numbers = [1, 3, 2, 2, 1]
    batch = rows(numbers)
    plain = batch["tokens"] % S
    with torch.no_grad():
        models = [model, *(model.of_class(name) for name in NAMES)]
        logits = torch.stack([own(plain).logits for own in models])
    targets = batch["targets"].expand(4, -1, -1)
    nats = F.cross_entropy(logits.permute(0, 3, 1, 2), targets, reduction="none").sum(2)
    right = nats[torch.tensor(numbers), torch.arange(5)]
    found = class_worth(model, [batch], 10)
    assert found.rows == 5
    assert found.over_none == pytest.approx(float((nats[0] - right).mean()), rel=1e-4)
    assert found.over_others == pytest.approx(float(((nats[1:].sum(0) - right) / 2 - right).mean()), rel=1e-4)
    named = nats[1:].argmin(0) + 1 == torch.tensor(numbers)
    assert found.named == pytest.approx(float(named.double().mean()))
    assert f"{found.named:.0%} of 5" in str(found)


class Knows(torch.nn.Module):
    """Says symbol k to sequences of class k with odds of 9 to 1, whatever it has read; without a class, all alike."""

    model_config, classes = SHAPES["unet"], NAMES

    def __init__(self) -> None:
        super().__init__()
        self.base = torch.nn.Parameter(torch.zeros(()))

    def forward(self, tokens):
        number = tokens // S
        logits = torch.log1p(8 * F.one_hot(number, Q)) * (number > 0)[..., None] + self.base
        return type("Output", (), {"logits": logits})


def test_by_hand_and_at_most_so_many_rows_of_those_that_have_a_class():
    tokens = torch.arange(4)[:, None] * S + torch.zeros(4, 5, dtype=torch.long)
    batches = [{"tokens": tokens, "targets": torch.tensor([[0], [1], [2], [1]]).expand(-1, 5)}] * 2
    # Of classes 1, 2, 3 the last says 3 but hears 1: ln(9 / 28 x 20) nats a symbol where right, ln(20 / 28) where not.
    found = class_worth(Knows(), batches, 3)
    right, wrong = 5 * math.log(9 * 20 / 28), 5 * math.log(20 / 28)
    assert (found.rows, found.named) == (3, pytest.approx(2 / 3))
    assert found.over_none == pytest.approx((2 * right + wrong) / 3, rel=1e-6)
    assert found.over_others == pytest.approx((2 * (right - wrong) + (wrong - (right + wrong) / 2)) / 3, rel=1e-6)
    assert class_worth(Knows(), batches, 4).rows == 4
    assert class_worth(Knows(), [{"tokens": tokens % S, "targets": tokens % S}], 4) is None
