"""Benchmarks as their authors lay them out."""

import gzip
from pathlib import Path

import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.classes import DnaClassesCorpus
from mamba_bio_audio.pipelines.dna.classes_config import DnaClassesConfig
from mamba_bio_audio.pipelines.dna.suites import find_tasks

LETTERS = "ACGT"


def sequence(number: int, length: int = 60) -> str:
    """A sequence of its own for each number."""
    state, text = number * 2654435761 % 2**32 + 1, ""
    for _ in range(length):
        state = (1103515245 * state + 12345) % 2**31
        text += LETTERS[state >> 16 & 3]
    return text


def gue(folder: Path, packed: bool = False) -> None:
    folder.mkdir(parents=True)
    for at, (split, count) in enumerate({"train": 12, "dev": 4, "test": 4}.items()):
        text = "sequence,label\n" + "".join(f"{sequence(100 * at + i)},{i % 2}\n" for i in range(count))
        if packed:
            (folder / f"{split}.csv.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (folder / f"{split}.csv").write_text(text)


def opened(task) -> DnaClassesCorpus:
    return DnaClassesCorpus(DnaClassesConfig.model_validate(task.settings()), length=60)


def counts(task) -> dict[str, int]:
    corpus = opened(task)
    return {split: len(corpus.evaluation_windows(split).windows) for split in ("train", "valid", "test")}


def test_gue_with_its_groups(tmp_path):
    gue(tmp_path / "tf" / "0")
    gue(tmp_path / "tf" / "10")
    gue(tmp_path / "tf" / "2")
    gue(tmp_path / "prom" / "prom_core_tata", packed=True)
    (tmp_path / "README.md").write_text("notes")
    tasks = find_tasks("gue", tmp_path)
    assert [task.name for task in tasks] == ["prom_core_tata", "tf_0", "tf_10", "tf_2"]
    assert [task.stranded for task in tasks] == [True, False, False, False]
    assert {task.metric for task in tasks} == {"mcc"}
    assert tasks[1].published["Caduceus-Ph"] == 0.8796
    assert "Feng" in tasks[1].published_as
    assert tasks[2].published == {}
    assert counts(tasks[0]) == counts(tasks[1]) == {"train": 12, "valid": 4, "test": 4}
    assert [task.name for task in find_tasks("gue", tmp_path, ["tf_2"])] == ["tf_2"]
    # A task that is given itself is called after its folder.
    assert [task.name for task in find_tasks("gue", tmp_path / "prom" / "prom_core_tata")] == ["prom_core_tata"]


def test_genomic_benchmarks_without_validation(tmp_path):
    for at, split in enumerate(("train", "test")):
        for label, name in enumerate(("negative", "positive")):
            place = tmp_path / "human_ocr" / split / name
            place.mkdir(parents=True)
            for i in range(20):
                (place / f"{i}.txt").write_text(sequence(1000 * at + 100 * label + i))
    (task,) = find_tasks("genomic-benchmarks", tmp_path)
    assert (task.name, task.metric, task.stranded) == ("human_ocr", "accuracy", False)
    assert counts(task) == {"train": 36, "valid": 4, "test": 40}
    assert opened(task).classes == ("negative", "positive")


def test_nucleotide_transformer(tmp_path):
    folder = tmp_path / "splice_sites_all"
    folder.mkdir()
    for at, split in enumerate(("train", "test")):
        rows = (f">chr1:{i}|{i % 3}\n{sequence(1000 * at + i)}\n" for i in range(30))
        (folder / f"{split}.fna").write_text("".join(rows))
    (task,) = find_tasks("nucleotide-transformer", tmp_path)
    assert (task.name, task.metric, task.stranded) == ("splice_sites_all", "mcc", True)
    assert counts(task) == {"train": 27, "valid": 3, "test": 30}


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        find_tasks("gue", tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no task of gue in it; expected folders of train.csv"):
        find_tasks("gue", tmp_path)
    gue(tmp_path / "tf_0")
    with pytest.raises(InputError, match=r"no task 'tf_1'; there are tf_0"):
        find_tasks("gue", tmp_path, ["tf_1"])


def test_validation_that_is_also_in_train_is_left_out(tmp_path):
    gue(tmp_path / "tf_0")
    lines = (tmp_path / "tf_0" / "train.csv").read_text().splitlines()
    shifted = lines[2].split(",")[0][3:] + "ACG,1"
    with (tmp_path / "tf_0" / "dev.csv").open("a") as file:
        file.write(f"{lines[1]}\n{shifted}\n")
    with (tmp_path / "tf_0" / "test.csv").open("a") as file:
        file.write(f"{lines[3]}\n")
    (task,) = find_tasks("gue", tmp_path)
    assert counts(task) == {"train": 12, "valid": 4, "test": 5}
    corpus = opened(task)
    summary = corpus.summary()
    assert summary["dropped_from_valid"] == 2
    assert summary["shared_sequences"]["train/valid"] == summary["near_sequences"]["train/valid"] == 1
    strata = corpus.strata("test")
    assert strata["also in train"].sum() == 1
    assert strata["not in train"].sum() == 4
    assert corpus.strata("valid") == {}


def test_a_validation_split_of_nothing_else_is_refused(tmp_path):
    gue(tmp_path / "tf_0")
    (tmp_path / "tf_0" / "dev.csv").write_text((tmp_path / "tf_0" / "train.csv").read_text())
    (task,) = find_tasks("gue", tmp_path)
    with pytest.raises(InputError, match=r"every example of validation is also in train"):
        opened(task)
