"""Keeps the best of several samples, by what the model itself makes of them.

    of a class        log p(x | k) - log p(x): how clearly the model takes x for the class k that was asked for
    without a class   -|b - b0|: b nats per symbol of x at temperature 1, b0 those of validation data

A sample goes its own way from the first error on. One that came to another class, or that drifted into noise or silence, is
known by the model's own likelihood. Best of N is the simplest use of that (Stiennon et al. 2020, by a learnt reward).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mamba_bio_audio.inference.decoding import prefill
from mamba_bio_audio.inference.prompts import Prompt, batches, check_prompt, read_prompts, started
from mamba_bio_audio.inference.streaming import positions


def nearness(nats: Sequence[float], length: int, valid_nats: float) -> list[float]:
    """-|b - b0| of rows, in nats per symbol.

    Args:
        nats: log-likelihood of every row.
        length: its symbols.
        valid_nats: of validation data, per symbol.
    """
    return [-abs(-own / length - valid_nats) for own in nats]


def best(scores: Sequence[float], each: int) -> list[int]:
    """Of each `each` rows in turn, the one with the highest score; of equals the first."""
    return [max(range(low, low + each), key=lambda row: (scores[row], -row)) for low in range(0, len(scores), each)]


def class_evidence(
    model: Any,
    tokens: Callable[[int], Any],
    names: Sequence[str],
    prompt: Prompt,
    batch_size: int,
    progress: Callable[[int, int | None], None] | None = None,
) -> list[float]:
    """log p(x | k) - log p(x) of samples x, in nats, behind their prompts.

    Args:
        model: with classes, in evaluation mode.
        tokens: symbols (n,) of a row, all of the same length, as a NumPy array.
        names: class of each row.
        prompt: that they continue, as for `generate`.
        batch_size: rows scored at a time.
        progress: called with (rows done, rows).
    """
    device = next(model.parameters()).device
    prefix = started(model, check_prompt(model, prompt, len(names)))
    found: list[float] = []
    with torch.inference_mode():
        for low, rows in batches(model, prefix, len(names), batch_size, names):
            own = torch.stack([torch.from_numpy(tokens(row)).long() for row in range(low, low + rows)]).to(device)
            start = prefix
            if prefix is not None and len(prefix) > 1:
                start = prefix[low : low + rows]
            elif isinstance(prefix, Tensor):
                start = prefix.expand(rows, -1)
            none, wanted = (_nats(each, start, own) for each in (model, model.of_class(names[low])))
            found += (none - wanted).tolist()
            if progress is not None:
                progress(low + rows, len(names))
    return found


def _nats(model: Any, start: Any, tokens: Tensor) -> Tensor:
    """-log p (R,) of symbols (R, n) behind what rows start with; without a start, of all but the first."""
    device, rows = tokens.device, len(tokens)
    allowed = torch.tensor(list(model.codec.sample_ids), device=device)
    place = torch.zeros(int(allowed.max()) + 1, dtype=torch.long, device=device)
    place[allowed] = torch.arange(len(allowed), device=device)
    state = None
    if isinstance(start, list):
        last, state = read_prompts(model, start, rows, device)
    elif start is None:
        last, tokens = tokens[:, :1], tokens[:, 1:]
    else:
        start = start.to(device)
        state, last = prefill(model, start[:, :-1], None) if start.shape[1] > 1 else None, start[:, -1:]
    inputs = torch.cat([last, tokens[:, :-1]], 1)
    total = torch.zeros(rows, dtype=torch.float64)
    size = max(1, positions(device.type) // rows)
    for ids, wanted in zip(inputs.split(size, 1), tokens.split(size, 1), strict=True):
        output = model(ids, state)
        state = output.state
        log_p = output.logits.index_select(2, allowed).float().log_softmax(2)
        total -= log_p.gather(2, place[wanted][:, :, None]).sum((1, 2), dtype=torch.float64).cpu()
    return total
