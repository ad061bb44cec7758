"""Exports: a tokenizer that encodes as we do, `generate` within the alphabet, and no scores of other weights."""

import json

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import mamba_bio_audio as mba
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.weights import weights_hash
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.dna.tokenizer import TOKENS, DnaTokenizer
from mamba_bio_audio.run.export import export, model_card, scores_of_other_weights
from mamba_bio_audio.run.sampling import SETTINGS_NAME, Fitted, read_fitted

CODEC = DnaTokenizer()


def dna_model(mixer="mamba", seed=0):
    model = build_model(ModelConfig(d_model=16, num_layers=2, vocab_size=12, mixer=mixer), seed=seed)
    model.codec = CODEC
    return model.eval()


@pytest.fixture(scope="module", params=["mamba", "s4d"])
def tokenizer(request, tmp_path_factory):
    """Of an export that transformers opens as a model, and of one that it does not."""
    transformers = pytest.importorskip("transformers")
    out = tmp_path_factory.mktemp("export")
    export(dna_model(request.param), out)
    return transformers.AutoTokenizer.from_pretrained(out)


@settings(deadline=None, max_examples=300)
@given(
    st.text(
        st.sampled_from("ACGTNacgtnRYKMSWBDHVUrykmswbdhvu-*. \t\r\n[]PADUNKCLS\u00e9\u2028\U0001f600\0"), max_size=60
    )
)
@example("ACGTNacgtn")
@example("[PAD]A[UNK]N[CLS] [BOS]")
@example("  AC\r\n\tGT  ")
@example("e\u0301\ufb01\u0130")
@example("")
def test_auto_tokenizer_encodes_and_decodes_as_the_codec(tokenizer, text):
    ids = CODEC.encode(text).tolist()
    assert tokenizer(text)["input_ids"] == ids
    assert tokenizer.encode(text, add_special_tokens=True) == ids
    assert tokenizer.decode(ids) == CODEC.decode(np.array(ids, np.int64))
    assert tokenizer.decode(ids, skip_special_tokens=True) == CODEC.decode(np.array(ids, np.int64))


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=20))
def test_auto_tokenizer_encodes_any_text_as_the_codec(tokenizer, text):
    assert tokenizer(text)["input_ids"] == CODEC.encode(text).tolist()


def test_auto_tokenizer_knows_the_ids_and_pads_on_the_right(tokenizer):
    assert tokenizer.convert_ids_to_tokens(list(range(12))) == list(TOKENS)
    assert tokenizer.decode(list(range(12))) == CODEC.decode(range(12))
    batch = tokenizer(["ACGT", "ac", "C"], padding=True)
    assert batch["input_ids"] == [[7, 8, 9, 10], [7, 8, 4, 4], [8, 4, 4, 4]]
    assert batch["attention_mask"] == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True) == ["ACGT", "AC", "C"]
    assert tokenizer.bos_token is None
    assert tokenizer.eos_token is None
    assert tokenizer.model_max_length > 10**9


@pytest.mark.parametrize("sampled", [False, True])
def test_generate_of_transformers_emits_bases_alone(sampled, tmp_path):
    """Of a model that would rather have rows of the embedding that are no symbols, or symbols that are no bases."""
    transformers = pytest.importorskip("transformers")
    model = dna_model()
    # Every norm's output is pushed along one direction, in which the rows that are no bases lie.
    with torch.no_grad():
        model.embedding.weight[:, 0] = 5.0
        model.embedding.weight[7:11, 0] = -5.0
        for block in model.layers:
            block.mixer.out_proj.weight.zero_()
    prompt = torch.tensor([[12, 15, 3]])
    assert model(prompt).logits[0, -1].argmax() not in range(7, 11)
    export(model, tmp_path)
    theirs = transformers.MambaForCausalLM.from_pretrained(tmp_path).eval()
    torch.manual_seed(0)
    made = theirs.generate(prompt, max_new_tokens=40, do_sample=sampled, top_k=0 if sampled else None)[0, 3:]
    assert len(made) == 40
    assert set(made.tolist()) <= {7, 8, 9, 10}
    # It is the file that keeps it there.
    free = transformers.GenerationConfig(max_new_tokens=5, do_sample=False)
    theirs.generation_config.suppress_tokens = None
    assert not set(theirs.generate(prompt, generation_config=free)[0, 3:].tolist()) <= {7, 8, 9, 10}


def test_padding_of_a_foreign_vocabulary_is_suppressed(tmp_path):
    model = build_model(ModelConfig(d_model=16, num_layers=1, vocab_size=13), seed=0)
    export(model, tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["suppress_tokens"] == [13, 14, 15]
    assert not (tmp_path / "tokenizer.json").exists()


def test_audio_card_says_what_the_ids_mean(tmp_path):
    model = build_model(ModelConfig(d_model=16, num_layers=1, vocab_size=256), seed=0)
    model.codec = AudioCodec(sample_rate_hz=16_000)
    export(model, tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
    assert json.loads((tmp_path / "generation_config.json").read_text())["suppress_tokens"] is None
    card = (tmp_path / "README.md").read_text()
    for text in (
        "ids 0 to 255",
        "mu-law 8 bit standard",
        "16,000 Hz",
        "begins with 128",
        "no tokenizer",
        "codec.encode",
    ):
        assert text in card, text


def test_weights_hash_is_of_the_values_wherever_they_are(tmp_path):
    model = dna_model()
    export(model, tmp_path / "first")
    loaded = mba.load(tmp_path / "first")
    assert weights_hash(loaded) == weights_hash(model)
    assert weights_hash(loaded) == weights_hash(dict(reversed(loaded.state_dict().items())))
    for parameter in loaded.parameters():
        before = weights_hash(loaded)
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-3
        assert weights_hash(loaded) != before
    assert weights_hash({"a": torch.zeros(2, 3)}) != weights_hash({"a": torch.zeros(3, 2)})
    assert weights_hash({"a": torch.zeros(2)}) != weights_hash({"b": torch.zeros(2)})
    assert weights_hash({"a": torch.zeros(2)}) != weights_hash({"a": torch.zeros(2, dtype=torch.int32)})


@pytest.fixture
def scored(tmp_path):
    """An export of a run whose manifest holds a validation and an evaluation, both of these weights."""
    from mamba_bio_audio.run.config import load_config

    fasta = tmp_path / "toy.fa"
    fasta.write_text(">one\nACGT\n")
    model = dna_model()
    config = load_config("dna/tiny", [f"data.path={fasta}"])
    model.config = config.model_copy(update={"model": model.model_config})
    weights = weights_hash(model)
    model.manifest = {"result": {"valid_nats": 1.25, "best_step": 9, "unit": "base", "weights_sha256": weights}}
    row = {"length": 64, "weights_sha256": weights, "model": {"perplexity": 3.5}}
    export(model, tmp_path / "hub", evaluations={"test": row})
    return tmp_path / "hub"


def test_scores_go_with_the_weights_they_are_of(scored):
    model = mba.load(scored)
    assert scores_of_other_weights(model) == []
    assert "1.2500 nats per base at step 9" in model_card(model)
    assert "perplexity 3.5000" in model_card(model)


def test_scores_of_other_weights_are_left_out_and_named(scored, tmp_path):
    """transformers keeps all keys of config.json when it saves a model that was trained further."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.MambaForCausalLM.from_pretrained(scored)
    theirs.save_pretrained(tmp_path / "same")
    assert scores_of_other_weights(mba.load(tmp_path / "same")) == []
    with torch.no_grad():
        theirs.backbone.norm_f.weight.mul_(1.01)
    theirs.save_pretrained(tmp_path / "tuned")
    model = mba.load(tmp_path / "tuned")
    assert model.config.data.kind == "dna"
    notes = export(model, tmp_path / "again")
    assert len(notes) == 2
    assert all("belong to other weights" in note for note in notes)
    card = (tmp_path / "again" / "README.md").read_text()
    assert "1.2500" not in card
    assert "3.5000" not in card
    assert card.count("left out, because the scores belong to other weights") == 2


def test_scores_without_a_hash_are_quoted_as_unknown(scored):
    description = json.loads((scored / "config.json").read_text())
    manifest = description["mamba_bio_audio"]["manifest"]
    del manifest["result"]["weights_sha256"], manifest["evaluations"]["test"]["weights_sha256"]
    (scored / "config.json").write_text(json.dumps(description))
    model = mba.load(scored)
    assert len(scores_of_other_weights(model)) == 2
    card = model_card(model)
    assert "perplexity 3.5000 (it is not recorded which weights these scores belong to)" in card


def test_card_of_a_transformer_names_its_own_settings(tmp_path):
    options = {"heads": 2, "mlp_expand": 3}
    model = build_model(ModelConfig(mixer="transformer", options=options, d_model=8, num_layers=1, vocab_size=12))
    card = model_card(model)
    assert "# transformer, 1 layers x 8" in card
    layers = next(line for line in card.splitlines() if line.startswith("Layers: "))
    assert {"mlp_expand 3", "heads 2"} <= set(layers.removeprefix("Layers: ").removesuffix(".").split(", "))
    assert "State space" not in card


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("more", [{"inputs": 257}, {"inputs": 257, "classes": ("a", "b")}, {"classes": ("a", "b")}])
def test_start_token_and_classes_go_along(tmp_path, tied, more):
    config = ModelConfig(d_model=16, num_layers=1, vocab_size=256, tie_embeddings=tied, **more)
    model = build_model(config, seed=0).eval()
    model.codec = AudioCodec(start="token" if "inputs" in more else "level")
    export(model, tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    # transformers knows neither.
    assert description["model_type"] == "mamba_bio_audio"
    card = (tmp_path / "README.md").read_text()
    assert ("It generates by class, a, b" in card) == ("classes" in more)
    assert ("begins with 256, a token that is only read" in card) == ("inputs" in more)
    opened = mba.load(tmp_path)
    assert opened.classes == more.get("classes", ())
    assert weights_hash(opened) == weights_hash(model)
    ids = torch.arange(3 * 257 if len(more) == 2 else 256)[None]
    torch.testing.assert_close(opened(ids).logits, model(ids).logits)


def test_fitted_settings_go_with_the_weights_that_they_were_fitted_to(tmp_path):
    model, out = dna_model(), tmp_path / "out"
    fitted = Fitted(path=tmp_path / SETTINGS_NAME, temperature=0.8, top_p=0.97, weights_sha256=weights_hash(model))
    assert export(model, out, fitted=fitted) == []
    kept = read_fitted(out)
    assert (kept.temperature, kept.top_p) == (0.8, 0.97)
    assert kept.weights_sha256 == weights_hash(mba.load(out))
    # Rounded weights are others, and so are those of another model.
    for other, precision in ((model, "bf16"), (dna_model(seed=1), "fp32")):
        notes = export(other, out, precision=precision, fitted=fitted)
        assert any("fitted to other weights" in note for note in notes)
        assert read_fitted(out) is None
