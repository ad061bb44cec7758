"""What a class is worth to a model that generates by class (`model.classes`), on recordings whose class is known.

    over no class       -log p(x) + log p(x | k), k the recording's own class; mean over recordings, nats
    over another class  the same with the mean over the other classes' -log p(x | j) in place of -log p(x)
    named               share of recordings whose own class is the most probable: p(k | x) is proportional to p(x | k)

A model that takes no notice of the class has 0, 0 and one in K. To one that recognises the class from what it has read, the
class is worth log K at most; where it is worth more, the model does not. Nothing here says whether generated clips are of the
class: they go their own way from the first error on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_bio_audio.models.inputs import class_of

# Positions whose logits are held at once.
_POSITIONS = 1 << 17


class ClassWorth(NamedTuple):
    """Means over recordings.

    Attributes:
        over_none, over_others: nats of a recording, with its own class instead of none, and of another.
        named: share whose own class is the most probable.
        rows: recordings.
    """

    over_none: float
    over_others: float
    named: float
    rows: int

    def __str__(self) -> str:
        return (
            f"the class is worth {self.over_none:+.1f} nats a recording over none, {self.over_others:+.1f} over another; "
            f"named by likelihood in {self.named:.0%} of {self.rows}"
        )


def class_worth(model: nn.Module, batches: Iterable[Mapping[str, Any]], rows: int) -> ClassWorth | None:
    """What the class is worth on the first rows that have one; None where there are none.

    Args:
        model: with classes, in evaluation mode.
        batches: with "tokens" and "targets" (B, L); each row begins a sequence, tokens hold its class.
        rows: at most so many.
    """
    about: Any = model
    inputs, device = about.model_config.num_inputs, next(model.parameters()).device
    found: list[Tensor] = []
    own: list[Tensor] = []
    for batch in batches:
        tokens, targets = batch["tokens"].to(device), batch["targets"].to(device)
        number = class_of(tokens[:, 0], inputs)
        # Padding is of no class.
        plain = tokens - class_of(tokens, inputs) * inputs
        some = (number > 0).nonzero()[: rows - sum(len(part) for part in own), 0]
        if len(some):
            found.append(_nats(model, plain[some], targets[some], len(about.classes) + 1, inputs))
            own.append(number[some].cpu())
        if sum(len(part) for part in own) >= rows:
            break
    if not own:
        return None
    nats, numbers = torch.cat(found), torch.cat(own)
    right = nats.gather(1, numbers[:, None])[:, 0]
    others = (nats[:, 1:].sum(1) - right) / (nats.shape[1] - 2)
    named = nats[:, 1:].argmin(1) + 1 == numbers
    return ClassWorth(
        float((nats[:, 0] - right).mean()), float((others - right).mean()), float(named.double().mean()), len(numbers)
    )


def _nats(model: nn.Module, plain: Tensor, targets: Tensor, classes: int, inputs: int) -> Tensor:
    """Nats (R, classes) of rows (R, L) read as sequences of every class, of none first."""
    together = max(1, _POSITIONS // plain.shape[1])
    sums = []
    with torch.no_grad():
        for number in range(classes):
            parts = []
            for ids, wanted in zip(plain.split(together), targets.split(together), strict=True):
                logits = model(ids + number * inputs).logits.float()
                nats = F.cross_entropy(logits.transpose(1, 2), wanted, ignore_index=-100, reduction="none")
                parts.append(nats.sum(1, dtype=torch.float64).cpu())
            sums.append(torch.cat(parts))
    return torch.stack(sums, 1)
