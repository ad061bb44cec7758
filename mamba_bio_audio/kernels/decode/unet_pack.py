"""Weights and state of a U-Net of three tiers, laid out once for `unet.unet_kernel`; letters and tiles as in `pack.py`.

A buffer holds the tiers' numbers one after another, from the finest: matrices as words, everything else in fp32, a row's state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_bio_audio.kernels.decode.pack import (
    Case,
    Layer,
    columns_of,
    matrices_of,
    pad_rows,
    sizes_of,
    tiles_of,
    vectors_of,
)


@dataclass(frozen=True, repr=False)
class Tier(Case):
    """A tier's compile-time case.

    Attributes:
        layers: its blocks, down and up.
        down: those on the way down; 0 at the centre and in SaShiMi, whose last block adds the first one's input.
        pool: frames that the next tier joins; 1 at the centre.
        wider: channels of the next tier; 0 at the centre.
        joined: elements that a frame of this tier is made from; 0 at the finest.
        JOIN: elements that a frame is copied by.
        DOWN_ROWS, DOWN_COLUMNS, UP_ROWS, UP_COLUMNS: tiles of the pool to the next tier and back.
        fixed: complex and time-invariant; else real and selective.
    """

    layers: int = 1
    down: int = 0
    pool: int = 1
    wider: int = 0
    joined: int = 0
    JOIN: int = 0
    DOWN_ROWS: int = 0
    DOWN_COLUMNS: int = 0
    UP_ROWS: int = 0
    UP_COLUMNS: int = 0
    fixed: bool = False

    @property
    def matrices(self) -> int:
        """Words of a layer's matrices."""
        return (3 * self.D + (0 if self.fixed else self.X)) * self.E // self.HALVES

    @property
    def vectors(self) -> int:
        """Elements of a layer's fp32 numbers; fixed: decay, B and C in two parts each, convolution, its bias, D."""
        return self.E * (6 * self.N + self.W + 2 if self.fixed else self.N + self.P + self.W + 3)

    @property
    def h(self) -> int:
        """Numbers of a layer's state."""
        return self.E * self.N * (2 if self.fixed else 1)

    @property
    def rings(self) -> int:
        """Where the rings begin in the tier's state, behind h of all layers."""
        return self.layers * self.h

    @property
    def frames(self) -> int:
        """Where the frames (pool, D) begin; the queue of as many lies behind them."""
        return self.rings + self.layers * self.W * self.E

    @property
    def state(self) -> int:
        """Numbers of the tier's state."""
        return self.frames + (2 * self.pool * self.D if self.wider else 0)

    @property
    def room(self) -> int:
        """Scratch of the tier: of a layer, the streams kept, the frames joined."""
        return self.scratch + self.layers * self.D + self.joined

    @property
    def pool_words(self) -> int:
        """Words of the pool to the next tier; the pool back has as many."""
        return self.pool * self.D * self.wider // self.HALVES

    @property
    def words(self) -> int:
        """Words of the tier: layers, pool to the next tier, pool back."""
        return self.layers * self.matrices + 2 * self.pool_words

    @property
    def floats(self) -> int:
        """fp32 numbers of the tier: layers, bias of the pool to the next tier and of the one back."""
        return self.layers * self.vectors + (self.wider + self.pool * self.D if self.wider else 0)


@dataclass(frozen=True, repr=False)
class UNetCase:
    """The kernel's compile-time case: its tiers, whose numbers follow each other in every buffer."""

    outer: Tier
    middle: Tier
    centre: Tier

    def __repr__(self) -> str:
        """Triton makes names of functions from it."""
        return f"{self.outer!r}_{self.middle!r}_{self.centre!r}"

    @property
    def tiers(self) -> tuple[Tier, Tier, Tier]:
        """From the finest."""
        return self.outer, self.middle, self.centre

    @property
    def state(self) -> int:
        """Numbers of a row's state."""
        return sum(tier.state for tier in self.tiers)

    @property
    def room(self) -> int:
        """Numbers of a row's scratch."""
        return sum(tier.room for tier in self.tiers)

    @property
    def head(self) -> int:
        """Where the head's words begin."""
        return sum(tier.words for tier in self.tiers)

    @property
    def embedding(self) -> int:
        """Where the head's bias begins in fp32 numbers; the embeddings lie behind."""
        return sum(tier.floats for tier in self.tiers)


class FixedLayer(NamedTuple):
    """Parameters of a complex time-invariant layer, in any floating dtype, no biases of the projections."""

    norm: Tensor  # (D,)
    in_proj: Tensor  # (2 E, D)
    conv: Tensor  # (E, W)
    conv_bias: Tensor | None  # (E,)
    dt: Tensor  # (E,), before the softplus
    A: Tensor  # (E, N, 2)
    B: Tensor  # (E, N, 2)
    C: Tensor  # (E, N, 2)
    D: Tensor  # (E,)
    out_proj: Tensor  # (D, E)


class TierWeights(NamedTuple):
    """Weights of a tier; of the centre without pools.

    Attributes:
        layers: all of one kind, down and then up.
        down: number of those on the way down; 0 at the centre, and in SaShiMi everywhere.
        pool: frames joined.
        to_coarser: weight (H, pool * D) and bias (H,) of the pool to the next tier, of width H.
        to_finer: weight (pool * D, H) and bias (pool * D,) of the pool back.
    """

    layers: Sequence[Layer | FixedLayer]
    down: int = 0
    pool: int = 1
    to_coarser: tuple[Tensor, Tensor] | None = None
    to_finer: tuple[Tensor, Tensor] | None = None


class UNetNetwork(NamedTuple):
    """A packed U-Net.

    Attributes:
        case: sizes; how symbols are drawn is not part of it.
        warps: of a program; the tiles suit this number.
        words: of the tiers and of the head: fp32, or int32 holding two bf16.
        floats: fp32 numbers of the tiers, the head's bias (S), the embedding of `allowed` (V, D) and of all symbols.
        allowed: (V,) int32 ids that may be drawn.
        eps: of the norms.
    """

    case: UNetCase
    warps: int
    words: Tensor
    floats: Tensor
    allowed: Tensor
    eps: float


def pack_unet(
    tiers: Sequence[TierWeights],
    embedding: Tensor,
    norm_f: Tensor,
    head: tuple[Tensor, Tensor],
    allowed: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    eps: float = 1e-5,
    warps: int = 16,
) -> UNetNetwork:
    """Pack a U-Net on the device of its parameters.

    Args:
        tiers: three, from the finest.
        embedding: (vocabulary, D).
        norm_f: (D,), weight of the final norm.
        head: weight (vocabulary, D) and bias (vocabulary,).
        allowed: ids that may be drawn, in order.
        dtype: of the matrices, pools and head among them, fp32 or bf16; everything else is fp32.
        eps: of all norms.
        warps: of a program.
    """
    halves, lanes = 4 // dtype.itemsize, 32 * warps
    cases: list[Tier] = []
    for number, tier in enumerate(tiers):
        first = tier.layers[0]
        fixed = isinstance(first, FixedLayer)
        E, N = first.A.shape[:2] if isinstance(first, FixedLayer) else first.A_log.shape
        W, D = first.conv.shape[1], len(first.norm)
        rank = 1 if isinstance(first, FixedLayer) else first.dt_proj.shape[1]
        case = sizes_of(D, E, N, W, rank, len(allowed), halves, warps)
        pools: dict[str, Any] = {}
        if tier.to_coarser is not None:
            wider, joined = tier.to_coarser[0].shape
            down_rows, up_rows = math.gcd(wider, lanes // 2), math.gcd(joined, lanes // 2)
            pools = {
                "wider": wider,
                "JOIN": math.gcd(joined, lanes),
                "DOWN_ROWS": down_rows,
                "DOWN_COLUMNS": columns_of(down_rows, joined, halves, lanes),
                "UP_ROWS": up_rows,
                "UP_COLUMNS": columns_of(up_rows, wider, halves, lanes),
            }
        joined = cases[-1].pool * cases[-1].D if number else 0
        cases.append(
            Tier(
                **vars(case),
                layers=len(tier.layers),
                down=tier.down,
                pool=tier.pool,
                joined=joined,
                fixed=fixed,
                **pools,
            )
        )
    outer = cases[0]
    words, floats = [], []
    ids = torch.tensor(list(allowed), device=embedding.device)
    with torch.no_grad():
        for tier, case in zip(tiers, cases, strict=True):
            words += [
                _fixed_matrices(x, case) if isinstance(x, FixedLayer) else matrices_of(x, case) for x in tier.layers
            ]
            floats += [
                _fixed_vectors(x, case) if isinstance(x, FixedLayer) else vectors_of(x, case) for x in tier.layers
            ]
            if tier.to_coarser is not None and tier.to_finer is not None:
                words.append(tiles_of(tier.to_coarser[0].float(), case.DOWN_ROWS, case.DOWN_COLUMNS, halves))
                words.append(tiles_of(tier.to_finer[0].float(), case.UP_ROWS, case.UP_COLUMNS, halves))
                floats += [tier.to_coarser[1].float(), tier.to_finer[1].float()]
        chosen = pad_rows(head[0][ids].float() * norm_f.float(), outer.S)
        words.append(tiles_of(chosen, outer.S, outer.HEAD_COLUMNS, halves))
        floats += [
            pad_rows(head[1][ids].float()[:, None], outer.S)[:, 0],
            embedding[ids].float().reshape(-1),
            embedding.float().reshape(-1),
        ]
        return UNetNetwork(UNetCase(*cases), warps, torch.cat(words), torch.cat(floats), ids.int(), eps)


def _fixed_matrices(layer: FixedLayer, case: Tier) -> Tensor:
    """(case.matrices,) words."""
    x, z = (layer.in_proj.float() * layer.norm.float()).split(case.E)
    return torch.cat(
        [
            tiles_of(x, case.E_ROWS, case.IN_COLUMNS, case.HALVES),
            tiles_of(z, case.E_ROWS, case.IN_COLUMNS, case.HALVES),
            tiles_of(layer.out_proj.float(), case.D_ROWS, case.OUT_COLUMNS, case.HALVES),
        ]
    )


def _fixed_vectors(layer: FixedLayer, case: Tier) -> Tensor:
    """(case.vectors,) fp32: exp(dt A), dt B and 2 conj(C), whose parts times those of h sum to 2 Re(C h), in planes."""
    dt = F.softplus(layer.dt.double())[:, None]
    A, B, C = (torch.view_as_complex(part.double().contiguous()) for part in (layer.A, layer.B, layer.C))
    planes = [torch.view_as_real(part).movedim(-1, 0) for part in ((dt * A).exp(), dt * B, 2 * C.conj())]
    bias = torch.zeros_like(layer.D) if layer.conv_bias is None else layer.conv_bias
    return torch.cat([part.reshape(-1).float() for part in (*planes, layer.conv.T, bias, layer.D)])


class TierRows(NamedTuple):
    """State of a tier as the model has it; rows first.

    Attributes:
        tails: (rows, layers, W - 1, E), the last inputs of the convolutions, oldest first.
        h: (rows, layers, E, N), or (rows, layers, E, N, 2).
        frames: (rows, pool - 1, D), those of the current coarse frame, then zeros; None at the centre.
        queue: (rows, pool, D), what the coarser tier adds in the current coarse frame; None at the centre.
    """

    tails: Tensor
    h: Tensor
    frames: Tensor | None = None
    queue: Tensor | None = None


class UNetRows(NamedTuple):
    """State of rows before their last symbols; `decode_unet` moves the tensors in place.

    Attributes:
        case: of the network.
        numbers: (rows, case.state) fp32, tier by tier: h, rings with position t in slot t mod W, frames, queue.
        last: (rows,) int32 symbols.
        phase: samples so far, modulo the product of the pools.
        turns: positions of the tiers in their rings.
    """

    case: UNetCase
    numbers: Tensor
    last: Tensor
    phase: int
    turns: tuple[int, ...] = (0, 0, 0)

    @classmethod
    def of(cls, case: UNetCase, tiers: Sequence[TierRows], last: Tensor, phase: int) -> UNetRows:
        """From a model's state and its last symbols (rows,)."""
        numbers = torch.zeros(len(last), case.state, device=last.device)
        for tier, part, given in zip(case.tiers, cls._parts(case, numbers), tiers, strict=True):
            h, rings, frames, queue = part
            h.copy_(given.h.movedim(-1, 2) if tier.fixed else given.h)
            rings[:, :, 1:] = given.tails
            if given.frames is not None and given.queue is not None:
                frames[:, :-1] = given.frames
                queue.copy_(given.queue)
        return cls(case, numbers, last.int().clone(), phase)

    def copy(self) -> UNetRows:
        """Tensors of its own."""
        return self._replace(numbers=self.numbers.clone(), last=self.last.clone())

    @property
    def tiers(self) -> list[TierRows]:
        """As the model has it; copies."""
        found, before = [], self.phase
        for tier, part, turn in zip(self.case.tiers, self._parts(self.case, self.numbers), self.turns, strict=True):
            h, rings, frames, queue = part
            tails = rings[:, :, [(turn - age) % tier.W for age in range(tier.W - 1, 0, -1)]]
            h = h.movedim(2, -1).contiguous() if tier.fixed else h.clone()
            if not tier.wider:
                found.append(TierRows(tails, h))
                continue
            before, place = divmod(before, tier.pool)
            waiting = frames[:, :-1].clone()
            waiting[:, place:] = 0
            found.append(TierRows(tails, h, waiting, queue.clone()))
        return found

    @staticmethod
    def _parts(case: UNetCase, numbers: Tensor) -> list[list[Tensor]]:
        """Views of h, rings, frames and queue of each tier."""
        parts = []
        for tier, own in zip(case.tiers, numbers.split([tier.state for tier in case.tiers], 1), strict=True):
            pools = tier.state - tier.frames
            h, rings, frames, queue = own.split([tier.rings, tier.frames - tier.rings, pools // 2, pools // 2], 1)
            planes = (2,) if tier.fixed else ()
            parts.append(
                [
                    h.unflatten(1, (tier.layers, *planes, tier.E, tier.N)),
                    rings.unflatten(1, (tier.layers, tier.W, tier.E)),
                    frames.unflatten(1, (-1, tier.D)),
                    queue.unflatten(1, (-1, tier.D)),
                ]
            )
        return parts
