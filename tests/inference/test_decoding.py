"""Fixed steps: what a CUDA graph would replay equals the plain loop, at every phase of the pools."""

import pytest
import torch
from torch import nn

from mamba_bio_audio.inference import generate as module
from mamba_bio_audio.inference.decoding import FixedSteps, prefill, stretch
from mamba_bio_audio.inference.generate import generate, generate_blocks
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.contract import ModelOutput
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec


@pytest.fixture(scope="module")
def unet():
    model = build_model(UNetConfig(d_model=8, num_layers=1, pools=(3, 2), mixer="s4d", vocab_size=256), seed=0).eval()
    model.codec = AudioCodec()
    return model


@pytest.mark.parametrize("prompt", [None, 0, 1, 2, 3, 4, 5, 6])
def test_fixed_steps_equal_the_loop(unet, prompt) -> None:
    """By replaying the same function on the CPU, from every phase; the stretch is 18, so steps are left over too."""
    assert stretch(unet) == 18
    levels = None if prompt is None else list(range(100, 100 + prompt))
    state, last = None, torch.full((2, 1), 128)
    if levels:
        state = prefill(unet, torch.tensor([[128, *levels[:-1]]] * 2), None)
        last = torch.tensor([[levels[-1]]] * 2)
    draws = torch.from_numpy(module.uniforms(5, range(2), 0, 54).T.copy())
    choice = module._Choice.check(unet, 1.0, None, None, None, None)
    with torch.inference_mode():
        fixed = FixedSteps(unet, choice.next, last, state or unet.init_state(2), 18)
        found = [fixed(draws[low : low + 18]) for low in (0, 18, 36)]
    tokens = generate(unet, length=54, num_samples=2, prompt=levels, seed=5)
    assert torch.equal(torch.cat([symbols for symbols, _ in found]).T, tokens)
    assert fixed.last.flatten().tolist() == tokens[:, -1].tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["unet", "isotropic"])
def test_graphs_equal_single_launches(unet, kind) -> None:
    model = unet
    if kind == "isotropic":
        model = build_model(ModelConfig(d_model=16, num_layers=2, vocab_size=12), seed=0)
    model = model.cuda().eval()
    options = {"length": 2100, "num_samples": 3, "prompt": [7, 8, 9, 10], "seed": 3, "allowed": range(7, 11)}
    plain = list(generate_blocks(model, **options, cuda_graph=False))
    graph = list(generate_blocks(model, **options))
    try:
        for a, b in zip(plain, graph, strict=True):
            assert torch.equal(a.tokens, b.tokens)
            torch.testing.assert_close(a.log_likelihood, b.log_likelihood)
        # Behind a block, with its state, it goes on to the same end.
        first = graph[0]
        rest = generate_blocks(
            model,
            **options | {"length": 2100 - first.tokens.shape[1], "prompt": first.tokens[:, -1:].long()},
            place=module.Place(position=first.tokens.shape[1], state=first.state),
        )
        assert torch.equal(torch.cat([b.tokens for b in rest], 1), torch.cat([b.tokens for b in graph[1:]], 1))
    finally:
        unet.cpu()


def test_audio_begins_with_the_zero_level_by_itself(unet) -> None:
    tokens = generate(unet, length=5, num_samples=1, seed=1)
    silent = generate(unet, length=5, num_samples=1, prompt=torch.zeros(0, dtype=torch.long), seed=1)
    assert torch.equal(tokens, silent)
    # The likelihood of the first symbol is the model's after the zero level.
    block = next(generate_blocks(unet, length=1, seed=1))
    expected = unet(torch.tensor([[128]])).logits[0, -1].double().log_softmax(0)[tokens[0, 0]]
    assert block.log_likelihood.item() == pytest.approx(expected.item())


def test_long_prompts_go_through_in_pieces(unet, monkeypatch) -> None:
    prompt = torch.arange(100) % 250
    whole = generate(unet, length=20, prompt=prompt, seed=2)
    monkeypatch.setattr("mamba_bio_audio.inference.decoding._PREFILL", 7)
    shapes = []
    with unet.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape))):
        assert torch.equal(generate(unet, length=20, prompt=prompt, seed=2), whole)
    pieces = [shape for shape in shapes if shape[1] > 1]
    # Of the start and the prompt all but the last symbol, which the first step takes.
    assert pieces == [*[(1, 7)] * 14, (1, 2)]


class Counting(nn.Module):
    """Its state counts what it was given."""

    def __init__(self, log):
        super().__init__()
        self.log = log

    def forward(self, last, state, logits):
        self.log.append("step")
        return ModelOutput(torch.zeros(len(last), 1, 4), None, None, state + last.as_subclass(torch.Tensor).float())


def test_graphs_are_recorded_after_two_stretches_beside_from_where_the_model_stands(recorded_cuda, on_gpu):
    """Compiling and the libraries' first calls happen before the graph, and neither they nor it move the state."""
    log = recorded_cuda.log

    def choose(logits, draws):
        return torch.full((2,), 3), torch.zeros(2)

    class Watched(FixedSteps):
        def _capture(self):
            here = (self.last, *self.leaves)
            recorded_cuda.at_capture = lambda: found.extend(t.as_subclass(torch.Tensor).clone() for t in here)
            super()._capture()

    last, state, found = torch.tensor([[1], [2]]).as_subclass(on_gpu), torch.tensor([[5.0], [7.0]]), []
    fixed = Watched(Counting(log), choose, last, state, 3)
    stretch_of = ["step"] * 3
    assert log == [
        "beside waits for main", "on beside", *stretch_of, *stretch_of, "off beside", "main waits for beside",
        "graph, thread_local, collection", *stretch_of, "end of graph",
    ]  # fmt: skip
    for now, before in zip(found, (last, state), strict=True):
        assert torch.equal(now, before.as_subclass(torch.Tensor))
    log.clear()
    draws = torch.rand(3, 2, dtype=torch.float64)
    fixed(draws)
    assert log == ["replay"]
    assert torch.equal(fixed.draws, draws)
