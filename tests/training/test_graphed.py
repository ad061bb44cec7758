"""Recorded training steps: on a CPU the recorded function runs again, on a GPU the graph is replayed."""

import pytest
import torch
from torch import nn

from mamba_bio_audio.config import load_config
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.training.config import TrainConfig
from mamba_bio_audio.training.graphed import GraphedLoss
from mamba_bio_audio.training.optim import build_optimizer

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def make(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return build_model(ModelConfig(d_model=16, num_layers=2, vocab_size=12), seed=0).to(device)


def batches(count, device, length=40):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(7, 11, (3, length), generator=generator).to(device) for _ in range(count)]


def train(model, loss_of, data):
    """Losses of steps with accumulation over two batches, clipped, and the weights they end in."""
    config = TrainConfig(steps=9, length=40, tokens_per_step=120, lr=1e-2)
    optimizer = build_optimizer(model, config)
    losses = []
    for number, tokens in enumerate(data):
        loss, count = loss_of(tokens, tokens.roll(-1, 1))
        (loss / count / 2).backward()
        losses.append(loss.detach())
        if number % 2:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    return torch.stack(losses), [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("device", DEVICES)
def test_trains_as_without(device):
    plain, graphed = make(device), make(device)
    data = [*batches(6, device), *batches(4, device, length=24), *batches(2, device)]

    def plainly(model, tokens, targets):
        out = model(tokens, targets=targets, logits="none")
        return out.loss_sum, out.count

    step, replayed = GraphedLoss(graphed), []

    def recorded(tokens, targets):
        found = step(tokens, targets)
        replayed.append(found is not None)
        return plainly(graphed, tokens, targets) if found is None else found

    expected = train(plain, lambda tokens, targets: plainly(plain, tokens, targets), data)
    losses, weights = train(graphed, recorded, data)
    # The first batch of every stretch of one shape is not.
    assert replayed == [False, *[True] * 5, False, *[True] * 3, False, True]
    torch.testing.assert_close(losses, expected[0])
    torch.testing.assert_close(weights, expected[1])


@pytest.mark.parametrize("device", DEVICES)
def test_parameters_that_moved_are_recorded_again(device):
    model = make(device)
    step, (tokens, *_) = GraphedLoss(model), batches(1, device)
    targets = tokens.roll(-1, 1)
    for _ in range(2):
        found = step(tokens, targets)
    model.lm_head.weight.data = model.lm_head.weight.data * 2
    assert step(tokens, targets) is None
    expected = model(tokens, targets=targets, logits="none")
    again = step(tokens, targets)
    assert again[0] != found[0]
    torch.testing.assert_close(again[0], expected.loss_sum)
    assert again[1] == expected.count


def test_frozen_and_unused_parameters_get_no_gradient():
    model = make("cpu")
    model.layers[0].norm.weight.requires_grad_(False)
    model.unused = nn.Parameter(torch.zeros(3))
    step, (tokens, *_) = GraphedLoss(model), batches(1, "cpu")
    for _ in range(2):
        found = step(tokens, tokens)
    found[0].backward()
    assert model.layers[0].norm.weight.grad is None
    assert model.unused.grad is None
    assert model.layers[1].norm.weight.grad.abs().sum() > 0


def test_going_back_after_the_next_step_is_an_error():
    step, (a, b, c) = GraphedLoss(make("cpu")), batches(3, "cpu")
    step(a, a)
    first = step(b, b)
    step(c, c)
    with pytest.raises(RuntimeError, match="go back before it"):
        first[0].backward()


def test_what_it_refuses():
    with pytest.raises(InputError, match="dropout"):
        GraphedLoss(nn.Sequential(nn.Dropout(0.1)))
    GraphedLoss(nn.Sequential(nn.Dropout(0.0)))
    with pytest.raises(InputError, match="cuda_graph records whole steps"):
        load_config("dna/tiny", ["data.path=.", "train.cuda_graph=true", "train.stream_chunk=64"])
