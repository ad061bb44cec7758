"""The decoding loop: steps over tensors that stay in place, on a GPU as CUDA graphs.

One step feeds the last symbol, takes the new state and draws the next symbol. Launching its kernels one by one costs
more than running them; a CUDA graph launches a whole stretch at once. Pools run their coarse tiers only at some
samples, which depends on the position alone: a stretch is a multiple of the pools' product, so that every replay begins
at the same phase and the graph has no branches. Steps that do not fill a stretch are graphs of one step, one for each phase.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from mamba_bio_audio.inference.streaming import positions
from mamba_bio_audio.kernels.graphs import recorded_in
from mamba_bio_audio.kernels.made_once import Made, weights_stay

# logits (R, V) and one draw per row (R,) to symbols (R,) and their log-probabilities (R,)
Choose = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_STEPS = 16


def stretch(model: nn.Module) -> int:
    """Steps that are captured together: a multiple of the model's period, 16 or more."""
    period = int(getattr(getattr(model, "model_config", None), "period", 1))
    return -(-_STEPS // period) * period


def prefill(model: nn.Module, symbols: Tensor, state: Any, told: Callable[[int, int], None] | None = None) -> Any:
    """The state after symbols (R, P), all positions in parallel, a long prompt in pieces of bounded memory.

    Args:
        model, symbols, state: as of `steps`.
        told: called with (symbols of a row that were read, P) after every piece.
    """
    read = 0
    for piece in symbols.split(max(1, positions(symbols.device.type) // len(symbols)), dim=1):
        state = model(piece, state, logits="last").state
        read += piece.shape[1]
        if told is not None:
            told(read, symbols.shape[1])
    return state


def steps(model: nn.Module, choose: Choose, last: Tensor, state: Any, draws: Tensor) -> tuple[Tensor, Tensor, Any]:
    """As many steps as there are rows of `draws` (n, R).

    Args:
        model: in evaluation mode.
        choose: draws symbols.
        last: (R, 1), the last symbols.
        state: of the model before them; None at the start of a sequence.
        draws: uniform numbers.

    Returns:
        Symbols (n, R), their log-probabilities (n, R), and the state before the last symbol.
    """
    symbols, scores = [], []
    with weights_stay():
        for draw in draws:
            output = model(last, state, logits="last")
            state = output.state
            symbol, score = choose(output.logits[:, -1], draw)
            last = symbol[:, None]
            symbols.append(symbol)
            scores.append(score)
    return torch.stack(symbols), torch.stack(scores), state


class _Graph(NamedTuple):
    """A recorded graph, and where its inputs and outputs lie beside last symbols and state."""

    graph: torch.cuda.CUDAGraph
    draws: Tensor  # (n, R)
    symbols: Tensor  # (n, R)
    scores: Tensor  # (n, R)
    after: list[Any]  # leaves of the state behind it; those that are not tensors differ from the ones before


class GraphSteps:
    """Runs `steps` as CUDA graphs, each of which is recorded when it is first needed; on a CPU without.

    Last symbols and state lie at fixed addresses. Graphs serve every call with as many rows and the same weights; others
    are recorded anew. What operations make of weights alone is made once, beside the graphs.

    Args:
        model: with a state of constant shape.
        choose: as of `steps`.
    """

    def __init__(self, model: nn.Module, choose: Choose) -> None:
        self.model, self.choose, self.stretch = model, choose, stretch(model)
        self.serves: Any = None
        self.graphs: dict[Any, _Graph] = {}
        self.made: Made = {}

    def __call__(self, last: Tensor, state: Any, draws: Tensor) -> tuple[Tensor, Tensor, Any]:
        """As `steps`, with arguments and results of the caller's own."""
        if state is None:
            state = self.model.init_state(len(last), last.device, next(self.model.parameters()).dtype)  # type: ignore[operator]
        kept = torch.is_autocast_cache_enabled()
        # A cast that autocast keeps would be gone at the next replay.
        torch.set_autocast_cache_enabled(False)
        try:
            with weights_stay(self.made):
                return self._run(last, state, draws)
        finally:
            torch.set_autocast_cache_enabled(kept)

    def _run(self, last: Tensor, state: Any, draws: Tensor) -> tuple[Tensor, Tensor, Any]:
        self._begin(last, state)
        symbols, scores = [], []
        at = 0
        while at < len(draws):
            count = self.stretch if len(draws) - at >= self.stretch else 1
            advance = self._replay if last.is_cuda else self._advance
            some_symbols, some_scores, self.leaves = advance(draws[at : at + count])
            symbols.append(some_symbols)
            scores.append(some_scores)
            at += count
        leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return torch.cat(symbols), torch.cat(scores), tree_unflatten(leaves, self.structure)

    def _begin(self, last: Tensor, state: Any) -> None:
        """Put last symbols and state in their places; make places where these do not fit."""
        leaves, self.structure = tree_flatten(state)
        shapes = [leaf.shape for leaf in leaves if isinstance(leaf, Tensor)]
        weights = (*self.model.parameters(), *self.model.buffers())
        versions = [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights]
        serves = (last.shape, shapes, versions)
        if serves != self.serves:
            # The memory of the graphs before goes with them.
            self.graphs.clear()
            self.made.clear()
            self.serves, self.last = serves, last.clone()
            # Places have the layout and the dtypes of what the model gives.
            self.places = [leaf.clone() if isinstance(leaf, Tensor) else None for leaf in self._warm_up(last, state)]
        self.last.copy_(last)
        self.leaves = self._placed(leaves)

    def _placed(self, leaves: list[Any]) -> list[Any]:
        """Leaves of a state, tensors copied to their places."""
        return [leaf if place is None else place.copy_(leaf) for place, leaf in zip(self.places, leaves, strict=True)]

    def _warm_up(self, last: Tensor, state: Any) -> list[Any]:
        """Leaves of a state behind steps that compile kernels and let libraries take their memory, outside of any graph."""
        # Every phase has operations of its own.
        period = int(getattr(getattr(self.model, "model_config", None), "period", 1))
        draws = torch.zeros(period, len(last), dtype=torch.float64, device=last.device)
        if not last.is_cuda:
            return tree_flatten(steps(self.model, self.choose, last, state, draws)[2])[0]
        beside = torch.cuda.Stream(last.device)
        beside.wait_stream(torch.cuda.current_stream(last.device))
        with torch.cuda.stream(beside):
            leaves = tree_flatten(steps(self.model, self.choose, last, state, draws)[2])[0]
        torch.cuda.current_stream(last.device).wait_stream(beside)
        return leaves

    def _replay(self, draws: Tensor) -> tuple[Tensor, Tensor, list[Any]]:
        """As `_advance`, by a graph."""
        key = (len(draws), *(leaf for leaf in self.leaves if not isinstance(leaf, Tensor)))
        if key not in self.graphs:
            self.graphs[key] = self._record(draws.clone())
        recorded = self.graphs[key]
        recorded.draws.copy_(draws)
        recorded.graph.replay()
        # Copies, because the next replay overwrites these.
        return recorded.symbols.clone(), recorded.scores.clone(), recorded.after

    def _record(self, draws: Tensor) -> _Graph:
        graph = torch.cuda.CUDAGraph()
        with recorded_in(graph):
            return _Graph(graph, draws, *self._advance(draws))

    def _advance(self, draws: Tensor) -> tuple[Tensor, Tensor, list[Any]]:
        """Steps from and to the fixed places: symbols, log-probabilities, and the leaves of the state behind them."""
        state = tree_unflatten(self.leaves, self.structure)
        symbols, scores, state = steps(self.model, self.choose, self.last, state, draws)
        self.last.copy_(symbols[-1][:, None])
        return symbols, scores, self._placed(tree_flatten(state)[0])
