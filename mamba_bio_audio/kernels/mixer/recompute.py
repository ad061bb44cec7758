"""The whole selective Mamba mixer as one differentiable function that keeps little for its backward.

    x', z = split(in_proj(x))     u = silu(conv(x'))     r, B, C = split(x_proj(u))     dt = dt_proj(r)
    y = out_proj(scan(u, softplus(dt + bias), A, B, C, D) * silu(z))

Mamba (arXiv 2312.00752) section 3.4; recomputation after section 3.3.2 and appendix D. Kept for backward per position:
x, the small x_proj(u) and the fp32 state before every SEG-th step; the gated output is computed again there, and so are
x', z, u and dt unless the caller has memory for them (`mixers_keep`). Long spans are worked off in pieces, first to last
and last to first, with the state and its gradient carried, so that what is computed again never exists for the whole
span at once. The products of matrices are torch's; convolution and scan are the Triton kernels of this package, and
everything is deterministic if the products are.

Letters: B batch, L length, M model channels, E inner channels, N states, R delta rank, P the same with padding,
W convolution width.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_bio_audio.kernels.conv.gpu import conv_backward, conv_forward
from mamba_bio_audio.kernels.conv.tail import kept_in_tail, next_tail
from mamba_bio_audio.kernels.differentiable_once import refuse_second_order, will_differentiate
from mamba_bio_audio.kernels.kept import mixer_keeps, piece_of
from mamba_bio_audio.kernels.made_once import made_once
from mamba_bio_audio.kernels.mixer import step
from mamba_bio_audio.kernels.mixer.cast import matrices
from mamba_bio_audio.kernels.scan.inputs import MAX_STATES, case_of, make_plan
from mamba_bio_audio.kernels.scan.launch import ScanCall, scan_backward, scan_forward
from mamba_bio_audio.kernels.scan.split_bc import split_bc

# Columns of x_proj(u) are a multiple of this.
_ALIGNED = 8
_ACTIVATIONS = (torch.bfloat16, torch.float16, torch.float32)


class MixerWeights(NamedTuple):
    """Parameters of one selective, real mixer, named as in `layers.mamba`."""

    in_proj: Tensor  # (2 E, M)
    in_bias: Tensor | None  # (2 E)
    conv: Tensor  # (E, W)
    conv_bias: Tensor | None  # (E)
    x_proj: Tensor  # (R + 2 N, E)
    dt_proj: Tensor  # (E, R)
    dt_bias: Tensor  # (E)
    A_log: Tensor  # (E, N)
    D: Tensor  # (E)
    out_proj: Tensor  # (M, E)
    out_bias: Tensor | None  # (M)


def unsupported_reason(dtype: torch.dtype, weights: MixerWeights) -> str | None:
    """Why the fused mixer cannot run this call in `dtype`, or None where it can."""
    if dtype not in _ACTIVATIONS:
        return f"{dtype} activations"
    if any(w is not None and w.dtype == torch.float64 for w in weights):
        return "float64 parameters"
    if weights.A_log.shape[1] > MAX_STATES:
        return f"more than {MAX_STATES} states"
    return None


def default_segment(length: int) -> int:
    """Steps between kept states: 16 is 10 % faster on an H100, 32 keeps a fifth less where length makes memory scarce."""
    return 16 if length <= 1 << 14 else 32


class _Settings(NamedTuple):
    dtype: torch.dtype  # of the activations
    precise: bool
    piece: int  # positions
    segment: int
    train: bool  # whether a backward may follow
    inputs: bool = False  # whether x', z, u and dt are kept for it


class _Cast(NamedTuple):
    """The weights as the kernels and the matrix products want them."""

    in_proj: Tensor
    in_bias: Tensor | None
    conv: Tensor  # (E, W) fp32
    conv_bias: Tensor | None  # fp32
    x_proj: Tensor  # (P + 2 N, E), P >= R rows of delta, those beyond R zero
    dt_proj: Tensor  # (E, P), likewise
    dt_bias: Tensor  # fp32
    A: Tensor  # (1, N, E) fp32, negative
    D: Tensor  # fp32
    out_proj: Tensor
    out_bias: Tensor | None


def _cast(weights: MixerWeights, dtype: torch.dtype) -> _Cast:
    w = weights
    rank = w.dt_proj.shape[1]
    # Rows of 16 bytes: without them the products of matrices take kernels that are half as fast.
    padding = -w.x_proj.shape[0] % _ALIGNED
    if dtype != w.in_proj.dtype == w.x_proj.dtype == w.dt_proj.dtype == w.out_proj.dtype:
        in_proj, x_proj, dt_proj, out_proj = matrices(w.in_proj, w.x_proj, w.dt_proj, w.out_proj, padding, dtype)
    else:
        in_proj, x_proj, dt_proj, out_proj = (t.to(dtype) for t in (w.in_proj, w.x_proj, w.dt_proj, w.out_proj))
        if padding:
            x_proj = torch.cat([x_proj[:rank], x_proj.new_zeros(padding, x_proj.shape[1]), x_proj[rank:]])
            dt_proj = F.pad(dt_proj, (0, padding))
    A_log = w.A_log.detach().float()
    A = torch.empty(1, *A_log.shape[::-1], dtype=torch.float32, device=A_log.device)
    torch.exp(A_log.t(), out=A[0])
    return _Cast(
        in_proj=in_proj,
        in_bias=None if w.in_bias is None else w.in_bias.to(dtype),
        conv=w.conv.float(),
        conv_bias=None if w.conv_bias is None else w.conv_bias.float(),
        x_proj=x_proj,
        dt_proj=dt_proj,
        dt_bias=w.dt_bias.float(),
        A=A.neg_(),
        D=w.D.float(),
        out_proj=out_proj,
        out_bias=None if w.out_bias is None else w.out_bias.to(dtype),
    )


class _Piece(NamedTuple):
    """What scan and convolution read, made from x."""

    xz: Tensor  # (B, T, 2 E)
    u: Tensor  # (B, T, E)
    projected: Tensor  # x_proj(u) (B, T, P + 2 N)
    scan: ScanCall


def _make_piece(
    x: Tensor,
    tail: Tensor | None,
    reset: Tensor | None,
    w: _Cast,
    settings: _Settings,
    projected: Tensor | None = None,
    inputs: Sequence[Tensor] = (),
) -> _Piece:
    """Everything up to the scan; `projected` is x_proj(u), and `inputs` are x' beside z, u and dt, where they are known."""
    batch, length, _ = x.shape
    inner, rank, states = w.out_proj.shape[1], w.dt_proj.shape[1], w.A.shape[1]
    if inputs:
        xz, u, dt = inputs
    else:
        xz = F.linear(x, w.in_proj, w.in_bias)
        u = conv_forward(xz[..., :inner], w.conv, w.conv_bias, tail, reset, True)
    if projected is None:
        projected = F.linear(u, w.x_proj)
    if not inputs:
        dt = F.linear(projected[..., :rank], w.dt_proj)
    B, C = split_bc(projected, states)
    call = ScanCall(
        u=u,
        dt=dt,
        z=xz[..., inner:],
        A=w.A,
        B=B,
        C=C,
        skip=w.D,
        bias=w.dt_bias,
        reset=reset,
        case=case_of(precise=settings.precise, skip=True, gate=True, bias=True, reset=reset is not None),
        plan=make_plan(batch, length, inner, states, x.device, segment=settings.segment),
    )
    return _Piece(xz, u, projected, call)


def _spans(batch: int, length: int, settings: _Settings) -> list[tuple[int, int]]:
    steps = max(settings.piece // max(batch, 1) // settings.segment, 1) * settings.segment
    return [(low, min(low + steps, length)) for low in range(0, length, steps)]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a^T b in fp32, (..., P) and (..., Q) to (P, Q): a weight's gradient."""
    a, b = a.reshape(-1, a.shape[-1]).t(), b.reshape(-1, b.shape[-1])
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float()


class _MixerFn(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        settings: _Settings,
        x: Tensor,
        tail: Tensor | None,
        h0: Tensor | None,
        reset: Tensor | None,
        *weights: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        w = made_once(_cast, MixerWeights(*weights), settings.dtype)  # type: ignore[arg-type]
        ctx.x_dtype = x.dtype
        x = x.to(settings.dtype)
        batch, length, _ = x.shape
        inner, width = w.out_proj.shape[1], w.conv.shape[1]
        flags = None if reset is None else reset.contiguous().view(torch.uint8)
        start = None if tail is None else tail.to(settings.dtype).contiguous()
        h = None if h0 is None else h0.float().transpose(1, 2).contiguous()  # as planes, of which a real scan has one
        spans = _spans(batch, length, settings)
        ys = []
        kept: list[Tensor | None] = []
        for low, high in spans:
            cut = None if flags is None else flags[:, low:high].contiguous()
            piece = _make_piece(x[:, low:high], start, cut, w, settings)
            out, h, states = scan_forward(piece.scan, h, settings.train)
            ys.append(F.linear(out, w.out_proj, w.out_bias))
            del out
            if settings.train:
                kept += [piece.projected, states, start]
                if settings.inputs:
                    kept += [piece.xz, piece.u, piece.scan.dt]
            start = next_tail(piece.xz[..., :inner], start, width, None if reset is None else reset[:, low:high])
        assert h is not None
        assert start is not None
        if settings.train:
            ctx.save_for_backward(x, reset, *kept, *w, *weights)
            ctx.settings, ctx.pieces = settings, len(spans)
            ctx.dtypes = tuple(None if t is None else t.dtype for t in (tail, h0))
        ctx.set_materialize_grads(False)
        return ys[0] if len(ys) == 1 else torch.cat(ys, dim=1), start, h.view(batch, -1, inner).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        with torch.no_grad(), torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):
            found = _backward(ctx, *grads)
        return None, *refuse_second_order("mamba_mixer", found)


def _backward(ctx: Any, g_y: Tensor | None, g_tail: Tensor | None, g_h: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of everything but the settings, in the order of `_MixerFn.forward`."""
    x, reset, *rest = ctx.saved_tensors
    each = 6 if ctx.settings.inputs else 3  # kept tensors of a piece
    kept, rest = rest[: each * ctx.pieces], rest[each * ctx.pieces :]
    w, weights = _Cast(*rest[: len(_Cast._fields)]), MixerWeights(*rest[len(_Cast._fields) :])
    settings: _Settings = ctx.settings
    need_tail, need_h0 = ctx.needs_input_grad[2:4]
    batch, length, channels = x.shape
    if g_y is None:
        g_y = torch.zeros(batch, length, channels, dtype=settings.dtype, device=x.device)
    g_y = g_y.to(settings.dtype)
    g_h = None if g_h is None else g_h.float()
    flags = None if reset is None else reset.contiguous().view(torch.uint8)
    dx = torch.empty_like(x)
    sums = _Sums()
    spans = _spans(batch, length, settings)
    for number in reversed(range(len(spans))):
        low, high = spans[number]
        projected, states, start, *inputs = kept[each * number : each * (number + 1)]
        first = number == 0
        cut = None if flags is None else flags[:, low:high].contiguous()
        g_tail, g_h = _piece_backward(
            x[:, low:high], start, cut, w, settings, projected, states, inputs, g_y[:, low:high], g_tail, g_h,
            dx[:, low:high], sums, need_h0=not first or need_h0,
        )  # fmt: skip
    total = sums.total
    rank, padded = weights.dt_proj.shape[1], w.dt_proj.shape[1]
    x_proj = total["x_proj"]
    if padded > rank:
        x_proj = torch.cat([x_proj[:rank], x_proj[padded:]])
    return (
        dx.to(ctx.x_dtype),
        None if not need_tail or g_tail is None else g_tail.to(ctx.dtypes[0]),
        None if not need_h0 or g_h is None else g_h.to(ctx.dtypes[1]),
        None,
        total["in_proj"].to(weights.in_proj.dtype),
        None if weights.in_bias is None else total["in_bias"].to(weights.in_bias.dtype),
        total["conv"].to(weights.conv.dtype),
        None if weights.conv_bias is None else total["conv_bias"].to(weights.conv_bias.dtype),
        x_proj.to(weights.x_proj.dtype),
        total["dt_proj"][:, :rank].to(weights.dt_proj.dtype),
        total["dt_bias"].to(weights.dt_bias.dtype),
        # A = -exp(A_log), so dA/dA_log = A.
        (total["A"] * w.A[0].t()).to(weights.A_log.dtype),
        total["D"].to(weights.D.dtype),
        total["out_proj"].to(weights.out_proj.dtype),
        None if weights.out_bias is None else total["out_bias"].to(weights.out_bias.dtype),
    )


class _Sums:
    """Gradients of the weights, summed over the pieces in fp32."""

    def __init__(self) -> None:
        self.total: dict[str, Tensor] = {}

    def add(self, **found: Tensor | None) -> None:
        for name, value in found.items():
            if value is not None:
                self.total[name] = value if name not in self.total else self.total[name] + value


def _piece_backward(
    x: Tensor,
    tail: Tensor | None,
    reset: Tensor | None,
    w: _Cast,
    settings: _Settings,
    projected: Tensor,
    states: Tensor,
    inputs: Sequence[Tensor],
    g_y: Tensor,
    g_tail: Tensor | None,
    g_h: Tensor | None,
    dx: Tensor,
    sums: _Sums,
    *,
    need_h0: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Writes dx (B, T, M), adds the weights' gradients to `sums`, gives those of the tail and the state before it.

    `g_tail` (B, W - 1, E) and `g_h` (B, E, N) are the gradients of the tail and state after the piece.
    """
    length = x.shape[1]
    inner, rank, width = w.out_proj.shape[1], w.dt_proj.shape[1], w.conv.shape[1]
    piece = _make_piece(x, tail, reset, w, settings, projected, inputs)
    dxz = torch.empty_like(piece.xz)
    # In the place of its gradient, as the gradient of dt in the place of dt where that was made here.
    out = g_y @ w.out_proj
    d_projected = torch.empty_like(projected)
    d_rank, dBC = d_projected[..., :rank], d_projected[..., rank:]
    narrow = projected.dtype == torch.bfloat16
    g = scan_backward(
        piece.scan, states, out, None if g_h is None else g_h.transpose(1, 2).contiguous(), need_h0,
        dz=dxz[..., inner:], out=out, ddt=None if inputs else piece.scan.dt, dBC=dBC, narrow=(narrow, narrow),
    )  # fmt: skip
    torch.mm(g.dt.view(-1, inner), w.dt_proj, out=d_rank.view(-1, rank))
    sums.add(
        out_proj=_product(g_y, out),
        out_bias=None if w.out_bias is None else g_y.float().sum((0, 1)),
        dt_proj=_product(g.dt, projected[..., :rank]),
        dt_bias=g.bias,
        A=g.A,
        D=g.skip,
        x_proj=_product(d_projected, piece.u),
    )
    del out
    # In place: otherwise g.u is copied first.
    g.u.view(-1, inner).addmm_(d_projected.view(-1, d_projected.shape[-1]), w.x_proj)
    conv = conv_backward(piece.xz[..., :inner], w.conv, w.conv_bias, tail, reset, True, g.u, dx=dxz[..., :inner])
    d_tail = conv.tail
    if g_tail is not None:
        kept = kept_in_tail(None if reset is None else reset.view(torch.bool), width, length)
        passed = (g_tail if kept is None else g_tail * kept).to(x.dtype)
        own = min(length, width - 1)  # of the last W - 1 inputs, how many are this piece's
        dxz[:, length - own :, :inner] += passed[:, width - 1 - own :]
        if d_tail is not None and own < width - 1:
            d_tail[:, own:] += passed[:, : width - 1 - own]
    sums.add(
        conv=conv.weight,
        conv_bias=conv.bias,
        in_proj=_product(dxz, x),
        in_bias=None if w.in_bias is None else dxz.float().sum((0, 1)),
    )
    torch.matmul(dxz, w.in_proj, out=dx) if dx.is_contiguous() else dx.copy_(dxz @ w.in_proj)
    return d_tail, g.h0


def _step(
    x: Tensor, weights: MixerWeights, tail: Tensor, h0: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    w = made_once(_cast, weights, dtype)
    h = h0.float().transpose(1, 2).contiguous()
    y, tail, h = step.mixer_step(x.to(dtype), tail.to(dtype).contiguous(), h, **w._asdict())
    return y, tail, h.transpose(1, 2)


def mixer_triton(
    x: Tensor,
    weights: MixerWeights,
    *,
    tail: Tensor | None = None,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    precise: bool = False,
    dtype: torch.dtype,
    piece: int | None = None,
    segment: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the mixer on a span.

    Args:
        x: (B, L, M), any L >= 1.
        weights: parameters.
        tail: (B, W - 1, E), the convolution's inputs before the span. h0: (B, E, N), the state there.
        reset: bool (B, L), the state is cleared before these positions.
        precise: as in `selective_scan`.
        dtype: of the activations.
        piece: positions that backward computes again at once, a bound on memory beyond what is kept; by default 2^18,
            more where the inner width is below 256.
        segment: steps between kept states, a power of two from 4 on; by default what `mixers_keep` says, otherwise
            `default_segment`.

    Returns:
        y (B, L, M) in `dtype`, the tail after the span in `dtype` and the state after it (B, E, N) in fp32.
    """
    train = will_differentiate(x, tail, h0, *weights)
    piece = piece or piece_of(weights.out_proj.shape[1])
    keeps = mixer_keeps()
    segment = segment or keeps.steps or default_segment(x.shape[1])
    if segment < 4 or segment & (segment - 1):
        raise ValueError(f"segment is {segment}; it must be a power of two from 4 on")
    if tail is not None and h0 is not None and reset is None and not (train or precise):
        (_, width), (_, states) = weights.conv.shape, weights.A_log.shape
        if x.shape[1] == 1 and width > 1 and states <= step.MAX_STATES:
            return _step(x, weights, tail, h0, dtype)
    settings = _Settings(dtype, precise, piece, segment, train, keeps.inputs)
    return _MixerFn.apply(settings, x, tail, h0, reset, *weights)
