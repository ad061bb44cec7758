"""Notes heard in tones whose notes are known."""

import numpy as np
import pytest

from mamba_bio_audio.pipelines.audio.pitch import in_order, longest_common_subsequence, notes, pitches

RATE = 8000


def hertz(midi: float) -> float:
    return 440 * 2 ** ((midi - 69) / 12)


def tone(midi: float, seconds: float = 0.4, rate: int = RATE, harmonics=(1, 0.5, 0.3)) -> np.ndarray:
    """Harmonics of these amplitudes at random phases, short ramps at both ends."""
    time = np.arange(round(seconds * rate)) / rate
    phases = np.random.default_rng(round(100 * midi)).uniform(0, 2 * np.pi, len(harmonics))
    parts = [
        amplitude * np.sin(2 * np.pi * hertz(midi) * k * time + phase)
        for k, (amplitude, phase) in enumerate(zip(harmonics, phases, strict=True), 1)
        if hertz(midi) * k < 0.45 * rate
    ]
    return 0.3 * sum(parts) * np.minimum(1, np.minimum(time, seconds - time) / 0.01)


@pytest.mark.parametrize("rate", [4000, 8000, 16_000, 44_100])
@pytest.mark.parametrize("cents", [-20, 0, 20])
def test_notes_of_five_octaves_keep_their_number_when_out_of_tune(rate, cents):
    for midi in range(40, 90, 7):
        (note,) = notes(tone(midi + cents / 100, rate=rate), rate)
        assert note.midi == midi
        assert note.cents == pytest.approx(cents, abs=8)
        assert note.start_s < 0.04
        assert note.end_s > 0.34


def test_notes_stand_in_their_order_and_at_their_times():
    melody = [60, 64, 67, 72, 71, 48, 84, 60]
    heard = notes(np.concatenate([tone(midi, 0.15) for midi in melody]), RATE)
    assert [note.midi for note in heard] == melody
    assert [note.start_s for note in heard] == pytest.approx([0.15 * n for n in range(len(melody))], abs=0.03)


def test_silence_noise_and_too_little_give_no_note():
    generator = np.random.default_rng(0)
    noise = 0.2 * generator.standard_normal(2 * RATE)
    for audio in (np.zeros(RATE), 1e-5 * tone(60), noise, tone(60)[:100], np.zeros(0)):
        assert notes(audio, RATE) == []
    assert np.isnan(pitches(noise, RATE).midi).mean() > 0.9


def test_a_note_is_heard_in_noise_20_db_below_it():
    generator = np.random.default_rng(1)
    for midi in range(45, 85, 5):
        audio = tone(midi)
        audio += generator.standard_normal(len(audio)) * audio.std() / 10
        assert [note.midi for note in notes(audio, RATE)] == [midi]


def test_a_note_with_vibrato_is_one_note():
    time = np.arange(RATE) / RATE
    for depth_cents, rate_hz in ((30, 5), (50, 6)):
        cents = depth_cents * np.sin(2 * np.pi * rate_hz * time)
        phase = 2 * np.pi * np.cumsum(hertz(69) * 2 ** (cents / 1200)) / RATE
        (note,) = notes(0.3 * np.sin(phase) + 0.1 * np.sin(2 * phase), RATE)
        assert note.midi == 69


@pytest.mark.parametrize(
    "harmonics",
    [
        (1,),  # every multiple of the period is as good
        (0.2, 1),  # half of the period is almost as good
        (0.3, 1, 0.8, 0.5),
        (0, 1, 1, 1),  # the first harmonic is missing
        (1, 0, 1),
        (1, 1, 1, 1, 1, 1),
    ],
)
def test_no_note_is_heard_an_octave_off(harmonics):
    for midi in range(45, 80, 3):
        assert [note.midi for note in notes(tone(midi, harmonics=harmonics), RATE)] == [midi]


def test_a_note_struck_again_is_heard_twice_and_a_decaying_one_once():
    decay = np.exp(-np.arange(round(0.4 * RATE)) / (0.1 * RATE))
    audio = tone(62) * decay
    assert [note.midi for note in notes(audio, RATE)] == [62]
    assert [note.midi for note in notes(np.concatenate([audio, audio]), RATE)] == [62, 62]
    # Trembling of a decibel is no second note.
    time = np.arange(RATE) / RATE
    assert len(notes(tone(62, 1.0) * (1 + 0.1 * np.sin(2 * np.pi * 6 * time)), RATE)) == 1


def test_longest_common_subsequence_equals_its_definition():
    def slow(a: list[int], b: list[int]) -> int:
        if not a or not b:
            return 0
        return 1 + slow(a[1:], b[1:]) if a[0] == b[0] else max(slow(a[1:], b), slow(a, b[1:]))

    generator = np.random.default_rng(2)
    for _ in range(50):
        first, second = (generator.integers(0, 4, generator.integers(0, 8)).tolist() for _ in range(2))
        assert longest_common_subsequence(first, second) == slow(first, second)


def test_notes_in_order_count_once_and_foreign_ones_do_not():
    melody = [60, 62, 64, 65]
    assert in_order(melody, melody) == 1
    assert in_order(melody, [60, 70, 62, 62, 71, 65]) == 0.75
    assert in_order(melody, melody[::-1]) == 0.25
    assert in_order(melody, []) == 0
