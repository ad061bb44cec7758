"""Selective scan on Triton: what it supports, how a call is laid out on the machine, autograd.

The recurrence and the kernels are in `triton_fwd` and `triton_bwd`; shapes are those of
`mamba_bio_audio.ops.selective_scan`. Saved for backward: the inputs and the fp32 state before every SEG-th step,
4 N / SEG bytes per (b, t, d). Backward itself holds the partial sums of dB and dC of one launch, at most 16 bytes per
(b, t, d): 8 for N = 16, or 4 where they end in bf16; with many states it launches once per group of channels.
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from mamba_bio_audio.kernels.differentiable_once import refuse_second_order, will_differentiate
from mamba_bio_audio.kernels.launch import cdiv, on
from mamba_bio_audio.kernels.selective_scan.triton_bwd import scan_bwd_kernel
from mamba_bio_audio.kernels.selective_scan.triton_fwd import (
    carry_kernel,
    chunk_state_kernel,
    scan_fwd_kernel,
)

MAX_STATES = 256
MAX_ROW_STRIDE = 1 << 25
_ACTIVATIONS = (torch.bfloat16, torch.float16, torch.float32)
# Below this many warps per scheduler one pass leaves too much of the machine idle, and two passes over chunks that fill
# it are faster. Forward: kernels-design.md section 4. Backward: two warps a scheduler hide each other's latency, and
# chunks cost it a tenth (benchmarks/results/selective_scan_backward_plans_h100.csv).
_SPLIT_BELOW = 0.53
_SPLIT_BACKWARD_BELOW = 1.5
_MIN_CHUNK_STEPS = 256
# Warps on a scheduler of a sequence in chunks. In backward more of them than fit at once still pay, as the last of them
# then leave less of the machine idle (benchmarks/results/selective_scan_chunks_h200.txt).
_PER_SCHEDULER = 8
_PER_SCHEDULER_BACKWARD = 16
# The partial sums of dB and dC of one launch of a backward kernel, bytes per (b, t, d): 8 for 16 real states. With many
# states fewer blocks of channels go through at a time.
_PARTIAL_BYTES = 16


def unsupported_reason(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    exact_zoh: bool = False,
) -> str | None:
    """Why these kernels cannot run this call, or None where they can. Device and shapes are the caller's affair."""
    if A.ndim == 3:
        return "complex A"
    if dt.ndim != 3 or B.ndim != 3 or C.ndim != 3:
        return "time-invariant dt, B or C"
    if exact_zoh:
        return "exact_zoh=True"
    if A.shape[-1] > MAX_STATES:
        return f"more than {MAX_STATES} states"
    for t in (u, dt):
        if t.dtype not in _ACTIVATIONS:
            return f"{t.dtype} activations"
    if any(t.dtype == torch.float64 for t in (A, B, C)):
        return "float64 parameters"
    return None


def supports(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, exact_zoh: bool = False) -> bool:
    """True where `selective_scan_triton` can run this call."""
    return unsupported_reason(u, dt, A, B, C, exact_zoh=exact_zoh) is None


@dataclass(frozen=True)
class Plan:
    """How one call lies on the machine. `chunks` > 1 splits the sequence, `chunk_steps` long each."""

    chunks: int
    chunk_steps: int
    fwd_block: int
    fwd_warps: int
    fwd_unroll: int
    state_unroll: int
    bwd_chunks: int
    bwd_chunk_steps: int
    bwd_block: int
    bwd_vec: int
    far: int
    warp_sums: bool = False
    bwd_unroll: int = 4
    group: int = 8
    segment: int = 16
    rows: int = 16
    fwd_registers: int | None = None
    bwd_registers: int | None = None


@cache
def _schedulers(device: torch.device) -> int:
    if device.type != "cuda":
        return 528  # the interpreter plans as for an H100
    return 4 * torch.cuda.get_device_properties(device).multi_processor_count


def _split(
    wanted: int | None,
    length: int,
    warps: int,
    schedulers: int,
    segment: int,
    per_scheduler: int = _PER_SCHEDULER,
    below: float = _SPLIT_BELOW,
) -> tuple[int, int]:
    """(chunks, steps per chunk): about as many chunks as wanted.

    Where None are, one chunk from `below` warps a scheduler on, else at most per_scheduler on each.
    """
    chunks, warps = 1 if wanted is None else wanted, max(warps, 1)  # an empty batch has none
    if wanted is None and warps < below * schedulers:
        # One warp more than a scheduler can take in whole rounds would make the rest of the machine wait for it.
        chunks = min(per_scheduler * schedulers // warps, cdiv(length, _MIN_CHUNK_STEPS))
    steps = cdiv(cdiv(length, chunks), segment) * segment
    return cdiv(length, steps), steps


def split_fields(
    fields: dict[str, Any],
    shape: tuple[int, int, int],
    schedulers: int,
    segment: int,
    chunks: int | None,
    bwd_chunks: int | None,
    bwd_per_scheduler: int = _PER_SCHEDULER,
    bwd_below: float = _SPLIT_BELOW,
) -> dict[str, int]:
    """Fields of a plan that say how its blocks of channels share the sequence; `shape` is (B, L, D)."""
    batch, length, channels = shape
    warps = batch * cdiv(channels, min(fields["fwd_block"], 32))
    bwd_warps = batch * cdiv(channels, fields["bwd_block"])
    bwd_wanted = bwd_chunks if bwd_chunks is not None else chunks
    number, steps = _split(chunks, length, warps, schedulers, segment)
    bwd_number, bwd_steps = _split(bwd_wanted, length, bwd_warps, schedulers, segment, bwd_per_scheduler, bwd_below)
    # Where many warps share a scheduler they hide DRAM themselves, and the prefetches only cost instructions.
    far = 32 if number == 1 else 0
    return {"chunks": number, "chunk_steps": steps, "bwd_chunks": bwd_number, "bwd_chunk_steps": bwd_steps, "far": far}


@lru_cache(maxsize=1024)
def make_plan(
    batch: int,
    length: int,
    channels: int,
    states: int,
    device: torch.device,
    *,
    chunks: int | None = None,
    bwd_chunks: int | None = None,
    **changes: Any,
) -> Plan:
    """The default plan of a call, with `chunks` (both directions), `bwd_chunks` or any other field overridden."""
    padded = padded_states(states)
    schedulers = _schedulers(device)
    segment = changes.get("segment", Plan.segment)
    fields: dict[str, Any] = {"rows": min(Plan.rows, segment)}
    if padded <= 32:
        wide = channels >= 128
        fields |= {"fwd_block": 128 if wide else 32, "fwd_warps": 4 if wide else 1}
        fields |= {"fwd_unroll": 4 if padded <= 16 else 2, "state_unroll": 4}
    else:
        # One warp with at most 32 states of a channel in a lane, the rest of them in other lanes.
        fields |= {"fwd_block": 1024 // padded, "fwd_warps": 1, "fwd_unroll": 2, "state_unroll": 2}
    # 256 elements of a tile in one warp: 2 channels x 4 states in each lane of a 16 x 16 tile.
    fields |= {"bwd_block": changes.get("bwd_block", min(max(256 // padded, 4), 32)), "bwd_vec": min(4, padded)}
    fields["warp_sums"] = (
        device.type == "cuda" and states == fields["bwd_block"] == 16 and changes.get("bwd_unroll", 4) % 2 == 0
    )
    fields |= split_fields(
        fields,
        (batch, length, channels),
        schedulers,
        segment,
        chunks,
        bwd_chunks,
        _PER_SCHEDULER_BACKWARD,
        _SPLIT_BACKWARD_BELOW if fields["warp_sums"] else _SPLIT_BELOW,
    )
    return Plan(**(fields | changes))


def padded_states(states: int) -> int:
    return max(triton.next_power_of_2(states), 2)


def _rows(t: Tensor) -> tuple[Tensor, int, int]:
    """(t, row stride, batch stride) of a (B, L, D) tensor whose channels are adjacent, copied where they are not.

    Also copied where rows lie so far apart that 32 bits do not span the 32 of a segment.
    """
    if (t.stride(2) != 1 and t.shape[2] > 1) or t.stride(1) > MAX_ROW_STRIDE:
        t = t.contiguous()
    return t, t.stride(1), t.stride(0)


@cache
def _sink(device: torch.device) -> Tensor:
    """Where kernels may write what nobody reads."""
    return torch.empty(8192, dtype=torch.int32, device=device)


@cache
def _zeros(device: torch.device) -> Tensor:
    return torch.zeros(1024, dtype=torch.int32, device=device)


def _fp32(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.detach().float().contiguous()


@dataclass
class ScanCall:
    """The arguments that forward and backward share, as the kernels want them."""

    u: Tensor
    dt: Tensor
    z: Tensor | None
    A: Tensor  # (N, D) fp32
    B: Tensor  # (B, L, N) fp32
    C: Tensor  # (B, L, N) fp32
    skip: Tensor | None
    bias: Tensor | None
    reset: Tensor | None  # (B, L) uint8
    softplus: bool
    precise: bool
    plan: Plan

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return *self.u.shape, self.A.shape[0]  # type: ignore[return-value]

    def flags(self) -> dict[str, bool]:
        return {
            "HAS_Z": self.z is not None,
            "HAS_BIAS": self.bias is not None,
            "SOFTPLUS": self.softplus,
            "HAS_RESET": self.reset is not None,
            "PRECISE": self.precise,
        }


def _chunk_starts(call: ScanCall, x: Tensor, first: Tensor | None, chunks: int, steps: int, *, reverse: bool) -> Tensor:
    """What enters every chunk (B, K, N, D): the state, or with `reverse` the adjoint from the later chunks."""
    batch, length, channels, states = call.sizes
    plan, padded = call.plan, padded_states(states)
    end = torch.empty(batch, chunks, states, channels, dtype=torch.float32, device=x.device)
    start = torch.empty_like(end)
    sum_dt = torch.empty(batch, chunks, channels, dtype=torch.float32, device=x.device)
    x, x_row, x_batch = _rows(x)
    dt, dt_row, dt_batch = _rows(call.dt)
    z, z_row, z_batch = _rows(call.z) if call.z is not None and reverse else (x, x_row, x_batch)
    grid = (batch * (chunks - 1) * cdiv(channels, plan.fwd_block),)
    flags = call.flags()
    flags["HAS_Z"] = flags["HAS_Z"] and reverse
    chunk_state_kernel[grid](
        x, dt, call.A, call.C if reverse else call.B, z,
        call.bias if call.bias is not None else call.A, call.reset if call.reset is not None else call.A,
        end, sum_dt, length, steps, chunks, x_batch, dt_batch, z_batch, 0,
        D=channels, N=states, NP=padded, BD=plan.fwd_block, UNROLL=plan.state_unroll,
        X_ROW=x_row, DT_ROW=dt_row, Z_ROW=z_row, VEC=1, REVERSE=reverse, **flags,
        num_warps=plan.fwd_warps,
    )  # fmt: skip
    block = 128
    carry_kernel[(batch * cdiv(states * channels, block),)](
        end, sum_dt, call.A, first if first is not None else end, start, chunks,
        D=channels, N=states, BLOCK=block, UNROLL=16, HAS_FIRST=first is not None, REVERSE=reverse, num_warps=4,
    )  # fmt: skip
    return start


def scan_forward(call: ScanCall, h0: Tensor | None, write_states: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """(out (B, L, D), last state (B, N, D), states (B, ceil(L / SEG), N, D) or None); h0 (B, N, D) fp32."""
    batch, length, channels, states = call.sizes
    plan, padded = call.plan, padded_states(states)
    device = call.u.device
    out = torch.empty(batch, length, channels, dtype=call.u.dtype, device=device)
    last = torch.empty(batch, states, channels, dtype=torch.float32, device=device)
    saved = None
    if write_states:
        segments = cdiv(length, plan.segment)
        saved = torch.empty(batch, segments, states, channels, dtype=torch.float32, device=device)
    u, u_row, u_batch = _rows(call.u)
    dt, dt_row, dt_batch = _rows(call.dt)
    z, z_row, z_batch = _rows(call.z) if call.z is not None else (u, u_row, u_batch)
    with on(device):
        if plan.chunks > 1:
            h0 = _chunk_starts(call, u, h0, plan.chunks, plan.chunk_steps, reverse=False)
        grid = (batch * plan.chunks * cdiv(channels, plan.fwd_block),)
        scan_fwd_kernel[grid](
            u, dt, call.A, call.B, call.C, call.skip if call.skip is not None else call.A, z,
            call.bias if call.bias is not None else call.A, h0 if h0 is not None else call.A,
            call.reset if call.reset is not None else call.A, out, last,
            saved if saved is not None else last, _sink(device), _zeros(device),
            length, plan.chunk_steps, plan.chunks, u_batch, dt_batch, z_batch, 0,
            D=channels, N=states, NP=padded, BD=plan.fwd_block, UNROLL=plan.fwd_unroll, SEG=plan.segment,
            U_ROW=u_row, DT_ROW=dt_row, Z_ROW=z_row, VEC=1, HAS_SKIP=call.skip is not None, HAS_H0=h0 is not None,
            WRITE_LAST=True, WRITE_STATES=write_states, GROUP=plan.group, FAR=plan.far, **call.flags(),
            num_warps=plan.fwd_warps, maxnreg=plan.fwd_registers,
        )  # fmt: skip
    return out, last, saved


def blocks_at_once(channels: int, blocks: int, states: int) -> int:
    """How many blocks of channels one launch of a backward kernel has; `states` counts both parts of complex ones."""
    return min(max(_PARTIAL_BYTES * channels // (8 * states), 1), blocks)


class PartialMap:
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
        found = self.of(size).sum(1, dtype=torch.float32)
        self.total = self.total + found if hasattr(self, "total") else found


@dataclass
class Gradients:
    u: Tensor
    dt: Tensor
    A: Tensor  # (D, N)
    B: Tensor
    C: Tensor
    skip: Tensor | None
    z: Tensor | None
    bias: Tensor | None
    h0: Tensor | None  # (B, N, D)


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
    narrow: bool = False,
) -> Gradients:
    """All gradients from g_out (B, L, D) and g_last (B, N, D).

    Args:
        dz: where to write the gate's gradient, any row stride; allocated by default.
        out: where to write the gated output (B, L, D) once more, contiguous; needs a gate. May be g_out itself, and
            `ddt`, the gradient of dt, may be dt: the lane that writes an element has read it before, and no other does.
        dBC: where to write the gradients of B and C side by side (B, L, 2 N), any row stride; fp32 by default.
        narrow: the gradients of B and C need be right to bf16 only.
    """
    batch, length, channels, states = call.sizes
    plan, padded = call.plan, padded_states(states)
    device = call.u.device
    chunks, segment = plan.bwd_chunks, plan.segment
    width = plan.bwd_block
    blocks = cdiv(channels, width)
    segments = cdiv(length, segment)
    group = blocks_at_once(channels, blocks, states)

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.float32, device=device)

    u, u_row, u_batch = _rows(call.u)
    dt, dt_row, dt_batch = _rows(call.dt)
    z, z_row, z_batch = _rows(call.z) if call.z is not None else (u, u_row, u_batch)
    g_out, g_row, g_batch = _rows(g_out)
    du = torch.empty(batch, length, channels, dtype=u.dtype, device=device)
    if ddt is None:
        ddt = torch.empty(batch, length, channels, dtype=dt.dtype, device=device)
    if dz is None and call.z is not None:
        dz = torch.empty(batch, length, channels, dtype=z.dtype, device=device)
    dz_row, dz_batch = (0, 0) if dz is None else (dz.stride(1), dz.stride(0))
    # Partial sums that end in bf16 may travel in bf16: half of the traffic, and their errors average out.
    partial = torch.bfloat16 if narrow and plan.warp_sums else torch.float32
    sums = PartialMap(batch, group, (segments * segment, 2 * states), partial, device)
    at_once = dBC is not None and dBC.dtype == partial and group == blocks
    dparameters = empty(batch * chunks, (states + 2) * channels)
    dh0 = empty(batch, channels, states) if need_h0 else None
    per_program = segment // plan.bwd_unroll * padded * width + 4 * segment * width
    scratch = empty(batch * chunks * group, per_program)
    with on(device):
        r_in = g_last
        if chunks > 1:
            r_in = _chunk_starts(call, g_out, g_last, chunks, plan.bwd_chunk_steps, reverse=True)
        if r_in is not None:
            r_in = r_in.transpose(-1, -2).contiguous()
        A = call.A.t().contiguous()
        for first in range(0, blocks, group):
            size = min(group, blocks - first)
            dB, dC = sums.of(size).split(states, dim=-1)
            scan_bwd_kernel[(batch * chunks * size,)](
                u, dt, A, call.B, call.C, call.skip if call.skip is not None else A, z,
                call.bias if call.bias is not None else A, call.reset if call.reset is not None else A,
                g_out, states_saved, r_in if r_in is not None else A,
                du, ddt, dz if dz is not None else du, out if out is not None else du, dB, dC, dparameters,
                dh0 if dh0 is not None else dparameters, scratch, _sink(device),
                length, plan.bwd_chunk_steps, chunks, first, u_batch, dt_batch, z_batch, g_batch, dz_batch, 0,
                GROUP=size, D=channels, N=states, NP=padded, BD=plan.bwd_block, UNROLL=plan.bwd_unroll, SEG=segment,
                ROWS=plan.rows,
                U_ROW=u_row, DT_ROW=dt_row, Z_ROW=z_row, G_ROW=g_row, DZ_ROW=dz_row, VEC=plan.bwd_vec, WARP_SUMS=plan.warp_sums,
                HAS_SKIP=call.skip is not None, HAS_R=r_in is not None, WRITE_DH0=need_h0, WRITE_OUT=out is not None,
                **call.flags(), num_warps=1, maxnreg=plan.bwd_registers,
            )  # fmt: skip
            if at_once:
                torch.sum(sums.of(size)[:, :, :length], 1, out=dBC)
            else:
                sums.add(size)

    if dBC is None:
        dBC = sums.total[:, :length]
    elif not at_once:
        dBC.copy_(sums.total[:, :length])

    dA, dskip, dbias = dparameters.sum(0).split([states * channels, channels, channels])
    return Gradients(
        u=du,
        dt=ddt,
        A=dA.view(channels, states),
        B=dBC[..., :states],
        C=dBC[..., states:],
        skip=None if call.skip is None else dskip,
        z=dz,
        bias=None if call.bias is None else dbias,
        h0=None if dh0 is None else dh0.transpose(1, 2).contiguous(),
    )


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        dt_bias: Tensor | None,
        h0: Tensor | None,
        reset: Tensor | None,
        softplus: bool,
        precise: bool,
        plan: Plan,
        train: bool,
    ) -> tuple[Tensor, Tensor]:
        call = ScanCall(
            u=u,
            dt=dt,
            z=z,
            A=A.detach().float().t().contiguous(),
            B=B.detach().float().contiguous(),
            C=C.detach().float().contiguous(),
            skip=_fp32(D),
            bias=_fp32(dt_bias),
            reset=None if reset is None else reset.to(torch.bool).contiguous().view(torch.uint8),
            softplus=softplus,
            precise=precise,
            plan=plan,
        )
        start = None if h0 is None else h0.detach().float().transpose(1, 2).contiguous()
        out, last, states = scan_forward(call, start, train)
        if train:
            ctx.save_for_backward(
                call.u, call.dt, call.z, call.A, call.B, call.C, call.skip, call.bias, call.reset, states
            )
            ctx.settings = (softplus, precise, plan)
            ctx.dtypes = tuple(None if t is None else t.dtype for t in (A, B, C, D, dt_bias, h0))
        ctx.set_materialize_grads(False)
        return out, last.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        g_out, g_last = grads
        u, dt, z, A, B, C, skip, bias, reset, states = ctx.saved_tensors
        softplus, precise, plan = ctx.settings
        call = ScanCall(u, dt, z, A, B, C, skip, bias, reset, softplus, precise, plan)
        need_h0 = ctx.needs_input_grad[8]
        if g_out is None:
            g_out = torch.zeros_like(u)
        if g_last is not None:
            g_last = g_last.float().transpose(1, 2).contiguous()
        A_dtype, B_dtype, C_dtype, D_dtype, bias_dtype, h0_dtype = ctx.dtypes
        narrow = B_dtype == C_dtype == torch.bfloat16
        g = scan_backward(call, states, g_out, g_last, need_h0, narrow=narrow)
        found = (
            g.u,
            g.dt,
            g.A.to(A_dtype),
            g.B.to(B_dtype),
            g.C.to(C_dtype),
            None if g.skip is None else g.skip.to(D_dtype),
            g.z,
            None if g.bias is None else g.bias.to(bias_dtype),
            None if g.h0 is None else g.h0.transpose(1, 2).to(h0_dtype),
        )
        return (*refuse_second_order("selective_scan", found), None, None, None, None, None)


def selective_scan_triton(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *,
    dt_softplus: bool = True,
    h0: Tensor | None = None,
    return_state: bool = False,
    reset: Tensor | None = None,
    exact_zoh: bool = False,
    precise: bool = False,
    plan: Plan | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan in fused Triton kernels, deterministic, with gradients also through h0 and the last state.

    Args:
        u, dt, z: (B, L, D) bf16, fp16 or fp32; any row stride as long as channels are adjacent.
        A: (D, N), negative. B, C: (B, L, N); best in fp32, which is what the kernels read. D, dt_bias: (D).
        h0: (B, D, N) state before step 0, zeros where None. reset: bool (B, L), clears the state before that step.
        precise: adds exp(dt A) - 1 instead of multiplying by exp(dt A), for memories beyond 10^4 steps.
        plan: layout on the machine, for benchmarks and tests; `make_plan` by default.

    Returns:
        out (B, L, D) in u's dtype, and with `return_state` the last state (B, D, N) fp32.
    """
    reason = unsupported_reason(u, dt, A, B, C, exact_zoh=exact_zoh)
    if reason is not None:
        raise NotImplementedError(f'selective_scan: the triton backend does not run {reason}; use backend="torch"')
    if plan is None:
        batch, length, channels = u.shape
        plan = make_plan(batch, length, channels, A.shape[-1], u.device)
    train = will_differentiate(u, dt, A, B, C, D, z, dt_bias, h0)
    out, last = _SelectiveScan.apply(u, dt, A, B, C, D, z, dt_bias, h0, reset, dt_softplus, precise, plan, train)
    return (out, last) if return_state else out
