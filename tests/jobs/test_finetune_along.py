"""`mba finetune` along a genome: a class of every base, numbers of bins; from files to files."""

import csv
import json
from pathlib import Path

import numpy as np
import pybigtools
import pytest
import torch

import mamba_bio_audio as mba
from mamba_bio_audio.cli.main import run as command

RECIPE = """\
model: {d_model: 16, num_layers: 1, ssm: {d_state: 4}}
head: {}
data: {kind: dna-tracks, contigs: all, block_bases: 2000}
train: {length: 80, tokens_per_step: 2560, steps: 80, lr: 2.0e-2, validate_every: 40, checkpoint_every: 40}
"""


def mba_command(*arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        command([str(argument) for argument in arguments])
    return 0 if stop.value.code is None else int(stop.value.code)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A genome; the T of each ATG, by oracle; and the number of G and C in bins of 4."""
    folder = tmp_path_factory.mktemp("tracks")
    rng = np.random.default_rng(0)
    texts = {name: "".join(rng.choice(list("ACGT"), 20_000)) for name in ("one", "two")}
    (folder / "g.fa").write_text("".join(f">{name}\n{text}\n" for name, text in texts.items()))
    lines, values = [], []
    for name, text in texts.items():
        lines += [f"{name}\t{at + 1}\t{at + 2}\tatg" for at in range(len(text)) if text[at : at + 3] == "ATG"]
        gc = np.isin(np.array(list(text)), ("G", "C")).reshape(-1, 4).sum(1)
        values += [(name, 4 * at, 4 * at + 4, float(value)) for at, value in enumerate(gc)]
    (folder / "atg.bed").write_text("\n".join(lines) + "\n")
    pybigtools.open(str(folder / "gc.bw"), "w").write({name: len(text) for name, text in texts.items()}, iter(values))
    (folder / "r.yaml").write_text(RECIPE)
    return folder


def arguments(folder: Path, out: Path, *more: str) -> list:
    settings = (f"data.path={folder / 'g.fa'}", *more)
    pairs = [part for key in settings for part in ("--set", key)]
    return ["finetune", folder / "r.yaml", *pairs, "--out", out, "--device", "cpu"]


def test_a_class_of_every_base(folder, tmp_path, capsys):
    """A letter whose neighbours on both sides make it what it is, read with a margin that is longer than a state remembers."""
    own = (f"data.tracks={folder / 'atg.bed'}", "head.task=bases", "data.reverse_complement=false", "data.margin=20")
    run = tmp_path / "run"
    assert mba_command(*arguments(folder, run, *own)) == 0
    assert "nats per base" in capsys.readouterr().out
    assert mba_command("evaluate", run, "--strand", "forward", "--device", "cpu", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["task"], result["rows"]) == ("bases", "bases")
    found = result["model"]["outputs"]["atg"]
    # One T in 16 is of an ATG: what stands before it tells one in 4, and so does what stands behind it.
    assert found["auroc"]["value"] > 0.999
    assert found["average_precision"]["value"] > 0.95
    assert (run / "evaluate-test.json").exists()
    assert mba_command("report", run) == 0
    text = "CCCCCCCCCCATGCCCCCCCCCCCCCCCATGCC" * 8
    (tmp_path / "x.fa").write_text(f">x\n{text}\n>y\n{text[:40]}\n")
    given = ("predict", run, tmp_path / "x.fa", "--strand", "forward", "--device", "cpu", "--out")
    assert mba_command(*given, tmp_path / "x.bed") == 0
    assert "2 records, 304 bases used: 2 scored" in capsys.readouterr().out
    rows = [line.split("\t") for line in (tmp_path / "x.bed").read_text().splitlines() if line[0] != "#"]
    starts = [at + 1 for at in range(len(text)) if text[at : at + 3] == "ATG"]
    assert [int(row[1]) for row in rows if row[0] == "x"] == starts
    assert {(int(row[2]) - int(row[1]), row[3]) for row in rows} == {(1, "atg")}
    assert [int(row[1]) for row in rows if row[0] == "y"] == [11, 29]
    # The same from Python, and whatever else is in the list.
    model = mba.load(run)
    whole, short = mba.predict_along(model, [text, text[:40]], strand="forward")
    assert whole.shape == (len(text), 2)
    assert np.flatnonzero(whole.argmax(1)).tolist() == starts
    assert torch.equal(mba.predict_along(model, text[:40], strand="forward")[0], short)
    assert mba_command(*given, tmp_path / "x.bw") == 2
    assert "classes along sequences are written as .bed, .tsv" in capsys.readouterr().err
    assert mba_command(*given, tmp_path / "x.bed") == 2
    assert mba_command(*given, tmp_path / "x.bed", "--force") == 0
    assert mba_command(*given, tmp_path / "y.bed", "--threshold", "0.5") == 2
    assert "--threshold: this model predicts every base" in capsys.readouterr().err
    (tmp_path / "n.fa").write_text(f">n\n{'N' * 50}\n>none\n>x\n{text}\n")
    given = ("predict", run, tmp_path / "n.fa", "--device", "cpu", "--out", tmp_path / "n.tsv")
    assert mba_command(*given) == 0
    assert "2 not scored: 1 x contains no known symbol (A, C, G, T); 1 x empty" in capsys.readouterr().out
    assert {line.split("\t")[0] for line in (tmp_path / "n.tsv").read_text().splitlines()[1:]} == {"x"}
    gap = mba.predict_along(model, f"{text[:40]}NN{text[:40]}")[0]
    assert gap.isnan().all(1).nonzero()[:, 0].tolist() == [40, 41]
    (tmp_path / "n.fa").write_text(f">\n{text}\n")
    assert mba_command(*given, "--force") == 2
    assert "record 1 has no name" in capsys.readouterr().err
    with pytest.raises(mba.errors.InputError, match=r"use mba\.predict_along"):
        mba.predict(model, "ACGT")


@pytest.mark.parametrize("loss", ["mse", "poisson"])
def test_numbers_of_bins(folder, tmp_path, capsys, loss):
    run = tmp_path / "run"
    own = (f"data.tracks={folder / 'gc.bw'}", "head.task=tracks", "data.bin=4", f"head.loss={loss}")
    assert mba_command(*arguments(folder, run, *own)) == 0
    out = capsys.readouterr().out
    assert ("Poisson loss in units of the mean per bin" if loss == "poisson" else "half squared errors") in out
    assert mba_command("evaluate", run, "--device", "cpu") == 0
    assert "bins in windows of 80 bases, strand: both" in capsys.readouterr().out
    found = json.loads((run / "evaluate-test.json").read_text())["model"]["outputs"]["gc"]
    assert found["pearson"]["value"] > 0.95
    assert found["rmse"] < 0.5
    # Every bin, on both strands: a record and its reverse complement have the same numbers, from the other end.
    text = "".join(np.random.default_rng(1).choice(list("ACGT"), 200))
    turned = text[::-1].translate(str.maketrans("ACGT", "TGCA"))
    model = mba.load(run)
    one, other = mba.predict_along(model, [text, turned])
    assert one.shape == (50, 1)
    assert torch.allclose(one, other.flip(0), atol=1e-5)
    counts = np.isin(np.array(list(text)), ("G", "C")).reshape(-1, 4).sum(1)
    assert np.corrcoef(one[:, 0], counts)[0, 1] > 0.9
    # Three bases that fill no bin have no number.
    assert mba.predict_along(model, text + "ACG")[0].shape == one.shape
    (tmp_path / "x.fa").write_text(f">b\n{text}\n>a\n{text[:80]}\n")
    for name in ("x.bw", "x.tsv", "x.bedgraph"):
        given = ("predict", run, tmp_path / "x.fa", "--out", tmp_path / name, "--device", "cpu", "--quiet")
        assert mba_command(*given) == 0
    with pybigtools.open(str(tmp_path / "x.bw")) as file:
        assert file.chroms() == {"a": 80, "b": 200}
        assert file.values("b", 0, 200, fillna=None)[::4] == pytest.approx(one[:, 0].numpy(), rel=1e-5)
    with (tmp_path / "x.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["record"] for row in rows] == ["b"] * 50 + ["a"] * 20
    assert [float(row["gc"]) for row in rows[:50]] == pytest.approx(one[:, 0].tolist(), rel=1e-4)
    assert (tmp_path / "x.bedgraph").read_text().splitlines()[1].startswith("b\t0\t4\t")
    # Nothing is said of bins of N, and why a record has none is.
    (tmp_path / "n.fa").write_text(f">gap\nACG{'N' * 30}ACGTACG\n>short\nACG\n")
    rows = {}
    for name in ("n.bedgraph", "n.tsv"):
        given = ("predict", run, tmp_path / "n.fa", "--out", tmp_path / name, "--device", "cpu")
        assert mba_command(*given) == 0
        assert "1 not scored: 1 x shorter than a bin of 4" in capsys.readouterr().out
        rows[name] = [line.split("\t") for line in (tmp_path / name).read_text().splitlines()[1:]]
    assert [int(row[1]) for row in rows["n.bedgraph"]] == [0, 32, 36]
    assert [int(row[1]) for row in rows["n.tsv"] if row[3]] == [0, 32, 36]
    assert len(rows["n.tsv"]) == 10


def test_mistakes(folder, tmp_path, capsys):
    own = (f"data.tracks={folder / 'gc.bw'}", "head.task=tracks", "data.bin=4")
    assert mba_command(*arguments(folder, tmp_path / "x", "head.task=bases")) == 2
    assert "data.tracks: missing" in capsys.readouterr().err
    assert mba_command(*arguments(folder, tmp_path / "x", *own, "head.task=classes")) == 2
    assert "data.kind=dna-tracks is for bases, tracks; for classes set data.kind=dna-classes" in capsys.readouterr().err
    assert mba_command(*arguments(folder, tmp_path / "x", *own, "train.stream_chunk=16")) == 2
    assert "train.stream_chunk: head.task=tracks reads whole windows, from both strands" in capsys.readouterr().err
    assert mba_command(*arguments(folder, tmp_path / "x", *own, "data.bin=7")) == 2
    assert "must be a whole number of bins of 7" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
