"""Backward of the state space dual within chunks, in Triton: equations and letters of `cpu.py`.

One program has one chunk of one head. Its gradients of B and C go to a tensor with a place for each head, which is summed
over the heads of a group afterwards, in a fixed order.
"""

# mypy: disable-error-code="no-untyped-def, assignment"
import triton
import triton.language as tl

from mamba_bio_audio.kernels.ssd.parts import add_product, falling, product, rows_of, sequences_of


@triton.jit(do_not_specialize=["L", "CHUNKS"])
def backward_kernel(
    x_p, b_p, c_p, l_p, source_p, diagonal_p, skip_p, reset_p, states_p, dy_p, adjoints_p,
    dx_p, maps_p, dl_p, dsource_p, ddiagonal_p, dskip_p,
    L, CHUNKS, x_batch, b_batch, c_batch, dy_batch, dx_batch,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    X_ROW: tl.constexpr, X_HEAD: tl.constexpr, B_ROW: tl.constexpr, B_GROUP: tl.constexpr, C_ROW: tl.constexpr,
    C_GROUP: tl.constexpr, DY_ROW: tl.constexpr, DY_HEAD: tl.constexpr, DX_ROW: tl.constexpr, DX_HEAD: tl.constexpr,
    Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, DOT: tl.constexpr,
    HAS_SOURCE: tl.constexpr, HAS_DIAGONAL: tl.constexpr, HAS_SKIP: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    """Writes dx (B, L, H, P), maps (B, L, 2, H, N) of B and C, dl, dsource, ddiagonal (B, H, L) and dskip (B, CHUNKS, H).

    States and adjoints (B, CHUNKS, H, P, N) are the state before each chunk and the gradient of that behind it; l and dl are
    (B, H, CHUNKS Q).
    """
    BLOCKS: tl.constexpr = (P + BP - 1) // BP
    pid = tl.program_id(0)
    head = pid % H
    chunk = (pid // H) % CHUNKS
    batch = (pid // H // CHUNKS).to(tl.int64)
    group = head // (H // G)
    n = tl.arange(0, BN)
    i = tl.arange(0, Q)
    t = chunk.to(tl.int64) * Q + i
    live = t < L
    b = rows_of(b_p + batch * b_batch + group * B_GROUP, t, n, B_ROW, L, N)
    c = rows_of(c_p + batch * c_batch + group * C_GROUP, t, n, C_ROW, L, N)
    x_p += batch * x_batch + head * X_HEAD
    dy_p += batch * dy_batch + head * DY_HEAD
    dx_p += batch * dx_batch + head * DX_HEAD
    states_p += ((batch * CHUNKS + chunk) * H + head) * (P * N)
    adjoints_p += ((batch * CHUNKS + chunk) * H + head) * (P * N)
    of_head = (batch * H + head) * L
    l_p += ((batch * H + head) * CHUNKS + chunk) * Q
    l = tl.load(l_p + i)
    total = tl.load(l_p + (Q - 1))
    through, into, out = falling(total), falling(l), falling(total - l)
    # Matrices of pairs have the earlier position s in their rows, and the later one i in their columns.
    connected = i[:, None] <= i[None, :]
    if HAS_DIAGONAL:
        connected = i[:, None] < i[None, :]
    if HAS_RESET:
        number, last = sequences_of(reset_p + batch * L, t, L)
        connected = connected & (number[:, None] == number[None, :])
        through = tl.where(last == 0, through, 0.0)
        into = tl.where(number == 0, into, 0.0)
        out = tl.where(number == last, out, 0.0)
    decays = tl.where(connected, falling(l[None, :] - l[:, None]), 0.0)
    source = tl.full([Q], 1.0, tl.float32)
    if HAS_SOURCE:
        source = tl.load(source_p + of_head + t, mask=live, other=0.0)
    skip = 0.0
    if HAS_SKIP:
        skip = tl.load(skip_p + head)
    BC = product(b, tl.trans(c), DOT)
    M = BC * decays
    db = tl.zeros([Q, BN], tl.float32)
    dct = tl.zeros([BN, Q], tl.float32)  # that of c, transposed
    rows = tl.zeros([Q], tl.float32)
    columns = tl.zeros([Q], tl.float32)
    weighed = tl.zeros([Q], tl.float32)
    dsource = tl.zeros([Q], tl.float32)
    both = tl.zeros([Q], tl.float32)
    behind = 0.0
    for block in tl.static_range(BLOCKS):
        p = block * BP + tl.arange(0, BP)
        inside = (p < P)[:, None] & (n < N)[None, :]
        at = p[:, None] * N + n[None, :]
        x = rows_of(x_p, t, p, X_ROW, L, P)
        dy = rows_of(dy_p, t, p, DY_ROW, L, P)
        # Between positions of the chunk.
        X = x.to(tl.float32) * source[:, None]
        E = product(X, tl.trans(dy), DOT)
        W = E * M
        rows += tl.sum(W, axis=0)
        columns += tl.sum(W, axis=1)
        dBC = E * decays
        if DOT == "bf16":
            dBC = dBC.to(tl.bfloat16)
        # To the state behind it.
        A = tl.load(adjoints_p + at, mask=inside, other=0.0)
        to_state = product(b, tl.trans(A), DOT) * out[:, None]
        weighed += tl.sum(X * to_state, axis=1)
        dX = add_product(to_state, M, dy, DOT)
        dsource += tl.sum(dX * x.to(tl.float32), axis=1)
        dx = dX * source[:, None]
        if HAS_SKIP:
            dx += skip * dy.to(tl.float32)
        if HAS_SKIP or HAS_DIAGONAL:
            both += tl.sum(dy.to(tl.float32) * x.to(tl.float32), axis=1)
        if HAS_DIAGONAL:
            own = tl.load(diagonal_p + of_head + t, mask=live, other=0.0)
            dx += (own * tl.sum(b.to(tl.float32) * c.to(tl.float32), axis=1))[:, None] * dy.to(tl.float32)
        to = dx_p + t[:, None] * DX_ROW + p[None, :]
        tl.store(to, dx.to(dx_p.dtype.element_ty), mask=live[:, None] & (p < P)[None, :])
        db = add_product(db, dBC, c, DOT)
        db = add_product(db, X * out[:, None], A, DOT)
        # From the state before it.
        S = tl.load(states_p + at, mask=inside, other=0.0)
        behind += tl.sum(tl.sum(S.to(tl.float32) * A.to(tl.float32), axis=1), axis=0)
        from_state = product(tl.trans(S), tl.trans(dy), DOT) * into[None, :]
        rows += tl.sum(tl.trans(c).to(tl.float32) * from_state, axis=0)
        dct = add_product(dct + from_state, tl.trans(b), dBC, DOT)
    dl = rows - columns - weighed
    dl += tl.where(i == Q - 1, through * behind + tl.sum(weighed, axis=0), 0.0)
    tl.store(dl_p + ((batch * H + head) * CHUNKS + chunk) * Q + i, dl)
    if HAS_SOURCE:
        tl.store(dsource_p + of_head + t, dsource, mask=live)
    dc = tl.trans(dct)
    if HAS_DIAGONAL:
        own = both * tl.load(diagonal_p + of_head + t, mask=live, other=0.0)
        db += own[:, None] * c.to(tl.float32)
        dc += own[:, None] * b.to(tl.float32)
        own = both * tl.sum(b.to(tl.float32) * c.to(tl.float32), axis=1)
        tl.store(ddiagonal_p + of_head + t, own, mask=live)
    if HAS_SKIP:
        tl.store(dskip_p + (batch * CHUNKS + chunk) * H + head, tl.sum(both, axis=0))
    mask = live[:, None] & (n < N)[None, :]
    to = maps_p + batch * L * (2 * H * N) + t[:, None] * (2 * H * N) + head * N + n[None, :]
    tl.store(to, db.to(maps_p.dtype.element_ty), mask=mask)
    tl.store(to + H * N, dc.to(maps_p.dtype.element_ty), mask=mask)
