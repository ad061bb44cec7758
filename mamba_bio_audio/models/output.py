"""What every model returns."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import _register_namedtuple


class ModelOutput(NamedTuple):
    """Result of one forward call.

    The loss is a sum, so that chunks, micro-batches and ranks add up exactly; divide by `count` for the mean.
    """

    logits: Tensor | None  # (B, L, V), (B, 1, V) with logits="last", None with logits="none"
    loss_sum: Tensor | None  # scalar, nats, fp32; None without targets
    # Scalar int64, number of scored targets; None without targets. Nobody counts values in an output.
    count: Tensor | None  # type: ignore[assignment]
    state: Any  # at the end of the span, to be passed on


# torch.export.save writes structures by name.
_register_namedtuple(ModelOutput, serialized_type_name="mamba_bio_audio.ModelOutput")
