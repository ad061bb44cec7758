"""A sequence over several processes gives the loss and the gradients of one process (gloo on the CPU)."""

import itertools
import queue
import socket
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.layers.config import SsmConfig
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.heads import Classifier
from mamba_bio_audio.models.streamed import Chunking, streamed_loss
from mamba_bio_audio.models.unet import UNetModel
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.training import parallel
from mamba_bio_audio.training.parallel import Relay, Visit, is_main_process, make_relay

LENGTH = 49


def language_model(mixer: str = "mamba"):
    built = build_model(
        ModelConfig(d_model=12, num_layers=3, vocab_size=12, mixer=mixer, ssm=SsmConfig(d_state=4)), seed=0
    )
    torch.nn.init.normal_(built.embedding.weight, generator=torch.Generator().manual_seed(0))
    return built.double()


def mixed():
    """Layers of several kinds, with MLPs, which have no state."""
    options = {"transformer": {"window": 6, "heads": 2}, "h3": {"d_state": 4, "d_shift": 5}}
    built = build_model(
        ModelConfig(d_model=12, num_layers=3, vocab_size=12, pattern="transformer,mamba,h3", options=options), seed=0
    )
    torch.nn.init.normal_(built.embedding.weight, generator=torch.Generator().manual_seed(0))
    return built.double()


def classifier(pool: str):
    torch.manual_seed(0)
    return Classifier(language_model(), HeadConfig(pool=pool, classes=("a", "b", "c"))).double()


def frozen_below():
    built = language_model()
    for frozen in (built.embedding, built.layers[0], built.lm_head):
        frozen.requires_grad_(False)
    return built


def frozen_classifier():
    torch.manual_seed(0)
    return Classifier(language_model(), HeadConfig(pool="mean", classes=("a", "b", "c"), freeze=True)).double()


def batch(classes: bool):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(12, (3, LENGTH + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    targets[0, 5:20] = -100
    if classes:
        targets[:] = -100
        targets[torch.arange(3), torch.tensor([48, 20, 47])] = torch.tensor([0, 2, 1])
    return tokens[:, :-1], targets


CASES = {
    "one span each": (language_model, {"chunk": 100}),
    "chunks, rows apart": (language_model, {"chunk": 7, "rows": 2}),
    "single positions": (language_model, {"chunk": 1}),
    "offloaded": (language_model, {"chunk": 10, "offload": True}),
    "recomputed": (language_model, {"chunk": 10, "recompute": "layer"}),
    "packed": (language_model, {"chunk": 10, "reset": True}),
    "complex": (lambda: language_model("mamba-complex"), {"chunk": 10}),
    "mixed": (mixed, {"chunk": 10}),
    "mixed, packed": (mixed, {"chunk": 10, "reset": True}),
    "classifier, mean": (lambda: classifier("mean"), {"chunk": 10}),
    "classifier, max": (lambda: classifier("max"), {"chunk": 10}),
    "classifier, last": (lambda: classifier("last"), {"chunk": 100}),
    "classifier, packed": (lambda: classifier("mean"), {"chunk": 10, "reset": True}),
    # Nothing on the first rank's first span needs a gradient, and yet it must take those that it is sent.
    "classifier, frozen": (frozen_classifier, {"chunk": 10}),
    "frozen below": (frozen_below, {"chunk": 10}),
}


def results(case: str, relay_size: int = 1):
    """Loss, count and gradients of one process; its own share of them when several share the sequence."""
    make, options = CASES[case]
    options = dict(options)
    model = make()
    model.recompute = options.pop("recompute", "none")
    tokens, targets = batch("classifier" in case)
    how = Chunking(options.pop("rows", None), options.pop("offload", False))
    reset = None
    if options.pop("reset", False):
        reset = torch.zeros_like(tokens, dtype=torch.bool)
        reset[0, 16] = reset[1, 24] = reset[2, 25] = True
    if relay_size == 1:
        out = model(tokens, targets=targets, reset=reset, logits="none")
        loss, count = out.loss_sum, out.count
    else:
        relay = make_relay(model, relay_size)
        with torch.no_grad():
            first, _, _ = streamed_loss(model, tokens, targets, reset=reset, relay=relay, how=how, **options)
        loss, count, _ = streamed_loss(model, tokens, targets, reset=reset, relay=relay, how=how, **options)
        assert torch.equal(first, loss.detach())
        assert not relay.pending
    loss.backward()
    # A head without a target on this rank gives zeros or nothing.
    learnt = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in learnt}
    return loss.detach(), count, found


def work(rank: int, size: int, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size, timeout=timedelta(seconds=600)
    )
    for case in CASES if size == 2 else ["chunks, rows apart"]:
        loss, count, gradients = results(case, size)
        for value in (loss, count, *gradients.values()):
            dist.all_reduce(value)
        expected_loss, expected_count, expected = results(case)
        assert count == expected_count, case
        assert torch.allclose(loss, expected_loss, rtol=1e-10), case
        for name, value in expected.items():
            error = (gradients[name] - value).norm() / value.norm()
            assert error <= 1e-10, f"{case}, {name}: {error:.1e}"
    with pytest.raises(InputError, match="keeps a state of its own"):
        make_relay(UNetModel(UNetConfig(d_model=4, num_layers=1, vocab_size=8, pools=[2])), size)
    dist.destroy_process_group()


@pytest.mark.parametrize("size", [2, 3])
def test_equals_one_process(size):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (size, port), nprocs=size)


class Rendezvous:
    """Messages between threads where sending and asking both wait for the other side: the least that a backend can do.

    NCCL is like this once the few messages that it holds are there, and its ranks then do one thing after the other.
    """

    def __init__(self) -> None:
        self.links = defaultdict(queue.Queue)
        self.own = threading.local()

    def get_rank(self):
        return self.own.rank

    def isend(self, buffer, peer, group):
        taken = threading.Event()
        self.links[group, self.own.rank, peer].put((buffer.clone(), taken))
        assert taken.wait(600), f"rank {self.own.rank} waits for rank {peer} to ask"
        return SimpleNamespace(wait=lambda: None)

    def irecv(self, buffer, peer, group):
        found, taken = self.links[group, peer, self.own.rank].get(timeout=600)
        buffer.copy_(found)
        taken.set()
        return SimpleNamespace(wait=lambda: None)


@pytest.mark.parametrize(("size", "rows"), [(2, 3), (3, 2)])
def test_no_rank_waits_for_one_that_waits(size, rows, monkeypatch):
    links = Rendezvous()
    monkeypatch.setattr(parallel, "dist", links)
    tokens, targets = batch(False)
    models = [language_model() for _ in range(size)]  # here: threads share the random generator

    def share(rank: int):
        links.own.rank, model = rank, models[rank]
        relay = Relay(model, list(range(size)), ("within", "around"))
        loss, _, _ = streamed_loss(model, tokens, targets, chunk=4, how=Chunking(rows), relay=relay)
        loss.backward()
        return loss.detach(), [p.grad for p in model.parameters()]

    with ThreadPoolExecutor(size) as threads:
        shares = list(threads.map(share, range(size)))
    model = language_model()
    expected = model(tokens, targets=targets, logits="none").loss_sum
    expected.backward()
    torch.testing.assert_close(sum(loss for loss, _ in shares), expected.detach())
    for i, parameter in enumerate(model.parameters()):
        torch.testing.assert_close(sum(gradients[i] for _, gradients in shares), parameter.grad)


def test_a_layer_that_is_not_called_is_noticed():
    relay = object.__new__(Relay)
    relay.layers = list(language_model().layers)
    visit = Visit(None, None, False)
    visit.ran = {0, 2}
    with pytest.raises(RuntimeError, match="a Block was not called as a module"):
        relay.check(visit)
    visit.ran.add(1)
    relay.check(visit)


def test_spans_of_all_ranks_are_the_sequence():
    for size, length, chunk in itertools.product((2, 3), (3, 48, 49, 50), (1, 7, 100)):
        found = []
        for rank in range(size):
            relay = object.__new__(Relay)
            relay.rank, relay.size = rank, size
            found.append(relay.spans(length, chunk))
        assert len({len(spans) for spans in found}) == 1
        joined = [span for spans in zip(*found, strict=True) for span in spans]
        assert joined[0][0] == 0
        assert joined[-1][1] == length
        assert all(a[1] == b[0] for a, b in itertools.pairwise(joined))
        assert all(1 <= high - low <= chunk + 1 for low, high in joined)
        with pytest.raises(InputError, match="sequence has only 1 positions"):
            relay.spans(1, 4)


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_only_one_process_is_the_main_one(name, monkeypatch):
    for other in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(other, raising=False)
    assert is_main_process()
    monkeypatch.setenv(name, "0")
    assert is_main_process()
    monkeypatch.setenv(name, "1")
    assert not is_main_process()
