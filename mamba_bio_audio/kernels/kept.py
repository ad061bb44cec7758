"""How much operations keep for their backward, as far as a caller that knows the memory says so."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


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
