"""Embeddings: against hidden states that are pooled by hand, in pieces, in batches, on both strands."""

import numpy as np
import pytest
import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference.embed import Pool, embed, missing
from mamba_bio_audio.inference.generate import generate
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.heads import Classifier
from mamba_bio_audio.models.isotropic import IsotropicModel
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.run.config import load_config

CODEC = DnaTokenizer()
POOLS = ("mean", "last", "bins:1", "bins:7", "bins:1000", "none")


def dna_model(classes: tuple[str, ...] = (), **changes):
    config = load_config("dna/tiny", ["data.path=demo", "train.length=64", "train.tokens_per_step=512"])
    settings = {"d_model": 8, "num_layers": 3, "vocab_size": CODEC.vocab_size} | changes
    model = build_model(ModelConfig(**settings), seed=0)
    for parameter in model.parameters():
        # At the initial scale the vectors would hardly depend on what was read before.
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.4, generator=torch.Generator().manual_seed(parameter.numel()))
    made = Classifier(model, HeadConfig(pool="mean", classes=classes)) if classes else model
    made.config, made.codec = config, CODEC
    return made.eval()


@pytest.fixture(scope="module")
def model():
    return dna_model()


@pytest.fixture(scope="module")
def audio_model():
    model = build_model(UNetConfig(d_model=8, num_layers=2, pools=(2, 3), vocab_size=256), seed=0)
    torch.nn.init.normal_(model.embedding.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    model.config = load_config("audio/tiny", ["data.path=."])
    model.codec = AudioCodec.of(model.config.data)
    return model.eval()


def dna(length: int, seed: int = 0, unknown: float = 0.0) -> str:
    rng = np.random.default_rng(seed)
    letters = rng.choice(np.frombuffer(b"ACGT", np.uint8), length)
    letters[rng.random(length) < unknown] = ord("N")
    return letters.tobytes().decode()


def one_strand(model, ids, layer) -> np.ndarray:
    """Hidden states (L, D) of a row in one pass; the start symbol of audio is read and left out."""
    start = model.codec.start_id
    ids = ids if start is None else np.concatenate([[start], ids])
    with torch.inference_mode():
        hidden, _ = model.hidden(torch.from_numpy(ids.astype(np.int64))[None], layer=layer)
    return hidden[0, start is not None :].double().numpy()


def by_hand(model, ids, pool, strand="forward", layer=None) -> np.ndarray:
    if strand == "both":
        return (by_hand(model, ids, pool, "forward", layer) + by_hand(model, ids, pool, "reverse", layer)) / 2
    known = np.isin(ids, list(model.codec.sample_ids))
    hidden = one_strand(model, ids if strand == "forward" else CODEC.reverse_complement(ids), layer)
    if strand == "reverse":
        hidden = hidden[::-1]
    if pool == "none":
        return hidden
    if pool == "last":
        places = np.flatnonzero(known)
        return hidden[places[-1 if strand == "forward" else 0]] if len(places) else np.full(hidden.shape[1], np.nan)
    size = len(ids) if pool == "mean" else int(pool.split(":")[1])
    means = [
        hidden[low : low + size][known[low : low + size]].mean(0)
        if known[low : low + size].any()
        else np.full(hidden.shape[1], np.nan)
        for low in range(0, len(ids), size)
    ]
    return means[0] if pool == "mean" else np.array(means)


def check(found, expected):
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5 * max(1e-30, np.nanmax(np.abs(expected))))


@pytest.mark.parametrize("strand", ["forward", "reverse", "both"])
@pytest.mark.parametrize("pool", POOLS)
def test_mixed_lengths_in_pieces_are_what_each_is_alone_in_one_pass(model, pool, strand):
    texts = [dna(length, length, 0.1) for length in (1, 6, 7, 8, 64, 101, 333)]
    texts += ["NNNN" + dna(20), dna(20) + "NNNNNNNNNN"]
    for chunk in (None, 10, 33):
        found = embed(model, texts, pool=pool, strand=strand, chunk=chunk)
        assert len(found) == len(texts)
        for one, text in zip(found, texts, strict=True):
            check(one, by_hand(model, CODEC.encode(text), pool, strand))


@pytest.mark.parametrize("layer", [0, 1, 2, -1, -3])
def test_every_layer(model, layer):
    text = dna(100)
    for pool in ("mean", "none"):
        (found,) = embed(model, text, layer, pool, strand="both", chunk=17)
        check(found, by_hand(model, CODEC.encode(text), pool, "both", layer))


def test_the_opposite_strand_stands_at_the_bases_of_the_given_one(model):
    """Constructed: what is read of the reverse complement, from its first base on, ends at the first base of the record."""
    text = dna(50)
    turned = CODEC.decode(CODEC.reverse_complement(CODEC.encode(text)))
    (along,) = embed(model, text, pool="none", strand="reverse")
    (own,) = embed(model, turned, pool="none")
    torch.testing.assert_close(along, own.flip(0), rtol=0, atol=1e-6)
    # Row t has not seen base t - 1 and anything before it.
    changed = "G" + text[1:] if text[0] != "G" else "A" + text[1:]
    (other,) = embed(model, changed, pool="none", strand="reverse")
    moved = (along - other).abs().amax(1)
    assert moved[0] > 1e-4
    assert moved[1:].max() < 1e-6
    # Both strands know both directions, and a sequence is its reverse complement read backwards.
    (both,) = embed(model, text, pool="none", strand="both")
    (theirs,) = embed(model, turned, pool="none", strand="both")
    torch.testing.assert_close(both, theirs.flip(0), rtol=0, atol=1e-6)
    for pool in ("mean",):
        a, b = (embed(model, given, pool=pool, strand="both") for given in (text, turned))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_unknown_bases_are_read_and_not_counted(model):
    text = "ACGT" * 5 + "N" * 200
    (mean,) = embed(model, text)
    check(mean, by_hand(model, CODEC.encode("ACGT" * 5), "mean"))
    (last,) = embed(model, text, pool="last")
    check(last, by_hand(model, CODEC.encode("ACGT" * 5), "last"))
    # What follows them has read them.
    (behind,) = embed(model, "ACGTNNNNA", pool="last")
    assert (behind - embed(model, "ACGTA", pool="last")[0]).abs().max() > 1e-4
    for pool in ("mean", "last", "bins:2"):
        assert embed(model, "NNNN", pool=pool)[0].isnan().all()
    assert embed(model, "NNNN", pool="none")[0].isfinite().all()


def test_what_others_return_is_taken(model):
    tokens = generate(model, length=30, num_samples=3, seed=1)
    found = embed(model, tokens)
    assert found.shape == (3, 8)
    texts = [CODEC.decode(row.numpy()) for row in tokens]
    for again in (embed(model, texts), embed(model, list(tokens)), embed(model, tokens.numpy())):
        torch.testing.assert_close(again, found, rtol=0, atol=1e-6)
    torch.testing.assert_close(embed(model, tokens[0])[0], found[0], rtol=0, atol=1e-6)


def test_audio_is_read_behind_its_start_level_and_pools_are_of_samples(audio_model):
    rows = [np.random.default_rng(n).integers(0, 256, n) for n in (1, 5, 40, 100)]
    for layer in (None, 0, 3):
        for pool in ("mean", "last", "bins:16", "none"):
            found = embed(audio_model, rows, "final" if layer is None else layer, pool, chunk=9)
            for one, ids in zip(found, rows, strict=True):
                check(one, by_hand(audio_model, ids, pool, layer=layer))
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 50).astype(np.float32)
    check(embed(audio_model, samples)[0], by_hand(audio_model, audio_model.codec.encode(samples), "mean"))
    with pytest.raises(InputError, match="only one strand"):
        embed(audio_model, rows, strand="both")
    with pytest.raises(InputError, match="layer 4: this model has 4 layers"):
        embed(audio_model, rows, 4)


@pytest.mark.parametrize("made", [lambda: dna_model(mixer="transformer"), lambda: dna_model(("a", "b"))])
def test_other_models(made):
    other = made()
    texts = [dna(40), dna(23)]
    for pool in ("mean", "bins:5"):
        for one, text in zip(embed(other, texts, pool=pool, chunk=11), texts, strict=True):
            check(one, by_hand(other, CODEC.encode(text), pool))


def test_layers_that_cannot_carry_a_state_read_a_sequence_in_one_piece(model, monkeypatch):
    asked = []
    whole = IsotropicModel.hidden

    def hidden(self, tokens, state=None, *, reset=None, layer=None):
        assert state is None, "this layer cannot carry a state"
        asked.append(tokens.shape)
        return whole(self, tokens, None, layer=layer)

    monkeypatch.setattr(IsotropicModel, "streaming", "none")
    monkeypatch.setattr(IsotropicModel, "hidden", hidden)
    text = dna(90)
    (found,) = embed(model, text, pool="bins:16", chunk=10)
    assert asked == [(1, 90)]
    check(found, by_hand(model, CODEC.encode(text), "bins:16"))


def test_double_weights_give_double_vectors():
    model = dna_model().double()
    text = dna(300)
    whole, parts = (embed(model, text, pool="mean", chunk=chunk) for chunk in (None, 7))
    assert whole.dtype == torch.float64
    assert (whole - parts).abs().max() <= 1e-12


def test_sums_of_long_sequences_do_not_lose_what_is_small():
    """A million equal vectors have that vector as their mean; a running sum in fp32 would be off by more than 1e-4."""

    class Constant(IsotropicModel):
        def hidden(self, tokens, state=None, *, reset=None, layer=None):
            return torch.full((*tokens.shape, 1), 0.1), ()

    model = Constant(ModelConfig(d_model=1, num_layers=1, vocab_size=12))
    found = embed(model, np.full(1 << 20, 7))
    assert abs(found.item() - 0.1) < 1e-8


@pytest.mark.parametrize(
    "pool", ["", "max", "bins", "bins:", "bins:0", "bins:-1", "bins:1.5", "mean:3", f"bins:{10**19}", None]
)
def test_pools_that_do_not_exist(model, pool):
    with pytest.raises(InputError, match="choose mean, last, none, or bins:128"):
        embed(model, "ACGT", pool=pool)


def test_mistakes(model):
    for layer in (3, -4):
        with pytest.raises(InputError, match=f"layer {layer}: this model has 3 layers.*0 to 2, or -3 to -1"):
            embed(model, "ACGT", layer)
    for layer in ("first", 1.0, True, None):
        with pytest.raises(InputError, match="give its number, or final"):
            embed(model, "ACGT", layer)
    assert torch.equal(embed(model, "ACGT", np.int64(1)), embed(model, "ACGT", 1))
    with pytest.raises(InputError, match="chunk is '5'"):
        embed(model, "ACGT", chunk="5")
    with pytest.raises(InputError, match="strand is 'up'"):
        embed(model, "ACGT", strand="up")
    with pytest.raises(InputError, match="sequence 2: empty"):
        embed(model, ["ACGT", ""])
    with pytest.raises(InputError, match="precision"):
        embed(model, "ACGT", precision="fp8")
    with pytest.raises(InputError, match="chunk"):
        embed(model, "ACGT", chunk=0)
    bare = build_model(ModelConfig(d_model=8, num_layers=1, vocab_size=12))
    assert embed(bare, torch.tensor([7, 8, 9])).shape == (1, 8)
    with pytest.raises(InputError, match="only one strand"):
        embed(bare, torch.tensor([7, 8, 9]), strand="reverse")


def test_a_row_without_a_known_symbol_is_told_from_others(model):
    reasons = [missing(model, CODEC.encode(text)) for text in ("", "N", "NN", "AN", "NA", "A")]
    assert reasons == ["empty", *["contains no known symbol"] * 2, "", "", ""]


def test_rows_of_a_pool():
    assert [Pool.of("bins:128").rows(length) for length in (0, 1, 128, 129)] == [0, 1, 1, 2]
    assert [Pool.of("mean").rows(length) for length in (0, 5)] == [1, 1]
    assert [Pool.of("none").rows(length) for length in (0, 5)] == [0, 5]
