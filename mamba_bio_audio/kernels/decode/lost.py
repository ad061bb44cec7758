"""Programs on a GPU that share rows, and have lost each other: nobody waits to find out.

A launch that failed leaves +inf in all of its log-probabilities, which no model's draw has; whoever reads them asks `confirm`.
So the host can queue the next launch while this one runs.
"""

import math

from torch import Tensor


def mark(scores: Tensor, lost: Tensor) -> None:
    """Of log-probabilities, where `lost` (a bool on the same device) is true."""
    scores.masked_fill_(lost, math.inf)


def confirm(scores: Tensor) -> None:
    """RuntimeError if a launch has left these log-probabilities unfinished."""
    if (scores == math.inf).any():
        raise RuntimeError(
            "persistent decoding: programs on the GPU that share rows have waited in vain for each other; is another process "
            "using the GPU?"
        )
