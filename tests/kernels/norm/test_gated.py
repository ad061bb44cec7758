"""The gated norm in PyTorch and in Triton (interpreted in a process of its own, and on a GPU) against the oracle."""

import os

import pytest
import torch
import torch.nn.functional as F

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.kernels.norm.gated import gated_norm_reference, gated_norm_torch
from mamba_bio_audio.ops import gated_rms_norm

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
FP32_ERROR = 1e-5  # relative L2
BF16_ERROR_RATIO = 1.5  # error over that of the oracle in fp32 on the same inputs
BF16_ERROR_RATIO_TRUNCATED = 3.0  # the interpreter truncates to bf16


def results(function, inputs, g, groups, gate_first, as_double=False):
    leaves = [(t.double() if as_double else t).detach().clone().requires_grad_() for t in inputs]
    y = function(*leaves, 1e-5, groups, gate_first)
    return [y.detach(), *torch.autograd.grad((y.double() * g.double()).sum(), leaves)]


def check(function, shape, groups, gate_first, *, dtype=torch.float32, device="cpu", ratio=BF16_ERROR_RATIO_TRUNCATED):
    generator = torch.Generator().manual_seed(shape[-1])
    x, gate, g = (torch.randn(*shape, generator=generator).to(device, dtype) for _ in range(3))
    inputs = x, gate, torch.randn(shape[-1], generator=generator).to(device)
    found = results(function, inputs, g, groups, gate_first)
    exact = results(gated_norm_reference, inputs, g, groups, gate_first, as_double=True)
    rounded = results(gated_norm_reference, inputs, g, groups, gate_first)
    off, allowed = (
        [((a.double() - b).norm() / b.norm()).item() for a, b in zip(those, exact, strict=True)]
        for those in (found, rounded)
    )
    assert [t.dtype for t in found] == [t.dtype for t in rounded]
    if dtype == torch.float32:
        assert max(off) < FP32_ERROR, off
    else:
        assert all(a <= ratio * b + FP32_ERROR for a, b in zip(off, allowed, strict=True)), (off, allowed)
    return found


def test_reference_by_hand():
    x, gate, weight = (torch.randn(6, dtype=torch.float64) for _ in range(3))
    u = x * F.silu(gate)
    expected = [u[i] / (u[i // 3 * 3 : i // 3 * 3 + 3].square().mean() + 1e-3).sqrt() * weight[i] for i in range(6)]
    torch.testing.assert_close(gated_norm_reference(x, gate, weight, 1e-3, 2, True), torch.stack(expected))
    late = F.rms_norm(x, (6,), weight, 1e-3) * F.silu(gate)
    torch.testing.assert_close(gated_norm_reference(x, gate, weight, 1e-3, 1, False), late)


@pytest.mark.parametrize("gate_first", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_torch(groups, gate_first):
    check(gated_norm_torch, (2, 7, 12), groups, gate_first)
    check(gated_norm_torch, (2, 7, 12), groups, gate_first, dtype=torch.bfloat16)
    inputs = [torch.randn(4, 6, dtype=torch.float64, requires_grad=True) for _ in "xg"]
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda *t: gated_norm_torch(*t, 1e-5, groups, gate_first), (*inputs, weight))


def test_second_derivative_names_the_way_out():
    x, gate = torch.randn(2, 3, 4, requires_grad=True).unbind(0)
    (grad,) = torch.autograd.grad(gated_rms_norm(x, gate, torch.ones(4)).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='backend="reference"'):
        grad.sum().backward()


def test_wrong_inputs_are_named():
    x, weight = torch.randn(2, 3, 4), torch.ones(4)
    with pytest.raises(InputError, match="D a multiple of 3 groups"):
        gated_rms_norm(x, x, weight, groups=3)
    with pytest.raises(InputError, match="gate must be"):
        gated_rms_norm(x, x[0], weight)
    with pytest.raises(InputError, match="weight must be"):
        gated_rms_norm(x, x, weight[:2])


def test_interpreted(run_interpreted):
    run_interpreted()


@pytest.mark.skipif(not INTERPRETING, reason="runs in the process that test_interpreted starts")
class TestInterpreted:
    @pytest.mark.parametrize("gate_first", [True, False])
    @pytest.mark.parametrize(("shape", "groups"), [((1, 3), 1), ((2, 7, 5), 1), ((3, 70, 48), 4), ((2, 3, 3000), 1)])
    def test_shapes(self, shape, groups, gate_first):
        check(kernel(), shape, groups, gate_first)

    def test_bf16(self):
        check(kernel(), (2, 9, 40), 2, True, dtype=torch.bfloat16)

    def test_rows_of_a_larger_tensor(self):
        """As the layer calls it: the gate is a part of the projection's rows."""
        x, wide = torch.randn(2, 9, 8), torch.randn(2, 9, 30)
        weight = torch.randn(8)
        found = kernel()(x, wide[..., 11:19], weight, 1e-5, 1, True)
        assert torch.equal(found, kernel()(x, wide[..., 11:19].contiguous(), weight, 1e-5, 1, True))

    def test_writes_where_it_is_told_and_the_output_again(self):
        from mamba_bio_audio.kernels.norm.gated_gpu import gated_backward, gated_forward

        x, gate, g = torch.randn(3, 2, 9, 8).unbind(0)
        weight, wide, y = torch.randn(8), torch.zeros(2, 9, 20), torch.empty(2, 9, 8)
        expected = gated_backward(x, gate, weight, g, 1e-5, 2, True)
        found = gated_backward(x, gate, weight, g, 1e-5, 2, True, wide[..., 3:11], y)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)
        assert not wide[..., :3].any()
        assert not wide[..., 11:].any()
        assert torch.equal(y, gated_forward(x, gate, weight, 1e-5, 2, True))


def kernel():
    from mamba_bio_audio.kernels.norm.gated_gpu import gated_norm_triton

    return gated_norm_triton


def test_what_it_refuses():
    pytest.importorskip("triton")
    from mamba_bio_audio.kernels.norm.gated_gpu import unsupported_reason

    x, weight = torch.zeros(1, 2, 6), torch.zeros(6)
    assert unsupported_reason(x, x, weight, 2) is None
    assert unsupported_reason(x, x, weight, 3) == "3 groups"
    assert "float64" in unsupported_reason(x.double(), x, weight, 1)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETING or not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("gate_first", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "groups"), [((2, 700, 512), 1), ((3, 70, 48), 4), ((1, 3000), 1)])
def test_gpu(shape, groups, dtype, gate_first):
    found = check(kernel(), shape, groups, gate_first, dtype=dtype, device="cuda", ratio=BF16_ERROR_RATIO)
    again = check(kernel(), shape, groups, gate_first, dtype=dtype, device="cuda", ratio=BF16_ERROR_RATIO)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
