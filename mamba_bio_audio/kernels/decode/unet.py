"""Many steps of a U-Net of three tiers in one launch: `persistent.py` with each tier at its own rate.

    every sample                  outer:   s = down(embedding), frame r of P = s, s = up(s + queue[r]), head and draw
    every P0-th sample            middle:  s = down(W frames + b), likewise a frame for the centre, queue = V up(...) + c
    every P0 P1-th sample         centre:  s = W frames + b, queue = V (s + blocks(s)) + c

A coarse frame's output is first read one coarse frame later (`models/unet.py`), so the tiers may run at the same time. Either
one program a stream runs all of them, one after another, or three do, one each (`SPLIT`), for few streams: each frame is
published by a count that the next tier's program waits for, and so is each queue. Frames are written only behind the wait for
the queue before them, when the coarser program has read the frames before, and a queue is read to its end before the frame
behind it is published: so one buffer of each is enough. All programs must be resident (a cooperative launch); a wait that
exhausts the launch's budget of polls ends all waiting, and marks the launch as lost (`lost.py`).

Every number that one program writes for another is read past L1 (.cg). The streams that blocks on the way down receive are kept
in scratch, for their mirror images to add.

Letters as in `pack.py`; P samples or frames that a pool joins.
"""

# mypy: disable-error-code="no-untyped-def, assignment, var-annotated, attr-defined"
# Triton code: `if` on a constexpr must stand alone.
from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_bio_audio.kernels.decode.draw import choose, settings_of
from mamba_bio_audio.kernels.decode.lost import mark
from mamba_bio_audio.kernels.decode.persistent import (
    convolved,
    layer_step,
    leave,
    norm_scale,
    normed_products,
    product,
    put,
    tiles,
)
from mamba_bio_audio.kernels.decode.unet_pack import UNetNetwork, UNetRows
from mamba_bio_audio.kernels.launch import on
from mamba_bio_audio.kernels.scan.parts import sigmoid

_LINE = tl.constexpr(32)  # numbers between flags, which many poll
_AHEAD = tl.constexpr(4)  # tiles of a pool
_POLLS = 1 << 22  # some seconds
_REGISTERS = 128  # of a thread at most: so a multiprocessor holds a program of 16 warps or two of 8


@triton.jit
def fixed_step(
    m_p, v_p, h_p, ring_p, scratch_p, t, eps, CASE: tl.constexpr, kept_p, mirror_p, mirrored
):  # fmt: skip
    """`layer_step` of a complex time-invariant layer: h = decay h + B u, y = Re(C h); the parts of h are planes.

    The scan needs of u what in_proj's sum leaves in the same thread, so there are two barriers.
    """
    D: tl.constexpr = CASE.D
    E: tl.constexpr = CASE.E
    W: tl.constexpr = CASE.W
    ROWS: tl.constexpr = CASE.E_ROWS
    HALVES: tl.constexpr = CASE.HALVES
    PLANE: tl.constexpr = CASE.E * CASE.N
    g_p = scratch_p + D
    z_p = m_p + E * D // HALVES
    out_proj_p = z_p + E * D // HALVES
    taps_p = v_p + 6 * PLANE
    bias_p = taps_p + W * E
    skip_p = bias_p + E
    n = tl.arange(0, CASE.N)

    ahead = tiles(m_p, 0, ROWS, D, CASE.IN_COLUMNS, HALVES, CASE.IN_AHEAD)
    ahead_z = tiles(z_p, 0, ROWS, D, CASE.IN_COLUMNS, HALVES, CASE.IN_AHEAD)
    first = tl.arange(0, ROWS)
    at = first[:, None] * CASE.N + n[None, :]
    hr = tl.load(h_p + at)
    hi = tl.load(h_p + PLANE + at)
    ar = tl.load(v_p + at)
    ai = tl.load(v_p + PLANE + at)
    u, newest = convolved(taps_p, bias_p, ring_p, first, t, E, W)
    skip = tl.load(skip_p + first)
    tl.debug_barrier()
    for part in tl.static_range(E // ROWS):
        e = part * ROWS + first
        at = e[:, None] * CASE.N + n[None, :]
        if part > 0:
            ahead = ()
            ahead_z = ()
            hr = tl.load(h_p + at)
            hi = tl.load(h_p + PLANE + at)
            ar = tl.load(v_p + at)
            ai = tl.load(v_p + PLANE + at)
            u, newest = convolved(taps_p, bias_p, ring_p, e, t, E, W)
            skip = tl.load(skip_p + e)
        x, z = normed_products(m_p, scratch_p, part, ahead, ahead_z, eps, ROWS, D, E, CASE.IN_COLUMNS, HALVES)
        u += newest * x
        put(ring_p + (t % W) * E + e, x)
        u = u * sigmoid(u)
        new_r = ar * hr - ai * hi + tl.load(v_p + 2 * PLANE + at) * u[:, None]
        new_i = ar * hi + ai * hr + tl.load(v_p + 3 * PLANE + at) * u[:, None]
        y = tl.load(v_p + 4 * PLANE + at) * new_r + tl.load(v_p + 5 * PLANE + at) * new_i
        put(g_p + e, (tl.sum(y, axis=1) + skip * u) * (z * sigmoid(z)))
        tl.store(h_p + at, new_r)
        tl.store(h_p + PLANE + at, new_i)

    ahead = tiles(out_proj_p, 0, CASE.D_ROWS, E, CASE.OUT_COLUMNS, HALVES, CASE.OUT_AHEAD)
    tl.debug_barrier()
    leave(out_proj_p, g_p, scratch_p, ahead, kept_p, mirror_p, mirrored, CASE)


@triton.jit
def wait(flag_p, count, polls, SPLIT: tl.constexpr):
    """Waits until a flag has reached a count; returns the polls left, 0 where it has not."""
    if SPLIT:
        seen = tl.atomic_add(flag_p, 0, sem="acquire", scope="gpu")
        while (seen < count) & (polls > 0):
            polls -= 1
            seen = tl.atomic_add(flag_p, 0, sem="acquire", scope="gpu")
    return polls


@triton.jit
def publish(flag_p, count, SPLIT: tl.constexpr):
    """Sets a flag behind everything that the program has written and read."""
    if SPLIT:
        tl.debug_barrier()
        tl.atomic_xchg(flag_p, count, sem="release", scope="gpu")


@triton.jit
def exchange(state_p, scratch_p, flags_p, place, complete, polls, TIER: tl.constexpr, SPLIT: tl.constexpr):
    """Leaves the stream as frame `place` for the next tier and adds that tier's; `complete` frames went there before."""
    frames_p = state_p + TIER.frames + place * TIER.D
    d = tl.arange(0, TIER.D_ROWS)
    tl.debug_barrier()
    if place == 0:
        polls = wait(flags_p + _LINE, complete, polls, SPLIT)
    streams = ()
    queued = ()
    for part in tl.static_range(TIER.D // TIER.D_ROWS):
        at = part * TIER.D_ROWS + d
        streams = streams + (tl.load(scratch_p + at),)  # noqa: RUF005
        queued = queued + (tl.load(frames_p + TIER.pool * TIER.D + at, cache_modifier=".cg"),)  # noqa: RUF005
    # Other threads have the same elements: all must have read before one writes.
    tl.debug_barrier()
    for part in tl.static_range(TIER.D // TIER.D_ROWS):
        at = part * TIER.D_ROWS + d
        put(frames_p + at, streams[part])
        put(scratch_p + at, streams[part] + queued[part])
        # What SaShiMi adds once more at the end; elsewhere a block overwrites it.
        put(scratch_p + TIER.scratch + TIER.down * TIER.D + at, streams[part] + queued[part])
    if place == TIER.pool - 1:
        publish(flags_p, complete + 1, SPLIT)
    return polls


@triton.jit
def blocks(
    words_p, floats_p, state_p, scratch_p, flags_p, place, complete, t, eps, polls, TIER: tl.constexpr, SPLIT: tl.constexpr
):  # fmt: skip
    """A tier's blocks at its position t modulo W, with `exchange` between down and up; returns the polls left."""
    kept_p = scratch_p + TIER.scratch
    for layer in range(TIER.layers):
        if TIER.wider > 0:  # noqa: SIM102
            if layer == TIER.down:
                polls = exchange(state_p, scratch_p, flags_p, place, complete, polls, TIER, SPLIT)
        if TIER.down > 0:
            mirror_p = kept_p + (TIER.layers - 1 - layer) * TIER.D
            mirrored = layer >= TIER.down
        else:
            mirror_p = kept_p
            mirrored = layer == TIER.layers - 1
        m_p = words_p + layer * TIER.matrices
        v_p = floats_p + layer * TIER.vectors
        h_p = state_p + layer * TIER.h
        ring_p = state_p + TIER.rings + layer * (TIER.W * TIER.E)
        own_p = kept_p + layer * TIER.D
        if TIER.fixed:
            fixed_step(m_p, v_p, h_p, ring_p, scratch_p, t, eps, TIER, own_p, mirror_p, mirrored)
        else:
            layer_step(m_p, v_p, h_p, ring_p, scratch_p, t, eps, TIER, own_p, mirror_p, mirrored)
    return polls


@triton.jit
def pooling(words_p, FINER: tl.constexpr, TIER: tl.constexpr):
    """First tiles of the pool from the finer tier, to be loaded while its frames are waited for."""
    return tiles(words_p, 0, FINER.DOWN_ROWS, TIER.joined, FINER.DOWN_COLUMNS, FINER.HALVES, _AHEAD)


@triton.jit
def join(words_p, floats_p, frames_p, scratch_p, ahead, FINER: tl.constexpr, TIER: tl.constexpr):
    """Begins a tier's frame from the frames of the finer one; `ahead` are from `pooling`."""
    joined_p = scratch_p + TIER.scratch + TIER.layers * TIER.D
    k = tl.arange(0, FINER.JOIN)
    for piece in tl.static_range(TIER.joined // FINER.JOIN):
        at = piece * FINER.JOIN + k
        put(joined_p + at, tl.load(frames_p + at, cache_modifier=".cg"))
    tl.debug_barrier()
    for part in tl.static_range(TIER.D // FINER.DOWN_ROWS):
        d = part * FINER.DOWN_ROWS + tl.arange(0, FINER.DOWN_ROWS)
        if part > 0:
            ahead = ()
        sums = product(words_p, joined_p, part, ahead, FINER.DOWN_ROWS, TIER.joined, FINER.DOWN_COLUMNS, FINER.HALVES)
        sums += tl.load(floats_p + d)
        put(scratch_p + d, sums)
        # The centre's last block adds it.
        put(scratch_p + TIER.scratch + d, sums)


@triton.jit
def expand(words_p, floats_p, queue_p, scratch_p, FINER: tl.constexpr, TIER: tl.constexpr):
    """Ends a tier's frame: the queue that the finer tier adds."""
    tl.debug_barrier()
    for part in range(TIER.joined // FINER.UP_ROWS):
        at = part * FINER.UP_ROWS + tl.arange(0, FINER.UP_ROWS)
        sums = product(words_p, scratch_p, part, (), FINER.UP_ROWS, TIER.D, FINER.UP_COLUMNS, FINER.HALVES)
        put(queue_p + at, sums + tl.load(floats_p + at))


@triton.jit
def sample_step(
    words_p, floats_p, allowed_p, state_p, scratch_p, flags_p, draws_p, settings_p, symbols_p, scores_p, logits_p, line,
    step, start, turn, row, rows, eps, polls, CASE: tl.constexpr, SPLIT: tl.constexpr, WRITE_LOGITS: tl.constexpr,
):  # fmt: skip
    """One sample of the finest tier; returns the line of the embedding of the symbol drawn and the polls left."""
    TIER: tl.constexpr = CASE.outer
    t = (turn + step) % TIER.W
    s = tl.arange(0, TIER.S)
    bias_p = floats_p + CASE.embedding
    head_p = words_p + CASE.head
    d = tl.arange(0, TIER.D_ROWS)
    for part in tl.static_range(TIER.D // TIER.D_ROWS):
        at = part * TIER.D_ROWS + d
        put(scratch_p + at, tl.load(bias_p + TIER.S + line * TIER.D + at))
    place = (start + step) % TIER.pool
    complete = (start % TIER.pool + step) // TIER.pool
    polls = blocks(words_p, floats_p, state_p, scratch_p, flags_p, place, complete, t, eps, polls, TIER, SPLIT)

    ahead = tiles(head_p, 0, TIER.S, TIER.D, TIER.HEAD_COLUMNS, TIER.HALVES, TIER.X_AHEAD)
    draw = tl.load(draws_p + step * rows + row)
    temperature = tl.load(settings_p)
    mass = tl.load(settings_p + 1)
    k = tl.load(settings_p + 2).to(tl.int32)
    tl.debug_barrier()
    scale = norm_scale(scratch_p, eps, TIER.D, TIER.IN_COLUMNS)
    logits = product(head_p, scratch_p, 0, ahead, TIER.S, TIER.D, TIER.HEAD_COLUMNS, TIER.HALVES) * scale
    logits += tl.load(bias_p + s)
    if WRITE_LOGITS:
        tl.store(logits_p + (step * rows + row) * TIER.S + s, logits)
    index, score = choose(logits[None, :], draw, temperature, k, mass, TIER)
    line = tl.sum(index, axis=0)
    tl.store(symbols_p + step * rows + row, tl.load(allowed_p + line))
    tl.store(scores_p + step * rows + row, tl.sum(score, axis=0))
    # All have read the stream before the next step replaces it.
    tl.debug_barrier()
    return line, polls


@triton.jit
def middle_frame(
    words_p, floats_p, state_p, scratch_p, flags_p, frame, start, turn, eps, polls, CASE: tl.constexpr, SPLIT: tl.constexpr
):  # fmt: skip
    """Frame number `frame` of the launch; pointers are those of the finest tier. Returns the polls left."""
    FINER: tl.constexpr = CASE.outer
    TIER: tl.constexpr = CASE.middle
    pool_p = words_p + FINER.layers * FINER.matrices
    bias_p = floats_p + FINER.layers * FINER.vectors
    frames_p = state_p + FINER.frames
    words_p += FINER.words
    floats_p += FINER.floats
    state_p += FINER.state
    scratch_p += FINER.room
    first = start // FINER.pool % TIER.pool
    place = (first + frame) % TIER.pool
    t = (turn + frame) % TIER.W
    ahead = pooling(pool_p, FINER, TIER)
    polls = wait(flags_p, frame + 1, polls, SPLIT)
    join(pool_p, bias_p, frames_p, scratch_p, ahead, FINER, TIER)
    complete = (first + frame) // TIER.pool
    polls = blocks(
        words_p, floats_p, state_p, scratch_p, flags_p + 2 * _LINE, place, complete, t, eps, polls, TIER, SPLIT
    )
    queue_p = frames_p + FINER.pool * FINER.D
    expand(pool_p + FINER.pool_words, bias_p + FINER.wider, queue_p, scratch_p, FINER, TIER)
    publish(flags_p + _LINE, frame + 1, SPLIT)
    return polls


@triton.jit
def centre_frame(
    words_p, floats_p, state_p, scratch_p, flags_p, frame, turn, eps, polls, CASE: tl.constexpr, SPLIT: tl.constexpr
):  # fmt: skip
    """Likewise of the centre."""
    FINER: tl.constexpr = CASE.middle
    TIER: tl.constexpr = CASE.centre
    words_p += CASE.outer.words
    floats_p += CASE.outer.floats
    state_p += CASE.outer.state
    pool_p = words_p + FINER.layers * FINER.matrices
    bias_p = floats_p + FINER.layers * FINER.vectors
    frames_p = state_p + FINER.frames
    scratch_p += CASE.outer.room + FINER.room
    ahead = pooling(pool_p, FINER, TIER)
    polls = wait(flags_p + 2 * _LINE, frame + 1, polls, SPLIT)
    join(pool_p, bias_p, frames_p, scratch_p, ahead, FINER, TIER)
    t = (turn + frame) % TIER.W
    blocks(
        words_p + FINER.words, floats_p + FINER.floats, state_p + FINER.state, scratch_p, flags_p, 0, 0, t, eps, polls, TIER,
        SPLIT,
    )  # fmt: skip
    queue_p = frames_p + FINER.pool * FINER.D
    expand(pool_p + FINER.pool_words, bias_p + FINER.wider, queue_p, scratch_p, FINER, TIER)
    publish(flags_p + 3 * _LINE, frame + 1, SPLIT)
    return polls


@triton.jit(do_not_specialize=["steps", "start", "turn0", "turn1", "turn2", "rows", "first", "polls", "eps"])
def unet_kernel(
    words_p, floats_p, allowed_p, state_p, scratch_p, flags_p, last_p, draws_p, settings_p, symbols_p, scores_p, logits_p,
    steps, start, turn0, turn1, turn2, rows, first, polls, eps, CASE: tl.constexpr, SPLIT: tl.constexpr,
    WRITE_LOGITS: tl.constexpr,
):  # fmt: skip
    """Writes symbols and scores (steps, rows), and logits (steps, rows, S) if wanted; moves the state and the last symbol.

    Args:
        flags_p: (rows, 5, 32) int32 zeros: frames of the finest tier published, queues of the middle one, frames of the middle
            one, queues of the centre, whether a wait has failed.
        start: position of the first step modulo the product of the pools.
        turn0, turn1, turn2: position of the tiers in their rings.
        first: number of the first program.
        polls: of all waits of a program together.
    """
    PERIOD: tl.constexpr = CASE.outer.pool * CASE.middle.pool
    program = tl.program_id(0) + first
    if SPLIT:
        row = (program // 3).to(tl.int64)
        role = program % 3
    else:
        row = program.to(tl.int64)
        role = 0
    state_p += row * CASE.state
    scratch_p += row * CASE.room
    flags_p += row * (5 * _LINE)
    line = CASE.outer.symbols + tl.load(last_p + row)
    if SPLIT:
        if role == 0:
            for step in range(steps):
                line, polls = sample_step(
                    words_p, floats_p, allowed_p, state_p, scratch_p, flags_p, draws_p, settings_p, symbols_p, scores_p,
                    logits_p, line, step, start, turn0, row, rows, eps, polls, CASE, SPLIT, WRITE_LOGITS,
                )  # fmt: skip
            tl.store(last_p + row, tl.load(allowed_p + line))
        elif role == 1:
            for frame in range((start % CASE.outer.pool + steps) // CASE.outer.pool):
                polls = middle_frame(
                    words_p, floats_p, state_p, scratch_p, flags_p, frame, start, turn1, eps, polls, CASE, SPLIT
                )
        else:
            for frame in range((start + steps) // PERIOD):
                polls = centre_frame(
                    words_p, floats_p, state_p, scratch_p, flags_p, frame, turn2, eps, polls, CASE, SPLIT
                )  # fmt: skip
        if polls <= 0:
            tl.store(flags_p + 4 * _LINE, 1)
    else:
        for step in range(steps):
            line, polls = sample_step(
                words_p, floats_p, allowed_p, state_p, scratch_p, flags_p, draws_p, settings_p, symbols_p, scores_p,
                logits_p, line, step, start, turn0, row, rows, eps, polls, CASE, SPLIT, WRITE_LOGITS,
            )  # fmt: skip
            if (start + step + 1) % CASE.outer.pool == 0:
                frame = (start % CASE.outer.pool + step) // CASE.outer.pool
                middle_frame(
                    words_p, floats_p, state_p, scratch_p, flags_p, frame, start, turn1, eps, polls, CASE, SPLIT
                )
                if (start + step + 1) % PERIOD == 0:
                    frame = (start + step) // PERIOD
                    centre_frame(
                        words_p, floats_p, state_p, scratch_p, flags_p, frame, turn2, eps, polls, CASE, SPLIT
                    )  # fmt: skip
        tl.store(last_p + row, tl.load(allowed_p + line))


def decode_unet(
    network: UNetNetwork,
    state: UNetRows,
    draws: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    want_logits: bool = False,
    split: bool = False,
    polls: int = _POLLS,
) -> tuple[Tensor, Tensor, Tensor | None, UNetRows]:
    """As many steps as there are rows of `draws` (steps, rows), uniform numbers in fp64.

    Args:
        network: as `pack_unet` makes it.
        state: of the rows; its tensors are moved in place.
        temperature: 0 takes the most probable symbol.
        top_k, top_p: as in `generate`.
        want_logits: return the logits of allowed symbols.
        split: three programs a row, which must all be resident at once: rows at most a third of the multiprocessors.
        polls: of a program in all its waits for others.

    Returns:
        Symbols (steps, rows) int32, their log-probabilities fp64, logits (steps, rows, V) fp32 or None, and the state after;
        +inf for log-probabilities where programs that share a row have lost each other (`lost.confirm`).
    """
    (steps, rows), device = draws.shape, draws.device
    case = network.case
    if steps < 1:
        raise ValueError("no draws")
    drawn = temperature != 0
    outer = replace(
        case.outer,
        greedy=not drawn,
        scaled=temperature not in (0, 1),
        top_k=top_k is not None and drawn,
        top_p=top_p is not None and drawn,
    )
    symbols = torch.empty(steps, rows, dtype=torch.int32, device=device)
    scores = torch.empty(steps, rows, dtype=torch.float64, device=device)
    logits = torch.empty(steps if want_logits else 0, rows, outer.S, device=device)
    settings = settings_of(temperature, top_k, top_p, device)
    scratch = torch.empty(rows, case.room, device=device)
    flags = torch.zeros(rows, 5, 32, dtype=torch.int32, device=device)
    pointers = [network.words, network.floats, network.allowed, state.numbers, scratch, flags, state.last]
    pointers += [draws.contiguous(), settings, symbols, scores, logits]
    places = [steps, state.phase, *state.turns, rows]
    options = {"CASE": replace(case, outer=outer), "WRITE_LOGITS": want_logits, "num_warps": network.warps}
    options |= {"launch_cooperative_grid": True} if split and device.type == "cuda" else {}
    with on(device):
        unet_kernel[(3 * rows if split else rows,)](
            *pointers, *places, 0, polls, network.eps, SPLIT=split, maxnreg=_REGISTERS, **options
        )
    if split:
        mark(scores, flags[:, 4].any())
    turns, position = [], state.phase
    frames = steps
    for tier, turn in zip(case.tiers, state.turns, strict=True):
        turns.append((turn + frames) % tier.W)
        position, place = divmod(position, tier.pool)
        frames = (place + frames) // tier.pool
    period = case.outer.pool * case.middle.pool
    moved = state._replace(phase=(state.phase + steps) % period, turns=tuple(turns))
    return symbols, scores, logits[..., : outer.symbols] if want_logits else None, moved
