"""RMS normalisation with residual stream."""

import pytest
import torch
import torch.nn.functional as F

from mamba_bio_audio.ops import rms_norm

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def make_inputs(shape=(2, 7, 5), dtype=torch.float64, residual=True):
    torch.manual_seed(0)
    inputs = {"x": torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()}
    inputs["weight"] = torch.randn(shape[-1], dtype=torch.float64).to(dtype).requires_grad_()
    if residual:
        stream = torch.float64 if dtype == torch.float64 else torch.float32
        inputs["residual"] = torch.randn(shape, dtype=torch.float64).to(stream).requires_grad_()
    return inputs


def run(inputs, backend, eps=1e-5):
    result = rms_norm(**inputs, eps=eps, backend=backend)
    y, stream = result if isinstance(result, tuple) else (result, torch.zeros((), dtype=torch.float64))
    wide = torch.promote_types(y.dtype, torch.float32)
    loss = (y.to(wide) * torch.linspace(-1, 1, y.numel(), dtype=wide).view(y.shape)).sum() + stream.sin().sum()
    return {
        "y": y,
        "stream": stream,
        **dict(zip(inputs, torch.autograd.grad(loss, list(inputs.values())), strict=True)),
    }


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_equals_torch(backend):
    inputs = make_inputs(residual=False)
    expected = F.rms_norm(inputs["x"], (5,), inputs["weight"], 1e-3)
    torch.testing.assert_close(rms_norm(**inputs, eps=1e-3, backend=backend), expected)


@pytest.mark.parametrize("shape", [(1,), (5,), (3, 64), (2, 1, 33), (2, 3, 4, 8)])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_torch_equals_reference(shape, residual, dtype):
    inputs = make_inputs(shape, dtype, residual)
    ours, expected = run(inputs, "torch"), run(inputs, "reference")
    for name, value in expected.items():
        assert ours[name].dtype == value.dtype
        error = (ours[name] - value).abs().max()
        assert error <= TOLERANCE[dtype] * max(value.abs().max().item(), 1e-2), name


def test_residual_stream_is_the_sum_in_fp32():
    inputs = make_inputs(dtype=torch.bfloat16)
    y, stream = rms_norm(**inputs)
    assert y.dtype == torch.bfloat16
    assert stream.dtype == torch.float32
    assert torch.equal(stream, inputs["x"].float() + inputs["residual"])


@pytest.mark.parametrize("residual", [False, True])
def test_gradcheck(residual):
    inputs = make_inputs((2, 3, 4), residual=residual)
    names = list(inputs)
    assert torch.autograd.gradcheck(
        lambda *t: rms_norm(**dict(zip(names, t, strict=True)), backend="torch"), tuple(inputs.values())
    )


def test_only_the_stream_used():
    inputs = make_inputs()
    _, stream = rms_norm(**inputs)
    grads = torch.autograd.grad(stream.sum(), [inputs["x"], inputs["residual"]])
    assert all(torch.equal(g, torch.ones_like(g)) for g in grads)


def test_bf16_error_is_that_of_rounding():
    low = make_inputs((64, 33), torch.bfloat16)
    wide = {n: t.detach().double().requires_grad_() for n, t in low.items()}
    truth, ours = run(wide, "reference"), run(low, "torch")
    for name in ("y", "x", "weight"):
        best = (truth[name].bfloat16().double() - truth[name]).norm()
        assert (ours[name].double() - truth[name]).norm() <= 1.5 * best + 1e-6 * truth[name].norm(), name


def test_zero_rows_and_strides_and_no_mutation():
    inputs = make_inputs((3, 4, 6))
    x = inputs["x"].detach().transpose(0, 1)
    x[0] = 0
    residual = torch.zeros_like(x)
    before = x.clone()
    y, _ = rms_norm(x, inputs["weight"], residual=residual, backend="torch")
    assert torch.equal(x, before)
    assert torch.equal(y[0], torch.zeros_like(y[0]))
    torch.testing.assert_close(y, rms_norm(x, inputs["weight"], backend="reference"))


def test_second_order_names_the_reference():
    inputs = make_inputs(residual=False)
    (grad,) = torch.autograd.grad(rms_norm(**inputs).sum(), inputs["x"], create_graph=True)
    with pytest.raises(RuntimeError, match='backend="reference"'):
        grad.sum().backward()
