"""What `mba bench train` measures: forward, loss and backward of whole models, bf16 autocast on a GPU, fp32 parameters.

The peer of a language model is mamba_ssm's of the same shape, that of an audio U-Net the same network with mamba_ssm's
layers; complex and time-invariant layers have none, nor has a step that is streamed. Steps run in turn, and each side's
peak memory is taken without the other's model. Recorded steps are CUDA graphs on both sides (`train.cuda_graph`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.layers.mamba import MambaLayer
from mamba_bio_audio.layers.mamba2 import Mamba2Layer
from mamba_bio_audio.models.streamed import streamed_loss
from mamba_bio_audio.run.peer import PeerLoss, has_peer, peer_model, with_peer_mixers
from mamba_bio_audio.run.sample_speed import make_model
from mamba_bio_audio.run.timing import Row, beside, interleaved, timing_row
from mamba_bio_audio.training.graphed import GraphedChunks, GraphedLoss

# The layers of mamba_ssm beside which a language model can stand, as it takes them.
PEERS: dict[str, dict[str, Any]] = {"mamba": {}, "mamba2": {"layer": "Mamba2", "d_state": 64, "headdim": 64}}


class TrainCase(NamedTuple):
    """What a row measures.

    Attributes:
        model: layers x width of a language model such as 16x256, or a recipe of audio; behind a + its mixer.
        batch, length: of the tokens.
        chunk: positions of a chunk where the step is streamed.
    """

    model: str
    batch: int
    length: int
    chunk: int | None = None

    @classmethod
    def of(cls, text: str) -> TrainCase:
        """A case written as 16x256:1,1048576,131072."""
        name, _, numbers = text.rpartition(":")
        sizes = numbers.split(",")
        if not name or len(sizes) not in (2, 3) or not all(size.isdecimal() and int(size) for size in sizes):
            raise InputError(
                f"--case {text}: not MODEL:B,L or MODEL:B,L,CHUNK with whole numbers above 0, as 16x256:128,1024, "
                "16x256:1,1048576,131072 or audio/sc09@small:16,16000; MODEL may end in +MIXER, as 16x256+s4d"
            )
        return cls(name, *map(int, sizes))

    def __str__(self) -> str:
        """As the table shows it."""
        return f"{self.model}, ({self.batch}, {self.length})" + (f", streamed by {self.chunk}" if self.chunk else "")


_NAMED = {
    "cuda": (
        "12x128:256,1024 16x256:128,1024 16x256:1,131072 24x512:64,1024 24x768:8,2048 12x128:1,1048576 "
        "audio/sc09@small:16,16000 audio/youtubemix+mamba:64,8192 audio/youtubemix:64,8192 16x256:1,1048576 "
        "16x256:1,1048576,131072 16x256:1,1048576,32768"
    ),
    "cpu": "4x64:4,512 12x128:1,1024",
}
TRAIN_CASES = {device: [TrainCase.of(text) for text in named.split()] for device, named in _NAMED.items()}


def train(
    device: str,
    *,
    seconds: float = 3.0,
    cases: Sequence[TrainCase] | None = None,
    graph: bool = False,
    peer: str = "mamba",
    memory: float | None = None,
) -> Iterator[Row]:
    """A row for each case: time, positions/s, peak memory.

    Args:
        device: "cpu" or "cuda".
        seconds: for each row.
        cases: what to measure; by default `TRAIN_CASES`.
        graph: record steps, ours and the peer's.
        peer: which of `PEERS` stands beside language models of Mamba layers; beside those of Mamba-2, their own kind does.
        memory: GiB of the GPU that this process may take, by which layers choose what they keep; all by default.
    """
    if device == "cuda":
        whole = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(1.0 if memory is None else min(memory * 2**30 / whole, 1.0))
    for case in cases or TRAIN_CASES[device]:
        model, symbols = make_model(case.model)
        if case.chunk and model.streaming != "constant":
            raise InputError(
                f"--case {case.model}: its state grows with the length, so no step is streamed; leave out CHUNK"
            )
        if graph and case.chunk and case.length % case.chunk:
            raise InputError(
                f"{case}: recorded chunks have one length; choose one that divides {case.length}, or no --graph"
            )
        model = model.to(device)
        tokens = torch.randint(symbols[0], symbols[-1] + 1, (case.batch, case.length), device=device)
        step = step_of(model, tokens, case.chunk, graph=graph)
        theirs = _peer(case, model, tokens, graph, peer) if has_peer(device) else None
        timing, peaks = beside(step, theirs, device, seconds=seconds)
        more: Row = {"memory_gib": "" if memory is None else memory}
        more |= {"kept": _kept(model), "recorded": graph, "parameters": sum(p.numel() for p in model.parameters())}
        more["mtokens_per_s"] = f"{tokens.numel() / statistics.median(timing.ours) / 1e3:.4g}"
        if theirs is not None:
            more["peer_layer"] = "mamba2" if case.model.endswith("+mamba2") else peer
        if case.chunk:
            more["streaming_limit"] = f"{streaming_limit(model, tokens[:, : case.chunk], device):.3f}"
        yield timing_row(
            device, "train", "step", str(case), "bfloat16" if device == "cuda" else "float32", timing, **more | peaks
        )
        del model, step, theirs


def _kept(model: Any) -> str:
    """What the model's layers kept for backward on a GPU."""
    return ", ".join({str(kept): 0 for kept in model.keeper.chosen.values()})


def _peer(case: TrainCase, model: nn.Module, tokens: Tensor, graph: bool, peer: str) -> Callable[[], Any] | None:
    """Makes the step that stands beside a case; None where there is none."""
    layers: list[Any] = [module.mixer for module in model.modules() if hasattr(module, "mixer")]
    published = all(isinstance(x, MambaLayer) and x.config.selective is True and not x.config.complex for x in layers)
    dual = all(isinstance(x, Mamba2Layer) for x in layers)
    if case.chunk or not (published or dual):
        return None
    if "/" in case.model:
        if dual:
            return None
        return lambda: step_of(with_peer_mixers(make_model(case.model)[0]).to(tokens.device), tokens, graph=graph)
    depth, width = map(int, case.model.partition("+")[0].split("x"))

    def make() -> Callable[[], object]:
        theirs = peer_model(depth, width, **(_same_dual(layers[0]) if dual else PEERS[peer]))
        return partial(graphed_step(PeerLoss(theirs)), tokens) if graph else partial(logits_step, theirs, tokens)

    return make


def _same_dual(layer: Mamba2Layer) -> dict[str, Any]:
    """mamba_ssm's settings of a layer of the same shape."""
    config = layer.config
    head = layer.d_inner // layer.heads
    return {
        "layer": "Mamba2",
        "d_state": config.d_state,
        "headdim": head,
        "ngroups": config.groups,
        "expand": config.expand,
    }


def training_step(model: nn.Module, tokens: Tensor, chunk: int) -> None:
    """Forward, loss and backward of one of our models, in chunks; on a GPU in bf16 autocast."""
    device = tokens.device.type
    try:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            if model.streaming == "constant":
                loss_sum, _, _ = streamed_loss(model, tokens, tokens.roll(-1, 1), chunk=chunk)
            else:
                loss_sum = model(tokens, targets=tokens.roll(-1, 1), logits="none").loss_sum
        (loss_sum / tokens.numel()).backward()
    finally:
        model.zero_grad(set_to_none=True)


def step_of(model: nn.Module, tokens: Tensor, chunk: int | None = None, *, graph: bool = False) -> Callable[[], None]:
    """A training step, streamed by `chunk` or whole; with `graph` recorded, for which a chunk must divide the length."""
    if graph:
        return partial(graphed_step(model, chunk), tokens)
    return partial(training_step, model, tokens, chunk or tokens.shape[1])


def graphed_step(model: nn.Module, chunk: int | None = None) -> Callable[[Tensor], None]:
    """The same of a model, recorded as CUDA graphs (`train.cuda_graph`); its argument is the tokens."""
    loss_of = GraphedLoss(model) if chunk is None else GraphedChunks(model, chunk)

    def step(tokens: Tensor) -> None:
        targets = tokens.roll(-1, 1)
        try:
            with torch.autocast(tokens.device.type, torch.bfloat16, enabled=tokens.is_cuda):
                loss_sum, _ = loss_of(tokens, targets)
            (loss_sum / tokens.numel()).backward()
        finally:
            model.zero_grad(set_to_none=True)

    return step


def logits_step(model: nn.Module, tokens: Tensor) -> None:
    """Forward, loss and backward of a model that only gives logits, whole; on a GPU in bf16 autocast."""
    device = tokens.device.type
    try:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = model(tokens).logits
        nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens.roll(-1, 1).flatten()).backward()
    finally:
        model.zero_grad(set_to_none=True)


def streaming_limit(model: nn.Module, tokens: Tensor, device: str) -> float:
    """Speed of streaming over that of whole steps if nothing else cost time: it runs forward twice.

    1 / (1 + share), where the share is that of forward in a whole step on `tokens`.
    """

    def forward() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"), torch.no_grad():
            streamed_loss(model, tokens, tokens.roll(-1, 1), chunk=tokens.shape[1])

    # The "ratio" is that of the second to the first.
    share = interleaved(step_of(model, tokens), forward, device, pairs=7).ratio()[1]
    return 1 / (1 + share)
