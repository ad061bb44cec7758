"""Backward of the state space dual within chunks, in Triton: equations and letters of `cpu.py`.

Two kernels, in which a program goes through some heads of a group in one chunk: one has the gradients of x, source and decays;
the other those of B and C, summed over its heads. Products read their operands where the loads put them, in shared memory.

What sums of decays receive and give is found from rows of y and of the gradient of source x, which are made of the very same M,
rounded: what one position gives and another receives cancels.

    dl_i = dy_i . (y_i - D x_i) - source_i x_i . dX_i          source dX is dx without the skip
"""

# mypy: disable-error-code="no-untyped-def, assignment, var-annotated"
import triton
import triton.language as tl

from mamba_bio_audio.kernels.ssd.parts import add_product, chunk_of, product, put_rows, rows_of, sequences_of, state_of

# Stands for a source of less, by which the gradient of a source is divided.
LEAST = tl.constexpr(1e-30)


@triton.jit
def decays_of(l, i, number, HAS_DIAGONAL: tl.constexpr, HAS_RESET: tl.constexpr):
    """exp(l_i - l_s) of pairs, s in rows and i in columns, where s reaches i, else 0."""
    connected = i[:, None] <= i[None, :]
    if HAS_DIAGONAL:
        connected = i[:, None] < i[None, :]
    if HAS_RESET:
        connected = connected & (number[:, None] == number[None, :])
    return tl.where(connected, tl.exp2(l[None, :] - l[:, None]), 0.0)


@triton.jit(do_not_specialize=["L", "CHUNKS"])
def values_kernel(
    x_p, b_p, c_p, l_p, source_p, diagonal_p, skip_p, reset_p, states_p, dy_p, adjoints_p,
    dx_p, dl_p, dsource_p, ddiagonal_p, dskip_p,
    L, CHUNKS, x_batch, b_batch, c_batch, dy_batch, dx_batch,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    X_ROW: tl.constexpr, X_HEAD: tl.constexpr, B_ROW: tl.constexpr, B_GROUP: tl.constexpr, C_ROW: tl.constexpr,
    C_GROUP: tl.constexpr, DY_ROW: tl.constexpr, DY_HEAD: tl.constexpr, DX_ROW: tl.constexpr, DX_HEAD: tl.constexpr,
    HEADS: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, DOT: tl.constexpr,
    HAS_SOURCE: tl.constexpr, HAS_DIAGONAL: tl.constexpr, HAS_SKIP: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    """Writes dx (B, L, H, P), dl, dsource, ddiagonal (B, H, L) and dskip (B, CHUNKS, H).

    States and adjoints (B, CHUNKS, H, P, N) are the state before each chunk and the gradient of that behind it; l and dl are
    (B, H, CHUNKS Q).
    """
    BLOCKS: tl.constexpr = (P + BP - 1) // BP
    PARTS: tl.constexpr = H // HEADS
    # What a position gives to itself is left out of the sums, which fp32 would lose digits by.
    APART: tl.constexpr = HAS_DIAGONAL or DOT != "bf16"
    pid = tl.program_id(0)
    part = pid % PARTS
    chunk = (pid // PARTS) % CHUNKS
    batch = (pid // PARTS // CHUNKS).to(tl.int64)
    group = part * HEADS // (H // G)
    n = tl.arange(0, BN)
    i = tl.arange(0, Q)
    begin, live = chunk_of(chunk, i, L, Q)
    number = i
    if HAS_RESET:
        number, last = sequences_of(reset_p + batch * L + begin + i, live)
    b = rows_of(b_p + batch * b_batch + group * B_GROUP, begin, i, n, B_ROW, live, N, BN)
    c = rows_of(c_p + batch * c_batch + group * C_GROUP, begin, i, n, C_ROW, live, N, BN)
    for k in range(0, HEADS):
        head = part * HEADS + k
        place = ((batch * CHUNKS + chunk) * H + head) * (P * N)
        of_head = (batch * H + head) * L + begin
        of_chunk = ((batch * H + head) * CHUNKS + chunk) * Q
        l = tl.load(l_p + of_chunk + i)
        total = tl.load(l_p + of_chunk + (Q - 1))
        through, into, out = tl.exp2(total), tl.exp2(l), tl.exp2(total - l)
        if HAS_RESET:
            through = tl.where(last == 0, through, 0.0)
            into = tl.where(number == 0, into, 0.0)
            out = tl.where(number == last, out, 0.0)
        M = product(b, tl.trans(c), DOT)
        if APART:
            products = tl.sum(tl.where(i[:, None] == i[None, :], M, 0.0), axis=1)
            own = tl.full([Q], 1.0, tl.float32)
        M *= decays_of(l, i, number, APART, HAS_RESET)
        if HAS_SOURCE:
            source = tl.load(source_p + of_head + i, mask=live, other=0.0)
            source = tl.where(tl.abs(source) < LEAST, LEAST, source)
            M *= source[:, None]
            out *= source
            if APART:
                own = source
        if HAS_DIAGONAL:
            own = tl.load(diagonal_p + of_head + i, mask=live, other=0.0)
        if DOT == "bf16":
            M = M.to(tl.bfloat16)
        received = tl.zeros([Q], tl.float32)
        given = tl.zeros([Q], tl.float32)
        both = tl.zeros([Q], tl.float32)
        passed = 0.0
        for block in tl.static_range(BLOCKS):
            p = block * BP + tl.arange(0, BP)
            x = rows_of(x_p + batch * x_batch + head * X_HEAD, begin, i, p, X_ROW, live, P, BP)
            dy = rows_of(dy_p + batch * dy_batch + head * DY_HEAD, begin, i, p, DY_ROW, live, P, BP)
            S = state_of(states_p + place, p, n, P, N, BP, BN)
            A = state_of(adjoints_p + place, p, n, P, N, BP, BN)
            passed += through * tl.sum(S.to(tl.float32) * A.to(tl.float32))
            y = add_product(product(c, tl.trans(S), DOT) * into[:, None], tl.trans(M), x, DOT)
            received += tl.sum(y * dy.to(tl.float32), axis=1)
            dX = product(b, tl.trans(A), DOT) * out[:, None]
            passed += tl.sum(dX * x.to(tl.float32))
            dX = add_product(dX, M, dy, DOT)
            given += tl.sum(dX * x.to(tl.float32), axis=1)
            if HAS_SKIP or APART:
                both += tl.sum(x.to(tl.float32) * dy.to(tl.float32), axis=1)
            if HAS_SKIP:
                dX += tl.load(skip_p + head) * dy.to(tl.float32)
            if APART:
                dX += (own * products)[:, None] * dy.to(tl.float32)
            put_rows(dx_p + batch * dx_batch + head * DX_HEAD, begin, i, p, DX_ROW, live, P, BP, dX)
        tl.store(dl_p + of_chunk + i, received - given + tl.where(i == Q - 1, passed, 0.0))
        if HAS_SOURCE:
            dsource = given / source
            if APART and not HAS_DIAGONAL:
                dsource += both * products
            tl.store(dsource_p + of_head + i, dsource, mask=live)
        if HAS_DIAGONAL:
            tl.store(ddiagonal_p + of_head + i, both * products, mask=live)
        if HAS_SKIP:
            tl.store(dskip_p + (batch * CHUNKS + chunk) * H + head, tl.sum(both, axis=0))


@triton.jit(do_not_specialize=["L", "CHUNKS"])
def maps_kernel(
    x_p, b_p, c_p, l_p, source_p, diagonal_p, reset_p, states_p, dy_p, adjoints_p, maps_p,
    L, CHUNKS, x_batch, b_batch, c_batch, dy_batch, maps_batch,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    X_ROW: tl.constexpr, X_HEAD: tl.constexpr, B_ROW: tl.constexpr, B_GROUP: tl.constexpr, C_ROW: tl.constexpr,
    C_GROUP: tl.constexpr, DY_ROW: tl.constexpr, DY_HEAD: tl.constexpr,
    MAPS_ROW: tl.constexpr, MAPS_OF: tl.constexpr, MAPS_PART: tl.constexpr,
    HEADS: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, DOT: tl.constexpr,
    HAS_SOURCE: tl.constexpr, HAS_DIAGONAL: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    """Writes maps (B, L, 2, H / HEADS, N), the gradients of B and of C, summed over HEADS heads each."""
    BLOCKS: tl.constexpr = (P + BP - 1) // BP
    PARTS: tl.constexpr = H // HEADS
    pid = tl.program_id(0)
    part = pid % PARTS
    chunk = (pid // PARTS) % CHUNKS
    batch = (pid // PARTS // CHUNKS).to(tl.int64)
    group = part * HEADS // (H // G)
    n = tl.arange(0, BN)
    i = tl.arange(0, Q)
    begin, live = chunk_of(chunk, i, L, Q)
    number = i
    if HAS_RESET:
        number, last = sequences_of(reset_p + batch * L + begin + i, live)
    db = tl.zeros([Q, BN], tl.float32)
    dc = tl.zeros([Q, BN], tl.float32)
    pairs = tl.zeros([Q, Q], tl.float32)
    for k in range(0, HEADS * BLOCKS):
        head = part * HEADS + k // BLOCKS
        p = k % BLOCKS * BP + tl.arange(0, BP)
        x = rows_of(x_p + batch * x_batch + head * X_HEAD, begin, i, p, X_ROW, live, P, BP)
        dy = rows_of(dy_p + batch * dy_batch + head * DY_HEAD, begin, i, p, DY_ROW, live, P, BP)
        place = ((batch * CHUNKS + chunk) * H + head) * (P * N)
        S = state_of(states_p + place, p, n, P, N, BP, BN)
        A = state_of(adjoints_p + place, p, n, P, N, BP, BN)
        of_head = (batch * H + head) * L + begin
        of_chunk = ((batch * H + head) * CHUNKS + chunk) * Q
        l = tl.load(l_p + of_chunk + i)
        total = tl.load(l_p + of_chunk + (Q - 1))
        into, out = tl.exp2(l), tl.exp2(total - l)
        if HAS_RESET:
            into = tl.where(number == 0, into, 0.0)
            out = tl.where(number == last, out, 0.0)
        decays = decays_of(l, i, number, HAS_DIAGONAL, HAS_RESET)
        if HAS_SOURCE:
            source = tl.load(source_p + of_head + i, mask=live, other=0.0)
            decays *= source[:, None]
            out *= source
        if HAS_DIAGONAL:
            own = tl.load(diagonal_p + of_head + i, mask=live, other=0.0)
            decays = tl.where(i[:, None] == i[None, :], own[:, None], decays)
        pairs += product(x, tl.trans(dy), DOT) * decays
        db += product(x, A, DOT) * out[:, None]
        dc += product(dy, S, DOT) * into[:, None]
    b = rows_of(b_p + batch * b_batch + group * B_GROUP, begin, i, n, B_ROW, live, N, BN)
    c = rows_of(c_p + batch * c_batch + group * C_GROUP, begin, i, n, C_ROW, live, N, BN)
    if DOT == "bf16":
        pairs = pairs.to(tl.bfloat16)
    db = add_product(db, pairs, c, DOT)
    dc = add_product(dc, tl.trans(pairs), b, DOT)
    maps_p += batch * maps_batch + part * MAPS_PART
    put_rows(maps_p, begin, i, n, MAPS_ROW, live, N, BN, db)
    put_rows(maps_p + MAPS_OF, begin, i, n, MAPS_ROW, live, N, BN, dc)
