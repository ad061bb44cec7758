"""Low-rank adaptation of pretrained projections (LoRA, Hu et al. 2022, section 4).

    W' = W + alpha / r  B A          W (out, in) frozen;  A (r, in), B (out, r) trained;  B = 0 at first, so W' = W

The sum is made on the weight itself, as a parametrisation of torch, because a mixer takes weights and calls no `nn.Linear`
(`ops.mamba_mixer`); so every mixer, chunk and path sees W'. What a run writes as its weights is W' alone: a model that is
loaded has no trace of the adaptation, and costs nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_ORIGINAL = ".parametrizations.weight.original"


class LowRank(nn.Module):
    """The parametrisation of one weight (out, in)."""

    scale: Tensor

    def __init__(self, out: int, inside: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, inside))
        self.B = nn.Parameter(torch.zeros(out, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        # Kept with the factors, so that a checkpoint can be merged by itself.
        self.register_buffer("scale", torch.tensor(alpha / rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight."""
        return weight + self.scale * (self.B @ self.A)


def adapt(backbone: nn.Module, rank: int, alpha: float) -> None:
    """Freeze a backbone, and let low-rank updates of its projections be trained, in place.

    Args:
        backbone: a language model, whose output layer is left out.
        rank: r; projections that are no larger than that in one direction stay as they are.
        alpha: weight of the update is alpha / r.

    Raises:
        ValueError: no projection is larger.
    """
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)
    found = [
        module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head" and min(module.weight.shape) > rank
    ]
    if not found:
        raise ValueError(
            f"lora_rank {rank} is not below the width of any projection; lower it, or train the whole model"
        )
    for linear in found:
        out, inside = linear.weight.shape
        update = LowRank(out, inside, rank, alpha).to(linear.weight)
        parametrize.register_parametrization(linear, "weight", update)


def merged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict whose weights are the adapted ones, under the names that they have without an adaptation."""
    result = {}
    for name, tensor in tensors.items():
        if not name.endswith(_ORIGINAL):
            if ".parametrizations.weight.0." not in name:
                result[name] = tensor
            continue
        own = name.removesuffix("original") + "0."
        low, high, scale = (tensors[own + part] for part in ("A", "B", "scale"))
        result[name.removesuffix(_ORIGINAL) + ".weight"] = tensor + scale * (high @ low)
    return result
