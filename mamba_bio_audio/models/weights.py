"""A hash that identifies weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def weights_hash(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, in order of name.

    A model and the tensors of the file it was saved to have the same hash: a tied tensor counts once, under its first name.
    """
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    digest = hashlib.sha256()
    seen: set[tuple[int, torch.Size]] = set()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        place = (tensor.data_ptr(), tensor.shape)
        if place in seen and tensor.numel():
            continue
        seen.add(place)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values: Any = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(values)
    return digest.hexdigest()
