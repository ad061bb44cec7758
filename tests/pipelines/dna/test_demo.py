import os
from pathlib import Path

import pytest

from mamba_bio_audio.pipelines.data import DataModule
from mamba_bio_audio.pipelines.dna.config import DnaDataConfig
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.sources import demo_folder, locate

GENOMES = {
    "e_coli": "NC_008253.1:1-200000",
    "fruit_fly": "chr2R:2000001-2200000",
    "human": "chr3:43000000-43199999",
    "p_falciparum": "MAL4:200001-400000",
    "phage_lambda": "NC_001416.1:1-48502",
}


def test_demo_genomes(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    # Also where indexes may be put beside the data, the installed package stays as it is.
    monkeypatch.delenv("MAMBA_BIO_AUDIO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_cache))
    before = sorted(os.listdir(demo_folder()))
    data = DataModule(DnaDataConfig(path="demo"), length=512, batch_size=4, seed=0)
    data.setup()
    assert sorted(os.listdir(demo_folder())) == before == [f"{name}.fa.gz" for name in GENOMES]
    assert data.corpus.genome.genomes == list(GENOMES)
    assert list(data.corpus.genome.records) == [f"{genome}:{record}" for genome, record in GENOMES.items()]
    for record, length in data.corpus.genome.records.items():
        first, last = record.rsplit(":", 1)[1].split("-")
        assert length == int(last) - int(first) + 1
    for split in ("train", "valid", "test"):
        assert {data.corpus.genome.genome_of(record) for record, _, _ in data.corpus.spans(split)} == set(range(5))
    assert data.summary()["unknown_percent"] == 0


def test_demo_is_always_the_packaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert locate("demo").paths == [demo_folder()]


def test_notice_names_every_slice() -> None:
    notice = (Path(__file__).resolve().parents[3] / "NOTICE").read_text()
    for name, record in GENOMES.items():
        assert f"{name}.fa.gz" in notice
        assert record in notice


def test_demo_equals_its_source(shared_dna: Path) -> None:
    demo = Genome(demo_folder())
    human = Genome(shared_dna / "human" / "hg19.chr3_42000000-44000000.fa.gz")
    falciparum = Genome(shared_dna / "other_species" / "plasmodium_falciparum.MAL4_MAL12.fa.gz")
    record = "chr3:42000000-44000000"
    assert (demo.fetch("human:chr3:43000000-43199999", 0, 200_000) == human.fetch(record, 1_000_000, 1_200_000)).all()
    assert (
        demo.fetch("p_falciparum:MAL4:200001-400000", 0, 200_000)
        == falciparum.fetch("MAL4:1-1204112", 200_000, 400_000)
    ).all()
