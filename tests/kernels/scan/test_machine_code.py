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

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="compiles for a GPU")

# Each family of targets compiles all kernels on its first target, and one of them on its others.
ELSEWHERE = {
    80: ("forward", "backward", "complex forward", "complex backward"),
    86: ("backward",),
    89: ("complex forward",),
    100: ("forward", "backward", "complex forward", "complex backward"),
    120: ("complex backward",),
}
# Enough sequences of enough channels for one chunk in either direction.
SHAPE = (64, 1024, 2048, 16)
FEW_WARPS = (32, 1024, 512, 16)


@pytest.fixture
def compiled(launch_scan, compile_for):
    """`compiled(name, arch)`: a kernel as it is launched in training on an H100, with the constants of its plan."""
    found = {}
    for name, kind in (("", "real selective"), ("complex ", "complex selective")):
        _, (*_, forward), launches = launch_scan(kind, SHAPE)
        backward = next(launch for launch in launches if launch.name == "scan_bwd_kernel")
        _, (*_, alone), _ = launch_scan(kind, SHAPE, gate_rows=1)
        found |= {f"{name}forward": forward, f"{name}backward": backward, f"{name}forward, gate alone": alone}

    def run(name, arch):
        return compile_for(found[name], arch)

    return run


def loops_of(text):
    """The names of the instructions of every loop, in order."""
    names, labels, loops = [], {}, []
    for line in text.splitlines():
        if label := re.match(r"^\s*(\.L[\w.]*):", line):
            labels[label[1]] = len(names)
        elif found := re.match(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)(.*)", line):
            names.append(found[1])
            target = re.search(r"(\.L[\w.]+)", found[2]) if found[1] == "BRA" else None
            if target and labels.get(target[1], len(names)) < len(names) - 1:
                loops.append(names[labels[target[1]] :])
    return loops


# Instructions per element of the state and lane, shuffles and barriers of the loop with the most of them. A trip is 4 steps
# of 16 states for one channel a lane, 64 elements (forward), or steps of a 16 x 16 tile in one warp. At least so many
# registers: with fewer the loop loads late, which is no more instructions and 28 % more time (docs/log.md). Recompute: the
# instructions of backward's other loop, which recomputes the states.
FORWARD = {"elements": 64, "issue": 10.9, "SHFL": 0, "BAR": 0, "MUFU": 80, "registers": 240}
COMPLEX_FORWARD = {"elements": 64, "issue": 24.9, "SHFL": 0, "BAR": 0, "MUFU": 208, "registers": 240}
COMPLEX_BACKWARD = {
    "elements": 16, "issue": 43.5, "recompute": 15.8, "SHFL": 6, "BAR": 0, "MUFU": 48, "registers": 240, "stack": 40
}  # fmt: skip
LIMITS = {
    "forward": FORWARD,
    "forward, gate alone": FORWARD,
    "backward": {
        "elements": 32,
        "issue": 15.4,
        "recompute": 4.8,
        "SHFL": 0,
        "BAR": 0,
        "MUFU": 40,
        "registers": 220,
        "stack": 48,
    },
    "complex forward": COMPLEX_FORWARD,
    "complex forward, gate alone": COMPLEX_FORWARD,
    "complex backward": COMPLEX_BACKWARD,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LIMITS)
def test_machine_code_on_hopper(name, compiled, machine_code):
    limits = dict(LIMITS[name])
    registers, stack, text = machine_code(compiled(name, 90))
    assert limits.pop("registers") <= registers <= 255
    assert stack <= limits.pop("stack", 0), "spills"  # and none within the loop, see below
    loops = [Counter(loop) for loop in loops_of(text)]
    # The loop over segments encloses the backward sweep and has twice its exponentials.
    inner = [loop for loop in loops if loop["MUFU"] <= limits["MUFU"]]
    loop = max(inner, key=lambda c: c["MUFU"] * 1000 + c["SHFL"])
    elements = limits.pop("elements")
    if "recompute" in limits:
        assert min(c.total() for c in inner) / elements <= limits.pop("recompute")
    assert loop.total() / elements <= limits.pop("issue")
    assert loop["LDL"] == loop["STL"] == 0
    for instruction, limit in limits.items():
        assert loop[instruction] <= limit, instruction


@pytest.mark.slow
def test_inference_of_complex_time_invariant_scans_loads_first(launch_scan, compile_for, machine_code):
    """At the end of a trip, behind the touches of L2, the loads make the next trip wait: 3 % more time (docs/log.md)."""
    plan, (forward,), _ = launch_scan("complex LTI", SHAPE, train=False)
    assert plan.chunks == 1
    loop = max(loops_of(machine_code(compile_for(forward, 90)).text), key=len)
    assert loop.index("LDG") < len(loop) / 10


@pytest.mark.slow
def test_two_lanes_a_channel(launch_scan, compile_for, machine_code):
    """Tensors lie as `lanes` takes for granted, which changes none of its layouts; 8 steps of a channel and half its states."""
    _, (*_, forward), _ = launch_scan("real selective", FEW_WARPS)
    assert forward.name == "scan_lanes_kernel"
    compiled = compile_for(forward, 90)
    assert "convert_layout" not in compiled.asm["ttgir"]
    assert re.search(r"sizePerThread = \[1, 1\], threadsPerWarp = \[2, 16\].* order = \[1, 0\]", compiled.asm["ttgir"])
    registers, stack, text = machine_code(compiled)
    assert (registers >= 220, stack) == (True, 0)  # with fewer it loads late
    loop = Counter(max(loops_of(text), key=len))
    assert loop.total() <= 572
    assert (loop["SHFL"], loop["MUFU"], loop["BAR"]) == (20, 80, 0)


@pytest.mark.parametrize("shape", [SHAPE, FEW_WARPS])
def test_plain_inference_in_one_chunk_runs_the_loop_of_training(launch_scan, shape):
    """Which has a branch that stores states; here it is taken once."""
    _, (*_, training), _ = launch_scan("real selective", shape)
    _, (*_, inference), _ = launch_scan("real selective", shape, train=False)
    differ = {k for k, v in training.constants.items() if inference.constants[k] != v}
    assert differ == {"SEG"}
    assert inference.constants["SEG"] > shape[1]
    assert inference.constants["WRITE_STATES"]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ELSEWHERE)
def test_compiles_elsewhere(arch, compiled):
    for name in ELSEWHERE[arch]:
        assert compiled(name, arch).asm["cubin"]
