"""Exact backpropagation through sequences of any length in memory that does not grow with it.

    pass 1, no gradient:  s_1 = given;  for c = 1..S:  loss_c, s_(c+1) = F(x_c, s_c)      keep only the states s_c
    pass 2, c = S..1:     F again with gradients;  back from loss_c and, with weight G, from s_(c+1);  G = dL/ds_c

The last chunk keeps its graph from the start: S chunks cost S - 1 forwards more than plain training.

Every layer carries its whole past in a small state whose gradient it gives (docs/architecture.md, law 1), so this
equals backpropagation through the whole sequence up to the order of summation. Memory is that of one chunk and the S
states.

It is one autograd function over the parameters: its backward returns their gradients, so accumulation, clipping, hooks,
scalers and DistributedDataParallel see one ordinary gradient per parameter and step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from mamba_bio_audio.errors import InputError


def streamed_loss(
    model: nn.Module,
    tokens: Tensor,
    targets: Tensor,
    *,
    chunk: int,
    state: Any = None,
    reset: Tensor | None = None,
    offload: bool = False,
) -> tuple[Tensor, Tensor, Any]:
    """Loss of a long span, differentiable in the model's parameters, chunk by chunk.

    Args:
        model: of `constant` layers, called as `model(tokens, state, reset=..., targets=..., logits="none")`.
        tokens: (B, L) symbols.
        targets: (B, L), -100 where nothing is scored.
        chunk: positions per chunk, T; the last may be shorter. Sets the memory; the result does not depend on it.
        state: at the start of the span; taken as given, no gradient flows into it. None means zeros.
        reset: bool (B, L), a new sequence starts there.
        offload: keep the states between chunks in host memory.

    Returns:
        loss_sum (scalar, nats, fp32 or fp64), count (scalar int64) and the state at the end, without gradient.

    Raises:
        InputError: the model has a layer whose state grows with the length or that has none.
    """
    streaming = getattr(model, "streaming", "none")
    if streaming != "constant":
        raise InputError(
            f"train.stream_chunk needs a model of layers with a constant state; this one's is {streaming!r}: "
            f"set train.stream_chunk=null or choose another mixer"
        )
    if chunk < 1:
        raise InputError(f"train.stream_chunk is {chunk}; choose 1 or more")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    call = _Call(model, tokens, targets, chunk, state, reset, offload)
    if not (torch.is_grad_enabled() and parameters):
        loss_sum, count = call.run(keep=False)
    else:
        loss_sum, count = _Streamed.apply(call, *parameters)  # type: ignore[no-untyped-call]
    return loss_sum, count, call.final_state


class _Call:
    """One span: how to run chunk c from a state, and the states at the chunks' starts."""

    def __init__(
        self,
        model: nn.Module,
        tokens: Tensor,
        targets: Tensor,
        chunk: int,
        state: Any,
        reset: Tensor | None,
        offload: bool,
    ) -> None:
        self.model, self.tokens, self.targets, self.reset = model, tokens, targets, reset
        self.spans = [(low, min(low + chunk, tokens.shape[1])) for low in range(0, tokens.shape[1], chunk)]
        self.offload = offload
        self.start = state
        self.starts: list[list[Any]] = []  # leaves of the state before each chunk; none before the first of a sequence
        self.structure: Any = None
        self.final_state: Any = None
        self.last: tuple[Any, list[Tensor]] | None = None  # output of the last chunk, with its graph
        device = tokens.device.type
        # Backward runs outside of the caller's autocast; what is computed again must be the same.
        self.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))

    def chunk(self, number: int, state: Any) -> Any:
        """Model output of one chunk."""
        low, high = self.spans[number]
        device, dtype, enabled = self.autocast
        reset = None if self.reset is None else self.reset[:, low:high]
        with torch.autocast(device, dtype, enabled=enabled, cache_enabled=False):
            return self.model(
                self.tokens[:, low:high], state, reset=reset, targets=self.targets[:, low:high], logits="none"
            )

    def run(self, keep: bool) -> tuple[Tensor, Tensor]:
        """Pass 1: loss and count; `keep` what backward will need."""
        state, losses, counts = self.start, [], []
        for number in range(len(self.spans)):
            if keep:
                self.starts.append(self._put(state))
            if keep and number == len(self.spans) - 1:
                out, wanted = self.differentiable_chunk(number)
                self.last = out, wanted
            else:
                with torch.no_grad():
                    out = self.chunk(number, state)
            state = out.state
            losses.append(out.loss_sum.detach())
            counts.append(out.count)
        leaves, structure = tree_flatten(state)
        self.final_state = tree_unflatten([x.detach() if isinstance(x, Tensor) else x for x in leaves], structure)
        return torch.stack(losses).sum(), torch.stack(counts).sum()

    def differentiable_chunk(self, number: int) -> tuple[Any, list[Tensor]]:
        """Output of one chunk with its graph, and the leaves of the state before it that gather gradients."""
        with torch.enable_grad():
            state, wanted = self._take(number)
            return self.chunk(number, state), wanted

    def _put(self, state: Any) -> list[Any]:
        if state is None:
            return []
        leaves, self.structure = tree_flatten(state)
        if self.offload:
            leaves = [leaf.to("cpu", non_blocking=False) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return leaves

    def _take(self, number: int) -> tuple[Any, list[Tensor]]:
        """The state before a chunk as leaves that gather gradients, and these leaves."""
        leaves = self.starts[number]
        if not leaves:
            return None, []
        device = self.tokens.device
        fresh = [leaf.detach().to(device) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        wanted = [leaf.requires_grad_() for leaf in fresh if _differentiable(leaf)]
        return tree_unflatten(fresh, self.structure), wanted


class _Streamed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        ctx.call = call
        # Saved so that a change of the parameters in place before backward is noticed.
        ctx.save_for_backward(*parameters)
        loss_sum, count = call.run(keep=True)
        ctx.mark_non_differentiable(count)
        return loss_sum, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_loss: Tensor, _: Any) -> Any:
        call: _Call = ctx.call
        parameters = ctx.saved_tensors
        totals: list[Tensor | None] = [None] * len(parameters)
        g_state: list[Tensor] = []  # gradient of the state after the chunk at hand
        for number in reversed(range(len(call.spans))):
            out, wanted = call.last or call.differentiable_chunk(number)
            call.last = None
            outputs, weights = [out.loss_sum], [g_loss]
            if g_state:
                ends = [leaf for leaf in tree_flatten(out.state)[0] if _differentiable(leaf)]
                pairs = [(leaf, g) for leaf, g in zip(ends, g_state, strict=True) if leaf.requires_grad]
                outputs += [leaf for leaf, _ in pairs]
                weights += [g for _, g in pairs]
            found = torch.autograd.grad(outputs, [*parameters, *wanted], weights, allow_unused=True)
            del out, outputs
            for i, gradient in enumerate(found[: len(parameters)]):
                if gradient is None:
                    continue
                # Many small summands: never in less than fp32.
                gradient = gradient if gradient.dtype.itemsize >= 4 else gradient.float()
                totals[i] = gradient.clone() if totals[i] is None else totals[i].add_(gradient)  # type: ignore[union-attr]
            g_state = [
                torch.zeros_like(leaf) if gradient is None else gradient
                for leaf, gradient in zip(wanted, found[len(parameters) :], strict=True)
            ]
        call.starts = []
        return (
            None,
            *(None if t is None else t.to(p.dtype) for t, p in zip(totals, parameters, strict=True)),
        )


def _differentiable(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dtype.is_floating_point
