"""The same bases under every context: sums and pairing against direct computation."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mamba_bio_audio.evaluation.context import position_sums, summarise, target_nats
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.pipelines.dna.target_blocks import strata


@pytest.fixture(scope="module")
def model():
    built = build_model(ModelConfig(d_model=12, num_layers=2, vocab_size=12), seed=0).double().eval()
    torch.nn.init.normal_(built.embedding.weight, generator=torch.Generator().manual_seed(0))
    return built


def nats_of(model, symbols):
    with torch.no_grad():
        logits = model(symbols[:, :-1]).logits
    return F.cross_entropy(logits.transpose(1, 2), symbols[:, 1:], reduction="none")


@pytest.mark.parametrize("positions", [1, 7, 1000])
@pytest.mark.parametrize("context", [1, 5, 40])
def test_target_nats_are_those_of_one_pass(model, positions, context):
    symbols = torch.randint(7, 11, (3, context + 6), generator=torch.Generator().manual_seed(1))
    found = target_nats(model, symbols, 6, positions=positions, device="cpu", narrow=False)
    assert found == pytest.approx(nats_of(model, symbols)[:, -6:].numpy(), rel=1e-9)


@pytest.mark.parametrize("positions", [4, 22, 1000])
def test_octaves_of_context(model, positions):
    symbols = torch.randint(7, 11, (2, 22), generator=torch.Generator().manual_seed(2))
    targets = symbols[:, 1:].clone()
    targets[0, 3:6] = -100
    nats = nats_of(model, symbols)
    rows = position_sums(
        model, [{"tokens": symbols[:, :-1], "targets": targets}] * 2, positions=positions, device="cpu", narrow=False
    )
    assert [(row.first, row.last) for row in rows] == [(1, 1), (2, 3), (4, 7), (8, 15), (16, 31)]
    for row in rows:
        # Input p has p + 1 bases of context.
        part = slice(row.first - 1, row.last)
        keep = targets[:, part] != -100
        assert row.scored == 2 * int(keep.sum())
        assert row.nats == pytest.approx(2 * float(nats[:, part][keep].sum()), rel=1e-9)


def test_gains_are_paired():
    """Blocks differ widely; the gain does not, and its error says so."""
    rng = np.random.default_rng(1)
    hard = rng.random((50, 1)) * 3 + np.zeros((50, 4))
    nats = {8: hard, 64: hard - 0.1}
    short, long = summarise(
        nats, strata(np.ones((50, 4), bool), np.zeros((50, 4), bool), np.full(50, 0.4), ["a"] * 50)[:1], [8, 64]
    )
    assert short["gain_nats"] == 0
    assert long["gain_nats"] == pytest.approx(0.1)
    assert long["gain_standard_error"] == pytest.approx(0, abs=1e-9)
    assert long["nats"] == pytest.approx(hard.mean() - 0.1)
    assert long["count"] == 200
    noise = {8: hard, 64: hard - rng.normal(0.1, 0.5, (50, 1))}
    _, row = summarise(
        noise, strata(np.ones((50, 4), bool), np.zeros((50, 4), bool), np.full(50, 0.4), ["a"] * 50)[:1], [8, 64]
    )
    assert row["gain_standard_error"] == pytest.approx(0.5 / math.sqrt(50), rel=0.25)
