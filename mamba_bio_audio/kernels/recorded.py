"""What a call of an operation does on the host, found out once: which tensors it makes, and what it launches on them.

`record` makes such a call and notes both; a call on other tensors of the same kind is then a few allocations and launches, and
none of the checks and choices that led to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import JITFunction

from mamba_bio_audio.kernels.launch import Launched, again, launch, noted

Results = tuple[Tensor | None, ...]
_ALIGNED = 256  # bytes, as of any tensor that PyTorch makes on a GPU
_MAKES = ("aten.empty.", "aten.empty_like.")
# Other names for what is there.
_VIEWS = tuple(
    f"aten.{name}."
    for name in (
        "alias", "as_strided", "detach", "permute", "select", "slice", "split", "split_with_sizes", "squeeze", "t",
        "transpose", "unbind", "unsqueeze", "view",
    )
)  # fmt: skip


class _View(NamedTuple):
    """A tensor by how it lies in the one, of several, that has its memory."""

    place: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int  # elements from the start of that memory
    whole: bool  # it is that one


def _among(t: Tensor, others: Sequence[Tensor | None]) -> bool:
    """Whether one of them is in the memory of t."""
    start = t.untyped_storage().data_ptr()
    return any(other is not None and other.untyped_storage().data_ptr() == start for other in others)


def _side_by_side(tensors: Sequence[Tensor]) -> tuple[list[int], int]:
    """Where each of them begins in memory for all, and how many bytes that is."""
    offsets, size = [], 0
    for t in tensors:
        offsets.append(size)
        size += -(-t.numel() * t.element_size() // _ALIGNED) * _ALIGNED
    return offsets, size


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
        results: Results, kept: Results,
    ) -> None:  # fmt: skip
        """Raises LookupError where it cannot be repeated."""
        self._device = next(t for t in inputs if t is not None).device
        own: list[Tensor] = []
        room: list[Tensor] = []
        passing: list[Tensor] = []
        for new in made:
            if not new.is_contiguous():
                raise LookupError("made in an order of its own")
            whose = own if _among(new, results) else room if _among(new, kept) else passing
            whose.append(new)
        everything = [*inputs, *fixed, *passing, *room, *own]
        places: dict[int, int] = {}  # by address
        wholes: dict[int, int] = {}  # of what is all of its memory
        for place, t in enumerate(everything):
            if t is None:
                continue
            if t.data_ptr() in places or not t.numel():
                raise LookupError("two arguments are one, or there is nothing in them")
            places[t.data_ptr()] = place
            memory = t.untyped_storage()
            if t.data_ptr() == memory.data_ptr() and t.numel() * t.element_size() == memory.nbytes():
                wholes[memory.data_ptr()] = place
        self._fixed = [t.data_ptr() for t in fixed]
        self._offsets, self._size = _side_by_side(passing)
        self._room_offsets, self._room_size = _side_by_side(room)
        self._own = [(t.shape, t.dtype) for t in own]
        # Places behind `everything`: so many bytes behind what is at another one.
        self._inner: list[tuple[int, int]] = []

        def place_of(t: Tensor) -> int:
            if t.data_ptr() in places:
                return places[t.data_ptr()]
            start = t.untyped_storage().data_ptr()
            found = (wholes[start], t.data_ptr() - start)
            if found not in self._inner:
                self._inner.append(found)
            return len(everything) + self._inner.index(found)

        self._launches: list[tuple[Any, Callable[[Any], Any]]] = []
        self._interpreted = []
        for one in launches:
            which = [place_of(t) for t in one.given if isinstance(t, Tensor)]
            if not isinstance(one.kernel, JITFunction):  # the interpreter
                self._interpreted.append((one, which))
                continue
            run = again(one)
            if run is None:
                raise LookupError("a kernel was not compiled for these")
            self._launches.append((run, itemgetter(*which)))
        self._tensors = (fixed, passing, room) if self._interpreted else None

        def described(t: Tensor | None, of: list[Tensor]) -> _View | None:
            if t is None:
                return None
            place = next((i for i, whole in enumerate(of) if _among(whole, [t])), None)
            if place is None:
                raise LookupError("a result was not made here")
            same = t.shape == of[place].shape and t.stride() == of[place].stride()
            return _View(place, t.dtype, t.shape, t.stride(), int(t.storage_offset()), same)

        self._results = [described(t, own) for t in results]
        self._kept = [described(t, room) for t in kept]
        if any(view.dtype != own[view.place].dtype for view in self._results if view is not None):
            raise LookupError("a result is another name of other numbers")

    def __call__(self, inputs: Sequence[Tensor | None]) -> Results | None:
        """The results on other tensors, and the room of what is kept if anything is.

        None where these lie so that it must go the longer way.
        """
        device = self._device
        made = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in self._own]
        room = torch.empty(self._room_size, dtype=torch.uint8, device=device) if self._room_size else None
        if self._interpreted:
            self._interpret(inputs, room, made)
        else:
            addresses = [0 if t is None else t.data_ptr() for t in inputs]
            addresses += self._fixed
            if self._size:
                passing = torch.empty(self._size, dtype=torch.uint8, device=device)
                base = passing.data_ptr()
                addresses += [base + offset for offset in self._offsets]
            if room is not None:
                base = room.data_ptr()
                addresses += [base + offset for offset in self._room_offsets]
            addresses += [t.data_ptr() for t in made]
            addresses += [addresses[place] + offset for place, offset in self._inner]
            for run, which in self._launches:
                if not run(which(addresses)):
                    return None
        found: list[Tensor | None] = []
        for view in self._results:
            if view is None:
                found.append(None)
            else:
                t = made[view.place]
                found.append(t if view.whole else t.as_strided(view.shape, view.stride, view.offset))
        return tuple(found) if not self._kept else (*found, room)

    def apart(self, room: Tensor) -> Results:
        """What is kept, in the room that a call returned."""
        found: list[Tensor | None] = []
        for view in self._kept:
            if view is None:
                found.append(None)
            else:
                t = room[self._room_offsets[view.place] :].view(view.dtype)
                found.append(t.as_strided(view.shape, view.stride, t.storage_offset() + view.offset))
        return tuple(found)

    def _interpret(self, inputs: Sequence[Tensor | None], room: Tensor | None, made: list[Tensor]) -> None:
        assert self._tensors is not None
        fixed, passing, apart = self._tensors
        everything = [*inputs, *fixed, *(torch.empty_like(t) for t in passing)]
        if room is not None:
            everything += [
                room[offset:].view(t.dtype)[: t.numel()] for t, offset in zip(apart, self._room_offsets, strict=True)
            ]
        everything += made
        for place, offset in self._inner:
            whole = everything[place]
            assert whole is not None
            everything.append(whole.view(-1).view(torch.uint8)[offset:])
        for one, which in self._interpreted:
            tensors = [everything[i] for i in which]
            # Other names of a tensor, as bool and as uint8, are of other dtypes.
            given = [
                t.view(old.dtype) if isinstance(t, Tensor) else t for t, old in zip(tensors, one.given, strict=False)
            ]
            launch(one.kernel, one.programs, *given, *one.given[len(which) :], **one.constants)


def record(
    inputs: Sequence[Tensor | None], fixed: Sequence[Tensor], call: Callable[[], Results], *, kept: int = 0
) -> tuple[Results, Recorded | None]:
    """What `call()` returns, and how to repeat it on other inputs; None where that cannot be.

    Args:
        inputs: all tensors that it reads and that are others each time.
        fixed: tensors that stay.
        call: makes tensors, contiguous ones, and launches kernels; results are tensors that it made, or parts of them.
        kept: so many of its last results nobody looks at before they are taken `apart`: they go into one tensor.
    """
    with noted() as launches, _Watch() as watch:
        results = call()
    if watch.computes:
        return results, None
    shown = len(results) - kept
    try:
        # What was made, launched and returned is alive here, so that no two of them lie at one address.
        return results, Recorded(inputs, fixed, watch.made, launches, results[:shown], results[shown:])
    except (LookupError, RuntimeError):
        return results, None
