"""Measures of sound on signals whose values are known."""

import numpy as np
import pytest

from mamba_bio_audio.pipelines.audio.measures import analyse, click_limit, heard, levels_of, measure
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec

CODEC, RATE = AudioCodec(), 16_000
TIME = np.arange(2 * RATE) / RATE


def measured(audio, limit=8.0, codec=CODEC):
    sound = analyse(codec.encode(audio.astype(np.float32)), codec)
    return measure(sound, 0, len(audio), limit)


def tone(hz=440.0, peak=0.5):
    return peak * np.sin(2 * np.pi * hz * TIME)


def noise(scale=0.1):
    return np.random.default_rng(0).normal(0, scale, len(TIME))


def test_level_is_in_dB_of_full_scale():
    assert measured(tone(peak=1.0))["level"] == pytest.approx(-3.01, abs=0.1)
    assert measured(tone(peak=0.1))["level"] == pytest.approx(-23.01, abs=0.1)
    assert measured(noise())["level"] == pytest.approx(-20, abs=0.1)


def test_noise_is_flat_and_a_tone_is_not():
    assert -0.2 < measured(noise())["flatness"] <= 0
    assert measured(tone())["flatness"] < -30


def test_inserted_clicks_are_counted_and_their_own_ringing_is_not():
    clean = tone(peak=0.2) + 0.003 * noise(1.0)
    clicked = clean.copy()
    clicked[3000::3000] += 0.2
    assert measured(clean)["clicks"] == 0
    assert measured(clicked)["clicks"] * 2 == len(clicked[3000::3000])


def test_the_limit_is_where_recordings_click_as_often_as_is_said():
    clicked = tone(peak=0.2) + 0.003 * noise(1.0)
    clicked[3000::3000] += np.geomspace(0.02, 0.5, len(clicked[3000::3000]))
    sound = analyse(CODEC.encode(clicked.astype(np.float32)), CODEC)
    for rate in (1.0, 3.0):
        limit = click_limit([sound], rate)
        assert measure(sound, 0, len(clicked), limit)["clicks"] <= rate
        assert measure(sound, 0, len(clicked), limit / 1.06)["clicks"] > rate
    assert click_limit([sound], 1.0) > click_limit([sound], 3.0)


def test_onsets_of_a_train_of_notes():
    # Plucked five times a second, each dying away, of changing pitch.
    since = TIME % 0.2
    pitch = 300 * 2 ** (np.floor(TIME / 0.2) % 5 / 12)
    notes = 0.4 * np.exp(-since / 0.05) * np.sin(2 * np.pi * pitch * since)
    assert measured(notes)["onsets"] == pytest.approx(5, abs=0.5)
    assert measured(tone())["onsets"] == 0
    assert measured(noise())["onsets"] <= 2


def test_entropy_of_noise_is_near_that_of_its_levels_and_of_a_tone_far_below():
    levels = CODEC.encode(noise().astype(np.float32))
    share = np.bincount(levels, minlength=256) / len(levels)
    of_levels = -(share[share > 0] * np.log2(share[share > 0])).sum()
    assert measured(noise())["entropy"] == pytest.approx(of_levels, abs=0.25)
    assert measured(tone())["entropy"] < 2


def test_silence_is_a_share_of_the_time():
    half = noise()
    half[RATE:] = 0
    assert measured(half)["silence"] == pytest.approx(0.5, abs=0.01)
    assert measured(np.zeros(100))["silence"] == 1


def test_a_tone_lies_in_its_octave_and_octaves_add_up_to_the_level():
    found = measured(tone(hz=990.0))
    assert found["octave 1000"] == pytest.approx(-9.03, abs=0.1)
    assert found["octave 500"] < -40
    found = measured(noise())
    total = sum(10 ** (value / 10) for name, value in found.items() if name.startswith("octave"))
    assert 10 * np.log10(total) == pytest.approx(found["level"], abs=0.2)


def test_a_second_is_measured_by_itself():
    both = np.concatenate([tone()[:RATE], noise()[:RATE]])
    sound = analyse(CODEC.encode(both.astype(np.float32)), CODEC)
    first, second = (measure(sound, at, at + RATE, 8.0) for at in (0, RATE))
    assert first["level"] == pytest.approx(-9.03, abs=0.1)
    assert second["level"] == pytest.approx(-20, abs=0.2)
    assert first["flatness"] < -15 < -1 < second["flatness"]


@pytest.mark.parametrize("samples", [1, 50, 700, 3000])
def test_short_sound_has_every_measure(samples):
    found = measured(noise()[:samples])
    assert np.isfinite(list(found.values())).all()


@pytest.mark.parametrize("quantizer", ["mu-law", "linear"])
@pytest.mark.parametrize("variant", ["standard", "sashimi"])
def test_levels_survive_the_file(quantizer, variant):
    codec = AudioCodec(quantizer=quantizer, variant=variant)
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(levels_of(heard(levels, codec), codec), levels)
