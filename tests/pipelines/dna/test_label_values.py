"""Labels that are no single class, from the label columns of tables."""

import numpy as np
import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.data import DataModule
from mamba_bio_audio.pipelines.dna.class_rows import Row
from mamba_bio_audio.pipelines.dna.classes_config import DnaClassesConfig
from mamba_bio_audio.pipelines.dna.label_values import values_of


def rows(*cells: tuple[str, ...]) -> list[Row]:
    return [
        Row(first, {}, f"r{at}", "ACGT", f"t.tsv: line {at}", tuple(more)) for at, (first, *more) in enumerate(cells)
    ]


def test_names_in_one_column():
    names, values = values_of(rows(("b;a",), ("",), ("a; c",)), ["label"], "multilabel", "t.tsv")
    assert names == ("a", "b", "c")
    assert values.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 1]]


def test_a_column_for_each_label():
    names, values = values_of(rows(("1", "no"), ("", "True")), ["x", "y"], "multilabel", "t.tsv")
    assert names == ("x", "y")
    assert np.array_equal(values, [[1, 0], [np.nan, 1]], equal_nan=True)


def test_numbers():
    names, values = values_of(rows(("1e-3", "-2"), ("NA", "4.5")), ["x", "y"], "regression", "t.tsv")
    assert names == ("x", "y")
    assert values.dtype == np.float32
    assert np.array_equal(values, np.float32([[1e-3, -2], [np.nan, 4.5]]), equal_nan=True)


@pytest.mark.parametrize(
    ("cells", "columns", "task", "message"),
    [
        ([("1", "2")], ["x", "y"], "multilabel", "line 0: column 'y': '2' is neither 1 nor 0"),
        ([("",)], ["label"], "multilabel", "no sequence has a label"),
        ([("high",)], ["x"], "regression", "line 0: column 'x': 'high' is not a number"),
        ([("inf",)], ["x"], "regression", "'inf' is not a number"),
        ([("1_2",)], ["x"], "regression", "'1_2' is not a number"),
        ([("",), ("",)], ["x"], "regression", "column 'x' has no value at all"),
        ([("1", "2")], ["x"], "regression", "has 2 labels, but there are 1 label columns"),
    ],
)
def test_mistakes(cells, columns, task, message):
    with pytest.raises(InputError, match=message):
        values_of(rows(*cells), columns, task, "t.tsv")


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    text = "sequence\tlabel\tsplit\n"
    for at in range(30):
        text += f"{''.join(rng.choice(list('ACGT'), 40))}\t{at / 4}\t{('train', 'valid', 'test')[at % 3]}\n"
    (tmp_path / "t.tsv").write_text(text)
    return tmp_path / "t.tsv"


def numbers(config: DnaClassesConfig) -> DataModule:
    data = DataModule(config, length=48, batch_size=4, seed=0)
    data.task = "regression"
    return data


def test_a_corpus_of_numbers(table):
    data = numbers(DnaClassesConfig(path=str(table)))
    corpus = data.corpus
    assert (corpus.classes, corpus.outputs) == (("label",), "numbers")
    train = np.array([at / 4 for at in range(0, 30, 3)])
    assert corpus.label_statistics() == {"mean": [train.mean()], "scale": [pytest.approx(train.std())], "least": [0.0]}
    batch = next(iter(data.train_dataloader()))
    assert batch["targets"].shape == (4, 40, 1)  # as long as the longest
    there = ~batch["targets"].isnan()[..., 0]
    assert there.nonzero()[:, 1].tolist() == [39] * 4
    valid = [float(row["targets"][39, 0]) for row in data.evaluation_dataset("valid")]
    assert valid == [at / 4 for at in range(1, 30, 3)]
    summary = data.summary()
    assert summary["splits"]["train"]["outputs"]["label"] == {
        "known": 10,
        "mean": pytest.approx(train.mean()),
        "standard_deviation": pytest.approx(train.std()),
    }
    # Cut for the longest row, as batches of classes are.
    assert next(iter(data.evaluation_dataloader("valid")))["tokens"].shape[1] == 48


def test_columns_of_any_name(tmp_path):
    text = "seq,high,low,which\n" + "".join(
        f"{'ACGT' * 5}{'ACGT'[at % 4] * at},{at},{'' if at == 3 else -at},{at}\n" for at in range(1, 9)
    )
    (tmp_path / "t.csv").write_text(text)
    columns = {"sequence": "seq", "label": ["low", "high"], "id": "which"}
    config = DnaClassesConfig(path=str(tmp_path / "t.csv"), columns=columns, valid_fraction=0, test_fraction=0)
    corpus = numbers(config).corpus
    assert corpus.classes == ("low", "high")
    found = {window.record: corpus.label(window).tolist() for window in corpus.windows(48)}
    assert found["4"] == [-4, 4]
    assert np.isnan(found["3"][0])


def test_what_has_no_meaning_for_numbers(table):
    fasta = table.with_name("g.fa")
    fasta.write_text(">r\nACGTACGTACGT\n")
    for options, message in (
        ({"classes": ["a", "b"]}, "data.classes: is for head.task=classes"),
        ({"sampling": "windows"}, "data.sampling=windows"),
        ({"path": {"a": str(fasta), "b": str(fasta)}}, "names a class for each file"),
    ):
        given = DnaClassesConfig(**({"path": str(table)} | options))
        with pytest.raises(InputError, match=message):
            numbers(given).setup()
    constant = table.with_name("c.tsv")
    constant.write_text(
        "".join(
            line.split("\t")[0] + "\t" + ("label" if at == 0 else "1") + "\t" + line.split("\t")[2]
            for at, line in enumerate(table.read_text().splitlines(keepends=True))
        )
    )
    data = numbers(DnaClassesConfig(path=str(constant)))
    with pytest.raises(InputError, match="'label' is always 1 in training"):
        data.corpus.label_statistics()


def test_names_may_have_the_other_separators_in_them():
    names, values = values_of(rows(("repair, excision;kinase|2",), ("kinase|2",)), ["label"], "multilabel", "t.tsv")
    assert names == ("kinase|2", "repair, excision")
    assert values.tolist() == [[1, 1], [1, 0]]
    assert values_of(rows(("b, c|a",), ("a",)), ["label"], "multilabel", "t.tsv")[0] == ("a", "b, c")


def test_what_pandas_writes_is_not_known():
    assert np.isnan(values_of(rows(("NaN", "1"), ("1", "NA")), ["x", "y"], "multilabel", "t.tsv")[1]).sum() == 2
    assert np.isnan(values_of(rows(("<NA>", "1"), ("1", "nan")), ["x", "y"], "regression", "t.tsv")[1]).sum() == 2
