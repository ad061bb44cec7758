"""What a language model of Mamba layers keeps for its backward on a GPU: more where memory is plentiful, which is faster.

A position and layer of M model channels, E inner channels and N states keeps the residual stream (4 M bytes), x_proj's
output and the states of every S-th position (4 E N / S). What it may keep besides are the output of the norm (2 M in bf16),
which can be made again from the stream, and the inputs of convolution and scan (8 E), which can be made again from that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from mamba_bio_audio.layers.mamba import MambaLayer
from mamba_bio_audio.ops.keeping import piece_of

_SHARE = 0.9  # of the free memory that is taken
# Bytes of a step beside what layers keep: a position and model channel (loss, gradients of the stream), and a position and
# inner channel of the piece that a backward is working off. By peaks of seven steps on an H200.
_BESIDE = 8
_WORKING = 26


class Kept(NamedTuple):
    """One choice.

    Attributes:
        steps: between kept states.
        norms: whether outputs of norms are kept.
        inputs: whether the inputs of convolution and scan are.
    """

    steps: int
    norms: bool = False
    inputs: bool = False

    def __str__(self) -> str:
        """In words."""
        parts = [f"a state every {self.steps} positions", *["outputs of norms"] * self.norms]
        return ", ".join([*parts, *["inputs of convolution and scan"] * self.inputs])


# From what is fastest to what is smallest.
CHOICES = (Kept(16, True, True), Kept(16, True), Kept(32, True), Kept(32), Kept(64))
# The same where outputs of norms are always kept.
WITH_NORMS = tuple(dict.fromkeys(kept._replace(norms=True) for kept in CHOICES))


Layers = Sequence[tuple[MambaLayer, float]]
"""Real and selective layers, and at which share of the positions each has a step."""


def choose(layers: Layers, positions: int, itemsize: int, free: int, choices: Sequence[Kept] = CHOICES) -> Kept:
    """The first choice that fits, otherwise the last.

    Args:
        layers: of the model.
        positions: of all rows.
        itemsize: bytes of an activation.
        free: bytes.
        choices: from what is fastest to what is smallest.
    """
    return next((kept for kept in choices if needed(layers, positions, itemsize, kept) <= _SHARE * free), choices[-1])


def needed(layers: Layers, positions: int, itemsize: int, kept: Kept) -> float:
    """Bytes of a training step, without weights."""
    total = max((layer.d_model * share for layer, share in layers), default=0) * _BESIDE
    pieces = (min(positions * share, piece_of(layer.d_inner)) * layer.d_inner for layer, share in layers)
    working = max(pieces, default=0) * _WORKING
    for layer, share in layers:
        states, width, inner = layer.config.d_state, layer.d_model, layer.d_inner
        own = 4 * width + itemsize * (layer.dt_rank + 2 * states) + 4 * inner * states / kept.steps
        total += share * (own + itemsize * (width * kept.norms + 4 * inner * kept.inputs))
    return positions * total + working


class Keeper:
    """Chooses for one model, by the memory that is free when a size is met first.

    The same for all later steps of a size, which would round otherwise.

    Args:
        choices: those that the model can keep to.

    Attributes:
        fixed: the choice for every size, instead.
        chosen: by positions and bytes of an activation.
    """

    def __init__(self, choices: Sequence[Kept] = CHOICES) -> None:
        self.choices = choices
        self.fixed: Kept | None = None
        self.chosen: dict[tuple[int, int], Kept] = {}

    def choice(self, blocks: Iterable[tuple[nn.Module, float]], positions: int, device: torch.device) -> Kept | None:
        """What layers keep in a training step; None where there is nothing to choose.

        Args:
            blocks: with a `mixer`, and the share of the positions at which each has a step.
            positions: of all rows.
            device: where they are.
        """
        if self.fixed is not None:
            return self.fixed
        if device.type != "cuda" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        itemsize = torch.get_autocast_dtype("cuda").itemsize if torch.is_autocast_enabled("cuda") else 4
        known = self.chosen.get((positions, itemsize))
        if known is None and (layers := mamba_layers(blocks)):
            known = self.chosen[positions, itemsize] = choose(
                layers, positions, itemsize, free_on(device), self.choices
            )
        return known


def mamba_layers(blocks: Iterable[tuple[nn.Module, float]]) -> Layers:
    """The layers that the choice is about, with their shares; none where any mixer is another."""
    mixers = [(block.mixer, share) for block, share in blocks]
    found = [
        (mixer, share)
        for mixer, share in mixers
        if isinstance(mixer, MambaLayer) and mixer.config.selective is True and not mixer.config.complex
    ]
    return found if len(found) == len(mixers) else []


def free_on(device: torch.device) -> int:
    """Bytes that this process can still allocate on a GPU."""
    # Not every one of these functions takes "cuda" without a number, as a dry run has it.
    number = torch.cuda.current_device() if device.index is None else device.index
    free, total = torch.cuda.mem_get_info(number)
    taken, reserved = torch.cuda.memory_allocated(number), torch.cuda.memory_reserved(number)
    allowed = int(total * torch.cuda.get_per_process_memory_fraction(number)) - taken
    return min(free + reserved - taken, allowed)
