"""Samples of audio in a report: those of the run and of its folder of samples alone."""

import numpy as np
import pytest
import soundfile

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio.clips import find_samples, view


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
