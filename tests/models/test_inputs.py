"""What models read besides symbols: a start token, and the class of a sequence."""

import csv

import numpy as np
import pytest
import soundfile
import torch
from pydantic import ValidationError
from torch import nn

import mamba_bio_audio as mba
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.evaluation.class_worth import class_worth
from mamba_bio_audio.inference.generate import sampling_path
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.inputs import InputEmbedding, class_of
from mamba_bio_audio.models.lookup import Embedding
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.models.weights import weights_hash
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.run.begin import Session
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.train import train
from mamba_bio_audio.training import fit, steps
from mamba_bio_audio.training.optim import parameter_groups

Q, S = 20, 21
MORE = {"inputs": S, "classes": ("a", "b", "c")}


def isotropic(**more):
    return ModelConfig(d_model=16, num_layers=2, vocab_size=Q, **more)


def unet(**more):
    return UNetConfig(d_model=16, num_layers=1, pools=(2, 2), vocab_size=Q, **more)


def lively(config) -> nn.Module:
    model = build_model(config, seed=0).eval()
    with torch.no_grad():
        for parameter in model.embedding.parameters():
            parameter.mul_(50)
    return model


def test_without_either_a_model_is_what_it_was():
    """The hash and the samples are those of the commit before there were start tokens and classes."""
    model = build_model(UNetConfig(d_model=16, num_layers=1, pools=(4,), vocab_size=256), seed=0).eval()
    assert type(model.embedding) is Embedding
    assert weights_hash(model).startswith("3b10ee5ffae0822d")
    model.codec = AudioCodec()
    assert model.codec.start_id == 128
    with torch.no_grad():
        model.embedding.weight.mul_(50)
    assert mba.generate(model, length=12, temperature=0)[0].tolist() == [
        *[195, 43, 241, 43, 241, 43, 241, 43, 204, 24, 194, 237],
    ]
    assert mba.generate(model, length=12, seed=3)[0].tolist() == [236, 20, 87, 209, 185, 82, 7, 102, 86, 172, 105, 92]


@pytest.mark.parametrize("shape", [isotropic, unet])
def test_outputs_know_neither_start_token_nor_classes(shape):
    plain, model = build_model(shape()), build_model(shape(**MORE))
    assert isinstance(model.embedding, InputEmbedding)
    assert model.lm_head.weight.shape == plain.lm_head.weight.shape
    ids = torch.randint(4 * S, (2, 9))
    assert model(ids).logits.shape == plain(ids % Q).logits.shape
    in_pools = 3 * (32 + 64) if shape is unet else 0
    assert model.num_parameters() - plain.num_parameters() == (1 + 3) * 16 + in_pools


@pytest.mark.parametrize("shape", [isotropic, unet])
def test_a_class_is_a_shift_of_ids_and_its_own_model_reads_plain_ones(shape):
    model = lively(shape(**MORE))
    ids = torch.cat([torch.full((3, 1), Q), torch.randint(Q, (3, 11))], 1)
    shifted = ids + S * torch.tensor([[0], [1], [3]])
    found = model(shifted).logits
    expected = [model(ids).logits, model.of_class("a")(ids).logits, model.of_class("c")(ids).logits]
    for row, own in enumerate(expected):
        torch.testing.assert_close(found[row], own[row], rtol=1e-5, atol=1e-5)
    assert (expected[1] - expected[0]).abs().max() > 1e-2
    assert (expected[2] - expected[1]).abs().max() > 1e-2


def test_pools_show_the_class_to_coarser_stages_in_pieces_as_in_one():
    """Of pools of 2 frames each, in pieces that end within frames; and by the decoder that knows only of biases."""
    model = lively(unet(**MORE))
    with torch.no_grad():
        model.embedding.classes.zero_()
        for pool in model.down_pools:
            pool.classes.weight.mul_(20)
    ids = torch.cat([torch.full((2, 1), Q), torch.randint(Q, (2, 16))], 1)
    shifted = ids + S * torch.tensor([[1], [3]])
    whole = model(shifted).logits
    assert (whole - model(ids).logits)[:, 4:].abs().max() > 1e-2
    state, found = None, []
    for piece in shifted.split([1, 2, 3, 1, 5, 4, 1], dim=1):
        output = model(piece, state)
        state = output.state
        found.append(output.logits)
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-5, atol=1e-5)
    how = {"length": 24, "num_samples": 2, "class_": ["a", "c"], "prompt": ids[0, :5], "allowed": range(Q)}
    steps = mba.generate(model, path="steps", **how)
    assert steps.equal(mba.generate(model, path="numpy", **how))
    assert not steps.equal(mba.generate(model, path="steps", **{**how, "class_": ["b", "b"]}))


def test_vectors_of_classes_do_not_decay():
    model = build_model(unet(**MORE))
    decaying, others = parameter_groups(model, 0.1)
    classes = [pool.classes.weight for pool in model.down_pools]
    assert not {id(weight) for weight in classes} & {id(weight) for weight in decaying["params"]}
    assert {id(weight) for weight in classes} <= {id(weight) for weight in others["params"]}


def test_the_model_of_a_class_changes_nothing_of_the_model():
    model = build_model(unet(**MORE), seed=0)
    before = weights_hash(model)
    own = model.of_class("b")
    assert own.classes == ()
    assert model.classes == ("a", "b", "c")
    assert weights_hash(model) == before
    assert isinstance(model.embedding, InputEmbedding)
    with pytest.raises(InputError, match="no class 'a' in this model; it was trained without model.classes"):
        own.of_class("a")
    with pytest.raises(InputError, match="no class 'd' in this model; choose from a, b, c"):
        model.of_class("d")


def test_a_tied_head_is_still_tied():
    model = build_model(isotropic(**MORE))
    assert model.lm_head.weight is model.embedding.weight
    own = model.of_class("a")
    assert own.lm_head.weight is model.embedding.weight


def test_gradients_reach_the_rows_that_were_read():
    model = build_model(unet(**MORE))
    ids = torch.tensor([[Q, 3, 4, 5]])
    model(ids + 2 * S, targets=torch.tensor([[3, 4, 5, 6]])).loss_sum.backward()
    embedding = model.embedding
    assert embedding.start.grad.abs().sum() > 0
    assert embedding.classes.grad.abs().sum(1).ne(0).tolist() == [False, True, False]
    embedding.zero_grad()
    model(ids, targets=torch.tensor([[3, 4, 5, 6]])).loss_sum.backward()
    assert embedding.classes.grad.abs().sum() == 0


@pytest.mark.parametrize("classes", [("a",), ("a", "a"), ("a", "")])
def test_classes_are_two_or_more_different_names(classes):
    for shape in (isotropic, unet):
        with pytest.raises(ValidationError, match="two or more different classes"):
            shape(classes=classes)


def generated(model, **options):
    return mba.generate(model, **({"length": 12, "num_samples": 4} | options))


@pytest.fixture(params=[isotropic, unet])
def model(request) -> nn.Module:
    made = lively(request.param(**MORE))
    made.codec = AudioCodec(start="token")
    made.codec.vocab_size, made.codec.start_id, made.codec.sample_ids = Q, Q, tuple(range(Q))
    return made


@pytest.mark.parametrize("prompt", [None, [3, 4, 5, 6, 7]])
@pytest.mark.parametrize("class_", [None, "b", ["a", "a", "c", "b"]])
def test_paths_agree_after_a_start_token(model, prompt, class_):
    options = {"prompt": prompt, "class_": class_, "temperature": 0}
    steps = generated(model, path="steps", **options)
    assert torch.equal(steps, generated(model, path="numpy", **options))
    expected = []
    for row in range(4):
        name = class_ if class_ is None or isinstance(class_, str) else class_[row]
        own = model if name is None else model.of_class(name)
        ids = [Q, *(prompt or [])]
        for _ in range(12):
            ids.append(int(own(torch.tensor([ids])).logits[0, -1, :Q].argmax()))
        expected.append(ids[-12:])
    assert steps.tolist() == expected


def test_the_rows_of_a_class_are_those_that_it_has_alone(model):
    together = generated(model, class_=["a", "b", "b", "c"], seed=5)
    alone = {name: generated(model, class_=name, seed=5) for name in "abc"}
    assert together.tolist() == [alone[name][row].tolist() for row, name in enumerate("abbc")]
    assert torch.equal(together, generated(model, class_=["a", "b", "b", "c"], seed=5, batch_size=1))


def test_prompts_of_several_lengths_have_classes_too(model):
    prompts = [[1, 2, 3], [4, 5], [4, 5], [6]]
    found = generated(model, prompt=prompts, class_=["a", "a", "b", "b"], temperature=0)
    for row, (prompt, name) in enumerate(zip(prompts, "aabb", strict=True)):
        alone = generated(model, prompt=prompt, class_=name, temperature=0, num_samples=1)
        assert found[row].tolist() == alone[0].tolist()


def test_guidance_overstates_the_class(model):
    """Greedy symbols are those of c + w (c - u), from whole sequences; a class has its own rows; prompts of any length too."""
    how = {"class_": ["a", "a", "b", "c"], "temperature": 0, "prompt": [3, 4, 5], "guidance": 2.5}
    found = generated(model, **how)
    expected = []
    for name in "aabc":
        ids = [Q, 3, 4, 5]
        for _ in range(12):
            read = torch.tensor([ids])
            own, none = (each(read).logits[0, -1, :Q] for each in (model.of_class(name), model))
            ids.append(int((own + 2.5 * (own - none)).argmax()))
        expected.append(ids[-12:])
    assert found.tolist() == expected
    assert not torch.equal(found, generated(model, **(how | {"guidance": 0.0})))
    prompts = generated(model, **(how | {"prompt": [[3, 4, 5], [3, 4, 5], [3, 4, 5], [3, 4]]}))
    assert torch.equal(prompts[:3], found[:3])
    assert sampling_path(model, rows=4, class_="a", guidance=1.0) == "steps"
    with pytest.raises(InputError, match="guidance is towards a class"):
        generated(model, guidance=1.0)
    with pytest.raises(InputError, match="guidance is -1"):
        generated(model, class_="a", guidance=-1.0)
    with pytest.raises(InputError, match=r"not with guidance"):
        generated(model, class_="a", guidance=1.0, path="numpy")


@pytest.mark.parametrize("training", [False, True])
def test_guidance_leaves_the_mode_of_the_model(model, training):
    model.train(training)
    generated(model, class_="a", guidance=1.0)
    assert {module.training for module in model.modules()} == {training}


def test_classes_that_cannot_be_asked_for():
    model = lively(unet(**MORE))
    with pytest.raises(InputError, match="no class 'd'; choose from a, b, c"):
        generated(model, class_="d")
    with pytest.raises(InputError, match="class_ lists 3 classes, but num_samples is 4"):
        generated(model, class_=["a", "b", "c"])
    with pytest.raises(InputError, match="class_ is 3; give the name of a class"):
        generated(model, class_=3)
    with pytest.raises(InputError, match="trained without classes"):
        generated(lively(unet()), class_="a")


def test_likelihoods_and_embeddings_after_a_start_token_that_bytes_cannot_hold():
    model = lively(UNetConfig(d_model=16, num_layers=1, pools=(4,), vocab_size=256, inputs=257))
    model.codec = AudioCodec(start="token")
    ids = torch.randint(256, (1, 30))
    logits = model(torch.cat([torch.tensor([[256]]), ids], 1)).logits[:, :-1]
    expected = logits.log_softmax(-1).gather(2, ids[..., None])[..., 0]
    for row in (ids, ids[0].to(torch.uint8).numpy()):
        found = mba.log_likelihood(model, row).per_base
        torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-4)
        embedded = mba.embed(model, row, pool="none")
        assert embedded[0].shape == (30, 16)


def test_a_model_of_classes_learns_them(tmp_path, monkeypatch):
    """Each held-out recording is most probable as one of its own class, and less so without a class."""
    monkeypatch.setattr(fit, "_CLASS_ROWS", 2)
    batches = []
    monkeypatch.setattr(steps, "class_worth", lambda *given: batches.extend(given[1]) or class_worth(*given))
    draws = np.random.default_rng(0)
    for word, step in (("low", 0.1), ("high", 0.9), ("middle", 0.35)):
        (tmp_path / "tones" / word).mkdir(parents=True)
        for number in range(8):
            tone = 0.5 * np.sin(step * np.arange(240) + draws.uniform(0, 2 * np.pi))
            soundfile.write(tmp_path / "tones" / word / f"{number}.wav", tone, 16_000)
    keys = ["data.start=token", "model.classes=folders", "model.d_model=16", "model.num_layers=1", "train.lr=1e-2"]
    keys += ["data.valid_fraction=0.15", "data.test_fraction=0.15", "train.steps=40", "train.validate_every=40"]
    keys += ["train.length=256", "train.tokens_per_step=1536", "train.length_warmup=[]", "train.listen=0"]
    config = load_config("audio/tiny", [f"data.path={tmp_path / 'tones'}", *keys])
    train(config, tmp_path / "run", Session("cpu", quiet=True))
    with (tmp_path / "run" / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert (float(last["class_nats"]) > 0, float(last["class_named"])) == (True, 1)
    # The three validation recordings are in the order of their folders; it was measured on two, spread over them.
    assert [class_of(batch["tokens"][:, 0], 257).tolist() for batch in batches] == [[1, 3]]
    model = mba.load(tmp_path / "run")
    assert model.classes == ("high", "low", "middle")
    for word in model.classes:
        sound, _ = soundfile.read(tmp_path / "tones" / word / "7.wav", dtype="float32")
        found = {name: float(mba.log_likelihood(model.of_class(name), sound).total) for name in model.classes}
        assert max(found, key=lambda name: found[name]) == word
        assert found[word] > float(mba.log_likelihood(model, sound).total)
