"""How calls lie on the machine: every scan, of eleven shapes each, as it would be launched on an H100.

A plan that is off gives the right numbers several times too late, and no machine of CI has a GPU to tell. What is
pinned in `launch_plans.json` was found by measuring (docs/log.md). After a change that was measured too, write it anew:

    WRITE_LAUNCH_PLANS=1 python -m pytest tests/kernels/scan/test_launch_plans.py
"""

import dataclasses
import itertools
import json
import os
from pathlib import Path

import pytest

pytest.importorskip("triton")

from mamba_bio_audio.kernels.scan import inputs

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="plans for a GPU")

GOLDEN = Path(__file__).with_name("launch_plans.json")

# Batch, length, channels, states: from one long sequence over many short ones to odd sizes and single steps.
SHAPES = [
    (1, 1 << 20, 512, 16),
    (1, 131072, 1024, 16),
    (4, 65536, 512, 16),
    (8, 8192, 1536, 16),
    (64, 1024, 2048, 16),
    (1, 1, 256, 16),
    (3, 5003, 33, 5),
    (1, 16384, 512, 64),
    (2, 4096, 256, 200),
    (16, 2048, 768, 8),
    (2, 4096, 256, 32),
]
# What decides the speed of a launch, beside grid, warps and stages.
LAYOUT = ("BD", "BLOCK", "UNROLL", "SEG", "ROWS", "GROUP", "VEC", "FAR", "WARP_SUMS")


def described(launch):
    """One line: kernel, programs, layout, warps and whatever else is asked of the compiler."""
    layout = {name: int(launch.constants[name]) for name in LAYOUT if name in launch.constants}
    options = {name: value for name, value in launch.options.items() if value is not None}
    fields = " ".join(f"{name}={value}" for name, value in {**layout, **options}.items())
    return f"{launch.name}[{', '.join(map(str, launch.grid))}] {fields}"


def record(found):
    plan, forward, backward = found
    return {
        "plan": " ".join(f"{name}={value}" for name, value in dataclasses.asdict(plan).items()),
        "forward": folded(map(described, forward)),
        "backward": folded(map(described, backward)),
    }


def folded(lines):
    """Equal launches one after another in one line."""
    return [f"{count} x {line}" for line, count in ((k, len(list(g))) for k, g in itertools.groupby(lines))]


def test_launch_plans(launch_scan):
    found = {
        kind: {"B={} L={} D={} N={}".format(*shape): record(launch_scan(kind, shape)) for shape in SHAPES}
        for kind in launch_scan.kinds
    }
    if os.environ.get("WRITE_LAUNCH_PLANS") == "1":
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    for kind, cases in found.items():
        for shape, case in cases.items():
            assert case == golden[kind][shape], f"{kind}, {shape}"
    assert {kind: list(cases) for kind, cases in golden.items()} == {kind: list(cases) for kind, cases in found.items()}
    assert min(map(len, golden.values())) >= 8


def test_launches_are_what_the_plan_says(launch_scan):
    """A plan that nobody reads would be as good as none."""
    for kind, shape in itertools.product(launch_scan.kinds, SHAPES):
        plan, forward, backward = launch_scan(kind, shape)
        batch, _, channels, _ = shape
        blocks = -(-channels // plan.fwd_block)
        planes = [launch for launch in forward if launch.name == "planes_kernel"]
        assert len(planes) == ("LTI" not in kind)  # B and C in bf16
        scan, chunk_states = forward[-1], forward[len(planes) : -1]
        if plan.lanes:
            assert (scan.name, scan.grid) == ("scan_lanes_kernel", (batch * channels // 16,))
            assert (scan.constants["UNROLL"], scan.constants["SEG"]) == (plan.lanes, plan.segment)
            assert plan.chunks == 1
        else:
            assert scan.grid == (batch * plan.chunks * blocks,)
            assert scan.options == {"num_warps": plan.fwd_warps, "maxnreg": plan.fwd_registers}
            layout = {"BD": plan.fwd_block, "UNROLL": plan.fwd_unroll, "SEG": plan.segment, "GROUP": plan.group}
            assert layout.items() <= scan.constants.items()
            assert scan.arguments["T"] == plan.chunk_steps
            assert scan.arguments["K"] == plan.chunks
        assert bool(chunk_states) == (plan.chunks > 1)
        if chunk_states:
            first = chunk_states[0]
            block, warps, unroll = (32, 1, 8) if plan.ends else (plan.state_block, plan.state_warps, plan.state_unroll)
            assert first.name == ("chunk_end_kernel" if plan.ends else "chunk_state_kernel")
            assert first.grid == (batch * (plan.chunks - 1) * -(-channels // block),)
            assert (first.constants["BD"], first.constants["UNROLL"]) == (block, unroll)
            assert first.options == {"num_warps": warps}
        sweeps = [launch for launch in backward if "WARP_SUMS" in launch.constants]
        assert sum(launch.grid[0] for launch in sweeps) == batch * plan.bwd_chunks * -(-channels // plan.bwd_block)
        for sweep in sweeps:
            layout = {"BD": plan.bwd_block, "UNROLL": plan.bwd_unroll, "SEG": plan.segment, "ROWS": plan.rows}
            layout |= {"VEC": plan.bwd_vec, "WARP_SUMS": plan.warp_sums}
            assert layout.items() <= sweep.constants.items()
            assert sweep.arguments["T"] == plan.bwd_chunk_steps
            assert sweep.options == {"num_warps": 1, "maxnreg": plan.bwd_registers}
        # The sums of every sweep: B's and C's side by side in the plain case, none where they are time-invariant.
        maps = {"real selective": 1, "real LTI": 0, "complex LTI": 0}.get(kind, 2)
        sums = [launch for launch in backward if launch.name == "parts_sum_kernel"]
        assert len(sums) == maps * len(sweeps)
        # The tiles that are kept in registers are turned: A, those of time-invariant maps, what enters chunks.
        turns = [launch for launch in backward if launch.name == "turn_kernel"]
        assert len(turns) == 1 + 2 * ("LTI" in kind) + (plan.bwd_chunks > 1)
        assert [launch.name for launch in backward].count("rows_sum_kernel") == 1
        assert len(backward) == len(sweeps) + len(sums) + len(turns) + 1 + 2 * (plan.bwd_chunks > 1)
        assert any(launch.name == "chunk_end_kernel" for launch in backward) == plan.bwd_ends


@pytest.mark.parametrize(
    ("shape", "chosen"),
    [
        ((8, 8192, 2048, 16), True),
        ((32, 1024, 512, 16), True),
        ((64, 8192, 128, 16), True),
        ((8, 2048, 1536, 16), True),
        ((128, 1024, 512, 16), False),  # more warps
        ((64, 1024, 1024, 16), False),
        ((16, 8192, 128, 16), False),  # chunks
        ((8, 131072, 1024, 16), False),  # chunks that are summed from their ends
        ((8, 8192, 2040, 16), False),
        ((8, 8192, 2048, 8), False),
        ((1024, 7, 16, 16), False),
    ],
)
def test_two_lanes_a_channel_where_warps_are_few(hopper, shape, chosen):
    """`inputs._LANES_FROM` to `_LANES_TO` warps a scheduler; nothing but real selective scans."""
    for train in (True, False):
        plan = inputs.make_plan(*shape, hopper)
        assert bool(plan.lanes if train else plan.lanes_inference) == chosen
    assert plan.chunks == 1 or not chosen
    for case in (
        inputs.Case(precise=True),
        inputs.Case(complex=True, plain=False),
        inputs.Case(exact=True, plain=False),
    ):
        assert not inputs.make_plan(*shape, hopper, case).lanes
    assert not inputs.make_plan(*shape, hopper, chunks=2).lanes
    assert not inputs.make_plan(*shape, hopper, segment=4).lanes
