"""Forward and backward of training steps of one shape, recorded once as a CUDA graph.

A step of a small model is a thousand short kernels, and the host may need longer to launch them than the GPU to run
them. A graph launches them all at once. Loss and gradients lie at fixed addresses; one autograd function over the
parameters gives them out, so accumulation, clipping, hooks and DistributedDataParallel see one ordinary gradient per
parameter and step, as from `models/streamed.py`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mamba_bio_audio.errors import InputError
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
            self.loss_sum = self.count = self.gradients = None
        elif self.recorded is None and self._fits(tokens.device):
            self.tokens, self.targets = tokens.clone(), targets.clone()
            self.recorded = self._record()
        if self.recorded is None:
            self.tokens, self.targets = tokens, targets
        else:
            self.tokens.copy_(tokens)
            self.targets.copy_(targets)
        return _Step.apply(self, *self.parameters.values())  # type: ignore[no-untyped-call, no-any-return]

    def _fits(self, device: torch.device) -> bool:
        if self.most_memory >= 1 or device.type != "cuda":
            return True
        taken, most = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        free, total = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - taken
        return most <= self.most_memory * total and 1.1 * (most - taken) <= free

    def run(self) -> None:
        """Loss and gradients of what `tokens` and `targets` hold."""
        device, dtype, enabled = self.autocast
        # Aliases, because autograd waits for the stream on which a parameter was last used before it gives it a
        # gradient, and a stream that records must wait for no other.
        weights = {name: parameter.detach().requires_grad_() for name, parameter in self.parameters.items()}
        with torch.enable_grad():
            # A cast that autocast keeps would be kept from one replay to the next.
            with torch.autocast(device, dtype, enabled=enabled, cache_enabled=False):
                given = {"targets": self.targets, "logits": "none"}
                out = torch.func.functional_call(self.model, weights, (self.tokens,), given)
            with torch.autocast(device, enabled=False):
                gradients = torch.autograd.grad(out.loss_sum, list(weights.values()), allow_unused=True)
        self.loss_sum, self.count, self.gradients = out.loss_sum.detach(), out.count, gradients

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
        self.loss_sum = self.count = self.gradients = None
        # A graph that is destroyed while another one is recorded would spoil it.
        gc.collect()
        # The graph has memory of its own.
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        gc.disable()
        try:
            # Other threads, such as a loader's that pins memory, go on meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.run()
        finally:
            gc.enable()
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
