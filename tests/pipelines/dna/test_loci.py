"""Loci of several species joined in order: `mba prepare apes --join`."""

import json
from pathlib import Path

import numpy as np
import pytest

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.jobs.prepare_apes import ApesOptions, run
from mamba_bio_audio.pipelines.dna.loci import Joining, join_loci, substituted
from mamba_bio_audio.pipelines.dna.records import read_records

PLACES = {"a": (30_001, "val"), "b": (10_001, "val"), "c": (1_000_001, "train"), "d": (2_500_001, "test")}


def sequence(species: str, name: str, bases: int = 3000) -> str:
    # Species differ in length, as by indels.
    draws = np.random.default_rng([ord(letter) for letter in species + name])
    return "".join(draws.choice(list("ACGT"), bases + 10 * len(species)))


def write(folder: Path, species: str, places=PLACES) -> None:
    (folder / species).mkdir(parents=True)
    loci = [
        f">{name} split={split} hg19=chr22:{start}-{start + 100}\n{sequence(species, name)}\n"
        for name, (start, split) in places.items()
    ]
    (folder / species / "chr22_epo.fa").write_text("".join(loci))
    (folder / species / "other.fa").write_text(">mt\nACGT\n")


@pytest.fixture
def source(tmp_path) -> Path:
    for species in ("human", "orangutan"):
        write(tmp_path / "in", species)
    return tmp_path / "in"


def joined(folder: Path, species: str) -> dict[str, tuple[str, str]]:
    records = list(read_records(folder / species / "chr22_epo.fa.gz"))
    return {record.name: (record.header, record.sequence.decode()) for record in records}


def test_loci_of_a_stretch_are_one_record_in_their_order(source, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        command(["prepare", "apes", "--from", str(source), "--join", "1000000", "--loci", "chr22*", "--out", str(out)])
    assert not stop.value.code
    assert "next: mba classify dna/apes" in capsys.readouterr().out
    for species in ("human", "orangutan"):
        found = joined(out, species)
        assert list(found) == ["chr22_0k", "chr22_1000k", "chr22_2000k"]
        # b lies before a.
        assert found["chr22_0k"][1] == sequence(species, "b") + sequence(species, "a")
        assert [header.split()[2] for header, _ in found.values()] == ["split=valid", "split=train", "split=test"]
    rows = (out / "loci.tsv").read_text().splitlines()
    assert rows[1:3] == ["human\tchr22_0k\tb\t0\t3050", "human\tchr22_0k\ta\t3050\t6100"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["species"]["human"]["bases"] == {"train": 3050, "valid": 6100, "test": 3050}


def test_another_individual_differs_in_a_share_of_the_bases_of_each_species(source, tmp_path) -> None:
    made = [tmp_path / name for name in ("same", "changed", "again", "other")]
    for out, more in zip(
        made, ({}, {"substitute": 0.01}, {"substitute": 0.01}, {"substitute": 0.01, "seed": 1}), strict=True
    ):
        join_loci(out, source, Joining(1_000_000, "chr22*", **more))
    for species in ("human", "orangutan"):
        same, changed, again, other = (joined(out, species)["chr22_0k"][1] for out in made)
        differ = np.array([a != b for a, b in zip(same, changed, strict=True)])
        assert 0.005 < differ.mean() < 0.02
        assert changed == again != other
    assert substituted(b"NNACGT" * 10, 1 - 1e-9, "x").count(b"N") == 20


def test_what_is_no_aligned_locus_is_refused(source, tmp_path) -> None:
    def refused(text: str, join: int = 1_000_000, files: str = "chr22*", **more) -> None:
        with pytest.raises(InputError, match=text):
            join_loci(tmp_path / "out", source, Joining(join, files), **more)
        assert not (tmp_path / "out").exists()

    refused("record 'mt': its header does not say where it lies", files="other*")
    refused("record 'c' is in train, others of its 9,000,000 bases in valid", join=9_000_000)
    refused("no files chr22\\* of gibbon", species=("human", "gibbon"))
    (source / "human" / "chr22_epo.fa.gz").write_text(">x split=train hg19=chr22:5000001-5000100\nACGT\n")
    refused("lies beside chr22_epo.fa.gz")
    (source / "human" / "chr22_epo.fa.gz").unlink()
    write(source, "gorilla", PLACES | {"e": (40_001, "val")})
    refused("locus 'e' is not the same in gorilla and human")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"substitute": 0.1}, "--substitute goes with --join"),
        ({"join": 5000}, "name their folder with --from"),
        ({"join": 5000, "source": "x", "valid": "1"}, "--valid does not go with --join"),
        ({"join": 5000, "source": "x", "url": "http://x"}, "--url does not go with --join"),
    ],
)
def test_options_that_do_not_go_together_are_refused(given, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        run(ApesOptions.model_validate({"out": tmp_path / "out"} | given))
