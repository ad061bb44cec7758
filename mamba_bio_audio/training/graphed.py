"""Forward and backward of training steps of one shape, whole or of one chunk, recorded once as CUDA graphs.

A step of a small model is a thousand short kernels, and the host may need longer to launch them than the GPU to run
them. A graph launches them all at once. Loss and gradients lie at fixed addresses; one autograd function over the
parameters gives them out, so accumulation, clipping, hooks and DistributedDataParallel see one ordinary gradient per
parameter and step, as from `models/streamed.py`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.kernels.graphs import recorded_in
from mamba_bio_audio.models.streamed import has_dropout


class GraphedLoss:
    """Summed loss and count of `model(tokens, targets=..., logits="none")`, differentiable in its parameters.

    One shape at a time: the first batch of a shape is run as it is, the second is recorded, and as long as the shape
    stays, it and later ones are replayed. All three, and a CPU, where nothing is recorded, round alike.

    Args:
        most_memory: no recording where the steps so far took more than this share of the GPU's memory, or more than is
            free there now: the graph keeps a step's memory to itself, beside what validation and optimiser take.

    Raises:
        InputError: the model draws at random, which a graph would repeat.
    """

    def __init__(self, model: nn.Module, *, most_memory: float = 1.0) -> None:
        if has_dropout(model):
            raise InputError("train.cuda_graph cannot record a model with dropout: set it to false")
        self.model = model
        self.most_memory = most_memory
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.key: Any = None
        self.recorded: Callable[[], None] | None = None
        self.loss_sum: Tensor | None = None
        self.count: Tensor | None = None
        self.gradients: tuple[Tensor | None, ...] | None = None
        self.number = 0  # of calls: the fixed addresses hold the last one's

    def __call__(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(loss_sum, count) as of the model."""
        kind = tokens.device.type
        self.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        # What moved a weight would leave the graph with its old address.
        addresses = tuple(t.data_ptr() for t in (*self.model.parameters(), *self.model.buffers()))
        key = (tokens.shape, tokens.dtype, targets.shape, targets.dtype, tokens.device, self.autocast, addresses)
        if key != self.key:
            # The memory of the graph before goes with it.
            self.key, self.recorded = key, None
            self._forget()
        elif self.recorded is None and self._fits(tokens.device):
            self.tokens, self.targets = tokens.clone(), targets.clone()
            self.recorded = self._record()
        if self.recorded is None:
            self.tokens, self.targets = tokens, targets
        else:
            self.tokens.copy_(tokens)
            self.targets.copy_(targets)
        return _Step.apply(self, *self.parameters.values())  # type: ignore[no-untyped-call, no-any-return]

    def _forget(self) -> None:
        """Let go of everything that belongs to a shape."""
        self.loss_sum = self.count = self.gradients = None

    def _fits(self, device: torch.device) -> bool:
        if self.most_memory >= 1 or device.type != "cuda":
            return True
        taken, most = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        free, total = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - taken
        return most <= self.most_memory * total and 1.1 * (most - taken) <= free

    def run(self) -> None:
        """Loss and gradients of what `tokens` and `targets` hold."""
        weights = self._weights()
        out = self._call(weights, self.tokens, self.targets)
        gradients = self._gradients([out.loss_sum], list(weights.values()))
        self.loss_sum, self.count, self.gradients = out.loss_sum.detach(), out.count, gradients

    def _weights(self) -> dict[str, Tensor]:
        """Aliases of the parameters.

        Autograd waits for the stream on which a parameter was last used before it gives it a gradient, and a stream that
        records must wait for no other.
        """
        return {name: parameter.detach().requires_grad_() for name, parameter in self.parameters.items()}

    def _call(self, weights: dict[str, Tensor], tokens: Tensor, targets: Tensor, state: Any = None) -> Any:
        """The model's output under the caller's autocast, with its graph."""
        device, dtype, enabled = self.autocast
        given = {"targets": targets, "logits": "none"}
        # A cast that autocast keeps would be kept from one replay to the next.
        with torch.enable_grad(), torch.autocast(device, dtype, enabled=enabled, cache_enabled=False):
            return torch.func.functional_call(
                self.model, weights, (tokens,) if state is None else (tokens, state), given
            )

    def _gradients(
        self, outputs: list[Tensor], inputs: list[Tensor], weights: list[Tensor] | None = None
    ) -> tuple[Tensor | None, ...]:
        with torch.autocast(self.autocast[0], enabled=False):
            return torch.autograd.grad(outputs, inputs, weights, allow_unused=True)

    def _record(self) -> Callable[[], None]:
        if not self.tokens.is_cuda:
            return self.run
        device = self.tokens.device
        # Libraries take their memory in the first run on a stream, which must not be part of the graph.
        beside = torch.cuda.Stream(device)
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(beside):
            self.run()
        torch.cuda.current_stream(device).wait_stream(beside)
        self._forget()
        # A graph that is destroyed while another one is recorded would spoil it.
        gc.collect()
        # The graph has memory of its own.
        torch.cuda.empty_cache()
        return self._recordings()

    def _recordings(self) -> Callable[[], None]:
        return recording(self.run)


class GraphedChunks(GraphedLoss):
    """The same of a step that is streamed (`models/streamed.py`): two graphs, a chunk forward, and one there and back.

    A step of S chunks replays the first S - 1 times and keeps the states between chunks, then the second S times from
    the last chunk to the first, so that no chunk's activations outlive it. Every chunk has the same length.

    Args:
        model: of `constant` layers.
        chunk: positions of a chunk; it divides the length of all tokens.
        most_memory: as of `GraphedLoss`.

    Raises:
        InputError: the model draws at random.
    """

    def __init__(self, model: nn.Module, chunk: int, *, most_memory: float = 1.0) -> None:
        super().__init__(model, most_memory=most_memory)
        self.chunk = chunk
        self.buffers: _Buffers | None = None

    def _forget(self) -> None:
        super()._forget()
        self.buffers = None

    def run(self) -> None:
        """Loss and gradients of what `tokens` and `targets` hold."""
        self._run(self._forward, self._there_and_back)

    def _recordings(self) -> Callable[[], None]:
        self.buffers = self._make_buffers()
        # They never run at once, and leave nothing behind but in the buffers.
        pool = torch.cuda.graph_pool_handle()
        forward, back = recording(self._forward, pool), recording(self._there_and_back, pool)
        return lambda: self._run(forward, back)

    def _run(self, forward: Callable[[], None], back: Callable[[], None]) -> None:
        if self.buffers is None:
            self.buffers = self._make_buffers()
        b = self.buffers
        chunks = self.tokens.shape[1] // self.chunk
        for t in (*b.state, *b.g_state, *(s for s in b.sums if s is not None), b.loss_sum, b.count):
            t.zero_()
        starts = []
        for number in range(chunks):
            starts.append([t.clone() for t in b.state])
            if number < chunks - 1:
                self._take(number)
                forward()
        for number in reversed(range(chunks)):
            before = starts.pop()
            if before:
                torch._foreach_copy_(b.state, before)
            self._take(number)
            back()
            if number == chunks - 1:
                b.loss_sum.add_(b.last_loss)
                b.count.add_(b.last_count)
        self.loss_sum, self.count, self.gradients = b.loss_sum, b.count, tuple(b.sums)

    def _take(self, number: int) -> None:
        assert self.buffers is not None
        span = slice(number * self.chunk, (number + 1) * self.chunk)
        self.buffers.tokens.copy_(self.tokens[:, span])
        self.buffers.targets.copy_(self.targets[:, span])

    def _make_buffers(self) -> _Buffers:
        """Where a chunk's inputs and results lie, from the state that the first chunk leaves."""
        tokens, targets = (t[:, : self.chunk].clone() for t in (self.tokens, self.targets))
        weights = self._weights()
        out = self._call(weights, tokens, targets)
        leaves, structure = tree_flatten(out.state)
        ends = [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]
        found = self._gradients([out.loss_sum], list(weights.values()))
        # The terms are many and small, so never in less than fp32.
        sums = [
            None if g is None else torch.zeros_like(g, dtype=torch.promote_types(g.dtype, torch.float32)) for g in found
        ]
        loss = out.loss_sum.detach()
        return _Buffers(
            tokens, targets, [torch.zeros_like(leaf) for leaf in ends],
            [None if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure,
            [torch.zeros_like(leaf) for leaf in ends if leaf.is_floating_point()],
            sums, torch.zeros_like(loss), torch.zeros_like(out.count), torch.zeros_like(loss), torch.zeros_like(out.count),
        )  # fmt: skip

    def _state(self, tensors: list[Tensor]) -> Any:
        assert self.buffers is not None
        left = iter(tensors)
        leaves = [next(left) if leaf is None else leaf for leaf in self.buffers.rest]
        return tree_unflatten(leaves, self.buffers.structure)

    def _forward(self) -> None:
        """A chunk without gradients: adds its loss, and puts the state behind it in the place of that before."""
        b = self.buffers
        assert b is not None
        device, dtype, enabled = self.autocast
        with torch.no_grad(), torch.autocast(device, dtype, enabled=enabled, cache_enabled=False):
            out = self.model(b.tokens, self._state(b.state), targets=b.targets, logits="none")
        b.loss_sum.add_(out.loss_sum)
        b.count.add_(out.count)
        if b.state:
            torch._foreach_copy_(b.state, _tensors(out.state))

    def _there_and_back(self) -> None:
        """A chunk with gradients, from the state before it: adds those of the weights, and replaces those of the state."""
        b = self.buffers
        assert b is not None
        weights = self._weights()
        before = [t.detach().requires_grad_(t.is_floating_point()) for t in b.state]
        out = self._call(weights, b.tokens, b.targets, self._state(before))
        ends = [t for t in _tensors(out.state) if t.is_floating_point()]
        pairs = [(out.loss_sum, torch.ones_like(out.loss_sum)), *zip(ends, b.g_state, strict=True)]
        pairs = [(end, g) for end, g in pairs if end.requires_grad]
        wanted = [t for t in before if t.requires_grad]
        found = self._gradients([end for end, _ in pairs], [*weights.values(), *wanted], [g for _, g in pairs])
        there = [(s, g) for s, g in zip(b.sums, found[: len(b.sums)], strict=True) if s is not None and g is not None]
        if there:
            torch._foreach_add_([s for s, _ in there], [g.to(s.dtype) for s, g in there])
        for place, g in zip(b.g_state, found[len(b.sums) :], strict=True):
            place.zero_() if g is None else place.copy_(g)
        b.last_loss.copy_(out.loss_sum.detach())
        b.last_count.copy_(out.count)


class _Buffers(NamedTuple):
    """What the graphs of a chunk read and write, at fixed addresses."""

    tokens: Tensor
    targets: Tensor
    state: list[Tensor]  # tensors of the state
    rest: list[Any]  # its leaves that are none, and None in the places of tensors
    structure: Any
    g_state: list[Tensor]  # gradients of those that are floating-point
    sums: list[Tensor | None]  # of the weights' gradients, fp32 or wider
    loss_sum: Tensor
    count: Tensor  # type: ignore[assignment]
    last_loss: Tensor  # of the chunk that went there and back
    last_count: Tensor


def _tensors(state: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(state)[0] if isinstance(leaf, Tensor)]


def recording(run: Callable[[], None], pool: Any = None) -> Callable[[], None]:
    """Records `run`, which ran before, as a CUDA graph; what it returns replays it.

    `pool` is the memory that it may share with other graphs; by default it has its own.
    """
    graph = torch.cuda.CUDAGraph()
    with recorded_in(graph, pool):
        run()
    return graph.replay


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: GraphedLoss, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        (step.recorded or step.run)()
        assert step.loss_sum is not None
        assert step.count is not None
        step.number += 1
        ctx.step, ctx.number = step, step.number
        count = step.count.clone()
        ctx.mark_non_differentiable(count)
        return step.loss_sum.clone(), count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_loss: Tensor, _: Any) -> Any:
        step: GraphedLoss = ctx.step
        if step.number != ctx.number:
            raise RuntimeError("the gradients of a recorded step are gone once the next one ran; go back before it")
        assert step.gradients is not None
        there = [gradient for gradient in step.gradients if gradient is not None]
        scaled = iter(torch._foreach_mul(there, g_loss))
        return None, *(None if gradient is None else next(scaled) for gradient in step.gradients)
