"""Sequences as people have them (text, ids, audio), one or several, as rows of token ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mamba_bio_audio.errors import InputError

Sequences = str | Tensor | NDArray[Any] | Sequence[str] | Sequence[Tensor] | Sequence[NDArray[Any]]


def rows_of(model: Any, sequences: Sequences) -> list[NDArray[np.int64]]:
    """Token ids of each sequence, int64 (L,), one or more, each of at least one symbol.

    Args:
        model: a model of `mba.load`; its `encode` reads text and float samples.
        sequences: one sequence (text, integer ids (L,), float samples of audio (L,)), several equally long ones (ids or
            samples (B, L), such as `mba.generate` returns), or a list of sequences of any lengths.

    Raises:
        InputError: there is no sequence, an empty one, or one with ids outside the vocabulary.
    """
    if not hasattr(model, "model_config"):
        raise InputError(f"the model is {type(model).__name__}; pass one of mba.load")
    # The keys of a dict would be read as sequences.
    if isinstance(sequences, Mapping) or not isinstance(sequences, Iterable):
        raise InputError(
            f"the sequences are {type(sequences).__name__}; pass text, ids, float samples, or a list of them"
        )
    if isinstance(sequences, str | Tensor | np.ndarray):
        given = _split(sequences)
    else:
        items = list(sequences)
        numbers = bool(items) and all(isinstance(item, int | np.integer) for item in items)
        given = [np.asarray(items)] if numbers else [row for item in items for row in _split(item, alone=True)]
    if not given:
        raise InputError("there is no sequence; pass at least one")
    rows = []
    for number, one in enumerate(given, start=1):
        try:
            rows.append(_ids(model, one))
        except InputError as error:
            raise InputError(f"sequence {number:,}: {error}") from None
    return rows


def _split(value: Any, *, alone: bool = False) -> list[Any]:
    """A value as its sequences; with `alone` it has to be a single one."""
    if isinstance(value, str):
        return [value]
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.ndim not in (1, 2) or (alone and array.ndim == 2 and len(array) != 1):
        expected = "(L,) or (1, L)" if alone else "(L,) or (B, L)"
        raise InputError(f"a sequence has the shape {expected}, not {array.shape}")
    return [array] if array.ndim == 1 else list(array)


def _ids(model: Any, one: Any) -> NDArray[np.int64]:
    if isinstance(one, str) or np.issubdtype(one.dtype, np.floating):
        ids = model.encode(one)[0].numpy()
    elif np.issubdtype(one.dtype, np.integer):
        ids = one.astype(np.int64)
    else:
        raise InputError(f"an array of {one.dtype}; pass text, integer ids or float samples")
    if not len(ids):
        raise InputError("empty; give at least one symbol")
    size = model.model_config.vocab_size
    if ids.min() < 0 or ids.max() >= size:
        raise InputError(f"ids from {ids.min()} to {ids.max()}; this model knows 0 to {size - 1}")
    return ids
