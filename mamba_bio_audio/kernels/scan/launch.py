"""The Triton scan: launches forward and backward by a plan.

Saved for backward: the inputs and the fp32 state before every SEG-th step, 4 PARTS N / SEG bytes per (b, t, d). Backward
itself holds the partial sums of dB and dC of one launch, at most 16 bytes per (b, t, d): 8 for N = 16, or 4 where they end
in bf16; with many states it launches once per group of channels. Nothing of size (B, L, D, N) exists at any time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from mamba_bio_audio.kernels.launch import cdiv, launch, on
from mamba_bio_audio.kernels.scan.backward import scan_bwd_kernel
from mamba_bio_audio.kernels.scan.chunks import carry_kernel, chunk_end_kernel, chunk_state_kernel
from mamba_bio_audio.kernels.scan.forward import scan_fwd_kernel
from mamba_bio_audio.kernels.scan.inputs import Case, Plan, ScanInputs, make_plan, padded_states
from mamba_bio_audio.kernels.scan.lanes import scan_lanes_kernel
from mamba_bio_audio.kernels.scan.parts_sum import parts_sum, rows_sum
from mamba_bio_audio.kernels.scan.short_call import ShortTensors, fits, short_forward
from mamba_bio_audio.kernels.scan.split_bc import map_planes, turned

MAX_ROW_STRIDE = 1 << 25
# The partial sums of dB and dC of one launch of the backward kernel, bytes per (b, t, d): 8 for 16 real states. With many
# states fewer blocks of channels go through at a time.
_PARTIAL_BYTES = 16
_ONCE = 1 << 20  # steps between states of which only the first is wanted


def rows_of(t: Tensor) -> tuple[Tensor, int, int]:
    """(t, row stride, batch stride) of a (B, L, D) tensor whose channels are adjacent, copied where they are not.

    Also copied where rows lie so far apart that 32 bits do not span the 32 of a segment.
    """
    if (t.stride(2) != 1 and t.shape[2] > 1) or t.stride(1) > MAX_ROW_STRIDE:
        t = t.contiguous()
    return t, t.stride(1), t.stride(0)


@cache
def sink_of(device: torch.device) -> Tensor:
    """Where kernels may write what nobody reads."""
    return torch.empty(8192, dtype=torch.int32, device=device)


@cache
def zeros_of(device: torch.device) -> Tensor:
    """Zeros that the compiler knows nothing of; they are there for whichever stream reads them."""
    made = torch.zeros(1024, dtype=torch.int32, device=device)
    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        torch.cuda.current_stream(device).synchronize()
    return made


@dataclass
class ScanCall:
    """The arguments that forward and backward share, as the kernels want them.

    Nothing changes it, but a frozen one takes 2 us longer to make, and a layer's training step makes two.
    """

    u: Tensor
    dt: Tensor  # (B, L, D), or (D) fp32
    z: Tensor | None
    A: Tensor  # (PARTS, N, D) fp32
    B: Tensor  # (B, L, PARTS, N) or (PARTS, N, D) fp32
    C: Tensor
    skip: Tensor | None
    bias: Tensor | None
    reset: Tensor | None  # (B, L) uint8
    case: Case
    plan: Plan

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Batch, length, channels, states."""
        return *self.u.shape, self.A.shape[1]  # type: ignore[return-value]

    def rows(self, *, gate: bool = True) -> tuple[Tensor, int, int, Tensor, int, int]:
        """dt and z as `rows_of` gives them. A fixed dt has strides 0; an absent gate is u, which is then not read for it."""
        dt = (self.dt, 0, 0) if self.case.dt_lti else rows_of(self.dt)
        return *dt, *(rows_of(self.z) if gate and self.z is not None else (self.u, 0, 0))


def _fp32(t: Tensor | None) -> Tensor | None:
    if t is None or (t.dtype == torch.float32 and t.is_contiguous()):
        return t
    return t.detach().float().contiguous()


def planes_of(t: Tensor, is_complex: bool) -> Tensor:
    """(..., D, N[, 2]) as contiguous fp32 (..., PARTS, N, D)."""
    t = t.detach().float()
    return (t.movedim(-1, -3).transpose(-1, -2) if is_complex else t.transpose(-1, -2).unsqueeze(-3)).contiguous()


def from_parts(t: Tensor, is_complex: bool) -> Tensor:
    """(..., PARTS, D, N) as (..., D, N[, 2])."""
    return t.movedim(-3, -1) if is_complex else t.squeeze(-3)


def _map_planes(t: Tensor, fixed: bool, is_complex: bool) -> Tensor:
    """B or C as the kernels read it: (PARTS, N, D) where fixed, else (B, L, PARTS, N)."""
    if fixed:
        return planes_of(t, is_complex)
    t = t.detach().float()
    return (t.transpose(-1, -2) if is_complex else t.unsqueeze(2)).contiguous()


def prepared(s: ScanInputs, plan: Plan | None = None) -> ScanCall:
    """The call as the kernels want it, by the default plan or another."""
    case = s.case
    selective = not (case.B_lti or case.C_lti) and s.B.dtype == s.C.dtype
    if selective and (case.complex or s.B.dtype != torch.float32):
        A, B, C = map_planes(s.A, s.B, s.C)
    else:
        A = planes_of(s.A, case.complex)
        B, C = _map_planes(s.B, case.B_lti, case.complex), _map_planes(s.C, case.C_lti, case.complex)
    return ScanCall(
        u=s.u,
        dt=s.dt.detach().float().contiguous() if case.dt_lti else s.dt,
        z=s.z,
        A=A,
        B=B,
        C=C,
        skip=_fp32(s.D),
        bias=_fp32(s.dt_bias),
        reset=None if s.reset is None else s.reset.to(torch.bool).contiguous().view(torch.uint8),
        case=case,
        plan=plan or make_plan(*s.u.shape, s.A.shape[1], s.u.device, case),
    )


@cache
def _chunk_case(case: Case, reverse: bool) -> Case:
    """The case of the chunk kernel, whose B is the one map that goes through: B, or in reverse C."""
    B_lti = case.C_lti if reverse else case.B_lti
    return replace(case, B_lti=B_lti, C_lti=True, gate=case.gate and reverse, skip=False)


def chunk_starts(call: ScanCall, x: Tensor, first: Tensor | None, chunks: int, steps: int, *, reverse: bool) -> Tensor:
    """What enters every chunk (B, K, PARTS, N, D): the state, or with `reverse` the adjoint from the later chunks."""
    batch, length, channels, states = call.sizes
    plan, case = call.plan, call.case
    # In pieces: those of the first chunk do not matter to any.
    pieces = plan.bwd_pieces if reverse else 1
    chunks, steps, skipped = (chunks - 1) * pieces + 1, steps // pieces, pieces - 1
    end = torch.empty(batch, chunks, case.parts, states, channels, dtype=torch.float32, device=x.device)
    start = torch.empty_like(end)
    sum_dt = torch.empty(batch, chunks, channels, dtype=torch.float32, device=x.device)
    x, x_row, x_batch = rows_of(x)
    dt, dt_row, dt_batch, z, z_row, z_batch = call.rows(gate=reverse)
    kernel, block, warps, unroll = chunk_state_kernel, plan.state_block, plan.state_warps, plan.state_unroll
    zeros: tuple[Tensor, ...] = ()
    also: tuple[int, ...] = (skipped,)
    if plan.bwd_ends if reverse else plan.ends:  # one warp, which ends where its channels do
        kernel, block, warps, unroll, zeros, also = chunk_end_kernel, 32, 1, 8, (zeros_of(x.device),), ()
    launch(
        kernel, batch * (chunks - 1) * cdiv(channels, block),
        x, dt, call.A, call.C if reverse else call.B, z,
        call.bias if call.bias is not None else call.A, call.reset if call.reset is not None else call.A,
        end, sum_dt, *zeros, length, steps, chunks, x_batch, dt_batch, z_batch, 0, *also,
        D=channels, N=states, NP=padded_states(states), BD=block, UNROLL=unroll,
        X_ROW=x_row, DT_ROW=dt_row, Z_ROW=z_row, CASE=_chunk_case(case, reverse), REVERSE=reverse, num_warps=warps,
    )  # fmt: skip
    block = 128
    launch(
        carry_kernel, batch * cdiv(states * channels, block),
        end, sum_dt, call.A, first if first is not None else end, start, chunks,
        D=channels, N=states, BLOCK=block, UNROLL=16, COMPLEX=case.complex, HAS_FIRST=first is not None,
        REVERSE=reverse, num_warps=4,
    )  # fmt: skip
    return start if pieces == 1 else start[:, ::pieces]


def _in_two_lanes(call: ScanCall, unroll: int) -> bool:
    """Whether `lanes` can: whole blocks of steps and channels, and maps of which 16 bytes are loaded at once."""
    _, length, channels, states = call.sizes
    whole = states == 16 and not channels % 16 and length >= unroll and not call.plan.segment % unroll
    return call.case.plain and call.plan.chunks == 1 and whole and not (call.B.data_ptr() | call.C.data_ptr()) % 16


def scan_forward(call: ScanCall, h0: Tensor | None, write_states: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """(out (B, L, D), last state (B, PARTS, N, D), states (B, ceil(L / SEG), PARTS, N, D) or None); h0 in planes."""
    batch, length, channels, states = call.sizes
    plan, case, device = call.plan, call.case, call.u.device
    if plan.short:
        (u, *_), (dt, _, _, z, _, _) = rows_of(call.u), call.rows()
        A, B, C = call.A[0].T, *(t.view(batch, length, states) for t in (call.B, call.C))
        gate = z if case.gate else None
        short = ShortTensors(u, dt, A, B, C, call.skip, gate, call.bias, h0, call.reset)
        if fits(short):
            out, found, saved = short_forward(short, case, plan, keep=write_states)
            assert found is not None
            return out, found, saved
    out = torch.empty(batch, length, channels, dtype=call.u.dtype, device=device)
    last = torch.empty(batch, case.parts, states, channels, dtype=torch.float32, device=device)
    saved, segment = None, plan.segment
    # In one chunk a loop without a branch that stores states loads late and takes 8 % more time than training's, so there it
    # stores a state that nobody reads, once (docs/log.md).
    once = not write_states and case.plain and plan.chunks == 1
    if once:
        segment = _ONCE
    if write_states or once:
        segments = cdiv(length, segment)
        saved = torch.empty(batch, segments, case.parts, states, channels, dtype=torch.float32, device=device)
    u, u_row, u_batch = rows_of(call.u)
    dt, dt_row, dt_batch, z, z_row, z_batch = call.rows()
    with on(device):
        if plan.chunks > 1:
            h0 = chunk_starts(call, u, h0, plan.chunks, plan.chunk_steps, reverse=False)
        lanes = plan.lanes if write_states else plan.lanes_inference
        if lanes and _in_two_lanes(call, lanes):
            launch(
                scan_lanes_kernel, batch * channels // 16,
                u, dt, call.A, call.B, call.C, call.skip if call.skip is not None else call.A, z,
                call.bias if call.bias is not None else call.A, h0 if h0 is not None else call.A,
                call.reset if call.reset is not None else call.A, out, last, saved if saved is not None else last,
                length, u_batch, dt_batch, z_batch, 0,
                D=channels, UNROLL=lanes, SEG=segment, U_ROW=u_row, DT_ROW=dt_row, Z_ROW=z_row, CASE=case,
                HAS_H0=h0 is not None, WRITE_STATES=saved is not None, FAR=32, num_warps=1,
            )  # fmt: skip
            return out, last, saved if write_states else None
        launch(
            scan_fwd_kernel, batch * plan.chunks * cdiv(channels, plan.fwd_block),
            u, dt, call.A, call.B, call.C, call.skip if call.skip is not None else call.A, z,
            call.bias if call.bias is not None else call.A, h0 if h0 is not None else call.A,
            call.reset if call.reset is not None else call.A, out, last,
            saved if saved is not None else last, sink_of(device), zeros_of(device),
            length, plan.chunk_steps, plan.chunks, u_batch, dt_batch, z_batch, 0,
            D=channels, N=states, NP=padded_states(states), BD=plan.fwd_block, UNROLL=plan.fwd_unroll,
            SEG=segment, U_ROW=u_row, DT_ROW=dt_row, Z_ROW=z_row, CASE=case,
            HAS_H0=h0 is not None, WRITE_STATES=saved is not None, GROUP=plan.group, FAR=plan.far,
            num_warps=plan.fwd_warps, maxnreg=plan.fwd_registers,
        )  # fmt: skip
    return out, last, saved if write_states else None


def finer_states(call: ScanCall, kept: Tensor, out: Tensor) -> Tensor:
    """States of every `bwd_segment` steps from those that were kept: the scan again, each piece from the state before it.

    Its output goes to `out`.
    """
    batch, length, channels, states = call.sizes
    plan, device = call.plan, call.u.device
    segments = cdiv(length, plan.segment)
    found = torch.empty(batch, cdiv(length, plan.bwd_segment), *kept.shape[2:], dtype=torch.float32, device=device)
    last = torch.empty(batch, *kept.shape[2:], dtype=torch.float32, device=device)
    u, u_row, u_batch = rows_of(call.u)
    dt, dt_row, dt_batch, z, z_row, z_batch = call.rows()
    launch(
        scan_fwd_kernel, batch * segments * cdiv(channels, plan.fwd_block),
        u, dt, call.A, call.B, call.C, call.skip if call.skip is not None else call.A, z,
        call.bias if call.bias is not None else call.A, kept,
        call.reset if call.reset is not None else call.A, out, last, found, sink_of(device), zeros_of(device),
        length, plan.segment, segments, u_batch, dt_batch, z_batch, 0,
        D=channels, N=states, NP=padded_states(states), BD=plan.fwd_block, UNROLL=plan.fwd_unroll,
        SEG=plan.bwd_segment, U_ROW=u_row, DT_ROW=dt_row, Z_ROW=z_row, CASE=call.case,
        HAS_H0=True, WRITE_STATES=True, GROUP=plan.group, FAR=0, num_warps=plan.fwd_warps, maxnreg=plan.fwd_registers,
    )  # fmt: skip
    return found


def blocks_at_once(channels: int, blocks: int, states: int) -> int:
    """How many blocks of channels one launch of the backward kernel has; `states` counts both parts of complex ones."""
    return min(max(_PARTIAL_BYTES * channels // (8 * states), 1), blocks)


class _PartialMap:
    """Sums over channels of a (B, L, ...) map: a row per block of channels from each launch, added up in order."""

    total: Tensor  # (B, *shape) fp32

    def __init__(
        self, batch: int, group: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shape = shape
        self.parts = torch.empty(batch * group, *shape, dtype=dtype, device=device)
        self.batch = batch

    def of(self, size: int) -> Tensor:
        """(B, size, *shape), what a launch of `size` blocks writes."""
        return self.parts[: self.batch * size].view(self.batch, size, *self.shape)

    def add(self, size: int) -> None:
        """After a launch of `size` blocks."""
        found = torch.empty(self.batch, *self.shape, dtype=torch.float32, device=self.parts.device)
        parts_sum(self.of(size), found)
        self.total = self.total + found if hasattr(self, "total") else found


@dataclass
class Gradients:
    """Gradients of a call, None where it has no such argument or none is wanted."""

    u: Tensor
    dt: Tensor
    A: Tensor  # (D, N[, 2]); this and those that follow in public shapes
    B: Tensor
    C: Tensor
    skip: Tensor | None
    z: Tensor | None
    bias: Tensor | None
    h0: Tensor | None


def scan_backward(
    call: ScanCall,
    states_saved: Tensor,
    g_out: Tensor,
    g_last: Tensor | None,
    need_h0: bool,
    *,
    dz: Tensor | None = None,
    out: Tensor | None = None,
    ddt: Tensor | None = None,
    dBC: Tensor | None = None,
    narrow: tuple[bool, bool] = (False, False),
) -> Gradients:
    """All gradients from g_out (B, L, D) and g_last (B, PARTS, N, D).

    Args:
        dz: where to write the gate's gradient, any row stride; allocated by default.
        out: where to write the gated output (B, L, D) once more, contiguous; needs a gate. May be g_out itself, and
            `ddt`, the gradient of dt, may be dt: the lane that writes an element has read it before, and no other does.
        dBC: where to write the gradients of a plain scan's B and C side by side (B, L, 2 N), any row stride.
        narrow: the gradient of B, that of C need be right to bf16 only.
    """
    batch, length, channels, states = call.sizes
    plan, case, device = call.plan, call.case, call.u.device
    chunks, segment, parts, padded = plan.bwd_chunks, plan.bwd_segment, case.parts, padded_states(states)
    blocks = cdiv(channels, plan.bwd_block)
    group = blocks_at_once(channels, blocks, parts * states)

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.float32, device=device)

    def partial(states: int, narrow: bool) -> _PartialMap:
        # Partial sums that end in bf16 may travel in bf16: half of the traffic, and their errors average out.
        dtype = torch.bfloat16 if narrow and plan.warp_sums else torch.float32
        return _PartialMap(batch, group, (cdiv(length, segment) * segment, parts * states), dtype, device)

    u, u_row, u_batch = rows_of(call.u)
    dt, dt_row, dt_batch, z, z_row, z_batch = call.rows()
    g_out, g_row, g_batch = rows_of(g_out)
    du = torch.empty(batch, length, channels, dtype=u.dtype, device=device)
    if ddt is None:
        ddt = du if case.dt_lti else torch.empty(batch, length, channels, dtype=dt.dtype, device=device)
    if dz is None:
        dz = du if call.z is None else torch.empty(batch, length, channels, dtype=z.dtype, device=device)
    if case.plain:  # dB and dC of a step lie side by side
        both = partial(2 * states, all(narrow))
        sums = [both]
    else:
        both = None
        maps = [
            None if fixed else partial(states, small)
            for fixed, small in zip((case.B_lti, case.C_lti), narrow, strict=True)
        ]
        sums = [m for m in maps if m is not None]
    at_once = both is not None and dBC is not None and group == blocks
    tiles = 1 + case.B_lti + case.C_lti
    dparameters = empty(batch * chunks, tiles * parts * states * channels + 2 * channels)
    dh0 = empty(batch, parts, channels, states) if need_h0 else None
    scratch = zeros_of(device)
    if not plan.warp_sums:  # those have it in shared memory
        scratch = empty(
            batch * chunks * group, (segment // plan.bwd_unroll * parts * padded + 4 * segment) * plan.bwd_block
        )
    with on(device):
        if plan.bwd_segment != plan.segment:
            states_saved = finer_states(call, states_saved, du)  # which is written later
        r_in = g_last
        if chunks > 1:
            r_in = chunk_starts(call, g_out, g_last, chunks, plan.bwd_chunk_steps, reverse=True)
        # What the kernel keeps in registers it reads as (..., D, N).
        A = turned(call.A)
        B = turned(call.B) if case.B_lti else call.B
        C = turned(call.C) if case.C_lti else call.C
        r_in = None if r_in is None else turned(r_in)
        for first in range(0, blocks, group):
            size = min(group, blocks - first)
            if both is not None:
                dB, dC = both.of(size).split(states, dim=-1)
            else:
                dB, dC = (A if m is None else m.of(size) for m in maps)
            launch(
                scan_bwd_kernel, batch * chunks * size,
                u, dt, A, B, C, call.skip if call.skip is not None else A, z,
                call.bias if call.bias is not None else A, call.reset if call.reset is not None else A,
                g_out, states_saved, r_in if r_in is not None else A,
                du, ddt, dz, out if out is not None else du, dB, dC, dparameters,
                dh0 if dh0 is not None else dparameters, scratch, sink_of(device),
                length, plan.bwd_chunk_steps, chunks, first, u_batch, dt_batch, z_batch, g_batch, dz.stride(0), 0,
                GROUP=size, D=channels, N=states, NP=padded, BD=plan.bwd_block, UNROLL=plan.bwd_unroll, SEG=segment,
                ROWS=plan.rows, U_ROW=u_row, DT_ROW=dt_row, Z_ROW=z_row, G_ROW=g_row, DZ_ROW=dz.stride(1),
                SUMS_ROW=(2 if both is not None else 1) * parts * states, VEC=plan.bwd_vec, WARP_SUMS=plan.warp_sums,
                CASE=case, HAS_R=r_in is not None, WRITE_DH0=need_h0, WRITE_OUT=out is not None,
                num_warps=1, maxnreg=plan.bwd_registers,
            )  # fmt: skip
            if at_once and dBC is not None:
                parts_sum(sums[0].of(size), dBC)
            else:
                for m in sums:
                    m.add(size)

    with on(device):
        summed = rows_sum(dparameters)
    found, dskip, step = summed.split([tiles * parts * states * channels, channels, channels])
    tile_sums = iter(found.view(tiles, parts, channels, states).unbind())
    dA = from_parts(next(tile_sums), case.complex)
    if both is not None:
        if dBC is None:
            dBC = both.total[:, :length]
        elif not at_once:
            dBC.copy_(both.total[:, :length])
        dB, dC = dBC[..., :states], dBC[..., states:]
    else:
        dB, dC = (_public_map(next(tile_sums) if m is None else m, length, states, case.complex) for m in maps)
    return Gradients(
        u=du,
        dt=step if case.dt_lti else ddt,
        A=dA,
        B=dB,
        C=dC,
        skip=None if call.skip is None else dskip,
        z=None if call.z is None else dz,
        bias=None if call.bias is None else step,
        h0=None if dh0 is None else from_parts(dh0, case.complex),
    )


def _public_map(found: Tensor | _PartialMap, length: int, states: int, is_complex: bool) -> Tensor:
    """Gradient of B or C in its public shape."""
    if isinstance(found, Tensor):
        return from_parts(found, is_complex)
    rows = found.total[:, :length]
    return rows.unflatten(-1, (2, states)).transpose(-1, -2) if is_complex else rows
