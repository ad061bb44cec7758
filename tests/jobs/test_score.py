"""`mba score`: files to tracks and totals, resumed, refused, and equal to what `mba evaluate` says."""

import csv
import json
import os
import signal
from pathlib import Path

import numpy as np
import pybigtools
import pytest
import soundfile
import torch

import mamba_bio_audio as mba
from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.jobs.evaluate import EvaluateOptions, evaluate
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.heads import Classifier
from mamba_bio_audio.models.isotropic import IsotropicModel
from mamba_bio_audio.pipelines.domains import domain_of
from mamba_bio_audio.run import saved
from mamba_bio_audio.run.config import load_config

SIZES = {"chr2": 700, "chr10": 90, "chrM": 1}


def command_line(*arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        command([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def made(recipe, *settings):
    """A model with random weights, trained at 64 symbols."""
    small = ["train.length=64", "model.d_model=8", "model.num_layers=1", "train.tokens_per_step=512"]
    config = load_config(recipe, [*small, *settings])
    codec = domain_of(config.data.kind).codec(config.data)
    inputs = max(codec.vocab_size, (codec.start_id or 0) + 1)
    size = {"vocab_size": codec.vocab_size, "inputs": inputs if inputs > codec.vocab_size else None}
    built = build_model(config.model.model_copy(update=size), seed=0).eval()
    torch.nn.init.normal_(built.embedding.weight)
    built.config, built.codec = config, codec
    return built


@pytest.fixture(autouse=True)
def model(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    built = made("dna/tiny", "data.path=demo")
    monkeypatch.setattr(saved, "load", lambda run, which="best": built)
    return built


@pytest.fixture
def genome(tmp_path):
    random = np.random.default_rng(0)
    letters = {name: random.choice(list("ACGTacgtN"), size) for name, size in SIZES.items()}
    (tmp_path / "toy.fa").write_text("".join(f">{name} a title\n{''.join(row)}\n" for name, row in letters.items()))
    return {name: "".join(row) for name, row in letters.items()}


def score(*arguments) -> int:
    return command_line("score", "run", *arguments)


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def bigwig(path):
    with pybigtools.open(str(path)) as file:
        return {name: file.values(name, fillna=None) for name in file.chroms()}


def expected(model, text, strand="forward"):
    ids = model.codec.encode(text)
    row = ids if strand == "forward" else model.codec.reverse_complement(ids)
    values = mba.log_likelihood(model, row.astype(np.int64)).per_base[0].numpy()
    return values if strand == "forward" else values[::-1]


@pytest.mark.parametrize("strand", ["forward", "reverse", "both"])
def test_a_bigwig_of_a_genome(model, genome, capsys, strand):
    assert score("toy.fa", "--out", "x.bw", "--strand", strand) == 0
    shown = capsys.readouterr().out
    rows = {row["record"]: row for row in table("x.bw.totals.tsv")}
    assert [*rows] == [*SIZES]
    scored = 0
    for name, values in bigwig("x.bw").items():
        one = [expected(model, genome[name], each) for each in ("forward", "reverse") if strand in (each, "both")]
        wanted = sum(one) / len(one)
        assert values == pytest.approx(wanted, abs=1e-5, nan_ok=True)
        assert int(rows[name]["scored"]) == np.isfinite(wanted).sum()
        assert float(rows[name]["log_likelihood_nats"]) == pytest.approx(np.nansum(wanted), rel=1e-5)
        scored += int(rows[name]["scored"])
    assert f"{scored:,} of {sum(SIZES.values()):,} bases of 3 records scored" in shown
    assert "wrote x.bw and x.bw.totals.tsv" in shown
    assert (rows["chrM"]["scored"], rows["chrM"]["log_likelihood_nats"]) == ("0", "")
    assert not os.path.exists("x.bw.part")


def test_bedgraph_and_table_hold_the_same(genome):
    assert score("toy.fa", "--out", "x.bedgraph", "--quiet") == 0
    assert score("toy.fa", "--out", "x.tsv", "--quiet") == 0
    lines = [line.split("\t") for line in Path("x.bedgraph").read_text().splitlines()]
    rows = table("x.tsv")
    assert [(row["record"], row["start"], row["end"], row["log_likelihood_nats"]) for row in rows] == [
        tuple(line) for line in lines
    ]


def test_bins(genome):
    assert score("toy.fa", "--out", "x.tsv", "--quiet") == 0
    assert score("toy.fa", "--out", "binned.tsv", "--bin", "50", "--quiet") == 0
    single, rows = table("x.tsv"), table("binned.tsv")
    assert [(row["record"], row["start"], row["end"]) for row in rows[-2:]] == [
        ("chr10", "0", "50"),
        ("chr10", "50", "90"),
    ]
    own = [row for row in single if row["record"] == "chr10" and int(row["start"]) >= 50]
    assert int(rows[-1]["scored"]) == len(own)
    nats = sum(float(row["log_likelihood_nats"]) for row in own)
    assert float(rows[-1]["log_likelihood_nats"]) == pytest.approx(nats, rel=1e-5)


def test_a_track_adds_up_to_what_evaluate_says(model, genome, capsys):
    with open("splits.tsv", "w") as file:
        file.write("file\trecord\tstart0\tend\tsplit\n")
        for name in ("chr2", "chr10"):
            file.write(f"toy.fa\t{name}\t0\t{SIZES[name]}\ttest\n")
        file.write("toy.fa\tchrM\t0\t1\ttrain\n")
    overrides = ("data.path=toy.fa", "data.intervals=splits.tsv", "data.contigs=all")
    asked = EvaluateOptions(run="run", length=1000, baselines=False, overrides=overrides, device="cpu")
    wanted = evaluate(asked)
    assert score("toy.fa", "--out", "x.bw", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scored"] == wanted.scored
    assert found["nats_per_symbol"] == pytest.approx(wanted.model.nats, abs=1e-6)
    track = np.concatenate([*bigwig("x.bw").values()])
    assert -np.nansum(track, dtype=np.float64) / wanted.scored == pytest.approx(wanted.model.nats, abs=1e-6)


def test_regions(model, genome, capsys):
    Path("r.bed").write_text("chr2\t100\t200\tpeak\nchr2\t150\t250\nchr10\t10\t20\n")
    assert score("toy.fa", "--out", "x.bw", "--regions", "r.bed", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["records"], found["symbols"]) == (2, 160)
    values, wanted = bigwig("x.bw"), expected(model, genome["chr2"])
    assert values["chr2"][100:250] == pytest.approx(wanted[100:250], abs=1e-5, nan_ok=True)
    assert np.isnan(values["chr2"][250:]).all()
    rows = table("x.bw.totals.tsv")
    assert [(row["record"], row["start"], row["end"], row["name"]) for row in rows] == [
        ("chr2", "100", "200", "peak"),
        ("chr2", "150", "250", ""),
        ("chr10", "10", "20", ""),
    ]
    assert float(rows[1]["log_likelihood_nats"]) == pytest.approx(np.nansum(wanted[150:250]), rel=1e-5)
    # A base that is in two regions counts once.
    assert found["scored"] == np.isfinite(wanted[100:250]).sum() + int(rows[2]["scored"])
    assert score("toy.fa", "--out", "near.bw", "--regions", "r.bed", "--context", "5", "--quiet") == 0
    near = expected(model, genome["chr2"][95:250])[5:]
    assert bigwig("near.bw")["chr2"][100:250] == pytest.approx(near, abs=1e-5, nan_ok=True)


def test_audio_in_bits_along_a_file(monkeypatch, tmp_path, capsys):
    random = np.random.default_rng(0)
    for name, samples in (("a.wav", 300), ("b.wav", 40)):
        soundfile.write(tmp_path / name, random.uniform(-0.5, 0.5, samples), 16_000)
    model = made("audio/tiny", "data.path=a.wav", "data.sample_rate_hz=16000")
    monkeypatch.setattr(saved, "load", lambda run, which="best": model)
    assert score("a.wav", "b.wav", "--out", "x.tsv", "--bin", "100", "--quiet") == 0
    # Sound has no strands to speak of.
    assert "340 of 340 samples of 2 recordings scored\n" in capsys.readouterr().out
    rows = table("x.tsv")
    assert [(row["record"], row["start"], row["end"], row["scored"]) for row in rows] == [
        ("a.wav", "0", "100", "100"),
        ("a.wav", "100", "200", "100"),
        ("a.wav", "200", "300", "100"),
        ("b.wav", "0", "40", "40"),
    ]
    clip, _ = soundfile.read("b.wav", dtype="float32")
    bits = -float(mba.log_likelihood(model, clip).total) / np.log(2) / 40
    assert float(rows[-1]["bits_per_sample"]) == pytest.approx(bits, rel=1e-5)
    assert float(table("x.tsv.totals.tsv")[1]["bits_per_sample"]) == pytest.approx(bits, rel=1e-5)


def test_audio_as_of_a_class(monkeypatch, tmp_path, capsys):
    built = made("audio/tiny", "data.path=.", "model.classes=[a, b]", "data.start=token")
    torch.nn.init.normal_(built.embedding.classes)
    monkeypatch.setattr(saved, "load", lambda run, which="best": built)
    samples = np.random.default_rng(0).uniform(-1, 1, 500).astype(np.float32)
    soundfile.write("x.wav", samples, 16_000, subtype="FLOAT")
    for name, own in ((None, built), ("a", built.of_class("a")), ("b", built.of_class("b"))):
        given = () if name is None else ("--class", name)
        assert score("x.wav", "--out", f"{name}.tsv", "--device", "cpu", "--json", *given) == 0
        result = json.loads(capsys.readouterr().out)
        assert result.get("of_class") == name
        expected = mba.log_likelihood(own, samples).total[0]
        assert result["log_likelihood_nats"] == pytest.approx(float(expected), rel=1e-5)
    assert score("x.wav", "--out", "c.tsv", "--class", "c") == 2
    assert "run: no class 'c' in this model; choose from a, b" in capsys.readouterr().err


@pytest.mark.parametrize("out", [(), ("--out", "-")])
def test_without_a_file_the_totals_go_to_standard_output(genome, capfd, out, tmp_path):
    assert score("toy.fa", "--out", "x.tsv", "--strand", "both", "--quiet") == 0
    before = sorted(path.name for path in tmp_path.iterdir())
    summary = capfd.readouterr().out.splitlines()[:2]
    assert score("toy.fa", *out, "--strand", "both", "--quiet") == 0
    said = capfd.readouterr()
    assert said.out == Path("x.tsv.totals.tsv").read_text()
    assert said.err.splitlines() == summary
    assert score("toy.fa", *out, "--json", "--quiet") == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["out"], found["totals"]) == (None, None)
    assert found["records"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    for more in (("--resume",), ("--force",), ("--bin", "5")):
        assert score("toy.fa", *out, *more) == 2
        assert "--resume, --force and --bin are for a track; give --out FILE" in " ".join(
            capfd.readouterr().err.split()
        )


def test_totals_that_are_stopped_are_gone_and_say_so(genome, capsys, monkeypatch, tmp_path):
    from mamba_bio_audio.inference import tracks

    before = sorted(path.name for path in tmp_path.iterdir())
    real, signals = tracks.log_likelihoods, [signal.SIGTERM]

    def stopped(*given, **options):
        while signals:
            os.kill(os.getpid(), signals.pop())
        yield from real(*given, **options)

    monkeypatch.setattr(tracks, "log_likelihoods", stopped)
    assert score("toy.fa", "--chunk", "50") == 130
    said = capsys.readouterr()
    assert said.out == ""
    assert "stopped by SIGTERM; with --out FILE a track can be continued" in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_bigwig_of_nothing_is_refused_in_our_words(genome, capfd):
    Path("n.fa").write_text(">n\nNNNN\n")
    assert score("n.fa", "--out", "x.bw", "--quiet") == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.startswith("mba: no base was scored")


def test_precision_is_named_and_used(genome, capsys):
    results = {}
    for precision in ("fp32", "bf16"):
        assert score("toy.fa", "--out", f"{precision}.tsv", "--precision", precision, "--json") == 0
        results[precision] = json.loads(capsys.readouterr().out)
    assert results["bf16"]["precision"] == "bf16"
    exact, narrow = (results[precision]["log_likelihood_nats"] for precision in ("fp32", "bf16"))
    assert narrow != exact
    assert narrow == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_exits_with_130(genome, capsys, monkeypatch, number):
    from mamba_bio_audio.inference import tracks

    arguments = ("toy.fa", "--out", "x.bedgraph", "--chunk", "100")
    assert score(*arguments) == 0
    whole = Path("x.bedgraph").read_text()
    os.remove("x.bedgraph")
    os.remove("x.bedgraph.totals.tsv")
    real, calls = tracks.log_likelihoods, 0

    def signalled(*given, **options):
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), number)
        yield from real(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(tracks, "log_likelihoods", signalled)
        assert score(*arguments) == 130
    assert "x.bedgraph: unfinished; use --resume to continue" in capsys.readouterr().err
    assert not os.path.exists("x.bedgraph")
    assert score(*arguments) == 2
    assert "continue it with --resume, or discard it with --force" in capsys.readouterr().err
    assert score(*arguments, "--resume", "--strand", "reverse") == 2
    assert "with other settings (strand forward -> reverse)" in capsys.readouterr().err
    text = Path("toy.fa").read_text()
    Path("toy.fa").write_text(text.replace("A", "C", 1))
    assert score(*arguments, "--resume") == 2
    assert "with other settings (files" in capsys.readouterr().err
    Path("toy.fa").write_text(text)
    assert score(*arguments, "--resume") == 0
    assert Path("x.bedgraph").read_text() == whole
    assert score(*arguments, "--resume") == 0
    assert "x.bedgraph: already complete" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["bw", "tsv"])
def test_a_signal_while_the_track_is_written(genome, monkeypatch, suffix):
    from mamba_bio_audio.inference import track_files, tracks

    out, real = f"x.{suffix}", track_files.write_track

    def signalled(*given, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(track_files, "write_track", signalled)
        assert score("toy.fa", "--out", out) == 130
    assert not os.path.exists(out)
    # Everything was scored, and is not scored again.
    monkeypatch.setattr(tracks, "log_likelihoods", None)
    assert score("toy.fa", "--out", out, "--resume", "--quiet") == 0
    assert os.path.exists(out)
    assert not os.path.exists(f"{out}.part")


def test_force_replaces_only_tracks(genome, capsys):
    assert score("toy.fa", "--out", "x.tsv", "--quiet") == 0
    assert score("toy.fa", "--out", "x.tsv", "--quiet") == 2
    assert "x.tsv exists" in capsys.readouterr().err
    assert score("toy.fa", "--out", "x.tsv", "--force", "--quiet") == 0
    for name in ("x.tsv", "x.tsv.totals.tsv"):
        kept = Path(name).read_text()
        os.rename("x.tsv.totals.tsv", "aside")
        Path(name).write_text("years of work")
        assert score("toy.fa", "--out", "x.tsv", "--force", "--quiet") == 2
        assert ": not made by mba score" in capsys.readouterr().err
        assert Path(name).read_text() == "years of work"
        Path(name).write_text(kept)
        os.rename("aside", "x.tsv.totals.tsv")
    assert score("toy.fa", "--out", "toy.fa", "--force") == 2
    assert score("toy.fa", "--resume", "--force", "--out", "x.tsv") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("toy.fa", "--out", "x.wig"), "x.wig: tracks are written as .bw, .bigwig, .bedgraph, .tsv"),
        (("none.fa", "--out", "x.bw"), "none.fa: there is no such file"),
        (("-", "--out", "x.bw"), "-: mba score reads files, at random positions; save standard input to one"),
        (("toy.fa", "--out", "x.bw", "--context", "5"), "--context is read before the regions of --regions"),
        (
            ("toy.fa", "--out", "x.bw", "--regions", "beyond.bed"),
            "line 2: end 701 lies beyond 'chr2', which has 700",
        ),
        (("toy.fa", "--out", "x.bw", "--regions", "other.bed"), "other.bed: line 1: no record 'chr7' in"),
        (("n.fa", "--out", "x.bw"), "no base was scored, and a bigWig cannot be empty"),
    ],
)
def test_what_cannot_be_is_one_clear_error(genome, capsys, arguments, message):
    Path("beyond.bed").write_text("chr2\t0\t700\nchr2\t0\t701\n")
    Path("other.bed").write_text("chr7\t0\t10\n")
    Path("n.fa").write_text(">n\nNNNN\n")
    assert score(*arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not os.path.exists("x.bw")


def test_models_that_cannot_are_refused(model, genome, capsys, monkeypatch):
    def refused(built, message, *more):
        monkeypatch.setattr(saved, "load", lambda run, which="best": built)
        assert score("toy.fa", "--out", "x.bw", *more) == 2
        assert message in " ".join(capsys.readouterr().err.split())

    classifier = Classifier(IsotropicModel(model.model_config), HeadConfig(classes=("a", "b")))
    refused(classifier, "a classifier of a, b; this command needs a language model")
    growing = made("dna/tiny", "data.path=demo", "model.mixer=transformer")
    refused(growing, "scores up to its training length, 64 bases, not the 700 of chr2")
    foreign = IsotropicModel(model.model_config)
    foreign.config = model.model_config
    refused(foreign, "weights without a run configuration")
    soundfile.write("a.wav", np.zeros(100), 16_000)
    audio = made("audio/tiny", "data.path=a.wav")
    refused(audio, "--strand both: audio has no strands; leave it out", "--strand", "both")
    # Up to its training length it may.
    monkeypatch.setattr(saved, "load", lambda run, which="best": growing)
    Path("r.bed").write_text("chr2\t100\t110\n")
    assert score("toy.fa", "--out", "x.bw", "--regions", "r.bed", "--context", "54", "--quiet") == 0
