"""Files to try the tools with."""

import csv

import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.examples import write_examples


def test_calls_and_labels_are_of_the_slices(tmp_path):
    out = tmp_path / "examples"
    described = write_examples(out)
    assert {name.rstrip("/") for name in described} == {path.name for path in out.iterdir() if path.name[0] != "."}
    header, *lines = (out / "genome.fa").read_text().splitlines()
    human = "".join(lines).upper()
    kinds = set()
    for line in (out / "calls.vcf").read_text().splitlines():
        if line[0] != "#":
            record, position, _, reference, alternative, *_ = line.split("\t")
            start = int(position) - 1
            assert record == header[1:].split()[0]
            assert human[start : start + len(reference)] == reference != alternative
            kinds.add(len(alternative) - len(reference))
    assert kinds == {-1, 0, 1}
    with (out / "labels.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert {(row["label"], len(row["sequence"])) for row in rows} == {("human", 200), ("fruit_fly", 200)}
    assert all((row["sequence"] in human) == (row["label"] == "human") for row in rows)
    assert len({row["group"] for row in rows}) == 24


def test_a_second_call_asks_for_force_and_writes_the_same(tmp_path):
    out = tmp_path / "examples"
    write_examples(out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="--force"):
        write_examples(out)
    write_examples(out, force=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
