"""The Triton convolution against the oracle, in Triton's interpreter (a process of its own) and on a GPU."""

import os

import pytest
import torch

triton = pytest.importorskip("triton")

from mamba_bio_audio.kernels.conv import gpu as module  # noqa: E402
from mamba_bio_audio.kernels.conv.gpu import conv_triton, unsupported_reason  # noqa: E402
from mamba_bio_audio.kernels.conv.reference import conv_reference  # noqa: E402

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

FP32_ERROR = 1e-5  # relative L2
BF16_ERROR_RATIO = 1.5  # error over that of the oracle in fp32 on the same inputs
BF16_ERROR_RATIO_TRUNCATED = 3.0  # the interpreter truncates to bf16


def make_inputs(batch, length, channels, width, dtype=torch.float32, leave_out=(), device="cpu"):
    generator = torch.Generator().manual_seed(length + channels)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    inputs = {
        "x": normal(batch, length, channels).to(dtype),
        "weight": normal(channels, width),
        "bias": normal(channels),
        "tail": normal(batch, width - 1, channels).to(dtype),
        "reset": torch.rand(batch, length, generator=generator) < 0.15,
    }
    return {k: v.to(device) for k, v in inputs.items() if k not in leave_out}


def results(function, inputs, activation="silu", as_double=False):
    """Output and gradients, by name."""
    leaves = {k: v.double() if as_double else v for k, v in inputs.items() if k != "reset"}
    leaves = {k: v.clone().requires_grad_() for k, v in leaves.items()}
    out = function(**leaves, activation=activation, reset=inputs.get("reset"))
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.device).to(inputs["x"].dtype)
    grads = torch.autograd.grad((out.double() * g.double()).sum(), list(leaves.values()))
    return {"out": out.detach(), **{f"d{k}": v for k, v in zip(leaves, grads, strict=True)}}


def errors(found, exact):
    return {k: ((found[k].double() - e).norm() / e.norm().clamp_min(1e-30)).item() for k, e in exact.items()}


def check(inputs, activation="silu", ratio=BF16_ERROR_RATIO_TRUNCATED):
    found = results(conv_triton, inputs, activation)
    exact = results(conv_reference, inputs, activation, as_double=True)
    off = errors(found, exact)
    if inputs["x"].dtype == torch.float32:
        assert max(off.values()) < FP32_ERROR, off
    else:
        rounded = errors(results(conv_reference, inputs, activation), exact)
        assert all(off[k] <= ratio * rounded[k] + FP32_ERROR for k in off), (off, rounded)
    return found


@pytest.mark.slow  # interprets the kernels
def test_interpreted(run_interpreted):
    run_interpreted()


@pytest.mark.skipif(not INTERPRETING, reason="runs in the process that test_interpreted starts")
class TestInterpreted:
    @pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 63, 64, 65, 130])
    def test_lengths(self, length):
        check(make_inputs(1, length, 5, 4))

    @pytest.mark.parametrize("width", [2, 3, 8])
    def test_widths(self, width):
        check(make_inputs(2, 67, 33, width))

    @pytest.mark.parametrize(("length", "channels"), [(130, 130), (70, 260)])
    def test_several_blocks_of_channels_and_steps(self, length, channels):
        """Two and three blocks of 128 channels, three and two of 64 steps, two rows of the batch."""
        check(make_inputs(2, length, channels, 4))

    def test_long_pieces_of_backward(self, monkeypatch):
        """Where enough programs are left, backward takes 256 steps each: two pieces of two blocks of channels."""
        monkeypatch.setattr(module, "_BACKWARD_PROGRAMS", 4)
        check(make_inputs(1, 270, 130, 4))

    @pytest.mark.parametrize("leave_out", [("bias", "tail", "reset"), ("tail",), ("reset",), ("bias",)])
    @pytest.mark.parametrize("activation", ["silu", None])
    def test_optional_inputs(self, leave_out, activation):
        check(make_inputs(1, 20, 5, 4, leave_out=leave_out), activation)

    def test_bf16(self):
        check(make_inputs(1, 65, 8, 4, dtype=torch.bfloat16))

    def test_rows_of_a_larger_tensor(self):
        inputs = make_inputs(1, 9, 8, 4)
        x = torch.cat([inputs["x"], inputs["x"]], dim=-1)[..., :8]
        assert torch.equal(conv_triton(**{**inputs, "x": x}), conv_triton(**inputs))

    def test_second_derivative_names_the_way_out(self):
        inputs = make_inputs(1, 5, 3, 4, leave_out=("reset",))
        x = inputs["x"].requires_grad_()
        (grad,) = torch.autograd.grad(conv_triton(**inputs).sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match='backend="reference"'):
            grad.sum().backward()


def test_a_program_of_forward_walks_few_steps_where_there_are_few():
    assert [module.forward_rows(length) for length in (1, 4, 5, 64, 1 << 20)] == [4, 4, 32, 32, 32]
    # The loop is unrolled, so a program's steps are a multiple of that.
    assert module._ROWS % module._AT_ONCE == 0
    assert module._FEW_ROWS <= module._AT_ONCE


def test_what_it_refuses():
    assert unsupported_reason(torch.zeros(1, 2, 3), torch.zeros(3, 4)) is None
    assert "float64" in unsupported_reason(torch.zeros(1, 2, 3, dtype=torch.float64), torch.zeros(3, 4))
    assert unsupported_reason(torch.zeros(1, 2, 3), torch.zeros(3, 9)) == "width 9"


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETING or not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("length", "channels", "width"), [(257, 300, 4), (1, 5, 4), (4, 130, 4), (130, 64, 8), (65, 33, 2)]
)
def test_gpu(length, channels, width, dtype):
    inputs = make_inputs(2, length, channels, width, dtype=dtype, device="cuda")
    found = check(inputs, ratio=BF16_ERROR_RATIO)
    again = results(conv_triton, inputs)
    assert all(torch.equal(found[k], again[k]) for k in found)
