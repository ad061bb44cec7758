"""Decoding on a CPU in NumPy: the same steps as the model's own, without the cost of one PyTorch call per operation.

A step of a small network is a few hundred tiny operations, and PyTorch spends microseconds on each before it computes
anything. Here weights are cast, transposed and multiplied into each other once, constants of fixed (LTI) layers are
computed once, and a step writes into arrays that stay in place. Nothing is compiled.

Signs: silu(v) = v / (1 + exp(-v)) of both halves of a layer's input is taken as w / (1 + exp(w)) = -silu(v) of w = -v. The
minus signs are in the weights before and behind it: u and z below are -silu.

Legend: R rows, D channels of a layer, E inner channels, N states, W convolution width, V vocabulary, A allowed symbols.
States are held as (R, N, E), so that every operation runs along the channels. NumPy needs 0.5 us for arrays of equal shape
and 2 us or more to broadcast or to take in a Python number; constants therefore have the shape of what they meet at R = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mamba_bio_audio.inference.decoding import Choose
from mamba_bio_audio.layers.mamba import MambaLayer, MambaState
from mamba_bio_audio.models.isotropic import Block, IsotropicModel
from mamba_bio_audio.models.unet import TierState, UNetModel, UNetState

Array = NDArray[Any]
# Rows x inner channels x states above which several threads take PyTorch's operations, which are then large enough to be
# shared out. On one core NumPy is ahead at every size measured (1.4x for 64 rows of 16 layers x 256); the bound itself is
# not measured.
_MOST = 1 << 17


def unsupported_reason(model: nn.Module, rows: int) -> str | None:
    """Why `CpuDecoder` cannot run the model's steps, or None where it can."""
    if type(model) not in (IsotropicModel, UNetModel):
        return "only isotropic models and U-Nets"
    parameters = list(model.parameters())
    if {(p.device.type, p.dtype) for p in parameters} not in ({("cpu", torch.float32)}, {("cpu", torch.float64)}):
        return "only models on a CPU, all in fp32 or all in fp64"
    for module in model.modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return "hooks see every step"
        if isinstance(module, Block):
            mixer = module.mixer
            if type(mixer) is not MambaLayer or mixer.config.exact_zoh or mixer.config.precise:
                return "only Mamba layers, without exact_zoh and precise"
            if mixer.selective_b != mixer.selective_c:
                return "only layers whose B and C both depend on the input, or neither"
            if rows * mixer.d_inner * mixer.config.d_state > _MOST and torch.get_num_threads() > 1:
                return "so many rows that PyTorch on several cores is faster"
    return None


class CpuDecoder:
    """Runs the steps of a model for a fixed number of rows; `unsupported_reason` says which models.

    Args:
        model: isotropic model or U-Net of Mamba layers, in fp32 or fp64, on the CPU. Its weights are read now.
        rows: R.
        allowed: (A,) symbols that may be drawn.
        temperature: as in `generate`.
        choose: rule that draws from the logits (R, V); None means by the inverse of the distribution function at this
            temperature, the most probable symbol at 0.
    """

    def __init__(
        self, model: nn.Module, rows: int, allowed: Tensor, temperature: float = 1.0, choose: Choose | None = None
    ) -> None:
        assert isinstance(model, IsotropicModel | UNetModel)
        self.temperature, self.choose = temperature, choose
        self.network: _Isotropic | _UNet
        self.network = _Isotropic(model, rows) if isinstance(model, IsotropicModel) else _UNet(model, rows)
        self.embedding = _array(model.embedding.weight)
        self.dtype = self.embedding.dtype
        self.norm = _Norm(model.norm_f, rows, self.dtype)
        self.allowed = allowed.numpy()
        # A rule of its own sees every symbol.
        head = model.lm_head.weight if choose else model.lm_head.weight[allowed]
        bias = model.lm_head.bias
        self.head = self.norm.into(head)
        self.bias = None if bias is None else _array(bias if choose else bias[allowed])[None]
        self.stream = np.empty((rows, self.embedding.shape[1]), self.dtype)
        self.logits = np.empty((rows, len(head)), self.dtype)
        self.wide, self.weights = np.empty((2, *self.logits.shape))
        self.rows, self.largest = np.arange(rows), np.empty(rows)
        self.largest_column = _column(self.largest)

    def __call__(self, last: Tensor, state: Any, draws: Tensor) -> tuple[Tensor, Tensor, Any]:
        """As `decoding.steps`: symbols (n, R), log-probabilities (n, R), and the state before the last symbol."""
        steps, rows = draws.shape
        symbols, scores = np.empty((steps, rows), np.int64), np.empty((steps, rows))
        self.network.read(state)
        tokens = last[:, 0].numpy()
        # exp overflows to infinity where silu and the softmax want that; a NaN is reported by the caller.
        with np.errstate(all="ignore"):
            for step, draw in enumerate(draws.numpy()):
                self.embedding.take(tokens, 0, self.stream, "clip")
                self.network.step(self.stream)
                np.dot(self.norm(self.stream), self.head, self.logits)
                if self.bias is not None:
                    np.add(self.logits, self.bias, self.logits)
                tokens, scores[step] = self._draw(draw)
                symbols[step] = tokens
        return torch.from_numpy(symbols), torch.from_numpy(scores), self.network.write()

    def _draw(self, draw: Array) -> tuple[Array, Array]:
        """Symbols (R,) by the draws (R,), and their log-probabilities."""
        if self.choose is not None:
            chosen, score = self.choose(torch.from_numpy(self.logits), torch.from_numpy(draw))
            return chosen.numpy(), score.numpy()
        logits, weights = self.wide, self.weights
        # The largest becomes zero, so that no temperature overflows.
        logits[:] = self.logits
        np.maximum.reduce(logits, 1, out=self.largest)
        np.subtract(logits, self.largest_column, logits)
        np.exp(logits, weights)
        if self.temperature == 0:
            index, total = logits.argmax(1), weights.sum(1)
        else:
            running = np.cumsum(weights, 1, out=weights)
            total = running[:, -1].copy()
            if self.temperature != 1:
                running = np.cumsum(np.exp(logits / self.temperature), 1)
            goal = draw * running[:, -1]
            if len(draw) == 1:
                index = running[0].searchsorted(goal, "right")
            else:
                index = (running <= goal[:, None]).sum(1)
            # NaN, which the caller reports.
            np.minimum(index, logits.shape[1] - 1, out=index)
        return self.allowed[index], logits[self.rows, index] - np.log(total)


class _Norm:
    """x / sqrt(mean(x^2) + eps) without the weight, which belongs to the projection behind it, as sqrt(D) does."""

    def __init__(self, norm: nn.Module, rows: int, dtype: np.dtype[Any]) -> None:
        self.weight = cast(Tensor, norm.weight)
        size = len(self.weight)
        self.eps = np.full(rows, size * cast(float, norm.eps), dtype)
        self.out = np.empty((rows, size), dtype)
        self.length = np.empty(rows, dtype)
        self.column = _column(self.length)

    def into(self, weight: Tensor) -> Array:
        """The projection (out, D) as (D, out), with what the norm leaves out."""
        return _array(weight.double().T * (self.weight.double() * math.sqrt(len(self.weight)))[:, None], weight.dtype)

    def __call__(self, x: Array) -> Array:
        length = self.length
        np.vecdot(x, x, length)
        np.add(length, self.eps, length)
        np.sqrt(length, length)
        return np.divide(x, self.column, self.out)


class _Layer:
    """One block: adds mixer(norm(x)) to x."""

    def __init__(self, block: nn.Module, rows: int) -> None:
        mixer = cast(MambaLayer, block.mixer)
        w, dtype = mixer.weights(), mixer.in_proj.weight.dtype
        inner, states = w.A_log.shape
        width = w.conv.shape[1]
        minus = torch.cat([torch.ones(inner, dtype=dtype), -torch.ones(inner, dtype=dtype)])
        real = _array(w.in_proj).dtype
        self.complex = w.A_imag is not None
        number = np.result_type(real, np.complex64) if self.complex else real

        self.norm = _Norm(cast(nn.Module, block.norm), rows, real)
        self.in_proj = self.norm.into(w.in_proj * minus[:, None])
        self.in_bias = None if w.in_bias is None else _array(w.in_bias * minus)[None]
        self.out_proj = _array(-w.out_proj.T)
        self.out_bias = None if w.out_bias is None else _array(w.out_bias)[None]
        self.D = _array(-w.D)[None]

        # The last W inputs of the convolution at slots by turns, so one set of taps per turn; the bias has a slot of its own.
        self.ring = np.zeros((rows, width + 1, inner), real)
        self.ring[:, width] = 1
        self.slots = [self.ring[:, slot] for slot in range(width)]
        bias = torch.zeros_like(w.conv[:, 0]) if w.conv_bias is None else w.conv_bias
        taps = -w.conv.T  # (W, E), the latest input's last
        self.taps = [_array(torch.cat([taps.roll(slot + 1, 0), -bias[None]]))[None] for slot in range(width)]
        self.products = np.empty_like(self.ring)
        self.slot = width - 1

        self.uz, self.gate = np.empty((2, rows, 2 * inner), real)
        self.one, self.thirty = np.ones_like(self.uz), np.full((rows, inner), 30, real)
        self.u, self.z = self.uz[:, :inner], self.uz[:, inner:]
        self.h = np.zeros((rows, states, inner), number)
        self.change = np.empty_like(self.h)
        self.sum_taps = _sum(self.products, self.u)
        self.y = np.empty((rows, inner), real)
        self.flat_y = self.y.reshape(-1)
        self.out = np.empty((rows, len(w.out_proj)), real)

        self.x_proj: Array | None = None
        self.dt_proj: Array | None = None
        rank = 0
        if w.x_proj is not None:
            rank = 0 if w.dt_proj is None else w.dt_proj.shape[1]
            sign = torch.ones(len(w.x_proj), dtype=dtype)
            sign[:rank] = -1
            if w.C is None:
                sign[(rank + len(sign)) // 2 :] = -2 if self.complex else -1
            self.x_proj = _array((w.x_proj * sign[:, None]).T)
            self.selected = np.empty((rows, len(sign)), real)

        A = w.A().transpose(0, 1)  # (N, E[, 2])
        if w.dt_proj is not None:
            self.dt_proj, self.dt_bias = _array(w.dt_proj.T), _array(w.dt_bias)[None]
            self.rank_dt = self.selected[:, :rank]
            self.dt, self.raw_dt = np.empty((2, rows, inner), real)
            self.A = [_array(part)[None] for part in (A.unbind(-1) if self.complex else [A])]
            self.decay = np.empty_like(self.h)
            self.parts = np.empty((3, *self.h.shape), real) if self.complex else None
        else:
            dt = F.softplus(w.dt_bias)
            exponent = dt * (torch.view_as_complex(A.contiguous()) if self.complex else A)
            self.dt, self.decay = _array(dt)[None], _array(exponent.exp())[None]
        if w.B is None:
            found_B, found_C = np.split(self.selected[:, rank:], 2, axis=1)
            self.B, self.C = found_B.view(number)[:, :, None], found_C.view(number)[:, None, :]
            self.found = np.empty((rows, 1, inner), number)
            self.terms = [self.found.reshape(-1).real]
        else:
            assert w.C is not None
            B, C = (torch.view_as_complex(part.contiguous()).T if self.complex else part.T for part in (w.B, w.C))
            self.B = _array(-B if w.dt_proj is not None else -B * F.softplus(w.dt_bias))[None]
            # 2 Re(C h) as products of the parts with those of 2 conj(C).
            self.C = (2 * _array(C).conj() if self.complex else _array(C)).view(real)[None]
            self.real_h, self.real_change = self.h.view(real), self.change.view(real)
            sums = np.empty((rows, self.real_h.shape[2]), real)
            self.sum_states = _sum(self.real_change, sums)
            parts = sums.reshape(-1)
            self.terms = [parts[::2], parts[1::2]] if self.complex else [parts]
        self.fixed_C = w.C is not None
        self.scaled = w.dt_proj is not None or w.B is None
        # The input of the state, (R, 1, E).
        self.drive = np.empty((rows, inner), number)
        self.drive_row = self.drive[:, None, :]

    def step(self, x: Array) -> None:
        """Add the block's output to x (R, D)."""
        uz, u, gate, y, h, slot = self.uz, self.u, self.gate, self.y, self.h, self.slot + 1
        np.dot(self.norm(x), self.in_proj, uz)
        if self.in_bias is not None:
            np.add(uz, self.in_bias, uz)
        self.slot = slot = slot if slot < len(self.slots) else 0
        self.slots[slot][:] = u
        np.multiply(self.ring, self.taps[slot], self.products)
        self.sum_taps()
        np.exp(uz, gate)
        np.add(gate, self.one, gate)
        np.divide(uz, gate, uz)

        if self.x_proj is not None:
            np.dot(u, self.x_proj, self.selected)
            if self.dt_proj is not None:
                self._step_size()
        if self.scaled:
            np.multiply(self.dt, u, self.drive)
        else:
            self.drive[:] = u
        np.multiply(self.B, self.drive_row, self.change)
        np.multiply(h, self.decay, h)
        np.add(h, self.change, h)

        np.multiply(self.D, u, y)
        if not self.fixed_C:
            np.matmul(self.C, h, self.found)
        else:
            np.multiply(self.real_h, self.C, self.real_change)
            self.sum_states()
        for term in self.terms:
            np.add(self.flat_y, term, self.flat_y)
        np.multiply(y, self.z, y)
        np.dot(y, self.out_proj, self.out)
        if self.out_bias is not None:
            np.add(self.out, self.out_bias, self.out)
        np.add(x, self.out, x)

    def _step_size(self) -> None:
        """dt = softplus(dt_proj(...) + bias), and the decay exp(dt A)."""
        dt, raw, decay = self.dt, self.raw_dt, self.decay
        assert self.dt_proj is not None
        np.dot(self.rank_dt, self.dt_proj, raw)
        np.add(raw, self.dt_bias, raw)
        # Beyond 30 softplus(x) is x, and exp would overflow.
        np.minimum(raw, self.thirty, out=dt)
        np.exp(dt, dt)
        np.log1p(dt, dt)
        np.maximum(dt, raw, out=dt)
        row = dt[:, None, :]
        if self.parts is None:
            np.multiply(row, self.A[0], decay)
            np.exp(decay, decay)
            return
        size, angle, part = self.parts
        np.multiply(row, self.A[0], size)
        np.exp(size, size)
        np.multiply(row, self.A[1], angle)
        np.multiply(size, np.cos(angle, part), decay.real)
        np.multiply(size, np.sin(angle, part), decay.imag)

    def read(self, state: MambaState | None) -> None:
        """Take over a state; None means zeros."""
        self.slot = len(self.slots) - 1
        if state is None:
            self.ring[:, :-1] = 0
            self.h[:] = 0
            return
        self.ring[:, 1:-1] = state.tail.detach().numpy()
        ssm = torch.view_as_complex(state.ssm.contiguous()) if self.complex else state.ssm
        self.h[:] = ssm.transpose(1, 2).detach().numpy()

    def write(self) -> MambaState:
        """A copy of the state."""
        width = len(self.slots)
        tail = self.ring[:, [(self.slot + lag) % width for lag in range(2, width + 1)]]
        ssm = torch.from_numpy(self.h).transpose(1, 2).contiguous()
        return MambaState(torch.from_numpy(tail), torch.view_as_real(ssm) if self.complex else ssm)


class _Isotropic:
    """The layers of an isotropic model."""

    def __init__(self, model: IsotropicModel, rows: int) -> None:
        self.layers = _layers(model.layers, rows)

    def step(self, x: Array) -> None:
        """Run all layers on x (R, D) in place."""
        for layer in self.layers:
            layer.step(x)

    def read(self, state: Any) -> None:
        """Take over a state; None means zeros."""
        _read(self.layers, state)

    def write(self) -> Any:
        """A copy of the state."""
        return _write(self.layers)


class _Tier:
    """A finer tier of a U-Net: its blocks, and its pools to and from the next."""

    def __init__(self, model: UNetModel, tier: int, rows: int) -> None:
        down, up = (cast(nn.Linear, pools[tier].linear) for pools in (model.down_pools, model.up_pools))
        width, self.pool = model.model_config.widths[tier], model.model_config.pools[tier]
        self.down, self.up = _layers(model.down[tier], rows), _layers(model.up[tier], rows)
        self.down_pool, self.down_bias = _array(down.weight.T), _array(down.bias)[None]
        self.up_pool, self.up_bias = _array(up.weight.T), _array(up.bias)[None]
        dtype = self.down_pool.dtype
        self.inputs = np.empty((len(self.down), rows, width), dtype)
        self.first = np.empty((rows, width), dtype)
        self.frames, self.queue = np.zeros((2, rows, self.pool, width), dtype)
        self.joined, self.opened = self.frames.reshape(rows, -1), self.queue.reshape(rows, -1)
        self.coarse = np.empty((rows, down.out_features), dtype)
        self.number = 0  # of the current frame in its coarse frame


class _UNet:
    """Tiers of blocks, each at its own rate (`models/unet.py`)."""

    def __init__(self, model: UNetModel, rows: int) -> None:
        self.tiers = [_Tier(model, tier, rows) for tier in range(len(model.model_config.pools))]
        self.centre = _layers(model.centre, rows)
        self.period, self.phase = model.model_config.period, 0

    def step(self, x: Array) -> None:
        """Run all tiers on x (R, D) in place."""
        self._tier(0, x)
        self.phase = (self.phase + 1) % self.period

    def _tier(self, number: int, x: Array) -> None:
        if number == len(self.tiers):
            first = x.copy()
            for layer in self.centre:
                layer.step(x)
            np.add(x, first, x)
            return
        tier = self.tiers[number]
        for layer, kept in zip(tier.down, tier.inputs, strict=True):
            kept[:] = x
            layer.step(x)
        place = tier.number
        tier.frames[:, place] = x
        np.add(x, tier.queue[:, place], x)
        tier.number = place + 1
        if tier.number == tier.pool:
            tier.number = 0
            np.dot(tier.joined, tier.down_pool, tier.coarse)
            np.add(tier.coarse, tier.down_bias, tier.coarse)
            self._tier(number + 1, tier.coarse)
            np.dot(tier.coarse, tier.up_pool, tier.opened)
            np.add(tier.opened, tier.up_bias, tier.opened)
        if tier.down:
            for layer, mirror in zip(tier.up, tier.inputs[::-1], strict=True):
                layer.step(x)
                np.add(x, mirror, x)
        else:
            # SaShiMi adds the sum of up-pool and skip once more after the blocks.
            tier.first[:] = x
            for layer in tier.up:
                layer.step(x)
            np.add(x, tier.first, x)

    def read(self, state: UNetState | None) -> None:
        """Take over a state; None means zeros."""
        self.phase = before = 0 if state is None else state.phase
        for number, tier in enumerate(self.tiers):
            own = None if state is None else state.tiers[number]
            before, tier.number = divmod(before, tier.pool)
            _read(tier.down, own and own.down)
            _read(tier.up, own and own.up)
            tier.frames[:] = 0
            tier.queue[:] = 0
            if own is not None:
                tier.frames[:, :-1] = own.remainder.detach().numpy()
                tier.queue[:] = own.queue.detach().numpy()
        _read(self.centre, state and state.centre)

    def write(self) -> UNetState:
        """A copy of the state."""
        tiers = []
        for tier in self.tiers:
            remainder = tier.frames[:, :-1].copy()
            remainder[:, tier.number :] = 0
            parts = (torch.from_numpy(part) for part in (remainder, tier.queue.copy()))
            tiers.append(TierState(_write(tier.down), _write(tier.up), *parts))
        return UNetState(tuple(tiers), _write(self.centre), self.phase)


def _column(numbers: Array) -> Array:
    """A view of numbers (R,) that meets arrays (R, n): (R, 1), or a scalar."""
    return numbers.reshape(()) if len(numbers) == 1 else numbers[:, None]


def _sum(terms: Array, out: Array) -> Callable[[], object]:
    """A function that adds up terms (R, K, n) over K into out (R, n), for one row as a product with ones."""
    if len(out) == 1:
        return partial(np.dot, np.ones(terms.shape[1], terms.dtype), terms[0], out[0])
    return partial(np.add.reduce, terms, 1, out=out)


def _layers(blocks: Any, rows: int) -> list[_Layer]:
    return [_Layer(block, rows) for block in blocks]


def _read(layers: Sequence[_Layer], states: Sequence[Any] | None) -> None:
    for layer, state in zip(layers, states or [None] * len(layers), strict=True):
        layer.read(state)


def _write(layers: Sequence[_Layer]) -> tuple[MambaState, ...]:
    return tuple(layer.write() for layer in layers)


def _array(tensor: Tensor, dtype: torch.dtype | None = None) -> Array:
    """A contiguous copy, so that later changes of the weights do not reach it."""
    copy = tensor.detach().to(dtype=dtype or tensor.dtype, memory_format=torch.contiguous_format, copy=True)
    return copy.contiguous().numpy()
