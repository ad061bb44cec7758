"""The state space dual in PyTorch against its sequential oracle, and the oracle against loops over numbers."""

import math
from itertools import product

import pytest
import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.kernels.ssd import cpu
from mamba_bio_audio.ops import ssd

B, H, P, G, N = 2, 4, 3, 2, 5
OPTIONAL = ("source", "diagonal", "D", "h0", "reset")


def make_inputs(length=37, *, extras=OPTIONAL, dtype=torch.float64, fastest=1.0):
    """Random inputs with gradients; log decays go down to -`fastest`."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    a = -fastest * torch.rand(B, length, H, generator=generator, dtype=torch.float64)
    inputs = {"x": normal(B, length, H, P), "a": a.to(dtype).requires_grad_()}
    inputs |= {"B": normal(B, length, G, N), "C": normal(B, length, G, N)}
    more = {"source": normal(B, length, H), "diagonal": normal(B, length, H), "D": normal(H), "h0": normal(B, H, P, N)}
    more["reset"] = torch.rand(B, length, generator=generator) < 0.1
    return inputs | {name: more[name] for name in extras}


def run(inputs, backend):
    """Output, final state and the gradient of every input, through output and state alike."""
    y, state = ssd(**inputs, return_state=True, backend=backend)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in (y, state)]
    names = [name for name, t in inputs.items() if t.requires_grad]
    loss = (y * weights[0]).sum() + (state * weights[1]).sum()
    grads = torch.autograd.grad(loss, [inputs[name] for name in names])
    return {"y": y, "state": state, **dict(zip(names, grads, strict=True))}


def assert_close(found, expected, tolerance):
    for name, value in expected.items():
        scale = value.abs().max().item() or 1.0
        error = (found[name] - value).abs().max().item() / scale
        assert error <= tolerance, f"{name}: {error:.2e} > {tolerance:.0e}"
        assert found[name].dtype == value.dtype, name


def test_reference_equals_a_loop_over_numbers():
    inputs = {name: t.detach() for name, t in make_inputs(6, extras=OPTIONAL[:4]).items()}
    y, state = ssd(**inputs, return_state=True, backend="reference")
    row, head, channel = 1, 3, 2
    group = head * G // H
    S = inputs["h0"][row, head, channel].tolist()
    for t in range(6):
        x, decay = inputs["x"][row, t, head, channel].item(), math.exp(inputs["a"][row, t, head].item())
        key, query = (inputs[name][row, t, group].tolist() for name in "BC")
        before = [decay * s for s in S]
        S = [b + inputs["source"][row, t, head].item() * x * k for b, k in zip(before, key, strict=True)]
        own = inputs["diagonal"][row, t, head].item() * x
        out = sum((b + own * k) * q for b, k, q in zip(before, key, query, strict=True))
        assert y[row, t, head, channel].item() == pytest.approx(out + inputs["D"][head].item() * x, rel=1e-12)
    assert state[row, head, channel].tolist() == pytest.approx(S, rel=1e-12)


@pytest.mark.parametrize("extras", [(), ("source",), ("source", "D", "h0"), ("diagonal", "reset"), OPTIONAL])
def test_torch_equals_reference(extras, monkeypatch):
    """Values and gradients, for spans shorter and longer than a chunk."""
    for length, chunk in product((1, 2, 37), (8, 64)):
        monkeypatch.setattr(cpu, "_CHUNK", chunk)
        inputs = make_inputs(length, extras=extras)
        expected = run(inputs, "reference")
        assert_close(run(inputs, "torch"), expected, 1e-12)
        with torch.no_grad():
            y, state = ssd(**inputs, return_state=True, backend="torch")
        assert_close({"y": y, "state": state}, {name: expected[name] for name in ("y", "state")}, 1e-12)


def test_a_group_for_each_head_and_one_for_all():
    inputs = make_inputs(9)
    for groups in (1, H):
        for name in "BC":
            inputs[name] = torch.randn(B, 9, groups, N, dtype=torch.float64, requires_grad=True)
        assert_close(run(inputs, "torch"), run(inputs, "reference"), 1e-12)


def test_fast_decays_keep_their_digits_in_fp32():
    """Sums of log decays reach -500 within a chunk, where a difference of two sums in fp32 has five digits."""
    inputs = make_inputs(200, extras=("source",), dtype=torch.float32, fastest=16.0)
    wide = {name: t.detach().double().requires_grad_() for name, t in inputs.items()}
    expected = {name: t.float() for name, t in run(wide, "reference").items()}
    assert_close(run(inputs, "torch"), expected, 3e-6)


def test_bf16_is_rounded_once():
    inputs = {name: t.detach() for name, t in make_inputs(70, dtype=torch.bfloat16).items()}
    y, state = ssd(**inputs, return_state=True, backend="torch")
    expected, _ = ssd(**inputs, return_state=True, backend="reference")
    assert y.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    assert (y.float() - expected.float()).abs().max() <= 2**-8 * expected.float().abs().max()


def test_second_derivative_names_the_way_out():
    inputs = make_inputs(5, extras=())
    (grad,) = torch.autograd.grad(ssd(**inputs, backend="torch").sum(), inputs["x"], create_graph=True)
    with pytest.raises(RuntimeError, match='backend="reference"'):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("x", lambda t: t[0], r"x must be \(B, L, H, P\)"),
        ("B", lambda t: t[:, :, :1].expand(-1, -1, 3, -1), "G a divisor of the 4 heads"),
        ("C", lambda t: t[..., :2], "C must be"),
        ("a", lambda t: t[..., :1], "a must be"),
        ("source", lambda t: t[:, :2], "source must be"),
        ("D", lambda t: t[:1], "D must be"),
        ("h0", lambda t: t[:1], "h0 must be"),
        ("reset", lambda t: t.float(), "reset must be bool"),
    ],
)
def test_wrong_inputs_are_named(name, change, message):
    inputs = make_inputs(6)
    with pytest.raises(InputError, match=message):
        ssd(**inputs | {name: change(inputs[name])})
