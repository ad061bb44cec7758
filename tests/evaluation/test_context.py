"""The same bases under every context: sums and pairing against direct computation."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mamba_bio_audio.evaluation.context import bar_under, nats_under, piece_of, position_sums, summarise, target_nats
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.pipelines.dna.target_blocks import strata
from mamba_bio_audio.pipelines.scores import CopyBar, TargetBlocks


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


@pytest.fixture
def long_blocks() -> tuple[TargetBlocks, np.ndarray]:
    """Three blocks of 12 bases with up to 16 before them, and the bases."""
    ids = np.random.default_rng(3).integers(7, 11, 90)
    starts = (20, 40, 70)

    def windows(some, before):
        return np.stack([ids[start - before : start + 12] for start in starts[some]])

    return TargetBlocks(3, 12, windows, strata=(), inside=1.0), ids


def test_long_blocks_are_predicted_in_pieces_of_a_quarter_of_each_context(model, long_blocks):
    blocks, ids = long_blocks
    assert [piece_of(12, context) for context in (1, 8, 16, 28, 400)] == [1, 2, 4, 6, 12]
    found = nats_under(model, blocks, [8, 16], positions=40, device="cpu", narrow=False)
    for context, piece in ((8, 2), (16, 4)):
        for row, start in enumerate((20, 40, 70)):
            for low in range(start, start + 12, piece):
                symbols = torch.from_numpy(ids[None, low - context : low + piece])
                expected = nats_of(model, symbols)[0, -piece:].numpy()
                assert found[context][row, low - start : low - start + piece] == pytest.approx(expected, rel=1e-9)


def test_the_bar_reads_the_same_pieces(long_blocks):
    blocks, ids = long_blocks
    asked = []

    def nats(window, size, contexts):
        asked.append((tuple(window), size, tuple(contexts)))
        return {context: window[-size:] + context / 100 for context in contexts}

    found = bar_under(CopyBar("copies", nats), blocks, [8, 16])
    assert found[16][1] == pytest.approx(ids[40:52] + 0.16)
    assert found[8][2] == pytest.approx(ids[70:82] + 0.08)
    assert (tuple(ids[40 + 4 - 16 : 48]), 4, (16,)) in asked
    assert (tuple(ids[80 - 8 : 82]), 2, (8,)) in asked
    assert len(asked) == 3 * (6 + 3)
