"""Linear head with cross entropy."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mamba_bio_audio.kernels.loss import cpu as module
from mamba_bio_audio.kernels.loss.gradients import apply_loss
from mamba_bio_audio.ops import linear_cross_entropy

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def make_inputs(shape=(2, 9), width=5, vocabulary=7, dtype=torch.float64, ignored=True):
    torch.manual_seed(0)
    x = torch.randn(*shape, width, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(0, vocabulary, shape)
    if ignored:
        targets.view(-1)[::3] = -100
    return x, weight, targets


def run(x, weight, targets, backend):
    loss, count = linear_cross_entropy(x, weight, targets, backend=backend)
    return [loss, count, *torch.autograd.grad(loss * 0.3, [x, weight])]


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_equals_torch(backend):
    x, weight, targets = make_inputs()
    loss, count = linear_cross_entropy(x, weight, targets, backend=backend)
    expected = F.cross_entropy((x @ weight.t()).flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected)
    assert count.dtype == torch.int64
    assert count.item() == (targets != -100).sum()
    flat, _ = linear_cross_entropy(torch.zeros_like(x), weight, targets, backend=backend)
    assert flat.item() == pytest.approx(count.item() * math.log(7))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(), (1,), (2, 9), (2, 3, 5)])
@pytest.mark.parametrize("block", [1, 21, 1 << 20])
def test_torch_equals_reference(monkeypatch, shape, dtype, block):
    monkeypatch.setattr(module, "_BLOCK_LOGITS", block)
    x, weight, targets = make_inputs(shape, dtype=dtype, ignored=shape == (2, 9))
    ours, expected = run(x, weight, targets, "torch"), run(x, weight, targets, "reference")
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert (a - b).abs().max() <= TOLERANCE[dtype] * b.abs().max()


def test_gradcheck():
    x, weight, targets = make_inputs((4,), 3, 5)
    assert torch.autograd.gradcheck(
        lambda x, weight: linear_cross_entropy(x, weight, targets, backend="torch")[0], (x, weight)
    )


def test_all_ignored_is_zero():
    x, weight, targets = make_inputs()
    loss, count, g_x, g_weight = run(x, weight, torch.full_like(targets, -100), "torch")
    assert loss == 0
    assert count == 0
    assert g_x.abs().max() == g_weight.abs().max() == 0


def test_bf16_error_is_that_of_rounding():
    x, weight, targets = make_inputs((64,), 16, 11, torch.bfloat16)
    wide = run(x.detach().double().requires_grad_(), weight.detach().double().requires_grad_(), targets, "reference")
    ours = run(x, weight, targets, "torch")
    assert ours[0].dtype == torch.float32
    assert abs(ours[0].item() - wide[0].item()) < 1e-5 * wide[0].item()
    for a, b in zip(ours[2:], wide[2:], strict=True):
        best = (b.bfloat16().double() - b).norm()
        # One more rounding: gradients are kept in bf16 before they are scaled.
        assert (a.double() - b).norm() <= 1.5 * best


def test_all_logits_never_exist(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_LOGITS", 1 << 12)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    x, weight, targets = make_inputs((2, 1024), 4, 256)
    with Watch():
        loss, _ = linear_cross_entropy(x, weight, targets, backend="torch")
        loss.backward()
    assert largest <= max(1 << 12, x.numel())


def test_two_backwards_and_repeatability():
    x, weight, targets = make_inputs()
    loss, _ = linear_cross_entropy(x, weight, targets)
    first = torch.autograd.grad(loss, [x, weight], retain_graph=True)
    second = torch.autograd.grad(loss, [x, weight])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_strided_inputs():
    x, weight, targets = make_inputs()
    ours = run(
        x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_(),
        weight.detach().t().contiguous().t().requires_grad_(),
        targets.t().contiguous().t(),
        "torch",
    )
    for a, b in zip(ours, run(x, weight, targets, "torch"), strict=True):
        torch.testing.assert_close(a, b)


def test_second_order_names_the_reference():
    x, weight, targets = make_inputs()
    (grad,) = torch.autograd.grad(linear_cross_entropy(x, weight, targets)[0], x, create_graph=True)
    with pytest.raises(RuntimeError, match='backend="reference"'):
        grad.sum().backward()


def test_evaluation_makes_no_gradients():
    asked = []

    def compute(x, weight, targets, ignore_index, need_x, need_weight):
        asked.append((need_x, need_weight))
        return x.sum(), torch.tensor(targets.numel()), None, None

    x, weight = torch.ones(2, 3), torch.ones(4, 3, requires_grad=True)
    with torch.no_grad():
        apply_loss(compute, x, weight, torch.zeros(2, dtype=torch.long), -100)
    apply_loss(compute, x, weight, torch.zeros(2, dtype=torch.long), -100)
    assert asked == [(False, False), (False, True)]
