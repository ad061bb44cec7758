"""Forward of a real selective scan in one launch: a program has all of a sequence, its chunks side by side in its lanes.

For calls of few channels, where `chunks` needs three launches that each wait for the one before. Letters as in `forward`. A
program owns BD channels of one batch row; its tiles are [S, BD], a lane has the N states of one channel in one of S chunks
of T steps. In turn: every row but the first runs the chunk before its own from a zero state; a scan over rows makes of these
ends the state before every chunk; every row runs its own chunk from there. Sums over states stay within a lane.
"""

# Triton code, not Python: tuples grow in unrolled loops, and `if` on a constexpr must stand alone.
# mypy: ignore-errors
# ruff: noqa: RUF005, SIM102

import triton
import triton.language as tl

from mamba_bio_audio.kernels.scan.parts import LOG2E, sigmoid, step_size


@triton.jit
def load_words(p, live, N: tl.constexpr, COLUMN: tl.constexpr, WIDE: tl.constexpr):
    """N values of B or C behind p as they are loaded, 0 where not `live`; WIDE, 8 bytes with one load."""
    found = ()
    if WIDE:
        PER: tl.constexpr = 64 // p.dtype.element_ty.primitive_bitwidth
        at = p.to(tl.pointer_type(tl.int64))
        for k in tl.static_range(N // PER):
            found = found + (tl.load(at + k, mask=live, other=0),)
    else:
        for n in tl.static_range(N):
            found = found + (tl.load(p + n * COLUMN, mask=live, other=0.0),)
    return found


@triton.jit
def values_of(words, N: tl.constexpr, WIDE: tl.constexpr):
    """The N values in fp32, a tuple of tiles."""
    found = ()
    for k in tl.static_range(len(words)):
        word = words[k]
        if WIDE:
            low = word.to(tl.int32)
            high = (word >> 32).to(tl.int32)
            if 2 * len(words) == N:
                found = found + (low.to(tl.float32, bitcast=True), high.to(tl.float32, bitcast=True))
            else:  # bf16 is the upper half of fp32
                found = found + (
                    (low << 16).to(tl.float32, bitcast=True), (low & -65536).to(tl.float32, bitcast=True),
                    (high << 16).to(tl.float32, bitcast=True), (high & -65536).to(tl.float32, bitcast=True),
                )  # fmt: skip
        else:
            found = found + (word.to(tl.float32),)
    return found


@triton.jit
def for_all(offset, nothing, BD: tl.constexpr):
    """[S, BD] of an offset that has no channels, or no rows; nothing: zeros of which the compiler does not know.

    Said to be contiguous along channels, which makes the compiler lay the load out as all others; a lane has one element, so
    that nothing follows from it for what is loaded.
    """
    return tl.max_contiguous(offset + nothing, [1, BD])


@triton.jit
def after_both(a, x, b, y):
    """The two maps h -> a h + x and h -> b h + y, one behind the other."""
    return a * b, x * b + y


@triton.jit(do_not_specialize=["L", "T", "zero"])
def scan_short_kernel(
    u_p, dt_p, A_p, B_p, C_p, skip_p, z_p, bias_p, h0_p, reset_p, out_p, hT_p, states_p,
    L, T, zero, u_batch, dt_batch, z_batch, B_batch, C_batch,
    D: tl.constexpr, N: tl.constexpr, BD: tl.constexpr, S: tl.constexpr, UNROLL: tl.constexpr, SEG: tl.constexpr,
    U_ROW: tl.constexpr, DT_ROW: tl.constexpr, Z_ROW: tl.constexpr, A_ROW: tl.constexpr, A_COLUMN: tl.constexpr,
    B_ROW: tl.constexpr, B_COLUMN: tl.constexpr, B_WIDE: tl.constexpr, C_ROW: tl.constexpr, C_COLUMN: tl.constexpr,
    C_WIDE: tl.constexpr, H_ROW: tl.constexpr, H_COLUMN: tl.constexpr, CASE: tl.constexpr, HAS_H0: tl.constexpr,
    WRITE_STATES: tl.constexpr, WRITE_LAST: tl.constexpr,
):  # fmt: skip
    """A (D, N), B and C (B, L, N), h0 and hT (B, D, N) as their strides say; states (B, ceil(L / SEG), N, D), the state before
    every SEG-th step.

    T is a multiple of SEG and of UNROLL, S T at least L.
    """
    ACCURATE: tl.constexpr = dt_p.dtype.element_ty == tl.float32
    BLOCKS: tl.constexpr = (D + BD - 1) // BD
    pid = tl.program_id(0)
    batch = (pid // BLOCKS).to(tl.int64)
    d = pid % BLOCKS * BD + tl.arange(0, BD)[None, :]
    s = tl.arange(0, S)[:, None]
    there = d < D
    every = there & (s >= 0)  # [S, BD]
    empty = tl.zeros([S, BD], tl.float32)
    nothing = (s + d) * zero
    bias = tl.zeros([1, BD], tl.float32)
    if CASE.bias:
        bias = tl.load(bias_p + d, mask=there, other=0.0)
    skip = tl.zeros([1, BD], tl.float32)
    if CASE.skip:
        skip = tl.load(skip_p + d, mask=there, other=0.0)
    A = ()
    h = ()
    for n in tl.static_range(N):
        at = for_all(d * A_ROW + n * A_COLUMN, nothing, BD)
        A = A + (tl.load(A_p + at, mask=every, other=0.0).to(tl.float32) * LOG2E,)
        if HAS_H0:
            h = h + (
                tl.load(
                    h0_p + batch * (D * N) + for_all(d * H_ROW + n * H_COLUMN, nothing, BD),
                    mask=every & (s == 0),
                    other=0.0,
                ),
            )
        else:
            h = h + (empty,)
    # Of the row's first step, in 64 bits; within the row 32 are enough.
    begin = (s * T).to(tl.int64)
    dt_at = dt_p + batch * dt_batch + begin * DT_ROW + d
    u_at = u_p + batch * u_batch + begin * U_ROW + d
    z_at = z_p + batch * z_batch + begin * Z_ROW + d
    B_at = B_p + batch * B_batch + for_all(begin * B_ROW, nothing, BD)
    C_at = C_p + batch * C_batch + for_all(begin * C_ROW, nothing, BD)
    reset_at = reset_p + batch * L + for_all(begin, nothing, BD)
    out_at = out_p + (batch * L + begin) * D + d
    states_at = states_p + (batch * tl.cdiv(L, SEG) + begin // SEG) * (N * D) + d

    # The chunk before the row's own.
    total = empty
    alive = empty + 1.0
    for i in range(0, T, UNROLL):
        # All loads of a block before its arithmetic, here and below, and that before its stores.
        loaded = ()
        for j in tl.static_range(UNROLL):
            back = i + j - T
            live = every & (s > 0) & (s * T + back < L)
            dt = tl.load(dt_at + back * DT_ROW, mask=live, other=0.0)
            u = tl.load(u_at + back * U_ROW, mask=live, other=0.0)
            B = load_words(B_at + back * B_ROW, live, N, B_COLUMN, B_WIDE)
            fresh = live
            if CASE.reset:
                fresh = tl.load(reset_at + back, mask=live, other=0) != 0
            loaded = loaded + ((live, dt, u, B, fresh),)
        for j in tl.static_range(UNROLL):
            live, dt, u, words, fresh = loaded[j]
            B = values_of(words, N, B_WIDE)
            dt = tl.where(live, step_size(dt, bias, CASE.softplus, ACCURATE), 0.0)
            total += dt
            x = dt * u.to(tl.float32)
            keep = empty + 1.0
            if CASE.reset:
                keep = tl.where(fresh, 0.0, 1.0)
                total = tl.where(fresh, 0.0, total)
                alive = alive * keep
            moved = ()
            for n in tl.static_range(N):
                before = h[n]
                if CASE.reset:
                    before = before * keep
                moved = moved + (tl.exp2(dt * A[n]) * before + x * B[n],)
            h = moved

    starts = ()
    for n in tl.static_range(N):
        a = tl.exp2(total * A[n])
        if CASE.reset:
            a = a * alive
        _, found = tl.associative_scan((a, h[n]), 0, after_both)
        starts = starts + (found,)
    h = starts

    for i in range(0, T, UNROLL):
        if WRITE_STATES:
            if i % SEG == 0:
                for n in tl.static_range(N):
                    tl.store(states_at + i // SEG * (N * D) + n * D, h[n], mask=every & (s * T + i < L))
        loaded = ()
        for j in tl.static_range(UNROLL):
            row = i + j
            live = every & (s * T + row < L)
            dt = tl.load(dt_at + row * DT_ROW, mask=live, other=0.0)
            u = tl.load(u_at + row * U_ROW, mask=live, other=0.0)
            z = u
            if CASE.gate:
                z = tl.load(z_at + row * Z_ROW, mask=live, other=0.0)
            B = load_words(B_at + row * B_ROW, live, N, B_COLUMN, B_WIDE)
            C = load_words(C_at + row * C_ROW, live, N, C_COLUMN, C_WIDE)
            fresh = live
            if CASE.reset:
                fresh = tl.load(reset_at + row, mask=live, other=0) != 0
            loaded = loaded + ((live, dt, u, z, B, C, fresh),)
        ys = ()
        for j in tl.static_range(UNROLL):
            live, dt, u, z, B_words, C_words, fresh = loaded[j]
            B = values_of(B_words, N, B_WIDE)
            C = values_of(C_words, N, C_WIDE)
            u = u.to(tl.float32)
            dt = tl.where(live, step_size(dt, bias, CASE.softplus, ACCURATE), 0.0)
            x = dt * u
            keep = empty + 1.0
            if CASE.reset:
                keep = tl.where(fresh, 0.0, 1.0)
            y = skip * u
            moved = ()
            for n in tl.static_range(N):
                before = h[n]
                if CASE.reset:
                    before = before * keep
                after = tl.exp2(dt * A[n]) * before + x * B[n]
                y += after * C[n]
                moved = moved + (after,)
            h = moved
            if CASE.gate:
                z = z.to(tl.float32)
                y = y * z * sigmoid(z)
            ys = ys + (y,)
        for j in tl.static_range(UNROLL):
            tl.store(out_at + (i + j) * D, ys[j].to(out_p.dtype.element_ty), mask=loaded[j][0])
    # Steps past the end leave the state as it is, so that the last row has the last one.
    if WRITE_LAST:
        for n in tl.static_range(N):
            at = batch * (D * N) + for_all(d * H_ROW + n * H_COLUMN, nothing, BD)
            tl.store(hT_p + at, h[n], mask=every & (s == S - 1))
