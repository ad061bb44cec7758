"""Causal convolution: the oracle against torch's own, the torch backend against the oracle."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mamba_bio_audio.kernels.conv import cpu as module
from mamba_bio_audio.ops import causal_conv1d

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
BF16_ERROR_RATIO = 1.5


def make_inputs(
    batch=2, length=65, channels=5, width=4, *, dtype=torch.float64, extras=("bias", "tail", "reset"), seed=0
):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    inputs = {
        "x": normal(batch, length, channels),
        "weight": normal(channels, width),
        "bias": normal(channels),
        "tail": normal(batch, width - 1, channels),
        "reset": torch.rand(batch, length, generator=generator) < 0.2,
    }
    kept = {name: t for name, t in inputs.items() if name in ("x", "weight") or name in extras}
    return {name: t if t.dtype == torch.bool else t.requires_grad_() for name, t in kept.items()}


def run(inputs, backend, activation="silu"):
    out, tail = causal_conv1d(**inputs, return_tail=True, activation=activation, backend=backend)
    wide = torch.promote_types(out.dtype, torch.float32)
    loss = (out.to(wide) * torch.linspace(-1, 1, out.numel()).bfloat16().view(out.shape)).sum()
    loss = loss + tail.to(wide).sin().sum()
    names = [name for name, t in inputs.items() if t.requires_grad]
    grads = torch.autograd.grad(loss, [inputs[name] for name in names], allow_unused=True)
    grads = [torch.zeros_like(inputs[n]) if g is None else g for n, g in zip(names, grads, strict=True)]
    return {"out": out, "new tail": tail, **dict(zip(names, grads, strict=True))}


def assert_close(ours, reference, tolerance):
    for name, expected in reference.items():
        assert ours[name].shape == expected.shape, name
        assert ours[name].dtype == expected.dtype, name
        if expected.numel():
            scale = expected.abs().max().item() or 1.0
            assert (ours[name] - expected).abs().max().item() / scale <= tolerance, name


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("width", range(1, 9))
def test_equals_torch_convolution(width, backend):
    inputs = make_inputs(width=width, extras=("bias",))
    x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
    padded = F.pad(x.transpose(1, 2), (width - 1, 0))
    expected = F.conv1d(padded, weight.unsqueeze(1), bias, groups=5).transpose(1, 2)
    torch.testing.assert_close(causal_conv1d(**inputs, activation=None, backend=backend), expected)
    torch.testing.assert_close(causal_conv1d(**inputs, backend=backend), F.silu(expected))


@pytest.mark.parametrize("length", [1, 2, 3, 7, 63, 64, 65, 257])
@pytest.mark.parametrize("extras", [(), ("tail",), ("reset",), ("bias", "tail", "reset")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_torch_equals_reference(length, extras, dtype):
    inputs = make_inputs(length=length, extras=extras, dtype=dtype)
    assert_close(run(inputs, "torch"), run(inputs, "reference"), TOLERANCE[dtype])


@settings(max_examples=40)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 40),
    channels=st.integers(1, 5),
    width=st.integers(1, 8),
    extras=st.sets(st.sampled_from(["bias", "tail", "reset"])),
    activation=st.sampled_from(["silu", None]),
    block=st.sampled_from([1, 60, 1 << 17]),
    seed=st.integers(0, 1000),
)
def test_torch_equals_reference_on_anything(batch, length, channels, width, extras, activation, block, seed):
    inputs = make_inputs(batch, length, channels, width, extras=extras, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_NUMBERS", block)
        ours = run(inputs, "torch", activation)
    assert_close(ours, run(inputs, "reference", activation), 1e-10)


@settings(max_examples=25)
@given(
    width=st.integers(1, 8),
    cuts=st.lists(st.integers(1, 29), unique=True, max_size=4),
    reset=st.booleans(),
    backend=st.sampled_from(["torch", "reference"]),
)
def test_split_equals_whole(width, cuts, reset, backend):
    inputs = make_inputs(length=30, width=width, extras=("bias", "tail", *(["reset"] if reset else [])))
    whole = run(inputs, backend)
    outs, tail = [], inputs["tail"]
    edges = [0, *sorted(cuts), 30]
    for start, stop in itertools.pairwise(edges):
        piece = {n: t[:, start:stop] if n in ("x", "reset") else t for n, t in inputs.items()}
        out, tail = causal_conv1d(**{**piece, "tail": tail}, return_tail=True, backend=backend)
        outs.append(out)
    out = torch.cat(outs, dim=1)
    loss = (out * torch.linspace(-1, 1, out.numel()).bfloat16().view(out.shape)).sum() + tail.sin().sum()
    names = [name for name in inputs if name != "reset"]
    grads = torch.autograd.grad(loss, [inputs[n] for n in names], allow_unused=True)
    grads = [torch.zeros_like(inputs[n]) if g is None else g for n, g in zip(names, grads, strict=True)]
    assert_close({"out": out, "new tail": tail, **dict(zip(names, grads, strict=True))}, whole, 1e-10)


def test_tail_is_the_last_inputs():
    x = torch.arange(1.0, 6.0).view(1, 5, 1)
    weight = torch.ones(1, 4)
    _, tail = causal_conv1d(x, weight, return_tail=True)
    assert tail.flatten().tolist() == [3, 4, 5]
    _, tail = causal_conv1d(x[:, :2], weight, return_tail=True)
    assert tail.flatten().tolist() == [0, 1, 2]
    _, tail = causal_conv1d(x[:, :1], weight, tail=x[:, 2:], return_tail=True)
    assert tail.flatten().tolist() == [4, 5, 1]
    reset = torch.tensor([[False, False, False, True, False]])
    _, tail = causal_conv1d(x, weight, reset=reset, return_tail=True)
    assert tail.flatten().tolist() == [0, 4, 5]
    _, tail = causal_conv1d(x[:, :1], weight, tail=x[:, 2:], reset=reset[:, 3:4], return_tail=True)
    assert tail.flatten().tolist() == [0, 0, 1]


def test_nan_before_a_reset_does_not_leak():
    inputs = make_inputs(length=20, extras=("reset",))
    x = inputs["x"].detach().clone()
    inputs["reset"] = torch.zeros(2, 20, dtype=torch.bool)
    inputs["reset"][:, 10] = True
    expected = causal_conv1d(**inputs)
    x[:, 9] = float("nan")
    for backend in ("reference", "torch"):
        out = causal_conv1d(**{**inputs, "x": x}, backend=backend)
        torch.testing.assert_close(out[:, 10:], expected[:, 10:])


@pytest.mark.parametrize("width", [2, 4])
def test_gradcheck(width):
    inputs = make_inputs(1, 6, 2, width)
    names = list(inputs)
    assert torch.autograd.gradcheck(
        lambda *t: causal_conv1d(**dict(zip(names, t, strict=True)), return_tail=True, backend="torch"),
        tuple(inputs.values()),
    )


def test_bf16_error_is_that_of_rounding():
    def to(dtype, inputs):
        return {n: t.detach().to(dtype).requires_grad_() if t.is_floating_point() else t for n, t in inputs.items()}

    low = to(torch.bfloat16, make_inputs(length=130))
    truth, ours = run(to(torch.float64, low), "reference"), run(low, "torch")
    assert ours["out"].dtype == ours["new tail"].dtype == torch.bfloat16
    for name, expected in truth.items():
        best = (expected.bfloat16().double() - expected).norm()
        error = (ours[name].double() - expected).norm()
        assert error <= BF16_ERROR_RATIO * best + 1e-6 * expected.norm(), name


def test_strided_inputs_are_read_and_not_mutated():
    inputs = make_inputs()
    expected = run(inputs, "torch")
    strided = dict(inputs)
    strided["x"] = inputs["x"].detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    strided["weight"] = inputs["weight"].detach().t().contiguous().t().requires_grad_()
    before = {name: t.detach().clone() for name, t in strided.items()}
    assert_close(run(strided, "torch"), expected, 1e-12)
    assert all(torch.equal(t, before[name]) for name, t in strided.items())


def test_second_order_names_the_reference():
    inputs = make_inputs()
    (grad,) = torch.autograd.grad(causal_conv1d(**inputs).sum(), inputs["x"], create_graph=True)
    with pytest.raises(RuntimeError, match='backend="reference"'):
        grad.sum().backward()
