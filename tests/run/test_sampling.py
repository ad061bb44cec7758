"""Fitted settings as they are kept, and the warning of drift."""

import json

import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.run.sampling import SETTINGS_NAME, drift, read_fitted

PLAIN = {"temperature": 1.0, "top_k": None, "top_p": None}


def test_settings_are_read_among_other_things(tmp_path):
    assert read_fitted(tmp_path) is None
    kept = {"temperature": 0.9, "top_p": None, "weights_sha256": "ab", "grid": []}
    (tmp_path / SETTINGS_NAME).write_text(json.dumps(kept))
    assert read_fitted(tmp_path).text == "temperature 0.9"
    (tmp_path / SETTINGS_NAME).write_text(json.dumps(kept | {"top_p": 0.95}))
    assert read_fitted(tmp_path).text == "temperature 0.9, top-p 0.95"


@pytest.mark.parametrize(
    "value", ["", "[]", "{}", '{"temperature": -1, "top_p": null, "weights_sha256": "a"}', '{"temperature": 1}']
)
def test_damaged_settings_are_refused(tmp_path, value):
    (tmp_path / SETTINGS_NAME).write_text(value)
    with pytest.raises(InputError, match=SETTINGS_NAME):
        read_fitted(tmp_path)


def test_samples_as_probable_as_validation_data_are_not_warned_of(tmp_path):
    assert drift(2.19, [2.1] * 8, 2.0, PLAIN, tmp_path) is None
    assert drift(1.81, [], 2.0, PLAIN, tmp_path) is None
    assert drift(5.0, [], None, PLAIN, tmp_path) is None


def test_drift_into_noise_names_both_numbers_and_what_to_do(tmp_path):
    text = drift(2.25, [], 2.0, PLAIN, tmp_path)
    assert "2.250 bits" in text
    assert "validation data 2.000" in text
    assert f"mba evaluate {tmp_path} --metrics sampling" in text
    assert "lower --temperature" in text
    # Only at the end.
    text = drift(2.1, [1.9, 2.0, 2.0, 2.0, 2.1, 2.2, 2.2, 2.3], 2.0, PLAIN, tmp_path)
    assert "(first eighth 1.900, last 2.300)" in text
    assert "noise" in text


def test_what_is_usual_for_samples_drawn_as_fitted_is_said_without_advice(tmp_path):
    text = drift(2.3, [], 2.0, PLAIN, tmp_path, 2.25)
    assert text == (
        "the samples have 2.300 bits per symbol, validation data 2.000; those drawn as fitted for this run usually have 2.250"
    )
    assert "noise" in drift(2.6, [], 2.0, PLAIN, tmp_path, 2.25)
    assert drift(2.1, [], 2.0, PLAIN, tmp_path, 2.25) is None


def test_few_bits_are_drift_only_where_nothing_was_asked_to_be_more_probable(tmp_path):
    assert "silence or repeats" in drift(1.7, [], 2.0, PLAIN, tmp_path)
    for more in ({"temperature": 0.8}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.01}):
        assert drift(1.7, [], 2.0, PLAIN | more, tmp_path) is None
        assert "noise" in drift(2.3, [], 2.0, PLAIN | more, tmp_path)
