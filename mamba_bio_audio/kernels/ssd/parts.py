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
def sums_of_decay(a_p, t, L):
    """l [Q] and its last value: sums of log decays from the chunk's first position on."""
    a = tl.load(a_p + t, mask=t < L, other=0.0)
    return tl.cumsum(a, axis=0), tl.sum(a, axis=0)


@triton.jit
def sequences_of(reset_p, t, L):
    """Number of the sequence at each position [Q], 0 for the one that the chunk begins in, and that of the last position."""
    flags = tl.where(tl.load(reset_p + t, mask=t < L, other=0) != 0, 1, 0)
    return tl.cumsum(flags, axis=0), tl.sum(flags, axis=0)


@triton.jit
def falling(x):
    """exp(x) of x <= 0; the sums may be above by a rounding."""
    return tl.exp2(tl.minimum(x, 0.0) * LOG2E)
