"""`mba sample` as a job: what is refused before a model is loaded, the result, a domain that cannot."""

import io
import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import unfinished
from mamba_bio_audio.inference import generate
from mamba_bio_audio.inference.row_files import RowFiles
from mamba_bio_audio.jobs import sample as job
from mamba_bio_audio.jobs.sample import SampleOptions
from mamba_bio_audio.jobs.sample_progress import Rate, speed_text
from mamba_bio_audio.jobs.sample_results import SampleResult
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.pipelines.sample_writer import RowForm
from mamba_bio_audio.run import saved
from mamba_bio_audio.run.config import load_config, to_yaml
from mamba_bio_audio.training.steps import save_weights


def mba(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        command([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


@pytest.fixture
def model(monkeypatch):
    """A model of DNA with random weights, whatever run is asked for."""
    made = build_model(ModelConfig(d_model=8, num_layers=1, vocab_size=12), seed=0).eval()
    made.config = load_config("dna/tiny", ["data.path=demo"])
    made.codec, made.manifest = DnaTokenizer(), {}
    monkeypatch.setattr(saved, "load", lambda run, which="best": made)
    return made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--json",), "the samples go too; give --out FILE"),
        (("--json", "--out", "-"), "the samples go too; give --out FILE"),
        (("--resume",), "--resume needs --out"),
        (("--length", 10**20), "--length: Input should be less than or equal to 4611686018427387904"),
        (("--out", "s.fa", "--resume", "--force"), "give one of them"),
        (("--out", "nowhere/s.fa"), "there is no folder nowhere"),
        (("--out", "there.fa"), "exists; choose another --out"),
    ],
)
def test_refused_before_anything_is_loaded(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("there.fa").write_text("mine")
    assert mba("sample", "no-run", "--length", 10, *arguments) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there.fa"]


def test_the_result_is_json(model, tmp_path, capsys):
    out = tmp_path / "s.fa"
    arguments = ("sample", tmp_path, "--length", 20, "--num-samples", 2, "--out", out, "--device", "cpu", "--quiet")
    assert mba(*arguments, "--no-report", "--json") == 0
    size = {"out": str(out), "num_samples": 2, "length": 20, "precision": "fp32", "path": "numpy"}
    assert json.loads(capsys.readouterr().out) == size | {"written": "2 samples of 20 bases"}
    assert mba(*arguments, "--resume", "--json") == 0
    assert json.loads(capsys.readouterr().out) == size | {"already_complete": True}
    assert mba(*arguments, "--force", "--json") == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert report == json.loads((tmp_path / "s.fa.report.json").read_text())
    assert report["bases"] == 40
    (tmp_path / "s.fa.report.json").write_text("mine")
    assert mba(*arguments, "--resume") == 0
    assert mba(*arguments, "--force") == 2
    assert "s.fa.report.json: not made by mba sample" in capsys.readouterr().err
    assert (tmp_path / "s.fa.report.json").read_text() == "mine"


@pytest.mark.parametrize("more", [("--precision", "bf16"), ("--top-k", 2)])
def test_complete_bases_drawn_with_an_option_that_the_command_lacks(model, tmp_path, capsys, more):
    out = tmp_path / "s.fa"
    arguments = ("sample", tmp_path, "--length", 20, "--out", out, "--device", "cpu", "--quiet", "--no-report")
    assert mba(*arguments, *more) == 0
    assert mba(*arguments, *more, "--resume") == 0
    capsys.readouterr()
    assert mba(*arguments, "--resume") == 2
    assert "complete, but sampled with length=20 seed=0 temperature=1 " in capsys.readouterr().err


@pytest.mark.parametrize("way", ["--resume", "--force"])
def test_bases_do_not_go_into_a_folder(model, tmp_path, capsys, way):
    (tmp_path / "mine").mkdir()
    arguments = ("sample", tmp_path, "--length", 20, "--out", tmp_path / "mine", "--device", "cpu", "--quiet", way)
    assert mba(*arguments) == 2
    assert "mine is a folder; give a file" in capsys.readouterr().err


def test_stopping_says_how_to_continue():
    size = {"num_samples": 1, "length": 5}
    stopped = SampleResult(out=Path("s.fa"), **size, stopped_by="SIGTERM")
    assert (stopped.text(), stopped.exit_code) == ("", 130)
    assert stopped.notes() == "stopped by SIGTERM; continue with the same command and --resume (so far: s.fa.part)"
    assert SampleResult(out=None, **size, stopped_by="SIGINT").notes() == "stopped by SIGINT"


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_rows_that_were_killed_are_continued_to_the_same_file(model, tmp_path, monkeypatch, stop_after):
    monkeypatch.setattr(generate, "_BLOCK", 16)
    whole, out = tmp_path / "whole.fa", tmp_path / "s.fa"
    options = SampleOptions(run=tmp_path, length=50, num_samples=2, batch_size=1, out=whole)
    assert job.sample(model, options, "cpu").written
    write, left = RowFiles._write, stop_after

    def killed(self, *arguments):
        nonlocal left
        write(self, *arguments)
        left -= 1
        if not left:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RowFiles, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            job.sample(model, options.model_copy(update={"out": out}), "cpu")
    assert unfinished(out).exists()
    assert not out.exists()
    job.sample(model, options.model_copy(update={"out": out, "resume": True}), "cpu")
    assert out.read_text() == whole.read_text()


def test_weights_without_a_codec_are_refused(model, tmp_path):
    model.codec = None
    with pytest.raises(InputError, match=r"weights without a codec .*use mba\.generate"):
        job.run(SampleOptions(run=tmp_path, length=5, out=tmp_path / "s.fa", device="cpu"))


def test_rate_leaves_the_first_block_out() -> None:
    rate = Rate()
    assert rate.per_second is None
    rate.count(100)
    assert rate.per_second is None
    rate.count(300)
    assert rate.per_second > 0


def test_records_of_a_file_are_continued_side_by_side(model, tmp_path, capsys):
    (tmp_path / "p.fa").write_text(">one\nACGTTT\n>two\nGG\n")
    out = tmp_path / "s.fa"
    arguments = ("sample", tmp_path, "--length", 20, "--device", "cpu", "--quiet", "--no-report")
    some = (*arguments, "--num-samples", 2, "--out", out)
    assert mba(*some, "--prompt-file", tmp_path / "p.fa", "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_samples"] == 4
    records = out.read_text().split(">")[1:]
    assert [record.split(" prompt=")[1].split()[0] for record in records] == [
        "one:1-6",
        "one:1-6",
        "two:1-2",
        "two:1-2",
    ]
    assert mba(*arguments, "--prompt-file", f"{tmp_path / 'p.fa'}:one") == 0
    shown = capsys.readouterr().out
    assert shown.split()[-1] == records[0].split()[-1]
    assert mba(*arguments, "--prompt", "ACGTTT") == 0
    assert capsys.readouterr().out.split()[-1] == records[0].split()[-1]
    assert mba(*some, "--prompt-file", tmp_path / "p.fa", "--prompt", "A") == 2
    assert "give one of them" in capsys.readouterr().err
    # Not over the prompts themselves.
    assert mba(*arguments, "--prompt-file", tmp_path / "p.fa", "--out", tmp_path / "p.fa", "--force") == 2


def test_a_prompt_file_that_changed_is_not_resumed(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generate, "_BLOCK", 16)
    (tmp_path / "p.fa").write_text(">one\nACGTTT\n")
    out = tmp_path / "s.fa"
    options = SampleOptions(run=tmp_path, out=out, length=40, prompt_file=str(tmp_path / "p.fa"), report=False)
    whole = job.sample(model, options.model_copy(update={"out": tmp_path / "whole.fa"}), "cpu")
    assert whole.written is not None
    original = RowFiles.sample
    monkeypatch.setattr(RowFiles, "sample", lambda self, *a, **k: original(self, *a, **k | {"stop": lambda: True}))
    with pytest.raises(AssertionError):
        job.sample(model, options, "cpu")
    monkeypatch.undo()
    assert unfinished(out).exists()
    text = (tmp_path / "p.fa").read_text()
    (tmp_path / "p.fa").write_text(text.replace("TTT", "TTA"))
    resumed = options.model_copy(update={"resume": True})
    with pytest.raises(InputError, match="prompt_contents"):
        job.sample(model, resumed, "cpu")
    (tmp_path / "p.fa").write_text(text)
    job.sample(model, resumed, "cpu")
    assert out.read_text() == (tmp_path / "whole.fa").read_text()


@pytest.fixture
def audio(monkeypatch):
    """A model of audio with random weights, whatever run is asked for."""
    made = build_model(UNetConfig(d_model=8, num_layers=1, pools=(2,), vocab_size=256), seed=0).eval()
    made.config = load_config("audio/tiny", ["data.path=."])
    made.codec, made.manifest = AudioCodec(), {}
    monkeypatch.setattr(saved, "load", lambda run, which="best": made)
    monkeypatch.setattr(generate, "_BLOCK", 64)
    return made


def test_recordings_are_streamed_as_wav(audio, tmp_path, capsysbinary):
    arguments = ("sample", tmp_path, "--length", 200, "--device", "cpu", "--quiet")
    assert mba(*arguments, "--out", tmp_path / "a.wav") == 0
    capsysbinary.readouterr()
    for out in ((), ("--out", "-")):
        assert mba(*arguments, *out) == 0
        assert capsysbinary.readouterr().out == (tmp_path / "a.wav").read_bytes()
    assert mba(*arguments, "--num-samples", 2) == 2
    assert b"standard output takes one recording" in capsysbinary.readouterr().err


def test_a_terminal_gets_no_wav(audio, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: True))
    with pytest.raises(InputError, match="pipe it"):
        job.run(SampleOptions(run=tmp_path, length=20, device="cpu"))


def stop_after(monkeypatch, blocks: int) -> None:
    """Ctrl-C while so many blocks are made."""
    original = generate._batch

    def batch(*arguments):
        for number, block in enumerate(original(*arguments), start=1):
            if number == blocks:
                signal.raise_signal(signal.SIGINT)
            yield block

    monkeypatch.setattr(generate, "_batch", batch)


def test_an_endless_recording_ends_with_its_signal(audio, tmp_path, monkeypatch, capsys):
    stop_after(monkeypatch, 3)
    out = tmp_path / "a.wav"
    arguments = ("sample", tmp_path, "--device", "cpu", "--quiet", "--out", out)
    assert mba(*arguments, "--length", "inf", "--json") == 130
    shown = capsys.readouterr()
    assert json.loads(shown.out)["length"] == soundfile.info(out).frames == 192
    assert "stopped by SIGINT\n" in shown.err
    assert not unfinished(out).exists()
    note = json.loads((tmp_path / "a.wav.json").read_text())
    assert note["length"] is None
    # The same samples as of a recording of that length.
    monkeypatch.undo()
    endless = soundfile.read(out)[0]
    options = SampleOptions(run=tmp_path, out=tmp_path / "b.wav", length=192)
    job.sample(audio, options, "cpu")
    assert np.array_equal(soundfile.read(tmp_path / "b.wav")[0], endless)
    found = job.sample(audio, options.model_copy(update={"out": out, "length": None, "resume": True}), "cpu")
    assert found.already_complete


def test_a_killed_endless_recording_is_resumed(audio, tmp_path, monkeypatch):
    out = tmp_path / "a.wav"
    options = SampleOptions(run=tmp_path, out=out, length="inf")
    monkeypatch.setattr("mamba_bio_audio.inference.row_files._SAVE_EVERY_S", 0.0)
    original = generate._batch

    def batch(*arguments):
        for number, block in enumerate(original(*arguments)):
            if number == 2:
                raise OSError("killed")
            yield block

    monkeypatch.setattr(generate, "_batch", batch)
    with pytest.raises(OSError, match="killed"):
        job.sample(audio, options, "cpu")
    monkeypatch.setattr(generate, "_batch", original)
    stop_after(monkeypatch, 2)
    found = job.sample(audio, options.model_copy(update={"resume": True}), "cpu")
    assert (found.length, found.stopped_by) == (256, "SIGINT")


def test_an_endless_stream_says_so_and_ends_with_its_signal(audio, tmp_path, monkeypatch, capsysbinary):
    stop_after(monkeypatch, 2)
    assert mba("sample", tmp_path, "--length", "inf", "--device", "cpu", "--quiet") == 130
    written = capsysbinary.readouterr().out
    assert written[4:8] == written[40:44] == b"\xff" * 4
    assert len(written) == 44 + 2 * 128
    samples, rate = soundfile.read(io.BytesIO(written))
    assert (len(samples), rate) == (128, 16_000)


def test_endless_bases_go_to_standard_output_only(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generate, "_BLOCK", 50)
    arguments = ("sample", tmp_path, "--length", "inf", "--device", "cpu", "--quiet")
    assert mba(*arguments, "--out", tmp_path / "a.fa") == 2
    assert "leave out --out" in capsys.readouterr().err
    assert mba(*arguments, "--num-samples", 2) == 2
    stop_after(monkeypatch, 2)
    assert mba(*arguments) == 130
    header, *lines = capsys.readouterr().out.splitlines(keepends=True)
    assert header.startswith(">sample_0 length=inf ")
    # `_BLOCK` is rounded up to whole stretches of steps.
    assert [len(line) for line in lines] == [81, 49]


@pytest.mark.parametrize("length", ["0", "-1", "x", "1.5", "Inf", ""])
def test_lengths_are_numbers_or_inf(tmp_path, capsys, length):
    assert mba("sample", tmp_path, f"--length={length}") == 2
    assert "--length" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "length"), [("dna/tiny", "100000"), ("audio/tiny", "inf")])
def test_a_reader_that_leaves_ends_the_stream_quietly(tmp_path, name, length):
    config = load_config(name, ["data.path=demo" if name == "dna/tiny" else "data.path=.", "model.d_model=8"])
    vocabulary = 12 if name == "dna/tiny" else 256
    config = config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": vocabulary})})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    save_weights(build_model(config.model, seed=0), tmp_path / "model.safetensors")
    call = [sys.executable, "-m", "mamba_bio_audio", "sample", str(tmp_path), "--length", length, "--device", "cpu"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(60)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_progress_tells_rate_and_real_time():
    assert speed_text("sample", 16_000, 40_000.0) == "40,000 samples/s, 2.5 times real time"
    assert speed_text("base", None, 1234.5) == "1,234 bases/s"


@pytest.fixture(scope="module")
def by_class(tmp_path_factory) -> Path:
    """An audio run with classes, whose weights are random."""
    run = tmp_path_factory.mktemp("by-class") / "run"
    (run / "checkpoints").mkdir(parents=True)
    keys = [
        "data.path=.",
        "data.start=token",
        "model.d_model=8",
        "model.num_layers=1",
        "model.classes=[one, two, three]",
    ]
    config = load_config("audio/tiny", keys)
    model = config.model.model_copy(update={"vocab_size": 256, "inputs": 257})
    config = config.model_copy(update={"model": model})
    built = build_model(model, seed=0)
    with torch.no_grad():
        built.embedding.classes.mul_(100)
    (run / "config.yaml").write_text(to_yaml(config))
    (run / "manifest.json").write_text("{}")
    save_weights(built, run / "model.safetensors")
    return run


def test_samples_of_classes(by_class, tmp_path, capsys):
    how = ("sample", by_class, "--length", 40, "--device", "cpu", "--quiet")
    every = tmp_path / "all"
    assert mba(*how, "--class", "all", "--num-samples", 2, "--out", every, "--batch-size", 2) == 0
    rows = [line.split("\t") for line in (every / "index.tsv").read_text().splitlines()]
    assert rows[0][-1] == "class"
    assert sorted((int(row[2]), row[-1]) for row in rows[1:]) == list(
        enumerate(["one", "one", "two", "two", "three", "three"])
    )
    note = json.loads((every / "samples.json").read_text())
    assert (note["class"], note["num_samples"]) == (["one", "two", "three"], 6)
    some = tmp_path / "some"
    assert mba(*how, "--class", "two", "--class", "one", "--out", some) == 0
    assert json.loads((some / "samples.json").read_text())["class"] == ["two", "one"]
    # Row 0 of each command draws the same numbers.
    alone = tmp_path / "two.wav"
    assert mba(*how, "--class", "two", "--out", alone) == 0
    np.testing.assert_array_equal(soundfile.read(alone)[0], soundfile.read(some / "sample-00000.flac")[0])
    plain = tmp_path / "plain.wav"
    assert mba(*how, "--out", plain) == 0
    assert json.loads((tmp_path / "plain.wav.json").read_text())["class"] is None
    assert not np.array_equal(soundfile.read(alone)[0], soundfile.read(plain)[0])
    capsys.readouterr()
    assert mba(*how, "--class", "one", "--out", alone, "--resume") == 2
    assert "complete, but sampled with class ['two'], not ['one']" in capsys.readouterr().err
    assert mba(*how, "--class", "two", "--out", alone, "--resume") == 0
    assert "already complete" in capsys.readouterr().out


def test_the_best_of_several_by_bits(model, tmp_path, capsys):
    """The one whose eighths are nearest to validation's bits, or to those given; it takes whole samples; not by class."""
    how = ("sample", tmp_path, "--length", 60, "--device", "cpu", "--quiet", "--seed", 3)
    assert mba(*how, "--best-of", 3, "--out", tmp_path / "a.fa") == 2
    assert "no validation bits are known of these weights, so --best-of cannot choose; give --usual-bits" in (
        capsys.readouterr().err
    )
    assert mba(*how, "--usual-bits", 3, "--out", tmp_path / "a.fa") == 2
    assert "--usual-bits is what --best-of compares with; give both" in capsys.readouterr().err
    assert mba(*how, "--best-of", 3) == 2
    assert "--best-of chooses among whole samples; give --out" in capsys.readouterr().err
    assert mba(*how, "--best-of", 3, "--class", "one", "--out", tmp_path / "a.fa") == 2
    assert "--best-of chooses by bits, not by class" in capsys.readouterr().err
    model.manifest = {"result": {"valid_nats": 2.3}}
    assert mba(*how, "--num-samples", 6, "--out", tmp_path / "every.fa", "--no-report") == 0
    drawn = generate.generate(model, length=60, num_samples=6, seed=3, on_tokens=(blocks := []).append)
    part = np.arange(60) * 8 // 60
    nats = np.stack([np.bincount(part, weights=-row) for row in blocks[0].log_likelihood.numpy()])
    chosen = []
    for more, usual in (((), 2.3), (("--usual-bits", 0.5), 0.5 * math.log(2))):
        call = (
            *how,
            "--num-samples",
            2,
            "--best-of",
            3,
            *more,
            "--out",
            tmp_path / "some.fa",
            "--no-report",
            "--force",
        )
        assert mba(*call) == 0
        far = np.abs(nats - usual * np.bincount(part)).sum(1)
        best = [low + int(far[low : low + 3].argmin()) for low in (0, 3)]
        sequences = [record.split("\n", 1)[1] for record in (tmp_path / "some.fa").read_text().split(">")[1:]]
        assert [text.replace("\n", "") for text in sequences] == [model.decode(drawn[row]) for row in best]
        chosen.append(best)
    assert chosen[0] != chosen[1]
    assert "best_of=3 usual_bits=0.5" in (tmp_path / "some.fa").read_text()
    capsys.readouterr()
    assert mba(*how, "--num-samples", 2, "--out", tmp_path / "some.fa", "--resume") == 2
    assert "best_of=3" in capsys.readouterr().err


def test_models_whose_pools_knew_no_class_still_open(by_class, tmp_path):
    """They are the models whose pools have vectors of zeros."""
    run = tmp_path / "run"
    shutil.copytree(by_class, run)
    tensors = load_file(run / "model.safetensors")
    own = [name for name in tensors if name.startswith("down_pools.") and ".classes." in name]
    assert len(own) == 2
    save_file({name: tensor for name, tensor in tensors.items() if name not in own}, run / "model.safetensors")
    found = saved.load(run)
    assert all(not found.get_parameter(name).any() for name in own)
    assert found.embedding.classes.any()
    save_file({name: tensor for name, tensor in tensors.items() if name != "lm_head.bias"}, run / "model.safetensors")
    with pytest.raises(InputError, match=r"missing lm_head\.bias"):
        saved.load(run)


def test_guided_samples_of_classes(by_class, tmp_path, capsys):
    how = ("sample", by_class, "--length", 40, "--device", "cpu", "--quiet", "--seed", 3)
    found = {}
    for guidance in (0, 3):
        out = tmp_path / f"{guidance}.wav"
        assert mba(*how, "--class", "two", "--guidance", guidance, "--out", out) == 0
        note = json.loads((tmp_path / f"{guidance}.wav.json").read_text())
        assert note.get("guidance", 0) == guidance
        found[guidance], _ = soundfile.read(out)
    assert not np.array_equal(found[0], found[3])
    codec = saved.load(by_class).codec
    own = generate.generate(saved.load(by_class), length=40, class_="two", guidance=3.0, seed=3)[0].numpy()
    np.testing.assert_allclose(codec.decode(own), found[3], atol=1e-4)
    capsys.readouterr()
    assert mba(*how, "--class", "two", "--guidance", 1, "--out", tmp_path / "3.wav", "--resume") == 2
    assert "complete, but sampled with guidance 3.0, not 1.0" in capsys.readouterr().err
    assert mba(*how, "--guidance", 1, "--out", tmp_path / "x.wav") == 2
    assert "--guidance is towards a class; give --class" in capsys.readouterr().err


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_samples_of_classes_go_on_where_they_stopped(by_class, tmp_path, monkeypatch, guidance):
    monkeypatch.setattr(generate, "_BLOCK", 16)
    model = saved.load(by_class)
    form = Plain()
    names = ["one", "two", "two", "three"]
    options = {"length": 50, "num_samples": 4, "batch_size": 2, "class_": names, "seed": 1, "guidance": guidance}
    whole = RowFiles(tmp_path / "whole", {}, form)
    whole.begin()
    nats = whole.sample(model, **options)
    pieces = RowFiles(tmp_path / "pieces", {}, form)
    pieces.begin()
    calls = 0
    while (found := pieces.sample(model, stop=lambda: True, **options)) is None:
        calls += 1
    assert calls > 3
    assert found == pytest.approx(nats, rel=1e-12)
    expected = generate.generate(model, length=50, num_samples=4, class_=names, seed=1, guidance=guidance)
    for row in range(4):
        assert whole.path(row).read_bytes() == pieces.path(row).read_bytes() == bytes(expected[row].tolist())


class Plain(RowForm):
    def encode(self, tokens, row=0):
        return tokens.astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    ("name", "message"),
    [("seven", "--class seven: this model's classes are one, two, three; or give all")],
)
def test_a_class_that_a_model_does_not_have(by_class, tmp_path, capsys, name, message):
    assert mba("sample", by_class, "--class", name, "--length", 9, "--out", tmp_path / "s.wav", "--device", "cpu") == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_without_classes(tmp_path, capsys):
    arguments = ("sample", "human42mb-1m4", "--class", "one", "--length", 9, "--out", tmp_path / "s.fa")
    assert mba(*arguments, "--device", "cpu") == 2
    assert "human42mb-1m4: this model was trained without classes (model.classes); leave --class out" in (
        capsys.readouterr().err
    )
