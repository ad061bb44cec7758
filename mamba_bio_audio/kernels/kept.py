"""How much operations keep for their backward, as far as a caller that knows the memory says so."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

# Positions (B times steps) that a fused mixer works off at once, and how many inner channels of them where those are few.
_PIECE = 1 << 18
_PIECE_ELEMENTS = 1 << 26


def piece_of(inner: int) -> int:
    """Positions of a piece of a layer with so many inner channels."""
    return max(_PIECE, _PIECE_ELEMENTS // inner)


class MixerKeeps(NamedTuple):
    """What fused mixers keep.

    Attributes:
        steps: between kept states; None leaves it to them.
        inputs: whether they keep the inputs of convolution and scan, instead of making them again.
    """

    steps: int | None = None
    inputs: bool = False


_DEFAULT = MixerKeeps()
_keeps: ContextVar[MixerKeeps] = ContextVar("what mixers keep", default=_DEFAULT)


@contextmanager
def mixers_keep(steps: int, inputs: bool) -> Iterator[None]:
    """Within it, fused mixers keep this."""
    token = _keeps.set(MixerKeeps(steps, inputs))
    try:
        yield
    finally:
        _keeps.reset(token)


def mixer_keeps() -> MixerKeeps:
    """What `mixers_keep` says."""
    return _keeps.get()
