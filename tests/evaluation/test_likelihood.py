"""evaluate_likelihood against sums done by hand with a model of known probabilities."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.evaluation.likelihood import Likelihood, evaluate_likelihood
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig


class Output(NamedTuple):
    logits: Tensor | None
    loss_sum: Tensor | None
    num_scored: Tensor | None
    state: Any

    @property
    def count(self) -> Tensor | None:  # type: ignore[override]
        return self.num_scored


class Bigram(nn.Module):
    """p(next | this) from a table; notes how it was called."""

    def __init__(self, symbols: int = 5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(symbols, symbols, generator=generator))
        self.calls: list[dict[str, Any]] = []

    def forward(self, tokens: Tensor, state: Any = None, *, targets: Tensor, logits: str = "all") -> Output:
        self.calls.append(
            {
                "rows": len(tokens),
                "training": self.training,
                "inference": torch.is_inference_mode_enabled(),
                "autocast": torch.is_autocast_enabled("cpu"),
                "logits": logits,
                "state": state,
            }
        )
        log_p = self.table.log_softmax(-1)[tokens]
        loss = nn.functional.nll_loss(log_p.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
        return Output(None, loss, (targets != -100).sum(), None)


def batches(with_group: bool = True) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for rows, length, group in ((3, 7, ["a", "b", "a"]), (2, 4, ["b", "b"]), (1, 9, ["c"])):
        tokens = torch.randint(0, 5, (rows, length), generator=generator)
        targets = torch.randint(0, 5, (rows, length), generator=generator)
        targets[torch.rand(rows, length, generator=generator) < 0.3] = -100
        made.append({"tokens": tokens, "targets": targets} | ({"group": group} if with_group else {}))
    return made


def by_hand(model: Bigram, data: list[dict[str, Any]]) -> dict[str, tuple[float, int]]:
    p = model.table.detach().double().softmax(-1)
    sums: dict[str, tuple[float, int]] = {}
    for batch in data:
        for tokens, targets, group in zip(batch["tokens"], batch["targets"], batch["group"], strict=True):
            nats, count = sums.get(group, (0.0, 0))
            for token, target in zip(tokens.tolist(), targets.tolist(), strict=True):
                if target != -100:
                    nats, count = nats - math.log(p[token, target]), count + 1
            sums[group] = nats, count
    return sums


def test_evaluate_likelihood_sums() -> None:
    model = Bigram()
    expected = by_hand(model, batches())
    found = evaluate_likelihood(model, batches())
    assert {name: group.count for name, group in found.groups.items()} == {n: c for n, (_, c) in expected.items()}
    for name, (nats, _) in expected.items():
        assert found.groups[name].nats == pytest.approx(nats, rel=1e-6)
    assert found.count == sum(c for _, c in expected.values())
    assert found.nats == pytest.approx(sum(n for n, _ in expected.values()), rel=1e-6)
    ungrouped = evaluate_likelihood(model, batches(with_group=False))
    assert not ungrouped.groups
    assert (ungrouped.nats, ungrouped.count) == (pytest.approx(found.nats, rel=1e-6), found.count)


def test_evaluate_likelihood_numbered_groups() -> None:
    data = batches()
    data[0]["group"] = torch.tensor([4, 5, 4])
    data[1]["group"] = torch.tensor([5, 5])
    data[2]["group"] = "c"
    expected = evaluate_likelihood(Bigram(), batches())
    found = evaluate_likelihood(Bigram(), data)
    assert {"a": found.groups["4"], "b": found.groups["5"], "c": found.groups["c"]} == dict(expected.groups)
    data[0]["group"] = torch.tensor([4, 5])
    with pytest.raises(ValueError, match="3 rows but 2 group names"):
        evaluate_likelihood(Bigram(), data)


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_likelihood_mode(training: bool) -> None:
    model = Bigram().train(training)
    evaluate_likelihood(model, batches())
    assert model.training is training
    assert all(not call["training"] and call["inference"] for call in model.calls)
    assert all(call["logits"] == "none" and call["state"] is None for call in model.calls)
    assert sum(call["rows"] for call in model.calls) == 6


def test_evaluate_likelihood_restores_mode_after_failure() -> None:
    model = Bigram().train()
    with pytest.raises(IndexError):
        evaluate_likelihood(model, [{"tokens": torch.tensor([[9]]), "targets": torch.tensor([[0]])}])
    assert model.training


@pytest.mark.parametrize(("precision", "narrow"), [("fp32", False), ("auto", False), ("bf16", True)])
def test_evaluate_likelihood_precision(precision: str, narrow: bool) -> None:
    model = Bigram()
    evaluate_likelihood(model, batches(), "cpu", precision)
    assert {call["autocast"] for call in model.calls} == {narrow}


def test_evaluate_likelihood_bad_precision() -> None:
    with pytest.raises(InputError, match="'half'; choose auto, fp32 or bf16"):
        evaluate_likelihood(Bigram(), batches(), "cpu", "half")


def test_evaluate_likelihood_nothing_scored() -> None:
    nothing = {"tokens": torch.zeros(1, 3, dtype=torch.long), "targets": torch.full((1, 3), -100)}
    for data in ([], [nothing]):
        with pytest.raises(InputError, match="no symbol to score"):
            evaluate_likelihood(Bigram(), data)


def test_evaluate_likelihood_accumulates_in_fp64() -> None:
    """A running sum in fp32 would lose the small terms."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, tokens: Tensor, *, targets: Tensor, logits: str) -> Output:
            self.calls += 1
            return Output(None, torch.tensor(2.0**25 if self.calls == 1 else 1.0), torch.tensor(1), None)

    row = {"tokens": torch.zeros(1, 1, dtype=torch.long), "targets": torch.zeros(1, 1, dtype=torch.long)}
    assert evaluate_likelihood(Fixed(), [row] * 101).nats == 2.0**25 + 100


def test_evaluate_likelihood_progress() -> None:
    seen: list[tuple[int, int | None]] = []
    evaluate_likelihood(Bigram(), batches(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    evaluate_likelihood(Bigram(), iter(batches()), progress=lambda done, total: seen.append((done, total)))
    assert seen[3:] == [(1, None), (2, None), (3, None)]


def test_likelihood_units() -> None:
    uniform = Likelihood(10 * math.log(4), 10, {"g": Likelihood(1.0, 2)})
    assert uniform.nats_per_base == pytest.approx(math.log(4))
    assert uniform.bits_per_base == pytest.approx(2)
    assert uniform.perplexity == pytest.approx(4)
    as_dict = json.loads(json.dumps(uniform.to_dict()))
    assert as_dict["count"] == 10
    assert as_dict["groups"]["g"]["nats_per_base"] == 0.5
    assert math.isnan(Likelihood(0.0, 0).perplexity)


def test_long_windows_go_through_in_pieces(monkeypatch) -> None:
    model = build_model(ModelConfig(d_model=8, num_layers=2, vocab_size=12), seed=0).double()
    longest = []
    model.register_forward_pre_hook(lambda module, inputs: longest.append(inputs[0].numel()))
    generator = torch.Generator().manual_seed(0)
    symbols = torch.randint(7, 11, (2, 20_001), generator=generator)
    targets = symbols[:, 1:].clone()
    targets[0, 11:500] = -100
    with torch.no_grad():
        whole = model(symbols[:, :-1], targets=targets, logits="none")
    longest.clear()
    found = evaluate_likelihood(model, [{"tokens": symbols[:, :-1], "targets": targets}])
    assert found.count == int(whole.count)
    assert found.nats == pytest.approx(float(whole.loss_sum), rel=1e-9)
    assert max(longest) <= 2**14
    assert len(longest) == 3


@pytest.mark.parametrize(("rows", "length", "passes"), [(40, 1000, 3), (3, 8192, 2), (2, 8192, 1), (20_000, 3, 3)])
def test_batches_of_many_positions_are_cut(rows: int, length: int, passes: int) -> None:
    """By rows times length, and not by the length alone; the state is carried, so nothing changes."""
    model = build_model(ModelConfig(d_model=4, num_layers=1, vocab_size=12), seed=0)
    sizes = []
    model.register_forward_pre_hook(lambda module, inputs: sizes.append(tuple(inputs[0].shape)))
    generator = torch.Generator().manual_seed(0)
    symbols = torch.randint(7, 11, (rows, length + 1), generator=generator)
    with torch.no_grad():
        whole = model(symbols[:, :-1], targets=symbols[:, 1:], logits="none")
    sizes.clear()
    found = evaluate_likelihood(model, [{"tokens": symbols[:, :-1], "targets": symbols[:, 1:]}])
    assert found.count == rows * length
    assert found.nats == pytest.approx(float(whole.loss_sum), rel=1e-5)
    assert len(sizes) == passes
    assert all(r * l <= max(2**14, rows) for r, l in sizes)


def test_a_model_without_a_constant_state_takes_long_windows_whole() -> None:
    model = Bigram()
    tokens = torch.zeros(2, 10_000, dtype=torch.long)
    found = evaluate_likelihood(model, [{"tokens": tokens, "targets": tokens}])
    assert [call["rows"] for call in model.calls] == [2]
    assert found.count == 20_000
