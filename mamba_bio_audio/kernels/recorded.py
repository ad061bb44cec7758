"""What a call of an operation does on the host, found out once: which tensors it makes, and what it launches on them.

`record` makes such a call and notes both; a call on other tensors of the same kind is then a few allocations and launches, and
none of the checks and choices that led to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import JITFunction

from mamba_bio_audio.kernels.launch import Launched, again, launch, noted

Results = tuple[Tensor | None, ...]
_ALIGNED = 256  # bytes, as of any tensor that PyTorch makes on a GPU
_MAKES = ("aten.empty.", "aten.empty_like.")
# Other names for what is there.
_VIEWS = (
    "aten.view.",
    "aten.detach.",
    "aten.transpose.",
    "aten.unsqueeze.",
    "aten.squeeze.",
    "aten.select.",
    "aten.t.",
)


class _Watch(TorchDispatchMode):
    """Notes which tensors are made, and whether PyTorch computes anything."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Tensor] = []
        self.computes = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = str(func)
        if name.startswith(_MAKES):
            self.made.append(found)
        elif not name.startswith(_VIEWS):
            self.computes = True
        return found


class Recorded:
    """A call that was recorded."""

    def __init__(
        self, inputs: Sequence[Tensor | None], fixed: Sequence[Tensor], made: list[Tensor], launches: list[Launched],
        results: Results,
    ) -> None:  # fmt: skip
        """Raises LookupError where it cannot be repeated."""
        self._device = next(t for t in inputs if t is not None).device
        wanted = {t.data_ptr() for t in results if t is not None}
        own = [t for t in made if t.data_ptr() in wanted]
        passing = [t for t in made if t.data_ptr() not in wanted]
        everything = [*inputs, *fixed, *passing, *own]
        places: dict[int, int] = {}
        for place, t in enumerate(everything):
            if t is None:
                continue
            if t.data_ptr() in places or not t.numel():
                raise LookupError("two arguments are one, or there is nothing in them")
            places[t.data_ptr()] = place
        self._fixed = [t.data_ptr() for t in fixed]
        self._offsets, self._room = [], 0
        for t in passing:
            self._offsets.append(self._room)
            self._room += -(-t.numel() * t.element_size() // _ALIGNED) * _ALIGNED
        self._own = [(t.shape, t.dtype) for t in own]
        if not all(t.is_contiguous() for t in made):
            raise LookupError("made in an order of its own")
        self._launches: list[tuple[Any, Callable[[Any], Any]]] = []
        self._interpreted = []
        for one in launches:
            which = [places[t.data_ptr()] for t in one.given if isinstance(t, Tensor)]
            if not isinstance(one.kernel, JITFunction):  # the interpreter
                self._interpreted.append((one, which))
                continue
            run = again(one)
            if run is None:
                raise LookupError("a kernel was not compiled for these")
            self._launches.append((run, itemgetter(*which)))
        self._tensors = (fixed, passing) if self._interpreted else None
        # Of each result: its place among those that are made, and how it lies there if otherwise than that.
        self._results: list[tuple[int, tuple[Any, ...] | None] | None] = []
        first = len(everything) - len(own)
        for t in results:
            if t is None:
                self._results.append(None)
                continue
            place = places[t.data_ptr()] - first
            if place < 0:
                raise LookupError("a result was not made here")
            whole = own[place]
            same = t.shape == whole.shape and t.stride() == whole.stride()
            self._results.append((place, None if same else (t.shape, t.stride())))

    def __call__(self, inputs: Sequence[Tensor | None]) -> Results | None:
        """The results on other tensors; None where these lie so that it must go the longer way."""
        device = self._device
        made = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in self._own]
        if self._interpreted:
            self._interpret(inputs, made)
        else:
            addresses = [0 if t is None else t.data_ptr() for t in inputs]
            addresses += self._fixed
            if self._room:
                room = torch.empty(self._room, dtype=torch.uint8, device=device)
                base = room.data_ptr()
                addresses += [base + offset for offset in self._offsets]
            addresses += [t.data_ptr() for t in made]
            for run, which in self._launches:
                if not run(which(addresses)):
                    return None
        found: list[Tensor | None] = []
        for place in self._results:
            if place is None:
                found.append(None)
            else:
                t, view = made[place[0]], place[1]
                found.append(t if view is None else t.as_strided(*view))
        return tuple(found)

    def _interpret(self, inputs: Sequence[Tensor | None], made: list[Tensor]) -> None:
        assert self._tensors is not None
        fixed, passing = self._tensors
        everything = [*inputs, *fixed, *(torch.empty_like(t) for t in passing), *made]
        for one, which in self._interpreted:
            tensors = [everything[i] for i in which]
            # Other names of a tensor, as bool and as uint8, are of other dtypes.
            given = [
                t.view(old.dtype) if isinstance(t, Tensor) else t for t, old in zip(tensors, one.given, strict=False)
            ]
            launch(one.kernel, one.programs, *given, *one.given[len(which) :], **one.constants)


def record(
    inputs: Sequence[Tensor | None], fixed: Sequence[Tensor], call: Callable[[], Results]
) -> tuple[Results, Recorded | None]:
    """What `call()` returns, and how to repeat it on other inputs; None where that cannot be.

    Args:
        inputs: all tensors that it reads and that are others each time.
        fixed: tensors that stay.
        call: makes tensors, contiguous ones, and launches kernels; results are tensors that it made.
    """
    with noted() as launches, _Watch() as watch:
        results = call()
    if watch.computes:
        return results, None
    try:
        # What was made, launched and returned is alive here, so that no two of them lie at one address.
        return results, Recorded(inputs, fixed, watch.made, launches, results)
    except (LookupError, RuntimeError):
        return results, None
