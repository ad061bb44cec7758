"""What operations make of weights alone (casts, transposes, exp), made once for many calls instead of in each.

Only the caller knows that weights stay as they are, so it says so: within `weights_stay` an operation finds what it made
before. Without it, and in every other thread, `made_once` just makes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")
Made = dict[Any, tuple[Any, Any]]
_made: ContextVar[Made | None] = ContextVar("made", default=None)


@contextmanager
def weights_stay(made: Made | None = None) -> Iterator[None]:
    """Within it no weight changes in value or place; `made` keeps what is made for another time.

    Without `made` it is kept to the end, of the outermost of several.
    """
    kept = _made.get() if made is None else made
    token = _made.set({} if kept is None else kept)
    try:
        yield
    finally:
        _made.reset(token)


def staying() -> bool:
    """Whether weights stay as they are."""
    return _made.get() is not None


def made_once(make: Callable[..., T], *given: Any) -> T:
    """`make(*given)`, where tensors and tuples of them are weights and everything else can be a key of a dict."""
    made = _made.get()
    if made is None:
        return make(*given)
    key = (make.__qualname__, *map(_key, given))
    if key not in made:
        # The weights as well: as long as they are there, nothing else has their address.
        made[key] = (make(*given), given)
    result: T = made[key][0]
    return result


def _key(given: Any) -> Any:
    if isinstance(given, Tensor):
        return given.data_ptr(), given.dtype, given.shape, given.stride()
    return tuple(map(_key, given)) if isinstance(given, tuple) else given
