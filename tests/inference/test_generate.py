"""Sampling against known transition tables, brute-force truncation and its own options."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy.stats import chi2, chisquare
from torch import Tensor, nn

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference import generate as module
from mamba_bio_audio.inference.generate import Place, generate, generate_blocks, sampling_path
from mamba_bio_audio.inference.paths import Stepper
from mamba_bio_audio.inference.uniforms import uniforms
from mamba_bio_audio.kernels.decode.lost import mark


class Output(NamedTuple):
    logits: Tensor
    state: Any


class Chain(nn.Module):
    """Second-order chain: logits depend on the last two symbols; the state is the last but one."""

    streaming = "constant"

    def __init__(self, vocabulary: int = 6, seed: int = 0, scale: float = 1.5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        table = scale * torch.randn(vocabulary, vocabulary, vocabulary, generator=generator)
        self.table = nn.Parameter(table.double())
        self.vocab_size = vocabulary
        self.calls: list[tuple[tuple[int, ...], int]] = []

    def forward(self, tokens: Tensor, state: Any = None, *, logits: str = "all") -> Output:
        assert logits == "last"
        assert not self.training
        if state is None:
            state = torch.zeros(len(tokens), dtype=torch.long)
        self.calls.append((tuple(tokens.shape), state.numel()))
        before = torch.cat([state[:, None], tokens[:, :-1]], 1)
        return Output(self.table[before[:, -1:], tokens[:, -1:]], tokens[:, -1])


class Codec:
    vocab_size = 6
    sample_ids = (1, 2, 3, 4)

    def check_prompt(self, text: str) -> None:
        assert set(text) <= set(" ACGTN")

    def encode(self, text: str) -> np.ndarray:
        return np.array([" ACGTN".index(c) for c in text], np.uint8)


def with_codec(model: Chain) -> Chain:
    model.codec = Codec()  # type: ignore[assignment]
    return model


def probabilities(
    row: np.ndarray,
    allowed: list[int],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None = None,
) -> np.ndarray:
    """Sampling distribution over `allowed`, one symbol after the other."""
    p = np.exp(row[allowed] / temperature)
    p /= p.sum()
    ranked = sorted(range(len(p)), key=lambda i: (-p[i], i))
    kept = ranked[: top_k or len(p)]
    if top_p is not None:
        mass = sum(p[i] for i in kept)
        chosen, total = [], 0.0
        for i in kept:
            chosen.append(i)
            total += p[i] / mass
            if total >= top_p:
                break
        kept = chosen
    kept = [i for i in kept if p[i] >= (min_p or 0) * p.max()]
    out = np.zeros(len(p))
    out[kept] = p[kept] / p[kept].sum()
    return out


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p", "allowed"),
    [
        (1.0, None, None, None, None),
        (0.7, None, None, None, [4, 1, 2]),
        (2.5, 3, None, None, None),
        (1.0, None, 0.6, None, None),
        (1.3, 4, 0.8, None, [0, 2, 3, 4, 5]),
        (1.0, 99, 1.0, 0.0, None),
        (1.2, None, None, 0.3, None),
        (1.5, 5, 0.95, 0.2, [0, 2, 3, 4, 5]),
    ],
)
def test_generate_distribution(
    temperature: float, top_k: int | None, top_p: float | None, min_p: float | None, allowed: list[int] | None
) -> None:
    """Symbols after each context follow the truncated distribution, and nothing else ever comes."""
    model = Chain()
    options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "allowed": allowed}
    options["min_p"] = min_p
    prompt = [3, 1]
    tokens = generate(model, length=3, num_samples=20_000, prompt=prompt, seed=5, **options)
    assert tokens.shape == (20_000, 3)
    assert tokens.dtype == torch.int64
    ids = allowed or list(range(6))
    table = model.table.detach().numpy()
    checked = 0
    for context in [(3, 1), *((1, x) for x in ids), *((x, y) for x in ids for y in ids)]:
        if context == (3, 1):
            following = tokens[:, 0]
        elif context[0] == 1 and (tokens[:, 0] == context[1]).sum() > 200:
            following = tokens[tokens[:, 0] == context[1], 1]
        else:
            following = tokens[(tokens[:, 0] == context[0]) & (tokens[:, 1] == context[1]), 2]
        if len(following) < 500:
            continue
        p = probabilities(table[context], ids, temperature, top_k, top_p, min_p)
        counts = np.array([(following == i).sum() for i in ids])
        assert counts.sum() == len(following)
        assert (counts[p == 0] == 0).all()
        live = p > 0
        if live.sum() > 1:
            assert chisquare(counts[live], p[live] * len(following)).pvalue > 1e-5
        checked += 1
    assert checked >= 4


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 4, "top_p": 0.9}], ids=str)
def test_a_million_draws_follow_the_chain(options: dict[str, Any]) -> None:
    """After each pair of symbols, all 10^6 draws."""
    model, rows = Chain(), 1000
    tokens = generate(model, length=1000, num_samples=rows, prompt=[3, 1], seed=7, **options).numpy()
    tokens = np.concatenate([np.tile([3, 1], (rows, 1)), tokens], 1)
    counts = np.zeros((6, 6, 6))
    np.add.at(counts, (tokens[:, :-2], tokens[:, 1:-1], tokens[:, 2:]), 1)
    assert counts.sum() == 10**6
    table, distance, freedom = model.table.detach().numpy(), 0.0, 0
    given = options.get("temperature", 1.0), options.get("top_k"), options.get("top_p")
    for x, y in np.ndindex(6, 6):
        if counts[x, y].sum() < 1000:
            continue
        p = probabilities(table[x, y], list(range(6)), *given)
        assert (counts[x, y][p == 0] == 0).all()
        live = p > 0
        distance += chisquare(counts[x, y][live], p[live] * counts[x, y].sum()).statistic
        freedom += live.sum() - 1
    assert freedom > 40
    assert chi2.sf(distance, freedom) > 1e-5


def test_generate_top_k_ties_and_greedy() -> None:
    """Equal logits: the first of `allowed` are kept, in its order."""
    model = Chain(scale=0.0)
    prompt = [0]
    assert set(generate(model, length=200, prompt=prompt, top_k=2, allowed=[5, 3, 1]).flatten().tolist()) == {
        5,
        3,
    }
    assert set(generate(model, length=200, prompt=prompt, top_p=0.5, allowed=[5, 3, 1, 0]).flatten().tolist()) == {5, 3}
    assert generate(model, length=3, prompt=prompt, temperature=0, allowed=[4, 2]).tolist() == [[4, 4, 4]]


def test_generate_many_ties() -> None:
    """More symbols than an unstable sort keeps in order by luck."""
    model = Chain(vocabulary=60, scale=0.0)
    assert set(generate(model, length=100, prompt=[0], top_k=2).flatten().tolist()) == {0, 1}


def test_inverse_at_the_edges() -> None:
    """A draw on a boundary belongs to the symbol above it; symbols of probability zero never come."""
    weights = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0], dtype=torch.float64)
    draws = torch.tensor([0.0, 0.25 - 2**-53, 0.25, 1 - 2**-53], dtype=torch.float64)
    assert module.inverse(weights.expand(4, -1), draws).tolist() == [1, 1, 3, 3]


def test_generate_greedy_is_argmax() -> None:
    model = Chain(seed=2)
    table = model.table.detach()
    expected, context = [], [2, 5]
    for _ in range(30):
        context.append(int(table[context[-2], context[-1]].argmax()))
        expected.append(context[-1])
    assert generate(model, length=30, prompt=[2, 5], temperature=0).tolist() == [expected]
    # A temperature next to zero is the same, without overflow.
    assert generate(model, length=30, prompt=[2, 5], temperature=1e-310).tolist() == [expected]
    assert generate(model, length=30, prompt=[2, 5], top_k=1).tolist() == [expected]
    assert generate(model, length=30, prompt=[2, 5], top_p=1e-9).tolist() == [expected]


def test_generate_independent_of_batch() -> None:
    model = Chain()
    whole = generate(model, length=50, num_samples=7, seed=3)
    assert len({tuple(row) for row in whole.tolist()}) == 7
    for batch_size in (1, 2, 5, 100):
        assert torch.equal(generate(model, length=50, num_samples=7, seed=3, batch_size=batch_size), whole)
    assert torch.equal(generate(model, length=50, num_samples=3, seed=3), whole[:3])
    assert torch.equal(generate(model, length=20, num_samples=7, seed=3), whole[:, :20])
    assert not torch.equal(generate(model, length=50, num_samples=7, seed=4), whole)


def test_generate_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Chain()
    whole = generate(model, length=50, num_samples=3, seed=3)
    monkeypatch.setattr(module, "_BLOCK", 7)
    assert torch.equal(generate(model, length=50, num_samples=3, seed=3), whole)


def test_generate_blocks_are_queued_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the next block is on its way while the caller has this one; nothing else differs."""
    monkeypatch.setattr(module, "_BLOCK", 16)
    options: dict[str, Any] = {"length": 40, "num_samples": 3, "batch_size": 2, "seed": 3}
    plain = list(generate_blocks(Chain(), **options))
    monkeypatch.setattr(module, "queues", lambda device: True)
    model = Chain().train()
    made, found = [], []
    for block in generate_blocks(model, **options):
        assert model.training
        assert not torch.is_inference_mode_enabled()
        made.append(len(model.calls))
        found.append(block)
    # One call less a batch than symbols: the first one is drawn without.
    assert made == [31, 39, 39, 70, 78, 78]
    for a, b in zip(plain, found, strict=True):
        assert a[:2] == b[:2]
        assert torch.equal(a.tokens, b.tokens)
        assert torch.equal(a.log_likelihood, b.log_likelihood)
        assert torch.equal(a.state, b.state)


def test_generate_queued_blocks_before_a_broken_one_come(monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaking(Chain):
        def forward(self, tokens: Tensor, state: Any = None, *, logits: str = "all") -> Output:
            logits_, after = super().forward(tokens, state, logits=logits)
            return Output(logits_ * (broken if len(self.calls) > 20 else 1), after)

    monkeypatch.setattr(module, "_BLOCK", 16)
    monkeypatch.setattr(module, "queues", lambda device: True)
    broken = math.nan
    blocks = generate_blocks(Breaking(), length=64)
    assert next(blocks).position == 0
    with pytest.raises(FloatingPointError, match="positions 16 to 31"):
        next(blocks)


def test_generate_programs_that_lost_each_other_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch that failed says so by log-probabilities of +inf."""

    def advance(last: Tensor, state: Any, draws: Tensor) -> tuple[Tensor, Tensor, Any]:
        scores = torch.zeros(draws.shape, dtype=torch.float64)
        mark(scores, torch.tensor(len(draws) < 8))
        return torch.zeros(draws.shape, dtype=torch.long), scores, None

    monkeypatch.setattr(Stepper, "advance", lambda self, rows: advance)
    assert generate(Chain(), length=8, prompt=[0]).tolist() == [[0] * 8]
    with pytest.raises(RuntimeError, match="waited in vain"):
        generate(Chain(), length=7, prompt=[0])


def test_generate_rows_with_own_prompts() -> None:
    model = Chain()
    prompts = torch.tensor([[0, 1, 2], [3, 4, 5], [2, 2, 2], [5, 0, 5]])
    tokens = generate(model, length=40, num_samples=4, prompt=prompts, seed=1, batch_size=3)
    for row in range(4):
        (alone,) = generate_blocks(model, length=40, prompt=prompts[row], seed=1, place=Place(row=row))
        assert torch.equal(alone.tokens[0].long(), tokens[row])
    shared = generate(model, length=40, num_samples=4, prompt=prompts[1].numpy(), seed=1)
    assert torch.equal(shared[1], tokens[1])


def test_generate_prefill_once_then_single_steps() -> None:
    model = Chain()
    generate(model, length=5, num_samples=2, prompt=[1, 2, 3, 4])
    assert [shape for shape, _ in model.calls] == [(2, 3)] + [(2, 1)] * 5


def test_generate_prefill_equals_steps() -> None:
    """What was generated, given as the prompt, leads to the same continuation: resume is exact."""
    model = Chain()
    whole = generate(model, length=41, num_samples=2, prompt=[1, 2], seed=9)
    for cut in (1, 2, 3, 6, 40):
        prompt = torch.cat([torch.tensor([[1, 2]] * 2), whole[:, :cut]], 1)
        (rest,) = generate_blocks(
            model, length=41 - cut, num_samples=2, prompt=prompt, seed=9, place=Place(position=cut)
        )
        assert torch.equal(rest.tokens.long(), whole[:, cut:])
        assert (rest.row, rest.position) == (0, cut)


def test_generate_first_symbol() -> None:
    model = Chain()
    drawn = generate(model, length=1, num_samples=8000, initial=[0.5, 0, 0.2, 0.3], allowed=[5, 0, 2, 1], temperature=0)
    counts = [(drawn == i).sum().item() for i in (5, 0, 2, 1)]
    assert counts[1] == 0
    assert chisquare([counts[0], *counts[2:]], [4000, 1600, 2400]).pvalue > 1e-5
    assert not model.calls
    uniform = generate(model, length=1, num_samples=8000)
    assert chisquare(np.bincount(uniform[:, 0], minlength=6)).pvalue > 1e-5
    # An empty prompt is none.
    assert torch.equal(generate(model, length=9, prompt=[]), generate(model, length=9))


def test_generate_with_codec() -> None:
    model = with_codec(Chain())
    tokens = generate(model, length=400, num_samples=2, prompt="ACGT", seed=2)
    assert set(tokens.flatten().tolist()) == {1, 2, 3, 4}
    assert torch.equal(tokens, generate(model, length=400, num_samples=2, prompt=[1, 2, 3, 4], seed=2))
    # The prompt may hold what is never sampled, and the caller may allow more.
    assert set(generate(model, length=400, prompt="NN", allowed=range(6)).flatten().tolist()) == set(range(6))


def test_generate_log_likelihood() -> None:
    """Untempered, restricted to `allowed`, whatever the options do to the draw."""
    model = Chain()
    allowed, initial = [1, 2, 4], [0.2, 0.3, 0.5]
    (block,) = generate_blocks(
        model, length=30, num_samples=2, allowed=allowed, initial=initial, temperature=0.5, top_k=2, seed=1
    )
    table = model.table.detach().numpy()
    for row in range(2):
        before, last = 0, int(block.tokens[row, 0])
        expected = [math.log(initial[allowed.index(last)])]
        for symbol in block.tokens[row, 1:].tolist():
            p = probabilities(table[before, last], allowed, 1.0, None, None)
            expected.append(math.log(p[allowed.index(symbol)]))
            before, last = last, symbol
        np.testing.assert_allclose(block.log_likelihood[row].numpy(), expected, rtol=1e-12)


def test_generate_constant_state_and_streamed_blocks() -> None:
    """A long run: calls and state stay at length 1, blocks come as they are made and are bytes."""
    model = Chain()
    seen: list[tuple[int, int, int]] = []
    joined: list[Tensor] = []

    def keep(block: module.Block) -> None:
        assert block.tokens.dtype == torch.uint8
        assert len(model.calls) <= block.position + block.tokens.shape[1]
        seen.append((block.row, block.position, block.tokens.shape[1]))
        joined.append(block.tokens)

    tokens = generate(model, length=2500, on_tokens=keep)
    assert {call for call in model.calls} == {((1, 1), 1)}
    assert seen == [(0, 0, 1024), (0, 1024, 1024), (0, 2048, 452)]
    assert torch.equal(torch.cat(joined, 1).long(), tokens)


def test_generate_large_vocabulary() -> None:
    tokens = generate(Chain(vocabulary=7), length=20, prompt=[1], allowed=[6, 2])
    assert set(tokens.flatten().tolist()) <= {6, 2}
    wide = Chain(vocabulary=2)
    wide.table = nn.Parameter(torch.zeros(1, 1, 300, dtype=torch.float64).expand(300, 300, 300))
    wide.vocab_size = 300
    (block,) = generate_blocks(wide, length=200, prompt=[1])
    assert block.tokens.dtype == torch.int32
    assert block.tokens.max() > 255


def test_generate_mode_restored_and_no_gradient() -> None:
    model = Chain().train()
    for block in generate_blocks(model, length=3000):
        # Between blocks the caller's code finds its own mode.
        assert model.training
        assert not torch.is_inference_mode_enabled()
        assert not block.log_likelihood.requires_grad
        block.tokens.add_(0)
    assert generate(model, length=0, num_samples=3).shape == (3, 0)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_generate_broken_model_is_an_error(broken: float) -> None:
    model = Chain()
    with torch.no_grad():
        model.table[:] = broken
    for temperature in (0.0, 1.0):
        with pytest.raises(FloatingPointError, match="positions 0 to 4"):
            generate(model, length=5, prompt=[0], temperature=temperature)


def test_generate_impossible_symbol() -> None:
    """A logit of -inf is a probability of zero, not an error."""
    model = Chain()
    with torch.no_grad():
        model.table[..., 2] = -math.inf
    tokens = generate(model, length=500, prompt=[0])
    assert set(tokens.flatten().tolist()) == {0, 1, 3, 4, 5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": -1}, "length is -1"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_p": math.nan}, "top_p is nan"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"min_p": 1.0}, "min_p is 1.0"),
        ({"min_p": math.nan}, "min_p is nan"),
        ({"allowed": []}, "allowed is"),
        ({"allowed": [1, 1]}, "distinct, non-negative ids"),
        ({"allowed": [6]}, "below 6"),
        ({"allowed": [-1]}, "allowed is"),
        ({"initial": [1.0]}, "each of the 6"),
        ({"initial": [0.5] * 6}, "summing to 1"),
        ({"initial": [math.nan] * 6}, "initial is"),
        ({"initial": [2.0, -1.0, 0, 0, 0, 0]}, "initial is"),
        ({"precision": "fp16"}, "precision is 'fp16'"),
        ({"path": ""}, "path is ''"),
        ({"prompt": "ACGT"}, "no codec"),
        ({"prompt": [6]}, "valid ids are 0 to 5"),
        ({"prompt": [-1]}, "ids -1 to -1"),
        ({"prompt": [0.5]}, "integer ids"),
        ({"prompt": [[[1]]]}, "shape"),
        ({"prompt": [[1, 2], [3, 4]], "num_samples": 3}, "2 rows, but num_samples is 3"),
    ],
)
def test_generate_bad_options(options: dict[str, Any], message: str) -> None:
    model = Chain()
    with pytest.raises(InputError, match=message):
        generate(model, **{"length": 3, **options})
    assert not model.calls


def test_generate_bad_model() -> None:
    model = Chain()
    model.streaming = "none"
    with pytest.raises(InputError, match="cannot carry a state"):
        generate(model, length=3)
    nameless = Chain()
    del nameless.vocab_size
    with pytest.raises(InputError, match="pass `allowed`"):
        generate(nameless, length=3)
    nameless.model_config = SimpleNamespace(vocab_size=6)  # type: ignore[assignment]
    assert generate(nameless, length=3).shape == (1, 3)


def test_sampling_path_refuses_what_sampling_refuses() -> None:
    with pytest.raises(InputError, match="precision is 'fp16'"):
        sampling_path(Chain(), rows=1, precision="fp16")  # type: ignore[arg-type]


def test_generate_blocks_checks_before_iteration() -> None:
    with pytest.raises(InputError, match="top_k"):
        generate_blocks(Chain(), length=3, top_k=0)
    with pytest.raises(InputError, match="a position after the first"):
        generate_blocks(Chain(), length=3, place=Place(position=2))


def test_uniforms_depend_on_seed_row_position_only() -> None:
    whole = uniforms(7, range(5), 0, 100)
    assert whole.min() >= 0
    assert whole.max() < 1
    for start in (0, 1, 2, 3, 4, 5, 50, 99):
        np.testing.assert_array_equal(uniforms(7, [3, 1], start, 100 - start), whole[[3, 1], start:])
    assert len(np.unique(whole)) == whole.size
    assert not np.isin(uniforms(8, range(5), 0, 100), whole).any()
    # A fixed value: samples stay the same from release to release.
    philox = np.random.Philox(key=np.array([7, 2], np.uint64))
    np.testing.assert_array_equal(whole[2], (philox.random_raw(100) >> np.uint64(11)) / 2**53)
    assert uniforms(2**64 - 1, [2**40], 2**50 + 1, 3).shape == (1, 3)


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    values = uniforms(0, range(200), 0, 1000)
    assert chisquare(np.histogram(values, 64, (0, 1))[0]).pvalue > 1e-5
    # Neighbouring rows and positions: correlation of 2e5 independent pairs is within 5 / sqrt(2e5).
    centred = values - 0.5
    for a, b in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1])):
        assert abs((a * b).mean() * 12) < 5 / math.sqrt(a.size)


def test_generate_language_model() -> None:
    """The real model, fp64: prefill and steps agree symbol for symbol, and with one full forward pass."""
    from mamba_bio_audio.layers.config import SsmConfig
    from mamba_bio_audio.models.build import build_model
    from mamba_bio_audio.models.config import ModelConfig

    config = ModelConfig(d_model=16, num_layers=2, ssm=SsmConfig(d_state=4), vocab_size=12)
    model = build_model(config, seed=0).double().eval()
    with torch.no_grad():
        model.embedding.weight.mul_(6)
    prompt = torch.tensor([7, 8, 10, 9, 9])
    blocks = list(generate_blocks(model, length=40, num_samples=3, prompt=prompt, allowed=[7, 8, 9, 10], seed=4))
    tokens = torch.cat([block.tokens for block in blocks], 1).long()
    assert torch.equal(tokens, generate(model, length=40, num_samples=3, prompt=prompt, allowed=[7, 8, 9, 10], seed=4))
    sequence = torch.cat([prompt.expand(3, -1), tokens], 1)
    with torch.no_grad():
        log_p = model(sequence[:, :-1]).logits[:, 4:, 7:11].log_softmax(-1)
    expected = log_p.gather(-1, (tokens - 7)[..., None])[..., 0]
    torch.testing.assert_close(blocks[0].log_likelihood, expected, rtol=1e-9, atol=1e-9)
    drawn = torch.from_numpy(uniforms(4, range(3), 0, 40))
    index = (log_p.exp().cumsum(-1) <= drawn[..., None]).sum(-1)
    assert torch.equal(index + 7, tokens)
    assert len(tokens.unique()) == 4
