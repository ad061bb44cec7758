"""Backward of the state space dual within chunks, in Triton: equations and letters of `cpu.py`.

One program has one chunk and works off heads of one group, one after another, so that what belongs to the group (C B' and
the gradients of B and C) stays in registers and is summed over heads in a fixed order.
"""

# mypy: disable-error-code="no-untyped-def, assignment"
import triton
import triton.language as tl

from mamba_bio_audio.kernels.ssd.parts import add_product, falling, product, rows_of, sequences_of, sums_of_decay


@triton.jit(do_not_specialize=["L", "CHUNKS"])
def backward_kernel(
    x_p, b_p, c_p, a_p, source_p, diagonal_p, skip_p, reset_p, states_p, dy_p, adjoints_p,
    dx_p, db_p, dc_p, da_p, dsource_p, ddiagonal_p, dskip_p,
    L, CHUNKS, x_batch, b_batch, c_batch, dy_batch, dx_batch, db_batch, dc_batch, part_size,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr, PARTS: tl.constexpr,
    X_ROW: tl.constexpr, X_HEAD: tl.constexpr, B_ROW: tl.constexpr, B_GROUP: tl.constexpr, C_ROW: tl.constexpr,
    C_GROUP: tl.constexpr, DY_ROW: tl.constexpr, DY_HEAD: tl.constexpr, DX_ROW: tl.constexpr, DX_HEAD: tl.constexpr,
    DB_ROW: tl.constexpr, DC_ROW: tl.constexpr,
    Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, DOT: tl.constexpr,
    HAS_SOURCE: tl.constexpr, HAS_DIAGONAL: tl.constexpr, HAS_SKIP: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    """Writes dx (B, L, H, P), db and dc (B, L, G, N), da, dsource, ddiagonal (B, H, L) and dskip (B, CHUNKS, H).

    States and adjoints (B, CHUNKS, H, P, N) are the state before each chunk and the gradient of that behind it. The heads of
    a group are shared out to PARTS programs, each with db and dc of its own, `part_size` numbers apart.
    """
    BLOCKS: tl.constexpr = (P + BP - 1) // BP
    HEADS: tl.constexpr = H // G // PARTS
    pid = tl.program_id(0)
    part = pid % PARTS
    group = pid // PARTS % G
    chunk = (pid // (PARTS * G)) % CHUNKS
    batch = (pid // (PARTS * G) // CHUNKS).to(tl.int64)
    n = tl.arange(0, BN)
    i = tl.arange(0, Q)
    t = chunk.to(tl.int64) * Q + i
    live = t < L
    b = rows_of(b_p + batch * b_batch + group * B_GROUP, t, n, B_ROW, L, N)
    c = rows_of(c_p + batch * c_batch + group * C_GROUP, t, n, C_ROW, L, N)
    # Matrices of pairs have the earlier position s in their rows, and the later one i in their columns.
    BC = product(b, tl.trans(c), DOT)
    if DOT == "bf16":
        BC = BC.to(tl.bfloat16)
    x_p += batch * x_batch
    dy_p += batch * dy_batch
    dx_p += batch * dx_batch
    states_p += (batch * CHUNKS + chunk) * H * (P * N)
    adjoints_p += (batch * CHUNKS + chunk) * H * (P * N)
    db = tl.zeros([Q, BN], tl.float32)
    dct = tl.zeros([BN, Q], tl.float32)  # that of c, transposed
    owns = tl.zeros([Q], tl.float32)
    connected = i[:, None] <= i[None, :]
    if HAS_DIAGONAL:
        connected = i[:, None] < i[None, :]
    number = tl.zeros([Q], tl.int32)
    last = 0
    starts = number != 0
    if HAS_RESET:
        number, last = sequences_of(reset_p + batch * L, t, L)
        starts = tl.load(reset_p + batch * L + t, mask=live, other=0) != 0
        connected = connected & (number[:, None] == number[None, :])
    for k in range(0, HEADS):
        head = (group * PARTS + part) * HEADS + k
        of_head = (batch * H + head) * L
        l, total = sums_of_decay(a_p + of_head, t, L)
        through, into, out = falling(total), falling(l), falling(total - l)
        if HAS_RESET:
            through = tl.where(last == 0, through, 0.0)
            into = tl.where(number == 0, into, 0.0)
            out = tl.where(number == last, out, 0.0)
        source = tl.full([Q], 1.0, tl.float32)
        if HAS_SOURCE:
            source = tl.load(source_p + of_head + t, mask=live, other=0.0)
        skip = 0.0
        if HAS_SKIP:
            skip = tl.load(skip_p + head)
        dl = tl.zeros([Q], tl.float32)
        columns = tl.zeros([Q], tl.float32)
        weighed = tl.zeros([Q], tl.float32)
        dsource = tl.zeros([Q], tl.float32)
        both = tl.zeros([Q], tl.float32)
        behind = 0.0
        for block in tl.static_range(BLOCKS):
            p = block * BP + tl.arange(0, BP)
            inside = (p < P)[:, None] & (n < N)[None, :]
            at = head * (P * N) + p[:, None] * N + n[None, :]
            x = rows_of(x_p + head * X_HEAD, t, p, X_ROW, L, P)
            dy = rows_of(dy_p + head * DY_HEAD, t, p, DY_ROW, L, P)
            # Between positions of the chunk.
            decays = tl.where(connected, falling(l[None, :] - l[:, None]), 0.0)
            dBC = product(x.to(tl.float32) * source[:, None], tl.trans(dy), DOT) * decays
            W = dBC * BC.to(tl.float32)
            dl += tl.sum(W, axis=0)
            columns += tl.sum(W, axis=1)
            db = add_product(db, dBC, c, DOT)
            dct = add_product(dct, tl.trans(b), dBC, DOT)
            dX = product(BC.to(tl.float32) * decays, dy, DOT)
            # To the state behind it.
            A = tl.load(adjoints_p + at, mask=inside, other=0.0)
            to_state = product(b, tl.trans(A), DOT) * out[:, None]
            x_wide = x.to(tl.float32)
            weighed += tl.sum(x_wide * to_state, axis=1) * source
            dX += to_state
            dsource += tl.sum(dX * x_wide, axis=1)
            dx = dX * source[:, None]
            if HAS_SKIP:
                dx += skip * dy.to(tl.float32)
            if HAS_SKIP or HAS_DIAGONAL:
                both += tl.sum(dy.to(tl.float32) * x_wide, axis=1)
            if HAS_DIAGONAL:
                own = tl.load(diagonal_p + of_head + t, mask=live, other=0.0)
                dx += (own * tl.sum(b.to(tl.float32) * c.to(tl.float32), axis=1))[:, None] * dy.to(tl.float32)
            to = dx_p + head * DX_HEAD + t[:, None] * DX_ROW + p[None, :]
            tl.store(to, dx.to(dx_p.dtype.element_ty), mask=live[:, None] & (p < P)[None, :])
            db = add_product(db, x.to(tl.float32) * (out * source)[:, None], A, DOT)
            # From the state before it.
            S = tl.load(states_p + at, mask=inside, other=0.0)
            behind += tl.sum(tl.sum(S.to(tl.float32) * A.to(tl.float32), axis=1), axis=0)
            from_state = product(tl.trans(S), tl.trans(dy), DOT) * into[None, :]
            dct += from_state
            dl += tl.sum(tl.trans(c).to(tl.float32) * from_state, axis=0)
        dl -= columns + weighed
        dl += tl.where(i == Q - 1, through * behind + tl.sum(weighed, axis=0), 0.0)
        da = tl.cumsum(dl, axis=0, reverse=True)
        if HAS_RESET:
            da = tl.where(starts, 0.0, da)
        tl.store(da_p + of_head + t, da, mask=live)
        if HAS_SOURCE:
            tl.store(dsource_p + of_head + t, dsource, mask=live)
        if HAS_DIAGONAL:
            owns += both * tl.load(diagonal_p + of_head + t, mask=live, other=0.0)
            own = both * tl.sum(b.to(tl.float32) * c.to(tl.float32), axis=1)
            tl.store(ddiagonal_p + of_head + t, own, mask=live)
        if HAS_SKIP:
            tl.store(dskip_p + (batch * CHUNKS + chunk) * H + head, tl.sum(both, axis=0))
    dc = tl.trans(dct)
    if HAS_DIAGONAL:
        db += owns[:, None] * c.to(tl.float32)
        dc += owns[:, None] * b.to(tl.float32)
    mask = live[:, None] & (n < N)[None, :]
    to = part * part_size + batch * db_batch + t[:, None] * DB_ROW + group * N + n[None, :]
    tl.store(db_p + to, db.to(db_p.dtype.element_ty), mask=mask)
    to = part * part_size + batch * dc_batch + t[:, None] * DC_ROW + group * N + n[None, :]
    tl.store(dc_p + to, dc.to(dc_p.dtype.element_ty), mask=mask)
