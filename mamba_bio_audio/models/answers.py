"""How many targets a model gets right, beside its loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Logits at a time; of long sequences they are what is large.
LOGITS = {"cpu": 1 << 18, "cuda": 1 << 26}


def answers(
    model: nn.Module, tokens: Tensor, targets: Tensor, group: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, targets, and right ones of a batch, without gradients.

    Long sequences go through in pieces with the state carried, where the model has one, so that any length fits.

    Args:
        model: language model.
        tokens: (B, L) integer symbols.
        targets: (B, L), -100 where nothing is asked.
        group: of a batch; not looked at.

    Returns:
        Summed nats fp32, number of targets, and how many of them are the symbol with the highest probability (both int64).
    """
    rows, length = tokens.shape
    vocab: Any = model.model_config.vocab_size  # type: ignore[union-attr]
    most = LOGITS[tokens.device.type] // max(16, vocab)
    piece = length if model.streaming == "none" else max(1, most // rows)
    loss = torch.zeros((), device=tokens.device)
    count, correct = torch.zeros(2, dtype=torch.int64, device=tokens.device)
    state = None
    for start in range(0, length, piece):
        here, asked = tokens[:, start : start + piece], targets[:, start : start + piece]
        # In long sequences nothing is asked in most pieces.
        there = bool((asked != -100).any())
        out = model(here, state, targets=asked if there else None, logits="all" if there else "none")
        state = out.state
        if there:
            loss = loss + out.loss_sum
            count = count + out.count
            correct = correct + ((out.logits[..., :vocab].argmax(-1) == asked) & (asked != -100)).sum()
    return loss, count, correct
