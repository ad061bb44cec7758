"""Recorded training steps: on a CPU the recorded function runs again, on a GPU the graph is replayed."""

import gc
from pathlib import Path

import pytest
import torch
from torch import nn

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.build import build
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.contract import ModelOutput
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.resume import changes
from mamba_bio_audio.training.config import TrainConfig
from mamba_bio_audio.training.graphed import GraphedChunks, GraphedLoss
from mamba_bio_audio.training.module import LanguageModelModule
from mamba_bio_audio.training.optim import build_optimizer

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


ATTENTION = [{}, {"mixer": "transformer", "options": {"heads": 2}}, {}]
MODELS = {
    "language": ModelConfig(d_model=16, num_layers=2, vocab_size=12),
    "complex": ModelConfig(d_model=16, num_layers=2, vocab_size=12, mixer="mamba-complex"),
    "unet": UNetConfig(d_model=16, num_layers=1, pools=(2,), vocab_size=12, stages=ATTENTION),
    "classifier": ModelConfig(d_model=16, num_layers=2, vocab_size=12),
}


def make(device, kind="language"):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    head = HeadConfig(pool="mean", classes=tuple("abcdefghijkl")) if kind == "classifier" else None
    return build(MODELS[kind], head, seed=0).to(device)


def batches(count, device, length=40):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(7, 11, (3, length), generator=generator).to(device) for _ in range(count)]


def train(model, loss_of, data):
    """Losses of steps with accumulation over two batches, clipped, and the weights they end in."""
    config = TrainConfig(steps=9, length=40, tokens_per_step=120, lr=1e-2)
    optimizer = build_optimizer(model, config)
    losses = []
    for number, tokens in enumerate(data):
        targets = tokens.roll(-1, 1)
        if model.labels:
            targets[:, :-1] = -100
        loss, count = loss_of(tokens, targets)
        (loss / count / 2).backward()
        losses.append(loss.detach())
        if number % 2:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    return torch.stack(losses), [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("device", DEVICES)
def test_trains_as_without(device, kind):
    plain, graphed = make(device, kind), make(device, kind)
    data = [*batches(6, device), *batches(4, device, length=24), *batches(2, device)]

    def plainly(model, tokens, targets):
        out = model(tokens, targets=targets, logits="none")
        return out.loss_sum, out.count

    step, replayed = GraphedLoss(graphed), []

    def recorded(tokens, targets):
        found = step(tokens, targets)
        replayed.append(step.recorded is not None)
        return found

    expected = train(plain, lambda tokens, targets: plainly(plain, tokens, targets), data)
    losses, weights = train(graphed, recorded, data)
    # The first batch of every stretch of one shape is not.
    assert replayed == [False, *[True] * 5, False, *[True] * 3, False, True]
    torch.testing.assert_close(losses, expected[0])
    # One weight of the U-Net has a gradient near zero, and the optimiser's steps do not know how small one was.
    close = {"rtol": 1e-4, "atol": 1e-4} if kind == "unet" else {}
    torch.testing.assert_close(weights, expected[1], **close)


@pytest.mark.parametrize("device", DEVICES)
def test_parameters_that_moved_are_recorded_again(device):
    model = make(device)
    step, (tokens, *_) = GraphedLoss(model), batches(1, device)
    targets = tokens.roll(-1, 1)
    for _ in range(2):
        found = step(tokens, targets)
    model.lm_head.weight.data = model.lm_head.weight.data * 2
    step(tokens, targets)
    assert step.recorded is None
    expected = model(tokens, targets=targets, logits="none")
    again = step(tokens, targets)
    assert again[0] != found[0]
    torch.testing.assert_close(again[0], expected.loss_sum)
    assert again[1] == expected.count


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("device", DEVICES)
def test_first_batches_round_as_recorded_ones(device, kind):
    """Or a run that is resumed, whose first batch is not recorded, would go its own way."""
    model = make(device, kind)
    tokens, *_ = batches(1, device)
    targets = tokens.roll(-1, 1)
    if kind == "classifier":
        targets[:, :-1] = -100
    step = GraphedLoss(model)

    def gradients():
        with torch.autocast(device, torch.bfloat16):
            loss, _ = step(tokens, targets)
            loss = loss / 120
        return torch.autograd.grad(loss, list(step.parameters.values()), allow_unused=True)

    first, again, replayed = gradients(), gradients(), gradients()
    for a, b, c in zip(first, again, replayed, strict=True):
        assert a is b is c is None or (torch.equal(a, b) and torch.equal(b, c))


class Linear(nn.Module):
    """The smallest model; tells when it runs, and whether autocast would keep what it casts."""

    def __init__(self, log):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.log = log

    def forward(self, tokens, targets, logits):
        self.log.append(f"run, cache {'on' if torch.is_autocast_cache_enabled() else 'off'}")
        loss = (self.weight * tokens.as_subclass(torch.Tensor)).sum()
        return ModelOutput(None, loss, torch.tensor(tokens.numel()), None)


def test_a_step_runs_once_beside_before_it_is_recorded(recorded_cuda, on_gpu):
    """Libraries take their memory in the first run on a stream; what that run left is given back before the graph begins."""
    log = recorded_cuda.log
    step = GraphedLoss(Linear(log))
    recorded_cuda.at_capture = lambda: log.append(f"holds {step.loss_sum}, {step.gradients}")
    tokens = torch.arange(6).view(2, 3).as_subclass(on_gpu)
    with torch.autocast("cpu", torch.bfloat16):
        assert step(tokens, tokens)[0] == 30
        assert log == ["run, cache off"]
        log.clear()
        step(tokens, tokens)
        assert log == [
            "beside waits for main", "on beside", "run, cache off", "off beside", "main waits for beside", "empty cache",
            "cuBLAS begins anew", "graph, thread_local, no collection", "holds None, None", "run, cache off", "end of graph",
            "cuBLAS begins anew", "replay",
        ]  # fmt: skip
        assert gc.isenabled()
        log.clear()
        loss, count = step(tokens + 1, tokens)
    assert log == ["replay"]
    assert torch.equal(step.tokens, tokens + 1), "a replay reads what is in place"
    assert count == 6
    loss.backward()
    assert step.model.weight.grad == 15


@pytest.mark.parametrize(
    ("taken", "most", "free", "reserved", "fits"),
    [
        (100, 400, 331, 100, True),
        (100, 401, 999, 100, False),  # a step took more than 40 % of 1,000
        (100, 400, 329, 100, False),  # 1.1 x 300 would be needed beside what is there
        (100, 400, 200, 231, True),  # what torch holds and does not use counts as free
        (100, 400, 200, 229, False),
    ],
)
def test_what_fits_the_memory(monkeypatch, taken, most, free, reserved, fits):
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: taken)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: most)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    gpu, model = torch.device("cuda", 0), nn.Linear(1, 1)
    assert GraphedLoss(model, most_memory=0.4)._fits(gpu) is fits
    assert GraphedLoss(model)._fits(gpu)
    assert GraphedLoss(model, most_memory=0.4)._fits(torch.device("cpu"))


STREAMED = {
    "language": (MODELS["language"], None),
    "complex": (MODELS["complex"], None),
    "unet": (UNetConfig(d_model=16, num_layers=1, pools=(2,), vocab_size=12), None),
    "classifier": (MODELS["language"], HeadConfig(pool="mean", classes=tuple("abcdefghijkl"))),
}


@pytest.mark.parametrize("kind", STREAMED)
@pytest.mark.parametrize("device", DEVICES)
def test_recorded_chunks_are_the_whole(device, kind):
    """Losses and gradients of several steps, with weights that change between them."""
    config, head = STREAMED[kind]
    make(device)  # skips
    model = build(config, head, seed=0).to(device)
    step = GraphedChunks(model, 10)
    for number, tokens in enumerate([*batches(3, device), *batches(2, device, length=20)]):
        targets = tokens.roll(-1, 1)
        if head is not None:
            targets[:, :-1] = -100
        whole = model(tokens, targets=targets, logits="none")
        parameters = list(model.parameters())
        expected = torch.autograd.grad(whole.loss_sum * 0.37, parameters)
        loss, count = step(tokens, targets)
        assert (step.recorded is not None) == (number in (1, 2, 4))
        assert count == whole.count
        torch.testing.assert_close(loss, whole.loss_sum)
        found = torch.autograd.grad(loss * 0.37, parameters)
        for a, b in zip(found, expected, strict=True):
            assert (a - b).norm() <= 1e-5 * b.norm() + 1e-7
        with torch.no_grad():
            torch._foreach_mul_(parameters, 1.01)


@pytest.mark.parametrize("device", DEVICES)
def test_chunks_under_autocast_round_alike_from_the_first_step(device):
    model = make(device)
    tokens, *_ = batches(1, device)
    targets = tokens.roll(-1, 1)
    step = GraphedChunks(model, 20)

    def gradients():
        with torch.autocast(device, torch.bfloat16):
            loss, _ = step(tokens, targets)
        return torch.autograd.grad(loss, list(step.parameters.values()))

    first, again, replayed = gradients(), gradients(), gradients()
    for a, b, c in zip(first, again, replayed, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(b, c)


def test_two_graphs_are_replayed_chunk_by_chunk(recorded_cuda, on_gpu):
    log = recorded_cuda.log
    model = make("cpu")
    step, (tokens,) = GraphedChunks(model, 10), batches(1, "cpu")
    plain = step(tokens, tokens)[0]
    given = tokens.as_subclass(on_gpu)
    step.tokens, step.targets = given, given
    step.recorded = step._record()
    assert log.count("graph, thread_local, no collection") == 2
    log.clear()
    step.recorded()
    assert log == ["replay"] * (3 + 4)
    assert plain > 0


@pytest.mark.parametrize("device", DEVICES)
def test_the_module_streams_by_recorded_chunks(device, monkeypatch):
    """Where chunks are equal and all rows go at once; else as without."""
    model = make(device)
    module = LanguageModelModule(
        model, TrainConfig(steps=9, length=40, tokens_per_step=120, lr=1e-2, stream_chunk=10, micro_batch=3)
    ).to(device)
    if device == "cpu":
        monkeypatch.setattr(LanguageModelModule, "_records", True)
    ran = []
    run = GraphedChunks.run
    monkeypatch.setattr(GraphedChunks, "run", lambda self: (ran.append(self.tokens.shape), run(self)))
    for tokens, recorded in ((batches(1, device)[0], True), (batches(1, device, length=35)[0], False)):
        module.training_step({"tokens": tokens, "targets": tokens}, 0).backward()
        assert bool(ran) == recorded
        ran.clear()
    with torch.no_grad():
        module.loss({"tokens": tokens[:, :30], "targets": tokens[:, :30]})
    assert not ran
    module.forget_recorded()
    assert "_graphed_chunks" not in module.__dict__


def test_gradients_are_taken_outside_of_autocast():
    """As everywhere else: the head multiplies in fp32 on purpose."""
    model = make("cpu", "classifier")
    tokens, *_ = batches(1, "cpu")
    targets = tokens.clone()
    targets[:, :-1] = -100
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(tokens, targets=targets, logits="none").loss_sum
        loss, _ = GraphedLoss(model)(tokens, targets)
    weight = model.head.weight
    torch.testing.assert_close(
        torch.autograd.grad(loss, weight), torch.autograd.grad(expected, weight), rtol=1e-6, atol=1e-7
    )


def test_frozen_weights_that_moved_are_noticed():
    model = make("cpu", "classifier")
    frozen = model.backbone.embedding.weight.requires_grad_(False)
    step, (tokens, *_) = GraphedLoss(model), batches(1, "cpu")
    for _ in range(2):
        step(tokens, tokens)
    assert step.recorded is not None
    frozen.data = frozen.data * 2
    step(tokens, tokens)
    assert step.recorded is None


def test_frozen_and_unused_parameters_get_no_gradient():
    model = make("cpu")
    model.layers[0].norm.weight.requires_grad_(False)
    model.unused = nn.Parameter(torch.zeros(3))
    step, (tokens, *_) = GraphedLoss(model), batches(1, "cpu")
    for _ in range(2):
        found = step(tokens, tokens)
    found[0].backward()
    assert model.layers[0].norm.weight.grad is None
    assert model.unused.grad is None
    assert model.layers[1].norm.weight.grad.abs().sum() > 0


def test_going_back_after_the_next_step_is_an_error():
    step, (a, b, c) = GraphedLoss(make("cpu")), batches(3, "cpu")
    step(a, a)
    first = step(b, b)
    step(c, c)
    with pytest.raises(RuntimeError, match="go back before it"):
        first[0].backward()


def test_what_it_refuses():
    with pytest.raises(InputError, match="dropout"):
        GraphedLoss(nn.Sequential(nn.Dropout(0.1)))
    GraphedLoss(nn.Sequential(nn.Dropout(0.0)))
    with pytest.raises(InputError, match="dropout"):
        GraphedChunks(nn.Sequential(nn.Dropout(0.1)), 8)
    for other in ("train.truncate_chunk=64", "train.devices=2"):
        with pytest.raises(InputError, match="cuda_graph=true requires steps on one device"):
            load_config("dna/tiny", ["data.path=.", "train.cuda_graph=true", other])


def test_what_auto_records():
    def recorded(model=None, kind="cuda", **changes):
        keys = {"steps": 9, "length": 64, "tokens_per_step": 256, "lr": 1e-2} | changes
        module = LanguageModelModule(model or make("cpu"), TrainConfig(**keys))
        module._device = torch.device(kind, 0)
        assert module._graphed_chunks is None or module._graphed_chunks.chunk == 16
        assert module._graphed is None or (module._graphed_chunks is None) == ("stream_chunk" not in changes)
        return module._graphed

    assert recorded().most_memory < 1
    assert recorded(stream_chunk=16).most_memory < 1
    assert recorded(cuda_graph=True).most_memory == 1
    assert recorded(kind="cpu") is None
    for settings in ({"cuda_graph": False}, {"stream_chunk": 15}, {"truncate_chunk": 16}, {"devices": 2}):
        assert recorded(**settings) is None
    assert recorded(nn.Sequential(nn.Dropout(0.1))) is None


@pytest.mark.parametrize("device", DEVICES)
def test_the_module_records_what_takes_little_memory(device):
    model = make(device)
    module = LanguageModelModule(model, config := TrainConfig(steps=9, length=40, tokens_per_step=120, lr=1e-2)).to(
        device
    )
    assert config.cuda_graph == "auto"
    for tokens in batches(3, device):
        module.training_step({"tokens": tokens, "targets": tokens}, 0).backward()
    if device == "cpu":
        assert module._graphed is None
        return
    assert module._graphed.recorded is not None
    # The key holds on, the memory does not allow it.
    module._graphed.recorded, module._graphed.most_memory = None, 0.0
    loss, _ = module._graphed(tokens, tokens)
    assert module._graphed.recorded is None
    assert loss > 0
    module.forget_recorded()
    assert "_graphed" not in module.__dict__


def test_runs_from_before_it_was_the_default_go_on():
    now = load_config("dna/tiny", ["data.path=.", "model.vocab_size=12"])
    before = load_config("dna/tiny", ["data.path=.", "model.vocab_size=12", "train.cuda_graph=false"])
    assert changes(now, before, Path("run")) == {}


def test_a_graph_needs_as_much_memory_again_as_a_step(monkeypatch):
    """Free are 900 of 8,000 bytes and 100 that are reserved and not taken."""
    step = GraphedLoss(nn.Linear(2, 2), most_memory=0.5)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1000)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1100)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (900, 8000))
    for most, fits in ((1000, True), (1900, True), (1920, False), (4100, False)):
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device, most=most: most)
        assert step._fits(torch.device("cuda")) is fits


CLASSES = UNetConfig(d_model=16, num_layers=1, pools=(2,), vocab_size=256, inputs=257, classes=("a", "b"))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["language", "classifier", "classes"])
def test_two_trainings_are_equal_to_the_bit(kind, monkeypatch):
    """On a GPU too, also over more positions than PyTorch adds up one by one in the gradient of an embedding."""
    monkeypatch.setitem(MODELS, "classes", CLASSES)

    def trained():
        model = make("cuda", kind)
        step, class_ = GraphedLoss(model), 257 * (kind == "classes")
        data = batches(6, "cuda", length=4096)
        return train(model, lambda tokens, targets: step(tokens + class_, targets), data)

    (losses, weights), (again, its_weights) = trained(), trained()
    assert torch.equal(losses, again)
    assert all(map(torch.equal, weights, its_weights))
