import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio.classes_config import AudioClassesConfig
from mamba_bio_audio.pipelines.data import DataModule

L, RATE = 500, 8000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten clips each of two digits, a different pitch each, 300 to 390 samples."""
    for digit, hertz in (("zero", 400), ("one", 1500)):
        (tmp_path / "data" / digit).mkdir(parents=True)
        for i in range(10):
            wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(300 + 10 * i) / RATE)
            soundfile.write(tmp_path / "data" / digit / f"{digit}_{i}.wav", wave, RATE, subtype="PCM_16")
    return tmp_path / "data"


def module(folder: Path, *, length: int = L, **options) -> DataModule:
    base = {"sample_rate_hz": RATE, "classes": ["zero", "one"], "valid_fraction": 0.2, "test_fraction": 0.2}
    config = AudioClassesConfig(path=str(folder), **(base | options))
    return DataModule(config, length=length, batch_size=4, seed=0)


def test_classes_in_the_order_asked_for(folder) -> None:
    assert module(folder).corpus.classes == ("zero", "one")
    assert module(folder, classes=None).corpus.classes == ("one", "zero")
    with pytest.raises(InputError, match="no folder 'two'"):
        module(folder, classes=["one", "two"]).setup()


@pytest.mark.parametrize("path", [".", "zero_0.wav", "../zero/zero_0.wav"])
def test_relative_files_without_a_folder_are_of_the_class_of_theirs(folder, monkeypatch, path) -> None:
    monkeypatch.chdir(folder / "zero")
    with pytest.raises(InputError, match=r"data\.path: only one class, zero, .* each a folder of recordings"):
        module(path, classes=None).setup()


def test_every_class_is_in_every_split(folder) -> None:
    summary = module(folder).summary()
    counts = {split: row["classes"] for split, row in summary["splits"].items()}
    assert counts == {
        "train": {"zero": 6, "one": 6},
        "valid": {"zero": 2, "one": 2},
        "test": {"zero": 2, "one": 2},
    }
    assert summary["classes"] == ["zero", "one"]


def test_a_clip_is_read_from_the_zero_level_to_its_end(folder) -> None:
    data = module(folder)
    dataset = data.evaluation_dataset("test")
    assert [window.record for window in dataset.windows] == [
        "zero/zero_8.wav",
        "zero/zero_9.wav",
        "one/one_8.wav",
        "one/one_9.wav",
    ]
    tokens, targets = dataset[3]["tokens"], dataset[3]["targets"]
    assert tokens.shape == targets.shape == (L,)
    assert tokens[0] == data.codec.zero_level
    assert (targets != -100).nonzero().tolist() == [[390]]
    assert targets[390] == 1
    expected = data.codec.encode(soundfile.read(folder / "one" / "one_9.wav", dtype="float32")[0])
    assert tokens[1:391].tolist() == expected.tolist()
    # With silence behind it the class is read at the end of the window.
    targets = module(folder, pad_target="silence").evaluation_dataset("test")[3]["targets"]
    assert (targets != -100).nonzero().tolist() == [[L - 1]]


def test_training_batches(folder) -> None:
    data = module(folder)
    found = list(itertools.islice(data.train_dataloader(), 3))
    labels = torch.cat([batch["targets"].max(1).values for batch in found])
    assert sorted(labels.tolist()) == [0] * 6 + [1] * 6  # an epoch: every training clip once
    again = list(itertools.islice(module(folder, num_workers=1).train_dataloader(), 3))
    assert all(torch.equal(a["tokens"], b["tokens"]) for a, b in zip(found, again, strict=True))


def test_a_listed_split_wins(folder, tmp_path) -> None:
    table = tmp_path / "splits.tsv"
    lines = [
        f"{d}/{d}_{i}.wav\t{'test' if i < 5 else 'train' if i < 9 else 'valid'}"
        for d in ("zero", "one")
        for i in range(10)
    ]
    table.write_text("file\tsplit\n" + "\n".join(lines) + "\n")
    data = module(folder, intervals=str(table))
    assert {r.record for r in data.training_windows(L)} == {
        f"{d}/{d}_{i}.wav" for d in ("zero", "one") for i in range(5, 9)
    }


def test_mistakes(folder) -> None:
    with pytest.raises(InputError, match=r"zero/zero_4.wav: 340 samples.*set train.length=341"):
        module(folder, length=340).setup()
    with pytest.raises(InputError, match="only one class, zero"):
        module(folder / "zero", classes=None).setup()


def moved(folder: Path, order: str) -> Path:
    """The clips of `folder` in folders of splits: the last two of each digit are test, two before them dev."""
    for digit in ("zero", "one"):
        for i in range(10):
            split = "test" if i > 7 else "dev" if i > 5 else "train"
            new = folder.parent / "moved" / order.format(digit=digit, split=split) / f"{digit}_{i}.wav"
            new.parent.mkdir(parents=True, exist_ok=True)
            (folder / digit / new.name).rename(new)
    return folder.parent / "moved"


@pytest.mark.parametrize("order", ["{split}/{digit}", "{digit}/{split}", "all/{split}/speaker/{digit}"])
def test_folders_of_splits_are_splits(folder, order: str) -> None:
    data = module(moved(folder, order), classes=None)
    assert data.corpus.classes == ("one", "zero")
    found = {(r.record.split("/")[-1], r.split) for r in data.corpus.regions}
    assert found == {
        (f"{digit}_{i}.wav", "test" if i > 7 else "valid" if i > 5 else "train")
        for digit in ("zero", "one")
        for i in range(10)
    }
    assert data.summary()["split_source"] == "the folders"


def test_validation_is_drawn_from_the_folder_train(folder) -> None:
    data = module(moved(folder, "{split}/{digit}"), valid_fraction=0.5)
    data.setup()
    assert data.corpus.split_source == "the folders"
    for path in (folder.parent / "moved" / "dev").glob("*/*.wav"):
        path.rename(folder.parent / "moved" / "train" / path.parent.name / path.name)
    data = module(folder.parent / "moved", valid_fraction=0.5)
    found = {split: row["classes"] for split, row in data.summary()["splits"].items()}
    assert found == {"train": {"zero": 4, "one": 4}, "valid": {"zero": 4, "one": 4}, "test": {"zero": 2, "one": 2}}
    assert data.corpus.split_source.startswith("the folders; 50% of their train is validation")


def test_splits_are_never_classes(folder, tmp_path) -> None:
    data = moved(folder, "{split}")
    with pytest.raises(InputError, match=r"dev/one_6.wav: 'dev' is the name of a split, but no folder names a class"):
        module(data, classes=None).setup()
    (tmp_path / "half").mkdir()
    (data / "train").rename(tmp_path / "half" / "human_train")
    (data / "test").rename(tmp_path / "half" / "human_test")
    with pytest.raises(InputError, match="'human_test' and 'human_train' are one class in two splits"):
        module(tmp_path / "half", classes=None).setup()


def test_some_folders_without_a_split(folder) -> None:
    data = moved(folder, "{split}/{digit}")
    (data / "test" / "zero").rename(data / "zero")
    with pytest.raises(
        InputError, match=r"18 of 20 recordings name a split .* but 2 do not \(.*moved/zero/zero_8.wav\)"
    ):
        module(data).setup()
