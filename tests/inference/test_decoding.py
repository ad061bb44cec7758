"""Steps in fixed places: what CUDA graphs would replay equals the plain loop, at every phase of the pools."""

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from mamba_bio_audio.inference import decoding
from mamba_bio_audio.inference import generate as module
from mamba_bio_audio.inference.decoding import GraphSteps, prefill, steps, stretch
from mamba_bio_audio.inference.generate import generate, generate_blocks
from mamba_bio_audio.inference.uniforms import uniforms
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


@pytest.mark.parametrize("prompt", [0, 1, 2, 3, 4, 5, 6])
def test_graph_steps_equal_the_loop(unet, prompt) -> None:
    """By running the same function on the CPU, from every phase; the stretch is 18, so steps are left over too."""
    assert stretch(unet) == 18
    levels = list(range(100, 100 + prompt))
    state, last = None, torch.full((2, 1), 128)
    if levels:
        state = prefill(unet, torch.tensor([[128, *levels[:-1]]] * 2), None)
        last = torch.tensor([[levels[-1]]] * 2)
    draws = torch.from_numpy(uniforms(5, range(2), 0, 57).T.copy())
    choice = module._Choice.check(unet, 1.0, None, None, None, None)
    with torch.inference_mode():
        expected = steps(unet, choice.next, last, state, draws)
        fixed, found = GraphSteps(unet, choice.next), []
        for low, high in ((0, 40), (40, 41), (41, 57)):
            symbols, scores, state = fixed(last, state, draws[low:high])
            last = symbols[-1][:, None]
            found.append((symbols, scores))
    assert torch.equal(torch.cat([symbols for symbols, _ in found]), expected[0])
    assert torch.equal(torch.cat([scores for _, scores in found]), expected[1])
    for a, b in zip(tree_leaves(state), tree_leaves(expected[2]), strict=True):
        assert a == b if isinstance(a, int) else torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["unet", "mamba", "mamba2", "retnet"])
def test_graphs_equal_single_launches(unet, kind) -> None:
    model = unet
    if kind != "unet":
        model = build_model(ModelConfig(mixer=kind, d_model=16, num_layers=2, vocab_size=12), seed=0)
    model = model.cuda().eval()
    options = {"length": 2100, "num_samples": 3, "prompt": [7, 8, 9, 10], "seed": 3, "allowed": range(7, 11)}
    plain = list(generate_blocks(model, **options, path="steps"))
    graph = list(generate_blocks(model, **options, path="graph"))
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
            path="graph",
        )
        assert torch.equal(torch.cat([b.tokens for b in rest], 1), torch.cat([b.tokens for b in graph[1:]], 1))
    finally:
        unet.cpu()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["unet", "mamba", "mamba2", "retnet"])
def test_graphs_serve_every_block_and_batch_in_bf16(unet, kind) -> None:
    """Nothing that a graph reads is gone behind the block in which it was recorded."""
    model = unet
    if kind != "unet":
        model = build_model(ModelConfig(mixer=kind, d_model=16, num_layers=2, vocab_size=12), seed=0)
    model = model.cuda().eval()
    options = {"length": 1050, "num_samples": 5, "batch_size": 2, "seed": 3, "allowed": range(7, 11)}
    try:
        graph = []
        for block in generate_blocks(model, **options, precision="bf16", path="graph"):
            # What others leave in freed memory.
            torch.full((1 << 22,), float("nan"), device="cuda")
            graph.append(block)
        for a, b in zip(generate_blocks(model, **options, precision="bf16", path="steps"), graph, strict=True):
            assert torch.equal(a.tokens, b.tokens)
            torch.testing.assert_close(a.log_likelihood, b.log_likelihood)
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
    monkeypatch.setattr(decoding, "positions", lambda device: 7)
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


STATE = torch.tensor([[5.0], [7.0]])


@pytest.fixture
def counted(recorded_cuda, on_gpu):
    """Steps of two rows of `Counting` on what says it is a GPU, and their log; (count, state) advances it."""
    model = Counting(recorded_cuda.log)
    graphs = GraphSteps(model, lambda logits, draws: (torch.full((2,), 3), torch.zeros(2)))

    def advance(count, state=STATE):
        recorded_cuda.log.clear()
        last = torch.tensor([[1], [2]]).as_subclass(on_gpu)
        return graphs(last, state.as_subclass(on_gpu), torch.rand(count, 2, dtype=torch.float64).as_subclass(on_gpu))

    return graphs, advance, recorded_cuda


WARM_UP = ["beside waits for main", "on beside", "step", "off beside", "main waits for beside"]


def recording(count):
    graph = ["graph, thread_local, no collection", *["step"] * count, "end of graph"]
    return ["cuBLAS begins anew", *graph, "cuBLAS begins anew", "replay"]


def test_graphs_are_recorded_once_after_one_step_beside_from_where_the_model_stands(counted):
    """Compiling and the libraries' first calls happen before the graph and do not move the state.

    Steps that are left over are one graph of a single step, and a second batch needs nothing new.
    """
    graphs, advance, cuda = counted
    found = []
    cuda.at_capture = lambda: found.extend(t.as_subclass(torch.Tensor).clone() for t in (graphs.last, *graphs.places))
    advance(16 + 3)
    assert cuda.log == [*WARM_UP, *recording(16), *recording(1), "replay", "replay"]
    assert torch.equal(found[0], torch.tensor([[1], [2]]))
    assert torch.equal(found[1], STATE)
    advance(32 + 1, STATE + 1)
    assert cuda.log == ["replay"] * 3


def test_graphs_read_the_draws_and_the_state_of_each_call(counted):
    graphs, advance, _ = counted
    advance(16)
    _, _, state = advance(16, STATE + 10)
    # A replay does nothing here, so the state is the one that was given.
    assert torch.equal(state.as_subclass(torch.Tensor), STATE + 10)
    assert graphs.graphs[(16,)].draws.as_subclass(torch.Tensor).max() > 0


def test_other_rows_and_other_weights_are_recorded_anew(recorded_cuda, on_gpu):
    class Weighted(Counting):
        def __init__(self, log):
            super().__init__(log)
            self.weight = nn.Parameter(torch.ones(1))

    model = Weighted(recorded_cuda.log)
    graphs = GraphSteps(model, lambda logits, draws: (torch.full((len(logits),), 3), torch.zeros(len(logits))))

    def recorded(rows):
        recorded_cuda.log.clear()
        last = torch.ones(rows, 1, dtype=torch.long).as_subclass(on_gpu)
        graphs(last, torch.zeros(rows, 1).as_subclass(on_gpu), torch.rand(16, rows).as_subclass(on_gpu))
        return len([line for line in recorded_cuda.log if line.startswith("graph")])

    assert [recorded(2), recorded(2), recorded(3), recorded(3)] == [1, 0, 1, 0]
    with torch.no_grad():
        model.weight.add_(1)
    assert [recorded(3), recorded(3)] == [1, 0]


def test_autocast_keeps_no_casts_for_graphs_and_what_it_kept_otherwise_stays(unet):
    seen = []
    choice = module._Choice.check(unet, 1.0, None, None, None, None)
    look = unet.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_cache_enabled()))
    with look, torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        GraphSteps(unet, choice.next)(torch.full((2, 1), 128), None, torch.rand(2, 2, dtype=torch.float64))
        assert torch.is_autocast_cache_enabled()
    assert seen
    assert not any(seen)
