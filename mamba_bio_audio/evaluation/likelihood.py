"""Likelihood of held-out symbols under a trained model.

    nats = -sum over scored positions of log p(target | symbols before it in the window)

What it tells: how well the model predicts, in units that are comparable between models over the same alphabet and the
same scored positions; always report the count beside it. It misleads if positions are scored with different amounts of
context (short windows make every model look worse), or if test data nearly repeat training data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.answers import answers
from mamba_bio_audio.models.streamed import streamed_loss
from mamba_bio_audio.pipelines.scores import perplexity


@dataclass(frozen=True)
class Likelihood:
    """Summed negative log-likelihood, and the number of symbols that it covers.

    Attributes:
        nats: sum over the scored symbols.
        count: number of scored symbols (bases for DNA).
        groups: the same per group of the data (for DNA one per genome file); empty if the data have no groups.
        correct: scored symbols that were the model's first choice; None where they were not counted.
    """

    nats: float
    count: int
    groups: Mapping[str, Likelihood] = field(default_factory=dict)
    correct: int | None = None

    @property
    def nats_per_base(self) -> float:
        """Mean per scored symbol; NaN if nothing was scored."""
        return self.nats / self.count if self.count else math.nan

    @property
    def bits_per_base(self) -> float:
        """Mean per scored symbol in bits; 2 is a uniform guess over four bases."""
        return self.nats_per_base / math.log(2)

    @property
    def perplexity(self) -> float:
        """exp of the mean nats; 4 is a uniform guess over four bases."""
        return perplexity(self.nats_per_base)

    def to_dict(self) -> dict[str, Any]:
        """The likelihood as plain numbers for JSON."""
        values: dict[str, Any] = {
            "nats": self.nats,
            "count": self.count,
            "nats_per_base": self.nats_per_base,
            "bits_per_base": self.bits_per_base,
            "perplexity": self.perplexity,
        }
        if self.groups:
            values["groups"] = {name: group.to_dict() for name, group in self.groups.items()}
        return values


def evaluate_likelihood(
    model: nn.Module,
    dataloader: Iterable[Mapping[str, Any]],
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    progress: Callable[[int, int | None], None] | None = None,
    *,
    answered: bool = False,
) -> Likelihood:
    """Score every target of a data loader once, each window from an empty state.

    Args:
        model: language model that follows the common contract; moved to `device`; its train or eval mode is kept.
        dataloader: batches with "tokens" (B, L) and "targets" (B, L), -100 where nothing is scored, and
            optionally "group", one name or number per row.
        device: device to run on.
        precision: "fp32" (the parameters' own dtype), "bf16" (autocast), "auto" (bf16 on CUDA, else fp32).
        progress: called after each batch with (batches done, batches in total or None).
        answered: also count how many targets are the model's first choice.

    Returns:
        Sums in fp64; within one forward pass the model sums the loss in fp32. If the model's state has constant size,
        batches of more than 2^14 positions (2^18 on CUDA) are processed in pieces with the state carried, so that any
        length fits.
    """
    device = torch.device(device)
    if precision not in ("auto", "fp32", "bf16"):
        raise InputError(f"precision is {precision!r}; choose auto, fp32 or bf16")
    narrow = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    try:
        total: int | None = len(dataloader)  # type: ignore[arg-type]
    except TypeError:
        total = None
    nats: dict[str | None, float] = {}
    counts: dict[str | None, int] = {}
    correct = 0
    was_training = model.training
    model.to(device).eval()
    try:
        with torch.inference_mode():
            for done, batch in enumerate(dataloader, start=1):
                tokens, targets = batch["tokens"], batch["targets"]
                for name, rows in _rows_by_group(batch.get("group"), len(tokens)):
                    with torch.autocast(device.type, torch.bfloat16) if narrow else nullcontext():
                        given = tokens[rows].to(device), targets[rows].to(device)
                        if answered:
                            loss, count, right = answers(model, *given)
                            correct += int(right)
                        else:
                            loss, count = _loss(model, *given)
                    nats[name] = nats.get(name, 0.0) + float(loss)
                    counts[name] = counts.get(name, 0) + int(count)
                if progress is not None:
                    progress(done, total)
    finally:
        model.train(was_training)
    if not sum(counts.values()):
        raise InputError("the data have no symbol to score; check that the split has intervals longer than one symbol")
    groups = {name: Likelihood(nats[name], counts[name]) for name in counts if name is not None}
    total_nats, total_count = math.fsum(nats.values()), sum(counts.values())
    return Likelihood(total_nats, total_count, groups, correct if answered else None)


def _loss(model: nn.Module, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Summed nats and count; long windows are processed in pieces if the model's state has constant size."""
    rows, length = tokens.shape
    most = 1 << (14 if tokens.device.type == "cpu" else 18)
    if rows * length > most and getattr(model, "streaming", None) == "constant":
        loss, count, _ = streamed_loss(model, tokens, targets, chunk=max(1, most // rows))
        return loss, count
    out = model(tokens, targets=targets, logits="none")
    return out.loss_sum, out.count


def _rows_by_group(groups: Sequence[Any] | Tensor | None, rows: int) -> list[tuple[str | None, slice | list[int]]]:
    """Rows of each group in a batch, so that one forward pass gives one group's sum."""
    if groups is None:
        return [(None, slice(None))]
    if isinstance(groups, str):
        return [(groups, slice(None))]
    names = [str(name) for name in (groups.tolist() if isinstance(groups, Tensor) else groups)]
    if len(names) != rows:
        raise ValueError(f"the batch has {rows} rows but {len(names)} group names")
    by_name: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        by_name.setdefault(name, []).append(row)
    if len(by_name) == 1:
        return [(names[0], slice(None))]
    return list(by_name.items())
