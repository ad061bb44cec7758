"""A model's state as what runs its steps keeps it from call to call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kept:
    """A state in a layout of its own, which is never changed.

    Attributes:
        own: the state.
        unpack: makes the model's state of it.
    """

    own: Any
    unpack: Callable[[Any], Any]


def model_state(state: Any) -> Any:
    """The model's own state, of either."""
    return state.unpack(state.own) if isinstance(state, Kept) else state
