"""Machine code of all kernels but those of scans and loss, which have tests of their own, compiled without a GPU."""

import os

import pytest

pytest.importorskip("triton")

import torch

from mamba_bio_audio.kernels.conv import gpu as conv
from mamba_bio_audio.kernels.norm.gpu import norm_triton
from mamba_bio_audio.kernels.scan.split_bc import split_bc

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="compiles for a GPU"),
]

# Most registers of a lane: what Triton 3.6.0 and 3.8.0 reach, whichever is worse, and a few.
LIMITS = {
    "conv_fwd_kernel": 70,
    "conv_bwd_kernel": 132,
    "norm_fwd_kernel": 60,
    "norm_bwd_kernel": 122,
    "short chunk_state_kernel": 168,
    "chunk_end_kernel": 168,
    "carry_kernel": 74,
    "complex chunk_state_kernel": 170,
    "complex carry_kernel": 98,
    "split_bc_kernel": 34,
    "planes_kernel": 40,
    "complex planes_kernel": 48,
    "turn_kernel": 40,
    "parts_sum_kernel": 48,
    "rows_sum_kernel": 48,
    "scan_short_kernel": 128,  # more would not leave room for sixteen warps
}
# Bytes of a lane that do not fit: of Triton 3.8.0.
SPILLS = {"scan_short_kernel": 8}


def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(*shape, dtype=dtype, device="meta")


@pytest.fixture
def launched(launch_scan, launches):
    """One launch of each kernel, by name: a training step of 2^20 positions in bf16 with packed sequences."""
    found = {}
    # One sequence of the scans goes in chunks, long ones or short; the last of two launches is that of backward, with a gate.
    scans = (
        ("", "real selective", 1 << 20),
        ("short ", "real selective", 1 << 16),
        ("complex ", "complex selective", 1 << 20),
    )
    for prefix, kind, length in scans:
        _, forward, backward = launch_scan(kind, (1, length, 512, 16))
        found |= {prefix + launch.name: launch for launch in forward + backward}
    for launch in launch_scan("real selective", (1, 2048, 1024, 16))[1]:
        found[launch.name] = launch
    launches.clear()
    xz, g, dxz = empty(1, 1 << 20, 1024), empty(1, 1 << 20, 512), empty(1, 1 << 20, 1024)
    weight, bias = empty(512, 4, dtype=torch.float32), empty(512, dtype=torch.float32)
    given = (xz[..., :512], weight, bias, empty(1, 3, 512), empty(1, 1 << 20, dtype=torch.uint8), True)
    conv.conv_forward(*given)
    conv.conv_backward(*given, g, dx=dxz[..., :512])
    x, residual = empty(1 << 20, 256).requires_grad_(), empty(1 << 20, 256, dtype=torch.float32).requires_grad_()
    y, stream = norm_triton(x, empty(256, dtype=torch.float32).requires_grad_(), 1e-5, residual)
    torch.autograd.grad((y, stream), (x, residual), (torch.empty_like(y), torch.empty_like(stream)))
    split_bc(empty(1, 1 << 20, 40), 16)
    return found | {launch.name: launch for launch in launches}


@pytest.mark.parametrize("name", LIMITS)
def test_on_hopper(name, launched, compile_for, machine_code):
    code = machine_code(compile_for(launched[name], 90))
    assert code.stack <= SPILLS.get(name, 0), "spills"
    assert code.registers <= LIMITS[name], code.registers


def test_nothing_changes_lanes_in_one_launch(launched, compile_for):
    """With another layout for some of its loads, which Triton 3.6 chose at first, the loops go through shared memory."""
    assert "convert_layout" not in compile_for(launched["scan_short_kernel"], 90).asm["ttgir"]


@pytest.mark.parametrize(("first", "arch"), enumerate([80, 100, 120]))
def test_compiles_elsewhere(first, arch, launched, compile_for):
    """Every kernel on one of them, by turns; none has a part that is written for one of them."""
    for name in list(LIMITS)[first::3]:
        assert compile_for(launched[name], arch).asm["cubin"]
