"""The script that makes the folders of pretraining: what goes in, what is held out, what is left out."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from Bio.bgzf import BgzfWriter

from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.data import open_data

ROOT = Path(__file__).parent.parent
specification: Any = importlib.util.spec_from_file_location(
    "pretraining_data", ROOT / "scripts" / "pretraining_data.py"
)
pretraining_data = importlib.util.module_from_spec(specification)
specification.loader.exec_module(pretraining_data)

SEQUENCES = {name: np.random.default_rng(seed) for seed, name in enumerate("abcdefgh")}


def text(name: str, bases: int) -> str:
    return "".join(SEQUENCES[name].choice(list("ACGT"), bases))


def write(path: Path, *records: tuple[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with BgzfWriter(str(path), "w") as file:
        for header, sequence in records:
            file.write(f">{header}\n{sequence}\n")


@pytest.fixture
def made(tmp_path, capsys) -> Path:
    """Folders from miniatures: one extra contig is a piece of BRCA1, and one locus is held out."""
    data, brca1 = tmp_path / "data", text("a", 40_000)
    write(data / "dna/human/hg19.one.fa.gz", ("chr1:1-60000", text("b", 60_000)))
    rows = "hg19.one.fa.gz\tchr1:1-60000\t0\t40000\ttrain\nhg19.one.fa.gz\tchr1:1-60000\t40000\t50000\tval\n"
    rows += "hg19.one.fa.gz\tchr1:1-60000\t50000\t60000\ttest\n"
    (data / "dna/human/intervals.tsv").write_text("file\trecord\tstart0\tend\tsplit\n" + rows)
    write(data / "dna/human/LPA_locus.haplotypes.fa.gz", ("hap1", text("c", 20_000)))
    contigs = [("clone1|ensembl", text("d", 9_000)), ("clone2|ensembl", brca1[5_000:6_000])]
    write(data / "human_extra/ensembl_test_contigs.fa.gz", *contigs)
    loci = [(f"chr22_{k}00k species=human split={split} blocks=1", text("e", 5_000)) for k, split in enumerate(SPLITS)]
    write(data / "apes/human/chr22_epo.fa.gz", *loci)
    write(data / "brca1_sge/BRCA1_megabase.GRCh38_chr17_42425000-43600000.fa.gz", ("chr17:42425000-43600000", brca1))
    write(data / "multispecies_pretrain/yeast.fa.gz", ("chrI", text("f", 90_000)))
    write(data / "multispecies_pretrain/fungus.fa.gz", ("scaffold", text("g", 60_000)))
    pretraining_data.make(data, tmp_path / "out")
    return tmp_path / "out"


SPLITS = ("train", "val", "test", "train")


def test_the_human_folder_has_its_splits_and_no_repeat_of_what_is_tested_on(made, capsys) -> None:
    leaks = json.loads((made / "leaks.json").read_text())
    assert leaks["left_out"] == [{"record": "human_extra_contigs:clone2|ensembl", "bases": 1_000}]
    assert leaks["BRCA1 region"] == {"bases": 40_000, "share_of_31mers_in_train": 0.0, "records_above_a_fifth": []}
    assert leaks["apes, validation and test loci (human)"]["bases"] == 10_000
    config = load_config(str(made / "human56mb-7m.yaml"), ["data.num_workers=0", "train.length=64"])
    assert (config.name, config.model.d_model, config.model.num_layers) == ("human56mb-7m", 256, 16)
    data = open_data(config, "cpu")
    data.setup()
    splits = {split: counts["bases"] for split, counts in data.summary()["splits"].items()}
    # Of the first part, the first contig, and two loci of four.
    assert splits == {"train": 40_000 + 9_000 + 10_000, "valid": 10_000, "test": 10_000}


def test_the_mixed_folder_weighs_its_genomes(made) -> None:
    config = load_config(str(made / "human56mb-microbes-7m.yaml"), ["data.num_workers=0", "train.length=64"])
    weights = config.data.model_dump()["weights"]
    assert sum(weights.values()) == pytest.approx(1, abs=1e-5)
    human = [weights[name] for name in ("hg19.one", "human_extra_contigs", "human_chr22_loci")]
    assert sum(human) == pytest.approx(0.6, abs=1e-5)
    # By their bases among themselves.
    assert human[0] / human[1] == pytest.approx(40 / 9, rel=1e-3)
    data = open_data(config, "cpu")
    data.setup()
    splits = {split: counts["bases"] for split, counts in data.summary()["splits"].items()}
    assert splits["test"] > 10_000
    assert sum(splits.values()) == 59_000 + 20_000 + 150_000
