"""States between chunks, in Triton: a walk over the chunks of a segment, and what segments hand on to the next.

    S_next = exp(l_Q) S + sum_s exp(l_Q - l_s) source_s x_s B_s'        G_before = exp(l_Q) G + sum_i exp(l_i) dy_i C_i'

Forward walks so over a long sequence, whose segments run side by side; backward walks from the last chunk to the first.
Letters as in `cpu.py`; a segment is some chunks in a row.
"""

# mypy: disable-error-code="no-untyped-def, assignment"
import triton
import triton.language as tl

from mamba_bio_audio.kernels.ssd.parts import add_product, chunk_of, rows_of, sequences_of


@triton.jit(do_not_specialize=["L", "CHUNKS", "SEGMENTS", "LONG"])
def walk_kernel(
    x_p, b_p, l_p, source_p, reset_p, start_p, states_p, end_p, total_p,
    L, CHUNKS, SEGMENTS, LONG, x_batch, b_batch,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr, X_ROW: tl.constexpr, X_HEAD: tl.constexpr,
    B_ROW: tl.constexpr, B_GROUP: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, DOT: tl.constexpr,
    REVERSE: tl.constexpr, HAS_SOURCE: tl.constexpr, HAS_RESET: tl.constexpr, HAS_START: tl.constexpr,
    WRITE_STATES: tl.constexpr, EACH_END: tl.constexpr,
):  # fmt: skip
    """Writes the state that comes to each chunk, states (B, CHUNKS, H, P, N), and what is behind the walk.

    Behind the walk is the last end (B, H, P, N); or with EACH_END that of each segment (B, SEGMENTS, H, P, N) and its whole
    decay total (B, SEGMENTS, H). Starts (B, SEGMENTS, H, P, N) are before each segment. LONG is chunks of a
    segment, l is (B, H, CHUNKS Q).
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
    l_p += (batch * H + head) * CHUNKS * Q
    source_p += (batch * H + head) * L
    reset_p += batch * L
    states_p += batch * CHUNKS * H * (P * N)
    at = p[:, None] * N + n[None, :]
    inside = (p < P)[:, None] & (n < N)[None, :]
    place = ((batch * SEGMENTS + segment) * H + head) * (P * N)
    S = tl.zeros([BP, BN], tl.float32)
    if HAS_START:
        S = tl.load(start_p + place + at, mask=inside, other=0.0)
    whole = 0.0
    open_ = 1.0
    first = segment * LONG
    count = tl.minimum(LONG, CHUNKS - first)
    for k in range(0, count):
        chunk = first + k
        if REVERSE:
            chunk = first + count - 1 - k
        if WRITE_STATES:
            where = states_p + (chunk.to(tl.int64) * H + head) * (P * N) + at
            tl.store(where, S.to(states_p.dtype.element_ty), mask=inside)
        begin, live = chunk_of(chunk, i, L, Q)
        t = begin + i
        x = rows_of(x_p, begin, i, p, X_ROW, live, P, BP)
        b = rows_of(b_p, begin, i, n, B_ROW, live, N, BN)
        l = tl.load(l_p + t)
        total = tl.load(l_p + begin + (Q - 1))
        through = tl.exp2(total)
        whole += total
        weight = tl.exp2(l)
        if not REVERSE:
            weight = tl.exp2(total - l)
            if HAS_SOURCE:
                weight *= tl.load(source_p + t, mask=live, other=0.0)
        if HAS_RESET:
            number, last = sequences_of(reset_p + t, live)
            through = tl.where(last == 0, through, 0.0)
            open_ = tl.where(last == 0, open_, 0.0)
            if REVERSE:
                weight = tl.where(number == 0, weight, 0.0)
            else:
                weight = tl.where(number == last, weight, 0.0)
        S = add_product(S * through, tl.trans(x.to(tl.float32) * weight[:, None]), b, DOT)
    if EACH_END:
        tl.store(end_p + place + at, S, mask=inside)
        tl.store(total_p + (batch * SEGMENTS + segment) * H + head, tl.exp2(whole) * open_)
    else:
        behind = segment == SEGMENTS - 1
        if REVERSE:
            behind = segment == 0
        tl.store(end_p + (batch * H + head) * (P * N) + at, S, mask=inside & behind)


@triton.jit(do_not_specialize=["SEGMENTS"])
def hand_on_kernel(
    start_p, total_p, ends_p, SEGMENTS,
    H: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, REVERSE: tl.constexpr, HAS_START: tl.constexpr,
):  # fmt: skip
    """Replaces the ends of segments (B, SEGMENTS, H, SIZE), each from a state of zeros, by the state before each segment.

    Start (B, H, SIZE) is the state before the first, or the gradient behind the last.
    """
    BLOCKS: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    pid = tl.program_id(0)
    i = (pid % BLOCKS) * BLOCK + tl.arange(0, BLOCK)
    head = pid // BLOCKS % H
    batch = (pid // BLOCKS // H).to(tl.int64)
    S = tl.zeros([BLOCK], tl.float32)
    if HAS_START:
        S = tl.load(start_p + (batch * H + head) * SIZE + i, mask=i < SIZE, other=0.0)
    for k in range(0, SEGMENTS):
        segment = k
        if REVERSE:
            segment = SEGMENTS - 1 - k
        place = (batch * SEGMENTS + segment) * H + head
        end = tl.load(ends_p + place * SIZE + i, mask=i < SIZE, other=0.0)
        total = tl.load(total_p + place)
        tl.store(ends_p + place * SIZE + i, S, mask=i < SIZE)
        S = S * total + end
