"""`mba.log_likelihood`."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mamba_bio_audio as mba
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.heads import Classifier
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer


@pytest.fixture(scope="module")
def model():
    built = build_model(ModelConfig(d_model=16, num_layers=2, vocab_size=12), seed=0).eval()
    torch.nn.init.normal_(built.embedding.weight, generator=torch.Generator().manual_seed(1))
    built.codec = DnaTokenizer()
    return built


@pytest.fixture(scope="module")
def audio_model():
    built = build_model(ModelConfig(d_model=8, num_layers=1, vocab_size=256), seed=0).eval()
    built.codec = AudioCodec(8)
    return built


def test_first_and_unknown_bases_are_missing(model):
    found = mba.log_likelihood(model, "acNGT")
    assert found.per_base.shape == (1, 5)
    assert found.per_base.dtype == torch.float64
    assert found.per_base.isnan().tolist() == [[True, False, True, False, False]]
    ids = model.encode("ACNGT")
    with torch.no_grad():
        log_p = F.log_softmax(model(ids).logits.double(), -1)
    wanted = [float(log_p[0, at - 1, ids[0, at]]) for at in (1, 3, 4)]
    assert found.per_base[0, [1, 3, 4]].tolist() == pytest.approx(wanted, abs=1e-6)
    assert float(found.total) == pytest.approx(sum(wanted), abs=1e-5)
    assert found.scored.tolist() == [3]


@pytest.mark.parametrize("chunk", [None, 1, 7])
def test_mixed_lengths_equal_singles(model, chunk):
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("ACGTN"), size)) for size in (40, 1, 17, 256, 17)]
    together = mba.log_likelihood(model, texts, chunk=chunk)
    assert together.per_base.shape == (5, 256)
    for text, values, total, scored in zip(texts, *together, strict=True):
        alone = mba.log_likelihood(model, text)
        torch.testing.assert_close(values[: len(text)], alone.per_base[0], rtol=0, atol=1e-5, equal_nan=True)
        assert values[len(text) :].isnan().all()
        assert float(total) == pytest.approx(float(alone.total), abs=1e-4)
        assert int(scored) == int(alone.scored) == sum(letter != "N" for letter in text[1:])


def test_what_one_returns_the_others_take(model):
    sampled = mba.generate(model, length=20, num_samples=3, prompt=model.encode("ACGT"), seed=1)
    texts = model.decode(sampled)
    found = mba.log_likelihood(model, sampled)
    for same in (texts, list(sampled), sampled.numpy(), [model.encode(text) for text in texts]):
        assert torch.equal(found.total, mba.log_likelihood(model, same).total)
    ids = sampled[0].tolist()
    assert float(mba.log_likelihood(model, ids).total) == pytest.approx(float(found.total[0]), abs=1e-5)


def test_audio_is_scored_from_its_first_sample(audio_model):
    clip = np.linspace(-0.5, 0.5, 12, dtype=np.float32)
    found = mba.log_likelihood(audio_model, clip)
    assert found.scored.tolist() == [12]
    assert not found.per_base.isnan().any()
    levels = audio_model.encode(clip)
    assert torch.equal(mba.log_likelihood(audio_model, levels).total, found.total)
    ids = torch.cat([torch.tensor([[128]]), levels], 1)
    with torch.no_grad():
        loss = audio_model(ids[:, :-1], targets=levels, logits="none").loss_sum
    assert float(found.total) == pytest.approx(-float(loss), rel=1e-6)
    # Several clips in one array, as `decode` gives them one by one.
    assert mba.log_likelihood(audio_model, np.stack([clip, clip])).scored.tolist() == [12, 12]


def test_bf16_is_close_but_not_equal(model):
    text = "ACGTTGCATGCA" * 10
    exact, narrow = (mba.log_likelihood(model, text, precision=precision) for precision in ("fp32", "bf16"))
    assert float(narrow.total) != float(exact.total)
    assert float(narrow.total) == pytest.approx(float(exact.total), rel=0.02)


def test_foreign_weights_score_every_id():
    built = build_model(ModelConfig(d_model=8, num_layers=1, vocab_size=20), seed=0).eval()
    assert mba.log_likelihood(built, torch.arange(20)[None]).scored.tolist() == [19]
    with pytest.raises(InputError, match="sequence 1: .*without a codec"):
        mba.log_likelihood(built, "ACGT")


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "there is no sequence"),
        (["ACGT", ""], "sequence 2: empty"),
        (">chr1\nACGT", "sequence 1: '>' at position 1 is not a base"),
        ([torch.tensor([7, 12])], "sequence 1: ids from 7 to 12; this model knows 0 to 11"),
        (torch.zeros(2, 2, 2, dtype=torch.long), "not \\(2, 2, 2\\)"),
        ([torch.zeros(2, 2, dtype=torch.long)], "not \\(2, 2\\)"),
        (torch.tensor([True, False]), "sequence 1: an array of bool"),
        (np.array([0.5, 0.25]), "sequence 1: a sequence of DNA is text"),
    ],
)
def test_what_is_no_sequence_is_refused(model, sequences, message):
    with pytest.raises(InputError, match=message):
        mba.log_likelihood(model, sequences)


def test_a_dict_is_refused_because_its_keys_would_be_scored(model):
    for wrong in ({"A": "ACGT"}, None, 5):
        with pytest.raises(InputError, match="the sequences are"):
            mba.log_likelihood(model, wrong)
    with pytest.raises(InputError, match="the model is str"):
        mba.log_likelihood("runs/mine", "ACGT")


def test_logits_of_a_model_in_bf16_are_not_rounded(model):
    narrow = copy.deepcopy(model).bfloat16()
    ids = narrow.encode("ACGTTGCAAC")
    with torch.inference_mode():
        hidden, _ = narrow.hidden(ids)
        logits = F.linear(hidden.float(), narrow.lm_head.weight.float())
    expected = logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0].double()
    torch.testing.assert_close(mba.log_likelihood(narrow, ids).per_base[0, 1:], expected, rtol=0, atol=1e-6)


def test_text_is_no_audio(audio_model):
    with pytest.raises(InputError, match="this model reads audio"):
        mba.log_likelihood(audio_model, "ACGT")


def test_options_are_checked(model):
    with pytest.raises(InputError, match="choose fp32 or bf16"):
        mba.log_likelihood(model, "ACGT", precision="fp16")
    with pytest.raises(InputError, match="chunk is 0"):
        mba.log_likelihood(model, "ACGT", chunk=0)
    with pytest.raises(InputError, match="chunk is 2.5"):
        mba.log_likelihood(model, "ACGT", chunk=2.5)
    backbone = build_model(ModelConfig(d_model=8, num_layers=1, vocab_size=12))
    with pytest.raises(InputError, match="a classifier has no likelihood"):
        mba.log_likelihood(Classifier(backbone, HeadConfig(classes=("a", "b"))), "ACGT")


def test_a_uniform_model_scores_log_of_its_vocabulary(model):
    flat = build_model(ModelConfig(d_model=16, num_layers=2, vocab_size=12), seed=0).eval()
    torch.nn.init.zeros_(flat.embedding.weight)
    flat.codec = DnaTokenizer()
    padded = len(flat.lm_head.weight)
    assert mba.log_likelihood(flat, "ACGT").per_base[0, 1:].tolist() == pytest.approx([-math.log(padded)] * 3)
