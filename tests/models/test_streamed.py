"""Streamed backpropagation equals backpropagation through the whole sequence."""

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.heads import Classifier
from mamba_bio_audio.models.streamed import Chunking, _Totals, streamed_loss

LENGTH = 49
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def make(mixer="mamba", dtype=torch.float64, recompute="none"):
    model = build_model(ModelConfig(d_model=12, num_layers=3, vocab_size=12, mixer=mixer), seed=0).to(dtype)
    nn.init.normal_(model.embedding.weight, generator=torch.Generator().manual_seed(0))
    model.recompute = recompute
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(12, (2, LENGTH + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    targets[0, 5:20] = -100
    return model, tokens[:, :-1], targets


def gradients(model, loss, scale=0.37):
    model.zero_grad()
    (loss * scale).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same(actual, expected, tolerance):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        error = (actual[name] - value).norm() / value.norm()
        assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("chunk", [49, 25, 17, 7, 10, 1, 100], ids=lambda c: f"T={c}")
def test_equals_the_whole(dtype, chunk):
    """1, 2, 3 and 7 chunks, ragged last ones, single positions."""
    model, tokens, targets = make(dtype=dtype)
    whole = model(tokens, targets=targets, logits="none")
    expected = gradients(model, whole.loss_sum)
    loss, count, state = streamed_loss(model, tokens, targets, chunk=chunk)
    assert count == whole.count
    assert torch.allclose(loss, whole.loss_sum, rtol=TOLERANCE[dtype])
    for actual, end in zip(state, whole.state, strict=True):
        assert torch.allclose(actual.ssm, end.ssm, atol=1e-5)
    assert_same(gradients(model, loss), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("mixer", ["mamba-complex", "s4d", "s4d-real"])
@pytest.mark.parametrize("recompute", ["none", "layer"])
@pytest.mark.parametrize("offload", [False, True])
def test_every_constant_layer_with_resets(mixer, recompute, offload):
    model, tokens, targets = make(mixer, recompute=recompute)
    reset = torch.zeros(2, LENGTH, dtype=torch.bool)
    reset[0, 16] = reset[1, 17] = reset[1, 30] = True
    expected = gradients(model, model(tokens, targets=targets, reset=reset, logits="none").loss_sum)
    loss, _, _ = streamed_loss(model, tokens, targets, chunk=16, reset=reset, how=Chunking(offload=offload))
    assert_same(gradients(model, loss), expected, 1e-10)


def test_continues_from_a_state():
    model, tokens, targets = make()
    first = model(tokens[:, :20])
    whole = model(tokens, targets=targets, logits="none").loss_sum
    head = model(tokens[:, :20], targets=targets[:, :20], logits="none").loss_sum
    loss, _, _ = streamed_loss(model, tokens[:, 20:], targets[:, 20:], chunk=8, state=first.state)
    assert torch.allclose(loss, whole - head, rtol=1e-10)
    loss.backward()


def test_one_hook_call_per_parameter_and_accumulation():
    model, tokens, targets = make()
    calls = []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: calls.append(name))
    once = gradients(model, streamed_loss(model, tokens, targets, chunk=11)[0])
    assert sorted(calls) == sorted(name for name, _ in model.named_parameters())
    streamed_loss(model, tokens, targets, chunk=11)[0].mul(0.37).backward()
    assert_same({n: p.grad for n, p in model.named_parameters()}, {n: 2 * g for n, g in once.items()}, 1e-12)


def test_autocast_is_replayed_in_backward():
    """Every chunk runs in bf16 both times, and the gradient is that of the chunks one after another under autocast."""
    model, tokens, targets = make(dtype=torch.float32)
    seen = []
    model.layers[1].mixer.register_forward_hook(
        lambda _, __, out: seen.append((out[0].dtype, torch.is_grad_enabled(), torch.is_autocast_cache_enabled()))
    )
    with torch.autocast("cpu", torch.bfloat16):
        loss, _, _ = streamed_loss(model, tokens, targets, chunk=16)
    actual = gradients(model, loss)
    # Three chunks and a fourth, which keeps its graph; then the three again. No cast outlives the chunk that made it.
    assert seen == [(torch.bfloat16, grad, False) for grad in (False, False, False, True, True, True, True)]

    state, total = None, 0.0
    for low in range(0, LENGTH, 16):
        span = (slice(None), slice(low, low + 16))
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            out = model(tokens[span], state, targets=targets[span], logits="none")
        total, state = total + out.loss_sum, out.state
    expected = gradients(model, total)
    assert_same(actual, expected, 1e-5)
    # Rounding to bf16 is no small matter, or this would not tell.
    fp32 = gradients(model, model(tokens, targets=targets, logits="none").loss_sum)
    assert min((expected[n] - g).norm() / g.norm() for n, g in fp32.items()) > 1e-4


def test_many_small_gradients_of_narrow_parameters_add_up():
    """In bf16 1 + 2^-9 is 1, however often; the total of 256 of them is 1.5."""
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    totals = _Totals((parameter, parameter))
    totals.add((torch.ones_like(parameter), None))
    for _ in range(256):
        totals.add((torch.full_like(parameter, 2.0**-9), None))
    found, none = totals.gradients()
    assert none is None
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, torch.full_like(parameter, 1.5))


def test_frozen_parameters_get_no_gradient():
    model, tokens, targets = make()
    model.layers[0].requires_grad_(False)
    streamed_loss(model, tokens, targets, chunk=9)[0].backward()
    assert all(p.grad is None for p in model.layers[0].parameters())
    assert all(p.grad is not None for p in model.layers[1].parameters())


def test_keeps_little():
    """Between forward and backward only the last chunk's graph is alive, besides the states."""
    model, tokens, targets = make(dtype=torch.float32)

    def kept(loss_of) -> int:
        sizes = []

        def pack(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss_of()
        return sum(sizes)

    parameters = sum(p.numel() for p in model.parameters())
    whole = kept(lambda: model(tokens, targets=targets, logits="none"))
    streamed = kept(lambda: streamed_loss(model, tokens, targets, chunk=7))
    assert streamed <= parameters + 1.3 * kept(lambda: model(tokens[:, :7], targets=targets[:, :7], logits="none"))
    assert whole > 2 * streamed


def test_changing_parameters_before_backward_is_an_error():
    model, tokens, targets = make()
    loss, _, _ = streamed_loss(model, tokens, targets, chunk=9)
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_going_back_twice_is_an_error():
    model, tokens, targets = make()
    loss, _, _ = streamed_loss(model, tokens, targets, chunk=9)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="called twice"):
        loss.backward()


def test_models_that_cannot_stream_say_so():
    model, tokens, targets = make()
    with pytest.raises(InputError, match="choose 1 or more"):
        streamed_loss(model, tokens, targets, chunk=0)
    with pytest.raises(InputError, match="constant size"):
        streamed_loss(nn.Linear(2, 2), tokens, targets, chunk=4)


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
@pytest.mark.parametrize("chunk", [49, 10])
def test_groups_of_rows_are_the_same_sum(rows, chunk):
    """Law 4: what is put through at a time decides the memory only."""
    model, tokens, targets = make()
    tokens, targets = tokens.repeat(3, 1)[:5].roll(1, 1), targets.repeat(3, 1)[:5]
    tokens[1] = tokens[1].flip(0)
    reset = torch.zeros_like(tokens, dtype=torch.bool)
    reset[3, 7] = True
    before = model(tokens).state
    whole = model(tokens, before, targets=targets, reset=reset, logits="none")
    loss, count, state = streamed_loss(
        model, tokens, targets, chunk=chunk, how=Chunking(rows), state=before, reset=reset
    )
    assert count == whole.count
    for actual, end in zip(state, whole.state, strict=True):
        assert torch.allclose(actual.ssm, end.ssm)
        assert torch.allclose(actual.tail, end.tail)
    expected = gradients(model, model(tokens, _detached(before), targets=targets, reset=reset, logits="none").loss_sum)
    assert_same(gradients(model, loss), expected, 1e-10)


def _detached(state):
    return tree_map(torch.Tensor.detach, state)


class Dropping(nn.Module):
    """A language model with dropout on its inputs' embeddings."""

    streaming = "constant"

    def __init__(self):
        super().__init__()
        self.model, _, _ = make()
        self.model.embedding = nn.Sequential(self.model.embedding, nn.Dropout(0.4))

    def forward(self, *arguments, **options):
        return self.model(*arguments, **options)


@pytest.mark.parametrize("rows", [None, 1])
def test_random_draws_are_replayed(rows):
    """The gradient is that of the draws of pass 1, and the generator moves on once."""
    model, (_, tokens, targets) = Dropping(), make()
    torch.manual_seed(3)
    loss, _, _ = streamed_loss(model, tokens, targets, chunk=10, how=Chunking(rows))
    after = torch.get_rng_state()
    actual = gradients(model, loss)
    assert torch.equal(torch.get_rng_state(), after)

    torch.manual_seed(3)
    total = 0.0
    for group in [slice(None)] if rows is None else [slice(0, 1), slice(1, 2)]:
        state = None
        for low in range(0, LENGTH, 10):
            span = (group, slice(low, low + 10))
            out = model(tokens[span], state, targets=targets[span], logits="none")
            total, state = total + out.loss_sum, out.state
    assert torch.allclose(loss, total, rtol=1e-12)
    assert_same(actual, gradients(model, total), 1e-10)
    model.eval()
    torch.manual_seed(4)
    assert torch.equal(
        streamed_loss(model, tokens, targets, chunk=10)[0], streamed_loss(model, tokens, targets, chunk=10)[0]
    )


def test_a_target_at_the_last_position_only():
    """As classifiers have it: chunks without any target pass the gradient of the state through."""
    model, tokens, targets = make()
    targets[:, :-1] = -100
    expected = gradients(model, model(tokens, targets=targets, logits="none").loss_sum)
    loss, count, _ = streamed_loss(model, tokens, targets, chunk=10)
    assert count == 2
    assert_same(gradients(model, loss), expected, 1e-10)


@pytest.mark.parametrize("pool", ["mean", "max", "last"])
def test_classifiers(pool):
    """The label stands at the last real position of each row, padding follows."""
    model, tokens, targets = make()
    torch.manual_seed(0)
    model = Classifier(model, HeadConfig(pool=pool, classes=("a", "b", "c"))).double()
    targets = torch.full_like(targets, -100)
    targets[0, 48], targets[1, 33] = 2, 0
    expected = gradients(model, model(tokens, targets=targets, logits="none").loss_sum)
    loss, count, _ = streamed_loss(model, tokens, targets, chunk=10)
    assert count == 2
    assert_same(gradients(model, loss), expected, 1e-10)


def test_truncation_is_another_gradient():
    """Of each chunk's loss alone, from the state as it was."""
    model, tokens, targets = make()
    exact = gradients(model, streamed_loss(model, tokens, targets, chunk=10)[0])
    loss, _, _ = streamed_loss(model, tokens, targets, chunk=10, how=Chunking(truncate=True))
    actual = gradients(model, loss)
    state, total = None, 0.0
    for low in range(0, LENGTH, 10):
        span = (slice(None), slice(low, low + 10))
        out = model(tokens[span], state, targets=targets[span], logits="none")
        total, state = total + out.loss_sum, _detached(out.state)
    assert_same(actual, gradients(model, total), 1e-10)
    name = "layers.0.mixer.A_log"
    assert (actual[name] - exact[name]).norm() > 1e-3 * exact[name].norm()
