"""Trees of values and tensors come back exactly, and damaged or hostile files end in one message."""

import contextlib
import json
import math
import struct
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files.tensors import _checksum, load_tree, save_tree


def same(a: Any, b: Any) -> bool:
    """Equal in type and value, tensors and floats bit for bit."""
    if isinstance(a, Tensor):
        if not isinstance(b, Tensor) or (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        return a.contiguous().flatten().view(torch.uint8).equal(b.contiguous().flatten().view(torch.uint8))
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return (
            list(a) == list(b)
            and all(type(k) is type(j) for k, j in zip(a, b, strict=True))
            and all(map(same, a.values(), b.values()))
        )
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    return a == b


def crafted(path: Path, text: str, tensors: dict[str, Any] | None = None, data: bytes = b"") -> Path:
    """A file written by hand, with the check sum that it should have."""
    loaded = {}
    with contextlib.suppress(Exception):
        plain = json.dumps(tensors).encode()
        loaded = load(struct.pack("<Q", len(plain)) + plain + data)
    metadata = {"tree": f"{_checksum(text, loaded)} {text}"}
    header = json.dumps({"__metadata__": metadata, **(tensors or {})}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3, 4)], ids=str)
def test_tensors_of_every_dtype_and_shape_return_bit_for_bit(tmp_path, dtype, shape):
    size = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (size,), dtype=torch.uint8)
    tensor = raw.view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)
    save_tree(tmp_path / "t", tensor)
    assert same(load_tree(tmp_path / "t"), tensor)


VALUES = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**64), 10**400, 0.0, -0.0, 0.1, 5e-324, 1.7976931348623157e308,
    math.inf, -math.inf, math.nan, "", "tensor", "\n\0 \ud800é𝄞", [], (), {}, [[]], [()], ((),), {"": None},
    ["tensor", "0 the top"], ("list", ["dict"]), ["float", "inf"], {"tensor": 1}, {0: 1, 1: {2: ()}},
    {None: 1, True: 2, 1.5: 3, math.inf: 4, "5": 5, 5: 6}, {"__metadata__": [1, (2, {"tree": 3})]},
    {"state": {0: {"step": 1.0, "betas": (0.9, 0.95)}}, "param_groups": [{"lr": 1e-3, "params": [0, 1]}]},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:40].encode("ascii", "replace").decode())
def test_values_return_with_their_types(tmp_path, value):
    save_tree(tmp_path / "t", value)
    assert same(load_tree(tmp_path / "t"), value)


def test_places_of_tensors_need_not_be_names(tmp_path):
    tree = {key: torch.tensor(i) for i, key in enumerate(["__metadata__", "tree", "a/b", "", "é", "\ud800"])}
    tree["a"] = {"b": torch.tensor(9), 3: torch.tensor(10), "3": torch.tensor(11)}
    save_tree(tmp_path / "t", tree)
    assert same(load_tree(tmp_path / "t"), tree)


def test_shared_and_overlapping_and_strided_tensors(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tied = torch.nn.Parameter(torch.ones(3))
    tree = {"a": tied, "b": tied.detach(), "row": base[1], "column": base[:, 1], "t": base.T, "whole": base}
    save_tree(tmp_path / "t", tree)
    found = load_tree(tmp_path / "t")
    assert found["a"] is found["b"]
    for name, tensor in tree.items():
        assert torch.equal(found[name], tensor.detach()), name
    # Memory of its own: writing into one changes neither the others nor the file.
    found["whole"].zero_()
    assert torch.equal(found["row"], base[1])
    assert torch.equal(load_tree(tmp_path / "t")["whole"], base)


def test_an_optimiser_goes_on_from_a_loaded_state(tmp_path):
    def steps(model, optimizer, n):
        for i in range(n):
            model(torch.full((1, 3), 1.0 + i)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    steps(model, optimizer, 3)
    save_tree(tmp_path / "t", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    other = torch.nn.Linear(3, 2)
    again = torch.optim.AdamW(other.parameters(), lr=0.7, fused=True)
    tree = load_tree(tmp_path / "t")
    assert not isinstance(tree["model"], OrderedDict)
    other.load_state_dict(tree["model"])
    again.load_state_dict(tree["optimizer"])
    steps(model, optimizer, 3)
    steps(other, again, 3)
    assert same(dict(other.state_dict()), dict(model.state_dict()))
    assert same(again.state_dict(), optimizer.state_dict())


class Text(str):
    """Not quite a str."""


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": [1, {2, 3}]}, "set at a/1"),
        ({"a": b"x"}, "bytes at a"),
        ({"a": {(1, 2): 3}}, "key of type tuple at a"),
        ([Text("x")], "Text at 0"),
        ({"f": print}, "builtin_function_or_method at f"),
        (torch.float32, "dtype at the top"),
        ({"s": torch.eye(3).to_sparse()}, "sparse or quantised tensor at s"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_not_return_is_not_saved(tmp_path, value, words):
    (tmp_path / "t").write_text("before")
    with pytest.raises(TypeError, match=words):
        save_tree(tmp_path / "t", value)
    assert (tmp_path / "t").read_text() == "before"
    assert len([*tmp_path.iterdir()]) == 1


def test_nesting_without_end_is_not_saved(tmp_path):
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(TypeError, match="levels of nesting"):
        save_tree(tmp_path / "t", loop)


FLOAT = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HOSTILE = {
    "nested without end": ("[" * 100_000, {}, b""),
    "nested objects": ('{"a":' * 5000 + "1" + "}" * 5000, {}, b""),
    "nested lists": ('["list",' * 400 + "1" + "]" * 400, {}, b""),
    "not a number": ("NaN", {}, b""),
    "too large": ('{"a": 1e999}', {}, b""),
    "infinite": ('["list", -Infinity]', {}, b""),
    "a number without end": ("9" * 100_000, {}, b""),
    "no JSON": ("{", {}, b""),
    "nothing": ("", {}, b""),
    "a key twice": ('{"a": 1, "a": 2}', {}, b""),
    "equal keys": ('["dict", [1, 2], [1, 3]]', {}, b""),
    "an empty list": ("[]", {}, b""),
    "an unknown kind": ('["set", 1]', {}, b""),
    "no kind": ("[[1], 2]", {}, b""),
    "a list for a kind": ('[["list"], 1]', {}, b""),
    "no float": ('["float", "1e3"]', {}, b""),
    "a float of a list": ('["float", []]', {}, b""),
    "no such tensor": ('["tensor", "x"]', {}, b""),
    "a tensor of a list": ('["tensor", []]', {}, b""),
    "two names": ('["tensor", "x", "x"]', {"x": FLOAT}, b"1234"),
    "a tensor for a key": ('["dict", [["tensor", "x"], 1], [2, ["tensor", "x"]]]', {"x": FLOAT}, b"1234"),
    "a list for a key": ('["dict", [["list"], 1]]', {}, b""),
    "no pairs": ('["dict", 1]', {}, b""),
    "three of a pair": ('["dict", [1, 2, 3]]', {}, b""),
    "a tensor without a place": ("1", {"x": FLOAT}, b"1234"),
    "data cut short": ('["tensor", "x"]', {"x": FLOAT}, b"123"),
    "more data": ('["tensor", "x"]', {"x": FLOAT}, b"12345"),
    "an unknown dtype": ('["tensor", "x"]', {"x": FLOAT | {"dtype": "F31"}}, b"1234"),
    "a shape too large": ('["tensor", "x"]', {"x": FLOAT | {"shape": [2**62, 2**62]}}, b"1234"),
    "a negative shape": ('["tensor", "x"]', {"x": FLOAT | {"shape": [-1]}}, b"1234"),
    "offsets that overlap": ('["list", ["tensor", "x"], ["tensor", "y"]]', {"x": FLOAT, "y": FLOAT}, b"1234"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_end_in_one_message(tmp_path, name):
    path = crafted(tmp_path / "t.safetensors", *HOSTILE[name])
    with pytest.raises(InputError, match=r"t\.safetensors: damaged \(.+\); start again"):
        load_tree(path, remedy="start again")
    with pytest.raises(InputError) as found:
        load_tree(path)
    assert "checksum" not in str(found.value)


def test_files_that_are_something_else(tmp_path):
    path = tmp_path / "t"
    for data in (
        b"",
        b"\0",
        b"PK\3\4",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        b"\x80\x04N.",
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"damaged .*; restore the file"):
            load_tree(path)
    header = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"1234")
    with pytest.raises(InputError, match="not written by this program"):
        load_tree(path)
    for place in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match=r"cannot be read .*; restore the file"):
            load_tree(place)


def test_a_file_cut_short_anywhere_is_told(tmp_path):
    path = tmp_path / "t"
    save_tree(path, {"a": torch.arange(5), "b": [1.5, torch.ones(3)]})
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match="damaged"):
            load_tree(path)


def test_equal_trees_make_equal_files(tmp_path):
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom mamba_bio_audio.files.tensors import save_tree\n"
        "save_tree(Path(sys.argv[1]), {'b': torch.ones(2), 'a': [torch.zeros(1), 1.5], 3: None})"
    )
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_no_changed_byte_is_taken_for_the_truth(tmp_path):
    path, tree = tmp_path / "t", {"a": torch.arange(5), "b": [1.5, torch.ones(3)], "lr": 0.001}
    save_tree(path, tree)
    data = path.read_bytes()
    told = 0
    for at in range(len(data)):
        for flip in (1, 0x20, 0x80):
            path.write_bytes(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])
            try:
                assert same(load_tree(path), tree), at
            except InputError:
                told += 1
    # White space, and the case of a hexadecimal digit in an escape, mean nothing.
    assert told > 3 * len(data) - 30


def test_a_description_too_long_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("mamba_bio_audio.files.tensors.MOST_TEXT", 100)
    with pytest.raises(InputError, match="101 characters"):
        load_tree(crafted(tmp_path / "t", " " * 100 + "1"))
    with pytest.raises(TypeError, match="characters besides its tensors"):
        save_tree(tmp_path / "u", "x" * 200)
