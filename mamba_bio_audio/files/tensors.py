"""Stores nested Python values with tensors in one safetensors file; the format of checkpoints and saved states.

Tensors are stored as the file's tensors. Its metadata holds one text, `tree`: a hexadecimal checksum of everything, so
that damage is detected even if the file still opens; a space; and JSON that says where each tensor belongs:

| value | in JSON |
|---|---|
| None, bool, int, str, finite float | itself |
| dict with string keys | an object |
| list, tuple | `["list", ...]`, `["tuple", ...]` |
| dict with any other key | `["dict", [key, value], ...]` |
| infinities, NaN | `["float", "inf"]`, `"-inf"`, `"nan"` |
| tensor | `["tensor", name in the file]` |

Reading a file builds these values and nothing else, whatever it contains: no class is looked up and no code is run.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import atomic_path

# Most characters of the tree: enough for a hundred thousand tensors, while a hostile file cannot fill the memory.
MOST_TEXT = 2**24
_DEEPEST = 100


def save_tree(path: Path, tree: Any) -> None:
    """Write `tree` to `path`, whole or not at all.

    Args:
        path: path of the file; an existing file is replaced.
        tree: None, bool, int, float, str, tensor, or a dict, list or tuple of these, nested up to 100 deep. The keys
            of a dict may be None, bool, int, float or str. A tensor that occurs twice is stored once. Devices, strides
            and `requires_grad` are not kept.

    Raises:
        TypeError: the tree contains anything else; the message says where.
        OSError: it cannot be written, for example because the disk is full; an existing file is kept.
    """
    writer = _Writer()
    text = json.dumps(writer.encode(tree, ()), allow_nan=False, separators=(",", ":"))
    if len(text) > MOST_TEXT:
        raise TypeError(f"the tree takes {len(text):,} characters besides its tensors; the limit is {MOST_TEXT:,}")
    # A single entry: the order of several would vary, and equal trees would give unequal files.
    metadata = {"tree": f"{_checksum(text, writer.tensors)} {text}"}
    with atomic_path(path) as temporary:
        save_file(writer.tensors, temporary, metadata=metadata)


def load_tree(path: Path, *, remedy: str = "restore the file") -> Any:
    """Read what `save_tree` wrote; the tensors are on the CPU, in memory of their own.

    Args:
        path: path of the file.
        remedy: for messages: what to do if the file cannot be used.

    Raises:
        InputError: the file is missing, damaged, truncated, or not of this format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            entry = (file.metadata() or {}).get("tree")
            if entry is None:
                raise ValueError("it was not written by this program: it does not say where its tensors belong")
            checksum, _, text = entry.partition(" ")
            if len(text) > MOST_TEXT:
                raise ValueError(f"its values take {len(text):,} characters; the limit is {MOST_TEXT:,}")
            described = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
            # Copied, because a view would keep the file mapped, and so on disk after it has been replaced.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if checksum != _checksum(text, tensors):
            raise ValueError("its checksum does not match")
        used: set[str] = set()
        tree = _decode(described, tensors, used, 0)
        if len(used) != len(tensors):
            raise ValueError(f"it holds {len(tensors) - len(used):,} tensors that belong nowhere")
        return tree
    except (SafetensorError, RecursionError, ValueError, TypeError, KeyError, OverflowError, RuntimeError) as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"{path}: damaged ({reason}); {remedy}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); {remedy}") from None


class _Writer:
    """Separates the tensors of a tree from its other values."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._storages: set[int] = set()

    def encode(self, value: Any, place: tuple[Any, ...]) -> Any:
        kind = type(value)
        if len(place) > _DEEPEST:
            raise TypeError(f"more than {_DEEPEST} levels of nesting at {_words(place)[:200]}")
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return value if math.isfinite(value) else ["float", str(value)]
        if isinstance(value, Tensor):
            return ["tensor", self._name(value, place)]
        if kind in (list, tuple):
            return [kind.__name__, *(self.encode(item, (*place, i)) for i, item in enumerate(value))]
        # Includes the ordered and default dicts that torch and Lightning use.
        if isinstance(value, dict):
            if all(type(key) is str for key in value):
                return {key: self.encode(item, (*place, key)) for key, item in value.items()}
            for key in value:
                if not (key is None or type(key) in (bool, int, float, str)):
                    raise TypeError(f"a key of type {type(key).__name__} at {_words(place)} cannot be saved")
            pairs = ([self.encode(key, place), self.encode(item, (*place, key))] for key, item in value.items())
            return ["dict", *pairs]
        raise TypeError(f"a value of type {kind.__name__} at {_words(place)} cannot be saved")

    def _name(self, tensor: Tensor, place: tuple[Any, ...]) -> str:
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise TypeError(f"a sparse or quantised tensor at {_words(place)} cannot be saved")
        own = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if own not in self._names:
            plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
            # Views of one tensor are stored separately.
            storage = plain.untyped_storage().data_ptr()
            if storage and storage in self._storages:
                plain = plain.clone()
            self._storages.add(plain.untyped_storage().data_ptr())
            # The number makes the name unique; the rest is for people.
            name = f"{len(self.tensors)} {_words(place)}".encode("ascii", "backslashreplace").decode()
            self._names[own] = name
            self.tensors[name] = plain
        return self._names[own]


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    """CRC-32 over the tree and the names, types and bytes of all tensors, as 8 hexadecimal digits."""
    value = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        if tensor.numel():
            value = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def _words(place: tuple[Any, ...]) -> str:
    return "/".join(map(str, place)) or "the top level"


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it contains a name twice")
    return found


def _decode(value: Any, tensors: dict[str, Tensor], used: set[str], depth: int) -> Any:
    if depth > _DEEPEST:
        raise ValueError(f"more than {_DEEPEST} levels of nesting")
    if isinstance(value, dict):
        return {key: _decode(item, tensors, used, depth + 1) for key, item in value.items()}
    if not isinstance(value, list):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("a number is too large for JSON")
        return value
    kind, *items = value
    if kind in ("list", "tuple"):
        parts = [_decode(item, tensors, used, depth + 1) for item in items]
        return parts if kind == "list" else tuple(parts)
    if kind == "dict":
        pairs = [(_decode(key, {}, used, depth), _decode(item, tensors, used, depth + 1)) for key, item in items]
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("it contains a key twice")
        return found
    (item,) = items
    if kind == "float" and item in ("inf", "-inf", "nan"):
        return float(item)
    if kind == "tensor":
        used.add(item)
        return tensors[item]
    raise ValueError(f"{kind!r} is not a known kind of value")


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor that contains an infinity or NaN; None if there is none."""
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    if not floats:
        return None
    # One answer for all tensors, so that a GPU is waited for only once.
    sound = torch.stack([torch.isfinite(tensor).all() for tensor in floats.values()]).tolist()
    return None if all(sound) else list(floats)[sound.index(False)]
