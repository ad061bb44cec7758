"""Log-likelihood of sequences: per symbol, and per record.

    log p(x_t | x_1 .. x_(t-1))     nats; divided by -ln 2 it is bits

What it tells: how well the model predicts each symbol from what precedes it. It misleads where symbols are compared that
had different amounts of context before them, and it is no measure of function: repeats are predicted best.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference.sequences import Sequences, rows_of
from mamba_bio_audio.inference.streaming import batches, check_chunk, log_likelihoods, passes_of, positions


class LogLikelihood(NamedTuple):
    """Log-likelihood of B sequences, the longest of L symbols.

    Attributes:
        per_base: float64 (B, L), nats; NaN where nothing is scored: the first base of DNA, which has no context (audio
            begins after a start level, so that all samples are scored), unknown bases (N), beyond the end of a sequence.
        total: float64 (B,), nats, the sum over the scored symbols.
        scored: int64 (B,), number of scored symbols.
    """

    per_base: Tensor
    total: Tensor
    scored: Tensor


def log_likelihood(
    model: Any, sequences: Sequences, *, precision: str = "fp32", chunk: int | None = None
) -> LogLikelihood:
    """Log-likelihood of each symbol given all symbols before it, and of each sequence.

    >>> model = mba.load("runs/demo")                            # doctest: +SKIP
    >>> mba.log_likelihood(model, ["ACGTTGCA", "ACGNN"]).total   # doctest: +SKIP

    Args:
        model: language model of `mba.load`; runs on the device of its parameters.
        sequences: text, integer ids or float samples of audio; one sequence (L,), several (B, L) as `mba.generate` and
            `model.encode` return them, or a list of sequences of any lengths, each scored as if it were alone.
        precision: "fp32", or "bf16" (autocast), which is faster on a GPU and less exact.
        chunk: symbols of each sequence that are read at once, carrying the state; determines the memory and changes
            results by rounding only. None chooses it by the device.

    Returns:
        Log-likelihoods in nats, on the CPU.

    Raises:
        InputError: the model is a classifier, or a sequence is empty or not in the model's vocabulary.
    """
    if getattr(model, "labels", ()):
        raise InputError("a classifier has no likelihood of sequences; pass a language model")
    rows = rows_of(model, sequences)
    check_chunk(chunk)
    codec = model.codec
    known = range(model.model_config.vocab_size) if codec is None else codec.sample_ids
    start_id, pad_id = (None, 0) if codec is None else (codec.start_id, codec.pad_id)
    per_base = torch.full((len(rows), max(map(len, rows))), torch.nan, dtype=torch.float64)
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    most = positions(next(model.parameters()).device.type)
    for some in batches(order, lambda number: len(rows[number]), most, chunk or most):
        passes = passes_of(model, precision, chunk=chunk, rows=len(some))
        batch = [rows[number] for number in some]
        for low, values in log_likelihoods(model, batch, known=known, pad_id=pad_id, start_id=start_id, passes=passes):
            per_base[some, low : low + values.shape[1]] = torch.from_numpy(values)
    scored = ~per_base.isnan()
    return LogLikelihood(per_base, per_base.nansum(1), scored.sum(1))
