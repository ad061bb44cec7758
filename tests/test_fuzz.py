"""Every reader of what users give, on hostile inputs: one clear error or the truth, no traceback, no misread.

What is accepted is compared with a second, simpler reader. Each sees 500 inputs in `make test`, and 10,000 with

    pytest -m fuzz tests/test_fuzz.py

The inputs are the same in every run; FUZZ_SEED=1 draws others.
"""

import gzip
import hashlib
import io
import os
import pickle
import re
import struct
import tempfile
import warnings
import wave
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files.tensors import load_tree, save_tree
from mamba_bio_audio.inference.generate import generate
from mamba_bio_audio.layers.config import SsmConfig
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.pipelines.audio.files import open_file
from mamba_bio_audio.pipelines.dna.classes_config import DnaClassesConfig
from mamba_bio_audio.pipelines.dna.fasta_index import lower_runs
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.intervals import read_intervals
from mamba_bio_audio.pipelines.dna.labelled import open_labelled
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.pipelines.dna.vcf import Calls, annotated
from mamba_bio_audio.pipelines.spans import Interval
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.training.checkpoints import check_fits, check_optimizer, load_checkpoint

# Every fuzzer takes this many inputs.
sizes = pytest.mark.parametrize("inputs", [500, pytest.param(10_000, marks=[pytest.mark.fuzz, pytest.mark.slow])])


def fuzz(inputs: int) -> Callable[[Any], Any]:
    """So many inputs, from a fixed seed unless FUZZ_SEED is set."""

    def wrap(test: Any) -> Any:
        chosen = os.environ.get("FUZZ_SEED")
        test = settings(
            max_examples=inputs,
            deadline=None,
            database=None,
            derandomize=chosen is None,
            suppress_health_check=list(HealthCheck),
        )(test)
        return test if chosen is None else seed(int(chosen))(test)

    return wrap


def named(error: InputError, *places: str) -> None:
    """The message says where."""
    assert any(place in str(error) for place in places), str(error)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch) -> Any:
    # In memory where that is possible: a file is written for every FASTA.
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base) as folder:
        monkeypatch.setenv("MAMBA_BIO_AUDIO_CACHE", folder)
        yield Path(folder)


LINES = [
    *(
        b">a",
        b">b some words",
        b">chr1:5-9",
        b">",
        b"> ",
        b">\xff",
        b">a\tx",
        b"ACGTACGT",
        b"ACGTACGT",
        b"acgtnnNN",
        b"AC",
    ),
    *(
        b"RYKM-*.U",
        b"",
        b" ",
        b"ACGT ACG",
        b"1",
        b"A\x00CGTACG",
        b"A\rCGTACG",
        b";old comment",
        b"MKVLPEFIL",
        b"\xc3\xa9",
    ),
]
fasta_bytes = st.builds(
    lambda lines, newline, tail, front: front + newline.join(lines) + tail,
    st.lists(st.sampled_from(LINES), max_size=9),
    st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"]),
    st.sampled_from([b"", b"\n", b"\n\n", b"\r\n", b"\x1f\x8b"]),
    st.sampled_from([b"", b"", b"", b">first\n", b"\n", b"\xef\xbb\xbf"]),
)


def wrapped(texts: list[str], width: int, newline: bytes, edits: list[tuple[int, bytes]]) -> bytes:
    """Well-formed records, then a byte here and there replaced."""
    rows = []
    for number, text in enumerate(texts):
        rows.append(b">r%d" % number)
        rows += [text[at : at + width].encode() for at in range(0, len(text), width)]
    data = newline.join(rows) + newline
    for at, value in edits:
        at %= len(data)
        data = data[:at] + value + data[at + 1 :]
    return data


well_formed = st.builds(
    wrapped,
    st.lists(st.text("ACGTacgtNRn", min_size=1, max_size=30), min_size=1, max_size=3),
    st.integers(1, 12),
    st.sampled_from([b"\n", b"\r\n"]),
    st.lists(
        st.tuples(st.integers(0, 120), st.sampled_from([b"", b"\n", b">", b"A", b"x", b" ", b"\r", b"AC"])), max_size=1
    ),
)
fasta_bytes = fasta_bytes | well_formed | well_formed | st.binary(max_size=40)


def simple_fasta(data: bytes) -> dict[str, str]:
    """Records of well-formed FASTA, upper case, all but A, C, G, T as N."""
    records: dict[str, str] = {}
    for line in data.decode().split("\n"):
        line = line.rstrip("\r")
        if not line:
            continue
        if line.startswith(">"):
            name = line[1:].split()[0]
            assert name not in records
            records[name] = ""
        else:
            records[name] += "".join(letter if letter in "ACGT" else "N" for letter in line.upper())
    return records


@sizes
def test_fasta(cache: Path, inputs: int) -> None:
    accepted = []
    path = cache / "x.fa"

    @fuzz(inputs)
    @given(fasta_bytes)
    def check(data: bytes) -> None:
        path.write_bytes(data)
        os.utime(path, ns=(len(accepted), hash(data) % 2**60))
        try:
            genome = Genome(path)
            found = {name: genome.codec.decode(genome.fetch(name, 0, size)) for name, size in genome.records.items()}
        except InputError as error:
            named(error, str(path))
            return
        assert found == simple_fasta(data)
        accepted.append(data)

    check()
    assert len(accepted) > inputs / 40


RECORDS = {"a": "ACNNacgtTGCA", "chr1": "NNACGTACGTACGTAC", "b": "g"}


def simple_twobit(data: bytes) -> dict[str, tuple[str, list[int]]]:
    """Bases and lower-case positions of every record, word by word."""
    order = "<" if data[:4] == struct.pack("<I", 0x1A412743) else ">"
    _, version, count, _ = struct.unpack(order + "4I", data[:16])
    at, records = 16, {}
    for _ in range(count):
        name = data[at + 1 : at + 1 + data[at]].decode()
        at += 1 + data[at]
        (place,) = struct.unpack(order + ("Q" if version else "I"), data[at : at + (8 if version else 4)])
        at += 8 if version else 4
        (length,) = struct.unpack(order + "I", data[place : place + 4])
        place += 4
        marked = []
        for _ in range(2):
            (blocks,) = struct.unpack(order + "I", data[place : place + 4])
            words = struct.unpack(f"{order}{2 * blocks}I", data[place + 4 : place + 4 + 8 * blocks])
            runs = zip(words[:blocks], words[blocks:], strict=True)
            marked.append({base for start, size in runs for base in range(start, start + size)})
            place += 4 + 8 * blocks
        place += 4
        letters = ["TCAG"[data[place + base // 4] >> (6 - 2 * (base % 4)) & 3] for base in range(length)]
        text = "".join("N" if base in marked[0] else letter for base, letter in enumerate(letters))
        records[name] = (text, sorted(marked[1]))
    return records


def packed(records: dict[str, str], order: str, version: int) -> bytes:
    """A 2bit file of a few short records."""
    directory, data = b"", b""
    start = 16 + sum(1 + len(name) + (8 if version else 4) for name in records)
    for name, text in records.items():
        place = struct.pack(order + ("Q" if version else "I"), start + len(data))
        directory += bytes([len(name)]) + name.encode() + place
        data += struct.pack(order + "I", len(text))
        for letters in ("Nn", "acgtn"):
            at = [base for base, letter in enumerate(text) if letter in letters]
            data += struct.pack(f"{order}{1 + 2 * len(at)}I", len(at), *at, *[1] * len(at))
        codes = ["TCAG".find(letter) if letter in "TCAG" else 0 for letter in text.upper()] + [0] * (-len(text) % 4)
        data += bytes(4) + bytes(
            sum(c << 6 - 2 * i for i, c in enumerate(codes[b : b + 4])) for b in range(0, len(codes), 4)
        )
    return struct.pack(order + "4I", 0x1A412743, version, len(records), 0) + directory + data


@sizes
def test_twobit(cache: Path, inputs: int) -> None:
    accepted = []
    path = cache / "x.2bit"
    edits = st.lists(
        st.tuples(st.integers(0, 200), st.sampled_from([0, 1, 2, 3, 4, 7, 16, 60, 97, 127, 128, 255])), max_size=2
    )

    @fuzz(inputs)
    @given(st.sampled_from("<>"), st.integers(0, 1), edits, st.integers(0, 400))
    def check(order: str, version: int, edits: list[tuple[int, int]], size: int) -> None:
        data = bytearray(packed(RECORDS, order, version))
        for at, value in edits:
            data[at % len(data)] = value
        if size < 100:
            data = data[:size]
        path.write_bytes(data)
        os.utime(path, ns=(len(accepted), hash(bytes(data)) % 2**60))
        try:
            genome = Genome(path)
            found = {}
            for name, length in genome.records.items():
                lower = genome.lower_case(name, 0, length).nonzero()[0].tolist()
                found[name] = (genome.codec.decode(genome.fetch(name, 0, length)), lower)
        except InputError as error:
            named(error, str(path))
            return
        assert found == simple_twobit(bytes(data))
        accepted.append(data)

    check()
    assert len(accepted) > inputs / 40


FIELDS = [
    "a",
    "chr1",
    "1",
    "track",
    "chr1:3-8",
    "chr1:9-3",
    "a:1-1",
    "0",
    "1",
    "5",
    "10",
    "16",
    "17",
    "-1",
    "+2",
    "1e3",
    "٣",
    "9" * 5000,
]
FIELDS += ["train", "valid", "val", "TEST", "test", "holdout", "", " ", "#", "x\x0cy", "\ufeffa", "\u2028"]
bed_line = st.builds(
    lambda record, start, end, split, separator: separator.join([record, start, end, split]),
    st.sampled_from(["a", "chr1", "1", "b", "track", "#a", "zz"]),
    st.sampled_from(["0", "1", "5", "16", "+2", "-1"]),
    st.sampled_from(["1", "6", "12", "16", "17"]),
    st.sampled_from(["train", "val", "test", "TRAIN", "other"]),
    st.sampled_from(["\t", "\t", " ", "  "]),
)
odd_line = st.lists(st.sampled_from(FIELDS), max_size=6).flatmap(
    lambda fields: st.sampled_from(["\t", " "]).map(lambda s: s.join(fields))
)
region_line = st.builds(
    lambda region, split: f"{region} {split}",
    st.sampled_from(["a", "chr1:3-8", "1:1-16", "b:1-1", "chr1:0-3", "a:1-13"]),
    st.sampled_from(["train", "test"]),
)
header = st.sampled_from(
    ["record\tstart0\tend\tsplit", "split\trecord\tend\tstart0", "file\trecord\tstart0\tend\tsplit", "record\tstart0"]
)


def simple_intervals(text: str, sizes: dict[str, int]) -> list[Interval]:
    """BED, regions, or a table, of what is known to be right."""
    names = {"1": "chr1"}
    splits = {"val": "valid", "validation": "valid"}
    columns = None
    rows = []
    for line in text.removeprefix("\ufeff").split("\n"):
        fields = [part.strip() for part in (line.split("\t") if "\t" in line else line.split())]
        if not line.strip() or line.startswith("#") or fields[0] in ("track", "browser"):
            continue
        if columns is None and ("record" in fields or "start0" in fields):
            columns = fields
            continue
        columns = columns or ["record", "start0", "end", "split"]
        if len(fields) == 2:
            record, _, place = fields[0].partition(":")
            record = names.get(record, record)
            start, end = (int(part) for part in place.split("-")) if place else (1, sizes[record])
            fields = [record, str(start - 1), str(end), fields[1]]
        row = dict(zip(columns, fields, strict=True))
        split = row["split"].lower()
        record = names.get(row["record"], row["record"])
        rows.append(Interval(record, int(row["start0"]), int(row["end"]), splits.get(split, split)))
    assert all(row.end <= sizes[row.record] for row in rows)
    return rows


@sizes
def test_intervals(cache: Path, inputs: int) -> None:
    (cache / "g.fa").write_text("".join(f">{name}\n{text}\n" for name, text in RECORDS.items()))
    genome = Genome(cache / "g.fa")
    path = cache / "x.bed"
    accepted = []
    lines = st.lists(bed_line | region_line | bed_line | odd_line, max_size=4)

    @fuzz(inputs)
    @given(
        st.none() | st.none() | header,
        lines,
        st.sampled_from(["\n", "\n", "\r\n", "\r"]),
        st.sampled_from(["", "\n", "\x00"]),
    )
    def check(first: str | None, lines: list[str], newline: str, tail: str) -> None:
        text = newline.join([*([first] if first else []), *lines]) + tail
        path.write_bytes(text.encode())
        try:
            found = read_intervals(path, genome)
        except InputError as error:
            named(error, str(path))
            return
        assert found == simple_intervals(text, genome.records)
        accepted.append(text)

    check()
    assert len(accepted) > inputs / 40


PAIRS = [
    "seed: 3",
    "seed: -1",
    "seed: '7'",
    "seed: 1e3",
    "seed: [1]",
    "name: x",
    "name: a/b",
    "description: hello",
    "extends: dna/tiny",
    "extends: nowhere",
]
PAIRS += [
    "extends: {a: 1}",
    "data: {path: demo}",
    "data: {path: demo, windows: head}",
    "data: {path: [demo]}",
    "data: {kind: rna, path: demo}",
    "data: 5",
]
PAIRS += [
    "model: {d_model: 8, num_layers: 1}",
    "model: {d_model: ${seed}}",
    "model: {d_modle: 8}",
    "model: null",
    "train: {steps: 5}",
]
PAIRS += [
    "train: {steps: 5, lr: 1e-3}",
    "train: {steps: 0}",
    "train: {steps: 1.5}",
    "train: {lr: .nan}",
    "train: !!python/object:os.system {}",
]
PAIRS += [
    "&a b: *a",
    "? x",
    "\t- y",
    "%",
    "seed: ${oc.env:HOME}",
    "seed: ${",
    "- 1",
    "'",
    "data: {path: \x00}",
    "1: 2",
    "null: 3",
    "...",
]
OVERRIDES = [
    "seed=4",
    "seed=x",
    "seed",
    "=3",
    "train.steps=7",
    "train.steps.x=1",
    "data.path=demo",
    "data.path=/nowhere",
    "a.b=c",
    "seed=${x}",
    "seed=[",
    "seed={a: 1}",
]
OVERRIDES += ["train.betas=[0.9,0.95]", "train.betas=[0.9]", "..=1", "data[0]=1", "model.d_model=16"]


@sizes
def test_config(cache: Path, inputs: int) -> None:
    accepted = []
    path = cache / "r.yaml"
    good = st.sampled_from([["extends: dna/tiny", "data: {path: demo}"], ["extends: dna/demo"], ["extends: dna/demo"]])
    pairs = st.lists(st.sampled_from(PAIRS), max_size=3)

    @fuzz(inputs)
    @given(good | good | st.just([]), pairs, st.lists(st.sampled_from(OVERRIDES), max_size=2))
    def check(first: list[str], rest: list[str], overrides: list[str]) -> None:
        path.write_bytes("\n".join([*first, *rest]).encode())
        try:
            config = load_config(str(path), overrides)
        except InputError as error:
            named(error, str(path), "--set", "recipe")
            return
        # What was accepted is what a plain YAML reader finds, the last override winning.
        plain = yaml.safe_load(path.read_text()) or {}
        given = dict(text.split("=", 1) for text in overrides)
        assert config.seed == int(float(given.get("seed", plain.get("seed", 0))))
        steps = given.get("train.steps", (plain.get("train") or {}).get("steps"))
        assert steps is None or config.train.steps == int(steps)
        assert config.data.path in ("demo", ["demo"])
        assert config.model.d_model == int(given.get("model.d_model", (plain.get("model") or {}).get("d_model", 64)))
        accepted.append(plain)

    check()
    assert len(accepted) > inputs / 40


@sizes
def test_prompts(inputs: int) -> None:
    config = ModelConfig(d_model=8, num_layers=1, ssm=SsmConfig(d_state=2), vocab_size=12)
    model = build_model(config, seed=0).eval()
    model.codec = DnaTokenizer()
    accepted = []
    texts = (
        st.text(st.sampled_from("ACGTNacgtn"), max_size=8)
        | st.text("ACGTUR \n>-é\x00", max_size=6)
        | st.text(max_size=4)
    )
    ids = st.lists(st.integers(-1, 13) | st.integers(7, 10) | st.sampled_from([2**40, 0]), max_size=6)
    wrong = st.sampled_from(
        [
            [[7], [8]],
            [[]],
            [1.5],
            [[[7]]],
            [True],
            [None],
            ["A"],
            [[7], [7, 8]],
            [2**70],
            torch.zeros(2),
            torch.tensor(7),
        ]
    )

    @fuzz(inputs)
    @given(texts | ids | ids.map(torch.tensor) | wrong)
    def check(prompt: Any) -> None:
        try:
            found = generate(model, length=1, prompt=prompt, seed=1)
        except InputError as error:
            named(error, "prompt")
            return
        assert found.shape == (1, 1)
        assert set(found.flatten().tolist()) <= {7, 8, 9, 10}
        if isinstance(prompt, str):
            assert set(prompt) <= set("ACGTNacgtn")
            values = [{"A": 7, "C": 8, "G": 9, "T": 10, "N": 11}[letter] for letter in prompt.upper()]
            assert generate(model, length=1, prompt=values or None, seed=1).tolist() == found.tolist()
        accepted.append(prompt)

    check()
    assert len(accepted) > inputs / 40


CHECKPOINTED = ModelConfig(d_model=4, num_layers=1, ssm=SsmConfig(d_state=2), vocab_size=12)


def small_checkpoint(model: torch.nn.Module) -> dict[str, Any]:
    """As a training with a moving average writes it."""
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    moments = {
        number: {"step": torch.tensor(3.0), "exp_avg": torch.zeros_like(own), "exp_avg_sq": torch.ones_like(own)}
        for number, own in enumerate(islice(model.parameters(), 2))
    }
    return {
        "step": 3,
        "weights": weights,
        "average": {name: tensor + 1 for name, tensor in weights.items()},
        "averaged": 3,
        "optimizer": moments,
        "random": {"cpu": torch.arange(8, dtype=torch.uint8)},
        "steps": {
            "best": float("inf"),
            "best_step": 0,
            "stale": 0,
            "best_samples": float("inf"),
            "best_samples_step": 0,
            "row": {"step": 3, "lr": "0.001"},
            "nats": torch.tensor(1.5, dtype=torch.float64),
            "count": torch.tensor(64),
        },
    }


class Planted:
    """Leaves a folder behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def equal(a: Any, b: Any) -> bool:
    """The same values and types, with tensors and in containers; what is not a number equals itself."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


@sizes
def test_checkpoint_bytes(cache: Path, inputs: int) -> None:
    """Bytes changed, lost, put in or appended: the checkpoint as it was, or one error; nothing planted is run."""
    model = build_model(CHECKPOINTED, seed=0)
    path = cache / "last.safetensors"
    save_tree(path, small_checkpoint(model))
    whole = path.read_bytes()
    truth = load_checkpoint(path).model_dump()
    (size,) = struct.unpack("<Q", whole[:8])
    planted = pickle.dumps(Planted(cache / "owned"))
    pieces = [
        b"\0",
        b"{",
        b"}",
        b'"',
        b"[",
        b"]",
        b",",
        b"1",
        b"-",
        b"9" * 30,
        b"F64",
        b"I8",
        b"NaN",
        b"\xff",
        b"[" * 999,
    ]
    edits = st.lists(
        st.tuples(
            st.integers(0, 7) | st.integers(8, size + 7) | st.integers(8, size + 7) | st.integers(size, len(whole) - 1),
            st.sampled_from(["set", "set", "add", "cut"]),
            st.sampled_from([*pieces, planted]) | st.binary(min_size=1, max_size=2),
        ),
        max_size=2,
    )
    tails = st.sampled_from([None, None, None, "cut", b"\0", planted])
    accepted = []

    @fuzz(inputs)
    @given(edits, tails, st.integers(0, len(whole)), st.booleans())
    def check(edits: list[tuple[int, str, bytes]], tail: str | bytes | None, end: int, announced: bool) -> None:
        data = bytearray(whole)
        for at, how, value in edits:
            data[at : at + (0 if how == "add" else len(value))] = b"" if how == "cut" else value
        if announced and len(data) > 8:
            # The length of the header follows what was put in or cut out.
            data[:8] = struct.pack("<Q", max(0, size + len(data) - len(whole)))
        data = data[:end] if tail == "cut" else data + (tail if isinstance(tail, bytes) else b"")
        path.write_bytes(data)
        try:
            found = load_checkpoint(path)
        except InputError as error:
            named(error, str(path))
            return
        assert equal(found.model_dump(), truth)
        accepted.append(data)

    check()
    assert not (cache / "owned").exists()
    assert len(accepted) > inputs / 100


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from([torch.ones(4), torch.tensor(2), torch.zeros(0, 3), torch.ones(1, dtype=torch.bfloat16)])
    | st.sampled_from([torch.tensor(float("nan")), torch.tensor([1, 2], dtype=torch.uint8), 2**70]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=2).map(tuple)
        | st.dictionaries(st.sampled_from(["step", "row", "x", "norm_f.weight", 0, 1, -1, None]), inner, max_size=3)
    ),
    max_leaves=2,
)


@sizes
def test_checkpoint_values(cache: Path, inputs: int) -> None:
    """Well-formed files of something else: accepted only where it is what a training of this model could go on from."""
    model = build_model(CHECKPOINTED, seed=0)
    path = cache / "last.safetensors"
    accepted = []

    @fuzz(inputs)
    @given(
        st.lists(
            st.tuples(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.sampled_from("=-+"), values), max_size=2
        )
    )
    def check(changes: list[tuple[list[int], str, Any]]) -> None:
        tree: Any = small_checkpoint(model)
        for turns, how, value in changes:
            node = tree
            for turn in turns:
                if not isinstance(node, dict) or not node:
                    break
                parent, key = node, list(node)[turn % len(node)]
                node = node[key]
            if how == "-":
                parent.pop(key)
            else:
                parent[key if how == "=" else "more"] = value
        save_tree(path, tree)
        assert equal(load_tree(path), tree)
        try:
            found = load_checkpoint(path)
            check_fits(found, model, averaged=True, path=path)
            check_optimizer(found.optimizer, list(model.parameters()), path)
        except InputError as error:
            named(error, str(path))
            return
        model.load_state_dict(found.weights)
        model.load_state_dict(small_checkpoint(model)["weights"])
        assert {"step", "weights", "average", "averaged", "optimizer", "random", "steps"} == set(tree)
        accepted.append(tree)

    check()
    assert len(accepted) > inputs / 100


SEQUENCES = [
    "A",
    "ACGT",
    "acgtn",
    "GGNRYA",
    "TTTT",
    "A" * 140_000,
    "",
    "AC-T",
    "ACGU",
    "UUUU",
    "MKVLPEFIL",
    "\u00e9",
    "A C",
    " AC ",
]
LABELS = ["a", "b", "b", "0", "1", "#x", "train", "test", " c ", "", "\u2028"]
WORDS = ["train", "train", "valid", "val", "Dev", "test", "TEST", "eval", "holdout", "1", ""]
COLUMNS = ["sequence", "label", "Split", "id", "fold", "note", "sequence", ""]
CELLS = {
    "sequence": SEQUENCES,
    "label": LABELS,
    "Split": WORDS,
    "fold": WORDS,
    "id": ["x", "y", "line 3", ""],
    "note": ["", "z"],
}


@st.composite
def labelled_tables(draw: Any) -> bytes:
    """A table that is mostly sound: its header, its rows, its line ends, and an edit or two."""
    columns = [
        "sequence",
        "label",
        *draw(st.lists(st.sampled_from(["Split", "id", "fold", "note"]), unique=True, max_size=2)),
    ]
    columns = draw(st.permutations(columns))
    if draw(st.integers(0, 9)) == 0:
        columns = draw(st.lists(st.sampled_from(COLUMNS), max_size=4))
    separator = draw(st.sampled_from(["\t", "\t", ","]))
    sound = draw(st.booleans())
    lines = [separator.join(columns)]
    for _ in range(draw(st.integers(0, 5))):
        cells = []
        for column in columns:
            choices = CELLS.get(column, [""])
            cells.append(draw(st.sampled_from(choices[: len(choices) // 2 + 1] if sound else choices)))
            if draw(st.integers(0, 19)) == 0:
                cells[-1] = f'"{cells[-1]}"'
        lines.append(separator.join(cells))
    text = draw(st.sampled_from(["", "", "\ufeff", "# a note\n", "\n"])) + draw(
        st.sampled_from(["\n", "\n", "\r\n", "\r"])
    ).join(lines)
    data = (text + draw(st.sampled_from(["", "\n", "\n\n", "\x00"]))).encode()
    for at, value in draw(
        st.lists(st.tuples(st.integers(0, 200), st.sampled_from([9, 10, 34, 44, 65, 255, 0])), max_size=1)
    ):
        if data and not sound:
            at %= len(data)
            data = data[:at] + bytes([value]) + data[at + 1 :]
    if draw(st.integers(0, 9)) == 0:
        data = gzip.compress(data, mtime=0)
        data = data[: draw(st.sampled_from([len(data), len(data), len(data) - 5, 15, 3]))]
    return data


def unpacked(data: bytes) -> bytes:
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def simple_table(data: bytes) -> list[tuple[str, str, str | None]]:
    """(label, sequence, split) of each row of a table that is known to be right."""
    text = unpacked(data).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    lines = [line for line in text.split("\n") if line.strip()]
    while lines[0].startswith("#"):
        del lines[0]
    separator = "\t" if "\t" in lines[0] else ","

    def cells(line: str) -> list[str]:
        # Quotes only around whole cells of the fuzzer's making.
        return [
            cell[1:-1].strip() if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell.strip()
            for cell in line.split(separator)
        ]

    header = [name.lower() for name in cells(lines[0])]
    meaning = {"train": "train", "valid": "valid", "val": "valid", "dev": "valid", "eval": "valid", "test": "test"}
    found = []
    for line in lines[1:]:
        row = dict(zip(header, cells(line), strict=True))
        word = row.get("split") or row.get("fold") or ""
        found.append((row["label"], row["sequence"], meaning[word.lower()] if word else None))
    return found


@sizes
def test_labelled_tables(cache: Path, inputs: int) -> None:
    codec = DnaTokenizer()
    accepted = []

    @fuzz(inputs)
    @given(labelled_tables())
    def check(data: bytes) -> None:
        path = cache / "x.tsv"
        path.write_bytes(data)
        try:
            labelled = open_labelled(DnaClassesConfig(path=str(path)))
        except InputError as error:
            named(error, str(path), "data.path: only one class")
            return
        found = [(labelled.classes[r.label], codec.decode(labelled.fetch(r)), r.split) for r in labelled.regions]
        if b'"' in unpacked(data).replace(b'""', b"").replace(b'\t"', b"\t").replace(b'"\t', b"\t"):
            assert len({r.split is None for r in labelled.regions}) == 1
        else:
            expected = simple_table(data)
            assert found == [
                (label, codec.decode(codec.encode(sequence)), split) for label, sequence, split in expected
            ]
        accepted.append(data)

    check()
    assert len(accepted) > inputs / 40


@sizes
def test_labelled_headers(cache: Path, inputs: int) -> None:
    """FASTA whose headers hold a class and perhaps a split."""
    accepted = []
    tags = [
        f"{key}{word}" for key in ("split=", "Split:", "set=", "fold=") for word in ("train", "dev", "test", "2", "")
    ]
    tags += [
        "",
        "",
        "split = test",
        "offset=3",
        "split=train set=test",
        "|split=train",
        "split=\u00e9",
        "split= ",
        "a set: of",
    ]
    header = st.tuples(
        st.sampled_from(["a", "b|1", "c|", "|", ""]), st.sampled_from(["|x", "|y", "|y", ""]), st.sampled_from(tags)
    )

    @fuzz(inputs)
    @given(st.lists(st.tuples(header, st.sampled_from(SEQUENCES[:6] + ["ACGT"] * 6 + [""])), max_size=4), st.booleans())
    def check(records: list[tuple[tuple[str, str, str], str]], one_tag: bool) -> None:
        if one_tag and records:
            records = [((name, label, records[0][0][2]), text) for (name, label, _), text in records]
        path = cache / "x.fna"
        path.write_text("".join(f">{name}{label} {tag}\n{text}\n" for (name, label, tag), text in records))
        try:
            labelled = open_labelled(DnaClassesConfig(path=str(path)))
        except InputError as error:
            named(error, str(path), "data.path: only one class")
            return
        splits = {None: None, "train": "train", "dev": "valid", "test": "test"}
        for region, ((name, label, tag), text) in zip(labelled.regions, records, strict=True):
            assert labelled.classes[region.label] == f"{name}{label}".rpartition("|")[2]
            assert len(region) == len(text)
            words = [word for word in ("train", "dev", "test") if word in tag]
            assert region.split == splits[words[0] if words else None]
        accepted.append(records)

    check()
    assert len(accepted) > inputs / 40


def told_by_index(path: Path) -> list[Any]:
    """All that an index tells of a file."""
    genome = Genome(path)
    (file,) = genome._files
    lower = [values.tolist() for values in lower_runs(file)]
    bases = [genome.fetch(name, 0, length).tolist() for name, length in genome.records.items()]
    scan = [(name, s.length, s.counts, s.run_starts.tolist(), s.run_ends.tolist()) for name, s in genome.scan().items()]
    return [genome.fingerprint(), scan, lower, bases]


@sizes
@pytest.mark.parametrize("name", ["x.fa", "x.2bit"])
def test_index_cache(cache: Path, inputs: int, name: str) -> None:
    """A changed index is never believed; one whose check sum was made to fit ends in the truth or one clear error."""
    path = cache / name
    text = "".join(f">{record} title\n{bases}\n" for record, bases in RECORDS.items())
    path.write_bytes(packed(RECORDS, "<", 0) if name.endswith("2bit") else text.encode())
    truth = told_by_index(path)
    (store,) = cache.rglob("*.index")
    sound = store.read_bytes()
    refused = []
    edits = st.lists(st.tuples(st.integers(0, len(sound) - 1), st.binary(min_size=1, max_size=9)), max_size=3)

    @fuzz(inputs)
    @given(edits, st.integers(0, 2 * len(sound)), st.binary(max_size=20), st.booleans())
    def check(edits: list[tuple[int, bytes]], size: int, tail: bytes, signed: bool) -> None:
        data = bytearray(sound)
        for at, value in edits:
            data[at : at + len(value)] = value
        data = bytearray(data[:size] + tail)
        if signed:
            data[:32] = hashlib.sha256(data[32:]).digest()
        store.write_bytes(data)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", RuntimeWarning)
            try:
                found = told_by_index(path)
            except InputError as error:
                assert signed
                named(error, str(path), str(store))
                return
        if not signed:
            assert found == truth
        if caught:
            named(InputError(str(caught[0].message)), str(store))
            refused.append(data)

    check()
    assert len(refused) > 100


def recordings() -> list[tuple[str, bytes]]:
    """Short recordings in every container, with their suffix."""
    made = []
    samples = np.sin(np.arange(400) / 9).astype(np.float32) * 0.5
    for suffix, container, subtype in (
        (".wav", "WAV", "PCM_16"),
        (".wav", "WAV", "PCM_16"),
        (".wav", "WAV", "PCM_24"),
        (".wav", "WAV", "FLOAT"),
        (".wav", "WAVEX", "PCM_16"),
        (".wav", "RF64", "PCM_16"),
        (".flac", "FLAC", "PCM_16"),
        (".ogg", "OGG", "VORBIS"),
        (".wav", "AIFF", "PCM_16"),
    ):
        for channels in (1, 2):
            stream = io.BytesIO()
            data = np.stack([samples] * channels, axis=1)
            soundfile.write(stream, data, 8000, format=container, subtype=subtype)
            made.append((suffix, stream.getvalue()))
    return made


@sizes
def test_audio_headers(cache: Path, inputs: int) -> None:
    sound = recordings()
    accepted = []
    edits = st.lists(
        st.tuples(st.integers(0, 120), st.sampled_from([0, 1, 2, 3, 4, 8, 16, 24, 32, 64, 100, 127, 128, 254, 255])),
        max_size=3,
    )

    @fuzz(inputs)
    @given(st.sampled_from(sound), edits, st.integers(0, 4000))
    def check(recording: tuple[str, bytes], edits: list[tuple[int, int]], size: int) -> None:
        suffix, contents = recording
        data = bytearray(contents)
        for at, value in edits:
            data[at % len(data)] = value
        if size < 1000:
            data = data[:size]
        path = cache / f"x{suffix}"
        path.write_bytes(data)
        try:
            file = open_file(str(path))
            count = min(file.frames, 500)
            found = file.read(0, count, file.native_rate_hz)
            last = file.read(file.frames - 2, file.frames, file.native_rate_hz)
        except InputError as error:
            named(error, str(path))
            return
        assert file.frames >= 2
        assert file.native_rate_hz > 0
        assert file.channels > 0
        assert found.shape == (count,)
        assert last.shape == (2,)
        assert np.isfinite(found).all()
        accepted.append(data)
        try:
            with wave.open(io.BytesIO(data)) as plain:
                facts = (plain.getnchannels(), plain.getsampwidth(), plain.getframerate())
                raw = plain.readframes(count)
        except (wave.Error, EOFError):
            return
        if facts != (file.channels, 2, file.native_rate_hz) or len(raw) != 2 * file.channels * count:
            return
        expected = np.frombuffer(raw, "<i2").reshape(-1, file.channels).astype(np.float32) / 32768
        np.testing.assert_allclose(found, expected.mean(1), atol=1e-6)

    check()
    # Hypothesis also draws constants of the modules that happen to be imported: 50 to 80 of 500.
    assert len(accepted) > inputs / 20


LABELLED_WORDS = ["train", "train", "test", "val", "Dev", "holdout", "", "1"]
labelled_line = st.builds(
    lambda record, span, label, split, separator: separator.join([record, *span, label, *split]),
    st.sampled_from(["a", "chr1", "1", "b", "a", "zz", "#a"]),
    st.sampled_from(
        [
            ["0", "4"],
            ["1", "6"],
            ["5", "12"],
            ["0", "1"],
            ["4", "4"],
            ["-1", "3"],
            ["3", "17"],
            ["٣", "4"],
            ["1e3", "4"],
        ]
    ),
    st.sampled_from(["x", "y", "y", "0", "train", ""]),
    st.just([]) | st.sampled_from(LABELLED_WORDS).map(lambda word: [word]),
    st.sampled_from(["\t", "\t", "\t", " "]),
)

sound_lines = st.sampled_from([["train"], ["test"], []]).flatmap(
    lambda split: st.lists(
        st.tuples(st.sampled_from("a1"), st.sampled_from(["0\t4", "1\t6", "5\t12"]), st.sampled_from("xxyz")).map(
            lambda fields: "\t".join([*fields, *split])
        ),
        min_size=2,
        max_size=4,
    )
)


@sizes
def test_labelled_bed(cache: Path, inputs: int) -> None:
    (cache / "g.fa").write_text("".join(f">{name}\n{text}\n" for name, text in RECORDS.items()))
    path = cache / "x.bed"
    accepted = []
    front = st.sampled_from(["", "", "chrom\tstart\tend\tlabel\n", "# note\n", "\ufeff"])

    @fuzz(inputs)
    @given(
        front,
        sound_lines | st.lists(labelled_line, max_size=4),
        st.booleans(),
        st.sampled_from(["\n", "\r\n"]),
        st.sampled_from(["", "\n", "\x00"]),
    )
    def check(front: str, lines: list[str], alike: bool, newline: str, tail: str) -> None:
        if alike:
            # As many columns in every line as in the first.
            lines = [line for line in lines if line.count("\t") == lines[0].count("\t")]
        path.write_bytes((front + newline.join(lines) + tail).encode())
        try:
            labelled = open_labelled(DnaClassesConfig(path=str(cache / "g.fa"), labels=str(path)))
        except InputError as error:
            named(error, str(path), "data.path: only one class")
            return
        expected = []
        for line in lines:
            fields = [part.strip() for part in (line.split("\t") if "\t" in line else line.split())]
            if fields and not line.startswith("#"):
                record = {"1": "chr1"}.get(fields[0], fields[0])
                word = fields[4].lower() if len(fields) == 5 and fields[4] else None
                split = {"val": "valid", "dev": "valid"}.get(word or "", word)
                expected.append((record, int(fields[1]), int(fields[2]), fields[3], split))
        found = [(r.record, r.start, r.end, labelled.classes[r.label], r.split) for r in labelled.regions]
        assert found == expected
        accepted.append(lines)

    check()
    assert len(accepted) > inputs / 40


vcf_field = st.sampled_from(
    [
        b"chr1",
        b"5",
        b"0",
        b"-3",
        b"1e3",
        b"A",
        b"ACGT",
        b"<DEL>",
        b"A,C",
        b"",
        b".",
        b"DP=1;;",
        b"\xff",
        b"\x00",
        b"\xd9\xa3",
    ]
)
vcf_line = (
    st.builds(
        lambda *fields: b"\t".join(fields),
        st.sampled_from([b"chr1", b"2"]),
        st.sampled_from([b"1", b"70", b"x"]),
        *[vcf_field] * 6,
    )
    | st.lists(vcf_field, max_size=10).map(b"\t".join)
    | st.sampled_from([b"", b"#CHROM", b"##x", b"\r", b" ", b"chr1 5 . A C . . ."])
)
VCF_COLUMNS = b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"


@sizes
def test_variant_calls(cache: Path, inputs: int) -> None:
    """Every line is there again, records with more in INFO and all else as it was; what is no record is named."""
    path = cache / "x.vcf"
    accepted = []

    @fuzz(inputs)
    @given(
        st.sampled_from([b"##fileformat=VCFv4.2", b"##fileformat=VCFv4.2", b"##fileformat=BED", b""]),
        st.sampled_from([VCF_COLUMNS, VCF_COLUMNS, VCF_COLUMNS, VCF_COLUMNS.replace(b"\t", b" "), b"##x"]),
        st.lists(vcf_line, max_size=5),
        st.sampled_from([b"\n", b"\n", b"\r\n"]),
        st.sampled_from([b"", b"\n"]),
    )
    def check(first: bytes, columns: bytes, lines: list[bytes], newline: bytes, tail: bytes) -> None:
        path.write_bytes(newline.join([first, columns, *lines]) + tail)
        try:
            calls = Calls(str(path), cache / "copy")
        except InputError as error:
            named(error, str(path))
            return
        # A second reader: bytes, and no more than the format says.
        body = (newline.join(lines) + tail).split(b"\n") if lines else []
        kept = [line + b"\n" for line in body[: -1 if body and not body[-1] else None]]
        wanted = {}
        for number, line in enumerate(kept):
            fields = line.rstrip(b"\r\n").split(b"\t")
            if (
                len(fields) == 8
                and b"" not in fields
                and not fields[0].startswith(b"#")
                and re.fullmatch(rb"[0-9]+", fields[1])
            ):
                wanted[number] = [(int(fields[1]) - 1, fields[3], other) for other in fields[4].split(b",")]
        found = dict(pair for contig in calls.contigs for pair in calls.variants(contig))
        plain = {
            number: [
                (one.start, *(str(part).encode("utf-8", "surrogateescape") for part in one[2:])) for one in alleles
            ]
            for number, alleles in found.items()
        }
        assert plain == wanted
        blank = sum(not line.rstrip(b"\r\n") for line in kept)
        assert len(calls.malformed) == len(kept) - len(wanted) - blank
        for number, text in calls.lines():
            assert text.encode("utf-8", "surrogateescape") == kept[number]
            if number in wanted:
                more = annotated(text, {"X": "1"}).split("\t")
                assert more[:7] == text.split("\t")[:7]
                assert more[7].rstrip("\r\n").split(";")[-1] == "X=1"
        accepted.append(len(wanted))

    check()
    assert sum(accepted) > inputs / 20
