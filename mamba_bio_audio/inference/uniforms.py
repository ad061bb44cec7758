"""The random numbers of sampling: one for each seed, row and position, whoever makes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mamba_bio_audio.ops.calls import no_triton


def uniforms(seed: int, rows: Sequence[int], start: int, count: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) that depend only on (seed, row, position).

    Philox-4x64 (Salmon et al. 2011) yields four 64-bit words per counter; the upper 53 bits of word t make the number
    of position t.

    Args:
        rows: row indices below 2^64.
        start: first position.
        count: positions per row.

    Returns:
        (len(rows), count) fp64.
    """
    skip = start % 4
    words = np.empty((len(rows), count), np.uint64)
    # One generator that is set anew: making one costs more than most rows' numbers.
    philox = np.random.Philox(key=np.array([seed, 0], np.uint64), counter=np.array([start // 4, 0, 0, 0], np.uint64))
    state = philox.state
    for i, row in enumerate(rows):
        state["state"]["key"][1] = row
        philox.state = state
        words[i] = philox.random_raw(skip + count)[skip:]
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draws_on(device: torch.device, seed: int, first_row: int, rows: int, start: int, count: int) -> Tensor:
    """Uniform numbers (n, R), contiguous, for steps on a device."""
    if device.type == "cuda" and no_triton(device) is None:
        from mamba_bio_audio.kernels.decode.uniforms import device_uniforms

        return device_uniforms(seed, first_row, rows, start, count, device)
    found = uniforms(seed, range(first_row, first_row + rows), start, count)
    return torch.from_numpy(found.T.copy()).to(device)
