"""`mba sample`: lengths in seconds, prompts that are kept, and several of them."""

import json

import numpy as np
import pytest
import soundfile

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.files import unfinished
from mamba_bio_audio.inference import decoding, generate
from mamba_bio_audio.inference.row_files import RowFiles
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.pipelines.audio import wav
from mamba_bio_audio.pipelines.audio.clip_writer import ClipWriter, index_text
from mamba_bio_audio.pipelines.audio.clips import read_samples
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.dna.domain import DOMAIN as DNA
from mamba_bio_audio.pipelines.dna.fasta_writer import kept_prompt
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.pipelines.sample_writer import SampleRequest
from mamba_bio_audio.run import saved
from mamba_bio_audio.run.config import load_config

RATE = 16_000


def mba(*arguments: object) -> int:
    try:
        command(list(map(str, arguments)))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture
def audio(tmp_path, monkeypatch):
    """Of a model with random weights: the beginning of a command. Two recordings to continue."""
    made = build_model(UNetConfig(d_model=8, num_layers=1, pools=(2,), vocab_size=256), seed=0).eval()
    made.config = load_config("audio/tiny", ["data.path=."])
    made.codec, made.manifest = AudioCodec(), {}
    monkeypatch.setattr(saved, "load", lambda run, which="best": made)
    monkeypatch.setattr(generate, "_BLOCK", 16)
    monkeypatch.chdir(tmp_path)
    soundfile.write("rise.wav", np.linspace(-0.5, 0.5, 101), RATE, subtype="FLOAT")
    soundfile.write("fall, slow.wav", np.linspace(0.9, -0.9, 400), 2 * RATE, subtype="FLOAT")
    return made, ("sample", tmp_path, "--device", "cpu", "--quiet")


@pytest.fixture
def dna(tmp_path, monkeypatch):
    """The same of bases, with two records to continue."""
    made = build_model(ModelConfig(d_model=8, num_layers=1, vocab_size=12), seed=0).eval()
    made.config = load_config("dna/tiny", ["data.path=demo"])
    made.codec, made.manifest = DnaTokenizer(), {}
    monkeypatch.setattr(saved, "load", lambda run, which="best": made)
    monkeypatch.setattr(generate, "_BLOCK", 16)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.fa").write_text(">one\nACgtRT\n>two\n" + "GGC" * 30 + "\n")
    return ("sample", tmp_path, "--device", "cpu", "--quiet", "--length", 20, "--no-report")


def pcm(path) -> np.ndarray:
    return soundfile.read(path, dtype="int16")[0]


def heard(path, gain: float = 1.0) -> np.ndarray:
    """A recording as the model hears it, in 16 bits."""
    audio, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE
    codec = AudioCodec()
    return np.frombuffer(wav.pcm(codec.decode(codec.encode(audio))), "<i2")


@pytest.mark.parametrize(("seconds", "samples"), [("0.005", 80), ("0.00503", 80), ("0.00504", 81), ("4e-5", 1)])
def test_seconds_are_rounded_to_samples(audio, seconds, samples):
    _, begin = audio
    assert mba(*begin, "--seconds", seconds, "--out", "a.wav") == 0
    assert mba(*begin, "--length", samples, "--out", "b.wav") == 0
    assert np.array_equal(pcm("a.wav"), pcm("b.wav"))
    # The same request, however it was written.
    assert mba(*begin, "--length", samples, "--out", "a.wav", "--resume") == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--seconds", 1, "--length", 10), "give either --length, in symbols, or --seconds"),
        ((), "give either --length, in symbols, or --seconds"),
        (("--seconds", 0), "--seconds"),
        (("--seconds", "nan"), "--seconds"),
        (("--seconds", "1e-5"), "less than half a sample at 16,000 Hz"),
        (("--seconds", 1e300), "a WAV file holds up to"),
        (("--seconds", 1e6), "16,000,000,000 samples asked for"),
        (("--seconds", "inf", "--num-samples", 2), "--length inf makes one sample"),
        (("--length", 5, "--keep-prompt"), "--keep-prompt keeps what --prompt or --prompt-file gives"),
        (("--length", 5, "--prompt", "nowhere.wav"), "nowhere.wav"),
        (("--length", 5, "--prompt", "empty"), "--prompt empty: no "),
        (("--length", 5, "--prompt", "clips"), "a.wav: lies inside clips, so it would become part of the input"),
        (("--length", 5, "--best-of", 2, "--usual-bits", "inf"), "--usual-bits"),
        (
            ("--length", 5, "--prompt", "rise.wav", "--prompt", "rise.wav"),
            "one file holds one sample; give a folder for 2",
        ),
        (("--length", "inf", "--prompt", "rise.wav", "--prompt", "rise.wav"), "one file holds one sample"),
        (("--length", wav.MAX_SAMPLES - 100, "--prompt", "rise.wav", "--keep-prompt"), "behind 101 of a prompt"),
    ],
)
def test_refused(audio, tmp_path, capsys, given, message):
    for folder in ("empty", "clips"):
        (tmp_path / folder).mkdir()
    (tmp_path / "clips" / "rise.wav").write_bytes((tmp_path / "rise.wav").read_bytes())
    out = tmp_path / "clips" / "a.wav"
    assert mba(*audio[1], *given, "--out", out) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_what_is_wrong_with_the_sound_of_a_prompt_is_said(audio, tmp_path, capsys):
    _, arguments = audio
    soundfile.write("anti.wav", np.outer(np.sin(np.arange(400)), [0.5, -0.5]), RATE)
    for name, said in (
        ("anti.wav", "warning: --prompt anti.wav: its channels cancel each other out"),
        ("rise.wav", ""),
    ):
        assert mba(*arguments, "--length", 3, "--prompt", name, "--out", f"{name}.flac", "--no-report") == 0
        errors = capsys.readouterr().err
        assert said in errors
        assert ("prompt" in errors) == bool(said)


def test_measurements_of_replaced_samples_do_not_stay(audio, tmp_path, capsys):
    _, arguments = audio
    told, page = tmp_path / "s.wav.report.json", tmp_path / "s.wav.report.html"
    told.write_text('{\n  "run": "earlier"}')
    page.write_text("somebody's")
    assert mba(*arguments, "--length", 3, "--out", "s.wav", "--no-report") == 0
    assert f"removed {told.name}, of the samples that these replace" in capsys.readouterr().err
    assert (told.exists(), page.read_text()) == (False, "somebody's")


def test_bases_have_no_seconds(dna, capsys):
    assert mba(*(part for part in dna if part not in ("--length", 20)), "--seconds", 1) == 2
    assert "--seconds is for audio; give --length, in bases" in capsys.readouterr().err


def test_a_kept_prompt_is_what_the_model_heard(audio, capsysbinary):
    _, begin = audio
    continued = (*begin, "--length", 50, "--prompt", "rise.wav")
    assert mba(*continued, "--out", "new.wav") == 0
    for out in ("whole.wav", "whole.flac"):
        assert mba(*continued, "--out", out, "--keep-prompt") == 0
        assert np.array_equal(pcm(out), np.concatenate([heard("rise.wav"), pcm("new.wav")]))
    capsysbinary.readouterr()
    assert mba(*continued, "--keep-prompt") == 0
    with open("whole.wav", "rb") as file:
        assert capsysbinary.readouterr().out == file.read()
    notes = {}
    for name in ("new.wav", "whole.wav"):
        with open(f"{name}.json", encoding="utf-8") as file:
            notes[name] = json.load(file)
    assert notes["whole.wav"]["keep_prompt"]
    assert (notes["whole.wav"]["prompt_samples"], notes["whole.wav"]["length"]) == (101, 50)
    assert notes["whole.wav"]["log_likelihood"] == notes["new.wav"]["log_likelihood"]
    # Complete ones of the other kind are not these.
    assert mba(*continued, "--out", "whole.wav", "--resume") == 2
    assert b"sampled with keep_prompt True, not False" in capsysbinary.readouterr().err
    assert mba(*continued, "--out", "new.wav", "--resume", "--keep-prompt") == 2
    assert mba(*continued, "--out", "whole.wav", "--resume", "--keep-prompt") == 0


def killed_after(monkeypatch, blocks: int):
    """A process that ends within a block; its last state is that of the block before."""
    write, written = RowFiles._write, []

    def killed(self, *arguments):
        written.append(1)
        write(self, *arguments)
        if len(written) > blocks:
            raise KeyboardInterrupt

    monkeypatch.setattr("mamba_bio_audio.inference.row_files._SAVE_EVERY_S", 0)
    monkeypatch.setattr(RowFiles, "_write", killed)


@pytest.mark.parametrize("blocks", [0, 3, 5, 7])
def test_kept_prompts_and_what_follows_are_resumed(audio, tmp_path, monkeypatch, capsys, blocks):
    _, begin = audio
    prompts = ("--prompt", "rise.wav", "--prompt", "fall, slow.wav")
    continued = (*begin, "--length", 50, *prompts, "--num-samples", 2, "--batch-size", 2)
    assert mba(*continued, "--out", "whole", "--keep-prompt") == 0
    with monkeypatch.context() as patch:
        killed_after(patch, blocks)
        assert mba(*continued, "--out", "often", "--keep-prompt") == 130
    assert unfinished(tmp_path / "often").exists()
    capsys.readouterr()
    assert mba(*continued, "--out", "often", "--resume") == 2
    assert "keep_prompt True -> False" in capsys.readouterr().err
    assert mba(*continued, "--out", "often", "--resume", "--keep-prompt") == 0
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "often").iterdir())
    for name in names:
        if name.endswith((".flac", ".tsv")):
            assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "often" / name).read_bytes()


def test_several_recordings_are_continued_in_one_call(audio, tmp_path, capsys):
    """Row by row what each prompt alone gives; names and index say which it is."""
    _, begin = audio
    size = ("--length", 50, "--num-samples", 2)
    assert mba(*begin, *size, "--prompt", "rise.wav", "--prompt", "fall, slow.wav", "--out", "both", "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_samples"] == 4
    names = [f"sample-{row:05d}-{name}.flac" for row, name in enumerate(["rise"] * 2 + ["fall_slow"] * 2)]
    assert sorted(path.name for path in (tmp_path / "both").glob("*.flac")) == names
    assert mba(*begin, *size, "--prompt", "rise.wav", "--out", "rise") == 0
    # Draws are those of the row, so rows 2 and 3 of the second prompt alone.
    assert mba(*begin, "--length", 50, "--num-samples", 4, "--prompt", "fall, slow.wav", "--out", "fall") == 0
    for row, name in enumerate(names):
        alone = tmp_path / ("rise" if row < 2 else "fall") / f"sample-{row:05d}.flac"
        assert np.array_equal(pcm(tmp_path / "both" / name), pcm(alone))
    head, *lines = (tmp_path / "both" / "index.tsv").read_text().splitlines()
    assert head.split("\t")[-1] == "prompt"
    told = {line.split("\t")[1]: line.split("\t")[-1] for line in lines}
    assert told == dict(zip(names, ["rise.wav"] * 2 + ["fall, slow.wav"] * 2, strict=True))
    said = json.loads((tmp_path / "both" / "samples.json").read_text())
    assert said["prompt_samples"] == [101, 200]
    # A folder stands for the recordings in it, in order of their names.
    (tmp_path / "in").mkdir()
    for name in ("rise.wav", "fall, slow.wav"):
        (tmp_path / name).rename(tmp_path / "in" / name)
    assert mba(*begin, *size, "--prompt", "in", "--out", "folder", "--keep-prompt") == 0
    found = sorted(path.name for path in (tmp_path / "folder").glob("*.flac"))
    assert [name.split("-")[-1] for name in found] == ["fall_slow.flac"] * 2 + ["rise.flac"] * 2
    for row, (name, size_of) in enumerate(zip(found, [200, 200, 101, 101], strict=True)):
        assert len(pcm(tmp_path / "folder" / name)) == size_of + 50, row
    # Where it meets the continuation is measured of a folder of one, too.
    (tmp_path / "one").mkdir()
    (tmp_path / "in" / "rise.wav").rename(tmp_path / "one" / "rise.wav")
    assert mba(*begin, *size, "--prompt", "one", "--out", "few") == 0
    said = json.loads((tmp_path / "few" / "samples.json").read_text())
    assert (said["prompt"], said["prompt_files"]) == ("one", ["one/rise.wav"])
    for sample in read_samples(tmp_path / "few", AudioCodec(), 1.0):
        assert len(sample.prompt) == 101
    # The folder of prompts is no place for samples.
    assert mba(*begin, *size, "--prompt", "in", "--out", "in", "--force") == 2


def test_a_prompt_of_many_samples_is_read_once(audio, monkeypatch):
    _, begin = audio
    read = []
    original = decoding.prefill
    monkeypatch.setattr("mamba_bio_audio.inference.prompts.prefill", lambda *a: read.append(a[1].shape) or original(*a))
    monkeypatch.setattr(generate, "prefill", lambda *a: read.append(a[1].shape) or original(*a))
    assert mba(*begin, "--length", 5, "--prompt", "rise.wav", "--num-samples", 4, "--out", "many") == 0
    assert read == [(1, 101)]


def test_every_sashimi_prompt_has_its_own_range(audio, tmp_path):
    made, begin = audio
    made.config = load_config("audio/tiny", ["data.path=.", "data.variant=sashimi"])
    made.codec = AudioCodec.of(made.config.data)
    assert mba(*begin, "--length", 200, "--prompt", "rise.wav", "--prompt", "fall, slow.wav", "--out", "both") == 0
    for name, peak in (("00000-rise", 0.5), ("00001-fall_slow", 0.9)):
        assert abs(soundfile.read(tmp_path / "both" / f"sample-{name}.flac")[0]).max() == pytest.approx(peak, rel=0.03)


def test_every_prompt_is_continued_by_every_class(audio, tmp_path):
    classes = ("one", "one", "two", "two")
    config = load_config("audio/tiny", ["data.path=."]).data
    prompts = ("rise.wav", "fall, slow.wav")
    writer = ClipWriter(SampleRequest(tmp_path, tmp_path / "out", 5, 4, prompts, {}, config, {}, None, classes))
    assert writer.num_samples == 8
    assert [(name, one.path) for name, one in zip(writer.classes, writer.start["prompt"], strict=True)] == [
        (name, prompt) for prompt in prompts for name in classes
    ]
    table = index_text([-1.0, -2.0], 10, ["a", "b"], ["one", "two"], ["x\ty.wav", "z.wav"]).splitlines()
    assert [line.split("\t")[-2:] for line in table] == [["class", "prompt"], ["two", "z.wav"], ["one", "x\\ty.wav"]]


def records(text: str) -> list[tuple[str, str]]:
    """Header and sequence of each record."""
    return [(head, "".join(lines)) for head, *lines in (one.splitlines() for one in text.split(">")[1:])]


@pytest.mark.parametrize("given", [("--prompt-file", "p.fa"), ("--prompt", "ACgtNT", "--prompt", "GGC" * 30)])
def test_kept_bases_begin_their_records(dna, tmp_path, capsys, given):
    some = (*dna, "--num-samples", 2, *given)
    assert mba(*some, "--out", "new.fa") == 0
    assert mba(*some, "--out", "whole.fa", "--keep-prompt") == 0
    assert "4 samples of 20 bases behind their prompts" in capsys.readouterr().out
    prompts = ["ACGTNT"] * 2 + ["GGC" * 30] * 2
    found = records((tmp_path / "whole.fa").read_text())
    for (head, bases), (before, new), prompt in zip(
        found, records((tmp_path / "new.fa").read_text()), prompts, strict=True
    ):
        assert bases == prompt + new
        assert head == before.replace(" prompt=", f" kept_prompt={len(prompt)} prompt=")
        assert (kept_prompt(head), kept_prompt(before)) == (len(prompt), 0)
    assert mba(*some, "--keep-prompt") == 0
    assert [bases for _, bases in records(capsys.readouterr().out)] == [bases for _, bases in found]
    # Only new bases are measured.
    whole, new = (DNA.measure(tmp_path / name, None, None) for name in ("whole.fa", "new.fa"))
    assert whole == new
    assert mba(*some, "--out", "whole.fa", "--resume") == 2
    assert "complete, but sampled with length=20 seed=0 temperature=1 kept_prompt=6" in capsys.readouterr().err
    assert mba(*some, "--out", "whole.fa", "--resume", "--keep-prompt") == 0


def test_names_are_no_kept_prompts():
    options = "sample_0 length=20 seed=0 temperature=1 top_k=3"
    assert kept_prompt(f"{options} kept_prompt=12 prompt=chr1:1-12 model=m") == 12
    assert kept_prompt(f"{options} prompt=chr1:1-12 model=m kept_prompt=12 prompt=") == 0
    assert kept_prompt("chr1 kept_prompt=12 prompt=A") == 0
