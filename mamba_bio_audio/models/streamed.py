"""Exact backpropagation through sequences of any length, in memory that does not grow with the length.

    pass 1, no gradient:  s_1 = given;  for c = 1..S:  loss_c, s_(c+1) = F(x_c, s_c)      keep only the states s_c
    pass 2, c = S..1:     F again with gradients;  back from loss_c and, with weight G, from s_(c+1);  G = dL/ds_c

The last chunk keeps its graph from pass 1, so S chunks cost S - 1 forward passes more than plain training. Random layers
(dropout) draw the same numbers in both passes.

Every layer carries its whole past in a small state whose gradient it gives (law *split* in `layers/contract.py`), so this
equals backpropagation through the whole sequence up to the order of summation. Memory is that of one chunk and the S
states.

All of this is one autograd function over the parameters, whose backward returns their gradients: accumulation, clipping,
hooks, scalers and DistributedDataParallel see one ordinary gradient per parameter and step.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from mamba_bio_audio.errors import InputError


class Chunking(NamedTuple):
    """How the chunks of a span are processed.

    Attributes:
        rows: sequences processed at a time; None for all. Determines the memory, but not the result.
        offload: keep the states between chunks in host memory.
        truncate: drop the gradient through the states. Not exact: truncated backpropagation through time.
    """

    rows: int | None = None
    offload: bool = False
    truncate: bool = False


class Relay(Protocol):
    """What divides every chunk into spans among the ranks that share a sequence (`training/parallel.py`)."""

    def spans(self, length: int, chunk: int) -> list[tuple[int, int]]:
        """This rank's span of each chunk."""

    def visits(self, chunks: int, offload: bool) -> list[Any]:
        """One per chunk; its `anchor` collects the gradient that goes to another rank, None where there is none."""

    def at(self, visit: Any) -> AbstractContextManager[None]:
        """Context in which the model runs on a chunk, forward or backward."""

    def check(self, visit: Any) -> None:
        """Check that every layer has passed its state on."""

    def flush(self) -> None:
        """Wait until everything has been sent."""


def streamed_loss(
    model: nn.Module,
    tokens: Tensor,
    targets: Tensor,
    *,
    chunk: int,
    how: Chunking = Chunking(),
    state: Any = None,
    reset: Tensor | None = None,
    relay: Relay | None = None,
) -> tuple[Tensor, Tensor, Any]:
    """Compute the loss of a long span chunk by chunk, differentiable in the model's parameters.

    Args:
        model: model of `constant` layers, called as `model(tokens, state, reset=..., targets=..., logits="none")`.
        tokens: (B, L) symbols.
        targets: (B, L), -100 where nothing is scored.
        chunk: positions per chunk; the last one may be shorter. Determines the memory, but not the result.
        how: rows at a time, offloading, truncation.
        state: state at the start of the span; a constant, no gradient flows into it. None means zeros.
        reset: bool (B, L), a new sequence starts at these positions.
        relay: divide every chunk into spans of at most `chunk` positions among the ranks that share the sequence; all of
            them call with the same tokens, and each gets the loss and the gradients of its own spans.

    Returns:
        loss_sum (scalar, nats, fp32 or fp64), count (scalar int64) and the state at the end, without gradient; with
        `relay` the state at the end of this rank's last span.

    Raises:
        InputError: the model has a layer whose state grows with the length, or that cannot carry one.
    """
    streaming = getattr(model, "streaming", "none")
    if streaming != "constant":
        raise InputError(
            f"train.stream_chunk requires layers with a state of constant size (this model's is {streaming!r}); "
            f"set train.stream_chunk=null or choose another mixer"
        )
    if chunk < 1:
        raise InputError(f"train.stream_chunk is {chunk}; choose 1 or more")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if relay is not None and (state is not None or how.truncate):
        raise InputError(
            "train.sequence_parallel starts every sequence from a zero state, with exact gradients; pass neither state "
            "nor truncate"
        )
    length = tokens.shape[1]
    if relay is None:
        spans = [(low, min(low + chunk, length)) for low in range(0, length, chunk)]
    else:
        spans = relay.spans(length, chunk)
    size = how.rows or len(tokens)
    groups = [slice(low, low + size) for low in range(0, len(tokens), size)]
    calls = [
        _Call(
            model,
            tokens[group],
            targets[group],
            spans,
            state if len(groups) == 1 else _rows(state, group),
            None if reset is None else reset[group],
            how.offload,
            relay,
        )
        for group in groups
    ]
    if not (torch.is_grad_enabled() and parameters):
        loss_sum, count = _run(calls, keep=False)
    else:
        loss_sum, count = _Streamed.apply(calls, how.truncate, *parameters)  # type: ignore[no-untyped-call]
    if relay is not None:
        relay.flush()
    return loss_sum, count, _joined([call.final_state for call in calls])


def has_dropout(model: nn.Module) -> bool:
    """Whether any layer is random in training."""
    return any(isinstance(module, _DropoutNd) and module.p > 0 for module in model.modules())


def _rows(state: Any, group: slice) -> Any:
    return tree_map(lambda leaf: leaf[group] if isinstance(leaf, Tensor) else leaf, state)


def _joined(states: list[Any]) -> Any:
    """Join the states of groups of rows into one."""
    if len(states) == 1:
        return states[0]
    return tree_map(lambda *leaves: torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0], *states)


def _run(calls: list[_Call], keep: bool) -> tuple[Tensor, Tensor]:
    """Run pass 1 over all groups of rows; only the last one keeps its graph."""
    sums = [call.run(keep, graph=keep and call is calls[-1]) for call in calls]
    return torch.stack([loss for loss, _ in sums]).sum(), torch.stack([count for _, count in sums]).sum()


class _Call:
    """One span of some rows: runs a chunk from a state, and keeps the states before each chunk."""

    def __init__(
        self,
        model: nn.Module,
        tokens: Tensor,
        targets: Tensor,
        spans: list[tuple[int, int]],
        state: Any,
        reset: Tensor | None,
        offload: bool,
        relay: Relay | None,
    ) -> None:
        self.model, self.tokens, self.targets, self.reset = model, tokens, targets, reset
        self.spans = spans
        self.offload = offload
        self.relay = relay
        # With a relay, states come from other ranks, layer by layer, not from the previous chunk.
        self.visits = [] if relay is None else relay.visits(len(spans), offload)
        self.start = state
        self.starts: list[list[Any]] = []  # leaves of the state before each chunk; empty at the start of a sequence
        self.structure: Any = None
        self.final_state: Any = None
        self.last: tuple[Any, list[Tensor]] | None = None  # output of the last chunk, with its graph
        self.draws = model.training and has_dropout(model)
        self.random: list[Any] = []  # state of the generators before each chunk
        device = tokens.device.type
        # Backward runs outside the caller's autocast, but must compute the same again.
        self.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))

    def at(self, number: int) -> AbstractContextManager[None]:
        """Context in which the model runs, forward or backward, on a chunk."""
        return nullcontext() if self.relay is None else self.relay.at(self.visits[number])

    def chunk(self, number: int, state: Any) -> Any:
        """Model output of one chunk."""
        low, high = self.spans[number]
        device, dtype, enabled = self.autocast
        reset = None if self.reset is None else self.reset[:, low:high]
        with torch.autocast(device, dtype, enabled=enabled, cache_enabled=False):
            out = self.model(
                self.tokens[:, low:high], state, reset=reset, targets=self.targets[:, low:high], logits="none"
            )
        if self.relay is not None:
            self.relay.check(self.visits[number])
        return out

    def run(self, keep: bool, graph: bool) -> tuple[Tensor, Tensor]:
        """Pass 1: loss and count. `keep` stores what backward will need, `graph` the last chunk's graph too."""
        state, losses, counts = self.start, [], []
        for number in range(len(self.spans)):
            if keep:
                self.starts.append(self._put(state))
                if self.draws:
                    self.random.append(_generators(self.tokens.device))
            with self.at(number):
                if graph and number == len(self.spans) - 1:
                    out, wanted = self.differentiable_chunk(number)
                    self.last = out, wanted
                else:
                    with torch.no_grad():
                        out = self.chunk(number, state)
            if self.relay is None:
                state = out.state
            losses.append(out.loss_sum.detach())
            counts.append(out.count)
        leaves, structure = tree_flatten(out.state)
        self.final_state = tree_unflatten([x.detach() if isinstance(x, Tensor) else x for x in leaves], structure)
        return torch.stack(losses).sum(), torch.stack(counts).sum()

    def differentiable_chunk(self, number: int) -> tuple[Any, list[Tensor]]:
        """Output of one chunk with its graph, and the leaves of the preceding state that collect gradients."""
        with torch.enable_grad():
            state, wanted = self._take(number)
            out = self.chunk(number, state)
            if self.relay is not None:
                anchor = self.visits[number].anchor
                wanted = [] if anchor is None else [anchor]
            return out, wanted

    def again(self, number: int) -> tuple[Any, list[Tensor]]:
        """`differentiable_chunk` with the random numbers of pass 1; the generators are left as they were."""
        if not self.draws:
            return self.differentiable_chunk(number)
        now = _generators(self.tokens.device)
        try:
            _set_generators(self.tokens.device, self.random[number])
            return self.differentiable_chunk(number)
        finally:
            _set_generators(self.tokens.device, now)

    def _put(self, state: Any) -> list[Any]:
        if state is None:
            return []
        leaves, self.structure = tree_flatten(state)
        if self.offload:
            leaves = [leaf.to("cpu", non_blocking=False) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return leaves

    def _take(self, number: int) -> tuple[Any, list[Tensor]]:
        """The state before a chunk, made of leaves that collect gradients, and these leaves."""
        leaves = self.starts[number]
        if not leaves:
            return None, []
        device = self.tokens.device
        fresh = [leaf.detach().to(device) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        wanted = [leaf.requires_grad_() for leaf in fresh if _differentiable(leaf)]
        return tree_unflatten(fresh, self.structure), wanted


def _generators(device: torch.device) -> Any:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_generators(device: torch.device, state: Any) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


class _Streamed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, calls: list[_Call], truncate: bool, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        ctx.calls, ctx.truncate = calls, truncate
        # Saved so that autograd notices an in-place change of the parameters before backward.
        ctx.save_for_backward(*parameters)
        loss_sum, count = _run(calls, keep=True)
        ctx.mark_non_differentiable(count)
        return loss_sum, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_loss: Tensor, _: Any) -> Any:
        parameters = ctx.saved_tensors
        if not all(call.starts for call in ctx.calls):
            raise RuntimeError(
                "backward() was called twice on a streamed loss, whose states were freed the first time; recompute the loss"
            )
        totals = _Totals(parameters)
        for call in reversed(ctx.calls):
            g_state: list[Tensor] = []  # gradient of the state after the current chunk
            for number in reversed(range(len(call.spans))):
                with call.at(number):
                    out, wanted = call.last or call.again(number)
                    call.last = None
                    if call.relay is not None:
                        # The next span adds its gradient on the way back, layer by layer.
                        g_state = [torch.zeros_like(leaf) for leaf in _ends(out)]
                    found = _gradients(out, g_loss, g_state, [*parameters, *wanted])
                del out
                totals.add(found[: len(parameters)])
                g_state = [
                    torch.zeros_like(leaf) if gradient is None else gradient
                    for leaf, gradient in zip(wanted, found[len(parameters) :], strict=True)
                ]
                if ctx.truncate:
                    g_state = []
            call.starts, call.random, call.visits = [], [], []
            if call.relay is not None:
                call.relay.flush()
        return None, None, *totals.gradients()


def _gradients(out: Any, g_loss: Tensor, g_state: list[Tensor], inputs: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Gradients of a chunk's loss and of the state after it."""
    outputs, weights = [out.loss_sum], [g_loss]
    if g_state:
        outputs += _ends(out)
        weights += g_state
    pairs = [(output, weight) for output, weight in zip(outputs, weights, strict=True) if output.requires_grad]
    if not pairs:
        return (None,) * len(inputs)
    return torch.autograd.grad([o for o, _ in pairs], inputs, [w for _, w in pairs], allow_unused=True)


def _ends(out: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(out.state)[0] if _differentiable(leaf)]


class _Totals:
    """Sums the parameters' gradients over chunks; the terms are many and small, so never in less than fp32."""

    def __init__(self, parameters: tuple[Tensor, ...]) -> None:
        self.parameters = parameters
        self.sums: list[Tensor | None] = [None] * len(parameters)

    def add(self, found: tuple[Tensor | None, ...]) -> None:
        """Add one chunk's gradients."""
        first, sums, summands = {}, [], []
        for i, gradient in enumerate(found):
            if gradient is None:
                continue
            gradient = gradient if gradient.dtype.itemsize >= 4 else gradient.float()
            total = self.sums[i]
            if total is None:
                first[i] = gradient
            else:
                sums.append(total)
                summands.append(gradient)
        if first:
            # Copied, because two parameters may be given the same storage, or a view.
            for i, copy in zip(first, torch._foreach_mul(list(first.values()), 1), strict=True):
                self.sums[i] = copy
        if sums:
            torch._foreach_add_(sums, summands)

    def gradients(self) -> list[Tensor | None]:
        """The sums, in the parameters' dtypes."""
        return [None if s is None else s.to(p.dtype) for s, p in zip(self.sums, self.parameters, strict=True)]


def _differentiable(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dtype.is_floating_point
