"""The language model against published sizes, its own definition and Hugging Face's Mamba."""

import math

import pytest
import torch
import torch.nn.functional as F

from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.isotropic import set_dropout
from mamba_bio_audio.run.config import load_config

# Gu & Dao 2023, figure 5 left (read from the vector graphics) and the formula of one block.
PAPER_SIZES = {
    "250k": 262_720,
    "700k": 684_192,
    "1.4m": 1_401_472,
    "3.5m": 3_527_232,
    "7m": 7_012_608,
    "19m": 19_291_008,
    "41m": 40_694_272,
}


def small(**changes) -> ModelConfig:
    return ModelConfig(**({"d_model": 24, "num_layers": 3, "vocab_size": 12} | changes))


@pytest.mark.parametrize(("name", "parameters"), PAPER_SIZES.items())
def test_parameter_counts_are_the_published_ones(name, parameters, tmp_path):
    config = load_config(f"dna/hg38@{name}", [f"data.path={tmp_path}"]).model
    with torch.device("meta"):
        model = build_model(config.model_copy(update={"vocab_size": 12}))
    assert model.num_parameters() == parameters


def test_initialisation_is_that_of_the_released_code():
    model = build_model(small(d_model=64, num_layers=8), seed=3)
    mixer = model.layers[2].mixer
    assert model.embedding.weight.shape == (16, 64)
    assert model.lm_head.weight is model.embedding.weight
    assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(mixer.A_log, torch.log(torch.arange(1.0, 17)).expand(128, 16))
    assert torch.equal(mixer.D, torch.ones(128))
    dt = F.softplus(mixer.dt_proj.bias)
    assert dt.min() >= 1e-3 * 0.999
    assert dt.max() <= 0.1 * 1.001
    # Log-uniform: the median is the geometric mean, far from the arithmetic one (0.05).
    assert dt.median().item() == pytest.approx(0.01, rel=0.5)
    assert mixer.dt_proj.weight.abs().max() <= mixer.dt_rank**-0.5
    # kaiming_uniform(a=sqrt 5) of fan-in 128 is uniform within 1/sqrt(128), then one residual per layer.
    bound = 128**-0.5 / math.sqrt(8)
    assert bound * 0.95 < mixer.out_proj.weight.abs().max().item() <= bound
    assert not mixer.conv1d.bias.any()


def test_complex_initialisation():
    mixer = build_model(small(mixer="mamba-complex", ssm={"complex_init": "pi n"})).layers[0].mixer
    A = mixer.weights().A()
    assert A.shape == (48, 16, 2)
    assert torch.allclose(A[..., 0], torch.full((48, 16), -0.5))
    assert torch.allclose(A[0, :, 1], math.pi * torch.arange(16.0))
    assert mixer.x_proj.out_features == mixer.dt_rank + 4 * 16


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = build_model(small(), seed=1)
    assert torch.equal(torch.rand(3), expected)
    two = build_model(small(), seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.embedding.weight, build_model(small(), seed=2).embedding.weight)


def test_recurrence_parameters_are_never_narrowed():
    model = build_model(small(mixer="mamba-complex"), seed=0)
    before = model.layers[0].mixer.A_log.detach().clone()
    model.to(torch.bfloat16)
    mixer = model.layers[0].mixer
    assert mixer.in_proj.weight.dtype == torch.bfloat16
    for parameter in (mixer.A_log, mixer.A_imag, mixer.D, mixer.dt_proj.bias):
        assert parameter.dtype == torch.float32
    assert torch.equal(mixer.A_log, before)
    out = model(torch.tensor([[7, 8, 9]]))
    assert out.state[0].ssm.dtype == torch.float32
    assert model.double().layers[0].mixer.A_log.dtype == torch.float64


def test_loss_is_the_sum_over_scored_positions():
    model = build_model(small(), seed=0)
    tokens = torch.randint(7, 11, (2, 9))
    targets = torch.randint(7, 11, (2, 9))
    targets[0, 4:] = -100
    out = model(tokens, targets=targets)
    expected = F.cross_entropy(out.logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100)
    assert out.count.item() == 13
    assert out.loss_sum.item() == pytest.approx(expected.item(), rel=1e-6)
    assert model(tokens, targets=targets, logits="none").logits is None
    assert torch.allclose(model(tokens, logits="last").logits, out.logits[:, -1:], atol=1e-6)


@pytest.mark.parametrize("recompute", ["none", "layer"])
def test_dropout_zeroes_outputs_of_layers_in_training_alone(recompute):
    model = build_model(ModelConfig(d_model=8, num_layers=2, vocab_size=12), seed=0).double()
    tokens = torch.randint(7, 11, (2, 9), generator=torch.Generator().manual_seed(0))
    plain = model.eval()(tokens).logits
    set_dropout(model, 0.5)
    model.recompute = recompute
    assert torch.equal(model(tokens).logits, plain)
    seen = []
    for block in model.layers:
        block.register_forward_hook(lambda block, given, out: seen.append(out[0].detach()))
    torch.manual_seed(3)
    loss = model.train()(tokens, targets=tokens.roll(-1, 1)).loss_sum
    loss.backward()
    for output in seen[:2]:
        assert 0.3 < (output == 0).double().mean() < 0.7
    # Backward ran the layers again with the same draws.
    grads = [p.grad for p in model.parameters()]
    model.zero_grad()
    model.recompute = "none"
    torch.manual_seed(3)
    model(tokens, targets=tokens.roll(-1, 1)).loss_sum.backward()
    for own, parameter in zip(grads, model.parameters(), strict=True):
        torch.testing.assert_close(own, parameter.grad)


def test_recompute_gives_the_same_gradients_and_keeps_less():
    tokens = torch.randint(7, 11, (2, 64))
    kept, grads = {}, {}
    for recompute in ("none", "layer"):
        model = build_model(small(), seed=0)
        model.recompute = recompute
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = model(tokens, targets=tokens, logits="none").loss_sum
        kept[recompute] = sum(sizes)
        loss.backward()
        grads[recompute] = [p.grad for p in model.parameters()]
    for a, b in zip(grads["none"], grads["layer"], strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    assert kept["layer"] < kept["none"] / 4


def test_overfits_one_batch():
    model = build_model(small(), seed=0)
    tokens = torch.randint(7, 11, (2, 33), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        out = model(tokens[:, :-1], targets=tokens[:, 1:], logits="none")
        loss = out.loss_sum / out.count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.fixture(scope="module")
def hugging_face():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=16,
        hidden_size=32,
        num_hidden_layers=3,
        state_size=16,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = transformers.MambaForCausalLM(config).eval()
    # The released initialisation leaves little for a comparison to see; make every parameter matter.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("length", [1, 7, 64, 257])
@pytest.mark.parametrize("tied", [True, False])
def test_equals_hugging_face_in_both_directions(hugging_face, length, tied, tmp_path):
    import mamba_bio_audio as mba
    from mamba_bio_audio.run.export import export

    theirs = hugging_face
    if not tied:
        config = type(theirs.config).from_dict(theirs.config.to_dict() | {"tie_word_embeddings": False})
        torch.manual_seed(1)
        theirs = type(theirs)(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = mba.load(tmp_path / "theirs")
    assert ours.codec is None
    tokens = torch.randint(16, (2, length), generator=torch.Generator().manual_seed(length))

    def check(a: torch.Tensor, b: torch.Tensor) -> None:
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()

    with torch.no_grad():
        expected = theirs(tokens, use_cache=False).logits
        check(ours(tokens).logits, expected)
        export(ours, tmp_path / "ours")
        again, report = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        check(again.eval()(tokens, use_cache=False).logits, expected)
        check(mba.load(tmp_path / "ours")(tokens).logits, expected)
