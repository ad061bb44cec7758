"""What a resumed run may change; `tests/training/test_checkpoints.py` resumes whole runs."""

from pathlib import Path

import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.resume import changes


@pytest.mark.parametrize("given", [True, False])
def test_a_mapping_in_place_of_null_is_a_change(given):
    plain = load_config("dna/tiny", ["data.path=.", "model.vocab_size=12"])
    weighted = load_config("dna/tiny", ["data.path=.", "model.vocab_size=12", "data.weights={a: 1, b: 2}"])
    new, old = (weighted, plain) if given else (plain, weighted)
    with pytest.raises(
        InputError, match=r"with another configuration.*\n  data\.weights\.a: was .*\n  data\.weights\.b"
    ):
        changes(new, old, Path("run"))


def test_what_the_data_filled_in_is_no_change():
    new = load_config("audio/digits@classes", ["data.path=.", "model.classes=folders"])
    filled = {"vocab_size": 256, "inputs": 257, "classes": ("one", "two")}
    old = new.model_copy(update={"model": new.model.model_copy(update=filled)})
    assert changes(new, old, Path("run")) == {}
    other = load_config("audio/digits@classes", ["data.path=.", "model.classes=[two, one]"])
    with pytest.raises(InputError, match=r"model\.classes: was \['one', 'two'\], now \['two', 'one'\]"):
        changes(other, old, Path("run"))
