"""Machine code of all kernels but those of scans and loss, which have tests of their own, compiled without a GPU."""

import os

import pytest

pytest.importorskip("triton")

from mamba_bio_audio.kernels import causal_conv1d_triton as conv
from mamba_bio_audio.kernels import rms_norm_triton as norm
from mamba_bio_audio.kernels.selective_scan.general_chunks import (
    general_chunk_kernel,
    pair_carry_kernel,
)
from mamba_bio_audio.kernels.selective_scan.split_bc import split_bc_kernel
from mamba_bio_audio.kernels.selective_scan.triton_fwd import carry_kernel, chunk_state_kernel

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="compiles for a GPU"),
]

D = 512
CONV = {
    "D": D, "W": 4, "BD": 128, "ROWS": 64, "UNROLL": 4, "X_ROW": 2 * D, "SILU": True, "HAS_BIAS": True, "HAS_TAIL": True,
    "HAS_RESET": True,
}  # fmt: skip
NORM = {"D": 256, "BLOCK": 256, "ROWS": 8, "WRITE_STREAM": True}
CHUNK = {
    "D": D, "N": 16, "NP": 16, "BD": 128, "UNROLL": 4, "X_ROW": D, "DT_ROW": D, "Z_ROW": 2 * D, "HAS_Z": True,
    "HAS_BIAS": True, "SOFTPLUS": True, "HAS_RESET": False, "PRECISE": False, "REVERSE": True,
}  # fmt: skip
COMPLEX = {"UNROLL": 2, "COMPLEX": True, "DT_LTI": False, "V_LTI": False, "EXACT": False}
CARRY = {"D": D, "N": 16, "BLOCK": 128, "UNROLL": 16, "HAS_FIRST": True, "REVERSE": False}
NARROW = dict.fromkeys(("p", "x_p", "dt_p", "z_p", "g_p", "y_p", "out_p", "dx_p", "tail_p", "dtail_p"), "*bf16")
NARROW["reset_p"] = "*u8"
# Kernel, constants, warps, most registers: what Triton 3.6.0 and 3.8.0 reach, whichever is worse, and a few.
KERNELS = {
    "convolution forward": (conv.conv_fwd_kernel, CONV, 1, 64),
    "convolution backward": (conv.conv_bwd_kernel, {**CONV, "ROWS": 256, "G_ROW": D, "DX_ROW": 2 * D}, 1, 132),
    "norm forward": (norm.norm_fwd_kernel, {**NORM, "HAS_RESIDUAL": True}, 4, 50),
    "norm backward": (norm.norm_bwd_kernel, {**NORM, "HAS_G_STREAM": True}, 4, 122),
    "chunk states": (chunk_state_kernel, {**CHUNK, "VEC": 1}, 4, 168),
    "carry": (carry_kernel, CARRY, 4, 74),
    "complex chunk states": (general_chunk_kernel, CHUNK | COMPLEX, 4, 170),
    "complex carry": (pair_carry_kernel, CARRY, 4, 98),
    "B and C": (split_bc_kernel, {"ROW": 40, "N": 16, "NP": 16, "ROWS": 128}, 4, 34),
}  # fmt: skip


def compiled(compile_for, name, arch):
    kernel, constants, warps, _ = KERNELS[name]
    return compile_for(kernel, constants, arch, NARROW, num_warps=warps)


@pytest.mark.parametrize("name", KERNELS)
def test_on_hopper(name, compile_for, machine_code):
    code = machine_code(compiled(compile_for, name, 90))
    assert code.stack == 0, "spills"
    assert code.registers <= KERNELS[name][3]


@pytest.mark.parametrize("arch", [80, 86, 89, 100, 120])
def test_compiles_elsewhere(arch, compile_for):
    for name in KERNELS:
        assert compiled(compile_for, name, arch).asm["cubin"]
