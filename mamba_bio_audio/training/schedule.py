"""Learning-rate schedule: linear warm-up, then cosine decay."""

from __future__ import annotations

import math

from torch.optim.lr_scheduler import LambdaLR

from mamba_bio_audio.training.config import TrainConfig


def learning_rate(step: int, *, steps: int, lr: float, lr_min: float, warmup: float) -> float:
    """Learning rate of optimiser step `step` (0-based) of `steps`.

    It rises linearly to `lr` over the first `warmup` share of the steps, then follows a half cosine to `lr_min` at the
    last step (Gu & Dao 2023, section E.2.2).
    """
    warmup_steps = round(warmup * steps)
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - 1 - warmup_steps))
    floor = min(lr_min, lr)
    return floor + 0.5 * (lr - floor) * (1 + math.cos(math.pi * progress))


def rate_after(train: TrainConfig, step: int) -> float:
    """Learning rate of the step that follows `step` steps."""
    return learning_rate(step, steps=train.steps, lr=train.lr, lr_min=train.lr_min, warmup=train.warmup)


def move_to(schedule: LambdaLR, step: int) -> None:
    """Set a schedule and its optimiser to their state after `step` optimiser steps."""
    schedule.last_epoch = step
    rates = [base * scale(step) for base, scale in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = list(rates)
