"""The decoding loop: a fixed number of steps over tensors that stay in place, on a GPU as one CUDA graph.

One step feeds the last symbol, takes the new state and draws the next symbol. Launching its kernels one by one costs
more than running them; a CUDA graph launches a whole stretch at once. Pools run their coarse tiers only at some
samples, which depends on the position alone: a stretch is a multiple of the pools' product, so that every replay begins
at the same phase and the graph has no branches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

# logits (R, V) and one draw per row (R,) to symbols (R,) and their log-probabilities (R,)
Choose = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_STEPS = 16
_PREFILL = 1 << 16


def stretch(model: nn.Module) -> int:
    """Steps that are captured together: a multiple of the model's period, 16 or more."""
    period = int(getattr(getattr(model, "model_config", None), "period", 1))
    return -(-_STEPS // period) * period


def prefill(model: nn.Module, symbols: Tensor, state: Any) -> Any:
    """The state after symbols (R, P), all positions in parallel, a long prompt in pieces of bounded memory."""
    for piece in symbols.split(_PREFILL, dim=1):
        state = model(piece, state, logits="last").state
    return state


def steps(model: nn.Module, choose: Choose, last: Tensor, state: Any, draws: Tensor) -> tuple[Tensor, Tensor, Any]:
    """As many steps as there are rows of `draws` (n, R).

    Returns:
        Symbols (n, R), their log-probabilities (n, R), and the state before the last symbol.
    """
    symbols, scores = [], []
    for draw in draws:
        output = model(last, state, logits="last")
        state = output.state
        symbol, score = choose(output.logits[:, -1], draw)
        last = symbol[:, None]
        symbols.append(symbol)
        scores.append(score)
    return torch.stack(symbols), torch.stack(scores), state


class FixedSteps:
    """A stretch of steps whose inputs and outputs stay in place; replayed as one CUDA graph on a GPU.

    Args:
        model, choose: as of `steps`.
        last: (R, 1), the last symbols.
        state: of the model before them.
        count: steps per call; a multiple of the model's period.
    """

    def __init__(self, model: nn.Module, choose: Choose, last: Tensor, state: Any, count: int) -> None:
        self.model, self.choose, self.count = model, choose, count
        leaves, self.structure = tree_flatten(state)
        self.leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.last = last.clone()
        self.draws = torch.zeros(count, len(last), dtype=torch.float64, device=last.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        if last.is_cuda:
            self._capture()

    @property
    def state(self) -> Any:
        """The model's state before `last`, as it will be until the next call."""
        return tree_unflatten(self.leaves, self.structure)

    def __call__(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """The next `count` steps with draws (count, R): symbols and log-probabilities (count, R)."""
        self.draws.copy_(draws)
        if self.graph is None:
            self._advance()
        else:
            self.graph.replay()
        return self.symbols.clone(), self.scores.clone()

    def _advance(self) -> None:
        self.symbols, self.scores, state = steps(self.model, self.choose, self.last, self.state, self.draws)
        self.last.copy_(self.symbols[-1][:, None])
        for leaf, new in zip(self.leaves, tree_flatten(state)[0], strict=True):
            if isinstance(leaf, Tensor):
                leaf.copy_(new)
            else:
                # The phase: a stretch is a multiple of the period.
                assert leaf == new

    def _capture(self) -> None:
        """Compile and warm up outside of the graph, then record it; neither moves the state."""
        kept = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in (self.last, *self.leaves)]
        beside = torch.cuda.Stream(self.last.device)
        beside.wait_stream(torch.cuda.current_stream(self.last.device))
        with torch.cuda.stream(beside):
            for _ in range(2):
                self._advance()
        torch.cuda.current_stream(self.last.device).wait_stream(beside)
        for leaf, before in zip((self.last, *self.leaves), kept, strict=True):
            if isinstance(leaf, Tensor):
                leaf.copy_(before)
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as a loader's that pins memory, go on meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._advance()
        self.graph = graph
