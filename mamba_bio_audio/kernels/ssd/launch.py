"""Host side of the Triton kernels of the state space dual: plan, launches, autograd.

A sequence is cut into chunks of Q positions. Where batch and heads are enough to keep the GPU busy, one program walks all
chunks of a head with the state in registers. Otherwise a sequence is cut into segments of chunks as well: their states are
found first, each from zeros, then handed on, and the walk begins from them, so that one long sequence runs on the whole GPU.

Backward walks the chunks in reverse to find the gradient of the state behind each; all chunks then run side by side.
"""

from functools import cache
from os import environ
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_bio_audio.kernels.differentiable_once import refuse_second_order, will_differentiate
from mamba_bio_audio.kernels.launch import cdiv, launch, on
from mamba_bio_audio.kernels.scan.inputs import schedulers
from mamba_bio_audio.kernels.ssd.backward import maps_kernel, values_kernel
from mamba_bio_audio.kernels.ssd.forward import forward_kernel
from mamba_bio_audio.kernels.ssd.inputs import SsdInputs
from mamba_bio_audio.kernels.ssd.parts import sums_kernel
from mamba_bio_audio.kernels.ssd.states import hand_on_kernel, walk_kernel

# Tiles of the state are 64 x 64 or 64 x 128 and nothing else, however few channels and states there are: of 32 channels and 64
# states or more, Triton 3.6 makes wrong code for bf16 on a Hopper GPU (y is off by as much as it is), as of 256 states. These
# two are right there in all dtypes (tests/kernels/ssd/test_gpu.py).
_CHANNELS = 64
_STATES = (64, 128)
MAX_STATES = _STATES[-1]
_ACTIVATIONS = (torch.bfloat16, torch.float16, torch.float32)
# Programs for each warp scheduler of the GPU: of walks, of which sequences are cut into segments for more, and of backward.
_WALKS = 1
_CHUNKS = 2
_SHARED = 112 * 1024  # bytes of shared memory of one of two programs of backward
_HAND_ON_BLOCK = 256
_SUMMED = 16  # chunks of a program that makes sums


class Plan(NamedTuple):
    """How a call is worked off.

    Attributes:
        Q: positions of a chunk.
        BP, BN: channels and states of a tile, with zeros beyond those that there are.
        chunks: of a sequence.
        long: chunks of a segment.
        segments: of a sequence.
        heads: of a program of backward.
        warps: of a program of forward, of a walk over states, and of backward.
        stages: of loads that are under way, of the same.
    """

    Q: int
    BP: int
    BN: int
    chunks: int
    long: int
    segments: int
    heads: int
    warps: tuple[int, int, int]
    stages: tuple[int, int, int]


@cache
def make_plan(
    batch: int,
    length: int,
    heads: int,
    channels: int,
    groups: int,
    states: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Plan:
    """The plan for these shapes; `dtype` is that of the activations."""
    Q = 64 if dtype == torch.bfloat16 else 32  # others are multiplied as fp32
    BP, BN = _CHANNELS, next(most for most in _STATES if states <= most)
    chunks = cdiv(length, Q)
    walks = batch * heads * cdiv(channels, BP)
    wanted = max(_WALKS * schedulers(device) // walks, 1)
    long = max(cdiv(chunks, wanted), 4)
    segments = cdiv(chunks, long)
    if segments < 3:  # finding states first costs half of what the walk does
        long, segments = chunks, 1
    # As many heads of a group as leave enough programs.
    most = batch * chunks * heads // (_CHUNKS * schedulers(device))
    together = max(n for n in range(1, heads // groups + 1) if heads // groups % n == 0 and (n <= most or n == 1))
    # Rounds of loads that two programs have room for, at most two, and the one that is read.
    tiles = (2 * Q * BN + 2 * cdiv(channels, BP) * BP * (Q + BN)) * dtype.itemsize
    narrow = dtype == torch.bfloat16
    ahead = 1 + min(_SHARED // tiles, 2) if narrow else 1
    return Plan(Q, BP, BN, chunks, long, segments, together, (4, 4, 4), (3 if narrow else 2, 2, ahead))


def unsupported_reason(s: SsdInputs) -> str | None:
    """Why these kernels cannot run this call, or None where they can."""
    if s.x.dtype not in _ACTIVATIONS or any(t is not None and t.dtype == torch.float64 for t in s.tensors):
        return "float64 inputs" if s.state_dtype == torch.float64 else f"{s.x.dtype} inputs"
    if s.B.shape[3] > MAX_STATES:
        return f"more than {MAX_STATES} states"
    return None


def ssd_triton(s: SsdInputs) -> tuple[Tensor, Tensor]:
    """(y (B, L, H, P) in x.dtype, final state (B, H, P, N) fp32), of calls for which `unsupported_reason` has none."""
    if will_differentiate(*s.tensors):
        return _SsdFn.apply(*s)
    y, end, _ = ssd_forward(call_of(s), s.h0, train=False)
    return y, end


class SsdCall(NamedTuple):
    """The arguments as the kernels read them.

    x, B and C have the dtype of the activations and adjacent channels. The sums l of log decays within chunks (B, H, chunks
    Q), source and diagonal (B, H, L) and skip are fp32, reset is uint8, and all of these are contiguous.
    """

    x: Tensor
    B: Tensor
    C: Tensor
    l: Tensor
    source: Tensor | None
    diagonal: Tensor | None
    skip: Tensor | None
    reset: Tensor | None
    plan: Plan


class Gradients(NamedTuple):
    """Of one call, shaped as in `SsdCall`."""

    x: Tensor
    B: Tensor
    C: Tensor
    l: Tensor
    source: Tensor | None
    diagonal: Tensor | None
    skip: Tensor | None
    h0: Tensor


def call_of(s: SsdInputs) -> SsdCall:
    """The arguments, converted where they have to be."""
    batch, length, heads, channels = s.x.shape
    groups, states = s.B.shape[2:]
    dtype = s.x.dtype

    def rows(t: Tensor) -> Tensor:
        t = t.to(dtype)
        return t if t.stride(3) == 1 else t.contiguous()

    def per_head(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.detach().float().transpose(1, 2).contiguous()

    a = per_head(s.a)
    assert a is not None
    plan = make_plan(batch, length, heads, channels, groups, states, dtype, s.x.device)
    return SsdCall(
        rows(s.x),
        rows(s.B),
        rows(s.C),
        sums_of_decay(a, plan),
        per_head(s.source),
        per_head(s.diagonal),
        None if s.D is None else s.D.float().contiguous(),
        None if s.reset is None else s.reset.contiguous().view(torch.uint8),
        plan,
    )


def sums_of_decay(a: Tensor, plan: Plan) -> Tensor:
    """l (B, H, chunks Q) of log decays a (B, H, L), contiguous and fp32."""
    batch, heads, length = a.shape
    sums = torch.empty(batch, heads, plan.chunks * plan.Q, dtype=torch.float32, device=a.device)
    _sum(a, None, sums, length, plan, back=False)
    return sums


def _sum(a: Tensor, reset: Tensor | None, to: Tensor, length: int, plan: Plan, back: bool) -> None:
    batch, heads, _ = a.shape
    count = batch * heads * plan.chunks
    with on(a.device):
        launch(
            sums_kernel, cdiv(count, _SUMMED), a, reset if reset is not None else a, to, length, plan.chunks, count,
            H=heads, Q=plan.Q, ROWS=_SUMMED, BACK=back, HAS_RESET=reset is not None, num_warps=4,
        )  # fmt: skip


def _dot(dtype: torch.dtype) -> str:
    """How products are made; three passes of tf32 are as exact as fp32, one has the digits of fp16 and the range of fp32."""
    if environ.get("TRITON_INTERPRET") == "1":
        return "ieee"
    return {torch.bfloat16: "bf16", torch.float16: "tf32"}.get(dtype, "tf32x3")


def _states_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of states that are only read by products."""
    return dtype if dtype == torch.bfloat16 else torch.float32


def _walk(
    call: SsdCall, rows: Tensor, maps: Tensor, start: Tensor | None, states: Tensor | None, reverse: bool, long: int
) -> tuple[Tensor, Tensor]:
    """(end, total) of a walk in segments of `long` chunks: of the whole where states are written, otherwise of each."""
    batch, length, heads, channels = call.x.shape
    groups, count = call.B.shape[2:]
    plan = call.plan
    segments = cdiv(plan.chunks, long)
    each = states is None
    shape = (batch, segments) if each else (batch,)
    end = torch.empty(*shape, heads, channels, count, dtype=torch.float32, device=rows.device)
    total = torch.empty(batch, segments, heads, dtype=torch.float32, device=rows.device)
    with on(rows.device):
        launch(
            walk_kernel, batch * segments * heads * cdiv(channels, plan.BP),
            rows, maps, call.l, call.source if call.source is not None else call.l,
            call.reset if call.reset is not None else call.l, start if start is not None else end,
            states if states is not None else end, end, total,
            length, plan.chunks, segments, long, rows.stride(0), maps.stride(0),
            H=heads, G=groups, P=channels, N=count, X_ROW=rows.stride(1), X_HEAD=rows.stride(2), B_ROW=maps.stride(1),
            B_GROUP=maps.stride(2), Q=plan.Q, BP=plan.BP, BN=plan.BN, DOT=_dot(rows.dtype), REVERSE=reverse,
            HAS_SOURCE=call.source is not None, HAS_RESET=call.reset is not None, HAS_START=start is not None,
            WRITE_STATES=states is not None, EACH_END=each, num_warps=plan.warps[1],
            num_stages=plan.stages[1],
        )  # fmt: skip
    return end, total


def _starts(call: SsdCall, rows: Tensor, maps: Tensor, start: Tensor | None, reverse: bool) -> Tensor | None:
    """States before segments (B, segments, H, P, N), or gradients behind them; `start` (B, H, P, N) where there is one."""
    plan = call.plan
    if plan.segments == 1:
        return start
    ends, totals = _walk(call, rows, maps, None, None, reverse, plan.long)
    batch, _, heads, channels, count = ends.shape
    size = channels * count
    with on(rows.device):
        launch(
            hand_on_kernel, batch * heads * cdiv(size, _HAND_ON_BLOCK),
            start if start is not None else ends, totals, ends, plan.segments,
            H=heads, SIZE=size, BLOCK=_HAND_ON_BLOCK, REVERSE=reverse, HAS_START=start is not None, num_warps=4,
        )  # fmt: skip
    return ends


def ssd_forward(call: SsdCall, h0: Tensor | None, train: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """(y (B, L, H, P), last state (B, H, P, N) fp32, for backward the states before chunks)."""
    x, B, C, plan = call.x, call.B, call.C, call.plan
    batch, length, heads, channels = x.shape
    groups, count = B.shape[2:]
    start = None if h0 is None else h0.detach().float().contiguous()
    starts = _starts(call, x, B, start, False)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    end = torch.empty(batch, heads, channels, count, dtype=torch.float32, device=x.device)
    states = None
    if train:
        shape = (batch, plan.chunks, heads, channels, count)
        states = torch.empty(shape, dtype=_states_dtype(x.dtype), device=x.device)
    l = call.l
    with on(x.device):
        launch(
            forward_kernel, batch * plan.segments * heads * cdiv(channels, plan.BP),
            x, B, C, l, *(t if t is not None else l for t in (call.source, call.diagonal, call.skip, call.reset, starts)),
            y, states if states is not None else end, end,
            length, plan.chunks, plan.segments, plan.long, x.stride(0), B.stride(0), C.stride(0),
            H=heads, G=groups, P=channels, N=count, X_ROW=x.stride(1), X_HEAD=x.stride(2), B_ROW=B.stride(1),
            B_GROUP=B.stride(2), C_ROW=C.stride(1), C_GROUP=C.stride(2), Q=plan.Q, BP=plan.BP, BN=plan.BN,
            DOT=_dot(x.dtype), HAS_SOURCE=call.source is not None, HAS_DIAGONAL=call.diagonal is not None,
            HAS_SKIP=call.skip is not None, HAS_RESET=call.reset is not None, HAS_START=starts is not None,
            WRITE_STATES=train, num_warps=plan.warps[0], num_stages=plan.stages[0],
        )  # fmt: skip
    return y, end, states


def ssd_backward(
    call: SsdCall,
    states: Tensor,
    dy: Tensor,
    g_state: Tensor | None,
    out: tuple[Tensor, Tensor] | None = None,
) -> Gradients:
    """All gradients from dy (B, L, H, P), whose channels are adjacent, and that of the last state.

    Args:
        call: as of forward.
        states: of forward.
        dy: in the dtype of x.
        g_state: (B, H, P, N) or None.
        out: where to write those of x (B, L, H, P), with adjacent channels, and of B and C (B, L, 2, G, N); made by default.
    """
    x, B, C, plan = call.x, call.B, call.C, call.plan
    batch, length, heads, channels = x.shape
    groups, count = B.shape[2:]
    g_end = None if g_state is None else g_state.float().contiguous()
    g_ends = _starts(call, dy, C, g_end, True)
    adjoints = torch.empty_like(states)
    dh0, _ = _walk(call, dy, C, g_ends, adjoints, True, plan.long)
    if out is None:
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dmaps = torch.empty(batch, length, 2, groups, count, dtype=x.dtype, device=x.device)
    else:
        dx, dmaps = out
    parts = heads // plan.heads
    # Of the heads of a program: in fp32 where several are still to be added, which is where there are few.
    maps = dmaps
    if parts > groups:
        maps = torch.empty(batch, length, 2, parts, count, dtype=torch.float32, device=x.device)
    l = call.l
    dl = torch.empty_like(l)
    dsource, ddiagonal = (None if t is None else torch.empty_like(t) for t in (call.source, call.diagonal))
    skips = None
    if call.skip is not None:
        skips = torch.empty(batch, plan.chunks, heads, dtype=torch.float32, device=x.device)
    with on(x.device):
        launch(
            values_kernel, batch * plan.chunks * parts,
            x, B, C, l, *(t if t is not None else l for t in (call.source, call.diagonal, call.skip, call.reset)),
            states, dy, adjoints, dx, dl, *(t if t is not None else l for t in (dsource, ddiagonal, skips)),
            length, plan.chunks, x.stride(0), B.stride(0), C.stride(0), dy.stride(0), dx.stride(0),
            H=heads, G=groups, P=channels, N=count, X_ROW=x.stride(1), X_HEAD=x.stride(2), B_ROW=B.stride(1),
            B_GROUP=B.stride(2), C_ROW=C.stride(1), C_GROUP=C.stride(2), DY_ROW=dy.stride(1), DY_HEAD=dy.stride(2),
            DX_ROW=dx.stride(1), DX_HEAD=dx.stride(2), HEADS=plan.heads, Q=plan.Q, BP=plan.BP, BN=plan.BN,
            DOT=_dot(x.dtype), HAS_SOURCE=call.source is not None, HAS_DIAGONAL=call.diagonal is not None,
            HAS_SKIP=call.skip is not None, HAS_RESET=call.reset is not None, num_warps=plan.warps[2],
            num_stages=plan.stages[2],
        )  # fmt: skip
        launch(
            maps_kernel, batch * plan.chunks * parts,
            x, B, C, l, *(t if t is not None else l for t in (call.source, call.diagonal, call.reset)),
            states, dy, adjoints, maps,
            length, plan.chunks, x.stride(0), B.stride(0), C.stride(0), dy.stride(0), maps.stride(0),
            H=heads, G=groups, P=channels, N=count, X_ROW=x.stride(1), X_HEAD=x.stride(2), B_ROW=B.stride(1),
            B_GROUP=B.stride(2), C_ROW=C.stride(1), C_GROUP=C.stride(2), DY_ROW=dy.stride(1), DY_HEAD=dy.stride(2),
            MAPS_ROW=maps.stride(1), MAPS_OF=maps.stride(2), MAPS_PART=maps.stride(3), HEADS=plan.heads,
            Q=plan.Q, BP=plan.BP, BN=plan.BN, DOT=_dot(x.dtype),
            HAS_SOURCE=call.source is not None, HAS_DIAGONAL=call.diagonal is not None,
            HAS_RESET=call.reset is not None, num_warps=plan.warps[2], num_stages=plan.stages[2],
        )  # fmt: skip
    if parts > groups:
        dmaps.copy_(maps.unflatten(3, (groups, parts // groups)).sum(4))
    return Gradients(
        dx, dmaps[:, :, 0], dmaps[:, :, 1], dl, dsource, ddiagonal, None if skips is None else skips.sum((0, 1)), dh0
    )


class _SsdFn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        s = SsdInputs(*given)
        y, end, states = ssd_forward(call_of(s), s.h0, train=True)
        ctx.save_for_backward(*given, states)
        return y, end

    @staticmethod
    def backward(ctx: Any, g_y: Tensor | None, g_state: Tensor | None) -> Any:
        *given, states = ctx.saved_tensors
        s = SsdInputs(*given)
        with torch.no_grad():
            call = call_of(s)
            dy = torch.zeros(s.x.shape, dtype=s.x.dtype, device=s.x.device) if g_y is None else g_y.to(s.x.dtype)
            g = ssd_backward(call, states, dy if dy.stride(3) == 1 else dy.contiguous(), g_state)
            da = g.l.new_empty(*g.l.shape[:2], s.x.shape[1])
            _sum(g.l, call.reset, da, s.x.shape[1], call.plan, back=True)
            a, source, diagonal = (None if t is None else t.transpose(1, 2) for t in (da, g.source, g.diagonal))
            found = SsdInputs(g.x, a, g.B, g.C, source, diagonal, g.skip, g.h0)  # type: ignore[arg-type]
            pairs = zip(found.tensors, s.tensors, ctx.needs_input_grad, strict=False)
            wanted = [g.to(t.dtype) if need and t is not None and g is not None else None for g, t, need in pairs]
        return *refuse_second_order("ssd", tuple(wanted)), None
