"""What a language model of Mamba layers keeps for its backward on a GPU: more where memory is plentiful, which is faster.

A position and layer of M model channels, E inner channels and N states keeps the residual stream (4 M bytes), x_proj's
output, the states of every S-th position (4 E N / S) and the output of the norm (2 M in bf16), which can be made again
from the stream: the last two are what there is to choose.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from mamba_bio_audio.layers.mamba import MambaLayer

# Of the free memory, so much is taken; and bytes a position and model channel that a step takes beside what layers keep
# (the loss, gradients of the stream, what backward computes again): 16 x 256 and 12 x 128 at 2^20 positions took 20 to 22.
_SHARE = 0.9
_BESIDE = 24


class Kept(NamedTuple):
    """One choice.

    Attributes:
        steps: between kept states.
        norms: whether outputs of norms are kept.
    """

    steps: int
    norms: bool

    def __str__(self) -> str:
        """In words."""
        return f"a state every {self.steps} positions" + (" and outputs of norms" if self.norms else "")


# From what is fastest to what is smallest.
CHOICES = (Kept(16, True), Kept(32, True), Kept(32, False), Kept(64, False))


def choose(layers: Sequence[MambaLayer], positions: int, itemsize: int, free: int) -> Kept:
    """The first of `CHOICES` that fits, otherwise the last.

    Args:
        layers: real and selective ones.
        positions: of all rows.
        itemsize: bytes of an activation.
        free: bytes.
    """
    return next((kept for kept in CHOICES if needed(layers, positions, itemsize, kept) <= _SHARE * free), CHOICES[-1])


def needed(layers: Sequence[MambaLayer], positions: int, itemsize: int, kept: Kept) -> int:
    """Bytes of a training step, without weights."""
    total = max((layer.d_model for layer in layers), default=0) * _BESIDE
    for layer in layers:
        states = layer.config.d_state
        total += 4 * layer.d_model + itemsize * (layer.dt_rank + 2 * states) + 4 * layer.d_inner * states // kept.steps
        total += itemsize * layer.d_model * kept.norms
    return positions * total


def mamba_layers(modules: Iterable[nn.Module]) -> list[MambaLayer]:
    """The layers that the choice is about, all of them real and selective; none where any layer is another."""
    mixers = [module.mixer for module in modules]
    found = [m for m in mixers if isinstance(m, MambaLayer) and m.config.selective is True and not m.config.complex]
    return found if len(found) == len(mixers) else []


def free_on(device: torch.device) -> int:
    """Bytes that this process can still allocate on a GPU."""
    free, total = torch.cuda.mem_get_info(device)
    taken, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    allowed = int(total * torch.cuda.get_per_process_memory_fraction(device)) - taken
    return min(free + reserved - taken, allowed)
