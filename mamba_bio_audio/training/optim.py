"""AdamW with the parameter groups of the state space literature."""

from __future__ import annotations

import torch
from torch import nn

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
    """AdamW at the peak rates, `lr` and, for a classifier's head, `lr_head`; the schedule scales both alike."""
    groups = parameter_groups(model, config.weight_decay)
    head = getattr(model, "head", None)
    if config.lr_head is not None and isinstance(head, nn.Module):
        own = {id(parameter) for parameter in head.parameters()}
        groups = [
            group | {"params": [p for p in group["params"] if (id(p) in own) == of_head], "lr": rate}
            for of_head, rate in ((False, config.lr), (True, config.lr_head))
            for group in groups
        ]
    # A frozen backbone leaves groups without parameters.
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
