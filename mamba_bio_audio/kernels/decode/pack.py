"""Weights and state of a stack of Mamba layers, laid out once for `persistent.decode_kernel`.

Every matrix (M, K) that multiplies a vector is cut into tiles of ROWS x COLUMNS words of 32 bits, each contiguous, in the order
in which the kernel reads them: (M / ROWS, K / (HALVES COLUMNS), ROWS, COLUMNS). A word is one fp32 number, or two bf16 numbers
that lie COLUMNS apart in their row, the first in the lower half (HALVES = 2). A lane loads four words at a time, and four lanes
or more share a row. Layers follow each other, so that a layer is an offset. What depends on weights alone is computed here:

    A = -exp(A_log) log2(e)        in_proj W = in_proj W * norm weight        head = lm_head W * final norm weight

Legend: D model channels, E inner channels, N states, W convolution width, R delta rank (P: padded to a power of two, N or
more), X rows of x_proj (P + 2 N, padded to a power of two), V symbols that may be drawn (S: padded likewise).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

_LANES_OF_A_ROW = 4
_WORDS_OF_A_LOAD = 4
_LEAST_ROWS = 16
_ALL = 1 << 10


class Layer(NamedTuple):
    """Parameters of one layer, in any floating dtype: real, selective in delta, B and C, no biases of the projections."""

    norm: Tensor  # (D,)
    in_proj: Tensor  # (2 E, D)
    conv: Tensor  # (E, W)
    conv_bias: Tensor | None  # (E,)
    x_proj: Tensor  # (R + 2 N, E)
    dt_proj: Tensor  # (E, R)
    dt_bias: Tensor  # (E,)
    A_log: Tensor  # (E, N)
    D: Tensor  # (E,)
    out_proj: Tensor  # (D, E)


@dataclass(frozen=True, repr=False)
class Case:
    """A kernel's compile-time case; an argument of the kernel as a whole (`CASE: tl.constexpr`).

    Attributes:
        D, E, N, W, P, X, S: sizes, as in the module's legend.
        symbols: V.
        E_ROWS, D_ROWS: rows of a tile of matrices with E and with D rows.
        IN_COLUMNS, X_COLUMNS, OUT_COLUMNS, HEAD_COLUMNS: words in a row of a tile.
        HALVES: elements in a word.
        IN_AHEAD, X_AHEAD, OUT_AHEAD: tiles loaded before the barrier in front of a product (in_proj: of x and z each).
        greedy: take the most probable symbol.
        scaled: the temperature is not 1.
        top_k, top_p: keep only the most probable symbols.
        ROWS: rows of the batch in one program.
        G: programs that share the inner channels of a row (E is one program's share).
        UNROLL: rows whose states are loaded before the first is used.
        PIECE: elements of a matrix that are multiplied at a time, and loaded while those before are.
    """

    D: int
    E: int
    N: int
    W: int
    P: int
    X: int
    S: int
    symbols: int
    E_ROWS: int
    D_ROWS: int
    IN_COLUMNS: int
    X_COLUMNS: int
    OUT_COLUMNS: int
    HEAD_COLUMNS: int
    HALVES: int
    IN_AHEAD: int
    X_AHEAD: int
    OUT_AHEAD: int
    greedy: bool = False
    scaled: bool = False
    top_k: bool = False
    top_p: bool = False
    ROWS: int = 1
    G: int = 1
    UNROLL: int = 1
    PIECE: int = 0

    def __repr__(self) -> str:
        """Its sizes and true attributes: Triton makes names of functions from it."""
        values = [(f.name, getattr(self, f.name)) for f in fields(self)]
        return "_".join(name if value is True else f"{name}{value}" for name, value in values if value is not False)

    @property
    def matrices(self) -> int:
        """Words of a program's share of a layer's matrices: in_proj (x, then z), x_proj, out_proj."""
        return (3 * self.D + self.X) * self.E // self.HALVES

    @property
    def vectors(self) -> int:
        """Elements of a program's share of a layer's fp32 numbers: A, dt_proj, convolution, its bias, delta's bias, D."""
        return self.E * (self.N + self.P + self.W + 3)

    @property
    def scratch(self) -> int:
        """fp32 numbers that a row's program passes between its threads: stream, u, gate, x_proj's and the gated output."""
        return self.D + 3 * self.E + self.X


class Network(NamedTuple):
    """A packed network.

    Attributes:
        case: sizes; how symbols are drawn is not part of it.
        warps: of a program; the tiles suit this number.
        layers: their number.
        matrices: (layers * G * case.matrices,) words: fp32, or int32 holding two bf16; not tiled: elements.
        vectors: (layers * G * case.vectors,) fp32.
        embedding: (vocabulary, D) fp32.
        head: (S * D / HALVES,) words, rows in the order of `allowed`, zeros behind.
        allowed: (V,) int32 ids that may be drawn.
        eps: of the norms.
        registers: of a thread at most; None for what the compiler takes. `decode_together` only.
    """

    case: Case
    warps: int
    layers: int
    matrices: Tensor
    vectors: Tensor
    embedding: Tensor
    head: Tensor
    allowed: Tensor
    eps: float
    registers: int | None = None


def pack(
    layers: Sequence[Layer],
    embedding: Tensor,
    norm_f: Tensor,
    head: Tensor,
    allowed: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    eps: float = 1e-5,
    warps: int = 16,
    tiled: bool = True,
    rows: int = 16,
    programs: int = 1,
    registers: int | None = None,
) -> Network:
    """Pack a network on the device of its parameters.

    Args:
        layers: of equal sizes; D must be a multiple of 64, a program's share of E one of 16.
        embedding: (vocabulary, D).
        norm_f: (D,), weight of the final norm.
        head: (vocabulary, D).
        allowed: ids that may be drawn, in order.
        dtype: of the matrices, fp32 or bf16; everything else is fp32.
        eps: of all norms.
        warps: of a program.
        tiled: for `decode`; else matrices are whole, rows one after the other, in their dtype, for `decode_together`.
        rows: of the batch in one program, for `decode_together`.
        programs: that share the inner channels, for `decode_split` and `decode_together`.
        registers: of a thread at most, for `decode_together`: 128 lets two programs of 8 warps run on a multiprocessor.
    """
    count = len(layers)
    layers = [part for layer in layers for part in split_layer(layer, programs)]
    first = layers[0]
    states, width, channels = first.A_log.shape[1], first.conv.shape[1], len(first.norm)
    case = sizes_of(
        channels, len(first.D), states, width, first.dt_proj.shape[1], len(allowed), 4 // dtype.itemsize, warps
    )
    case = replace(case, G=programs)
    if programs > 1 and tiled:  # a program's share of a layer fits into registers
        case = replace(case, IN_AHEAD=_ALL, X_AHEAD=_ALL, OUT_AHEAD=_ALL)
    if not tiled:
        case = _untiled(case, rows, warps, registers or 65536 // (32 * warps))
    ids = torch.tensor(list(allowed), device=head.device)
    chosen = pad_rows(head.detach()[ids].float() * norm_f.detach().float(), case.S)
    with torch.no_grad():
        matrices = torch.cat([matrices_of(layer, case) for layer in layers])
        chosen = tiles_of(chosen, case.S, case.HEAD_COLUMNS, case.HALVES)
        return Network(
            case=case,
            warps=warps,
            layers=count,
            matrices=matrices if tiled else matrices.to(dtype),
            vectors=torch.cat([vectors_of(layer, case) for layer in layers]),
            embedding=embedding.detach().float().contiguous(),
            head=chosen if tiled else chosen.to(dtype),
            allowed=ids.int(),
            eps=eps,
            registers=registers,
        )


def _untiled(case: Case, rows: int, warps: int, registers: int) -> Case:
    """For `decode_together`: a block of a matrix fills 16 or 32 registers of a thread, and what the scan loads 64 or 128."""
    lanes = 32 * warps
    E_ROWS, D_ROWS = (min(size, 16 * lanes // rows) for size in (case.E_ROWS, case.D_ROWS))
    of_a_row = -(-E_ROWS * case.N // lanes) + 3 * -(-E_ROWS * 4 // lanes) + 8  # states, u, delta and gate, B and C
    unroll = rows
    while unroll > 1 and unroll * of_a_row > (64 if registers <= 128 else 128):
        unroll //= 2
    return replace(
        case, IN_COLUMNS=case.D, X_COLUMNS=case.E, OUT_COLUMNS=case.E, HEAD_COLUMNS=case.D, HALVES=1, ROWS=rows, E_ROWS=E_ROWS,
        D_ROWS=D_ROWS, UNROLL=unroll, PIECE=(32 if registers <= 128 else 64) * lanes,
    )  # fmt: skip


def split_layer(layer: Layer, programs: int) -> list[Layer]:
    """Equal shares of the inner channels: each makes its part of u and of g, and its summand of x_proj and out_proj."""
    share = len(layer.D) // programs
    return [
        layer._replace(
            in_proj=layer.in_proj.unflatten(0, (2, -1))[:, part].flatten(0, 1),
            conv=layer.conv[part],
            conv_bias=None if layer.conv_bias is None else layer.conv_bias[part],
            x_proj=layer.x_proj[:, part],
            dt_proj=layer.dt_proj[part],
            dt_bias=layer.dt_bias[part],
            A_log=layer.A_log[part],
            D=layer.D[part],
            out_proj=layer.out_proj[:, part],
        )
        for part in (slice(low, low + share) for low in range(0, len(layer.D), share))
    ]


def columns_of(rows: int, length: int, halves: int, lanes: int) -> int:
    """Words in a row of a tile with so many rows of a matrix with `length` columns."""
    return math.gcd(max(_LANES_OF_A_ROW, lanes // rows) * _WORDS_OF_A_LOAD, length // halves)


def sizes_of(D: int, E: int, N: int, W: int, R: int, symbols: int, halves: int, warps: int) -> Case:
    """The case of a program of so many warps."""
    P = max(power_of_two(R), N)
    X, S = power_of_two(P + 2 * N), max(power_of_two(symbols), _LEAST_ROWS)
    # A vector of fewer elements than there are lanes is loaded and stored in the layout in which it is used; others take a
    # trip through shared memory. So rows go in parts of half as many as there are lanes.
    lanes = 32 * warps
    E_ROWS, D_ROWS = (math.gcd(size, lanes // 2) for size in (E, D))

    def columns(rows: int, length: int) -> int:
        return columns_of(rows, length, halves, lanes)

    return Case(
        D=D,
        E=E,
        N=N,
        W=W,
        P=P,
        X=X,
        S=S,
        symbols=symbols,
        E_ROWS=E_ROWS,
        D_ROWS=D_ROWS,
        IN_COLUMNS=columns(E_ROWS, D),
        X_COLUMNS=columns(X, E),
        OUT_COLUMNS=columns(D_ROWS, E),
        HEAD_COLUMNS=columns(S, D),
        HALVES=halves,
        IN_AHEAD=2 if D <= 64 else 1,
        X_AHEAD=4,
        OUT_AHEAD=2 if D <= 128 else 1,
    )


def matrices_of(layer: Layer, case: Case) -> Tensor:
    """(case.matrices,) words."""
    x, z = (layer.in_proj.float() * layer.norm.float()).split(case.E)
    delta, B, C = layer.x_proj.float().split([layer.dt_proj.shape[1], case.N, case.N])
    x_proj = pad_rows(torch.cat([pad_rows(delta, case.P), B, C]), case.X)
    return torch.cat(
        [
            tiles_of(x, case.E_ROWS, case.IN_COLUMNS, case.HALVES),
            tiles_of(z, case.E_ROWS, case.IN_COLUMNS, case.HALVES),
            tiles_of(x_proj, case.X, case.X_COLUMNS, case.HALVES),
            tiles_of(layer.out_proj.float(), case.D_ROWS, case.OUT_COLUMNS, case.HALVES),
        ]
    )


def vectors_of(layer: Layer, case: Case) -> Tensor:
    """(case.vectors,) fp32."""
    dt_proj = pad_rows(layer.dt_proj.float().T, case.P).T
    bias = torch.zeros_like(layer.D) if layer.conv_bias is None else layer.conv_bias
    A = -layer.A_log.float().exp() * math.log2(math.e)
    parts = (A, dt_proj, layer.conv.T, bias, layer.dt_bias, layer.D)
    return torch.cat([part.float().reshape(-1) for part in parts])


def tiles_of(matrix: Tensor, rows: int, columns: int, halves: int) -> Tensor:
    """(M, K) fp32 as tiles of words, flat."""
    M, K = matrix.shape
    parts = matrix.reshape(M // rows, rows, K // (halves * columns), halves, columns).permute(0, 2, 1, 4, 3)
    if halves == 1:
        return parts.reshape(-1)
    return parts.to(torch.bfloat16).contiguous().view(torch.int32).reshape(-1)


def pad_rows(matrix: Tensor, rows: int) -> Tensor:
    """The matrix with zeros below, `rows` rows in all."""
    return torch.nn.functional.pad(matrix, (0, 0, 0, rows - len(matrix)))


def power_of_two(n: int) -> int:
    """The power of two that is n or the next above."""
    return 1 << (n - 1).bit_length()
