"""Linear head and cross entropy in Triton, loss and both gradients in two launches, without logits in memory.

    logits = x weight^T        loss = sum over scored rows of lse - logits[target], lse = logsumexp(logits)
    g = exp(logits - lse) - onehot(target), 0 in rows not scored        dL/dx = g weight        dL/dweight = g^T x

x (T, K) rows, weight (V, K), targets (T). The first kernel takes ROWS rows a program and passes over blocks of VB classes
twice, once for lse and the loss, once for dL/dx. The second owns VB classes a program and walks over its share of the rows.
Loss, count and dL/dweight leave as partial sums that are added in a fixed order: deterministic, no atomics.

Everything is in about fp32 precision on the tensor cores. bf16 features are exact there; fp32 weights and g are each the sum
of two bf16 parts (relative error 2^-18), multiplied part by part without the product of the two small ones. Features in
other dtypes are multiplied in fp32 as three TF32 products.
"""

# mypy: disable-error-code="no-untyped-def, assignment, var-annotated"
# Triton code: tuples grow in unrolled loops, and `if` on a constexpr must stand alone.
# ruff: noqa: RUF005

import os
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mamba_bio_audio.kernels.launch import cdiv, on
from mamba_bio_audio.kernels.loss.gradients import apply_loss

MAX_CLASSES = 512
_SUMS = 1 << 13  # elements of dL/dweight that one program may sum; half of it in fp32
_WARPS = 4
_FEATURES = (torch.bfloat16, torch.float16, torch.float32)

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")


@triton.jit
def dot(a, b, total):
    """total + a b, of bf16 or of fp32 as three TF32 products."""
    if INTERPRETED:  # it would multiply the bits of bf16
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    if a.dtype == tl.float32:
        total = tl.dot(a, b, total, input_precision="tf32x3")
    else:
        total = tl.dot(a, b, total)
    return total


@triton.jit
def split(g):
    """g as the sum of two bf16 parts."""
    high = g.to(tl.bfloat16)
    return high, (g - high.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def load_features(x_p, row, T, start, K: tl.constexpr, BK: tl.constexpr, PARTS: tl.constexpr):
    """Columns from `start` on of the rows [ROWS, BK], 0 outside; in fp32 without PARTS."""
    k = start + tl.arange(0, BK)
    x = tl.load(x_p + row[:, None] * K + k[None, :], mask=(row < T)[:, None] & (k < K)[None, :], other=0.0)
    if not PARTS:
        x = x.to(tl.float32)
    return x


@triton.jit
def block_logits(
    x_p, weight_p, row, T, block,
    V: tl.constexpr, VB: tl.constexpr, BLOCKS: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, CHUNKS: tl.constexpr,
    ROWS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Logits [ROWS, VB] of one block of classes, -inf for classes that pad it."""
    v = block * VB + tl.arange(0, VB)
    w_p = weight_p + v[None, :] * (CHUNKS * BK) + tl.arange(0, BK)[:, None]  # [BK, VB]
    logits = tl.zeros([ROWS, VB], tl.float32)
    for i in tl.static_range(CHUNKS):
        x = load_features(x_p, row, T, i * BK, K, BK, PARTS)
        w = tl.load(w_p + i * BK)
        if PARTS:
            logits = dot(x, tl.load(w_p + BLOCKS * VB * CHUNKS * BK + i * BK), logits)
        logits = dot(x, w, logits)
    return tl.where((v < V)[None, :], logits, float("-inf"))


@triton.jit
def store_dx(dx_p, dx, row, T, start, K: tl.constexpr, BK: tl.constexpr):
    k = start + tl.arange(0, BK)
    mask = (row < T)[:, None] & (k < K)[None, :]
    tl.store(dx_p + row[:, None] * K + k[None, :], dx.to(dx_p.dtype.element_ty), mask=mask)


@triton.jit
def block_dx(total, g, w_p, PARTS: tl.constexpr, LOW: tl.constexpr):
    """total + g weight [ROWS, BK]; w_p points to a block of the weight [VB, BK], LOW further on to its small part."""
    w = tl.load(w_p)
    if PARTS:
        high, low = split(g)
        total = dot(high, tl.load(w_p + LOW), total)
        total = dot(low, w, total)
        total = dot(high, w, total)
    else:
        total = dot(g, w, total)
    return total


@triton.jit(do_not_specialize=["T", "ignore_index"])
def loss_kernel(
    x_p, weight_p, targets_p, dx_p, lse_p, loss_p, count_p, T, ignore_index,
    V: tl.constexpr, VB: tl.constexpr, BLOCKS: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, CHUNKS: tl.constexpr,
    ROWS: tl.constexpr, PARTS: tl.constexpr, WRITE_DX: tl.constexpr,
):  # fmt: skip
    """Writes dx (T, K), lse (T), and per program loss and count.

    weight (BLOCKS * VB, CHUNKS * BK) is padded with zeros; with PARTS (2, ...), its two bf16 parts.
    """
    COLUMNS: tl.constexpr = CHUNKS * BK
    tile = tl.program_id(0)
    row = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    target = tl.load(targets_p + row, mask=row < T, other=0).to(tl.int64)
    scored = (row < T) & (target != ignore_index)
    label = tl.where(scored, target, -1).to(tl.int32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    at_label = tl.zeros([ROWS], tl.float32)
    logits = tl.zeros([ROWS, VB], tl.float32)
    for block in range(BLOCKS):
        logits = block_logits(x_p, weight_p, row, T, block, V, VB, BLOCKS, K, BK, CHUNKS, ROWS, PARTS)
        higher = tl.maximum(top, tl.max(logits, axis=1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(logits - higher[:, None]), axis=1)
        top = higher
        hit = (block * VB + tl.arange(0, VB))[None, :] == label[:, None]
        at_label += tl.sum(tl.where(hit, logits, 0.0), axis=1)
    # A target that is no class cannot raise here; it must not pass for a loss either.
    wrong = scored & ((target < 0) | (target >= V))
    nll = tl.where(wrong, float("nan"), tl.log(total) + (top - at_label))
    tl.store(loss_p + tile, tl.sum(tl.where(scored, nll, 0.0), axis=0))
    tl.store(count_p + tile, tl.sum(scored.to(tl.int32), axis=0))
    lse = top + tl.log(total)
    tl.store(lse_p + row, lse, mask=row < T)
    if WRITE_DX:
        dxs = ()
        for _ in tl.static_range(CHUNKS):
            dxs = dxs + (tl.zeros([ROWS, BK], tl.float32),)
        for block in range(BLOCKS):
            # One block has its logits still.
            if BLOCKS > 1:
                logits = block_logits(x_p, weight_p, row, T, block, V, VB, BLOCKS, K, BK, CHUNKS, ROWS, PARTS)
            v = block * VB + tl.arange(0, VB)
            p = tl.where(scored[:, None], tl.exp(logits - lse[:, None]), 0.0)
            g = p - tl.where(v[None, :] == label[:, None], 1.0, 0.0)
            w_p = weight_p + v[:, None] * COLUMNS + tl.arange(0, BK)[None, :]
            past = dxs
            dxs = ()
            for i in tl.static_range(CHUNKS):
                dx = block_dx(past[i], g, w_p + i * BK, PARTS, BLOCKS * VB * COLUMNS)
                if BLOCKS > 1:
                    dxs = dxs + (dx,)
                else:
                    dxs = dxs + (past[i],)
                    store_dx(dx_p, dx, row, T, i * BK, K, BK)
        if BLOCKS > 1:
            for i in tl.static_range(CHUNKS):
                store_dx(dx_p, dxs[i], row, T, i * BK, K, BK)


@triton.jit(do_not_specialize=["T", "ignore_index"])
def dweight_kernel(
    x_p, weight_p, targets_p, lse_p, dweight_p, T, ignore_index,
    V: tl.constexpr, VB: tl.constexpr, BLOCKS: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, CHUNKS: tl.constexpr,
    ROWS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Writes partial sums dweight (programs / BLOCKS, BLOCKS * VB, CHUNKS * BK); classes of a block by rows as [VB, ROWS]."""
    COLUMNS: tl.constexpr = CHUNKS * BK
    block = tl.program_id(0) % BLOCKS
    share = tl.program_id(0) // BLOCKS
    v = block * VB + tl.arange(0, VB)
    at = v[:, None] * COLUMNS + tl.arange(0, BK)[None, :]  # [VB, BK]
    sums = ()
    for _ in tl.static_range(CHUNKS):
        sums = sums + (tl.zeros([VB, BK], tl.float32),)
    for tile in range(share, tl.cdiv(T, ROWS), tl.num_programs(0) // BLOCKS):
        row = share.to(tl.int64) * 0 + tile * ROWS + tl.arange(0, ROWS)
        target = tl.load(targets_p + row, mask=row < T, other=0).to(tl.int64)
        scored = (row < T) & (target != ignore_index)
        label = tl.where(scored, target, -1).to(tl.int32)
        lse = tl.load(lse_p + row, mask=row < T, other=0.0)
        logits = tl.zeros([VB, ROWS], tl.float32)
        for i in tl.static_range(CHUNKS):
            x = tl.trans(load_features(x_p, row, T, i * BK, K, BK, PARTS))
            w = tl.load(weight_p + at + i * BK)
            if PARTS:
                logits = dot(tl.load(weight_p + BLOCKS * VB * COLUMNS + at + i * BK), x, logits)
            logits = dot(w, x, logits)
        p = tl.where(scored[None, :], tl.exp(logits - lse[None, :]), 0.0)
        g = p - tl.where(v[:, None] == label[None, :], 1.0, 0.0)
        past = sums
        sums = ()
        for i in tl.static_range(CHUNKS):
            x = load_features(x_p, row, T, i * BK, K, BK, PARTS)
            if PARTS:
                high, low = split(g)
                sums = sums + (dot(high, x, dot(low, x, past[i])),)
            else:
                sums = sums + (dot(g, x, past[i]),)
    out_p = dweight_p + share.to(tl.int64) * (BLOCKS * VB * COLUMNS) + at
    for i in tl.static_range(CHUNKS):
        tl.store(out_p + i * BK, sums[i])


def plan(classes: int, columns: int, dtype: torch.dtype) -> dict[str, Any]:
    """Constants of both kernels; without spills for bf16 on sm_90, and within 99 KiB of shared memory."""
    parts = dtype == torch.bfloat16
    vb = min(max(triton.next_power_of_2(classes), 16), 64 if parts else 32)
    bk = 16 if columns <= 16 else 64 if parts and columns % 64 == 0 else 32
    # With one block of classes Triton 3.6 fails on tiles of 64 rows for sm_100.
    rows = 64 if parts and classes > vb else 32
    return {
        "V": classes, "VB": vb, "BLOCKS": cdiv(classes, vb), "K": columns, "BK": bk,
        "CHUNKS": cdiv(columns, bk), "ROWS": rows, "PARTS": parts,
    }  # fmt: skip


def unsupported_reason(x: Tensor, weight: Tensor) -> str | None:
    """Why these kernels cannot run this call, or None where they can."""
    if x.dtype not in _FEATURES or weight.dtype == torch.float64:
        return f"{x.dtype} inputs with {weight.dtype} weights"
    c = plan(weight.shape[0], weight.shape[1], x.dtype)
    if c["V"] > MAX_CLASSES or c["VB"] * c["BK"] * c["CHUNKS"] > (_SUMS if c["PARTS"] else _SUMS // 2):
        return f"{c['V']} classes of {c['K']} columns"
    return None


def _launch(
    x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    c = plan(weight.shape[0], weight.shape[1], x.dtype)
    classes, columns = c["BLOCKS"] * c["VB"], c["CHUNKS"] * c["BK"]
    rows, labels = x.contiguous(), targets.contiguous()
    w = F.pad(weight.detach().float(), (0, columns - c["K"], 0, classes - c["V"]))
    if c["PARTS"]:
        high = w.bfloat16()
        w = torch.stack([high, (w - high).bfloat16()])
    count = labels.numel()
    tiles = cdiv(count, c["ROWS"])
    g_x = torch.empty_like(rows) if need_x else None
    lse, loss = (torch.empty(n, dtype=torch.float32, device=x.device) for n in (count, tiles))
    scored = torch.empty(tiles, dtype=torch.int32, device=x.device)
    g_weight = None
    on_gpu = x.device.type == "cuda"
    with on(x.device):
        if tiles:
            loss_kernel[(tiles,)](
                rows, w, labels, rows if g_x is None else g_x, lse, loss, scored, count, ignore_index,
                **c, WRITE_DX=need_x, num_warps=_WARPS, num_stages=1,
            )  # fmt: skip
        if need_weight:
            processors = torch.cuda.get_device_properties(x.device).multi_processor_count if on_gpu else 1
            shares = min(tiles, cdiv(4 * processors, c["BLOCKS"]))
            sums = torch.empty(shares, classes, columns, dtype=torch.float32, device=x.device)
            if tiles:
                dweight_kernel[(shares * c["BLOCKS"],)](
                    rows, w, labels, lse, sums, count, ignore_index, **c, num_warps=_WARPS, num_stages=1
                )
            g_weight = sums.sum(0)[: c["V"], : c["K"]]
    return loss.sum(), scored.sum(), g_x, g_weight


def loss_triton(x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Returns (summed loss, number of scored targets), as `loss_torch`; NaN for targets that are no class."""
    reason = unsupported_reason(x, weight)
    if reason is not None:
        raise NotImplementedError(
            f'linear_cross_entropy: the triton backend does not run {reason}; use backend="torch"'
        )
    return apply_loss(_launch, x, weight, targets, ignore_index)
