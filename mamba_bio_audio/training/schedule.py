"""Learning rate schedule: linear warm-up, then cosine."""

from __future__ import annotations

import math


def learning_rate(step: int, *, steps: int, lr: float, lr_min: float, warmup: float) -> float:
    """Rate of optimiser step `step` (0-based) of `steps`.

    Rises linearly to `lr` over the first `warmup` share of the steps, then follows a half cosine to `lr_min` at the
    last step (Gu & Dao 2023, section E.2.2).
    """
    warmup_steps = round(warmup * steps)
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - 1 - warmup_steps))
    floor = min(lr_min, lr)
    return floor + 0.5 * (lr - floor) * (1 + math.cos(math.pi * progress))
