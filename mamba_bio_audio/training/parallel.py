"""Exact training of one sequence on several devices: each layer passes its state on as soon as it is done.

A chunk of a sequence is cut into one span per rank. Rank r runs layer l on its span from the state in which rank r - 1
left that layer. Only this state crosses: the last inputs of the convolution and the SSM state, some tens of kilobytes.
Its gradient returns the same way. Ranks work at the same time, each one layer behind its predecessor:

    time      1    2    3    4   ..
    rank 0   l1   l2   l3   l4   ..        n layers on P ranks take n + P - 1 layer times forward, as many backward;
    rank 1        l1   l2   l3   ..        nothing is computed twice, and the sums are those of a single process
    rank 2             l1   l2   ..

With `train.stream_chunk` the last rank passes the state at the end of a chunk to the first rank's next chunk, so ranks
wait only at the very beginning and end, not at every chunk.

All messages of one layer form one buffer of bytes. Two process groups separate the two kinds of links (to the next rank;
from the last to the first), because on one communicator, which works in order, each could wait for the other. States that
go round from the last rank to the first are requested a whole chunk before they are needed, as soon as this rank has run
the layer: NCCL buffers a few messages that nobody has requested; after that its sends block on the GPU, together with
whatever shares their queue there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from mamba_bio_audio.errors import InputError


def is_main_process() -> bool:
    """Whether this is the first of the processes that train together, even before they are connected.

    torchrun sets RANK, SLURM sets SLURM_PROCID, and Lightning's own launcher sets LOCAL_RANK and NODE_RANK.
    """
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


class Link(NamedTuple):
    """The rank that states come from or go to."""

    peer: int  # global rank
    group: Any


class Message(NamedTuple):
    """A requested message, possibly still in transit: tensors, one after the other."""

    work: Any
    buffer: Tensor


class Visit:
    """One chunk of some rows on this rank: the links of its states, and what has been received and sent.

    Attributes:
        before, after: visits of the preceding and the following chunk on this rank, where their messages go round from
            the last rank to the first; `states` and `gradients` hold messages requested ahead of time, by layer.
        anchor: scalar in the graph of everything received and sent. Its gradient must be requested, or nothing would be
            sent or received in the backward pass below a frozen layer.
    """

    def __init__(self, source: Link | None, target: Link | None, offload: bool) -> None:
        self.source, self.target, self.offload = source, target, offload
        self.before: Visit | None = None
        self.after: Visit | None = None
        self.states: dict[int, Message] = {}
        self.gradients: dict[int, Message] = {}
        self.starts: dict[int, list[Tensor]] = {}
        self.sent: set[int] = set()
        self.ran: set[int] = set()
        self.anchor: Tensor | None = None

    def anchored(self, device: torch.device) -> Tensor:
        """The anchor, created when first needed."""
        if self.anchor is None:
            self.anchor = torch.zeros((), device=device, requires_grad=True)
        return self.anchor


class Relay:
    """Hooks on a model's layers that pass states from rank to rank during a visit, and otherwise do nothing.

    Args:
        model: model whose entire state is that of its layers.
        ranks: global ranks that share a sequence, in order.
        groups: process groups of these ranks: for links to the next rank, and for the link from the last to the first.
    """

    def __init__(self, model: nn.Module, ranks: list[int], groups: tuple[Any, Any]) -> None:
        self.ranks = ranks
        self.size = len(ranks)
        self.rank = ranks.index(dist.get_rank())
        self.groups = groups
        self.visit: Visit | None = None
        self.pending: list[tuple[Any, Tensor]] = []
        self.layers = _stateful_layers(model)
        for number, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(self._before(number), with_kwargs=True)
            layer.register_forward_hook(self._after(number))
        self._meet()

    def spans(self, length: int, chunk: int) -> list[tuple[int, int]]:
        """This rank's span of each chunk, about `chunk` positions or fewer; those of all ranks make up the sequence."""
        if length < self.size:
            raise InputError(
                f"train.sequence_parallel is {self.size}, but a sequence has only {length} positions; lower it"
            )
        parts = min(-(-length // (chunk * self.size)) * self.size, length // self.size * self.size)
        edges = [length * i // parts for i in range(parts + 1)]
        return [(edges[i], edges[i + 1]) for i in range(self.rank, parts, self.size)]

    def visits(self, chunks: int, offload: bool) -> list[Visit]:
        """The visits of all chunks of some rows, in order."""
        within, around = self.groups
        first, last = self.rank == 0, self.rank == self.size - 1
        visits: list[Visit] = []
        for number in range(chunks):
            source = target = None
            if not first:
                source = Link(self.ranks[self.rank - 1], within)
            elif number > 0:
                source = Link(self.ranks[-1], around)
            if not last:
                target = Link(self.ranks[self.rank + 1], within)
            elif number < chunks - 1:
                target = Link(self.ranks[0], around)
            visits.append(Visit(source, target, offload))
        for earlier, later in pairwise(visits):
            # States go round to the first rank, gradients to the last.
            if first:
                earlier.after = later
            if last:
                later.before = earlier
        return visits

    def check(self, visit: Visit) -> None:
        """Check that every layer ran through its hooks; otherwise its state was not passed on."""
        missing = set(range(len(self.layers))) - visit.ran
        if missing:
            kind = type(self.layers[min(missing)]).__name__
            raise RuntimeError(f"a {kind} was not called as a module, so its state was not passed from rank to rank")

    @contextmanager
    def at(self, visit: Visit) -> Iterator[None]:
        """Context in which the model runs, forward or backward, on this chunk."""
        self.visit = visit
        try:
            yield
        finally:
            self.visit = None

    def flush(self) -> None:
        """Wait until everything has been sent."""
        for work, _ in self.pending:
            work.wait()
        self.pending.clear()

    def send(self, link: Link, tensors: list[Tensor]) -> None:
        """Send without waiting."""
        buffer = torch.cat([t.detach().contiguous().reshape(-1).view(torch.uint8) for t in tensors])
        work = dist.isend(buffer, link.peer, group=link.group)
        # The buffer must stay alive until it has been sent.
        self.pending.append((work, buffer))

    def ask(self, link: Link, like: list[Tensor]) -> Message:
        """Request tensors of the shapes and dtypes of `like`, without waiting."""
        buffer = torch.empty(sum(_sizes(like)), dtype=torch.uint8, device=like[0].device)
        return Message(dist.irecv(buffer, link.peer, group=link.group), buffer)

    def receive(self, link: Link, like: list[Tensor], asked: Message | None = None) -> list[Tensor]:
        """Receive tensors of the shapes and dtypes of `like`; `asked` is the message if it was requested earlier."""
        message = asked or self.ask(link, like)
        message.work.wait()
        parts = message.buffer.split(_sizes(like))
        # Each in its own memory, aligned for its dtype.
        return [part.clone().view(t.dtype).view(t.shape) for part, t in zip(parts, like, strict=True)]

    def _before(self, number: int) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            visit = self.visit
            if visit is None or visit.source is None:
                return None
            x = args[0]
            narrow = torch.is_autocast_enabled(x.device.type)
            dtype = torch.get_autocast_dtype(x.device.type) if narrow else x.dtype
            like, structure = tree_flatten(layer.init_state(len(x), x.device, dtype))  # type: ignore[operator]
            if not all(isinstance(leaf, Tensor) for leaf in like):
                return None
            if number not in visit.starts:
                found = self.receive(visit.source, like, visit.states.pop(number, None))
                visit.starts[number] = [t.cpu() for t in found] if visit.offload else found
            start = [t.to(x.device) for t in visit.starts[number]]
            if torch.is_grad_enabled():
                anchor = visit.anchored(x.device)
                start = list(_Received.apply(self, visit, number, anchor, *start))  # type: ignore[no-untyped-call]
            kwargs.pop("state", None)
            return (x, tree_unflatten(start, structure)), kwargs

        return hook

    def _after(self, number: int) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, Any]) -> Any:
            visit = self.visit
            if visit is not None:
                visit.ran.add(number)
            if visit is None or visit.target is None:
                return None
            y, state = output
            leaves, structure = tree_flatten(state)
            if not all(isinstance(leaf, Tensor) for leaf in leaves):
                return None
            if number not in visit.sent:
                visit.sent.add(number)
                self.send(visit.target, leaves)
                if visit.after is not None:
                    assert visit.after.source is not None
                    visit.after.states[number] = self.ask(visit.after.source, leaves)
            if torch.is_grad_enabled():
                anchor = visit.anchored(y.device)
                leaves = list(_Sent.apply(self, visit, number, anchor, *leaves))  # type: ignore[no-untyped-call]
            return y, tree_unflatten(leaves, structure)

        return hook

    def _meet(self) -> None:
        """Use every link once, in rank order, because backends connect, and block, at the first message."""
        # Only a parameter tells the device here.
        first = next(p for layer in self.layers for p in layer.parameters())
        token = [torch.zeros(1, device=first.device)]
        within, around = self.groups
        if self.rank > 0:
            self.receive(Link(self.ranks[self.rank - 1], within), token)
        if self.rank < self.size - 1:
            self.send(Link(self.ranks[self.rank + 1], within), token)
        if self.rank == self.size - 1:
            self.send(Link(self.ranks[0], around), token)
        if self.rank == 0:
            self.receive(Link(self.ranks[-1], around), token)
        self.flush()


def _sizes(tensors: list[Tensor]) -> list[int]:
    return [t.numel() * t.element_size() for t in tensors]


class _Received(torch.autograd.Function):
    """Identity whose backward sends the gradients to where the values came from."""

    @staticmethod
    def forward(ctx: Any, relay: Relay, visit: Visit, number: int, anchor: Tensor, *tensors: Tensor) -> Any:
        ctx.relay, ctx.visit, ctx.number = relay, visit, number
        return tuple(t.clone() for t in tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        relay, visit = ctx.relay, ctx.visit
        relay.send(visit.source, list(gradients))
        if visit.before is not None:
            visit.before.gradients[ctx.number] = relay.ask(visit.before.target, list(gradients))
        return None, None, None, gradients[0].new_zeros((), dtype=torch.float32), *(None for _ in gradients)


class _Sent(torch.autograd.Function):
    """Identity whose backward receives the gradients from where the values went."""

    @staticmethod
    def forward(ctx: Any, relay: Relay, visit: Visit, number: int, anchor: Tensor, *tensors: Tensor) -> Any:
        ctx.relay, ctx.visit, ctx.number = relay, visit, number
        return tuple(t.clone() for t in tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        relay, visit = ctx.relay, ctx.visit
        found = relay.receive(visit.target, list(gradients), visit.gradients.pop(ctx.number, None))
        zero = gradients[0].new_zeros((), dtype=torch.float32)
        return None, None, None, zero, *(a + b for a, b in zip(found, gradients, strict=True))


def _stateful_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that carry a state, in the order in which the model runs them.

    Raises:
        InputError: part of the model's state does not belong to a layer, or grows.
    """
    stateful = [m for m in model.modules() if hasattr(m, "init_state") and hasattr(m, "streaming")]
    layers = [m for m in stateful if not any(child in stateful for child in m.modules() if child is not m)]

    def leaves(module: Any) -> int:
        return len(tree_flatten(module.init_state(1))[0])

    if getattr(model, "streaming", "none") != "constant" or leaves(model) != sum(map(leaves, layers)):
        raise InputError(
            f"train.sequence_parallel passes only states of layers, of constant size, from rank to rank; "
            f"{type(model).__name__} keeps a state of its own besides, or one that grows; set train.sequence_parallel=1"
        )
    # An MLP has nothing to pass.
    return [layer for layer in layers if leaves(layer)]


def make_relay(model: nn.Module, size: int) -> Relay | None:
    """Make this process's relay; None if a sequence is on one device. All processes must call this together."""
    if size == 1:
        return None
    for first in range(0, dist.get_world_size(), size):
        ranks = list(range(first, first + size))
        # Every process must take part in creating every group.
        groups = dist.new_group(ranks), dist.new_group(ranks)
        if dist.get_rank() in ranks:
            mine = ranks, groups
    return Relay(model, *mine)
