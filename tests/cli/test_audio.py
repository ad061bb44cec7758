"""Audio through the commands: pretrain, resume, evaluate, load, export."""

import csv
import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
import torch

import mamba_bio_audio as mba
from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.inference.row_files import RowFiles
from mamba_bio_audio.models.unet import UNetModel
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec

SETTINGS = [
    "model.d_model=8",
    "train.length=256",
    "train.tokens_per_step=1024",
    "train.micro_batch=2",
    "train.steps=6",
    "train.validate_every=2",
    "train.checkpoint_every=1",
    "train.log_every=1",
]


def mba_command(*arguments: object) -> int:
    """Run the command in this process; its exit code."""
    with pytest.raises(SystemExit) as stop:
        command([str(argument) for argument in arguments])
    code = stop.value.code
    return 0 if code is None else int(code)


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    """Twenty short tones in noise."""
    folder = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    for number in range(20):
        time = np.arange(1000 + number) / 16_000
        audio = 0.4 * np.sin(2 * np.pi * 220 * 2 ** (number / 12) * time) + 0.01 * rng.standard_normal(len(time))
        soundfile.write(folder / f"{number}.wav", audio, 16_000)
    return folder


def arguments(tones: Path, out: Path, *more: str) -> list[object]:
    sets = [part for key in (*SETTINGS, f"data.path={tones}", *more) for part in ("--set", key)]
    return ["pretrain", "audio/tiny", *sets, "--out", out, "--quiet", "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tones, tmp_path_factory) -> Path:
    """A finished run, uninterrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert mba_command(*arguments(tones, out)) == 0
    return out


def test_a_run_on_audio(trained, tones, capsys):
    manifest = json.loads((trained / "manifest.json").read_text())
    assert manifest["data"]["quantizer"] == "mu-law 8 bit standard"
    assert manifest["data"]["recordings"] == 20
    assert [len(file["sha256"]) for file in manifest["data"]["files"]] == [64]
    with (trained / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["valid_bits"]] == ["2", "4", "6"]
    assert float(rows[-1]["valid_bits"]) < 8
    assert mba_command("pretrain", "audio/tiny", "--set", f"data.path={tones}", "--dry-run", "--json") == 0
    dry = json.loads(capsys.readouterr().out)
    assert dry["parameters"] == 102_288
    assert dry["config"]["model"]["vocab_size"] == 256


def test_streamed_training_gives_the_same_curve(trained, tones, tmp_path):
    out = tmp_path / "run"
    assert mba_command(*arguments(tones, out, "train.stream_chunk=64")) == 0
    curves = [(run / "metrics.csv").read_text().splitlines() for run in (out, trained)]
    last = [float(next(iter(csv.DictReader([curve[0], curve[-1]])))["valid_nats"]) for curve in curves]
    assert last[0] == pytest.approx(last[1], rel=1e-4)


def test_changed_recordings_are_refused(trained, tones, tmp_path, capsys):
    other = tmp_path / "tones"
    other.mkdir()
    for file in tones.glob("*.wav"):
        (other / file.name).write_bytes(file.read_bytes())
    assert mba_command("evaluate", trained, "--quiet", "--device", "cpu") == 0
    audio, rate = soundfile.read(tones / "3.wav")
    before = (tones / "3.wav").read_bytes()
    try:
        soundfile.write(tones / "3.wav", audio[::-1], rate)
        assert mba_command("evaluate", trained, "--quiet", "--device", "cpu") == 2
        assert "not the file that" in capsys.readouterr().err
    finally:
        (tones / "3.wav").write_bytes(before)


def test_evaluate_names_the_quantiser(trained, capsys):
    assert mba_command("evaluate", trained, "--json", "--quiet", "--device", "cpu") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["quantizer"] == "mu-law 8 bit standard"
    assert result["scored"] == 1018 + 1019
    assert list(result["yardsticks"]) == ["unigram", "order 1", "order 2", "LPC-32", "LPC, tuned"]
    assert set(result["tuned"]) == {"order", "window", "half_life"}
    assert result["yardsticks"]["LPC-32"] < result["yardsticks"]["unigram"]
    assert mba_command("evaluate", trained, "--quiet", "--device", "cpu") == 0
    text = capsys.readouterr().out
    assert "bits per sample             mu-law 8 bit standard" in text
    assert "above LPC, tuned: it has learnt less than that." in text
    assert "LPC, tuned: order " in text
    assert "not counted" not in text
    # A part, and the yardsticks on the same samples.
    assert mba_command("evaluate", trained, "--max-bases", "1000", "--json", "--quiet", "--device", "cpu") == 0
    part = json.loads(capsys.readouterr().out)
    assert part["part"]["windows"] < part["part"]["of_windows"]
    assert part["part"]["of_bases"] == 1018 + 1019
    assert 0 < part["scored"] <= 1000
    assert part["yardsticks"]["LPC-32"] != result["yardsticks"]["LPC-32"]
    assert mba_command("evaluate", trained, "--max-bases", "1000", "--quiet", "--device", "cpu") == 0
    assert "of 2,037 samples; yardsticks on the same samples" in capsys.readouterr().out


def test_evaluate_says_which_yardstick_is_left_out(trained, monkeypatch, capsys):
    monkeypatch.setattr("mamba_bio_audio.pipelines.audio.yardsticks._MAX_TABLE", 1 << 20)
    assert mba_command("evaluate", trained, "--quiet", "--device", "cpu") == 0
    text = capsys.readouterr().out
    assert "order 2: not counted above 8 bits, its table would have 16,777,216 entries\n" in text


def test_load_and_export(trained, tmp_path):
    model = mba.load(trained)
    assert isinstance(model, UNetModel)
    assert isinstance(model.codec, AudioCodec)
    assert model.codec.vocab_size == 256
    out = tmp_path / "export"
    assert mba_command("export", trained, "--out", out) == 0
    assert "mu-law 8 bit standard" in (out / "README.md").read_text()
    again = mba.load(out)
    assert again.codec.description == model.codec.description
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def sampling(run: Path, out: Path, *more: object) -> list[object]:
    return ["sample", run, "--length", 150, "--out", out, "--seed", 4, "--quiet", "--device", "cpu", *more]


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory) -> Path:
    """Three samples without interruption."""
    out = tmp_path_factory.mktemp("samples") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mamba_bio_audio.inference.generate._BLOCK", 64)
        assert mba_command(*sampling(trained, out, "--num-samples", 3)) == 0
    return out


def test_a_folder_of_samples_with_an_index(whole, trained, tmp_path, capsys):
    names = sorted(path.name for path in whole.iterdir())
    assert names == [".mba.json", "index.tsv", *(f"sample-{row:05d}.flac" for row in range(3)), "samples.json"]
    with (whole / "index.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    nats = [float(row["log_likelihood_nats"]) for row in rows]
    assert nats == sorted(nats)
    note = json.loads((whole / "samples.json").read_text())
    assert note["quantizer"] == "mu-law 8 bit standard"
    assert note["log_likelihood"] == pytest.approx([nats[[int(r["row"]) for r in rows].index(i)] for i in range(3)])
    # The likelihood is the model's own, at temperature 1, of the levels in the file.
    model = mba.load(trained)
    audio, rate = soundfile.read(whole / "sample-00001.flac")
    levels = torch.from_numpy(model.codec.encode(audio).astype(np.int64))
    tokens = torch.cat([torch.tensor([128]), levels[:-1]])
    loss = model(tokens[None], targets=levels[None]).loss_sum
    assert rate == 16_000
    assert note["log_likelihood"][1] == pytest.approx(-float(loss.detach()), rel=1e-5)
    capsys.readouterr()
    assert mba_command(*sampling(trained, whole, "--num-samples", 3)) == 2
    assert mba_command(*sampling(trained, tmp_path / "x.wav", "--num-samples", 3)) == 2
    assert "give a folder for 3" in capsys.readouterr().err
    assert mba_command("sample", trained, "--length", 9, "--num-samples", 2, "--quiet", "--device", "cpu") == 2
    assert "standard output takes one recording; give --out" in capsys.readouterr().err


def test_one_file_and_the_batch_size_change_nothing(whole, trained, tmp_path):
    expected = soundfile.read(whole / "sample-00000.flac")[0]
    for name in ("one.wav", "one.flac"):
        assert mba_command(*sampling(trained, tmp_path / name)) == 0
        np.testing.assert_array_equal(soundfile.read(tmp_path / name)[0], expected)
        assert json.loads((tmp_path / f"{name}.json").read_text())["log_likelihood"] < 0


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_killed_sampling_plays_and_resumes_to_the_same_end(whole, trained, tmp_path, monkeypatch, blocks):
    """Killed after some blocks, before anything is saved of the last one."""
    from mamba_bio_audio.inference.row_files import RowFiles

    out = tmp_path / "again"
    seen = 0
    write = RowFiles._write

    def killed(self, *arguments):
        nonlocal seen
        write(self, *arguments)
        seen += 1
        if seen == 3 * blocks:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mamba_bio_audio.inference.generate._BLOCK", 64)
        patch.setattr("mamba_bio_audio.inference.row_files._SAVE_EVERY_S", 0.0)
        patch.setattr(RowFiles, "_write", killed)
        assert mba_command(*sampling(trained, out, "--num-samples", 3)) == 130
    # Playable to the block that was written.
    partial = soundfile.read(tmp_path / "again.part" / "row-00002.wav")[0]
    assert len(partial) == 64 * blocks
    np.testing.assert_array_equal(partial, soundfile.read(whole / "sample-00002.flac")[0][: len(partial)])
    assert mba_command(*sampling(trained, out, "--num-samples", 3)) == 2
    assert mba_command(*sampling(trained, out, "--num-samples", 3, "--resume")) == 0
    assert not (tmp_path / "again.part").exists()
    for path in whole.iterdir():
        if path.name != "samples.json":
            assert path.read_bytes() == (out / path.name).read_bytes(), path.name


def test_a_prompt_of_any_rate_is_continued(trained, tmp_path, capsys):
    time = np.arange(4410) / 44_100
    stereo = np.stack([np.sin(2 * np.pi * 300 * time), np.zeros(4410)], 1)
    soundfile.write(tmp_path / "clip.ogg", 0.5 * stereo, 44_100)
    out = tmp_path / "next.wav"
    assert mba_command(*sampling(trained, out, "--prompt", tmp_path / "clip.ogg")) == 0
    note = json.loads((tmp_path / "next.wav.json").read_text())
    assert note["prompt_samples"] == 1600
    assert len(soundfile.read(out)[0]) == 150
    assert mba_command(*sampling(trained, tmp_path / "free.wav")) == 0
    assert out.read_bytes() != (tmp_path / "free.wav").read_bytes()
    (tmp_path / "bad.wav").write_bytes(b"")
    assert mba_command(*sampling(trained, tmp_path / "x.wav", "--prompt", tmp_path / "bad.wav")) == 2
    assert "zero length" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["one.wav", "one.flac", "folder"])
def test_resume_of_whole_samples_compares_the_options(trained, tmp_path, capsys, name):
    out = tmp_path / name
    note = out / "samples.json" if name == "folder" else tmp_path / f"{name}.json"
    assert mba_command(*sampling(trained, out)) == 0
    before = note.read_bytes()
    assert mba_command(*sampling(trained, out, "--resume", "--batch-size", 3)) == 0
    assert "already complete" in capsys.readouterr().out
    for option, value, message in (
        ("--length", 151, "length 150, not 151"),
        ("--seed", 3, "seed 4, not 3"),
        ("--temperature", 0.5, "temperature 1.0, not 0.5"),
        ("--top-k", 2, "top_k None, not 2"),
        ("--top-p", 0.5, "top_p None, not 0.5"),
    ):
        assert mba_command(*sampling(trained, out, "--resume", option, value)) == 2
        assert f"complete, but sampled with {message}" in capsys.readouterr().err
    assert note.read_bytes() == before
    if name == "folder":
        assert mba_command(*sampling(trained, out, "--resume", "--num-samples", 2)) == 2
        assert "num_samples 1, not 2" in capsys.readouterr().err
        return
    note.write_text(json.dumps(json.loads(before) | {"weights": "others"}))
    assert mba_command(*sampling(trained, out, "--resume")) == 2
    assert "sampled with weights others, not " in capsys.readouterr().err
    note.write_text("{}")
    assert mba_command(*sampling(trained, out, "--resume")) == 2
    assert "damaged" in capsys.readouterr().err
    note.unlink()
    assert mba_command(*sampling(trained, out, "--resume")) == 2
    assert "which says how it was sampled; choose another --out" in capsys.readouterr().err


def test_the_report_plays_samples(whole, trained, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert mba_command("report", trained, "--samples", whole, "--out", page, "--quiet") == 0
    html = page.read_text()
    # Three samples and a recording.
    assert html.count("<audio controls") == 4
    assert html.count("data:audio/flac;base64,") == 4
    assert "best weights, mu-law 8 bit standard" in html
    assert "bases" not in html
    assert 'src="http' not in html
    assert mba_command("report", trained, "--out", tmp_path / "none.html", "--quiet") == 0
    assert "None yet: mba sample" in (tmp_path / "none.html").read_text()


@pytest.fixture(scope="module")
def fitted(trained, tones, tmp_path_factory) -> Path:
    """A run like `trained`, with fitted sampling settings."""
    run = tmp_path_factory.mktemp("fitted") / "run"
    shutil.copytree(trained, run)
    call = ("evaluate", run, "--metrics", "sampling", "--length", 300, "--num-samples", 4, "--quiet", "--device", "cpu")
    assert mba_command(*call) == 0
    return run


def test_settings_are_fitted_and_kept(fitted, capsys):
    kept = json.loads((fitted / "sampling.json").read_text())
    assert 0.5 <= kept["likelihood_temperature"] <= 1.5
    assert kept["likelihood"]["1"] == pytest.approx(kept["valid_bits"])
    names = ("temperature", "top_p", "min_p", "hold", "best_of")
    own = kept["temperature"], kept["top_p"] or 1, kept["min_p"] or 0, kept["hold"] or 0, kept["best_of"]
    # Other pieces of four settings within the grid, each drawn once and the best of two and of four.
    finalists = [tuple(row[name] for name in names) for row in kept["finalists"]]
    assert [row[-1] for row in finalists] == [1, 2, 4] * 4
    assert {row[1:4] for row in finalists} <= {tuple(row[name] for name in names[1:4]) for row in kept["grid"]}
    assert not {row[:4] for row in finalists} & {tuple(row[name] for name in names[:4]) for row in kept["grid"]}
    assert [row["pieces"] for row in kept["finalists"]] == [20] * 12
    # The grid's are shorter, and none is held on a CPU.
    assert {tuple(row[name] for name in ("length", "pieces", "best_of", "hold")) for row in kept["grid"]} == {
        (75, 4, 2, 0)
    }
    shares = [min(row["safely"].values()) for row in kept["finalists"]]
    chosen = kept["finalists"][finalists.index(own)]
    # Nothing that makes fewer pieces is as good within 2 %.
    assert min(chosen["safely"].values()) >= max(shares) - 0.02
    assert all(share < max(shares) - 0.02 for share, (*_, k) in zip(shares, finalists, strict=True) if k < own[-1])
    assert kept["usual_bits"] == chosen["usual_bits"]
    assert chosen["usual_bits"] == pytest.approx(kept["finalists"][3 * (finalists.index(own) // 3)]["bits"], abs=0.5)
    assert set(kept["recorded"]) == set(chosen["inside"]) == {"level", "flatness", "clicks", "onsets", "entropy"}
    assert (kept["length"], kept["seed"]) == (300, 0)
    call = (
        "evaluate",
        fitted,
        "--metrics",
        "sampling",
        "--length",
        300,
        "--num-samples",
        4,
        "--device",
        "cpu",
        "--quiet",
    )
    assert mba_command(*call) == 0
    text = capsys.readouterr().out
    assert f"fitted: temperature {kept['temperature']:g}" in text
    assert f"kept as {fitted / 'sampling.json'}" in text
    again = json.loads((fitted / "sampling.json").read_text())
    assert {key for key in kept if kept[key] != again[key]} <= {"seconds", "made"}


def test_fitted_settings_are_used_said_and_overridden(fitted, trained, tmp_path, capsys):
    quick = "--no-report"
    settings = {"temperature": 0.625, "top_p": 0.75, "min_p": 0.02, "hold": 0.4, "best_of": 2, "usual_bits": 3.5}
    kept = json.loads((fitted / "sampling.json").read_text()) | settings
    (fitted / "sampling.json").write_text(json.dumps(kept))
    assert mba_command(*sampling(fitted, tmp_path / "a.wav", quick)) == 0
    told = (
        "drawn at temperature 0.625, top-p 0.75, min-p 0.02, hold 0.4, best of 2 near 3.5 bits, as fitted for this run"
    )
    assert told in capsys.readouterr().err
    note = json.loads((tmp_path / "a.wav.json").read_text())
    assert settings | {"fitted": True} == {name: note[name] for name in (*settings, "fitted")}
    drawn = ("--temperature", 0.625, "--top-p", 0.75, "--min-p", 0.02, "--hold", 0.4)
    assert mba_command(*sampling(trained, tmp_path / "b.wav", *drawn, "--best-of", 2, "--usual-bits", 3.5, quick)) == 0
    assert "fitted" not in capsys.readouterr().err
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    # How many are made is no way to draw.
    assert mba_command(*sampling(fitted, tmp_path / "once.wav", "--best-of", 1, quick)) == 0
    assert (
        f"{told.removesuffix(', best of 2 near 3.5 bits, as fitted for this run')}, as fitted"
        in capsys.readouterr().err
    )
    assert mba_command(*sampling(trained, tmp_path / "b.wav", *drawn, "--force", quick)) == 0
    assert (tmp_path / "once.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    # As a run without fitted settings.
    for more in (("--temperature", 1), ("--top-k", 256), ("--top-p", 1), ("--min-p", 0), ("--hold", 0)):
        assert mba_command(*sampling(fitted, tmp_path / "c.wav", "--force", quick, *more)) == 0
        assert "fitted" not in capsys.readouterr().err
        assert "fitted" not in json.loads((tmp_path / "c.wav.json").read_text())
        assert mba_command(*sampling(trained, tmp_path / "d.wav", "--force", quick)) == 0
        assert (tmp_path / "c.wav").read_bytes() == (tmp_path / "d.wav").read_bytes()
    # Complete at these settings, and not at others.
    assert mba_command(*sampling(fitted, tmp_path / "a.wav", "--resume")) == 0
    assert mba_command(*sampling(fitted, tmp_path / "a.wav", "--resume", "--temperature", 1)) == 2
    assert "sampled with temperature 0.625, not 1.0" in capsys.readouterr().err


def test_the_best_of_two_is_not_chosen_where_samples_are_heard_as_they_are_made(fitted, capsysbinary):
    kept = json.loads((fitted / "sampling.json").read_text())
    (fitted / "sampling.json").write_text(json.dumps(kept | {"temperature": 0.5, "top_p": 0.9, "best_of": 2}))
    assert mba_command(*sampling(fitted, "-")) == 0
    assert b"drawn at temperature 0.5, top-p 0.9" in (told := capsysbinary.readouterr().err)
    assert b"best of" not in told


def test_what_was_begun_before_settings_were_fitted(fitted, tmp_path, capsys, monkeypatch):
    """Nobody gave the temperature that differs, and so the error says where it is from and how to go on."""
    out = tmp_path / "a.wav"
    begun = sampling(fitted, out, "--temperature", 1, "--top-k", 200)
    with monkeypatch.context() as patch:
        patch.setattr(RowFiles, "_write", Mock(side_effect=KeyboardInterrupt))
        assert mba_command(*begun) == 130
    capsys.readouterr()
    for _ in ("unfinished", "complete"):
        assert mba_command(*sampling(fitted, out, "--resume")) == 2
        told = capsys.readouterr().err
        assert "has been fitted for the run; as before: --temperature 1 --top-k 200 --resume" in told
        assert mba_command(*begun, "--resume") == 0
    # What was given is said without.
    assert mba_command(*sampling(fitted, out, "--resume", "--temperature", 2)) == 2
    assert mba_command(*sampling(fitted, out, "--resume", "--seed", 9, "--temperature", 1, "--top-k", 200)) == 2
    assert "fitted" not in capsys.readouterr().err


def test_settings_of_other_weights_are_not_used(fitted, trained, tmp_path, capsys):
    kept = json.loads((fitted / "sampling.json").read_text())
    (fitted / "sampling.json").write_text(json.dumps(kept | {"weights_sha256": "0" * 64, "temperature": 0.1}))
    assert mba_command(*sampling(fitted, tmp_path / "a.wav")) == 0
    assert "was fitted to other weights of this run; fit again" in capsys.readouterr().err
    assert mba_command(*sampling(trained, tmp_path / "b.wav")) == 0
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def test_samples_are_measured_beside_held_out_recordings(trained, tmp_path, capsys):
    out = tmp_path / "clips"
    assert mba_command(*sampling(trained, out, "--num-samples", 2, "--json")) == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert report == json.loads((tmp_path / "clips.report.json").read_text())
    assert (report["out"], report["samples"], report["note"]) == (str(out), 2, None)
    assert report["pieces"][0]["held_out_pieces"] > 10
    # An untrained model's noise is no tone.
    assert report["pieces"][0]["inside"]["flatness"] == 0
    page = (tmp_path / "clips.report.html").read_text()
    # A recording comes first, as the model hears it.
    assert page.count("<audio controls") == 3
    assert page.index("held out, not sampled: ") < page.index("sample-00000.flac: ")
    assert "held out: 5 %" in page
    assert page.count("data:image/png;base64,") == 4
    (tmp_path / "clips.report.html").write_text("mine")
    assert mba_command(*sampling(trained, out, "--num-samples", 2, "--force")) == 2
    assert "clips.report.html: not made by mba sample" in capsys.readouterr().err


def test_drift_is_warned_of(trained, tmp_path, capsys):
    manifest = json.loads((trained / "manifest.json").read_text())
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    manifest["result"]["valid_nats"] /= 2
    (run / "manifest.json").write_text(json.dumps(manifest))
    long = ("--length", 4096, "--no-report")
    assert mba_command(*sampling(run, tmp_path / "a.wav", *long, "--json")) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    note = json.loads((tmp_path / "a.wav.json").read_text())
    assert found["bits"]["samples"] == pytest.approx(-note["log_likelihood"] / np.log(2) / 4096)
    assert np.mean(found["bits"]["along"]) == pytest.approx(found["bits"]["samples"])
    assert found["bits"]["valid"] == pytest.approx(manifest["result"]["valid_nats"] / np.log(2))
    assert found["drift"] in shown.err
    assert found["drift"].startswith("warning: the samples have ")
    assert mba_command(*sampling(trained, tmp_path / "b.wav", *long)) == 0
    assert "noise" not in capsys.readouterr().err
