"""`head.pretrained` and `train.init`: the model that is named brings its architecture and its weights."""

import numpy as np
import pytest
import torch

import mamba_bio_audio as mba
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.run.begin import Session, begin
from mamba_bio_audio.run.export import export
from mamba_bio_audio.run.pretrained import begin_with, configure
from mamba_bio_audio.run.train import train

SHAPE = ModelConfig(d_model=16, num_layers=2, vocab_size=12, norm_eps=1e-6, ssm={"d_state": 4})
LABELLED = "data: {kind: dna-classes, path: DIR/t.tsv}\nhead: {}\n"
TRAIN = "train: {steps: 2, length: 32, tokens_per_step: 64, lr: 1e-3, validate_every: 1}\n"


@pytest.fixture
def given(tmp_path):
    """An export, a table of labels, a genome and recipes on them."""
    rng = np.random.default_rng(0)
    export(build_model(SHAPE, seed=3), tmp_path / "lm")
    rows = "".join(f"{''.join(rng.choice(list('ACGT'), 30))}\t{'ab'[i % 2]}\n" for i in range(40))
    (tmp_path / "t.tsv").write_text("sequence\tlabel\n" + rows)
    (tmp_path / "g.fa").write_text(">r\n" + "".join(rng.choice(list("ACGT"), 4000)) + "\n")
    (tmp_path / "bare.yaml").write_text((LABELLED + TRAIN).replace("DIR", str(tmp_path)))
    (tmp_path / "wide.yaml").write_text("extends: bare.yaml\nmodel: {d_model: 64, num_layers: 2}\n")
    return tmp_path


def recipe(folder, name: str) -> str:
    return str(folder / name)


def test_the_architecture_comes_with_the_weights(given):
    config = configure(recipe(given, "bare.yaml"), [f"head.pretrained={given / 'lm'}"])
    assert config.model == SHAPE
    model = begin(config.model_copy(update={"head": config.head.model_copy(update={"classes": ("a", "b")})}))
    assert torch.equal(model.backbone.embedding.weight, mba.load(given / "lm").embedding.weight)
    # A packaged recipe's own model gives way; so does one that agrees.
    for name in (given / "lm", "human42mb-1m4"):
        own = [f"data.path={given / 't.tsv'}", f"head.pretrained={name}", "train.length_warmup=[]"]
        assert configure("dna/species@tiny", own).model == mba.load(name).model_config
    same = configure(recipe(given, "bare.yaml"), [f"head.pretrained={given / 'lm'}", "model.ssm.d_state=4"])
    assert same.model == SHAPE


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("bare.yaml", ["model.d_model=8"], "model.d_model is 8, there 16"),
        (
            "bare.yaml",
            ["model.ssm.d_state=16", "model.mixer=s4d"],
            r"d_state is 16, there 4.*mixer is s4d, there mamba",
        ),
        ("bare.yaml", ["model.pools=[4]"], "model.pools is no key of a isotropic model"),
        ("wide.yaml", [], "model.d_model is 64, there 16"),
        ("wide.yaml", ["model.d_model=16"], None),
        ("wide.yaml", ["model.d_model=16", "train.init=LM"], "both name a model to begin with"),
        (
            "wide.yaml",
            ["head.pretrained=null", "train.init=LM", "model.d_model=16"],
            "train.init: is for language models",
        ),
        ("bare.yaml", ["head.pretrained=/nowhere"], "head.pretrained: /nowhere: no such run, folder or file; packaged"),
    ],
)
def test_what_a_user_sets_must_agree(given, name, overrides, expected):
    overrides = [f"head.pretrained={given / 'lm'}", *(text.replace("LM", str(given / "lm")) for text in overrides)]
    if expected is None:
        assert configure(recipe(given, name), overrides).model == SHAPE
        return
    with pytest.raises(InputError, match=f"(?s){expected}"):
        configure(recipe(given, name), overrides)


def test_nothing_random_is_kept_as_it_is(given):
    for key in ("head.freeze=true", "head.lora_rank=2"):
        with pytest.raises(InputError, match=f"{key.partition('=')[0]} keeps the weights of a pretrained backbone"):
            configure(recipe(given, "bare.yaml"), [key])
        assert configure(recipe(given, "bare.yaml"), [key, f"head.pretrained={given / 'lm'}"]).head is not None


def test_a_language_model_is_trained_further(given):
    own = [f"data.path={given / 'g.fa'}", f"train.init={given / 'lm'}", "train.steps=2", "train.length=32"]
    own += [
        "train.tokens_per_step=64",
        "train.lr=1e-30",
        "train.lr_min=0",
        "train.weight_decay=0",
        "data.block_bases=500",
    ]
    config = configure("dna/tiny", own)
    assert config.model == SHAPE
    trained = train(config, given / "run", Session("cpu", quiet=True))
    assert trained.step == 2
    before, after = mba.load(given / "lm"), mba.load(given / "run")
    for name, tensor in before.state_dict().items():
        assert torch.allclose(after.state_dict()[name], tensor, atol=1e-9), name
    # From a classifier its backbone is taken.
    classifier = configure(recipe(given, "bare.yaml"), [f"head.pretrained={given / 'lm'}"])
    train(classifier, given / "classes", Session("cpu", quiet=True))
    again = begin(configure("dna/tiny", [*own, f"train.init={given / 'classes'}"]))
    assert torch.equal(again.embedding.weight, mba.load(given / "classes").backbone.embedding.weight)


def test_models_that_cannot_be_begun_with(given):
    # Other symbols: refused when the data are known, by the dry run too.
    export(build_model(ModelConfig(d_model=8, num_layers=1, vocab_size=20), seed=0), given / "proteins")
    config = configure(recipe(given, "bare.yaml"), [f"head.pretrained={given / 'proteins'}"])
    with pytest.raises(
        InputError, match=r"vocab_size is 20, but the data has 12 symbols; .*proteins reads other symbols"
    ):
        train(config, given / "x", Session("cpu", quiet=True))
    by_class = ModelConfig(d_model=8, num_layers=1, vocab_size=12, classes=("x", "y"))
    export(build_model(by_class, seed=0), given / "by_class")
    with pytest.raises(InputError, match=r"it generates by class \(x, y\)"):
        configure(recipe(given, "bare.yaml"), [f"head.pretrained={given / 'by_class'}"])


def test_symbols_of_another_meaning():
    """Levels of a quantiser are no bases, however many there are."""
    name = "human42mb-1m4"
    with pytest.raises(
        InputError, match=f"{name}: it knows dna, bases as letters, but the data are audio, mu-law 8 bit"
    ):
        begin_with(mba.load(name), "train.init", name, AudioCodec())
