"""The laws of `pipelines/contract.py`, for every kind of data of every domain.

A new kind needs a row in `KINDS`, which `test_every_kind_is_here` asks for.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.data import DataModule
from mamba_bio_audio.pipelines.domains import domains
from mamba_bio_audio.pipelines.spans import size_of
from mamba_bio_audio.pipelines.stream import Stretch

L = 32
SPLITS = ("train", "valid", "test")


def letters(size: int, seed: int, alphabet: str = "ACGTACGTacgtN") -> str:
    return "".join(np.random.default_rng(seed).choice(list(alphabet), size))


def fasta(path: Path, records: dict[str, str]) -> str:
    path.write_text("".join(f">{name}\n{text}\n" for name, text in records.items()))
    return str(path)


def genome(folder: Path) -> dict[str, Any]:
    """Two genomes, with everything drawn at random that can be: genome, place, strand, scored repeats."""
    paths = [fasta(folder / f"g{n}.fa", {"a": letters(3000, n), "b": letters(700, 10 + n)}) for n in range(2)]
    split = {"block_bases": 300, "valid_fraction": 0.2, "test_fraction": 0.2, "weights": {"g0": 1, "g1": 2}}
    return {"path": paths, "windows": "random", "case": "weight", "reverse_complement": True, **split}


def whole_genome(folder: Path) -> dict[str, Any]:
    return {"path": fasta(folder / "g.fa", {"a": letters(2000, 0), "b": letters(50, 1)}), "block_bases": 200}


def labelled_windows(folder: Path) -> dict[str, Any]:
    paths = [
        fasta(folder / f"{name}.fa", {f"{s} split={s}": letters(400, 10 * n + m, "ACGT") for m, s in enumerate(SPLITS)})
        for n, name in enumerate("xy")
    ]
    return {"path": paths}


def labelled_table(folder: Path) -> dict[str, Any]:
    rows = [f"{letters(20 + n % 10, n, 'ACGT')}\t{'ab'[n % 2]}\t{SPLITS[n // 2 % 3]}\n" for n in range(36)]
    (folder / "t.tsv").write_text("sequence\tlabel\tsplit\n" + "".join(rows))
    return {"path": str(folder / "t.tsv")}


def write_clips(folder: Path, names: list[str], sizes: list[int]) -> None:
    for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
        (folder / name).parent.mkdir(exist_ok=True)
        soundfile.write(folder / name, np.random.default_rng(number).uniform(-0.5, 0.5, size), 8000)


def recordings(folder: Path) -> dict[str, Any]:
    write_clips(folder, [f"{n}.wav" for n in range(12)], [130 + 17 * n for n in range(12)])
    return {"path": str(folder), "sample_rate_hz": 8000, "valid_fraction": 0.2, "test_fraction": 0.2}


def silence(folder: Path) -> dict[str, Any]:
    return recordings(folder) | {"pad_target": "silence", "variant": "sashimi", "bits": 10}


def labelled_clips(folder: Path) -> dict[str, Any]:
    write_clips(folder, [f"{'ab'[n % 2]}/{n}.wav" for n in range(20)], [10 + n for n in range(20)])
    return {"path": str(folder), "sample_rate_hz": 8000, "valid_fraction": 0.2, "test_fraction": 0.2}


def classes_of_bases(folder: Path) -> dict[str, Any]:
    (folder / "t.bed").write_text("".join(f"a\t{at}\t{at + 3}\t{'xy'[at % 2]}\n" for at in range(0, 1900, 7)))
    path = fasta(folder / "g.fa", {"a": letters(2000, 0), "b": letters(300, 1)})
    return {"path": path, "tracks": str(folder / "t.bed"), "margin": 2, "contigs": "all", "block_bases": 200}


def tasks(**options: Any) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: {"examples": 7, **options}


KINDS: dict[str, tuple[str, Callable[[Path], dict[str, Any]]]] = {
    "genome": ("dna", genome),
    "whole genome": ("dna", whole_genome),
    "labelled windows": ("dna-classes", labelled_windows),
    "labelled table": ("dna-classes", labelled_table),
    "classes of bases": ("dna-tracks", classes_of_bases),
    "recordings": ("audio", recordings),
    "silence": ("audio", silence),
    "labelled clips": ("audio-classes", labelled_clips),
    "induction": ("induction", tasks()),
    "induction, all scored": ("induction", tasks(scored="all")),
    "selective copying": ("selective-copying", tasks(memorize=5)),
    "recall": ("recall", tasks(pairs=4, vocab=20)),
}
MADE = [name for name, (kind, _) in KINDS.items() if kind in ("induction", "selective-copying", "recall")]
UNLABELLED = [
    name for name, (kind, _) in KINDS.items() if name not in MADE and not kind.endswith(("-classes", "-tracks"))
]


def make(name: str, folder: Path, **options: Any) -> DataModule:
    kind, write = KINDS[name]
    (section,) = (domain.kinds[kind] for domain in domains() if kind in domain.kinds)
    return DataModule(section(**(write(folder) | options)), length=L, batch_size=4, seed=0)


@pytest.fixture
def module(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataModule:
    """A data module of the kind that the test is parametrised with."""
    monkeypatch.setenv("MAMBA_BIO_AUDIO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return make(request.param, tmp_path / "data")


every_kind = pytest.mark.parametrize("module", KINDS, indirect=True)


def test_every_kind_is_here() -> None:
    assert {kind for kind, _ in KINDS.values()} == {kind for domain in domains() for kind in domain.kinds}


@pytest.mark.parametrize("module", UNLABELLED, indirect=True)
@pytest.mark.parametrize("split", SPLITS)
def test_each_symbol_of_a_split_is_scored_once(module: DataModule, split: str) -> None:
    """All of them, but those that nothing precedes and unknown ones; and nothing outside of the split."""
    corpus = module.corpus
    dataset = module.evaluation_dataset(split)
    targets = Counter[tuple[str, int]]()
    for number, window in enumerate(dataset.windows[at] for at in range(len(dataset))):
        found = dataset[number]["targets"]
        ids = corpus.read(window).ids
        # Where inputs begin with an id of the codec's own, that is one id more than there are symbols.
        first = window.start + 1 - (len(ids) - len(window))
        scored = (found != -100).nonzero().flatten().tolist()
        assert found[scored].tolist() == [int(ids[at + 1]) for at in scored]
        targets.update((window.record, first + at) for at in scored)
    whole = corpus.evaluation_windows(split)
    assert set(targets.values()) == {1}
    inside = {(span.record, at) for span in corpus.spans(split) for at in range(span.start, span.end)}
    assert targets.keys() <= inside
    assert len(targets) == whole.scored
    assert len(inside) == whole.symbols == size_of(corpus.spans(split))
    assert len(inside) - len(targets) == whole.first_of_record + whole.unknown


@pytest.mark.parametrize("module", MADE, indirect=True)
@pytest.mark.parametrize("split", ["valid", "test"])
def test_each_answer_of_a_split_is_scored_once(module: DataModule, split: str) -> None:
    corpus, dataset = module.corpus, module.evaluation_dataset(split)
    rows = [dataset[at] for at in range(len(dataset))]
    (span,) = corpus.spans(split)
    assert [token for row in rows for token in row["tokens"].tolist()] == corpus.fetch(span).tolist()
    assert len({tuple(row["tokens"].tolist()) for row in rows}) == len(rows) == 7
    whole = corpus.evaluation_windows(split)
    assert sum(int((row["targets"] != -100).sum()) for row in rows) == whole.scored
    assert len(span) == whole.symbols == whole.scored + whole.unknown


@every_kind
def test_sample_i_depends_on_seed_stage_and_i_alone(module: DataModule) -> None:
    """Whatever was read before, by whichever rank of however many, in batches of whatever size, resumed anywhere."""
    expected: dict[tuple[int, int, int], tuple[list[int], list[int]]] = {}

    @given(
        st.integers(0, 3),
        st.integers(0, 2),
        st.integers(1, 5),
        st.integers(1, 4),
        st.integers(0, 300),
        st.integers(0, 3),
    )
    def check(seed: int, stage: int, batch_size: int, world_size: int, start: int, number: int) -> None:
        module.seed, module.world_size = seed, world_size
        for rank in range(world_size):
            module.rank = rank
            batch = module.stream(Stretch(L, batch_size, stage, start)).batch(number)
            for row in range(batch_size):
                sample = start + (number * batch_size + row) * world_size + rank
                read = batch["tokens"][row].tolist(), batch["targets"][row].tolist()
                assert expected.setdefault((seed, stage, sample), read) == read

    check()
    # The seed and the stage do matter.
    module.rank, module.world_size = 0, 1
    read = {}
    for seed, stage in itertools.product((0, 1), (0, 1)):
        module.seed = seed
        batch = module.stream(Stretch(L, 24, stage)).batch(0)
        read[str(batch["tokens"].tolist())] = seed, stage
    assert len(read) == 4


@pytest.mark.parametrize(
    "name", [name if name == "labelled windows" else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
)
def test_workers_change_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAMBA_BIO_AUDIO_CACHE", str(tmp_path / "cache"))
    found = []
    for workers in (0, 2):
        data = make(name, tmp_path, num_workers=workers)
        read = [*itertools.islice(data.train_dataloader(), 7), *data.evaluation_dataloader("valid", 3)]
        found.append([torch.cat([batch["tokens"], batch["targets"]], 1) for batch in read])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@every_kind
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_an_evaluation(module: DataModule, world_size: int) -> None:
    whole = [example["tokens"].tolist() for example in module.evaluation_dataset("test")]
    shares: list[list[int]] = []
    for rank in range(world_size):
        module.rank, module.world_size = rank, world_size
        for batch in module.evaluation_dataloader("test", 2):
            shares += batch["tokens"].tolist()
    assert sorted(shares) == sorted(whole)


@pytest.mark.parametrize(
    "module",
    [name for name in KINDS if "labelled w" not in name and "table" not in name and name not in MADE],
    indirect=True,
)
def test_a_short_read_is_an_error(module: DataModule) -> None:
    """A file that ends earlier than it did when it was opened. (Labelled DNA is held in memory, and not read again.)"""
    corpus = module.corpus
    windows = corpus.evaluation_windows("train").windows
    for path in corpus.files:
        Path(path).write_bytes(Path(path).read_bytes()[:60])
    with pytest.raises(InputError):
        [corpus.read(windows[at]) for at in range(len(windows))]


# The variant `sashimi` of "silence" scales every window by itself, so that its levels are no samples.
@pytest.mark.parametrize("module", [name for name in KINDS if name != "silence"], indirect=True)
def test_decoded_symbols_are_encoded_as_they_were(module: DataModule) -> None:
    codec = module.codec

    @given(st.lists(st.sampled_from(codec.sample_ids), min_size=1, max_size=50))
    def check(ids: list[int]) -> None:
        assert codec.encode(codec.decode(np.array(ids))).tolist() == ids

    check()
