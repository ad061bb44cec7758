"""Machine code of the kernels of Mamba-2 for a Hopper GPU, compiled without one."""

import os

import pytest

pytest.importorskip("triton")

import torch

from mamba_bio_audio.kernels.norm.gated_gpu import gated_norm_triton
from mamba_bio_audio.kernels.ssd.inputs import SsdInputs
from mamba_bio_audio.kernels.ssd.launch import make_plan, ssd_triton
from mamba_bio_audio.kernels.ssd.steps import steps_backward, steps_forward

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="compiles for a GPU"),
]

# Most registers of a lane, and bytes of them that it may keep in memory.
LIMITS = {
    "sums_kernel": (64, 0),
    "forward_kernel": (255, 0),
    "walk_kernel": (128, 0),
    "hand_on_kernel": (32, 0),
    "backward_kernel": (255, 128),
    "steps_fwd_kernel": (48, 0),
    "steps_bwd_kernel": (48, 0),
    "gated_fwd_kernel": (64, 0),
    "gated_bwd_kernel": (200, 0),
}


@pytest.fixture
def launched(hopper, launches):
    """One launch of each kernel, by name: a training step of one sequence of 2^17 positions in bf16, 8 heads of 64."""
    batch, length, heads, channels, states = 1, 1 << 17, 8, 64, 64
    inner = heads * channels

    def meta(*shape, dtype=torch.float32):
        return torch.empty(*shape, dtype=dtype, device="meta", requires_grad=True)

    u = meta(batch, length, inner + 2 * states, dtype=torch.bfloat16)
    x, B, C = u.split([inner, states, states], dim=2)
    inputs = SsdInputs(
        x.unflatten(2, (heads, channels)),
        meta(batch, length, heads),
        B.unflatten(2, (1, states)),
        C.unflatten(2, (1, states)),
        meta(batch, length, heads),
        D=meta(heads),
    )
    y, _ = ssd_triton(inputs)
    torch.autograd.grad(y, [t for t in inputs.tensors if t is not None], torch.empty_like(y))
    gate, weight = meta(batch, length, inner, dtype=torch.bfloat16), meta(inner)
    out = gated_norm_triton(y.flatten(2), gate, weight, 1e-5, 1, True)
    torch.autograd.grad(out, gate, torch.empty_like(out))
    plan = make_plan(batch, length, heads, channels, 1, states, torch.bfloat16, torch.device("meta"))
    raw, bias = meta(batch, length, 1160, dtype=torch.bfloat16)[..., -heads:], meta(heads)
    dt, sums = steps_forward(raw, bias, bias, None, plan)
    steps_backward(raw, bias, bias, None, dt, sums, dt, None, raw, plan)
    return {launch.name: launch for launch in launches}


@pytest.mark.parametrize("name", LIMITS)
def test_on_hopper(name, launched, compile_for, machine_code):
    code = machine_code(compile_for(launched[name], 90))
    registers, stack = LIMITS[name]
    assert code.stack <= stack, "spills"
    assert code.registers <= registers, code.registers


def test_products_run_on_the_tensor_cores(launched, compile_for, machine_code):
    """Four products of 64 x 64 tiles forward and seven backward, as warp group instructions of 16 columns each."""
    for name, products in (("forward_kernel", 4), ("backward_kernel", 7), ("walk_kernel", 1)):
        assert machine_code(compile_for(launched[name], 90)).text.count("HGMMA.64x64x16") >= 4 * products, name


@pytest.mark.parametrize(("arch", "name"), [(80, "backward_kernel"), (100, "forward_kernel"), (120, "forward_kernel")])
def test_compiles_elsewhere(arch, name, launched, compile_for):
    assert compile_for(launched[name], arch).asm["cubin"]
