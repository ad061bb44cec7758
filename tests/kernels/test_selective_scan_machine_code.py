"""The machine code of the scan kernels, compiled without a GPU.

A changed layout costs three times the time without any other sign; counting instructions shows it. The limits are what
Triton 3.6.0 and 3.8.0 reach, whichever is worse, and one percent. Loops are counted over their whole body, also what
runs in some trips only.
"""

import os
import re
from collections import Counter

import pytest

pytest.importorskip("triton")

from mamba_bio_audio.kernels.selective_scan.general_bwd import general_bwd_kernel
from mamba_bio_audio.kernels.selective_scan.general_fwd import general_fwd_kernel
from mamba_bio_audio.kernels.selective_scan.triton_bwd import scan_bwd_kernel
from mamba_bio_audio.kernels.selective_scan.triton_fwd import scan_fwd_kernel

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="compiles for a GPU")

# Each family of targets compiles every kernel, each target two of them.
ELSEWHERE = {
    80: ("forward", "complex backward"),
    86: ("backward", "complex forward"),
    89: ("forward", "complex backward"),
    100: ("backward", "complex forward"),
    120: ("forward", "complex backward"),
}
D = 2048

SELECTIVE_COMPLEX = {"COMPLEX": True, "DT_LTI": False, "B_LTI": False, "C_LTI": False, "EXACT": False}
BOTH = {
    "D": D, "N": 16, "NP": 16, "SEG": 16, "U_ROW": D, "DT_ROW": D, "Z_ROW": 2 * D, "HAS_SKIP": True, "HAS_Z": True,
    "HAS_BIAS": True, "SOFTPLUS": True, "HAS_RESET": False, "PRECISE": False,
}  # fmt: skip
FORWARD = {**BOTH, "BD": 128, "UNROLL": 4, "HAS_H0": False, "WRITE_STATES": True, "GROUP": 8, "FAR": 32}
BACKWARD = {**BOTH, "BD": 16, "GROUP": D // 16, "ROWS": 16, "G_ROW": D, "HAS_R": False, "WRITE_DH0": False}
# Kernel, constants, warps.
KERNELS = {
    "forward": (scan_fwd_kernel, {**FORWARD, "VEC": 1, "WRITE_LAST": True}, 4),
    "backward": (
        scan_bwd_kernel,
        {**BACKWARD, "DZ_ROW": D, "WRITE_OUT": False, "UNROLL": 4, "VEC": 4, "WARP_SUMS": True},
        1,
    ),
    "complex forward": (general_fwd_kernel, {**FORWARD, **SELECTIVE_COMPLEX}, 4),
    "complex backward": (
        general_bwd_kernel,
        {**BACKWARD, **SELECTIVE_COMPLEX, "UNROLL": 2, "VEC": 4, "WARP_SUMS": True},
        1,
    ),
}


POINTERS = dict.fromkeys(("u_p", "dt_p", "z_p", "out_p", "x_p", "g_p", "du_p", "ddt_p", "dz_p"), "*bf16")
POINTERS |= {"sink_p": "*i32", "zeros_p": "*i32", "reset_p": "*u8"}


@pytest.fixture
def compiled(compile_for):
    def run(name, arch):
        kernel, constants, num_warps = KERNELS[name]
        return compile_for(kernel, constants, arch, POINTERS, num_warps=num_warps)

    return run


def loops_of(text):
    """Counters of the instructions of every loop."""
    names, labels, loops = [], {}, []
    for line in text.splitlines():
        if label := re.match(r"^\s*(\.L[\w.]*):", line):
            labels[label[1]] = len(names)
        elif found := re.match(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)(.*)", line):
            names.append(found[1])
            target = re.search(r"(\.L[\w.]+)", found[2]) if found[1] == "BRA" else None
            if target and labels.get(target[1], len(names)) < len(names) - 1:
                loops.append(Counter(names[labels[target[1]] :]))
    return loops


# Registers, instructions per element of the state and lane, shuffles and barriers of the loop with the most of them.
# A trip is 4 steps of 16 states for one channel a lane, 64 elements (forward), or steps of a 16 x 16 tile in one warp.
LIMITS = {
    "forward": {"elements": 64, "issue": 10.9, "SHFL": 0, "BAR": 0, "MUFU": 80},
    "backward": {"elements": 32, "issue": 22.7, "SHFL": 28, "BAR": 0, "MUFU": 40},
    "complex forward": {"elements": 64, "issue": 24.9, "SHFL": 0, "BAR": 0, "MUFU": 208},
    "complex backward": {"elements": 16, "issue": 52.9, "SHFL": 34, "BAR": 0, "MUFU": 48},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_machine_code_on_hopper(name, compiled, machine_code):
    limits = dict(LIMITS[name])
    registers, stack, text = machine_code(compiled(name, 90))
    assert registers <= 255
    assert stack == 0, "spills"
    loops = loops_of(text)
    # The loop over segments encloses the backward sweep and has twice its exponentials.
    inner = [loop for loop in loops if loop["MUFU"] <= limits["MUFU"]]
    loop = max(inner, key=lambda c: c["MUFU"] * 1000 + c["SHFL"])
    elements = limits.pop("elements")
    assert loop.total() / elements <= limits.pop("issue")
    assert loop["LDL"] == loop["STL"] == 0
    for instruction, limit in limits.items():
        assert loop[instruction] <= limit, instruction


@pytest.mark.slow
@pytest.mark.parametrize("arch", ELSEWHERE)
def test_compiles_elsewhere(arch, compiled):
    for name in ELSEWHERE[arch]:
        assert compiled(name, arch).asm["cubin"]
