"""AdamW with the parameter groups of the state space literature, and what a loss is divided by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mamba_bio_audio.training.config import TrainConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: matrices and kernels decay; norms, biases, embeddings, A_log, A_imag, D and delta do not.

    A parameter is exempt if it has fewer than two axes, belongs to an embedding (even if a head shares it), or was marked
    by its layer with `_no_weight_decay`.
    """
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        exempt = parameter.ndim < 2 or id(parameter) in embeddings or getattr(parameter, "_no_weight_decay", False)
        (no_decay if exempt else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW at the peak rates: `lr`, those of a head and of state spaces, lower ones of earlier layers; all scaled alike."""
    groups = parameter_groups(model, config.weight_decay)
    head = getattr(model, "head", None)
    if config.lr_head is not None and isinstance(head, nn.Module):
        groups = _apart(groups, list(head.parameters()), config.lr_head, config.lr)
    if config.lr_ssm is not None:
        own = [parameter for parameter in model.parameters() if getattr(parameter, "_no_weight_decay", False)]
        groups = _apart(groups, own, config.lr_ssm, config.lr)
    if config.lr_layer_decay < 1:
        backbone: Any = getattr(model, "backbone", model)
        parts = [backbone.embedding, *backbone.layers]
        for above, part in enumerate(reversed(parts), start=0):
            groups = _scaled(groups, list(part.parameters()), config.lr_layer_decay**above, config.lr)
    # A frozen backbone leaves groups without parameters.
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def divisor(model: Any, targets: Tensor, answers: int | None) -> int:
    """What a batch's summed loss is divided by: the answers of its sequences, or all targets that it can have."""
    return int(model.targets_in(targets)) if answers is None else len(targets) * answers


def _scaled(groups: list[dict], own: list[nn.Parameter], factor: float, rate: float) -> list[dict]:
    """The groups, and behind them those of `own` at rates so many times their own."""
    if factor == 1:
        return groups
    ids = {id(parameter) for parameter in own}
    rest = [group | {"params": [p for p in group["params"] if id(p) not in ids]} for group in groups]
    part = [
        group | {"params": [p for p in group["params"] if id(p) in ids], "lr": group.get("lr", rate) * factor}
        for group in groups
    ]
    return [group for group in [*rest, *part] if group["params"]]


def _apart(groups: list[dict], own: list[nn.Parameter], rate: float, others: float) -> list[dict]:
    """The groups, and behind them those of `own` at a rate of their own."""
    ids = {id(parameter) for parameter in own}
    return [
        {"lr": others}
        | group
        | {"params": [p for p in group["params"] if (id(p) in ids) == apart]}
        | ({"lr": rate} if apart else {})
        for apart in (False, True)
        for group in groups
    ]
