"""The passes of the backward of scans over tiles [ROWS, BD] of a segment: before its steps, and after them (see `backward`).

rows are the pointers to a program's u, dt, z, dout, B and C; `base` is the segment's first step.
"""

# Triton code, not Python: tuples grow, and `if` on a constexpr must stand alone.
# mypy: ignore-errors
# ruff: noqa: RUF005

import triton
import triton.language as tl

from mamba_bio_audio.kernels.scan.backward_steps import load_wide, put_maps
from mamba_bio_audio.kernels.scan.parts import (
    LN2,
    prefetch_rows,
    sigmoid,
    softplus_and_slope,
    step_size,
    touch_span,
)
from mamba_bio_audio.kernels.scan.sums_asm import ONE_CUT_LN2, TWO_CUT
from mamba_bio_audio.kernels.scan.warp_memory import put_plane, put_steps, take_plane, take_steps


@triton.jit
def put_tile(
    i, rows, base, size, wide_t, wide_d, wide_mask, fixed_dt, bias, plane_p, wide_at, slope_at, maps_room, zero,
    PLANE: tl.constexpr, LONG: tl.constexpr, STEP_BYTES: tl.constexpr, MAPS_BYTES: tl.constexpr, C_PLACE: tl.constexpr,
    NP: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr, U_ROW: tl.constexpr, DT_ROW: tl.constexpr,
    Z_ROW: tl.constexpr, G_ROW: tl.constexpr, BC_ROW: tl.constexpr, WARP_SUMS: tl.constexpr, ACCURATE: tl.constexpr,
    CASE: tl.constexpr,
):  # fmt: skip
    """Puts dt, dt u and gy of tile i into the scratch, in shared memory with slopes of softplus and gate, B and C."""
    WIDE_VEC: tl.constexpr = 4
    u_rows, dt_rows, z_rows, g_rows, B_rows, C_rows = rows
    t = i * ROWS + wide_t
    live = (t < size) & wide_mask
    dt = fixed_dt
    if not CASE.dt_lti:
        dt = load_wide(dt_rows + base * DT_ROW, t * DT_ROW + wide_d + zero * WIDE_VEC, live)
    u = load_wide(u_rows + base * U_ROW, t * U_ROW + wide_d + zero * WIDE_VEC, live)
    gy = load_wide(g_rows + base * G_ROW, t * G_ROW + wide_d + zero * WIDE_VEC, live)
    slope = gy  # of the softplus
    open = gy  # of the gate
    if CASE.gate:
        z = load_wide(z_rows + base * Z_ROW, t * Z_ROW + wide_d + zero * WIDE_VEC, live)
        open = sigmoid(z)
        gy = gy * z * open
    if CASE.complex:
        gy = 2.0 * gy
    if not CASE.dt_lti:
        if WARP_SUMS and CASE.softplus:
            dt, slope = softplus_and_slope(dt + bias, ACCURATE)
        else:
            dt = step_size(dt, bias, CASE.softplus, ACCURATE)
    dt = tl.where(live, dt, 0.0)  # steps past the end leave the state as it is
    x = u
    if not CASE.exact:
        x = dt * u
    if WARP_SUMS:
        put_steps(dt, x, gy, wide_at + i * (ROWS * STEP_BYTES))
        map_place = maps_room + (wide_t + i * ROWS) * MAPS_BYTES + tl.arange(0, NP)[None, None, :] * 4
        if not CASE.B_lti:
            put_maps(B_rows + base * BC_ROW, map_place, t, size, BC_ROW, NP, zero, CASE.parts)
        if not CASE.C_lti:
            put_maps(C_rows + base * BC_ROW, map_place + C_PLACE, t, size, BC_ROW, NP, zero, CASE.parts)
        if CASE.gate:
            put_plane(open, slope_at + i * (ROWS * BD * 4))
        if CASE.softplus and not CASE.dt_lti:
            put_plane(slope, slope_at + (LONG * BD * 4) + i * (ROWS * BD * 4))
    else:
        at = plane_p + i * (ROWS * BD)
        tl.store(at, dt)
        tl.store(at + PLANE, x)
        tl.store(at + 2 * PLANE, gy)


@triton.jit
def ask_for_segment(
    rows, before_p, base, soon, count, first_d, SEG: tl.constexpr, D: tl.constexpr, N: tl.constexpr,
    NP: tl.constexpr, BD: tl.constexpr, U_ROW: tl.constexpr, DT_ROW: tl.constexpr, Z_ROW: tl.constexpr,
    G_ROW: tl.constexpr, BC_ROW: tl.constexpr, WARP_SUMS: tl.constexpr, CASE: tl.constexpr,
):  # fmt: skip
    """Asks L2 for the segment from `soon` on, whose state is at before_p.

    Brings this one's B and C to L1 where they are not in shared memory; returns what was loaded for that, to be used.
    """
    u_rows, dt_rows, z_rows, g_rows, B_rows, C_rows = rows
    prefetch_rows(u_rows, soon, count, SEG, U_ROW, first_d, BD, D)
    if not CASE.dt_lti:
        prefetch_rows(dt_rows, soon, count, SEG, DT_ROW, first_d, BD, D)
    prefetch_rows(g_rows, soon, count, SEG, G_ROW, first_d, BD, D)
    if CASE.gate:
        prefetch_rows(z_rows, soon, count, SEG, Z_ROW, first_d, BD, D)
    prefetch_rows(before_p, 0, CASE.parts * N, CASE.parts * NP, D, first_d, BD, D)
    touched = ()
    if not CASE.B_lti and not WARP_SUMS:
        touched = touched + (touch_span(B_rows, base * BC_ROW, count.to(tl.int64) * BC_ROW, SEG * CASE.parts * NP),)
    if not CASE.C_lti and not WARP_SUMS:
        touched = touched + (touch_span(C_rows, base * BC_ROW, count.to(tl.int64) * BC_ROW, SEG * CASE.parts * NP),)
    return touched


@triton.jit
def finish_tile(
    i, rows, results, base, size, wide_t, wide_d, wide_mask, bias, skip, plane_p, wide_at, slope_at, zero,
    PLANE: tl.constexpr, LONG: tl.constexpr, STEP_BYTES: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr,
    U_ROW: tl.constexpr, DT_ROW: tl.constexpr, Z_ROW: tl.constexpr, G_ROW: tl.constexpr, DZ_ROW: tl.constexpr,
    CUT: tl.constexpr, WRITE_OUT: tl.constexpr, WARP_SUMS: tl.constexpr, CASE: tl.constexpr,
):  # fmt: skip
    """Stores du, ddt, dz and the output of tile i; (what the gradient of D adds up, ddt)."""
    WIDE_VEC: tl.constexpr = 4
    u_rows, dt_rows, z_rows, g_rows, _, _ = rows
    du_p, ddt_p, dz_p, out_p = results
    t = i * ROWS + wide_t
    live = (t < size) & wide_mask
    to = t * D + wide_d + zero * WIDE_VEC
    at = plane_p + i * (ROWS * BD)
    if WARP_SUMS:
        kept_dt, sum_gB, y, ddt = take_steps(wide_at + i * (ROWS * STEP_BYTES))
        if CUT:
            sum_gB = sum_gB * TWO_CUT
            ddt = ddt * ONE_CUT_LN2
            y = y * TWO_CUT
    else:
        sum_gB = tl.load(at + PLANE)
        ddt = tl.load(at + 3 * PLANE)
    if CASE.plain and not CUT:
        ddt = ddt * LN2
    u = load_wide(u_rows + base * U_ROW, t * U_ROW + wide_d + zero * WIDE_VEC, live)
    du = sum_gB
    if not CASE.exact:
        if WARP_SUMS:
            du = kept_dt * sum_gB
        else:
            du = tl.load(at) * sum_gB
        ddt += u * sum_gB
    if CASE.softplus and not CASE.dt_lti:
        if WARP_SUMS:
            ddt = ddt * take_plane(slope_at + (LONG * BD * 4) + i * (ROWS * BD * 4))
        else:
            raw = load_wide(dt_rows + base * DT_ROW, t * DT_ROW + wide_d + zero * WIDE_VEC, live) + bias
            ddt = ddt * sigmoid(raw)
    ddt = tl.where(live, ddt, 0.0)
    gy = load_wide(g_rows + base * G_ROW, t * G_ROW + wide_d + zero * WIDE_VEC, live)
    if CASE.gate:
        z = load_wide(z_rows + base * Z_ROW, t * Z_ROW + wide_d + zero * WIDE_VEC, live)
        if WARP_SUMS:
            s = take_plane(slope_at + i * (ROWS * BD * 4))
        else:
            s = sigmoid(z)
            y = tl.load(at + 2 * PLANE)
        if CASE.complex:
            y = 2.0 * y
        y += skip * u
        dz = gy * y * s * (1.0 + z * (1.0 - s))
        gy = gy * z * s
        to_dz = t * DZ_ROW + wide_d + zero * WIDE_VEC
        tl.store(dz_p + base * DZ_ROW + to_dz, dz.to(dz_p.dtype.element_ty), mask=live)
        if WRITE_OUT:
            tl.store(out_p + base * D + to, (y * z * s).to(out_p.dtype.element_ty), mask=live)
    du += skip * gy
    tl.store(du_p + base * D + to, du.to(du_p.dtype.element_ty), mask=live)
    if not CASE.dt_lti:
        tl.store(ddt_p + base * D + to, ddt.to(ddt_p.dtype.element_ty), mask=live)
    return gy * u, ddt
