"""Samples of audio in a report: those of the run and of its folder of samples alone."""

import io
import json

import numpy as np
import pytest
import soundfile

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio.clips import find_samples, read_samples, view
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec


def test_sounds_are_those_of_the_samples_folder(tmp_path):
    samples = tmp_path / "samples"
    samples.mkdir()
    soundfile.write(tmp_path / "private.wav", np.zeros(800), 8000)
    (samples / "samples.json").write_text("{}")
    header = "rank\tfile\trow\tlog_likelihood_nats\tbits_per_sample\n"
    for name in ("../private.wav", str(tmp_path / "private.wav"), "link.wav"):
        (samples / "index.tsv").write_text(f"{header}1\t{name}\t0\t-1\t1\n")
        (samples / "link.wav").unlink(missing_ok=True)
        (samples / "link.wav").symlink_to(tmp_path / "private.wav")
        with pytest.raises(InputError, match="leads out of"):
            view(samples)


def test_samples_found_in_a_run_are_its_own(tmp_path):
    run, away = tmp_path / "run", tmp_path / "away"
    run.mkdir()
    away.mkdir()
    (away / "samples.json").write_text("{}")
    (away / "private.wav").touch()
    for name, target in (
        ("samples", away),
        ("sample.flac", away / "private.wav"),
        ("sample.wav", away / "private.wav"),
    ):
        (run / name).symlink_to(target)
        with pytest.raises(InputError, match="leads out of"):
            find_samples(run)
        (run / name).unlink()
    (run / "sample.wav").touch()
    assert find_samples(run) == run / "sample.wav"


def write_samples(folder, audio, **note):
    """A folder of samples, each with its own sound."""
    folder.mkdir()
    for row, samples in enumerate(audio):
        soundfile.write(folder / f"sample-{row:05d}.flac", samples, 8000)
    (folder / "samples.json").write_text(json.dumps(note))
    return folder


def test_samples_are_read_as_levels_beside_what_they_continue(tmp_path):
    codec = AudioCodec(sample_rate_hz=8000)
    rng = np.random.default_rng(0)
    made = [codec.decode(rng.integers(0, 256, 300).astype(np.uint8)) for _ in range(4)]
    prompts = [codec.decode(rng.integers(0, 256, size).astype(np.uint8)) for size in (50, 70)]
    names = [str(tmp_path / f"{number}.wav") for number in range(2)]
    for name, prompt in zip(names, prompts, strict=True):
        soundfile.write(name, prompt, 8000, subtype="FLOAT")
    found = read_samples(write_samples(tmp_path / "free", made), codec, 1.0)
    assert [sample.name for sample in found] == [f"sample-{row:05d}.flac" for row in range(4)]
    for sample, audio in zip(found, made, strict=True):
        np.testing.assert_array_equal(sample.levels, codec.encode(audio))
        assert sample.prompt is None
    one = read_samples(write_samples(tmp_path / "one", made, prompt=names[1], prompt_samples=70), codec, 1.0)
    assert all(np.array_equal(sample.prompt, codec.encode(prompts[1])) for sample in one)
    several = {"prompt": names, "prompt_files": names, "prompt_samples": [50, 70]}
    two = read_samples(write_samples(tmp_path / "two", made, **several), codec, 1.0)
    kept = [np.concatenate([prompts[row // 2], audio]) for row, audio in enumerate(made)]
    behind = read_samples(write_samples(tmp_path / "kept", kept, **several, keep_prompt=True), codec, 1.0)
    for row, pair in enumerate(zip(two, behind, strict=True)):
        for sample in pair:
            np.testing.assert_array_equal(sample.prompt, codec.encode(prompts[row // 2]))
            np.testing.assert_array_equal(sample.levels, codec.encode(made[row]))
    # A prompt that has gone is no error.
    (tmp_path / "0.wav").unlink()
    gone = read_samples(tmp_path / "two", codec, 1.0)
    assert [sample.prompt is None for sample in gone] == [True, True, False, False]


def test_what_is_no_sound_of_this_model_is_refused(tmp_path):
    folder = write_samples(tmp_path / "samples", [np.zeros(10)])
    with pytest.raises(InputError, match="8,000 Hz, but the model has 16,000 Hz"):
        read_samples(folder, AudioCodec(), 1.0)
    with pytest.raises(InputError, match="no sound in it"):
        read_samples(write_samples(tmp_path / "none", []), AudioCodec(), 1.0)
    (folder / "sample-00000.flac").unlink()
    soundfile.write(tmp_path / "private.flac", np.zeros(10), 16_000)
    (folder / "sample-00000.flac").symlink_to(tmp_path / "private.flac")
    with pytest.raises(InputError, match="leads out of"):
        read_samples(folder, AudioCodec(), 1.0)


def test_low_rates_are_shown_at_one_that_browsers_play(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 300 * np.arange(2500) / 2000)
    soundfile.write(tmp_path / "a.wav", tone, 2000)
    (clip,) = view(tmp_path / "a.wav").clips
    played, rate = soundfile.read(io.BytesIO(clip.sound))
    assert (rate, len(played)) == (4000, 5000)
    np.testing.assert_allclose(played[::2][100:-100], tone[100:-100], atol=0.01)
