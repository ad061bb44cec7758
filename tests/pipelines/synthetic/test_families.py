"""The positive control: families of their own, at the stated rate and divergence, nothing else changed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.records import Record, read_records
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.pipelines.synthetic import families as module
from mamba_bio_audio.pipelines.synthetic.families import ceiling, ceiling_of_windows, draw_families, plant, plant_files

ROOT = Path(__file__).parents[3]


def dna(length: int, seed: int) -> bytes:
    return np.random.default_rng(seed).choice(np.frombuffer(b"ACGT", dtype=np.uint8), length).tobytes()


def reverse_complement(sequence: bytes) -> bytes:
    codec = DnaTokenizer()
    return codec.decode(codec.reverse_complement(codec.encode(sequence))).encode()


def test_ceiling_is_that_of_the_issue():
    assert [round(ceiling(1 << k), 2) for k in (10, 12, 14, 16)] == [0.29, 0.39, 0.67, 0.97]


def test_families_differ_and_have_one_composition():
    drawn = draw_families(["a", "b", "c", "d"], [dna(5000, 1)], seed=3)
    assert len(set(drawn.values())) == 4
    assert {tuple(family.count(letter) for letter in b"ACGT") for family in drawn.values()} == {(75, 75, 75, 75)}
    assert drawn == draw_families(["a", "b", "c", "d"], [dna(5000, 1)], seed=3)
    assert drawn != draw_families(["a", "b", "c", "d"], [dna(5000, 1)], seed=4)


@pytest.mark.parametrize("strand", [bytes, reverse_complement])
def test_families_that_occur_in_the_sequence_are_drawn_again(strand, monkeypatch):
    first = draw_families(["a", "b"], [], seed=0)
    beside = dna(1000, 1) + strand(first["b"][100:130]).lower() + dna(1000, 2)
    again = draw_families(["a", "b"], [beside], seed=0)
    assert again["b"] != first["b"]
    monkeypatch.setattr(module, "MAX_DRAWS", 1)
    with pytest.raises(InputError, match="share words"):
        draw_families(["a", "b"], [beside], seed=0)


def test_copies_are_where_they_are_said_to_be_and_nothing_else_changes():
    record = Record("locus split=test", dna(2_000_000, 5))
    family = draw_families(["a"], [record.sequence])["a"]
    planted, copies = plant(record, family, key=(0, 0), spacing=20_000, divergence=0.1)
    assert planted.header == record.header
    assert len(planted.sequence) == len(record.sequence)
    # 100 expected, five standard deviations.
    assert 50 < len(copies) < 150
    assert {copy.strand for copy in copies} == {"+", "-"}
    outside = np.ones(2_000_000, dtype=bool)
    starts = [copy.start for copy in copies]
    identities = []
    for i, copy in enumerate(copies):
        outside[copy.start : copy.start + 300] = False
        if (i + 1 < len(starts) and starts[i + 1] - copy.start < 300) or (i and copy.start - starts[i - 1] < 300):
            continue
        found = planted.sequence[copy.start : copy.start + 300]
        found = found if copy.strand == "+" else reverse_complement(found)
        differ = sum(x != y for x, y in zip(found, family, strict=True))
        assert differ == copy.mutations
        identities.append(1 - differ / 300)
    assert np.mean(identities) == pytest.approx(0.9, abs=0.01)
    before, after = (np.frombuffer(r.sequence, dtype=np.uint8) for r in (record, planted))
    assert (before == after)[outside].all()


def test_copies_are_spread_over_records_at_the_stated_rate():
    counts = [len(plant(Record(f"r{i}", dna(60_000, i)), dna(300, 99), key=(1, 0))[1]) for i in range(200)]
    # Mean 3 and variance 3: five standard errors.
    assert np.mean(counts) == pytest.approx(3, abs=5 * (3 / 200) ** 0.5)
    assert np.var(counts) == pytest.approx(3, abs=1.6)


def test_draws_depend_on_seed_class_and_record_only():
    record = Record("r", dna(100_000, 0))
    one = plant(record, dna(300, 9), key=(0, 0))[1]
    assert plant(record, dna(300, 9), key=(0, 0))[1] == one
    assert plant(record, dna(300, 9), key=(0, 1))[1] != one
    assert plant(Record("s", record.sequence), dna(300, 9), key=(0, 0))[1] != one
    assert plant(Record("short", b"ACGT"), dna(300, 9), key=(0, 0))[0].sequence == b"ACGT"


def test_script_keeps_headers_and_writes_a_manifest(tmp_path):
    headers = [f"chr22_{i}k split={split} x=1" for i, split in enumerate(("train", "val", "test"))]
    for number, species in enumerate(("human", "gorilla")):
        (tmp_path / species).mkdir()
        text = "".join(f">{h}\n{dna(90_000, 10 * number + i).decode()}\n" for i, h in enumerate(headers))
        (tmp_path / species / "x.fa").write_text(text)
    out = tmp_path / "planted"
    script = [sys.executable, str(ROOT / "scripts" / "plant_families.py")]
    files = [str(tmp_path / s / "x.fa") for s in ("human", "gorilla")]
    done = subprocess.run([*script, *files, "--out", str(out)], capture_output=True, text=True, check=True)
    assert "highest accuracy" in done.stdout
    manifest = json.loads((out / "manifest.json").read_text())
    for species in ("human", "gorilla"):
        found = list(read_records(out / species / "x.fa.gz"))
        assert [record.header for record in found] == headers
        assert {len(record.sequence) for record in found} == {90_000}
    rows = (out / "copies.tsv").read_text().splitlines()[1:]
    assert len(rows) == sum(row["copies"] for row in manifest["classes"].values()) > 0
    assert manifest["ceiling"]["16384"] == pytest.approx(ceiling(16384, classes=2))
    again = subprocess.run([*script, *files, "--out", str(out)], capture_output=True, text=True)
    assert again.returncode
    assert "--force" in again.stderr
    with pytest.raises(InputError, match="not empty"):
        plant_files({"a": tmp_path / "human" / "x.fa"}, out)


def test_the_ceiling_of_given_windows(tmp_path):
    copies = tmp_path / "copies.tsv"
    copies.write_text("class\tfile\trecord\tstart0\tend\tstrand\tidentity\na\tx.fa\tr1\t100\t400\t+\t0.9\n")
    header = "class\trecord\tstart0\tend\tlocus\tpredicted\tp_a\tp_b\n"
    rows = [
        ("a", "r1", 0, 1000, "a"),  # the whole copy
        ("a", "r1", 0, 250, "b"),  # half of it
        ("a", "r1", 0, 249, "b"),  # less
        ("b", "r1", 0, 1000, "b"),  # another class
    ]
    text = header + "".join(f"{c}\t{r}\t{s}\t{e}\tl\t{p}\t0.5\t0.5\n" for c, r, s, e, p in rows)
    assert ceiling_of_windows(text, copies, at_least=150) == {
        "windows": 4,
        "with_copy": 0.5,
        "ceiling": 0.75,
        "accuracy_with_copy": 0.5,
        "accuracy_without": 0.5,
    }
    assert ceiling_of_windows(text, copies)["ceiling"] == 0.875
    with pytest.raises(InputError, match="no prediction"):
        ceiling_of_windows(header, copies)
