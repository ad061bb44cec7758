"""LoRA on the weights: nothing at first, what is trained, one function on every path, and merged weights that equal it."""

import pytest
import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.build import build, to_be_trained
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.low_rank import merged
from mamba_bio_audio.models.streamed import streamed_loss
from mamba_bio_audio.training.graphed import GraphedLoss

MODELS = {
    "mamba": ModelConfig(d_model=32, num_layers=2, vocab_size=12),
    "transformer": ModelConfig(d_model=32, num_layers=1, vocab_size=12, mixer="transformer", options={"heads": 4}),
}
TOKENS = torch.randint(7, 11, (3, 40), generator=torch.Generator().manual_seed(0))


def pair(kind: str = "mamba", rank: int = 4):
    """A model as it is, and adapted."""
    head = HeadConfig(classes=("a", "b"), lora_rank=rank)
    plain = build(MODELS[kind], HeadConfig(classes=("a", "b")), seed=0).double()
    return plain, to_be_trained(build(MODELS[kind], head, seed=0).double(), seed=1)


def stir(model) -> None:
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if name.endswith(".B"):
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


@pytest.mark.parametrize("kind", MODELS)
def test_an_adaptation_begins_as_nothing_and_only_it_is_trained(kind):
    plain, adapted = pair(kind)
    assert torch.equal(plain(TOKENS).logits, adapted(TOKENS).logits)
    trained = {name.rpartition(".")[2] for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained == {"A", "B", "weight", "bias"}
    assert {name for name, p in adapted.named_parameters() if p.requires_grad and "backbone" not in name} == {
        "head.weight",
        "head.bias",
    }
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) < 0.5 * plain.num_parameters()


@pytest.mark.parametrize("kind", MODELS)
def test_merged_weights_compute_the_same(kind):
    plain, adapted = pair(kind)
    stir(adapted)
    tensors = merged(adapted.state_dict())
    assert tensors.keys() == plain.state_dict().keys()
    before = plain(TOKENS).logits
    plain.load_state_dict(tensors)
    after = plain(TOKENS).logits
    assert (after - before).abs().max() > 1e-4
    assert torch.allclose(after, adapted(TOKENS).logits, rtol=1e-12, atol=1e-12)
    assert merged(tensors) == tensors


def test_chunks_and_recorded_steps_give_the_same_gradients():
    _, adapted = pair()
    stir(adapted)
    targets = adapted.some_targets(TOKENS)
    adapted(TOKENS, targets=targets, logits="none").loss_sum.backward()
    whole = {name: p.grad.clone() for name, p in adapted.named_parameters() if p.grad is not None}
    assert any(name.endswith("in_proj.parametrizations.weight.0.A") for name in whole)
    steps = GraphedLoss(adapted)
    for loss in (lambda: streamed_loss(adapted, TOKENS, targets, chunk=13)[0], lambda: steps(TOKENS, targets)[0]):
        adapted.zero_grad()
        loss().backward()
        for name, gradient in whole.items():
            found = dict(adapted.named_parameters())[name].grad
            assert (found - gradient).abs().max() <= 1e-10 * gradient.abs().max() + 1e-14, name


def test_the_updates_are_drawn_by_seed():
    (_, one), (_, other) = pair(), pair()
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_rank_that_is_too_large():
    with pytest.raises(InputError, match=r"head\.lora_rank 400 is not below the width of any projection"):
        pair(rank=400)
    with pytest.raises(ValueError, match="choose one of them"):
        HeadConfig(freeze=True, lora_rank=4)
