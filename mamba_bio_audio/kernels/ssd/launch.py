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
from mamba_bio_audio.kernels.launch import cdiv, launch, on, power_of_2
from mamba_bio_audio.kernels.scan.inputs import schedulers
from mamba_bio_audio.kernels.ssd.backward import backward_kernel
from mamba_bio_audio.kernels.ssd.forward import forward_kernel
from mamba_bio_audio.kernels.ssd.inputs import SsdInputs
from mamba_bio_audio.kernels.ssd.states import hand_on_kernel, walk_kernel

# Beyond, Triton 3.6 makes wrong code of the product with the state.
MAX_STATES = 128
_ACTIVATIONS = (torch.bfloat16, torch.float16, torch.float32)
# Programs of a walk for each warp scheduler of the GPU, before sequences are cut into segments.
_WALKS = 2
# Programs of backward for each, before heads are shared out.
_PROGRAMS = 1
_HAND_ON_BLOCK = 256


class Plan(NamedTuple):
    """How a call is worked off.

    Attributes:
        Q: positions of a chunk.
        BP, BN: channels and states of a tile.
        chunks: of a sequence.
        long: chunks of a segment.
        segments: of a sequence.
        parts: programs that share the heads of a group in backward.
        warps: of a program of forward, of a walk over states, and of backward.
        stages: of loads that are under way, of the same.
    """

    Q: int
    BP: int
    BN: int
    chunks: int
    long: int
    segments: int
    parts: int
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
    BN = max(power_of_2(states), 16)
    BP = min(max(power_of_2(channels), 16), 64)
    chunks = cdiv(length, Q)
    walks = batch * heads * cdiv(channels, BP)
    wanted = max(_WALKS * schedulers(device) // walks, 1)
    long = max(cdiv(chunks, wanted), 4)
    segments = cdiv(chunks, long)
    if segments < 3:  # finding states first costs half of what the walk does
        long, segments = chunks, 1
    parts, each = 1, heads // groups
    while batch * chunks * groups * parts < _PROGRAMS * schedulers(device) and each % (2 * parts) == 0:
        parts *= 2
    return Plan(Q, BP, BN, chunks, long, segments, parts, (4, 4, 4), (3, 3, 3))


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

    x, B and C have the dtype of the activations and adjacent channels; a, source, diagonal (B, H, L) and skip are fp32, reset
    is uint8, and all of these are contiguous.
    """

    x: Tensor
    B: Tensor
    C: Tensor
    a: Tensor
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
    a: Tensor
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
    return SsdCall(
        rows(s.x),
        rows(s.B),
        rows(s.C),
        a,
        per_head(s.source),
        per_head(s.diagonal),
        None if s.D is None else s.D.float().contiguous(),
        None if s.reset is None else s.reset.contiguous().view(torch.uint8),
        make_plan(batch, length, heads, channels, groups, states, dtype, s.x.device),
    )


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
            rows, maps, call.a, call.source if call.source is not None else call.a,
            call.reset if call.reset is not None else call.a, start if start is not None else end,
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
    a = call.a
    with on(x.device):
        launch(
            forward_kernel, batch * plan.segments * heads * cdiv(channels, plan.BP),
            x, B, C, a, *(t if t is not None else a for t in (call.source, call.diagonal, call.skip, call.reset, starts)),
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
    call: SsdCall, states: Tensor, dy: Tensor, g_state: Tensor | None, out: tuple[Tensor, Tensor, Tensor] | None = None
) -> Gradients:
    """All gradients from dy (B, L, H, P), whose channels are adjacent, and that of the last state.

    Args:
        call: as of forward.
        states: of forward.
        dy: in the dtype of x.
        g_state: (B, H, P, N) or None.
        out: where to write the gradients of x, B and C, with adjacent channels (and groups); allocated by default.
    """
    x, B, C, plan = call.x, call.B, call.C, call.plan
    batch, length, heads, channels = x.shape
    groups, count = B.shape[2:]
    g_end = None if g_state is None else g_state.float().contiguous()
    g_ends = _starts(call, dy, C, g_end, True)
    adjoints = torch.empty_like(states)
    dh0, _ = _walk(call, dy, C, g_ends, adjoints, True, plan.long)
    if out is None:
        dx, dB, dC = (torch.empty(t.shape, dtype=x.dtype, device=x.device) for t in (x, B, C))
    else:
        dx, dB, dC = out
    to_B, to_C = dB, dC
    if plan.parts > 1:
        to_B, to_C = (torch.empty(plan.parts, *B.shape, dtype=torch.float32, device=x.device) for _ in "BC")
    per_head = call.a, call.source, call.diagonal
    da, dsource, ddiagonal = (None if t is None else torch.empty_like(t) for t in per_head)
    assert da is not None
    skips = None
    if call.skip is not None:
        skips = torch.empty(batch, plan.chunks, heads, dtype=torch.float32, device=x.device)
    a = call.a
    with on(x.device):
        launch(
            backward_kernel, batch * plan.chunks * groups * plan.parts,
            x, B, C, a, *(t if t is not None else a for t in (call.source, call.diagonal, call.skip, call.reset)),
            states, dy, adjoints, dx, to_B, to_C, *(t if t is not None else a for t in (da, dsource, ddiagonal, skips)),
            length, plan.chunks, x.stride(0), B.stride(0), C.stride(0), dy.stride(0), dx.stride(0),
            to_B.stride(-4), to_C.stride(-4), to_B[0].numel() if plan.parts > 1 else 0,
            H=heads, G=groups, P=channels, N=count, PARTS=plan.parts, X_ROW=x.stride(1), X_HEAD=x.stride(2),
            B_ROW=B.stride(1), B_GROUP=B.stride(2), C_ROW=C.stride(1), C_GROUP=C.stride(2), DY_ROW=dy.stride(1),
            DY_HEAD=dy.stride(2), DX_ROW=dx.stride(1), DX_HEAD=dx.stride(2), DB_ROW=to_B.stride(-3),
            DC_ROW=to_C.stride(-3), Q=plan.Q, BP=plan.BP, BN=plan.BN, DOT=_dot(x.dtype),
            HAS_SOURCE=call.source is not None, HAS_DIAGONAL=call.diagonal is not None, HAS_SKIP=call.skip is not None,
            HAS_RESET=call.reset is not None, num_warps=plan.warps[2], num_stages=plan.stages[2],
        )  # fmt: skip
    if plan.parts > 1:
        dB.copy_(to_B.sum(0))
        dC.copy_(to_C.sum(0))
    return Gradients(dx, dB, dC, da, dsource, ddiagonal, None if skips is None else skips.sum((0, 1)), dh0)


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
            a, source, diagonal = (None if t is None else t.transpose(1, 2) for t in (g.a, g.source, g.diagonal))
            found = SsdInputs(g.x, a, g.B, g.C, source, diagonal, g.skip, g.h0)  # type: ignore[arg-type]
            pairs = zip(found.tensors, s.tensors, ctx.needs_input_grad, strict=False)
            wanted = [g.to(t.dtype) if need and t is not None and g is not None else None for g, t, need in pairs]
        return *refuse_second_order("ssd", tuple(wanted)), None
