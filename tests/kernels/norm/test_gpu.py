"""The Triton normalisation against the oracle, in Triton's interpreter (a process of its own) and on a GPU."""

import os

import pytest
import torch

triton = pytest.importorskip("triton")

from mamba_bio_audio.kernels.norm import gpu as module  # noqa: E402
from mamba_bio_audio.kernels.norm.gpu import norm_triton, unsupported_reason  # noqa: E402
from mamba_bio_audio.kernels.norm.reference import norm_reference  # noqa: E402

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

FP32_ERROR = 1e-5  # relative L2
BF16_ERROR_RATIO = 1.5  # error over that of the oracle in fp32 on the same inputs
BF16_ERROR_RATIO_TRUNCATED = 3.0  # the interpreter truncates to bf16


def check(
    shape, *, residual=True, dtype=torch.float32, device="cpu", use_stream=True, ratio=BF16_ERROR_RATIO_TRUNCATED
):
    generator = torch.Generator().manual_seed(shape[-1])

    def normal(*size):
        return torch.randn(*size, generator=generator).to(device)

    inputs = {"x": normal(*shape).to(dtype), "weight": normal(shape[-1])}
    if residual:
        inputs["residual"] = normal(*shape)
    g_y, g_stream = normal(*shape).to(dtype), normal(*shape)
    found = []
    for function, as_double in ((norm_triton, False), (norm_reference, True), (norm_reference, False)):
        leaves = {k: (v.double() if as_double else v).clone().requires_grad_() for k, v in inputs.items()}
        y, stream = function(leaves["x"], leaves["weight"], 1e-5, leaves.get("residual"))
        loss = (y.double() * g_y.double()).sum()
        if use_stream:
            loss = loss + (stream.double() * g_stream.double()).sum()
        found.append([y.detach(), stream.detach(), *torch.autograd.grad(loss, list(leaves.values()))])
    off, rounded = (
        [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found[i], found[1], strict=True)] for i in (0, 2)
    )
    if dtype == torch.float32:
        assert max(off) < FP32_ERROR, off
    else:
        assert all(a <= ratio * b + FP32_ERROR for a, b in zip(off, rounded, strict=True)), (off, rounded)
    assert found[0][1].dtype == torch.float32


def test_interpreted(run_interpreted):
    run_interpreted()


@pytest.mark.skipif(not INTERPRETING, reason="runs in the process that test_interpreted starts")
class TestInterpreted:
    @pytest.mark.parametrize("shape", [(1, 1), (2, 7, 5), (3, 64), (300, 16), (5, 700), (2, 3000)])
    @pytest.mark.parametrize("residual", [True, False])
    def test_shapes(self, shape, residual):
        check(shape, residual=residual)

    @pytest.mark.parametrize("residual", [True, False])
    def test_bf16(self, residual):
        check((2, 9, 33), residual=residual, dtype=torch.bfloat16)

    @pytest.mark.parametrize("programs", [1, 2])
    def test_programs_with_several_tiles(self, monkeypatch, programs):
        """Three tiles of 128 rows for one program of backward, or two and one for two of them."""
        monkeypatch.setattr(module, "_BACKWARD_PROGRAMS", programs)
        check((300, 16))

    def test_stream_unused(self):
        check((5, 8), use_stream=False)


def test_what_it_refuses():
    assert unsupported_reason(torch.zeros(2, 3), torch.zeros(3), None) is None
    assert "float64" in unsupported_reason(torch.zeros(2, 3, dtype=torch.float64), torch.zeros(3), None)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETING or not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("shape", [(4000, 256), (3, 50, 1000), (7, 4096)])
def test_gpu(shape, residual, dtype):
    check(shape, residual=residual, dtype=dtype, device="cuda", ratio=BF16_ERROR_RATIO)


def test_warps_are_a_power_of_two_up_to_8():
    found = {width: module._tile(width) for width in range(1, module.MAX_CHANNELS + 1)}
    assert {warps for _, _, warps in found.values()} <= {1, 2, 4, 8}
    assert all(block >= width and block * rows >= 2048 for width, (block, rows, _) in found.items())
