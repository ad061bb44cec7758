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
def rows_of(p, t, n, ROW: tl.constexpr, L, COLUMNS: tl.constexpr):
    """Tile of positions t and columns n, zeros beyond both ends."""
    return tl.load(p + t[:, None] * ROW + n[None, :], mask=(t < L)[:, None] & (n < COLUMNS)[None, :], other=0.0)


@triton.jit
def sequences_of(reset_p, t, L):
    """Number of the sequence at each position [Q], 0 for the one that the chunk begins in, and that of the last position."""
    flags = tl.where(tl.load(reset_p + t, mask=t < L, other=0) != 0, 1, 0)
    return tl.cumsum(flags, axis=0), tl.sum(flags, axis=0)


@triton.jit
def falling(x):
    """exp(x) of x <= 0; the sums may be above by a rounding."""
    return tl.exp2(tl.minimum(x, 0.0) * LOG2E)


@triton.jit(do_not_specialize=["L", "CHUNKS"])
def sums_kernel(
    a_p, reset_p, to_p, L, CHUNKS, COUNT,
    H: tl.constexpr, Q: tl.constexpr, ROWS: tl.constexpr, BACK: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    """Sums within chunks: l (B, H, CHUNKS Q) of a (B, H, L), that of each position included and the last one repeated.

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
        sums = tl.cumsum(tl.load(a_p + short, mask=mask & (t < L), other=0.0), axis=1)
        tl.store(to_p + long, sums, mask=mask)
