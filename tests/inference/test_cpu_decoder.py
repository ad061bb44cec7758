"""Decoding in NumPy equals the model's own steps: values and states of every kind of layer, long samples, any phase."""

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map

from mamba_bio_audio.inference import generate as module
from mamba_bio_audio.inference import paths
from mamba_bio_audio.inference.cpu_decoder import CpuDecoder, unsupported_reason
from mamba_bio_audio.inference.decoding import prefill, steps
from mamba_bio_audio.inference.generate import generate, sampling_path
from mamba_bio_audio.inference.uniforms import uniforms
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.unet_config import UNetConfig


def lively(config, dtype=torch.float64, noise=0.1) -> nn.Module:
    """A model none of whose parameters is at its initial value, such as a bias of zeros."""
    model = build_model(config, seed=0).eval().to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=dtype), alpha=noise)
    return model


def isotropic(vocab=12, **ssm) -> ModelConfig:
    return ModelConfig(d_model=8, num_layers=2, vocab_size=vocab, ssm={"d_state": 4, **ssm})


def unet(**options) -> UNetConfig:
    return UNetConfig(
        **{"d_model": 8, "num_layers": 2, "pools": (3, 2), "vocab_size": 20, "ssm": {"d_state": 4}} | options
    )


LAYERS = [
    isotropic(complex=complex, selective=selective, **biases)
    for complex in (False, True)
    for selective in (True, False, "dt", "bc")
    for biases in ({"proj_bias": True, "conv_bias": False}, {"d_conv": 2})
]
UNETS = [unet(mixer=mixer, down_blocks=down) for mixer in ("mamba", "s4d") for down in (True, False)]


def both(model, rows, draws, last, state, **options):
    """What the model's own steps give and what the decoder gives."""
    choice = module._Choice.check(
        model,
        options.get("temperature", 1.0),
        options.get("top_k"),
        options.get("top_p"),
        range(1, model.model_config.vocab_size - 1),
        None,
    )
    assert unsupported_reason(model, rows) is None
    with torch.inference_mode():
        decoder = CpuDecoder(model, rows, choice.allowed, choice.temperature, choice.rule)
        return steps(model, choice.next, last, state, draws), decoder(last, state, draws)


@pytest.mark.parametrize("config", LAYERS + UNETS)
@pytest.mark.parametrize("rows", [1, 3])
def test_steps_and_states_equal_the_models_own(config, rows) -> None:
    """From the start and then from the state of the step before, at several phases of the pools."""
    model = lively(config)
    generator = torch.Generator().manual_seed(2)
    last, state = torch.randint(0, 12, (rows, 1), generator=generator), None
    for count in (1, 7, 10):
        draws = torch.rand(count, rows, dtype=torch.float64, generator=generator)
        before = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, state)
        expected, found = both(model, rows, draws, last, state)
        assert torch.equal(expected[0], found[0])
        torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-12)
        (leaves, structure), (others, same) = tree_flatten(expected[2]), tree_flatten(found[2])
        assert structure == same
        for leaf, other in zip(leaves, others, strict=True):
            torch.testing.assert_close(other, leaf, rtol=1e-12, atol=1e-12)
        # The state that was passed in is nobody else's to change.
        for leaf, other in zip(tree_flatten(before)[0], tree_flatten(state)[0], strict=True):
            assert torch.equal(leaf, other) if isinstance(leaf, torch.Tensor) else leaf == other
        last, state = found[0][-1][:, None], found[2]


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 0.3}, {"top_k": 3}, {"top_p": 0.6}])
def test_choices_equal_the_models_own(options) -> None:
    draws = torch.from_numpy(uniforms(3, range(4), 0, 50).T.copy())
    last = torch.tensor([[1], [2], [3], [4]])
    expected, found = both(lively(isotropic()), 4, draws, last, None, **options)
    assert torch.equal(expected[0], found[0])
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("config", "temperature"),
    [(isotropic(), 0), (isotropic(), 1), (unet(mixer="s4d", num_layers=1, pools=(4,)), 0)],
    ids=["isotropic-greedy", "isotropic-drawn", "unet-greedy"],
)
def test_long_samples_in_fp32_equal_the_models_own(config, temperature) -> None:
    """4,096 symbols, greedy and drawn; log-probabilities within 1e-4."""
    model = lively(config, torch.float32, noise=0.3)
    draws = torch.from_numpy(uniforms(1, range(1), 0, 4096).T.copy())
    expected, found = both(model, 1, draws, torch.tensor([[5]]), None, temperature=temperature)
    assert torch.equal(expected[0], found[0])
    assert (expected[1] - found[1]).abs().max() < 1e-4
    assert len(expected[0].unique()) > 1


def test_a_draw_close_to_a_boundary_is_all_that_parts_samples_in_fp32() -> None:
    """The running sums of both differ by less than 1e-5, so only a draw that close to one of them may differ."""
    model = lively(isotropic(), torch.float32, noise=0.3)
    allowed, drawn = torch.arange(12), torch.randint(0, 12, (64, 1), generator=torch.Generator().manual_seed(4))
    sums: dict[str, list[torch.Tensor]] = {"own": [], "decoder": []}

    def watch(name):
        def rule(logits, draws):
            sums[name].append(logits.double().softmax(1).cumsum(1))
            return drawn[len(sums[name]) - 1], torch.zeros(1)

        return rule

    draws = torch.zeros(64, 1, dtype=torch.float64)
    with torch.inference_mode():
        steps(model, watch("own"), drawn[:1], None, draws)
        CpuDecoder(model, 1, allowed, 1.0, watch("decoder"))(drawn[:1], None, draws)
    assert (torch.cat(sums["own"]) - torch.cat(sums["decoder"])).abs().max() < 1e-5


@pytest.mark.parametrize("prompt", range(7))
def test_generate_takes_it_from_any_phase(monkeypatch, prompt) -> None:
    model = lively(unet(mixer="s4d"))
    levels = torch.arange(prompt) + 3
    draws = torch.from_numpy(uniforms(5, range(2), 0, 40).T.copy())
    choice = module._Choice.check(model, 1.0, None, None, None, None)
    found = generate(model, length=40, num_samples=2, prompt=levels, seed=5)
    with torch.inference_mode():
        if not prompt:
            first, draws = choice.first(draws[0])[0][:, None], draws[1:]
            expected = torch.cat([first.T, steps(model, choice.next, first, None, draws)[0]])
        else:
            state = prefill(model, levels[None, :-1].expand(2, -1), None) if prompt > 1 else None
            expected = steps(model, choice.next, levels[-1:].expand(2, 1), state, draws)[0]
    assert torch.equal(found, expected.T)

    def never(*inputs):
        raise AssertionError("the model's own step ran")

    monkeypatch.setattr(paths, "steps", never)
    assert torch.equal(generate(model, length=40, num_samples=2, prompt=levels, seed=5), found)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (isotropic(precise=True), "precise"),
        (isotropic(exact_zoh=True), "exact_zoh"),
        (ModelConfig(d_model=16, num_layers=1, mixer="transformer", vocab_size=12), "Mamba"),
    ],
)
def test_other_layers_take_their_own_step(config, reason) -> None:
    model = build_model(config, seed=0).eval()
    assert reason in unsupported_reason(model, 1)
    assert generate(model, length=5, prompt=[1]).shape == (1, 5)


def test_the_callers_autocast_changes_nothing() -> None:
    model = build_model(isotropic(), seed=0).eval()
    found = generate(model, length=50, prompt=[1])
    with torch.autocast("cpu"):
        assert sampling_path(model, rows=1) == "numpy"
        for path in ("numpy", "steps", None):
            assert torch.equal(generate(model, length=50, prompt=[1], path=path), found)


def test_other_precisions_hooks_and_many_rows_take_the_models_own_step(monkeypatch) -> None:
    model = build_model(isotropic(), seed=0).eval()
    assert unsupported_reason(model, 1) is None
    with model.layers[0].register_forward_hook(lambda *inputs: None):
        assert "hooks" in unsupported_reason(model, 1)
    for threads, reason in ((1, None), (2, "so many rows that PyTorch on several cores is faster")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert unsupported_reason(model, 1 << 20) == reason
        assert unsupported_reason(model, 1) is None
    assert "fp32" in unsupported_reason(model.bfloat16(), 1)
    assert unsupported_reason(nn.Linear(1, 1), 1) is not None


@pytest.mark.parametrize("config", [isotropic(), unet()])
def test_it_goes_on_behind_steps_in_bf16_as_the_models_own_step(config) -> None:
    model = build_model(config, seed=0).eval()
    first = next(module.generate_blocks(model, length=5, prompt=[1, 2, 3], precision="bf16"))
    last, place = first.tokens[:, -1:].long(), module.Place(0, 5, first.state)
    found, expected = (
        next(module.generate_blocks(model, length=9, prompt=last, place=place, path=path))
        for path in ("numpy", "steps")
    )
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.log_likelihood, expected.log_likelihood, rtol=0, atol=1e-4)


def test_weights_that_are_not_numbers_are_reported() -> None:
    model = build_model(isotropic(), seed=0).eval()
    with torch.no_grad():
        model.layers[0].mixer.D[0] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN"):
        generate(model, length=5, prompt=[1])
