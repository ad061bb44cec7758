"""`mba embed`: files of every kind to one file that plain numpy and pyarrow read; nothing dropped, nothing half-written."""

import errno
import gzip
import io
import json
import os
import signal
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference.embed import embed
from mamba_bio_audio.inference.embedding_file import Vectors
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.run import saved
from mamba_bio_audio.run.config import load_config

WIDTH = 8


def mba(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        command([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


@pytest.fixture(autouse=True)
def model(monkeypatch):
    config = load_config("dna/tiny", ["data.path=demo", "train.length=64", "train.tokens_per_step=512"])
    made = build_model(ModelConfig(d_model=WIDTH, num_layers=2, vocab_size=DnaTokenizer.vocab_size), seed=0).eval()
    torch.nn.init.normal_(made.embedding.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    made.config, made.codec = config, DnaTokenizer()
    monkeypatch.setattr(saved, "load", lambda run, which="best": made)
    return made


def dna(length: int, seed: int = 0) -> str:
    return np.random.default_rng(seed).choice(np.frombuffer(b"ACGT", np.uint8), length).tobytes().decode()


def fasta(path: Path, **records: str) -> Path:
    path.write_text("".join(f">{name}\n{text}\n" for name, text in records.items()))
    return path


def vectors_of(path: Path) -> list[np.ndarray]:
    """The vectors of each record, read by plain numpy."""
    with np.load(path) as found:
        return [
            found["embeddings"][low:high] for low, high in zip(found["offsets"], found["offsets"][1:], strict=False)
        ]


def close(found, expected):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("strand", ["forward", "reverse", "both"])
@pytest.mark.parametrize("pool", ["mean", "last", "bins:16", "none"])
def test_the_file_holds_what_the_function_returns(model, tmp_path, pool, strand):
    texts = [dna(n, n) for n in (10, 64, 300, 16)]
    fasta(tmp_path / "a.fa", a=texts[0], b=texts[1])
    (tmp_path / "b.fq.gz").write_bytes(
        gzip.compress("".join(f"@r\n{t}\n+\n{'I' * len(t)}\n" for t in texts[2:]).encode())
    )
    expected = embed(model, texts, -1, pool, strand=strand)
    for out in (tmp_path / "e.npz", tmp_path / "e.parquet"):
        arguments = ("--layer", "-1", "--pool", pool, "--strand", strand, "--chunk", 21, "--device", "cpu")
        assert mba("embed", "run", tmp_path / "a.fa", tmp_path / "b.fq.gz", "--out", out, *arguments) == 0
        assert sorted(path.name for path in tmp_path.glob(".*")) == []
        assert not list(tmp_path.glob("*.part"))
    found = vectors_of(tmp_path / "e.npz")
    assert len(found) == 4
    for one, wanted in zip(found, expected, strict=True):
        close(one, wanted.reshape(-1, WIDTH))
    with np.load(tmp_path / "e.npz", allow_pickle=False) as file:
        assert file["embeddings"].dtype == np.float32
        assert file["records"].tolist() == ["a", "b", "r", "r"]
        assert file["files"].tolist() == [str(tmp_path / "a.fa")] * 2 + [str(tmp_path / "b.fq.gz")] * 2
        assert file["lengths"].tolist() == [10, 64, 300, 16]
        assert file["notes"].tolist() == [""] * 4
        settings = json.loads(str(file["settings"]))
        assert (settings["layer"], settings["pool"], settings["strand"]) == ("-1", pool, strand)
        assert len(settings["weights"]) == 64
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "e.parquet")
    rows = table.to_pylist()
    close([row["embedding"] for row in rows], np.concatenate(found))
    assert [row["number"] for row in rows] == [i for i, one in enumerate(found) for _ in one]
    assert {row["record"] for row in rows if row["number"] > 1} == {"r"}
    assert json.loads(table.schema.metadata[b"mamba_bio_audio"]) == settings
    if pool == "none":
        assert [(row["start"], row["end"]) for row in rows[:10]] == [(i, i + 1) for i in range(10)]
    elif pool == "bins:16":
        assert [(row["start"], row["end"]) for row in rows[5:7]] == [(0, 16), (16, 32)]
        assert (rows[0]["start"], rows[0]["end"], rows[0]["length"]) == (0, 10, 10)
    else:
        assert "start" not in rows[0]


ODD = ["dup", "dup", "=1+1", "naïve\u202e", "a,b;c|d", "x" * 300, "日本", "é\u0301", "a\\tb", "'", '"']


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_names_are_kept_whatever_they_are(tmp_path, suffix):
    (tmp_path / "a.fa").write_text(
        "".join(f">{name} more\n{dna(9, i)}\n" for i, name in enumerate(ODD)), encoding="utf-8"
    )
    out = tmp_path / f"e.{suffix}"
    assert mba("embed", "run", tmp_path / "a.fa", "--out", out, "--device", "cpu") == 0
    if suffix == "npz":
        with np.load(out) as file:
            assert file["records"].tolist() == ODD
    else:
        import pyarrow.parquet

        assert pyarrow.parquet.read_table(out)["record"].to_pylist() == ODD


def test_records_without_vectors_stay_in_the_file_with_the_reason(tmp_path, capsys):
    (tmp_path / "a.fa").write_text(f">good\n{dna(50)}\n>empty\n>n\nNNNN\n>rna\nACGUU\n>odd\nAC1T\n>\n{dna(9)}\n")
    for pool, sizes in (("mean", [1] * 6), ("bins:5", [10, 0, 1, 0, 0, 2]), ("none", [50, 0, 4, 0, 0, 9])):
        for suffix in ("npz", "parquet"):
            out = tmp_path / f"{pool[:4]}.{suffix}"
            assert (
                mba("embed", "run", tmp_path / "a.fa", "--out", out, "--pool", pool, "--json", "--device", "cpu") == 0
            )
            summary = json.loads(capsys.readouterr().out)
            assert (summary["records"], summary["vectors"], summary["unit"]) == (6, sum(sizes), "base")
            assert sum(summary["not_embedded"].values()) == 4
        found = vectors_of(tmp_path / f"{pool[:4]}.npz")
        assert list(map(len, found)) == sizes
        missing = [bool(np.isnan(one).all()) if len(one) else None for one in found]
        assert missing == [False, *([True] * 4 if pool == "mean" else [None, pool == "bins:5", None, None]), False]
        with np.load(tmp_path / f"{pool[:4]}.npz") as file:
            notes = file["notes"].tolist()
        assert (notes[0], notes[1], notes[5]) == ("", "empty", "")
        assert "no known symbol" in notes[2]
        assert "write T for U" in notes[3]
        assert notes[4] == "'1' at position 3 is not a base"
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(tmp_path / f"{pool[:4]}.parquet").to_pylist()
        assert [row["number"] for row in rows] == [i for i, size in enumerate(sizes) for _ in range(max(size, 1))]
        kept = [row for row in rows if row["number"] == 3]
        assert [row["note"] for row in kept] == [notes[3]]
        assert np.isnan(kept[0]["embedding"]).all()
        assert pool == "mean" or kept[0]["start"] is None
    assert mba("embed", "run", tmp_path / "a.fa", "--out", tmp_path / "again.npz", "--device", "cpu") == 0
    shown = capsys.readouterr().out
    assert "6 records" in shown
    assert "1 without vectors: empty" in shown


def test_records_longer_than_the_model_can_read_stay_in_the_file_with_the_reason(model, tmp_path, monkeypatch, capsys):
    """Filters of Hyena have a length."""
    options = {"max_length": 32, "mlp": "none"}
    config = ModelConfig(d_model=WIDTH, num_layers=1, vocab_size=model.codec.vocab_size, mixer="hyena", options=options)
    hyena = build_model(config, seed=0).eval()
    hyena.config, hyena.codec = model.config, model.codec
    monkeypatch.setattr(saved, "load", lambda run, which="best": hyena)
    file = fasta(tmp_path / "a.fa", whole=dna(32), longer=dna(33), short=dna(5))
    assert mba("embed", "run", file, "--out", tmp_path / "e.npz", "--device", "cpu") == 0
    assert "1 without vectors: longer than the 32 symbols that this model can read" in capsys.readouterr().out
    whole, longer, short = vectors_of(tmp_path / "e.npz")
    assert np.isnan(longer).all()
    close(np.concatenate([whole, short]), embed(hyena, [dna(32), dna(5)]))
    with pytest.raises(InputError, match="sequence 1: 33 symbols; this model reads 32 at most"):
        embed(hyena, [dna(32), dna(33)])


def test_standard_input_and_only_bad_records(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(b">x\n>y\n"))))
    for out in (tmp_path / "e.npz", tmp_path / "e.parquet"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(b">x\n>y\n"))))
        assert mba("embed", "run", "-", "--out", out, "--pool", "none", "--device", "cpu") == 0
    assert list(map(len, vectors_of(tmp_path / "e.npz"))) == [0, 0]


def test_recordings(tmp_path, monkeypatch, capsys):
    made = build_model(UNetConfig(d_model=WIDTH, num_layers=1, pools=(2, 3), vocab_size=256), seed=0).eval()
    made.config = load_config("audio/tiny", ["data.path=."])
    made.codec = AudioCodec.of(made.config.data)
    monkeypatch.setattr(saved, "load", lambda run, which="best": made)
    rate = made.config.data.sample_rate_hz
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 400)
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", samples, rate, subtype="FLOAT")
    (tmp_path / "c.wav").write_text("no audio")
    out = tmp_path / "e.npz"
    assert mba("embed", "run", tmp_path, "--out", out, "--pool", "bins:100", "--device", "cpu") == 0
    assert "(layer final, pool bins:100)\n" in capsys.readouterr().out
    found = vectors_of(out)
    assert list(map(len, found)) == [4, 4, 0]
    close(found[0], found[1])
    assert np.isfinite(found[0]).all()
    assert mba("embed", "run", tmp_path, "--out", tmp_path / "f.npz", "--strand", "both", "--device", "cpu") == 2


def test_recordings_as_of_a_class(tmp_path, monkeypatch, capsys):
    built = UNetConfig(d_model=WIDTH, num_layers=1, pools=(2,), vocab_size=256, inputs=257, classes=["a", "b"])
    made = build_model(built, seed=0).eval()
    torch.nn.init.normal_(made.embedding.classes)
    made.config = load_config("audio/tiny", ["data.path=.", "data.start=token"])
    made.codec = AudioCodec.of(made.config.data)
    monkeypatch.setattr(saved, "load", lambda run, which="best": made)
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 400).astype(np.float32)
    soundfile.write(tmp_path / "x.wav", samples, 16_000, subtype="FLOAT")
    found = {}
    for name, own in ((None, made), ("a", made.of_class("a")), ("b", made.of_class("b"))):
        out, given = tmp_path / f"{name}.npz", () if name is None else ("--class", name)
        assert mba("embed", "run", tmp_path / "x.wav", "--out", out, "--device", "cpu", "--json", *given) == 0
        assert json.loads(capsys.readouterr().out).get("of_class") == name
        (found[name],) = vectors_of(out)
        close(found[name], embed(own, samples, pool="mean"))
    assert np.abs(found["a"] - found["b"]).max() > 1e-3
    assert mba("embed", "run", tmp_path / "x.wav", "--out", tmp_path / "c.npz", "--class", "c", "--device", "cpu") == 2
    assert "run: no class 'c' in this model; choose from a, b" in capsys.readouterr().err


def test_an_interrupted_command_leaves_nothing_under_the_final_name_and_goes_on(model, tmp_path, monkeypatch, capsys):
    fasta(tmp_path / "a.fa", **{f"s{i}": dna(40, i) for i in range(6)})
    arguments = ("embed", "run", tmp_path / "a.fa", "--pool", "bins:16", "--strand", "both", "--device", "cpu")
    for suffix in ("npz", "parquet"):
        assert mba(*arguments, "--out", tmp_path / f"whole.{suffix}") == 0
        monkeypatch.setattr("mamba_bio_audio.jobs.embed._RECORDS_AHEAD", 2)
        passes = 0
        whole = type(model).hidden

        def interrupted(self, *given, whole=whole, **more):
            nonlocal passes
            passes += 1
            if passes == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            return whole(self, *given, **more)

        out = tmp_path / f"e.{suffix}"
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(type(model), "hidden", interrupted)
            assert mba(*arguments, "--out", out, "--json", "--chunk", 20) == 130
        assert json.loads(capsys.readouterr().out)["stopped_by"] == "SIGTERM"
        assert not out.exists()
        part = tmp_path / f"e.{suffix}.part"
        assert (part / "records.jsonl").read_text().count("\n") == 2
        # What a kill leaves: half a line, and vectors that no line speaks of.
        with (part / "records.jsonl").open("a") as file:
            file.write('["' + str(tmp_path))
        with (part / "vectors.f32").open("ab") as file:
            file.write(b"\1" * 333)
        assert mba(*arguments, "--out", out) == 2
        assert "--resume" in capsys.readouterr().err
        assert mba(*arguments, "--out", out, "--resume", "--layer", "0") == 2
        assert "layer final -> 0" in capsys.readouterr().err
        assert mba(*arguments, "--out", out, "--resume") == 0
        assert out.read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
        assert not part.exists()
        assert mba(*arguments, "--out", out, "--resume") == 0
        assert "already complete" in capsys.readouterr().out


def test_files_that_changed_are_not_continued(model, tmp_path, monkeypatch, capsys):
    fasta(tmp_path / "a.fa", **{f"s{i}": dna(40, i) for i in range(3)})
    monkeypatch.setattr("mamba_bio_audio.jobs.embed._RECORDS_AHEAD", 1)
    whole, passes = type(model).hidden, 0

    def interrupted(self, *given, **more):
        nonlocal passes
        passes += 1
        if passes == 3:
            raise KeyError("a fault")
        return whole(self, *given, **more)

    out = tmp_path / "e.npz"
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "hidden", interrupted)
        assert mba("embed", "run", tmp_path / "a.fa", "--out", out, "--device", "cpu") == 1
    assert not out.exists()
    fasta(tmp_path / "a.fa", **{f"s{i}": dna(40 + (i == 1), i) for i in range(3)})
    capsys.readouterr()
    assert mba("embed", "run", tmp_path / "a.fa", "--out", out, "--resume", "--device", "cpu") == 2
    assert "the files have changed" in capsys.readouterr().err
    assert mba("embed", "run", tmp_path / "a.fa", "--out", out, "--force", "--device", "cpu") == 0
    assert len(vectors_of(out)) == 3


def test_a_full_disk_is_named_and_the_work_is_kept(tmp_path, monkeypatch, capsys):
    fasta(tmp_path / "a.fa", a=dna(40), b=dna(30))
    monkeypatch.setattr("mamba_bio_audio.jobs.embed._RECORDS_AHEAD", 1)
    out, whole, writes = tmp_path / "e.npz", Vectors.__setitem__, 0

    def full(self, rows, values):
        nonlocal writes
        writes += 1
        if writes == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(self, rows, values)

    with monkeypatch.context() as patch:
        patch.setattr(Vectors, "__setitem__", full)
        assert mba("embed", "run", tmp_path / "a.fa", "--out", out, "--device", "cpu") == 1
    shown = capsys.readouterr().err
    assert f"{out}" in shown
    assert "no space left on the disk" in shown
    assert "--resume" in shown
    assert not out.exists()
    assert mba("embed", "run", tmp_path / "a.fa", "--out", out, "--resume", "--device", "cpu") == 0
    assert np.isfinite(np.concatenate(vectors_of(out))).all()


def test_what_is_said_of_a_recording_is_text_whatever_its_name(tmp_path, monkeypatch):
    made = build_model(UNetConfig(d_model=WIDTH, num_layers=1, pools=(2, 3), vocab_size=256), seed=0).eval()
    made.config = load_config("audio/tiny", ["data.path=."])
    made.codec = AudioCodec.of(made.config.data)
    monkeypatch.setattr(saved, "load", lambda run, which="best": made)
    bad = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    with open(bad, "wb") as file:
        file.write(b"no audio")
    for suffix in ("npz", "parquet"):
        assert mba("embed", "run", os.fsdecode(bad), "--out", tmp_path / f"e.{suffix}", "--device", "cpu") == 0
    with np.load(tmp_path / "e.npz") as found:
        assert found["records"].tolist() == ["caf\\xe9.wav"]
        assert "caf\\xe9.wav: the name is not UTF-8" in found["notes"][0]


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_only_its_own_files_are_replaced(tmp_path, suffix, capsys):
    fasta(tmp_path / "a.fa", a=dna(40))
    out = tmp_path / f"e.{suffix}"
    arguments = ("embed", "run", tmp_path / "a.fa", "--out", out, "--device", "cpu")
    assert mba(*arguments) == 0
    assert mba(*arguments) == 2
    assert "--force" in capsys.readouterr().err
    assert mba(*arguments, "--force") == 0
    if suffix == "npz":
        np.savez(out, mine=np.ones(3))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"mine": [1]}), out)
    before = out.read_bytes()
    assert mba(*arguments, "--force") == 2
    assert "not made by mba embed" in capsys.readouterr().err
    out.write_text("notes of mine")
    assert mba(*arguments, "--force") == 2
    assert before != out.read_bytes() == b"notes of mine"


def test_mistakes(tmp_path, monkeypatch, capsys):
    fasta(tmp_path / "a.fa", a=dna(40))

    def refused(*arguments: object) -> str:
        assert mba("embed", "run", tmp_path / "a.fa", *arguments, "--device", "cpu") == 2
        assert [path.name for path in tmp_path.iterdir()] == ["a.fa"]
        return capsys.readouterr().err

    out = ("--out", tmp_path / "e.npz")
    assert "ends in .npz or .parquet" in refused("--out", tmp_path / "e.csv")
    assert "layer 2: this model has 2 layers" in refused(*out, "--layer", 2)
    assert "layer -3: this model has 2 layers" in refused(*out, "--layer", -3)
    assert "give its number, or final" in refused(*out, "--layer", "first")
    assert "bins:128" in refused(*out, "--pool", "bins:0")
    assert "give one of them" in refused(*out, "--resume", "--force")
    (tmp_path / "a.fa").write_text("ACGT")
    shown = refused(*out)
    assert "give FASTA" in shown
    # There is nothing to continue.
    assert "--resume" not in shown
    assert mba("embed", "run", tmp_path / "none.fa", *out) == 2
    assert "there is no such file" in capsys.readouterr().err
    assert mba("embed", "run", "-", "-", *out) == 2
    assert "twice" in capsys.readouterr().err
    monkeypatch.setattr("mamba_bio_audio.inference.embedding_file.find_spec", lambda name: None)
    assert "pip install 'mamba-bio-audio[tables]'" in refused("--out", tmp_path / "e.parquet")


def test_weights_without_a_codec_read_no_files(model, tmp_path, capsys):
    fasta(tmp_path / "a.fa", a=dna(40))
    model.codec = None
    assert mba("embed", "run", tmp_path / "a.fa", "--out", tmp_path / "e.npz", "--device", "cpu") == 2
    assert "use mba.embed" in capsys.readouterr().err


def test_memory_does_not_grow_with_the_vectors(model, tmp_path, monkeypatch):
    """Five times the bases, with a vector for each, take the same memory but for the bases themselves."""
    monkeypatch.setattr(
        type(model), "hidden", lambda self, tokens, state=None, **_: (torch.zeros(*tokens.shape, WIDTH), ())
    )
    peaks = []
    for length in (100_000, 500_000):
        fasta(tmp_path / "a.fa", a=dna(length))
        for suffix in ("npz", "parquet"):
            out = tmp_path / f"{length}.{suffix}"
            tracemalloc.start()
            arguments = ("--pool", "none", "--strand", "both", "--device", "cpu", "--chunk", 4096)
            assert mba("embed", "run", tmp_path / "a.fa", "--out", out, *arguments) == 0
            peaks.append((length, tracemalloc.get_traced_memory()[1]))
            tracemalloc.stop()
        with zipfile.ZipFile(tmp_path / f"{length}.npz") as archive:
            assert archive.getinfo("embeddings.npy").file_size > length * WIDTH * 4
    for (_, small), (_, large) in zip(peaks[:2], peaks[2:], strict=True):
        # The vectors alone would be 12.8 MB more; the bases take 8 bytes each, and other objects vary by some kilobytes.
        assert large - small < 9 * 400_000
