"""The synthetic tune of the demo, heard by the pitch tracker."""

import csv

import numpy as np
import soundfile

from mamba_bio_audio.pipelines.audio.pitch import by_chance, in_order, notes
from mamba_bio_audio.pipelines.synthetic.tones import (
    FIRST_NOTE,
    MELODY,
    RATE_HZ,
    performance,
    samples_after_first_note,
    write_performances,
)
from mamba_bio_audio.run.config import load_config


def heard(audio: np.ndarray) -> list[int]:
    return [note.midi for note in notes(audio, RATE_HZ)]


def test_a_performance_is_the_tune_twice_and_differs_in_tempo_level_and_noise():
    one, other = performance(0), performance(1)
    assert len(set(MELODY)) == len(MELODY)
    for audio, note_s in (one, other):
        assert 0.079 <= note_s <= 0.081
        found = heard(audio)
        assert in_order(MELODY * 2, found) > 0.95
        assert len(found) <= 2 * len(MELODY)
    assert len(one[0]) != len(other[0])
    assert np.array_equal(performance(0)[0], one[0])


def test_notes_of_the_tune_agree_with_it_in_its_order_alone():
    audio, note_s = performance(3)
    once = heard(audio[: round(note_s * len(MELODY) * RATE_HZ)])
    assert in_order(MELODY, once) > 0.95
    assert by_chance(MELODY, once) < 0.3
    assert in_order(MELODY, once[::-1]) < 0.6


def test_files_splits_and_first_note(tmp_path):
    write_performances(tmp_path, 4)
    with (tmp_path / "intervals.tsv").open(newline="") as file:
        rows = [(row["file"], row["split"]) for row in csv.DictReader(file, delimiter="\t")]
    splits = ("train", "train", "valid", "test")
    assert rows == [(f"synthetic-{number:02d}.wav", split) for number, split in enumerate(splits)]
    audio, rate = soundfile.read(tmp_path / "synthetic-03.wav")
    first, _ = soundfile.read(tmp_path / FIRST_NOTE)
    assert np.array_equal(audio[: len(first)], first)
    assert heard(first) == [MELODY[0]]
    after = heard(audio[len(first) : len(first) + samples_after_first_note()])
    assert after == [*MELODY[1:], *MELODY[: len(after) - len(MELODY) + 1]]
    assert by_chance(MELODY, after) < 0.3
    assert load_config("audio/demo", [f"data.path={tmp_path}"]).data.sample_rate_hz == rate == RATE_HZ
