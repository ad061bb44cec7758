"""The gradient of an embedding, whose terms are added in a fixed order on a GPU too."""

import pytest
import torch
from torch import nn

from mamba_bio_audio.models import lookup as module
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.lookup import Embedding, lookup, sums_by_row
from mamba_bio_audio.models.unet_config import UNetConfig


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("positions", "rows"), [(1, 1), (700, 5), (3000, 16), (2049, 64), (1500, 600)])
def test_sums(positions, rows, dtype, monkeypatch):
    """In one span and in several, at once and in turns, and by PyTorch's form; half of the rows are never read."""
    monkeypatch.setattr(module, "_ONES", 3 * 2048 * rows)
    ids = torch.randint(-(-rows // 2), (positions,))
    values = torch.randn(positions, 6, dtype=torch.float64).to(dtype)
    found = sums_by_row(values, ids.int(), rows)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    expected = torch.zeros(rows, 6, dtype=torch.float64).index_add_(0, ids, values.double())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("warn_only", [None, True])
def test_many_rows_are_summed_by_the_deterministic_form_and_the_setting_stays(warn_only, monkeypatch):
    seen = []
    sums = torch.ops.aten.embedding_dense_backward

    def noted(*given):
        seen.append(
            (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
        )
        return sums(*given)

    monkeypatch.setattr(torch.ops.aten, "embedding_dense_backward", noted)
    before = warn_only is not None, bool(warn_only)
    try:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        sums_by_row(torch.randn(5, 2), torch.arange(5), 65)
        sums_by_row(torch.randn(5, 2), torch.arange(5), 64)
        after = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == [(True, False)]
    assert after == before


def test_autocast_rounds_nothing():
    values, ids = torch.randn(600, 4), torch.randint(3, (600,))
    with torch.autocast("cpu", torch.bfloat16):
        found = sums_by_row(values, ids, 3)
    assert torch.equal(found, sums_by_row(values, ids, 3))


CONFIGS = [
    ModelConfig(d_model=16, num_layers=1, vocab_size=20),
    ModelConfig(d_model=16, num_layers=1, vocab_size=20, inputs=21, classes=("a", "b")),
    ModelConfig(d_model=16, num_layers=1, vocab_size=600, tie_embeddings=False),
    UNetConfig(d_model=16, num_layers=1, pools=(2, 2), vocab_size=20, inputs=21, classes=("a", "b")),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_no_gradient_of_a_model_is_added_by_pytorchs_embedding(config, monkeypatch):
    """As on a GPU: the graph has none of its nodes, and gradients are the same; to the bit in which row they stand."""
    model = build_model(config, seed=0)
    ids = torch.randint(config.num_inputs * (1 + len(config.class_names)), (2, 32))

    def gradients():
        loss = model(ids, targets=ids % config.vocab_size).loss_sum
        seen, rest = set(), [loss.grad_fn]
        while rest:
            node = rest.pop()
            if node is not None and node not in seen:
                seen.add(node)
                rest += [before for before, _ in node.next_functions]
        return {type(node).__name__ for node in seen}, torch.autograd.grad(loss, list(model.parameters()))

    names, expected = gradients()
    assert "EmbeddingBackward0" in names
    monkeypatch.setattr(module, "_repeatable", lambda table: True)
    names, found = gradients()
    assert "_LookupBackward" in names
    assert not {name for name in names if name.startswith(("Embedding", "Index", "Scatter", "Gather"))}
    for mine, its in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)


def test_no_model_has_another_embedding():
    for config in CONFIGS:
        for part in build_model(config).modules():
            assert not isinstance(part, nn.Embedding) or isinstance(part, Embedding)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [16, 64, 257])
def test_a_gpu_gives_the_same_bits(rows):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    table = torch.randn(rows, 64, device="cuda", requires_grad=True)
    ids = torch.randint(5, (8, 4096), device="cuda")
    g = torch.randn(8, 4096, 64, device="cuda")
    first, *others = (torch.autograd.grad(lookup(ids, table), table, g)[0] for _ in range(10))
    assert all(first.equal(other) for other in others)
    expected = torch.zeros(rows, 64, device="cuda", dtype=torch.float64).index_add_(
        0, ids.flatten(), g.flatten(0, 1).double()
    )
    assert (first - expected).abs().max() < 1e-5 * expected.abs().max()
