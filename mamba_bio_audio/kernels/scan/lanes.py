"""Triton forward of the plain selective scan with the states of a channel in two lanes, where channels are few.

As `forward`, whose letters these are, for N = 16 and one chunk. With one warp a scheduler nothing hides the latency of its
instructions. Here a program is one warp that owns 16 channels, half of `forward`'s: lane 16 q + d has states 8 q to 8 q + 7 of
channel d, in tensors [2, 16] of one register each. So there are twice as many warps, of which each has registers left to load
eight steps ahead. What belongs to a step and not to its states (softplus, gate, loads, stores) is done once for two steps, by
each lane for one of them, and lanes exchange what both need. Where warps are many this only adds the exchange, and is slower.

Tensors lie in the lanes as Triton lays out [2, 16] by itself; that nothing is laid out otherwise is tested
(`tests/kernels/scan/test_machine_code.py`).
"""

# Triton code, not Python: tuples grow in unrolled loops, and `if` on a constexpr must stand alone.
# mypy: ignore-errors
# ruff: noqa: RUF005, SIM102

import os

import triton
import triton.language as tl

from mamba_bio_audio.kernels.scan.parts import (
    LOG2E,
    advance,
    decay,
    load_keep,
    prefetch_rows,
    prefetch_span,
    restart,
    sigmoid,
    step_size,
)

if os.environ.get("TRITON_INTERPRET", "0") == "1":  # the interpreter has no PTX

    @triton.jit
    def of_row(x, lane, q, which: tl.constexpr):
        return tl.broadcast_to(tl.sum(tl.where(q == which, x, 0.0), axis=0)[None, :], x.shape)

    @triton.jit
    def own_sum(first, second, q):
        return tl.where(q == 0, tl.sum(first, axis=0)[None, :], tl.sum(second, axis=0)[None, :])

    @triton.jit
    def load_half(p):
        found = ()
        for j in tl.static_range(8):
            found = found + (tl.load(p + j),)
        return found

else:

    @triton.jit
    def of_row(x, lane, q, which: tl.constexpr):
        """x [2, 16] of row `which` in both rows; lane: the lane that has it."""
        return tl.inline_asm_elementwise(
            "shfl.sync.idx.b32 $0, $1, $2, 31, 0xffffffff;", "=f,f,r", [x, lane], dtype=tl.float32, is_pure=True, pack=1
        )

    @triton.jit
    def own_sum(first, second, q):
        """In row 0 the sum of `first` over both rows, in row 1 that of `second`: each lane gives away what it does not want."""
        upper = q != 0
        given = tl.inline_asm_elementwise(
            "shfl.sync.bfly.b32 $0, $1, 16, 31, 0xffffffff;", "=f,f", [tl.where(upper, first, second)],
            dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
        return tl.where(upper, second, first) + given

    @triton.jit
    def load_half(p):
        """Eight numbers side by side at p [2, 16], read-only, as tensors [2, 16]."""
        return tl.inline_asm_elementwise(
            "ld.global.nc.v4.f32 {$0, $1, $2, $3}, [$8]; ld.global.nc.v4.f32 {$4, $5, $6, $7}, [$8+16];",
            "=&f,=&f,=&f,=&f,=&f,=&f,=&f,=&f,l", [p.to(tl.int64)],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=True, pack=1,
        )  # fmt: skip


@triton.jit
def load_pair(at, row, U_ROW: tl.constexpr, DT_ROW: tl.constexpr, Z_ROW: tl.constexpr, CASE: tl.constexpr):
    """u, dt and z [2, 16] of the two steps from `row` on, a step a row."""
    u = tl.load(at[0] + row * U_ROW)
    dt = tl.load(at[1] + row * DT_ROW)
    z = u
    if CASE.gate:
        z = tl.load(at[2] + row * Z_ROW)
    return u, dt, z


@triton.jit
def load_maps(at, row, CASE: tl.constexpr):
    """B and C of one step, eight tensors [2, 16] each, and whether the state goes on."""
    return load_half(at[3] + row * 16), load_half(at[4] + row * 16), load_keep(at[5] + row, CASE)


@triton.jit
def one_step(h, A, size, x, maps, ACCURATE: tl.constexpr, CASE: tl.constexpr):
    """(h_t, what the lane's states add to y_t) from h_(t-1); x is dt_t u_t."""
    B, C, keep = maps
    found = ()
    for j in tl.static_range(8):
        a, _ = decay(size, A[j], A[j], ACCURATE, CASE)
        now, _ = restart(h[j], h[j], keep, CASE)
        now, _ = advance(now, now, a, a, x, B[j], B[j], CASE)
        found = found + (now,)
        if j == 0:
            part = now * C[0]
        else:
            part += now * C[j]
    return found, part


@triton.jit
def output(y, u, z, skip, CASE: tl.constexpr):
    """out_t from the sum over states, fp32."""
    y += skip * u
    if CASE.gate:
        z = z.to(tl.float32)
        y = y * z * sigmoid(z)
    return y


@triton.jit
def moved(at, rows, U_ROW: tl.constexpr, DT_ROW: tl.constexpr, Z_ROW: tl.constexpr):
    """The pointers that many rows on."""
    return (
        at[0] + rows * U_ROW, at[1] + rows * DT_ROW, at[2] + rows * Z_ROW, at[3] + rows * 16, at[4] + rows * 16,
        at[5] + rows,
    )  # fmt: skip


@triton.jit
def store_half(p, h, D: tl.constexpr):
    for j in tl.static_range(8):
        tl.store(p + j * D, h[j])


@triton.jit(do_not_specialize=["L", "zero"])
def scan_lanes_kernel(
    u_p, dt_p, A_p, B_p, C_p, skip_p, z_p, bias_p, h0_p, reset_p, out_p, hT_p, states_p,
    L, u_batch, dt_batch, z_batch, zero,
    D: tl.constexpr, UNROLL: tl.constexpr, SEG: tl.constexpr,
    U_ROW: tl.constexpr, DT_ROW: tl.constexpr, Z_ROW: tl.constexpr, CASE: tl.constexpr,
    HAS_H0: tl.constexpr, WRITE_STATES: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """As `scan_fwd_kernel` in one chunk, of 16 states, channels in sixteens and B and C at addresses that 16 divides.

    L is at least UNROLL, SEG a multiple of it.
    """
    tl.static_assert(D % 16 == 0)
    STATE: tl.constexpr = 16 * D
    BLOCKS: tl.constexpr = D // 16
    PER_SEG: tl.constexpr = SEG // UNROLL
    ACCURATE: tl.constexpr = dt_p.dtype.element_ty == tl.float32
    pid = tl.program_id(0)
    batch = (pid // BLOCKS).to(tl.int64)
    first_d = (pid % BLOCKS) * 16
    # Whole tensors, as one that is broadcast might be loaded in another layout.
    q = tl.arange(0, 2)[:, None] + tl.arange(0, 16)[None, :] * 0
    lane = tl.arange(0, 16)[None, :] + q * 0
    d = first_d + lane
    tile = q * (8 * D) + d + zero

    A = ()
    h = ()
    for j in tl.static_range(8):
        A = A + (tl.load(A_p + j * D + tile) * LOG2E,)
        if HAS_H0:
            h = h + (tl.load(h0_p + batch * STATE + j * D + tile),)
        else:
            h = h + (A[j] * 0.0,)
    bias = A[0] * 0.0
    skip = bias
    if CASE.bias:
        bias = tl.load(bias_p + d)
    if CASE.skip:
        skip = tl.load(skip_p + d)

    rows = (
        u_p + batch * u_batch, dt_p + batch * dt_batch, z_p + batch * z_batch,
        B_p + batch * L * 16, C_p + batch * L * 16,
    )  # fmt: skip
    at = (
        rows[0] + q * U_ROW + d, rows[1] + q * DT_ROW + d, rows[2] + q * Z_ROW + d, rows[3] + q * 8, rows[4] + q * 8,
        reset_p + batch * L,
    )  # fmt: skip
    out_p += batch * L * D + q * D + d
    states_p += batch * tl.cdiv(L, SEG) * STATE + tile

    full = L // UNROLL
    pairs = ()
    maps = ()
    for j in tl.static_range(0, UNROLL, 2):
        pairs = pairs + (load_pair(at, j, U_ROW, DT_ROW, Z_ROW, CASE),)
        maps = maps + (load_maps(at, j, CASE), load_maps(at, j + 1, CASE))
    for i in range(full):
        # The block after the last one does not exist: the last one is read again. Behind these loads are stores, across which
        # the compiler moves no load: it would sink them to the end of a trip, and the next begins with what they bring.
        following = moved(at, tl.where(i + 1 < full, UNROLL, 0), U_ROW, DT_ROW, Z_ROW)
        next_pairs = ()
        for j in tl.static_range(0, UNROLL, 2):
            next_pairs = next_pairs + (load_pair(following, j, U_ROW, DT_ROW, Z_ROW, CASE),)
        if WRITE_STATES:
            if i % PER_SEG == 0:
                store_half(states_p, h, D)
                states_p += STATE
        soon = i * UNROLL + FAR
        prefetch_rows(rows[0], soon, L, UNROLL, U_ROW, first_d, 16, D)
        prefetch_rows(rows[1], soon, L, UNROLL, DT_ROW, first_d, 16, D)
        if CASE.gate:
            prefetch_rows(rows[2], soon, L, UNROLL, Z_ROW, first_d, 16, D)
        prefetch_span(rows[3], soon.to(tl.int64) * 16, L.to(tl.int64) * 16, UNROLL * 16)
        prefetch_span(rows[4], soon.to(tl.int64) * 16, L.to(tl.int64) * 16, UNROLL * 16)
        next_maps = ()
        for j in tl.static_range(0, UNROLL, 2):
            u, dt, z = pairs[j // 2]
            u = u.to(tl.float32)
            size = step_size(dt, bias, CASE.softplus, ACCURATE)
            x = size * u
            h, first = one_step(h, A, of_row(size, lane, q, 0), of_row(x, lane, q, 0), maps[j], ACCURATE, CASE)
            next_maps = next_maps + (load_maps(following, j, CASE),)
            size = of_row(size, lane + 16, q, 1)
            h, second = one_step(h, A, size, of_row(x, lane + 16, q, 1), maps[j + 1], ACCURATE, CASE)
            next_maps = next_maps + (load_maps(following, j + 1, CASE),)
            y = output(own_sum(first, second, q), u, z, skip, CASE)
            tl.store(out_p + j * D, y.to(out_p.dtype.element_ty))
        pairs = next_pairs
        maps = next_maps
        at = following
        out_p += UNROLL * D
    # The pointers stand on the last full block, and the remaining steps lie after it.
    rest = L - full * UNROLL
    if WRITE_STATES:
        if (rest > 0) & (full % PER_SEG == 0):
            store_half(states_p, h, D)
    for i in range(rest):  # both rows do the same step
        u, dt, z = load_pair(at, UNROLL + i - q, U_ROW, DT_ROW, Z_ROW, CASE)
        u = u.to(tl.float32)
        size = step_size(dt, bias, CASE.softplus, ACCURATE)
        h, part = one_step(h, A, size, size * u, load_maps(at, UNROLL + i, CASE), ACCURATE, CASE)
        y = output(own_sum(part, part, q), u, z, skip, CASE)
        tl.store(out_p + (i - q) * D, y.to(out_p.dtype.element_ty), mask=q == 0)
    store_half(hT_p + batch * STATE + tile, h, D)
