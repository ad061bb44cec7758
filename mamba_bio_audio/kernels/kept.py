"""How much operations keep for their backward, as far as a caller that knows the memory says so."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_steps: ContextVar[int | None] = ContextVar("steps between kept states", default=None)


@contextmanager
def states_every(steps: int | None) -> Iterator[None]:
    """Within it, fused mixers keep the state of every `steps`-th position; None leaves it to them."""
    token = _steps.set(steps)
    try:
        yield
    finally:
        _steps.reset(token)


def steps_between_states() -> int | None:
    """What `states_every` says."""
    return _steps.get()
