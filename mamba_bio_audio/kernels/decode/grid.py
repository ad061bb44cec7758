"""A barrier between the programs that share a row: whoever arrives adds one to a counter, whoever waits polls it.

All programs must be resident together (a cooperative launch). A wait that is not answered within a second or so poisons the
counter, on which every later wait returns at once: a fault ends in numbers that the host refuses (`lost.py`), not in a kernel
that hangs. What one program stores and another loads must be loaded past L1 (`cache_modifier=".cg"`).
"""

# mypy: disable-error-code="no-untyped-def, assignment, var-annotated, attr-defined"
from __future__ import annotations

import os

import triton
import triton.language as tl

if os.environ.get("TRITON_INTERPRET", "0") == "1":  # one program after the other: phases are launched one by one

    @triton.jit
    def _add_one(counter_p):
        tl.atomic_add(counter_p, 1)

    @triton.jit
    def _await(counter_p, target):
        pass

else:

    @triton.jit
    def _add_one(counter_p):
        tl.inline_asm_elementwise(
            """{
            .reg .pred first;
            .reg .u32 thread;
            mov.u32 thread, %tid.x;
            setp.eq.u32 first, thread, 0;
            @first red.release.gpu.global.add.s32 [$1], 1;
            mov.b32 $0, 0;
            }""",
            "=r,l",
            [counter_p.to(tl.int64)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )

    @triton.jit
    def _await(counter_p, target):
        tl.inline_asm_elementwise(
            """{
            .reg .pred done;
            .reg .u32 thread;
            .reg .s32 seen, left;
            mov.u32 thread, %tid.x;
            setp.ne.u32 done, thread, 0;
            @done bra THERE;
            mov.s32 left, 1048576;
            AGAIN:
            ld.acquire.gpu.global.s32 seen, [$1];
            setp.ge.s32 done, seen, $2;
            @done bra THERE;
            add.s32 left, left, -1;
            setp.gt.s32 done, left, 0;
            @done bra AGAIN;
            red.relaxed.gpu.global.max.s32 [$1], 1073741824;
            THERE:
            mov.b32 $0, 0;
            }""",
            "=r,l,r",
            [counter_p.to(tl.int64), target],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def arrive(counter_p):
    """What this program has stored may be read by the others."""
    tl.debug_barrier()
    _add_one(counter_p)


@triton.jit
def wait(counter_p, target):
    """Until `target` arrivals were counted."""
    _await(counter_p, target)
    tl.debug_barrier()


@triton.jit
def sum_parts(p, i, LENGTH: tl.constexpr, G: tl.constexpr):
    """Elements i of the sum of G vectors (LENGTH) that other programs have stored."""
    total = tl.load(p + i, cache_modifier=".cg")
    for part in tl.static_range(1, G):
        total += tl.load(p + part * LENGTH + i, cache_modifier=".cg")
    return total
