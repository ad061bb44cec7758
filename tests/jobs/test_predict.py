"""`mba predict`: files of every kind to one table, nothing dropped, errors that leave what is done."""

import csv
import gzip
import io
import json
import os
import signal
import sys

import numpy as np
import pytest
import soundfile
import torch

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.inference.predict import Prediction
from mamba_bio_audio.inference.prediction_table import PredictionTable
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.heads import Classifier
from mamba_bio_audio.models.isotropic import IsotropicModel
from mamba_bio_audio.models.tasks import OUTPUTS
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.contract import Item
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.run import saved
from mamba_bio_audio.run.config import load_config

LABELS = ("gorilla", "human")


def mba(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        command([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def test_numbers_may_be_called_like_columns_of_the_table(tmp_path):
    names = ["length", "predicted", "note", "x"]
    with PredictionTable(tmp_path / "o.tsv", "base", OUTPUTS["numbers"], names, {}, resume=False, force=False) as rows:
        rows.add(Item("f", "r", 9, ""), Prediction(np.arange(4.0), 9, 9, 1, ""))
        rows.complete = True
    assert not rows.predicted
    row = table(tmp_path / "o.tsv")[0]
    assert (row["length"], row["predicted_length"], row["predicted_predicted"], row["note"]) == ("9", "0", "1", "")


@pytest.fixture(autouse=True)
def model(monkeypatch) -> Classifier:
    """A classifier with random weights, trained at 64 bases."""
    settings = [
        "data.path=demo",
        "train.length=64",
        "model.d_model=8",
        "model.num_layers=1",
        "train.tokens_per_step=512",
    ]
    config = load_config("dna/tiny", settings)
    torch.manual_seed(0)
    backbone = IsotropicModel(config.model.model_copy(update={"vocab_size": DnaTokenizer.vocab_size}))
    made = Classifier(backbone, HeadConfig(pool="mean", classes=LABELS)).eval()
    torch.nn.init.normal_(made.head.weight, std=2.0)
    made.config, made.codec = config, DnaTokenizer()
    monkeypatch.setattr(saved, "load", lambda run, which="best": made)
    return made


def dna(length: int, seed: int = 0) -> str:
    return np.random.default_rng(seed).choice(np.frombuffer(b"ACGT", np.uint8), length).tobytes().decode()


def table(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_fasta_fastq_and_gzip_give_one_row_per_record_in_order(tmp_path, capsys):
    sequences = [dna(n, n) for n in (10, 64, 300)]
    (tmp_path / "a.fa").write_text("".join(f">s{i} x\n{s.lower()}\n" for i, s in enumerate(sequences)))
    fastq = "".join(f"@r{i}\n{s}\n+\n{'I' * len(s)}\n" for i, s in enumerate(sequences))
    (tmp_path / "b.fq.gz").write_bytes(gzip.compress(fastq.encode()))
    out = tmp_path / "p.tsv"
    assert mba("predict", "run", tmp_path / "a.fa", tmp_path / "b.fq.gz", "--out", out) == 0
    assert "6 records, 748 bases used" in capsys.readouterr().out
    rows = table(out)
    assert list(rows[0]) == [
        "file", "record", "length", "bases_used", "windows", "predicted", "p_gorilla", "p_human", "note",
    ]  # fmt: skip
    assert [row["record"] for row in rows] == ["s0", "s1", "s2", "r0", "r1", "r2"]
    assert [row["file"] for row in rows] == [str(tmp_path / "a.fa")] * 3 + [str(tmp_path / "b.fq.gz")] * 3
    assert [row["length"] for row in rows] == ["10", "64", "300"] * 2
    # Case and format say nothing.
    for a, b in zip(rows[:3], rows[3:], strict=True):
        assert a | {"file": "", "record": ""} == b | {"file": "", "record": ""}
    for row in rows:
        p = [float(row["p_gorilla"]), float(row["p_human"])]
        assert sum(p) == pytest.approx(1, abs=1e-5)
        assert row["predicted"] == LABELS[int(np.argmax(p))]
    assert mba("predict", "run", tmp_path / "a.fa", "--out", out) == 2
    assert "--force" in capsys.readouterr().err


def test_records_that_cannot_be_scored_have_a_row_with_the_reason(tmp_path, capsys):
    (tmp_path / "a.fa").write_text(f">good\n{dna(50)}\n>empty\n>n\nNNNN\n>rna\nACGUU\n>odd\nAC1T\n>\n{dna(9)}\n")
    out = tmp_path / "p.tsv"
    assert mba("predict", "run", tmp_path / "a.fa", "--out", out, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["records"], sum(summary["predicted"].values())) == (6, 2)
    rows = table(out)
    assert [row["record"] for row in rows] == ["good", "empty", "n", "rna", "odd", ""]
    notes = [row["note"] for row in rows]
    assert (notes[0], notes[1], notes[5]) == ("", "empty", "")
    assert "no known symbol" in notes[2]
    assert "write T for U" in notes[3]
    assert notes[4] == "'1' at position 3 is not a base"
    assert [row["predicted"] == "" for row in rows] == [False, True, True, True, True, False]


def test_standard_input_to_standard_output(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(f">x\n{dna(100)}\n".encode()))))
    assert mba("predict", "run", "-") == 0
    found = capsys.readouterr()
    (row,) = csv.DictReader(io.StringIO(found.out), delimiter="\t")
    assert (row["file"], row["record"], row["length"]) == ("-", "x", "100")
    assert "1 record, 100 bases" in found.err


def test_strands_and_modes_reach_the_model(tmp_path):
    codec = DnaTokenizer()
    sequence = dna(500)
    (tmp_path / "a.fa").write_text(f">x\n{sequence}\n")
    (tmp_path / "rc.fa").write_text(f">x\n{codec.decode(codec.reverse_complement(codec.encode(sequence)))}\n")

    def run(file: str, *options: str) -> dict[str, str]:
        assert mba("predict", "run", tmp_path / file, "--out", tmp_path / "p.tsv", "--force", *options) == 0
        return table(tmp_path / "p.tsv")[0] | {"file": ""}

    for mode in ("windows", "stream"):
        assert run("a.fa", "--mode", mode) == run("rc.fa", "--mode", mode)
        forward = run("a.fa", "--mode", mode, "--strand", "forward")
        assert forward == run("rc.fa", "--mode", mode, "--strand", "reverse")
        assert forward["p_human"] != run("a.fa", "--mode", mode, "--strand", "reverse")["p_human"]
    assert run("a.fa")["windows"] == "16"
    assert run("a.fa", "--length", "250")["windows"] == "4"
    assert run("a.fa", "--mode", "stream", "--chunk", "64")["windows"] == "2"


@pytest.fixture
def reads(tmp_path):
    """6,000 reads, of which the first block holds some 4,000."""
    path = tmp_path / "a.fq"
    path.write_text("".join(f"@r{i}\n{dna(64, i)}\n+\n{'I' * 64}\n" for i in range(6000)))
    return path


def test_damage_leaves_the_rows_before_it_and_resume_goes_on(tmp_path, capsys, reads):
    whole = reads.read_text()
    out, part = tmp_path / "p.tsv", tmp_path / "p.tsv.part" / "rows.tsv"
    reads.write_text(whole[:-40])
    assert mba("predict", "run", reads, "--out", out, "--strand", "forward") == 2
    error = capsys.readouterr().err
    assert "after record 5,999" in error
    assert "p.tsv.part" in error
    assert not out.exists()
    rows = table(part)
    assert [row["record"] for row in rows] == [f"r{i}" for i in range(len(rows))]
    assert 4000 <= len(rows) < 6000
    # A kill may cut a row short.
    part.write_text(part.read_text() + "a.fq\tr59")
    reads.write_text(whole)
    assert mba("predict", "run", reads, "--out", out, "--strand", "forward") == 2
    assert "--resume" in capsys.readouterr().err
    assert mba("predict", "run", reads, "--out", out, "--resume") == 2
    assert "other settings (strand" in capsys.readouterr().err
    assert mba("predict", "run", reads, "--out", out, "--strand", "forward", "--resume", "--json") == 0
    assert json.loads(capsys.readouterr().out)["records"] == 6000
    assert mba("predict", "run", reads, "--out", out, "--resume") == 0
    assert "already complete" in capsys.readouterr().out
    assert mba("predict", "run", reads, "--out", out, "--resume", "--force") == 2
    assert not (tmp_path / "p.tsv.part").exists()
    resumed = out.read_bytes()
    assert mba("predict", "run", reads, "--out", out, "--strand", "forward", "--force") == 0
    again = table(out)
    out.write_bytes(resumed)
    for a, b in zip(table(out), again, strict=True):
        assert (a["record"], a["predicted"]) == (b["record"], b["predicted"])
        assert float(a["p_human"]) == pytest.approx(float(b["p_human"]), abs=1e-5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_exits_with_130(tmp_path, capsys, monkeypatch, reads, number):
    from mamba_bio_audio.inference import predict as module

    real = module.classify
    calls = 0

    def signalled(*arguments, **settings):
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), number)
        return real(*arguments, **settings)

    monkeypatch.setattr(module, "classify", signalled)
    out = tmp_path / "p.tsv"
    assert mba("predict", "run", reads, "--out", out, "--strand", "forward") == 130
    assert "--resume" in capsys.readouterr().err
    done = len(table(tmp_path / "p.tsv.part" / "rows.tsv"))
    assert 0 < done < 6000
    # The records that were done must still be those.
    text = reads.read_text()
    reads.write_text(text.replace("@r7\n", "@other\n", 1))
    assert mba("predict", "run", reads, "--out", out, "--strand", "forward", "--resume") == 2
    assert "the files have changed" in capsys.readouterr().err
    reads.write_text(text)
    assert mba("predict", "run", reads, "--out", out, "--strand", "forward", "--resume") == 0
    assert [row["record"] for row in table(out)] == [f"r{i}" for i in range(6000)]


def test_what_cannot_be_is_refused(tmp_path, capsys, model, monkeypatch):
    (tmp_path / "a.fa").write_text(">x\nACGT\n")
    (tmp_path / "empty.fa").write_text("")
    (tmp_path / "t.tsv").write_text("mine")
    for arguments, message in (
        ([tmp_path / "a.fa", tmp_path / "empty.fa"], "empty.fa: empty; leave it out"),
        ([tmp_path / "a.fa", tmp_path / "a.fa", "--paired"], "given as the file of its own mates"),
        ([tmp_path / "a.fa", "--summary", tmp_path / "t.tsv"], "choose another --summary"),
        ([tmp_path / "none.fa"], "no such file"),
        ([tmp_path], "folder"),
        (["-", "-"], "given twice"),
        ([tmp_path / "a.fa", "--json"], "--out"),
        ([tmp_path / "a.fa", "--out", tmp_path], "is a folder"),
        ([tmp_path / "a.fa", "--out", tmp_path / "no" / "p.tsv"], "there is no folder"),
    ):
        assert mba("predict", "run", *arguments) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr(saved, "load", lambda run, which="best": model.backbone)
    assert mba("predict", "run", tmp_path / "a.fa") == 2
    assert "needs a classifier" in capsys.readouterr().err


@pytest.mark.parametrize("pad_target", ["mask", "silence"])
def test_recordings_of_any_rate_and_length(tmp_path, capsys, monkeypatch, pad_target):
    settings = ["data.path=.", "train.length=64", "train.tokens_per_step=512", f"data.pad_target={pad_target}"]
    config = load_config("audio/tiny", [*settings, "data.sample_rate_hz=8000"])
    codec = AudioCodec.of(config.data)
    torch.manual_seed(0)
    backbone = IsotropicModel(ModelConfig(d_model=8, num_layers=1, vocab_size=codec.vocab_size))
    made = Classifier(backbone, HeadConfig(pool="mean", classes=("one", "two"))).eval()
    torch.nn.init.normal_(made.head.weight, std=2.0)
    made.config, made.codec = config, codec
    monkeypatch.setattr(saved, "load", lambda run, which="best": made)

    def expected(levels: np.ndarray) -> float:
        row = np.concatenate([[codec.zero_level], levels.astype(np.int64)])
        if pad_target == "silence":
            row = np.pad(row, (0, max(0, 64 - len(row))), constant_values=codec.zero_level)
        with torch.no_grad():
            return float(made(torch.from_numpy(row)[None], logits="last").logits[0, 0].softmax(-1)[1])

    folder = tmp_path / "clips"
    (folder / "sub").mkdir(parents=True)
    sound = np.sin(np.arange(150) / 5).astype(np.float32) * 0.5
    soundfile.write(folder / "a.wav", sound[:40], 8000, subtype="FLOAT")
    soundfile.write(folder / "b.flac", sound[:80], 16_000)
    soundfile.write(folder / "sub" / "c.wav", sound, 8000, subtype="FLOAT")
    (folder / "d.wav").write_bytes(b"RIFF nothing")
    out = tmp_path / "p.tsv"
    assert mba("predict", "run", folder, "--out", out) == 0
    assert "4 recordings" in capsys.readouterr().out
    rows = {row["record"]: row for row in table(out)}
    assert list(rows) == ["a.wav", "b.flac", "d.wav", "sub/c.wav"]
    assert "not readable as WAV" in rows["d.wav"]["note"]
    assert [
        (rows[n]["length"], rows[n]["samples_used"], rows[n]["windows"]) for n in ("a.wav", "b.flac", "sub/c.wav")
    ] == [
        ("40", "40", "1"),
        ("40", "40", "1"),
        ("150", "150", "3"),
    ]
    levels = codec.encode(sound)
    assert float(rows["a.wav"]["p_two"]) == pytest.approx(expected(levels[:40]), abs=1e-5)
    # Windows of 63 samples behind the zero level, the last one moved back.
    windows = [expected(levels[start : start + 63]) for start in (0, 63, 87)]
    assert float(rows["sub/c.wav"]["p_two"]) == pytest.approx(np.mean(windows), abs=1e-5)
    assert mba("predict", "run", folder, "--strand", "both") == 2
    assert "no strands" in capsys.readouterr().err


def test_any_name_of_a_file_is_one_cell_and_can_be_resumed(tmp_path, capsys):
    names = ["d\te.fa", "f\ng\r\x0b.fa", os.fsdecode(b"bad\xff.fa"), "h\u2028i.fa"]
    for name in names:
        (tmp_path / name).write_text(f">=1+1\n{dna(50)}\n")
    files, out = [tmp_path / name for name in names], tmp_path / "p.tsv"
    assert mba("predict", "run", *files, "--out", out) == 0
    written = [row["file"].removeprefix(f"{tmp_path}/") for row in table(out)]
    assert written == ["d\\te.fa", "f\\ng\\r\\x0b.fa", "bad\\xff.fa", "h\\u2028i.fa"]
    assert [row["record"] for row in table(out)] == ["'=1+1"] * 4
    whole = out.read_bytes()
    files[3].rename(tmp_path / "away")
    files[3].mkdir()
    out.unlink()
    assert mba("predict", "run", *files, "--out", out) != 0
    files[3].rmdir()
    (tmp_path / "away").rename(files[3])
    assert mba("predict", "run", *files, "--out", out, "--resume") == 0
    assert out.read_bytes() == whole


def test_the_summary_goes_where_the_rows_do_not(tmp_path, capsys):
    (tmp_path / "a.fa").write_text(f">x\n{dna(50)}\n")
    for arguments in (("--json",), ("--json", "--out", "-")):
        assert mba("predict", "run", tmp_path / "a.fa", *arguments) == 2
        assert "where the rows go too; give --out FILE" in capsys.readouterr().err
    assert mba("predict", "run", tmp_path / "a.fa", "--quiet") == 0
    assert capsys.readouterr().err == ""
    out = tmp_path / "p.tsv"
    assert mba("predict", "run", tmp_path / "a.fa", "--out", out, "--quiet") == 0
    assert capsys.readouterr().out == ""
    assert mba("predict", "run", tmp_path / "a.fa", "--out", out, "--resume", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"already_complete": str(out)}
