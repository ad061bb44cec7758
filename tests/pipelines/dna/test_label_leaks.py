"""Trivial features that tell the class are found, and those that do not are not accused."""

import numpy as np
import pytest

from mamba_bio_audio.pipelines.dna.classes_config import DnaClassesConfig
from mamba_bio_audio.pipelines.dna.label_leaks import label_leaks, leak_rows, leaks_of
from mamba_bio_audio.pipelines.dna.labelled import open_labelled
from mamba_bio_audio.pipelines.dna.records import read_records
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer

SIZE = 200


def clean(**changes):
    random = np.random.default_rng(0)
    values = {
        "classes": np.arange(SIZE) % 4,
        "lengths": random.integers(500, 600, SIZE),
        "unknown": random.random(SIZE) * 0.01,
        "lower": random.random(SIZE),
        "names": [f"chr22_{i}k" for i in range(SIZE)],
        "length_seen": True,
    }
    return label_leaks(**values | changes)


def test_nothing_is_found_where_nothing_is():
    leaks = clean()
    assert not any(leak.predictive for leak in leaks), [leak.text for leak in leaks]
    assert leak_rows([leak.to_dict() for leak in leaks]) == [
        ("label leaks", "none: length, case, N and names do not predict the class")
    ]


@pytest.mark.parametrize(
    ("change", "feature", "seen"),
    [
        ({"lengths": 500 + 10 * (np.arange(SIZE) % 4)}, "record length", True),
        ({"unknown": np.where(np.arange(SIZE) % 4 == 1, 0.02, 0.0)}, "share of N", True),
        ({"lower": 0.1 * (np.arange(SIZE) % 4)}, "share of lower case", False),
        (
            {"names": [f"{('chr', 'NC_', 'CM', 'scaffold')[i % 4]}{i}" for i in range(SIZE)]},
            "pattern of record names",
            False,
        ),
    ],
)
def test_each_leak_is_found_and_named(change, feature, seen):
    found = [leak for leak in clean(**change) if leak.predictive]
    assert [(leak.feature, leak.seen) for leak in found] == [(feature, seen)]
    assert ("may learn it" in found[0].text) == seen
    assert leak_rows([leak.to_dict() for leak in found])[0][0] == ("LABEL LEAK" if seen else "label note")


def test_the_length_of_records_is_no_leak_where_windows_of_one_length_are_drawn():
    found = [leak for leak in clean(lengths=500 + 10 * (np.arange(SIZE) % 4), length_seen=False) if leak.predictive]
    assert [leak.seen for leak in found] == [False]


def test_one_record_per_class_cannot_be_tried():
    leaks = label_leaks([0, 1], lengths=[5, 9], unknown=[0, 0], lower=[0, 0], names=["a", "b"], length_seen=False)
    assert all(leak.accuracy is None for leak in leaks)
    assert "cannot be tried" in leak_rows([leak.to_dict() for leak in leaks])[0][1]


def test_a_few_sequences_are_too_few():
    few = {"unknown": [0.0] * 4, "lower": [0, 0, 1, 1], "names": list("aaaa"), "length_seen": False}
    leaks = label_leaks([0, 0, 1, 1], lengths=[5, 5, 5, 5], **few)
    assert not any(leak.predictive for leak in leaks)
    assert "too few sequences" in leak_rows([leak.to_dict() for leak in leaks])[0][1]


def test_tokens_never_depend_on_case():
    codec = DnaTokenizer()
    text = "ACGTNRYKMSWBDHVU"
    assert (codec.encode(text) == codec.encode(text.lower())).all()


def test_the_shared_apes_have_no_trivial_leak(shared_dna):
    y, lengths, unknown, lower, names = [], [], [], [], []
    for number, species in enumerate(("chimpanzee", "gorilla", "human", "orangutan")):
        for record in read_records(shared_dna.parent / "apes" / species / "chr22_epo.fa.gz"):
            codes = np.frombuffer(record.sequence, dtype=np.uint8)
            y.append(number)
            lengths.append(len(codes))
            unknown.append(np.isin(codes, np.frombuffer(b"ACGTacgt", dtype=np.uint8), invert=True).mean())
            lower.append((codes > 96).mean())
            names.append(record.name)
    leaks = label_leaks(y, lengths=lengths, unknown=unknown, lower=lower, names=names, length_seen=True)
    assert not any(leak.predictive for leak in leaks), [leak.text for leak in leaks]


def test_labelled_files_are_tried(tmp_path, write_fasta, random_dna):
    """Two species, one soft-masked and with gaps; the same as a table of examples of different lengths."""
    for species, change in (("a", str), ("b", lambda text: text[:100].lower() + "N" * 50 + text[150:])):
        records = {f"chr{i}": change(random_dna(300 + i, i)) for i in range(20)}
        write_fasta(f"{species}/genome.fa", records)
    found = {leak.feature: leak for leak in leaks_of(open_labelled(DnaClassesConfig(path=str(tmp_path))))}
    telling = {name for name, leak in found.items() if leak.predictive}
    assert telling == {"share of N", "share of lower case"}
    rows = [f"{random_dna(50 + 10 * (i % 2), i)}\t{'xy'[i % 2]}" for i in range(40)]
    (tmp_path / "t.tsv").write_text("sequence\tlabel\n" + "\n".join(rows) + "\n")
    found = {leak.feature: leak for leak in leaks_of(open_labelled(DnaClassesConfig(path=str(tmp_path / "t.tsv"))))}
    assert {name for name, leak in found.items() if leak.predictive} == {"record length"}
    assert found["record length"].seen
    assert "share of lower case" not in found
