import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.data import DataModule
from mamba_bio_audio.pipelines.dna.config import DnaDataConfig
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.prepare import prepare_genome, summary_rows
from mamba_bio_audio.pipelines.dna.prepare_settings import GenomeSettings
from mamba_bio_audio.pipelines.dna.sources import PREPARED_KIND
from mamba_bio_audio.pipelines.reporter import Reporter
from mamba_bio_audio.pipelines.spans import size_of


def module(folder: Path) -> DataModule:
    data = DataModule(DnaDataConfig(path=str(folder)), length=64, batch_size=2, seed=0)
    data.setup()
    return data


def test_prepared_folder_works_as_data_path(write_fasta, random_dna, tmp_path: Path) -> None:
    paths = [
        write_fasta("in/a.fa", {"r": random_dna(9000)}),
        write_fasta("in/b.fa.gz", {"r": random_dna(5000, 1)}),
    ]
    manifest = prepare_genome(paths, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == [".mba.json", "intervals.tsv", "manifest.json"]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    assert dict(summary_rows(manifest))["bases"] == "14,000"
    assert dict(summary_rows(manifest))["bases in two splits"] == "0"
    data = module(tmp_path / "out")
    plain = DataModule(DnaDataConfig(path=paths), length=64, batch_size=2, seed=0)
    plain.setup()
    assert data.corpus.intervals == plain.corpus.intervals
    assert data.summary()["files"] == plain.summary()["files"]
    for split, counts in manifest["splits"].items():
        assert data.summary()["splits"][split]["bases"] == counts["bases"]
    rows = dict(summary_rows(data.summary()))
    assert rows["training windows"].startswith(f"{len(data.training_windows(data.length)):,}")
    assert rows["windows"].endswith("of 64 bases an epoch under tile")


def test_prepared_folder_survives_moving(write_fasta, random_dna, tmp_path: Path) -> None:
    prepare_genome(write_fasta("home/data/a.fa", {"r": random_dna(9000)}), tmp_path / "home" / "out")
    shutil.move(tmp_path / "home", tmp_path / "away")
    assert module(tmp_path / "away" / "out").corpus.genome.paths == [str(tmp_path / "away" / "data" / "a.fa")]
    shutil.move(tmp_path / "away" / "data", tmp_path / "gone")
    with pytest.raises(InputError, match="is missing; put it back"):
        module(tmp_path / "away" / "out")


def test_fasta_changed_after_preparing(write_fasta, random_dna, tmp_path: Path) -> None:
    path = write_fasta("a.fa", {"r": random_dna(9000)})
    prepare_genome(path, tmp_path / "out")
    write_fasta("a.fa", {"r": random_dna(9000, 1)})
    with pytest.raises(InputError, match=r"a\.fa: changed since it was prepared"):
        module(tmp_path / "out")


def test_existing_output_is_kept_without_force(write_fasta, random_dna, tmp_path: Path) -> None:
    path = write_fasta("a.fa", {"r": random_dna(9000)})
    prepare_genome(path, tmp_path / "out")
    before = (tmp_path / "out" / "intervals.tsv").read_text()
    with pytest.raises(InputError, match=r"is not empty.*--force"):
        prepare_genome(path, tmp_path / "out", GenomeSettings(seed=1))
    assert (tmp_path / "out" / "intervals.tsv").read_text() == before
    prepare_genome(path, tmp_path / "out", GenomeSettings(seed=1), force=True)
    assert (tmp_path / "out" / "intervals.tsv").read_text() != before
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        prepare_genome(path, tmp_path / "file")


def test_leaking_intervals_are_refused(write_fasta, random_dna, tmp_path: Path) -> None:
    path = write_fasta("a.fa", {"r": random_dna(9000)})
    (tmp_path / "x.bed").write_text("r 0 8000 train\nr 7000 9000 test\n")
    with pytest.raises(InputError, match=r"in common \(train/test 1,000\)"):
        prepare_genome(path, tmp_path / "out", GenomeSettings(intervals=tmp_path / "x.bed"))
    assert not (tmp_path / "out").exists()
    manifest = prepare_genome(
        path, tmp_path / "out", GenomeSettings(intervals=tmp_path / "x.bed", allow_shared_bases=True)
    )
    assert manifest["shared_bases"]["train/test"] == 1000
    # What is shared by coordinates is not counted again by sequence.
    assert manifest["duplicates"]["shares"]["test"] == 0


def test_ordinary_gzip_is_recompressed(write_fasta, random_dna, tmp_path: Path, monkeypatch) -> None:
    records = {"r": random_dna(200_000, 3, "ACGTacgtN"), "s": random_dna(70_000, 4)}
    plain = write_fasta("plain/a.fa", records)
    packed = tmp_path / "in" / "a.fa.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(Path(plain).read_bytes()))
    notes: list[str] = []
    reporter = Reporter()
    monkeypatch.setattr(reporter, "note", notes.append)
    with pytest.raises(
        InputError, match=r"ordinary gzip.*`mba prepare genome a.fa.gz --out DIR`, which recompresses it"
    ):
        Genome(packed)
    manifest = prepare_genome(packed.parent, tmp_path / "out", reporter=reporter)
    assert notes == [f"{packed}: ordinary gzip, recompressing to BGZF in {tmp_path / 'out'}"]
    assert {"a.fa.gz", "intervals.tsv", "manifest.json"} <= set(os.listdir(tmp_path / "out"))
    assert not [name for name in os.listdir(tmp_path / "out") if name.endswith(".tmp")]
    assert dict(summary_rows(manifest))["recompressed"] == f"{packed} to {tmp_path / 'out' / 'a.fa.gz'}"
    data, truth = module(tmp_path / "out"), Genome(plain)
    assert data.corpus.genome.records == truth.records
    for record, length in truth.records.items():
        assert (data.corpus.genome.fetch(record, 0, length) == truth.fetch(record, 0, length)).all()
        assert (data.corpus.genome.lower_case(record, 0, length) == truth.lower_case(record, 0, length)).all()
    assert gzip.decompress((tmp_path / "out" / "a.fa.gz").read_bytes()) == Path(plain).read_bytes()
    assert os.listdir(packed.parent) == ["a.fa.gz"]


def test_ordinary_gzip_is_recompressed_whatever_its_name(write_fasta, random_dna, tmp_path: Path) -> None:
    text = Path(write_fasta("plain/a.fa", {"r": random_dna(9000)})).read_bytes()
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.fa").write_bytes(gzip.compress(text))
    prepare_genome(tmp_path / "one" / "a.fa", tmp_path / "out")
    assert module(tmp_path / "out").corpus.genome.records == {"r": 9000}
    both = [tmp_path / "one", tmp_path / "two"]
    with pytest.raises(InputError, match=rf"{both[1]}/a.fa: has the genome name 'a', like {both[0]}/a.fa"):
        prepare_genome(both, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("kind", ["truncated", "no text"])
def test_bad_gzip_leaves_nothing(kind: str, tmp_path: Path) -> None:
    contents = gzip.compress(b">a\nACGT\n" * 99)[:-9] if kind == "truncated" else gzip.compress(os.urandom(1 << 17))
    (tmp_path / "a.fa.gz").write_bytes(contents)
    with pytest.raises(InputError, match=r"a\.fa\.gz: (.*damaged|.*precedes the first header|the input is not text)"):
        prepare_genome(tmp_path / "a.fa.gz", tmp_path / "out")
    assert os.listdir(tmp_path) == ["a.fa.gz"]


def test_a_failed_preparation_keeps_the_old_one(write_fasta, random_dna, tmp_path: Path) -> None:
    good = tmp_path / "a.fa.gz"
    good.write_bytes(gzip.compress(f">r\n{random_dna(9000)}\n".encode()))
    prepare_genome(good, tmp_path / "out")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in os.listdir(tmp_path / "out")}
    good.write_bytes(gzip.compress(b">r\nACGT\n>r\nACGT\n"))
    with pytest.raises(InputError, match="duplicate record 'r', first seen"):
        prepare_genome(good, tmp_path / "out", force=True)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in os.listdir(tmp_path / "out")} == before


def test_contigs_of_a_prepared_folder(write_fasta, random_dna, tmp_path: Path) -> None:
    records = {"chr1": random_dna(9000), "chr1_alt": random_dna(3000, 1), "chr2": random_dna(5000, 2)}
    path = write_fasta("a.fa", records)
    manifest = prepare_genome(path, tmp_path / "primary")
    assert dict(summary_rows(manifest))["contigs"] == "2 (primary): chr1, chr2; left out 1: chr1_alt"
    listed = prepare_genome(path, tmp_path / "listed", GenomeSettings(contigs=("1:1-8,000", "chr1_alt")))
    assert dict(summary_rows(listed))["contigs"] == "2 (as listed): chr1:1-8000, chr1_alt:1-3000; left out 1: chr2"
    assert dict(summary_rows(listed))["names by alias"] == "1 is chr1"
    # The training keeps to what was prepared.
    data = module(tmp_path / "listed")
    assert sum(size_of(data.corpus.spans(split)) for split in ("train", "valid", "test")) == 11_000
    assert data.summary()["contigs"] == listed["contigs"]


def test_whole_chromosomes_are_held_out(write_fasta, random_dna, tmp_path: Path) -> None:
    path = write_fasta("a.fa", {f"chr{n}": random_dna(1000 * n, n) for n in range(1, 13)})
    manifest = prepare_genome(
        path, tmp_path / "out", GenomeSettings(split_by="records", valid_fraction=0.1, test_fraction=0.1)
    )
    rows = [line.split("\t") for line in (tmp_path / "out" / "intervals.tsv").read_text().splitlines()[1:]]
    assert [(row[1], row[2], row[3]) for row in rows] == [(f"chr{n}", "0", str(1000 * n)) for n in range(1, 13)]
    assert {row[4] for row in rows} == {"train", "valid", "test"}
    assert manifest["split_source"] == "records chosen by split_seed 0"
    data = DataModule(
        DnaDataConfig(path=path, split_by="records", valid_fraction=0.1, test_fraction=0.1),
        length=64,
        batch_size=2,
        seed=0,
    )
    data.setup()
    assert [(i.record, i.split) for i in data.corpus.intervals] == [(row[1], row[4]) for row in rows]
    with pytest.raises(InputError, match="by whole records; nothing is left for.*data.split_by=blocks"):
        prepare_genome(
            write_fasta("b.fa", {"one": random_dna(9000)}), tmp_path / "b", GenomeSettings(split_by="records")
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split_by": "genes"}, "split_by"),
        ({"valid_fraction": 1.5}, "valid_fraction"),
        ({"valid_fraction": 0.5, "test_fraction": 0.5}, "nothing to train on"),
    ],
)
def test_bad_settings(settings, message) -> None:
    with pytest.raises(ValidationError, match=message):
        GenomeSettings(**settings)


def test_data_path_of_a_foreign_manifest(write_fasta, random_dna, tmp_path: Path) -> None:
    write_fasta("f/a.fa", {"r": random_dna(9000)})
    (tmp_path / "f" / "manifest.json").write_text('{"kind": "something else"}')
    assert module(tmp_path / "f").corpus.genome.records == {"r": 9000}
    (tmp_path / "f" / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json: cannot be read as JSON"):
        module(tmp_path / "f")
    for text in (f'{{"kind": "{PREPARED_KIND}"}}', f'{{"kind": "{PREPARED_KIND}", "files": [{{"path": "a"}}]}}'):
        (tmp_path / "f" / "manifest.json").write_text(text)
        with pytest.raises(InputError, match=r"manifest\.json: does not name its FASTA files"):
            module(tmp_path / "f")


def test_preparing_needs_no_torch(write_fasta, random_dna, tmp_path: Path) -> None:
    """The whole command: repair, index, splits, comparison, table."""
    path = write_fasta("a.fa", {"r": random_dna(9000)})
    Path(path).write_text(Path(path).read_text().replace("\n", "\n\n", 1))
    program = (
        "import sys\n"
        "from mamba_bio_audio.cli.main import run\n"
        "try:\n"
        "    run(sys.argv[1:])\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "slow = {'torch', 'torchaudio', 'triton', 'lightning', 'matplotlib', 'sklearn', 'scipy', 'transformers'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)\n"
    )
    root = Path(__file__).resolve().parents[3]
    arguments = ["prepare", "genome", path, "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "line of another length" not in done.stdout
    assert "blank line (1)" in done.stdout
