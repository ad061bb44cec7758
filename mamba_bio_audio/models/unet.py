"""Multi-scale audio model: a U-Net of causal layers (paper section 4.4, appendix E.4; SaShiMi, Goel et al. 2022).

    s = down_i(s)                     blocks of tier i, at width D_i = D * expand^i
    c = DownPool(s): Linear(p joined frames of D_i -> D_(i+1)), plus a vector of the class;   c = tier i+1 (c)
    s = s + UpPool(c): Linear(D_(i+1) -> p frames of D_i), one coarse frame later
    s = up_i(s);  every block also adds the input of its mirror image on the way down

The centre adds its input to its output. Fine sample t in coarse frame k = t // p depends on coarse frame k - 1 and
earlier: the shift by one frame keeps the model causal, because frame k contains samples after t.

A span may have any length and start anywhere. With t0 samples before it and r = t0 mod p, a pool sees

    frames = (remainder of r frames, span): n = (r + L) // p coarse frames complete now, the rest waits
    outputs = (queue of frame k - 1, UpPool of the n new coarse frames), of which positions r to r + L - 1 are read

so a call of length 1 runs the coarser tiers only when it completes a coarse frame.

Legend: B batch, L positions of a tier, D its channels, H = expand * D of the next tier, p pool, n complete coarse
frames, r position in the current coarse frame.
"""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.layers.norm import RMSNorm
from mamba_bio_audio.models.contract import ModelOutput, SequenceModel
from mamba_bio_audio.models.inputs import class_of, input_embedding, of_classes
from mamba_bio_audio.models.isotropic import Block
from mamba_bio_audio.models.kept import WITH_NORMS, Keeper, Kept
from mamba_bio_audio.models.lookup import Embedding
from mamba_bio_audio.models.unet_config import StageConfig, UNetConfig
from mamba_bio_audio.ops import linear_cross_entropy
from mamba_bio_audio.ops.keeping import mixers_keep

# Of the initial vectors of classes behind the pools: about half of what trained pools give.
_CLASS_STD = 0.05
# The head's bias is appended to its weight as this many columns, so that the loss needs no second path.
_BIAS_COLUMNS = 8


class TierState(NamedTuple):
    """State of one tier and of its pool to the next; its shapes are the same at every position."""

    down: tuple[Any, ...]  # state of each block on the way down
    up: tuple[Any, ...]  # state of each block on the way up
    remainder: Tensor  # (B, p - 1, D): the first r frames of the current coarse frame, then zeros
    queue: Tensor  # (B, p, D): contribution of the last complete coarse frame to the current one


class UNetState(NamedTuple):
    """State of the whole model."""

    tiers: tuple[TierState, ...]  # from the finest
    centre: tuple[Any, ...]  # state of each block
    phase: int  # samples so far, modulo the product of the pools; common to the batch


class DownPool(nn.Module):
    """Joins p frames into one, (B, n p, D) -> (B, n, H), and adds a vector of the class of each (B, n), where there are any."""

    def __init__(self, width: int, wider: int, pool: int, classes: int = 0) -> None:
        super().__init__()
        self.pool = pool
        self.linear = nn.Linear(width * pool, wider)
        self.classes = Embedding(classes, wider) if classes else None
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, std=_CLASS_STD)

    def forward(self, x: Tensor, number: Tensor | None = None) -> Tensor:
        y = self.linear(x.unflatten(1, (-1, self.pool)).flatten(2))
        return y if self.classes is None or number is None else y + of_classes(self.classes.weight, number).to(y.dtype)

    def of_class(self, number: int) -> DownPool:
        """The pool for one class, from 0: its vector is part of the bias."""
        assert self.classes is not None
        view, linear = copy.copy(self), copy.copy(self.linear)
        bias = nn.Parameter((self.linear.bias + self.classes.weight[number]).detach(), requires_grad=False)
        linear._parameters = {**self.linear._parameters, "bias": bias}
        view._modules = {"linear": linear, "classes": None}
        return view


class UpPool(nn.Module):
    """Expands each frame into p: (B, n, H) -> (B, n, p, D). `UNetModel._tier` applies the shift that makes it causal."""

    def __init__(self, width: int, wider: int, pool: int) -> None:
        super().__init__()
        self.pool = pool
        self.linear = nn.Linear(wider, width * pool)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).unflatten(2, (self.pool, -1))


class UNetModel(SequenceModel):
    """Causal model of audio samples at several rates; obeys the laws of `layers/contract.py`.

    `reset` marks the first sample of a new sequence. All rows share the phase of the pools, so a new sequence may start
    only where a frame of the centre starts: at positions preceded by a multiple of the product of the pools, counting
    the samples of earlier spans. Other positions raise `InputError`. To restart all rows at any position, call with
    `state=None`.

    Attributes:
        recompute: "layer" keeps only each block's input for backward and runs the block again there.
        keeper: chooses what layers keep for their backward.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("UNetConfig.vocab_size must be set to build a model")
        self.model_config = config
        self.recompute: Literal["none", "layer"] = "none"
        self.keeper = Keeper(WITH_NORMS)
        padded = -(-config.vocab_size // config.vocab_multiple) * config.vocab_multiple
        tiers = len(config.pools)
        total = sum(cast(int, stage.num_layers) * stage.mixer_config.residuals for stage in config.stages)

        def stage(number: int, tier: int) -> nn.ModuleList:
            return _blocks(config.stages[number], config.widths[tier], config.norm_eps, total)

        first_up = len(config.stages) - tiers
        self.embedding = input_embedding(config, padded)
        self.down = nn.ModuleList(stage(i, i) if config.down_blocks else nn.ModuleList() for i in range(tiers))
        self.down_pools = nn.ModuleList(
            DownPool(config.widths[i], config.widths[i + 1], config.pools[i], len(config.class_names))
            for i in range(tiers)
        )
        self.centre = stage(first_up - 1, tiers)
        self.up_pools = nn.ModuleList(
            UpPool(config.widths[i], config.widths[i + 1], config.pools[i]) for i in range(tiers)
        )
        self.up = nn.ModuleList(stage(first_up + tiers - 1 - i, i) for i in range(tiers))
        self.norm_f = RMSNorm(config.d_model, config.norm_eps)
        self.lm_head = nn.Linear(config.d_model, padded)
        nn.init.zeros_(self.lm_head.bias)

    def of_class(self, name: str) -> Self:
        """As `SequenceModel.of_class`; the vectors of the class are parts of the table and of the pools' biases."""
        view = super().of_class(name)
        number = self.classes.index(name)
        pools = nn.ModuleList(cast(DownPool, pool).of_class(number) for pool in self.down_pools)
        view._modules = {**view._modules, "down_pools": pools.train(self.training)}
        return view

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> UNetState:
        """Zero state of all blocks and pools; `dtype` is the activation dtype."""

        def zero(blocks: Any) -> tuple[Any, ...]:
            return tuple(block.mixer.init_state(batch, device, dtype) for block in blocks)

        tiers = []
        for width, pool, down, up in zip(
            self.model_config.widths, self.model_config.pools, self.down, self.up, strict=False
        ):
            remainder, queue = (
                torch.zeros(batch, frames, width, device=device, dtype=dtype) for frames in (pool - 1, pool)
            )
            tiers.append(TierState(zero(down), zero(up), remainder, queue))
        return UNetState(tuple(tiers), zero(self.centre), 0)

    def forward(
        self,
        tokens: Tensor,
        state: UNetState | None = None,
        *,
        reset: Tensor | None = None,
        targets: Tensor | None = None,
        logits: Literal["all", "last", "none"] = "all",
    ) -> ModelOutput:
        """Run the model on a span of samples of any length, from any position.

        Args:
            tokens: (B, L) integer symbols.
            state: state at the end of the preceding span; None at the start of a sequence.
            reset: bool (B, L), a new sequence starts at these positions; the class says which ones are allowed.
            targets: (B, L) the symbol that follows each position, -100 where nothing is scored.
            logits: positions whose logits to return.
        """
        hidden, state = self.hidden(tokens, state, reset=reset)
        loss_sum = count = None
        if targets is not None:
            bias = F.pad(self.lm_head.bias[:, None], (0, _BIAS_COLUMNS - 1))
            one = F.pad(hidden.new_ones(1), (0, _BIAS_COLUMNS - 1)).expand(*hidden.shape[:2], -1)
            weight = torch.cat([self.lm_head.weight, bias], 1)
            loss_sum, count = linear_cross_entropy(torch.cat([hidden, one], 2), weight, targets)
        out = None
        if logits != "none":
            out = self.lm_head(hidden if logits == "all" else hidden[:, -1:])
        return ModelOutput(out, loss_sum, count, state)

    def hidden(
        self,
        tokens: Tensor,
        state: UNetState | None = None,
        *,
        reset: Tensor | None = None,
        layer: int | None = None,
    ) -> tuple[Tensor, UNetState]:
        """Hidden states (B, L, D), and the state; `models/contract.py` describes the arguments.

        Layers are numbered over the finest tier alone, first down, then up: coarser ones have no output at every sample.
        """
        number = None if layer is None else self.find_layer(layer)
        outputs: list[Tensor] | None = None if layer is None else []
        x = self.embedding(tokens)
        if state is None:
            device = x.device
            autocast = torch.is_autocast_enabled(device.type)
            state = self.init_state(
                len(x), device, torch.get_autocast_dtype(device.type) if autocast else self.embedding.weight.dtype
            )
        if reset is not None:
            self._check_reset(reset, tokens, state.phase)
        kept = None if self.recompute == "layer" else self.choice(tokens.numel(), tokens.device)
        classes = class_of(tokens, self.model_config.num_inputs) if self.classes else None
        with nullcontext() if kept is None else mixers_keep(kept.steps, kept.inputs):
            x, residual, tiers, centre = self._tier(
                0, x, state.phase, state.tiers, state.centre, reset, outputs, classes
            )
        state = UNetState(tiers, centre, (state.phase + tokens.shape[1]) % self.model_config.period)
        if outputs is not None and number is not None:
            return outputs[number], state
        y, _ = self.norm_f(x, residual)
        return y, state

    def choice(self, positions: int, device: torch.device) -> Kept | None:
        """What layers keep for the backward of a step of so many samples (`models/kept.py`); outputs of norms always."""
        shares = [1 / math.prod(self.model_config.pools[:tier]) for tier in range(len(self.down) + 1)]
        stages = [*zip(self.down, shares), *zip(self.up, shares), (self.centre, shares[-1])]  # noqa: B905
        blocks = [(block, share) for stage, share in stages for block in stage]  # type: ignore[attr-defined]
        return self.keeper.choice(blocks, positions, device)

    @property
    def hidden_layers(self) -> int:
        """The layers of the finest tier."""
        return len(self.down[0]) + len(self.up[0])  # type: ignore[arg-type]

    def _tier(
        self,
        tier: int,
        x: Tensor,
        phase: int,
        tiers: tuple[TierState, ...],
        centre: tuple[Any, ...],
        reset: Tensor | None,
        kept: list[Tensor] | None = None,
        classes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, tuple[TierState, ...], tuple[Any, ...]]:
        """Run tier number `tier` and all coarser ones on a span.

        Args:
            x: (B, L, D) input of the tier.
            phase: frames of this tier before the span, modulo the product of the coarser pools.
            tiers, centre: states of this tier and the coarser ones.
            reset: bool (B, L) in frames of this tier.
            kept: the residual stream behind each block of this tier is appended to it.
            classes: (B, L) number of the class of each frame, 0 for none.

        Returns:
            The last block's output, the residual stream to add it to, and the new states.
        """
        if tier == len(self.down_pools):
            x, residual, inputs, centre = self._blocks(self.centre, x, None, centre, reset)
            return x, residual + inputs[0], (), centre

        own, coarser = tiers[0], tiers[1:]
        length, pool = x.shape[1], self.model_config.pools[tier]
        r = phase % pool
        stream: Tensor | None = None
        x, stream, inputs, down = self._blocks(self.down[tier], x, stream, own.down, reset)
        dtype = x.dtype
        stream = _add(x, stream)
        if kept is not None:
            kept += [*inputs, stream][1:]

        frames = torch.cat([own.remainder[:, :r].to(dtype), stream.to(dtype)], 1)  # (B, r + L, D)
        complete = (r + length) // pool
        waiting = frames[:, complete * pool :]
        remainder = F.pad(waiting, (0, 0, 0, pool - 1 - waiting.shape[1]))
        # Resets at the start of the current coarse frame and the `complete` ones after it: (B, complete + 1).
        starts = None if reset is None else F.pad(reset, (r, pool))[:, : (complete + 1) * pool : pool]
        outputs = own.queue[:, None]  # (B, 1, p, D)
        if complete:
            # A coarse frame is of the class of the frame that completes it.
            own_classes = None if classes is None else classes[:, pool - 1 - r :: pool]
            coarse, coarse_residual, coarser, centre = self._tier(
                tier + 1,
                self.down_pools[tier](frames[:, : complete * pool], own_classes),
                phase // pool,
                coarser,
                centre,
                None if starts is None else starts[:, :complete],
                classes=own_classes,
            )
            opened = self.up_pools[tier](_add(coarse, coarse_residual).to(coarse.dtype))
            outputs = torch.cat([outputs.to(opened.dtype), opened], 1)  # (B, complete + 1, p, D)
        if starts is not None:
            outputs = outputs.masked_fill(starts[:, :, None, None], 0)
            # This coarse frame is incomplete, so its reset must reach the coarser tiers now.
            coarser, centre = _zero_rows((coarser, centre), starts[:, complete])
        x = outputs.flatten(1, 2)[:, r : r + length]

        skip = stream
        x, residual, up_inputs, up = self._blocks(self.up[tier], x, skip, own.up, reset, inputs)
        if not self.model_config.down_blocks:
            # SaShiMi adds the sum of up-pool and skip once more after the blocks.
            residual = residual + up_inputs[0]
        if kept is not None:
            kept += [*up_inputs[1:], _add(x, residual)]
        return x, residual, (TierState(down, up, remainder, outputs[:, -1]), *coarser), centre

    def _blocks(
        self,
        blocks: Any,
        x: Tensor,
        residual: Tensor | None,
        states: tuple[Any, ...],
        reset: Tensor | None,
        mirrors: list[Tensor] | None = None,
    ) -> tuple[Tensor, Any, list[Tensor], tuple[Any, ...]]:
        """Run the blocks of a stage.

        Args:
            x, residual: the stream into the stage is their sum.
            mirrors: inputs of the mirrored stage's blocks, added to the outputs of these from last to first.

        Returns:
            The last block's output, the stream to add it to, each block's input, and the new states.
        """
        inputs, new_states = [], []
        recompute = self.recompute == "layer" and torch.is_grad_enabled()
        for number, (block, state) in enumerate(zip(blocks, states, strict=True)):
            if recompute:
                again: Any = {"use_reentrant": False, "preserve_rng_state": bool(block.dropout.p)}
                x, residual, state = checkpoint(block, x, residual, state, reset, **again)
            else:
                x, residual, state = block(x, residual, state, reset)
            assert residual is not None
            inputs.append(residual)
            new_states.append(state)
            if mirrors:
                residual = residual + mirrors[-1 - number]
        return x, residual, inputs, tuple(new_states)

    def _check_reset(self, reset: Tensor, tokens: Tensor, phase: int) -> None:
        if reset.shape != tokens.shape or reset.dtype != torch.bool:
            raise InputError(
                f"reset must be bool of shape (B, L) = {tuple(tokens.shape)}, not {reset.dtype} {tuple(reset.shape)}"
            )
        period = self.model_config.period
        allowed = torch.arange(phase, phase + tokens.shape[1], device=reset.device) % period == 0
        wrong = (reset & ~allowed).nonzero()
        if len(wrong):
            row, position = wrong[0].tolist()
            raise InputError(
                f"reset in row {row} at position {position}: with pools {list(self.model_config.pools)} a sequence may "
                f"start only after a multiple of {period} samples, here at position {-phase % period} and every "
                f"{period} after it; pad the sequences to such a multiple, or give each its own row"
            )

    def extra_repr(self) -> str:
        return f"pools={list(self.model_config.pools)}, widths={list(self.model_config.widths)}"


def _blocks(stage: StageConfig, width: int, eps: float, total: int) -> nn.ModuleList:
    """The blocks of a stage in a network with `total` residual branches; a transformer block has two."""
    blocks = [
        Block(RMSNorm(width, eps), layer)
        for _ in range(cast(int, stage.num_layers))
        for layer in stage.mixer_config.layers(width, total)
    ]
    return nn.ModuleList(blocks)


def _add(x: Tensor, residual: Tensor | None) -> Tensor:
    """The stream x + residual in fp32 (fp64 for fp64 inputs), as the norms keep it."""
    wide = x if x.dtype == torch.float64 else x.float()
    return wide if residual is None else wide + residual


def _zero_rows(state: Any, rows: Tensor) -> Any:
    """A copy of a state with the given rows, a mask (B,), of its tensors zeroed; the batch is their first axis."""

    def zero(leaf: Any) -> Any:
        return leaf.masked_fill(rows.view(-1, *[1] * (leaf.ndim - 1)), 0) if isinstance(leaf, Tensor) else leaf

    return tree_map(zero, state)
