"""Causal self-attention with rotary positions or none, to all earlier positions or to a window of them.

    y_t = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s,   t - W < s <= t;   q and k rotated by angles t w_i (Su et al. 2021)

Positions enter only as differences t - s, so a sequence that starts in the middle of a span gives the same output as one
that starts with it. Without a window (W infinite) the state holds every key and value so far and grows with the length:
such models are not streamed in training, and their memory grows during generation. With a window it holds the last W - 1.

Products and softmax are PyTorch's `scaled_dot_product_attention`, on a GPU flash attention wherever no mask is needed: for
single steps and for spans of one sequence, also where they continue others. Spans with resets, and on a CPU those that
continue others, are computed under masks of bounded size, windows in blocks of W queries over 2 W keys, which costs O(L W).

Legend: B batch, L positions of the span, D channels, T positions so far with the span, H heads, d channels per head,
W window, P positions that are kept from before the span.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

if TYPE_CHECKING:
    from mamba_bio_audio.layers.config import AttentionConfig, Streaming

# Most elements of a mask that exists at once.
_MASK = 1 << 26
# Positions for which room is made first when steps append to a state.
_ROOM = 256


class AttentionState(NamedTuple):
    """Keys and values of the positions that can still be attended to, in the activation dtype.

    They are zero before a row's last reset, and with a window also before the row's first position.
    """

    keys: Tensor  # (B, T, H, d), rotated by their positions; with a window (B, W-1, H, d), not rotated
    values: Tensor  # as keys
    seen: Tensor  # (B, T) or (B, W-1): 1 within the row's current sequence, 0 before it; (B, 0) if 1 for all T


class AttentionLayer(nn.Module):
    """Multi-head attention to each position itself and to earlier ones.

    Args:
        d_model: channels D of input and output.
        config: heads, each with an even number of channels; window; biases.
        num_layers: residual branches of the network; `out_proj` is initialised scaled by 1/sqrt(num_layers).

    Attributes:
        streaming: "growing", or "constant" with a window.
    """

    streaming: Streaming
    resets = True

    def __init__(self, d_model: int, config: AttentionConfig, num_layers: int = 1) -> None:
        super().__init__()
        config.check_width(d_model)
        self.d_model = d_model
        self.heads = config.heads_of(d_model)
        self.window, self.theta = config.window, config.rope_theta
        self.streaming = config.streaming
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=config.bias)
        self.out_proj = nn.Linear(d_model, d_model, bias=config.bias)
        with torch.no_grad():
            self.out_proj.weight.div_(math.sqrt(num_layers))

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> AttentionState:
        """State before the first position, T = 0; `dtype` is the activation dtype."""
        kept = 0 if self.window is None else self.window - 1
        none = torch.zeros(batch, kept, self.heads, self.d_model // self.heads, device=device, dtype=dtype)
        return AttentionState(none, none.clone(), none.new_zeros(batch, kept))

    def forward(
        self, x: Tensor, state: AttentionState | None = None, *, reset: Tensor | None = None
    ) -> tuple[Tensor, AttentionState]:
        """Apply the layer to a span.

        Args:
            x: (B, L, D), any L >= 1.
            state: state at the end of the preceding span; None at the start.
            reset: bool (B, L), from these positions on nothing earlier is attended to.

        Returns:
            y (B, L, D) and the state at the end of the span.
        """
        queries, keys, values = self.in_proj(x).unflatten(2, (3, self.heads, -1)).unbind(2)  # (B, L, H, d) each
        attend = self._to_all if self.window is None else self._in_window
        y, state = attend(queries, keys, values, state, reset)
        return self.out_proj(y.flatten(2)), state

    def _to_all(
        self, queries: Tensor, keys: Tensor, values: Tensor, state: AttentionState | None, reset: Tensor | None
    ) -> tuple[Tensor, AttentionState]:
        """Attention to every earlier position; arguments and result (B, L, H, d)."""
        length, past = queries.shape[1], 0 if state is None else state.keys.shape[1]
        angles = self._angles(past, length, queries)
        queries, keys = _turn(queries, angles), _turn(keys, angles)
        seen = None if state is None or not state.seen.shape[1] else state.seen
        if state is not None and past:
            keys, values = _append(state.keys, state.values, keys, values)
        if seen is None and reset is None:
            y = _causal(queries, keys, values)
            return y, AttentionState(keys, values, keys.new_zeros(len(keys), 0))
        before = keys.new_ones(len(keys), past) if seen is None else seen.to(keys.dtype)
        seen = F.pad(before, (0, length), value=1.0)
        owner = _owners(seen, reset)
        y = _masked(queries, keys, values, seen, owner)
        return y, _after_reset(AttentionState(keys, values, seen), owner if reset is not None else None)

    def _in_window(
        self, queries: Tensor, keys: Tensor, values: Tensor, state: AttentionState | None, reset: Tensor | None
    ) -> tuple[Tensor, AttentionState]:
        """Attention to the last W positions; arguments and result (B, L, H, d)."""
        assert self.window is not None
        window, length = self.window, queries.shape[1]
        seen = keys.new_ones(keys.shape[:2])
        if state is not None:
            keys = torch.cat([state.keys.to(keys.dtype), keys], 1)
            values = torch.cat([state.values.to(values.dtype), values], 1)
            seen = torch.cat([state.seen.to(seen.dtype), seen], 1)
        past = keys.shape[1] - length
        # Only differences of positions matter, so those of the kept keys begin at 0 in every call.
        angles = self._angles(0, past + length, keys)
        queries, turned = _turn(queries, angles, past), _turn(keys, angles)
        owner = _owners(seen, reset)
        if reset is not None and length > window:
            y = _banded(queries, turned, values, window, seen, owner)
        else:
            # Only the first W queries can reach what is not there.
            near = past + min(length, window)
            y = _masked(
                queries[:, :window], turned[:, :near], values[:, :near], seen[:, :near], owner[:, :near], window
            )
            if length > window:
                y = torch.cat([y, _banded(queries[:, window:], turned[:, past:], values[:, past:], window)], 1)
        missing = max(0, window - 1 - keys.shape[1])
        last = [
            F.pad(part, (*[0, 0] * (part.ndim - 2), missing, 0))[:, part.shape[1] + missing - window + 1 :]
            for part in (keys, values, seen, owner)
        ]
        return y, _after_reset(AttentionState(*last[:3]), last[3] if reset is not None else None)

    def _angles(self, start: int, length: int, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Cosine and sine (L, 1, d / 2) of position times frequency; None without positions."""
        if self.theta is None:
            return None
        half = self.d_model // self.heads // 2
        # In fp64: an fp32 product is wrong by 0.02 at a million positions, and by more than the layer's tolerance long before.
        rates = self.theta ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
        angles = (torch.arange(start, start + length, device=x.device, dtype=torch.float64)[:, None] * rates)[:, None]
        wide = x.dtype if x.dtype == torch.float64 else torch.float32
        return angles.cos().to(wide), angles.sin().to(wide)

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, heads={self.heads}, window={self.window}"


def _owners(seen: Tensor, reset: Tensor | None) -> Tensor:
    """(B, T) number of the sequence that each position belongs to; 0 for the one that precedes the span."""
    if reset is None:
        return torch.zeros(seen.shape, dtype=torch.int64, device=seen.device)
    return F.pad(reset.cumsum(1), (seen.shape[1] - reset.shape[1], 0))


def _after_reset(state: AttentionState, owner: Tensor | None) -> AttentionState:
    """The state with everything zero that is not of the last sequence; unchanged without `owner`."""
    if owner is None:
        return state
    seen = state.seen * (owner == owner[:, -1:])
    return AttentionState(state.keys * seen[:, :, None, None], state.values * seen[:, :, None, None], seen)


def _causal(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of the last L of T positions to all before them; only spans that continue others need a mask, on a CPU."""
    length, total = queries.shape[1], keys.shape[1]
    q, k, v = (part.transpose(1, 2) for part in (queries, keys, values))
    if length in (1, total):
        return F.scaled_dot_product_attention(q, k, v, is_causal=length > 1).transpose(1, 2)
    if not queries.is_cuda:
        return _masked(queries, keys, values)
    # Flash attention aligned to the last key; `attn_mask` may be such a bias, though its annotation does not say so.
    bias: Any = causal_lower_right(length, total)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)


def _masked(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    seen: Tensor | None = None,
    owner: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """Attention of the last L of T positions by masks, as many queries at a time as bound these.

    Args:
        queries: (B, L, H, d).
        keys, values: (B, T, H, d).
        seen, owner: (B, T); keys that are not seen or of another sequence than the query are left out.
        window: positions that a query reaches, its own among them.
    """
    length, total = queries.shape[1], keys.shape[1]
    at = torch.arange(total, device=queries.device)
    k, v = keys.transpose(1, 2), values.transpose(1, 2)
    parts = []
    rows = 1 if owner is None else len(queries)
    step = max(1, _MASK // (rows * total))
    for low in range(0, length, step):
        high = min(low + step, length)
        own = at[total - length + low : total - length + high, None]
        mask = at <= own  # (l, T)
        if window is not None:
            mask = mask & (at > own - window)
        if seen is not None and owner is not None:
            same = owner[:, None] == owner[:, total - length + low : total - length + high, None]
            mask = mask & same & (seen > 0)[:, None]  # (B, l, T)
        q = queries[:, low:high].transpose(1, 2)
        mask = mask if mask.ndim == 2 else mask[:, None]
        parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _banded(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    window: int,
    seen: Tensor | None = None,
    owner: Tensor | None = None,
) -> Tensor:
    """Attention within a window in blocks of W queries and the 2 W keys up to each block's end.

    Args:
        queries: (B, L, H, d), the last L positions.
        keys, values: (B, T, H, d).
        window: W; without `seen` and `owner` at least as many positions precede the queries.
        seen, owner: (B, T), as for `_masked`.
    """
    batch, length = queries.shape[:2]
    past = keys.shape[1] - length
    blocks = -(-length // window)
    tail = blocks * window - length

    def cut(part: Tensor) -> Tensor:
        """(B, T, ...) to (B, n, 2 W, ...): from W positions before each block's first to its last."""
        front = max(0, window - past)
        padded = F.pad(part[:, max(0, past - window) :], (*[0, 0] * (part.ndim - 2), front, tail))
        return padded.unfold(1, 2 * window, window).movedim(-1, 2)

    def together(part: Tensor) -> Tensor:
        return part.flatten(0, 1).transpose(1, 2)

    q = together(F.pad(queries, (0, 0, 0, 0, 0, tail)).unflatten(1, (blocks, window)))
    k, v = together(cut(keys)), together(cut(values))  # (B n, H, 2 W, d)
    row = torch.arange(window, device=queries.device)[:, None]
    column = torch.arange(2 * window, device=queries.device)
    mask = (column > row) & (column <= row + window)  # (W, 2 W)
    if seen is not None and owner is not None:
        owners = cut(owner)
        same = owners[:, :, None] == owners[:, :, window:, None]
        # A query of the padding behind the span must see something: an empty softmax is not a number.
        there = (cut(seen) > 0)[:, :, None] | (column == row + window)
        mask = (mask & same & there).flatten(0, 1)[:, None]
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B n, H, W, d)
    return y.transpose(1, 2).reshape(batch, blocks * window, *queries.shape[2:])[:, :length]


class _Room:
    """Memory behind the keys and values of a state, with room for more positions."""

    def __init__(self, keys: Tensor, values: Tensor, capacity: int) -> None:
        shape = (len(keys), capacity, *keys.shape[2:])
        self.keys, self.values = keys.new_empty(shape), values.new_empty(shape)
        self.used = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write behind what is used; returns all that is used."""
        high = self.used + keys.shape[1]
        self.keys[:, self.used : high].copy_(keys)
        self.values[:, self.used : high].copy_(values)
        self.used = high
        every = self.keys[:, :high], self.values[:, :high]
        every[0]._room = self  # type: ignore[attr-defined]
        return every

    def takes(self, keys: Tensor, more: int) -> bool:
        """Whether `keys` are all that is used of it, and so many positions still fit."""
        same_mode = self.keys.is_inference() == torch.is_inference_mode_enabled()
        return same_mode and keys.shape[1] == self.used and self.used + more <= self.keys.shape[1]


def _append(past_keys: Tensor, past_values: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of all positions; the arguments keep their values.

    Without gradients they are written behind those before, into room that grows geometrically, so that a step does not
    copy the past. A state that was continued once already is copied: what is written behind it belongs to the other
    continuation.
    """
    past_keys, past_values = past_keys.to(keys.dtype), past_values.to(values.dtype)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.cat([past_keys, keys], 1), torch.cat([past_values, values], 1)
    room = getattr(past_keys, "_room", None)
    if room is None or not room.takes(past_keys, keys.shape[1]):
        total = past_keys.shape[1] + keys.shape[1]
        room = _Room(past_keys, past_values, total + max(_ROOM, total // 2))
        room.append(past_keys, past_values)
    return room.append(keys, values)


def _turn(x: Tensor, angles: tuple[Tensor, Tensor] | None, skipped: int = 0) -> Tensor:
    """Rotate pairs of channels (i, i + d / 2) of x (B, L, H, d) by the angles after the skipped ones, in its dtype."""
    if angles is None:
        return x
    cos, sin = (part[skipped:] for part in angles)
    a, b = x.to(cos.dtype).chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)
