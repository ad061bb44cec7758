"""Complex, time-invariant and exactly held scans on Triton: layout on the machine and autograd.

The recurrence and the kernels are in `general_fwd`, `general_chunks` and `general_bwd`; shapes are those of
`mamba_bio_audio.ops.selective_scan`. Real selective scans with the simple hold run faster in `triton_op`. Saved for
backward: the inputs and the fp32 state before every SEG-th step. Nothing of size (B, L, D, N) exists at any time.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mamba_bio_audio.kernels.differentiable_once import refuse_second_order, will_differentiate
from mamba_bio_audio.kernels.launch import cdiv, on
from mamba_bio_audio.kernels.selective_scan.general_bwd import general_bwd_kernel
from mamba_bio_audio.kernels.selective_scan.general_chunks import general_chunk_kernel, pair_carry_kernel
from mamba_bio_audio.kernels.selective_scan.general_fwd import general_fwd_kernel
from mamba_bio_audio.kernels.selective_scan.triton_fwd import carry_kernel
from mamba_bio_audio.kernels.selective_scan.triton_op import (
    _ACTIVATIONS,
    MAX_STATES,
    PartialMap,
    Plan,
    _fp32,
    _rows,
    _schedulers,
    _sink,
    _zeros,
    blocks_at_once,
    padded_states,
    split_fields,
)


def unsupported_reason(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> str | None:
    """Why no scan kernel can run this call, or None where one can. Device and shapes are the caller's affair."""
    if A.shape[1] > MAX_STATES:
        return f"more than {MAX_STATES} states"
    if u.dtype not in _ACTIVATIONS:
        return f"{u.dtype} activations"
    if any(t.dtype == torch.float64 for t in (dt, A, B, C)):
        return "float64 parameters"
    return None


@dataclass(frozen=True)
class Kind:
    """Which scan it is: everything that picks a kernel beyond the optional inputs."""

    complex: bool
    dt_lti: bool
    B_lti: bool
    C_lti: bool
    exact: bool


def kind_of(dt: Tensor, A: Tensor, B: Tensor, C: Tensor, exact_zoh: bool) -> Kind:
    """The kind of a call from its shapes."""
    fixed = A.ndim  # (D, N[, 2]) against (B, L, N[, 2])
    return Kind(A.ndim == 3, dt.ndim == 1, B.ndim == fixed, C.ndim == fixed, exact_zoh)


@lru_cache(maxsize=1024)
def make_general_plan(
    batch: int,
    length: int,
    channels: int,
    states: int,
    kind: Kind,
    device: torch.device,
    *,
    chunks: int | None = None,
    bwd_chunks: int | None = None,
    **changes: Any,
) -> Plan:
    """The default plan of a call, with `chunks` (both directions), `bwd_chunks` or any other field overridden."""
    padded = padded_states(states)
    parts = 2 if kind.complex else 1
    schedulers = _schedulers(device)
    segment = changes.get("segment", Plan.segment)
    fields: dict[str, Any] = {}
    if padded * parts <= 32:
        wide = channels >= 128
        fields |= {"fwd_block": 128 if wide else 32, "fwd_warps": 4 if wide else 1}
        fields |= {"fwd_unroll": 4 if padded <= 16 else 2, "state_unroll": 4}
    else:
        # One warp with at most 16 pairs or 32 real states of a channel in a lane, the rest of them in other lanes.
        fields |= {"fwd_block": 1024 // (padded * parts), "fwd_warps": 1, "fwd_unroll": 2, "state_unroll": 2}
    # 256 elements of a tile in one warp: 2 channels x 4 states in each lane of a 16 x 16 tile.
    fields |= {"bwd_block": min(max(256 // padded, 4 // parts), 32), "bwd_vec": min(4, padded)}
    fields["warp_sums"] = device.type == "cuda" and states == changes.get("bwd_block", fields["bwd_block"]) == 16
    # A block of steps holds its factors in registers; with a fixed dt no step may lie past the end.
    unroll = (2 if kind.exact else 4) // parts
    if kind.exact:  # as many instructions as several steps without
        fields |= {"fwd_unroll": 1, "state_unroll": 1}
    while kind.dt_lti and length % unroll:
        unroll //= 2
    fields["bwd_unroll"] = unroll

    fields |= split_fields(fields, (batch, length, channels), schedulers, segment, chunks, bwd_chunks)
    return Plan(**(fields | changes))


@dataclass
class _Call:
    """The arguments that forward and backward share, as the kernels want them."""

    u: Tensor
    dt: Tensor  # (B, L, D), or (D) fp32
    z: Tensor | None
    A: Tensor  # (PARTS, N, D) fp32
    B: Tensor  # (B, L, PARTS, N) or (PARTS, N, D) fp32
    C: Tensor
    skip: Tensor | None
    bias: Tensor | None
    reset: Tensor | None  # (B, L) uint8
    softplus: bool
    precise: bool
    kind: Kind
    plan: Plan

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """Batch, length, channels, parts, states."""
        return *self.u.shape, *self.A.shape[:2]  # type: ignore[return-value]

    def step_rows(self) -> tuple[Tensor, int, int]:
        return (self.dt, 0, 0) if self.kind.dt_lti else _rows(self.dt)

    def flags(self) -> dict[str, bool]:
        return {
            "COMPLEX": self.kind.complex,
            "DT_LTI": self.kind.dt_lti,
            "EXACT": self.kind.exact,
            "HAS_Z": self.z is not None,
            "HAS_BIAS": self.bias is not None,
            "SOFTPLUS": self.softplus,
            "HAS_RESET": self.reset is not None,
            "PRECISE": self.precise,
        }


def _planes(t: Tensor, is_complex: bool) -> Tensor:
    """(..., D, N[, 2]) as contiguous fp32 (..., PARTS, N, D)."""
    t = t.detach().float()
    return (t.movedim(-1, -3).transpose(-1, -2) if is_complex else t.transpose(-1, -2).unsqueeze(-3)).contiguous()


def _from_planes(t: Tensor, is_complex: bool) -> Tensor:
    """(..., PARTS, N, D) as (..., D, N[, 2])."""
    return _from_parts(t.transpose(-1, -2), is_complex)


def _from_parts(t: Tensor, is_complex: bool) -> Tensor:
    """(..., PARTS, D, N) as (..., D, N[, 2])."""
    return t.movedim(-3, -1) if is_complex else t.squeeze(-3)


def _map_planes(t: Tensor, fixed: bool, is_complex: bool) -> Tensor:
    """B or C as the kernels read it: (PARTS, N, D) where fixed, else (B, L, PARTS, N)."""
    if fixed:
        return _planes(t, is_complex)
    t = t.detach().float()
    return (t.transpose(-1, -2) if is_complex else t.unsqueeze(2)).contiguous()


def _chunk_starts(call: _Call, x: Tensor, first: Tensor | None, chunks: int, steps: int, *, reverse: bool) -> Tensor:
    """What enters every chunk (B, K, PARTS, N, D): the state, or with `reverse` the adjoint from the later chunks."""
    batch, length, channels, parts, states = call.sizes
    plan = call.plan
    end = torch.empty(batch, chunks, parts, states, channels, dtype=torch.float32, device=x.device)
    start = torch.empty_like(end)
    sum_dt = torch.empty(batch, chunks, channels, dtype=torch.float32, device=x.device)
    x, x_row, x_batch = _rows(x)
    dt, dt_row, dt_batch = call.step_rows()
    z, z_row, z_batch = _rows(call.z) if call.z is not None and reverse else (x, x_row, x_batch)
    grid = (batch * (chunks - 1) * cdiv(channels, plan.fwd_block),)
    flags = call.flags()
    flags["HAS_Z"] = flags["HAS_Z"] and reverse
    general_chunk_kernel[grid](
        x, dt, call.A, call.C if reverse else call.B, z,
        call.bias if call.bias is not None else call.A, call.reset if call.reset is not None else call.A,
        end, sum_dt, length, steps, chunks, x_batch, dt_batch, z_batch, 0,
        D=channels, N=states, NP=padded_states(states), BD=plan.fwd_block, UNROLL=plan.state_unroll,
        X_ROW=x_row, DT_ROW=dt_row, Z_ROW=z_row, V_LTI=call.kind.C_lti if reverse else call.kind.B_lti,
        REVERSE=reverse, **flags, num_warps=plan.fwd_warps,
    )  # fmt: skip
    block = 128
    carry = pair_carry_kernel if call.kind.complex else carry_kernel
    carry[(batch * cdiv(states * channels, block),)](
        end, sum_dt, call.A, first if first is not None else end, start, chunks,
        D=channels, N=states, BLOCK=block, UNROLL=16, HAS_FIRST=first is not None, REVERSE=reverse, num_warps=4,
    )  # fmt: skip
    return start


def _forward(call: _Call, h0: Tensor | None, write_states: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """(out (B, L, D), last state (B, PARTS, N, D), states (B, ceil(L / SEG), PARTS, N, D) or None)."""
    batch, length, channels, parts, states = call.sizes
    plan, device = call.plan, call.u.device
    out = torch.empty(batch, length, channels, dtype=call.u.dtype, device=device)
    last = torch.empty(batch, parts, states, channels, dtype=torch.float32, device=device)
    saved = None
    if write_states:
        segments = cdiv(length, plan.segment)
        saved = torch.empty(batch, segments, parts, states, channels, dtype=torch.float32, device=device)
    u, u_row, u_batch = _rows(call.u)
    dt, dt_row, dt_batch = call.step_rows()
    z, z_row, z_batch = _rows(call.z) if call.z is not None else (u, u_row, u_batch)
    with on(device):
        if plan.chunks > 1:
            h0 = _chunk_starts(call, u, h0, plan.chunks, plan.chunk_steps, reverse=False)
        grid = (batch * plan.chunks * cdiv(channels, plan.fwd_block),)
        general_fwd_kernel[grid](
            u, dt, call.A, call.B, call.C, call.skip if call.skip is not None else call.A, z,
            call.bias if call.bias is not None else call.A, h0 if h0 is not None else call.A,
            call.reset if call.reset is not None else call.A, out, last,
            saved if saved is not None else last, _sink(device), _zeros(device),
            length, plan.chunk_steps, plan.chunks, u_batch, dt_batch, z_batch, 0,
            D=channels, N=states, NP=padded_states(states), BD=plan.fwd_block, UNROLL=plan.fwd_unroll,
            SEG=plan.segment, U_ROW=u_row, DT_ROW=dt_row, Z_ROW=z_row, B_LTI=call.kind.B_lti, C_LTI=call.kind.C_lti,
            HAS_SKIP=call.skip is not None, HAS_H0=h0 is not None, WRITE_STATES=write_states,
            GROUP=plan.group, FAR=plan.far, **call.flags(), num_warps=plan.fwd_warps, maxnreg=plan.fwd_registers,
        )  # fmt: skip
    return out, last, saved


def _backward(
    call: _Call, states_saved: Tensor, g_out: Tensor, g_last: Tensor | None, need_h0: bool, narrow: tuple[bool, bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of u, dt, A, B, C, D, z, dt_bias and h0 in public shapes, from g_out (B, L, D) and g_last in planes.

    narrow: the gradient of B, that of C need be right to bf16 only.
    """
    batch, length, channels, parts, states = call.sizes
    plan, kind, device = call.plan, call.kind, call.u.device
    chunks, segment = plan.bwd_chunks, plan.segment
    blocks = cdiv(channels, plan.bwd_block)
    group = blocks_at_once(channels, blocks, parts * states)

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.float32, device=device)

    def partial_map(narrow: bool) -> PartialMap:
        # Partial sums that end in bf16 may travel in bf16: half of the traffic, and their errors average out.
        dtype = torch.bfloat16 if narrow and plan.warp_sums else torch.float32
        rows = cdiv(length, segment) * segment
        return PartialMap(batch, group, (rows, parts, states), dtype, device)

    def turned(t: Tensor) -> Tensor:
        """(..., N, D) as the kernel reads what it keeps in registers, (..., D, N)."""
        return t.transpose(-1, -2).contiguous()

    u, u_row, u_batch = _rows(call.u)
    dt, dt_row, dt_batch = call.step_rows()
    z, z_row, z_batch = _rows(call.z) if call.z is not None else (u, u_row, u_batch)
    g_out, g_row, g_batch = _rows(g_out)
    du = torch.empty(batch, length, channels, dtype=u.dtype, device=device)
    ddt = None if kind.dt_lti else torch.empty(batch, length, channels, dtype=dt.dtype, device=device)
    dz = torch.empty(batch, length, channels, dtype=z.dtype, device=device) if call.z is not None else None
    dB, dC = (
        empty(batch * chunks, parts, channels, states) if fixed else partial_map(small)
        for fixed, small in zip((kind.B_lti, kind.C_lti), narrow, strict=True)
    )
    dA = empty(batch * chunks, parts, channels, states)
    dskip = empty(batch * chunks, channels) if call.skip is not None else None
    dbias = empty(batch * chunks, channels) if call.bias is not None or kind.dt_lti else None
    dh0 = empty(batch, parts, channels, states) if need_h0 else None
    padded = padded_states(states)
    scratch = empty(
        batch * chunks * group, (segment // plan.bwd_unroll * parts * padded + 4 * segment) * plan.bwd_block
    )
    with on(device):
        r_in = g_last
        if chunks > 1:
            r_in = _chunk_starts(call, g_out, g_last, chunks, plan.bwd_chunk_steps, reverse=True)
        A = turned(call.A)
        for first in range(0, blocks, group):
            size = min(group, blocks - first)
            maps = [m.of(size) if isinstance(m, PartialMap) else m for m in (dB, dC)]
            general_bwd_kernel[(batch * chunks * size,)](
                u, dt, A, turned(call.B) if kind.B_lti else call.B, turned(call.C) if kind.C_lti else call.C,
                call.skip if call.skip is not None else A, z,
                call.bias if call.bias is not None else A, call.reset if call.reset is not None else A,
                g_out, states_saved, turned(r_in) if r_in is not None else A,
                du, ddt if ddt is not None else du, dz if dz is not None else du, *maps, dA,
                dskip if dskip is not None else dA, dbias if dbias is not None else dA, dh0 if dh0 is not None else dA,
                scratch, _sink(device),
                length, plan.bwd_chunk_steps, chunks, first, u_batch, dt_batch, z_batch, g_batch, 0,
                GROUP=size, D=channels, N=states, NP=padded, BD=plan.bwd_block, UNROLL=plan.bwd_unroll, SEG=segment,
                ROWS=plan.rows, U_ROW=u_row, DT_ROW=dt_row, Z_ROW=z_row, G_ROW=g_row, VEC=plan.bwd_vec,
                WARP_SUMS=plan.warp_sums,
                B_LTI=kind.B_lti, C_LTI=kind.C_lti, HAS_SKIP=call.skip is not None, HAS_R=r_in is not None,
                WRITE_DH0=need_h0, **call.flags(), num_warps=1, maxnreg=plan.bwd_registers,
            )  # fmt: skip
            for m in (dB, dC):
                if isinstance(m, PartialMap):
                    m.add(size)

    def total(partial: Tensor | None) -> Tensor | None:
        return None if partial is None else partial.sum(0)

    def public_map(partial: Tensor | PartialMap) -> Tensor:
        if not isinstance(partial, PartialMap):
            return _from_parts(partial.sum(0), kind.complex)
        rows = partial.total[:, :length]
        return rows.transpose(-1, -2) if kind.complex else rows.squeeze(2)

    step = total(dbias)
    return (
        du,
        step if kind.dt_lti else ddt,
        _from_parts(dA.sum(0), kind.complex),
        public_map(dB),
        public_map(dC),
        total(dskip),
        dz,
        step if call.bias is not None else None,
        None if dh0 is None else _from_parts(dh0, kind.complex),
    )


class _GeneralScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        reset: Tensor | None,
        softplus: bool,
        precise: bool,
        kind: Kind,
        plan: Plan,
        train: bool,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        u, dt, A, B, C, D, z, dt_bias, h0 = tensors
        assert u is not None
        assert dt is not None
        assert A is not None
        assert B is not None
        assert C is not None
        call = _Call(
            u=u,
            dt=dt.detach().float().contiguous() if kind.dt_lti else dt,
            z=z,
            A=_planes(A, kind.complex),
            B=_map_planes(B, kind.B_lti, kind.complex),
            C=_map_planes(C, kind.C_lti, kind.complex),
            skip=_fp32(D),
            bias=_fp32(dt_bias),
            reset=None if reset is None else reset.to(torch.bool).contiguous().view(torch.uint8),
            softplus=softplus,
            precise=precise,
            kind=kind,
            plan=plan,
        )
        start = None if h0 is None else _planes(h0, kind.complex)
        out, last, states = _forward(call, start, train)
        if train:
            ctx.save_for_backward(
                call.u, call.dt, call.z, call.A, call.B, call.C, call.skip, call.bias, call.reset, states
            )
            ctx.settings = (softplus, precise, kind, plan)
            ctx.dtypes = tuple(None if t is None else t.dtype for t in tensors)
        ctx.set_materialize_grads(False)
        return out, _from_planes(last, kind.complex)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        g_out, g_last = grads
        *inputs, states = ctx.saved_tensors
        call = _Call(*inputs, *ctx.settings)
        if g_out is None:
            g_out = torch.zeros_like(call.u)
        if g_last is not None:
            g_last = _planes(g_last, call.kind.complex)
        narrow = (ctx.dtypes[3] == torch.bfloat16, ctx.dtypes[4] == torch.bfloat16)
        found = _backward(call, states, g_out, g_last, ctx.needs_input_grad[-1], narrow)
        cast = tuple(
            None if g is None or not need else g.to(dtype)
            for g, dtype, need in zip(found, ctx.dtypes, ctx.needs_input_grad[6:], strict=True)
        )
        return None, None, None, None, None, None, *refuse_second_order("selective_scan", cast)


def selective_scan_general(
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
    reset: Tensor | None = None,
    exact_zoh: bool = False,
    precise: bool = False,
    plan: Plan | None = None,
) -> tuple[Tensor, Tensor]:
    """Any selective scan, real or complex, selective or time-invariant, deterministic, in fused Triton kernels.

    Args:
        u, z: (B, L, D) bf16, fp16 or fp32; any row stride as long as channels are adjacent. dt: the same, or (D).
        A: (D, N[, 2]). B, C: (B, L, N[, 2]) or (D, N[, 2]). D, dt_bias: (D).
        h0: (B, D, N[, 2]) state before step 0, zeros where None. reset: bool (B, L), clears the state before that step.
        exact_zoh: holds the input exactly. precise: adds exp(dt A) - 1 instead of multiplying by exp(dt A).
        plan: layout on the machine, for benchmarks and tests; `make_general_plan` by default.

    Returns:
        (out (B, L, D) in u's dtype, last state (B, D, N[, 2]) fp32).

    Raises:
        NotImplementedError: What `unsupported_reason` names.
    """
    reason = unsupported_reason(u, dt, A, B, C)
    if reason is not None:
        raise NotImplementedError(f'selective_scan: the triton backend does not run {reason}; use backend="torch"')
    kind = kind_of(dt, A, B, C, exact_zoh)
    if plan is None:
        batch, length, channels = u.shape
        plan = make_general_plan(batch, length, channels, A.shape[1], kind, u.device)
    tensors = (u, dt, A, B, C, D, z, dt_bias, h0)
    return _GeneralScan.apply(reset, dt_softplus, precise, kind, plan, will_differentiate(*tensors), *tensors)
