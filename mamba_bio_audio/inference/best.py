"""Keeps the best of several samples, by their own likelihood.

    -|b - b0|     b nats per symbol of a sample at temperature 1, b0 those of validation data

A sample goes its own way from the first error on. One that drifted into noise or silence is known by its bits, which are
far above or below those of recordings.
"""

from __future__ import annotations

from collections.abc import Sequence


def nearest(log_likelihood: Sequence[float], length: int, valid_nats: float, each: int) -> list[int]:
    """Of each `each` rows in turn, the one whose nats per symbol are nearest to validation's; of equals the first.

    Args:
        log_likelihood: of every row.
        length: its symbols.
        valid_nats: of validation data, per symbol.
        each: rows among which one is kept.
    """
    far = [abs(-own / length - valid_nats) for own in log_likelihood]
    return [min(range(low, low + each), key=lambda row: (far[row], row)) for low in range(0, len(far), each)]
