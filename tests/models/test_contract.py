"""What every model has: text or audio to ids, and back."""

import numpy as np
import pytest
import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.contract import SequenceModel
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer


def with_codec(codec):
    model = SequenceModel()
    model.codec = codec
    return model


def test_dna_encodes_and_decodes():
    model = with_codec(DnaTokenizer())
    ids = model.encode("acgtRN")
    assert ids.tolist() == [[7, 8, 9, 10, 11, 11]]
    assert ids.dtype == torch.int64
    assert model.decode(ids) == model.decode(ids[0]) == model.decode(ids.tolist()) == "ACGTNN"
    assert model.decode(torch.cat([ids, ids])) == ["ACGTNN", "ACGTNN"]
    assert model.decode(model.encode("")) == ""


@pytest.mark.parametrize(
    ("text", "character"), [("ACGT\nACGT", r"'\\n' at position 5"), ("ACGTé", "'é' at position 5")]
)
def test_text_that_is_no_sequence_is_refused(text, character):
    with pytest.raises(InputError, match=character):
        with_codec(DnaTokenizer()).encode(text)


def test_audio_encodes_and_decodes():
    model = with_codec(AudioCodec(8))
    clip = np.linspace(-1, 1, 9, dtype=np.float32)
    ids = model.encode(clip)
    assert ids.shape == (1, 9)
    assert ids.dtype == torch.int64
    assert model.decode(ids) == pytest.approx(clip, abs=0.03)
    assert torch.equal(model.encode(model.decode(ids)), ids)
    for wrong in (np.zeros((2, 3), np.float32), np.arange(3)):
        with pytest.raises(InputError, match=r"float samples in \[-1, 1\] of shape \(L,\)"):
            model.encode(wrong)


def test_three_axes_are_no_sequences():
    with pytest.raises(InputError, match=r"not \(1, 1, 1\)"):
        with_codec(DnaTokenizer()).decode(torch.zeros(1, 1, 1, dtype=torch.long))
    for wrong in ("ACGT", None, torch.tensor([7.0]), torch.tensor([99]), [[7], [8, 9]]):
        with pytest.raises(InputError):
            with_codec(DnaTokenizer()).decode(wrong)


def test_weights_without_a_codec():
    with pytest.raises(InputError, match="without a codec"):
        SequenceModel().encode("ACGT")
