"""Classifier: a linear head on a backbone, with a state as small as the backbone's own.

    one target per sequence     p_t = pool(h_0 .. h_t)        h: normalised last hidden states of the backbone
    one per base or bin         p_t = (h_t, h'_t)             h': those of the same bases read from the other strand
    logits_t = W p_t + b

`models/tasks.py` says what it can be asked. Where a task has one target per sequence, it stands at the last real position of
a row, and the prediction at t is the one for the sequence that ends there, so such a classifier obeys the same laws as a
language model: padding on the right is never seen, and chunks with the state carried (`train.stream_chunk`, prediction of
long records) give the same result as the whole.

Where a task has targets at positions, what makes a base what it is may stand on either side of it, and a causal model has
seen one side only; to read on and answer some positions later asks its state to hold what passed that long ago, which is
not learnt beyond a few bases. So the backbone reads a row twice, as it is and reverse-complemented, in one batch, and the head
has both states of a base: that of what precedes it, and that of what follows it. Such a model reads whole rows and has no
state to carry.

Legend: B batch, L length, D channels, K outputs.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.contract import ModelOutput, SequenceModel
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.tasks import IGNORED, TASKS, Constants, outputs_of, scored


class PoolState(NamedTuple):
    """State of a pool: its entire memory of earlier positions."""

    value: Tensor  # (B, D) sum or largest value so far, fp32 (fp64 for fp64 inputs)
    positions: Tensor  # (B,) number of positions so far, in fp64: exact up to 2^53


class Pool(nn.Module):
    """Running mean, maximum or last value of (B, L, D) along L."""

    streaming = "constant"
    resets = True

    def __init__(self, kind: Literal["mean", "max", "last"], width: int) -> None:
        super().__init__()
        self.kind = kind
        self.width = width

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> PoolState | None:
        """State before the first position; None for "last", which needs none."""
        if self.kind == "last":
            return None
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return PoolState(
            torch.zeros(batch, self.width, device=device, dtype=wide),
            torch.zeros(batch, device=device, dtype=torch.float64),
        )

    def forward(
        self,
        x: Tensor,
        state: PoolState | None = None,
        *,
        reset: Tensor | None = None,
        last: Tensor | None = None,
    ) -> tuple[Tensor, PoolState | None]:
        """Pool up to every position, or with `last` up to one position of each row (`upto`).

        Args:
            x: (B, L, D).
            state: state at the end of the preceding span; None at the start.
            reset: bool (B, L), pooling starts afresh at these positions.
            last: (B,) the only position wanted in each row; cannot be combined with `reset`.

        Returns:
            (B, L, D) or (B, D), in fp32 or fp64 except for "last", which returns `x`; and the state at the end.
        """
        if last is not None:
            return self.upto(x, last, state)
        if self.kind == "last":
            return x, None
        if state is None:
            state = self.init_state(len(x), x.device, x.dtype)
            assert state is not None
        # A sum of many small terms: never in less than fp32.
        wide = x if x.dtype == torch.float64 else x.float()
        if reset is None:
            value, count = self._run(wide, state.value, state.positions)
        else:
            rows = [
                self._run_row(row[None], state.value[i : i + 1], state.positions[i : i + 1], starts)
                for i, (row, starts) in enumerate(zip(wide, reset, strict=True))
            ]
            value, count = torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows])
        end = PoolState(value[:, -1], count[:, -1])
        return (value / count[..., None].to(value.dtype) if self.kind == "mean" else value), end

    def upto(self, x: Tensor, last: Tensor, state: PoolState | None = None) -> tuple[Tensor, PoolState | None]:
        """Pool up to one position of each row, with sums instead of scans, which are slow over a long row.

        Args:
            x: (B, L, D).
            last: (B,) the position in each row.
            state: as for `forward`.

        Returns:
            (B, D), and the state at the end of the span.
        """
        if self.kind == "last":
            return x[torch.arange(len(x), device=x.device), last], None
        if state is None:
            state = self.init_state(len(x), x.device, x.dtype)
            assert state is not None
        wide = x if x.dtype == torch.float64 else x.float()
        inside = torch.arange(x.shape[1], device=x.device) <= last[:, None]  # (B, L)
        end = state.positions + x.shape[1]
        if self.kind == "mean":
            # Autocast would compute the product in half precision.
            with torch.autocast(x.device.type, enabled=False):
                part = (inside.to(wide.dtype)[:, None] @ wide)[:, 0]
            count = (state.positions + last + 1)[:, None].to(wide.dtype)
            return (part + state.value) / count, PoolState(wide.sum(1) + state.value, end)
        part, whole = wide.masked_fill(~inside[..., None], -math.inf).amax(1), wide.amax(1)
        empty = (state.positions == 0)[:, None]
        return (
            torch.where(empty, part, torch.maximum(part, state.value)),
            PoolState(torch.where(empty, whole, torch.maximum(whole, state.value)), end),
        )

    def _run(self, x: Tensor, before: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Running sum or maximum (B, L, D), and the number of positions so far (B, L) in fp64."""
        count = seen[:, None] + torch.arange(1, x.shape[1] + 1, device=x.device, dtype=torch.float64)
        if self.kind == "mean":
            return x.cumsum(1) + before[:, None], count
        largest = x.cummax(1).values
        return torch.where((seen == 0)[:, None, None], largest, torch.maximum(largest, before[:, None])), count

    def _run_row(self, x: Tensor, before: Tensor, seen: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """`_run` on one row (1, L, D) in which new sequences start where `starts` (L,) is true."""
        edges = sorted({0, *starts.nonzero()[:, 0].tolist(), x.shape[1]})
        parts = []
        for low, high in itertools.pairwise(edges):
            if starts[low]:
                before, seen = torch.zeros_like(before), torch.zeros_like(seen)
            parts.append(self._run(x[:, low:high], before, seen))
        return torch.cat([part[0] for part in parts], 1), torch.cat([part[1] for part in parts], 1)

    def extra_repr(self) -> str:
        return self.kind


class Classifier(SequenceModel):
    """A backbone with a linear head; its logits are (B, L, K), or (B, 1, K) for the last position.

    Attributes:
        backbone: a model that follows the common contract, including `hidden`.
        labels: names of the outputs in their order, such as classes.
        task, outputs: what it is asked, and how its scores are read.
    """

    _complement: Tensor  # (inputs,) what each symbol is on the other strand, -1 for padding

    def __init__(self, backbone: Any, config: HeadConfig) -> None:
        super().__init__()
        if config.classes is None:
            raise ValueError("HeadConfig.classes must be set to build a classifier")
        self.backbone = backbone
        self.head_config = config
        self.labels = tuple(config.classes)
        self.task, self.outputs = TASKS[config.task], outputs_of(config)
        self._measuring = config.model_copy(update={"label_smoothing": 0.0})
        for name, row in Constants.of(config)._asdict().items():
            self.register_buffer(f"_{name}", row.float(), persistent=False)
        width = backbone.model_config.d_model
        self.pool = Pool(config.pool if self.task.rows else "last", width)
        if not self.task.rows:
            if config.complement is None:
                raise InputError(
                    f"head.complement is missing: a head for {config.task} reads both strands; a run without it is of an "
                    "earlier version, train it again"
                )
            self.register_buffer("_complement", torch.tensor(config.complement), persistent=False)
        self.head = nn.Linear(width * config.readings, len(self.labels))
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        if backbone.lm_head.weight is not backbone.embedding.weight:
            # Kept with the backbone, but unused here.
            backbone.lm_head.requires_grad_(False)
        if config.freeze:
            for parameter in backbone.parameters():
                parameter.requires_grad_(False)

    @property
    def streaming(self) -> str:
        """That of the layers; "none" where rows are read from both strands."""
        return super().streaming if self.task.rows else "none"

    @property
    def likelihood(self) -> bool:
        """Whether its loss is a negative log-likelihood, in nats."""
        return self.outputs.loss_name(self.head_config) == "nats"

    def targets_in(self, targets: Tensor) -> int:
        """Number of targets that a batch can have: (B, L), or (B, L, K), of one per row or per position."""
        return targets.numel() // (targets.shape[1] if self.task.rows else 1)

    def values(self, scores: Tensor) -> Tensor:
        """What scores (..., K) mean: probabilities, or numbers in the units of the data; fp64."""
        return self.outputs.values(scores, self.head_config)

    def some_targets(self, tokens: Tensor) -> Tensor:
        """Targets for tokens (B, L), to measure what training takes."""
        if self.outputs.floating:
            targets = torch.full((*tokens.shape, len(self.labels)), torch.nan, device=tokens.device)
            value = 1.0
        else:
            targets, value = torch.full_like(tokens, IGNORED), 0
        targets[:, -1 if self.task.rows else slice(None)] = value
        return targets

    @property
    def model_config(self) -> Any:
        """Configuration of the backbone."""
        return self.backbone.model_config

    def start_from(self, source: nn.Module) -> None:
        """Take over a pretrained backbone, and the head where outputs and pooling are the same; errors as for any model."""
        super().start_from(source)
        if isinstance(source, Classifier) and self._same_head(source):
            self.head.load_state_dict(source.head.state_dict())

    def _same_head(self, other: Classifier) -> bool:
        """Whether scores of the two mean the same."""
        same = all(
            getattr(self.head_config, key) == getattr(other.head_config, key) for key in ("loss", "mean", "scale")
        )
        read = (self.task, self.outputs, self.labels, self.pool.kind)
        return same and read == (other.task, other.outputs, other.labels, other.pool.kind)

    @property
    def recompute(self) -> str:
        """The backbone's setting."""
        return str(self.backbone.recompute)

    @recompute.setter
    def recompute(self, value: str) -> None:
        self.backbone.recompute = value

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> tuple[Any, Any]:
        """Zero state of backbone and pool; `dtype` is the activation dtype."""
        return self.backbone.init_state(batch, device, dtype), self.pool.init_state(batch, device, dtype)

    def hidden(
        self,
        tokens: Tensor,
        state: tuple[Any, Any] | None = None,
        *,
        reset: Tensor | None = None,
        layer: int | None = None,
    ) -> tuple[Tensor, tuple[Any, Any]]:
        """Hidden states (B, L, D) of the backbone, and the state; `models/contract.py` describes the arguments."""
        before, pooled = (None, None) if state is None else state
        hidden, after = self.backbone.hidden(tokens, before, reset=reset, layer=layer)
        if layer is None:
            last = None if reset is not None else torch.full_like(tokens[:, 0], tokens.shape[1] - 1)
            _, pooled = self.pool(hidden, pooled, reset=reset, last=last)
        return hidden, (after, pooled)

    @property
    def hidden_layers(self) -> int:
        """Those of the backbone."""
        return int(self.backbone.hidden_layers)

    def forward(
        self,
        tokens: Tensor,
        state: tuple[Any, Any] | None = None,
        *,
        reset: Tensor | None = None,
        targets: Tensor | None = None,
        logits: Literal["all", "last", "none"] = "all",
    ) -> ModelOutput:
        """Run the classifier on a span of symbols.

        Args:
            tokens: (B, L) integer symbols.
            state: state at the end of the preceding span; None at the start of a sequence.
            reset: bool (B, L), a new sequence starts at these positions.
            targets: (B, L) or (B, L, K) as the task has them; of one per row at most one, except with `reset` or
                logits="all".
            logits: positions whose logits to return; "last" gives the prediction for the whole span.

        Raises:
            InputError: a state or `reset` for a task with targets at positions, which reads whole rows.
        """
        if not self.task.rows:
            if state is not None or reset is not None:
                raise InputError(
                    f"a model of {self.head_config.task} reads whole sequences, one in a row; pass no state"
                )
            return self._scored(self._from_both_strands(tokens), targets, logits, None)
        before, pooled_before = (None, None) if state is None else state
        hidden, after = self.backbone.hidden(tokens, before, reset=reset)
        if reset is None and logits != "all" and (targets is None or logits == "none"):
            # Only one position of each row is wanted.
            there = torch.zeros_like(tokens, dtype=torch.bool) if targets is None else scored(targets)
            last = torch.full_like(tokens[:, 0], tokens.shape[1] - 1) if targets is None else there.long().argmax(1)
            # Called as a module: its hooks pass the states from rank to rank (training/parallel.py).
            pooled, pooled_after = self.pool(hidden, pooled_before, last=last)
            pooled = pooled[:, None]
            if targets is not None:
                several = (there.sum(1) > 1).any()
                targets = targets[torch.arange(len(last), device=last.device), last][:, None]
                # NaN reveals the mistake without waiting for the device.
                pooled = torch.where(several, torch.nan, pooled)
        else:
            pooled, pooled_after = self.pool(hidden, pooled_before, reset=reset)
        return self._scored(pooled, targets, logits, (after, pooled_after))

    def _from_both_strands(self, tokens: Tensor) -> Tensor:
        """Hidden states (B, L, 2 D) of both readings of tokens (B, L), at the same base."""
        turned = self._complement[tokens]
        there = turned >= 0
        # Of n real positions t is read as n - 1 - t, and padding stays where it is: its own inverse.
        index = (there.sum(1, keepdim=True) - 1 - torch.arange(tokens.shape[1], device=tokens.device)) % tokens.shape[1]
        other = torch.where(there, turned, tokens).gather(1, index)
        forward, backward = self.backbone.hidden(torch.cat([tokens, other]))[0].chunk(2)
        return torch.cat([forward, backward.gather(1, index[..., None].expand_as(backward))], -1)

    def _scored(
        self, pooled: Tensor, targets: Tensor | None, logits: Literal["all", "last", "none"], state: Any
    ) -> ModelOutput:
        """Scores and loss from what the head reads, (B, L, D) or (B, L, 2 D)."""
        # The head is small and the loss comes from single positions: fp32 even under autocast.
        with torch.autocast(pooled.device.type, enabled=False):
            weight, bias = self.head.weight, self.head.bias
            scores = F.linear(pooled.to(weight.dtype), weight, bias)
            loss_sum = count = None
            if targets is not None:
                constants = Constants(*(getattr(self, f"_{name}").to(scores.dtype) for name in Constants._fields))
                loss_sum, count = self.outputs.loss(
                    scores, targets, self.head_config if self.training else self._measuring, constants
                )
        out = {"none": None, "last": scores[:, -1:], "all": scores}[logits]
        return ModelOutput(out, loss_sum, count, state)
