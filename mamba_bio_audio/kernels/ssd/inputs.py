"""The arguments of `mamba_bio_audio.ops.ssd` as one value."""

from typing import NamedTuple

import torch
from torch import Tensor


class SsdInputs(NamedTuple):
    """Arguments of one call; letters as in `reference.py`."""

    x: Tensor  # (B, L, H, P)
    a: Tensor  # (B, L, H), log decay, <= 0
    B: Tensor  # (B, L, G, N)
    C: Tensor  # (B, L, G, N)
    source: Tensor | None = None  # (B, L, H); None means ones
    diagonal: Tensor | None = None  # (B, L, H); None means the source
    D: Tensor | None = None  # (H)
    h0: Tensor | None = None  # (B, H, P, N); None means zeros
    reset: Tensor | None = None  # bool (B, L)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """Those that can have gradients, in the order of the fields."""
        return self[:-1]

    @property
    def state_dtype(self) -> torch.dtype:
        """fp64 where any input is, otherwise fp32."""
        double = any(t is not None and t.dtype == torch.float64 for t in self.tensors)
        return torch.float64 if double else torch.float32
