"""Samples of audio: the range of a prompt, the index, what is refused and what is kept."""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference.row_files import RowFiles
from mamba_bio_audio.jobs.sample import SampleOptions, sample
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.pipelines.audio.clip_writer import index_text, read_prompt
from mamba_bio_audio.pipelines.audio.config import AudioDataConfig
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec


def sampled(tmp_path, variant: str, name: str = "out.wav", top: float = 0.3, **more):
    """Forty samples behind a prompt that lies between 0.1 and `top`."""
    soundfile.write(tmp_path / "clip.wav", np.linspace(0.1, top, 500), 16_000, subtype="FLOAT")
    model = build_model(UNetConfig(d_model=8, num_layers=1, pools=(2,), vocab_size=256), seed=0).eval()
    model.config = SimpleNamespace(data=AudioDataConfig(path=str(tmp_path), variant=variant))
    model.manifest = {}
    options = {
        "run": tmp_path,
        "out": tmp_path / name,
        "length": 40,
        "prompt": str(tmp_path / "clip.wav"),
        "force": True,
    }
    result = sample(model, SampleOptions(**options | more), "cpu")
    assert result.stopped_by is None
    if (tmp_path / name).is_file():
        return soundfile.read(tmp_path / name)[0]


def test_a_prompt_says_what_range_sashimi_levels_lie_in(tmp_path) -> None:
    audio = sampled(tmp_path, "sashimi")
    assert audio.min() >= 0.0999
    assert audio.max() <= 0.3001
    wide = sampled(tmp_path, "standard")
    # An untrained model draws all levels alike.
    assert wide.min() < 0 < 0.3 < wide.max()


def test_prompts_are_read_at_the_models_rate_and_gain(tmp_path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full((800, 2), 0.25), 8000)
    prompt = read_prompt(str(tmp_path / "a.wav"), AudioCodec(), gain=2.0)
    assert len(prompt.levels) == 1600
    assert abs(AudioCodec().decode(prompt.levels[800:801])[0] - 0.5) < 0.02


@pytest.mark.parametrize(
    ("more", "message"), [({"length": 2**31}, "holds up to"), ({"num_samples": 2}, "one file holds one")]
)
def test_what_cannot_be_written_is_refused(tmp_path, more, message) -> None:
    with pytest.raises(InputError, match=message):
        sampled(tmp_path, "standard", **more)


@pytest.mark.parametrize(
    "name", ["x.mp3", "x.aiff", "x.AIF", "x.au", "x.m4a", "x.aac", "x.wma", "x.opus", "x.wave", "x.w64"]
)
def test_formats_that_are_not_written_are_no_folders(tmp_path, name) -> None:
    with pytest.raises(InputError, match=r"written as \.wav or \.flac"):
        sampled(tmp_path, "standard", name)
    assert not (tmp_path / name).exists()


@contextmanager
def killed_after_a_block(monkeypatch):
    write = RowFiles._write

    def killed(self, *arguments):
        write(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RowFiles, "_write", killed)
        yield


@pytest.mark.parametrize("variant", ["standard", "sashimi"])
def test_resume_refuses_a_prompt_that_has_changed(tmp_path, monkeypatch, variant) -> None:
    """Under the same name, of the same length; levels of `sashimi` stay the same at another volume."""
    with killed_after_a_block(monkeypatch), pytest.raises(KeyboardInterrupt):
        sampled(tmp_path, variant)
    again = {"resume": True, "force": False}
    with pytest.raises(InputError, match=r"other settings \(prompt_sha256 "):
        sampled(tmp_path, variant, top=0.5, **again)
    sampled(tmp_path, variant, **again)
    with pytest.raises(InputError, match="complete, but sampled with prompt_sha256 "):
        sampled(tmp_path, variant, top=0.5, **again)


def test_a_note_without_a_precision_is_of_fp32(tmp_path) -> None:
    sampled(tmp_path, "standard")
    note = tmp_path / "out.wav.json"
    said = json.loads(note.read_text())
    del said["precision"]
    note.write_text(json.dumps(said))
    again = {"resume": True, "force": False}
    sampled(tmp_path, "standard", **again)
    with pytest.raises(InputError, match="sampled with precision fp32, not bf16"):
        sampled(tmp_path, "standard", precision="bf16", **again)


def test_a_foreign_note_beside_the_file_is_kept(tmp_path) -> None:
    note = tmp_path / "out.wav.json"
    note.write_text("mine")
    for resume in (False, True):
        with pytest.raises(InputError, match=r"would be replaced; choose another"):
            sampled(tmp_path, "standard", force=False, resume=resume)
    with pytest.raises(InputError, match=r"out\.wav\.json: does not describe samples"):
        sampled(tmp_path, "standard", force=True)
    assert note.read_text() == "mine"


def finish_among_foreign_files(tmp_path, monkeypatch, name, **more) -> None:
    sample = RowFiles.sample

    def slow(self, *arguments, **options):
        (tmp_path / name).write_text("mine")
        return sample(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(RowFiles, "sample", slow)
        sampled(tmp_path, "standard", **more)


@pytest.mark.parametrize("name", ["out.wav", "out.wav.json"])
def test_foreign_files_that_came_during_the_sampling_are_kept(tmp_path, monkeypatch, name) -> None:
    with pytest.raises(InputError, match=r"move the file away"):
        finish_among_foreign_files(tmp_path, monkeypatch, name)
    with pytest.raises(InputError, match=r"move the file away"):
        sampled(tmp_path, "standard", force=False, resume=True)
    assert (tmp_path / name).read_text() == "mine"
    # The remedy: nothing was lost.
    (tmp_path / name).unlink()
    assert len(sampled(tmp_path, "standard", force=False, resume=True)) == 40


def test_killed_between_the_note_and_the_file(tmp_path, monkeypatch) -> None:
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mamba_bio_audio.pipelines.audio.clip_writer._finish", killed)
        with pytest.raises(KeyboardInterrupt):
            sampled(tmp_path, "standard")
    assert len(sampled(tmp_path, "standard", force=False, resume=True)) == 40


def test_force_keeps_foreign_files_in_a_folder(tmp_path) -> None:
    sampled(tmp_path, "standard", "many", num_samples=2)
    sampled(tmp_path, "standard", "many", num_samples=1)
    assert len(list((tmp_path / "many").glob("*.flac"))) == 1
    (tmp_path / "many" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds thesis\.txt, not made by mba sample"):
        sampled(tmp_path, "standard", "many")
    assert (tmp_path / "many" / "thesis.txt").read_text() == "mine"


def test_a_forced_folder_that_was_killed_is_resumed(tmp_path, monkeypatch) -> None:
    sampled(tmp_path, "standard", "many", num_samples=2)
    with killed_after_a_block(monkeypatch), pytest.raises(KeyboardInterrupt):
        sampled(tmp_path, "standard", "many", num_samples=3)
    sampled(tmp_path, "standard", "many", num_samples=3, resume=True, force=False)
    assert len(list((tmp_path / "many").glob("*.flac"))) == 3
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        sampled(tmp_path, "standard", "file")


def test_index_is_in_rising_order() -> None:
    rows = [line.split("\t") for line in index_text([-10.0, -30.0, -20.0], 10, ["a", "b", "c"]).splitlines()[1:]]
    assert [(row[0], row[1], row[2]) for row in rows] == [("0", "b", "1"), ("1", "c", "2"), ("2", "a", "0")]
    assert float(rows[0][4]) == pytest.approx(3 / np.log(2), rel=1e-5)
