"""What the Triton kernels of the state space dual share. Letters as in `cpu.py`."""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def product(a, b, DOT: tl.constexpr):
    """a @ b in fp32, on the tensor cores from "bf16" numbers, or from fp32 ones in one or three passes ("tf32", "tf32x3")."""
    if DOT == "bf16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    else:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=DOT)


@triton.jit
def add_product(total, a, b, DOT: tl.constexpr):
    """total + a @ b, as `product` makes it."""
    if DOT == "bf16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), total)
    else:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision=DOT)


@triton.jit
def chunk_of(chunk, i, L, Q: tl.constexpr):
    """First position of a chunk, and which of its positions i are there."""
    begin = chunk.to(tl.int64) * Q
    return begin, i < tl.minimum(L - begin, Q).to(tl.int32)


@triton.jit
def rows_of(p, begin, i, n, ROW: tl.constexpr, live, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """Tile of positions begin + i and columns n, zeros beyond both ends."""
    at = p + begin * ROW + (i[:, None] * ROW + n[None, :])
    if COLUMNS % BLOCK == 0:
        return tl.load(at, mask=live[:, None], other=0.0)
    else:
        return tl.load(at, mask=live[:, None] & (n < COLUMNS)[None, :], other=0.0)


@triton.jit
def put_rows(p, begin, i, n, ROW: tl.constexpr, live, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, values):
    """Stores where `rows_of` loads."""
    at = p + begin * ROW + (i[:, None] * ROW + n[None, :])
    mask = live[:, None]
    if COLUMNS % BLOCK != 0:
        mask = mask & (n < COLUMNS)[None, :]
    tl.store(at, values.to(p.dtype.element_ty), mask=mask)


@triton.jit
def state_of(state_p, p, n, P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr):
    """Tile of a state (P, N), zeros beyond both ends."""
    at = state_p + (p[:, None] * N + n[None, :])
    if P % BP == 0 and N % BN == 0:
        return tl.load(at)
    else:
        return tl.load(at, mask=(p < P)[:, None] & (n < N)[None, :], other=0.0)


@triton.jit
def sequences_of(reset_p, live):
    """Number of the sequence at each position [Q], 0 for the one that the chunk begins in, and that of the last position."""
    flags = tl.where(tl.load(reset_p, mask=live, other=0) != 0, 1, 0)
    return tl.cumsum(flags, axis=0), tl.sum(flags, axis=0)


@triton.jit(do_not_specialize=["L", "CHUNKS"])
def sums_kernel(
    a_p, reset_p, to_p, L, CHUNKS, COUNT,
    H: tl.constexpr, Q: tl.constexpr, ROWS: tl.constexpr, BACK: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    """Sums within chunks: l (B, H, CHUNKS Q) of a (B, H, L), that of each position included and the last one repeated, in bits.

    BACK: of dl (B, H, CHUNKS Q) from each position on, da (B, H, L), 0 at resets, through which nothing passes. COUNT is
    all chunks, B H CHUNKS.
    """
    chunk = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, Q)
    t = (chunk % CHUNKS * Q)[:, None] + i[None, :]
    mask = (chunk < COUNT)[:, None]
    long = (chunk * Q)[:, None] + i[None, :]
    short = (chunk // CHUNKS * L)[:, None] + t
    if BACK:
        sums = tl.cumsum(tl.load(a_p + long, mask=mask, other=0.0), axis=1, reverse=True)
        if HAS_RESET:
            at = (chunk // CHUNKS // H * L)[:, None] + t
            sums = tl.where(tl.load(reset_p + at, mask=mask & (t < L), other=0) != 0, 0.0, sums)
        tl.store(to_p + short, sums, mask=mask & (t < L))
    else:
        sums = tl.cumsum(tl.load(a_p + short, mask=mask & (t < L), other=0.0) * LOG2E, axis=1)
        tl.store(to_p + long, sums, mask=mask)
