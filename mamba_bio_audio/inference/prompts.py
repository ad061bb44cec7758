"""What samples continue: checked, cut into batches, and read into states.

Prompts of one length go through the model together, as an array. Others are read one by one in pieces, from memory or
from disk, and their states are joined: the rows then step as one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference.decoding import prefill
from mamba_bio_audio.inference.streaming import Inputs, Row, fork, join

# Symbols of a prompt that are read from disk at once.
_PIECE = 1 << 18
# What samples continue: text, ids (P,) for all rows or (R, P), or a list of prompts, whose lengths may differ.
Prompt = str | Sequence[int] | Sequence[str] | Sequence[Row] | NDArray[Any] | Tensor | None


def check_prompt(model: nn.Module, prompt: Prompt, num_samples: int) -> Tensor | list[Row] | None:
    """The prompt as (1 or num_samples, P) int64, or 1 or num_samples prompts of their own lengths; None if there is none.

    Raises:
        InputError: a symbol that the model does not know, an empty prompt among others, or another number of them.
    """
    if prompt is None:
        return None
    if isinstance(prompt, str):
        prompt = _encode(model, prompt)
    elif (rows := _own_lengths(model, prompt)) is not None:
        if len(rows) not in (1, num_samples):
            raise InputError(
                f"there are {len(rows)} prompts, but num_samples is {num_samples}; give 1 or {num_samples}"
            )
        return rows
    if not isinstance(prompt, Tensor):
        try:
            prompt = np.asarray(prompt)
        except ValueError as error:
            raise InputError(f"the prompt is no array of ids ({error}); pass shape (P,) or (num_samples, P)") from None
        if prompt.size and prompt.dtype.kind not in "iuf":
            raise InputError(f"the prompt is an array of {prompt.dtype}; pass integer ids, or text")
    ids = torch.as_tensor(prompt if isinstance(prompt, Tensor) or prompt.size else np.zeros(0, np.int64))
    if not ids.numel():
        return None
    if ids.dtype.is_floating_point or ids.dtype == torch.bool or ids.ndim not in (1, 2):
        raise InputError(
            f"the prompt is {ids.dtype} of shape {tuple(ids.shape)}; pass integer ids of shape (P,) or (num_samples, P)"
        )
    ids = ids.long().reshape(-1, ids.shape[-1])
    if len(ids) not in (1, num_samples):
        raise InputError(f"the prompt has {len(ids)} rows, but num_samples is {num_samples}; give 1 or {num_samples}")
    _check_ids(model, ids)
    return ids


def _own_lengths(model: nn.Module, prompt: Any) -> list[Row] | None:
    """The items of a list of prompts that is no array: of several lengths, as text, or read from disk; else None."""
    if not isinstance(prompt, list | tuple) or not prompt:
        return None
    if not all(hasattr(one, "__len__") and getattr(one, "ndim", 1) for one in prompt):
        return None
    arrays = all(isinstance(one, list | tuple | np.ndarray | Tensor) for one in prompt)
    if arrays and len({len(one) for one in prompt}) == 1:
        return None
    # An object that occurs several times stays one, whose state is computed once.
    found: dict[int, Row] = {}
    for number, one in enumerate(prompt):
        if not len(one):
            raise InputError(f"prompt {number} is empty; give each sample at least one symbol to continue")
        if id(one) in found:
            continue
        if isinstance(one, str):
            found[id(one)] = _encode(model, one)
        elif isinstance(one, list | tuple | np.ndarray | Tensor):
            found[id(one)] = ids = np.asarray(one.cpu() if isinstance(one, Tensor) else one)
            if ids.ndim != 1 or ids.dtype.kind not in "iu":
                raise InputError(f"prompt {number} is {ids.dtype} of shape {ids.shape}; pass integer ids of shape (P,)")
            _check_ids(model, torch.from_numpy(ids.astype(np.int64)))
        else:
            found[id(one)] = one
    return [found[id(one)] for one in prompt]


def _encode(model: nn.Module, text: str) -> NDArray[Any]:
    """Ids of a prompt of text."""
    codec = getattr(model, "codec", None)
    if codec is None:
        raise InputError("this model has no codec for a text prompt; pass token ids")
    if text:
        codec.check_prompt(text)
    ids: NDArray[Any] = codec.encode(text)
    return ids


def _check_ids(model: nn.Module, ids: Tensor) -> None:
    vocabulary = vocabulary_of(model)
    if getattr(model, "codec", None) is None:
        # Who gives ids without a codec also gives the one that inputs begin with.
        vocabulary = getattr(getattr(model, "model_config", None), "inputs", None) or vocabulary
    if int(ids.min()) < 0 or (vocabulary is not None and int(ids.max()) >= vocabulary):
        raise InputError(
            f"the prompt contains ids {int(ids.min())} to {int(ids.max())}; valid ids are 0 to "
            + ("the end of the vocabulary" if vocabulary is None else str(vocabulary - 1))
        )


def batches(
    model: nn.Module,
    prefix: Tensor | list[Row] | None,
    num_samples: int,
    most: int,
    classes: Sequence[str] | None = None,
) -> Iterator[tuple[int, int]]:
    """Rows that are sampled together, as (first row, number of rows), in order.

    Rows of one batch share their class, their place in the periods of a U-Net, and the length of a state that grows, so a
    batch also ends where these change.

    Args:
        prefix: of `check_prompt`.
        num_samples: rows in all.
        most: most rows of a batch.
        classes: class of each row; None where there are none.
    """
    places: list[Any] = [0] * num_samples
    if isinstance(prefix, list) and len(prefix) > 1:
        constant = getattr(model, "streaming", "constant") == "constant"
        period = int(getattr(getattr(model, "model_config", None), "period", 1))
        places = [len(one) % period if constant else len(one) for one in prefix]
    if classes is not None:
        places = list(zip(places, classes, strict=True))
    low = 0
    while low < num_samples:
        high = min(low + most, num_samples)
        high = next((row for row in range(low, high) if places[row] != places[low]), high)
        yield low, high - low
        low = high


def read_prompts(
    model: nn.Module,
    prompts: list[Row],
    rows: int,
    device: torch.device,
    told: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Any]:
    """Read prompts one after the other, in pieces; neighbours that are one object are read once.

    Args:
        model: in evaluation mode.
        prompts: one for all rows, or one for each.
        rows: R.
        device: of the model.
        told: called with (symbols read, symbols in all) after every piece.

    Returns:
        Their last symbols (R, 1), and the states before them as those of one batch.
    """
    start_id = getattr(getattr(model, "codec", None), "start_id", None)
    states, last, of = [], [], []
    own = [prompt for number, prompt in enumerate(prompts) if number == 0 or prompt is not prompts[number - 1]]
    read, size = 0, sum(map(len, own))
    for number, prompt in enumerate(prompts):
        if number == 0 or prompt is not prompts[number - 1]:
            inputs, state = Inputs(prompt, start_id), None
            for low in range(0, len(inputs), _PIECE):
                ids = torch.from_numpy(np.asarray(inputs[low : low + _PIECE]).astype(np.int64))
                state = prefill(model, ids[None].to(device), state)
                if told is not None:
                    told(min(read + low + _PIECE, read + len(prompt)), size)
            read += len(prompt)
            states.append(state)
            last.append(int(prompt[len(prompt) - 1 : len(prompt)][0]))
        of.append(len(states) - 1)
    of = of * rows if len(prompts) == 1 else of
    if any(state is None for state in states) and not all(state is None for state in states):
        kind = next(model.parameters()).dtype
        states = [model.init_state(1, device, kind) if state is None else state for state in states]  # type: ignore[operator]
    return torch.tensor(last, device=device)[of][:, None], None if states[0] is None else fork(join(states), of)


def check_classes(model: nn.Module, given: str | Sequence[str] | None, num_samples: int) -> list[str] | None:
    """The class of each sample; None where none is asked for.

    Raises:
        InputError: a class that the model does not have, or another number of them.
    """
    if given is None:
        return None
    if not isinstance(given, str | Sequence):
        raise InputError(f"class_ is {given!r}; give the name of a class, or a list with one for each sample")
    names = [given] * num_samples if isinstance(given, str) else list(given)
    if len(names) != num_samples:
        raise InputError(
            f"class_ lists {len(names)} classes, but num_samples is {num_samples}; give one name, or one for each sample"
        )
    known: Sequence[str] = getattr(model, "classes", ())
    for name in names:
        if not known:
            raise InputError(f"class {name!r}: this model was trained without classes (model.classes); leave it out")
        if name not in known:
            raise InputError(f"this model has no class {name!r}; choose from {', '.join(known)}")
    return names


def vocabulary_of(model: nn.Module) -> int | None:
    """Number of symbols, if the model states it."""
    for owner in (getattr(model, "codec", None), getattr(model, "model_config", None), model):
        size = getattr(owner, "vocab_size", None)
        if size is not None:
            return int(size)
    return None
