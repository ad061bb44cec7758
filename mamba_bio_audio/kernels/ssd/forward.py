"""Forward of the state space dual in Triton: one program walks the chunks of a segment with the state in registers.

    y = M x + exp(l) (S C) + D x            S_next = exp(l_Q) S + sum_s exp(l_Q - l_s) source_s x_s B_s'

with M and the letters of `cpu.py`. Products run on the tensor cores; sums, decays and the state are fp32.
"""

# mypy: disable-error-code="no-untyped-def, assignment"
import triton
import triton.language as tl

from mamba_bio_audio.kernels.ssd.parts import add_product, chunk_of, product, put_rows, rows_of, sequences_of


@triton.jit(do_not_specialize=["L", "CHUNKS", "SEGMENTS", "LONG"])
def forward_kernel(
    x_p, b_p, c_p, l_p, source_p, diagonal_p, skip_p, reset_p, start_p, y_p, states_p, end_p,
    L, CHUNKS, SEGMENTS, LONG, x_batch, b_batch, c_batch,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr, X_ROW: tl.constexpr, X_HEAD: tl.constexpr,
    B_ROW: tl.constexpr, B_GROUP: tl.constexpr, C_ROW: tl.constexpr, C_GROUP: tl.constexpr,
    Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, DOT: tl.constexpr,
    HAS_SOURCE: tl.constexpr, HAS_DIAGONAL: tl.constexpr, HAS_SKIP: tl.constexpr, HAS_RESET: tl.constexpr,
    HAS_START: tl.constexpr, WRITE_STATES: tl.constexpr,
):  # fmt: skip
    """Writes y (B, L, H, P), the last state end (B, H, P, N), and for backward the state before each chunk.

    Starts (B, SEGMENTS, H, P, N) are the states before segments, states (B, CHUNKS, H, P, N) those before chunks; LONG is
    chunks of a segment, and l is (B, H, CHUNKS Q).
    """
    BLOCKS: tl.constexpr = (P + BP - 1) // BP
    pid = tl.program_id(0)
    p = (pid % BLOCKS) * BP + tl.arange(0, BP)
    n = tl.arange(0, BN)
    i = tl.arange(0, Q)
    head = pid // BLOCKS % H
    segment = (pid // (BLOCKS * H)) % SEGMENTS
    batch = (pid // (BLOCKS * H) // SEGMENTS).to(tl.int64)
    x_p += batch * x_batch + head * X_HEAD
    b_p += batch * b_batch + head // (H // G) * B_GROUP
    c_p += batch * c_batch + head // (H // G) * C_GROUP
    y_p += batch * L * (H * P) + head * P
    l_p += (batch * H + head) * CHUNKS * Q
    source_p += (batch * H + head) * L
    diagonal_p += (batch * H + head) * L
    reset_p += batch * L
    states_p += batch * CHUNKS * H * (P * N)
    at = p[:, None] * N + n[None, :]
    inside = (p < P)[:, None] & (n < N)[None, :]
    S = tl.zeros([BP, BN], tl.float32)
    if HAS_START:
        place = ((batch * SEGMENTS + segment) * H + head) * (P * N)
        S = tl.load(start_p + place + at, mask=inside, other=0.0)
    skip = 0.0
    if HAS_SKIP:
        skip = tl.load(skip_p + head)
    first = segment * LONG
    count = tl.minimum(LONG, CHUNKS - first)
    for k in range(0, count):
        chunk = first + k
        if WRITE_STATES:
            where = states_p + (chunk.to(tl.int64) * H + head) * (P * N) + at
            tl.store(where, S.to(states_p.dtype.element_ty), mask=inside)
        begin, live = chunk_of(chunk, i, L, Q)
        t = begin + i
        x = rows_of(x_p, begin, i, p, X_ROW, live, P, BP)
        b = rows_of(b_p, begin, i, n, B_ROW, live, N, BN)
        c = rows_of(c_p, begin, i, n, C_ROW, live, N, BN)
        l = tl.load(l_p + t)
        total = tl.load(l_p + begin + (Q - 1))
        through, into, out = tl.exp2(total), tl.exp2(l), tl.exp2(total - l)
        connected = i[:, None] >= i[None, :]
        if HAS_DIAGONAL:
            connected = i[:, None] > i[None, :]
        if HAS_RESET:
            number, last = sequences_of(reset_p + t, live)
            connected = connected & (number[:, None] == number[None, :])
            through = tl.where(last == 0, through, 0.0)
            into = tl.where(number == 0, into, 0.0)
            out = tl.where(number == last, out, 0.0)
        X = x.to(tl.float32)
        if HAS_SOURCE:
            X *= tl.load(source_p + t, mask=live, other=0.0)[:, None]
        M = product(c, tl.trans(b), DOT) * tl.where(connected, tl.exp2(l[:, None] - l[None, :]), 0.0)
        y = add_product(product(c, tl.trans(S), DOT) * into[:, None], M, X, DOT)
        if HAS_DIAGONAL:
            own = tl.load(diagonal_p + t, mask=live, other=0.0)
            own *= tl.sum(b.to(tl.float32) * c.to(tl.float32), axis=1)
            y += own[:, None] * x.to(tl.float32)
        if HAS_SKIP:
            y += skip * x.to(tl.float32)
        put_rows(y_p, begin, i, p, H * P, live, P, BP, y)
        S = add_product(S * through, tl.trans(X * out[:, None]), b, DOT)
    tl.store(end_p + (batch * H + head) * (P * N) + at, S, mask=inside & (segment == SEGMENTS - 1))
