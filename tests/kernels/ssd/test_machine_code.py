"""Machine code of the kernels of Mamba-2 for a Hopper GPU, compiled without one."""

import os
import re

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
    "forward_kernel": (255, 32),
    "walk_kernel": (128, 0),
    "hand_on_kernel": (32, 0),
    "values_kernel": (255, 32),
    "maps_kernel": (255, 96),
    "steps_fwd_kernel": (48, 0),
    "steps_bwd_kernel": (48, 0),
    "gated_fwd_kernel": (64, 0),
    "gated_bwd_kernel": (200, 0),
}


def meta(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="meta", requires_grad=True)


def step(batch, length, heads, channels, states):
    """Forward and backward of the dual in bf16 as Mamba-2 calls it; y."""
    inner = heads * channels
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
    return y


@pytest.fixture
def launched(hopper, launches):
    """One launch of each kernel, by name: a training step of one sequence of 2^17 positions in bf16, 8 heads of 64."""
    batch, length, heads, channels, states = 1, 1 << 17, 8, 64, 64
    inner = heads * channels
    y = step(batch, length, heads, channels, states)
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
    """Products of 64 x 64 tiles, as warp group instructions of 16 columns each."""
    for name, products in (("forward_kernel", 4), ("values_kernel", 5), ("maps_kernel", 5), ("walk_kernel", 1)):
        assert machine_code(compile_for(launched[name], 90)).text.count("HGMMA.64x64x16") >= 4 * products, name


@pytest.mark.parametrize("name", ["forward_kernel", "walk_kernel", "values_kernel", "maps_kernel"])
def test_narrow_heads_run_on_the_products_that_a_gpu_was_seen_to_compute_right(name, hopper, launches, compile_for):
    """Of 32 channels and 24 states the tiles, their places in shared memory and the products are those of 64 and 64.

    Triton 3.6 makes wrong code for bf16 of tiles of 32 channels and 64 states.
    """
    found = []
    for channels, states in ((32, 24), (64, 64)):
        launches.clear()
        step(1, 1 << 17, 8, channels, states)
        (launch,) = {launch.name: launch for launch in launches if launch.name == name}.values()
        lines = compile_for(launch, 90).asm["ttgir"].splitlines()
        # Names and places in the source differ; layouts are written out at the top.
        kinds = ("warp_group_dot ", "local_alloc", "memdesc_trans", "memdesc_index")
        kept = [line.split("=", 1)[1] for line in lines if any(kind in line for kind in kinds) and "=" in line]
        layouts = [line for line in lines if line.startswith("#") and "loc" not in line.split("=", 1)[0]]
        found.append((layouts, [re.sub(r"%[\w:]+|loc\(.*\)", "", line).strip() for line in kept]))
    narrow, wide = found
    assert narrow[1] == wide[1]
    shared = [[line for line in layouts if "shared" in line or "mma" in line] for layouts, _ in found]
    assert shared[0] == shared[1]


@pytest.mark.parametrize(("arch", "name"), [(80, "values_kernel"), (100, "forward_kernel"), (120, "forward_kernel")])
def test_compiles_elsewhere(arch, name, launched, compile_for):
    assert compile_for(launched[name], arch).asm["cubin"]
