import pytest
import torch
from torch import nn

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.heads import Classifier, Pool, PoolState
from mamba_bio_audio.models.streamed import streamed_loss


def classifier(pool: str = "mean", **head) -> Classifier:
    torch.manual_seed(0)
    built = Classifier(
        build_model(ModelConfig(d_model=16, num_layers=2, vocab_size=12)),
        HeadConfig(pool=pool, classes=("a", "b", "c"), **head),
    )
    nn.init.normal_(built.head.weight)
    nn.init.normal_(built.backbone.embedding.weight)
    return built


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of 50, 37 and 1 real positions."""
    tokens = torch.randint(7, 11, (3, 50), generator=torch.Generator().manual_seed(1))
    targets = torch.full((3, 50), -100)
    for row, (size, label) in enumerate(((50, 2), (37, 0), (1, 1))):
        tokens[row, size:] = 4
        targets[row, size - 1] = label
    return tokens, targets


def test_start_from_a_model_and_from_a_classifier() -> None:
    backbone = build_model(ModelConfig(d_model=16, num_layers=2, vocab_size=12), seed=5)
    model = classifier()
    before = model.head.weight.clone()
    model.start_from(backbone)
    assert torch.equal(model.backbone.embedding.weight, backbone.embedding.weight)
    assert torch.equal(model.head.weight, before)
    again = classifier()
    nn.init.zeros_(again.head.weight)
    again.start_from(model)
    assert torch.equal(again.head.weight, before)
    # The head of another pooling does not fit.
    other = classifier("max")
    nn.init.zeros_(other.head.weight)
    other.start_from(model)
    assert torch.equal(other.backbone.embedding.weight, backbone.embedding.weight)
    assert not other.head.weight.any()
    with pytest.raises(InputError, match="a model of another shape: model.d_model is 16, not 8; set model"):
        model.start_from(build_model(ModelConfig(d_model=8, num_layers=2, vocab_size=12)))


def test_pools_by_hand() -> None:
    x = torch.tensor([[[1.0, -3.0], [5.0, -1.0], [3.0, -2.0]]])
    mean, state = Pool("mean", 2)(x)
    assert mean.tolist() == [[[1.0, -3.0], [3.0, -2.0], [3.0, -2.0]]]
    assert (state.value.tolist(), state.positions.tolist()) == ([[9.0, -6.0]], [3.0])
    # Negative values: the empty state must not count as a zero.
    largest, _ = Pool("max", 2)(x)
    assert largest.tolist() == [[[1.0, -3.0], [5.0, -1.0], [5.0, -1.0]]]
    assert Pool("last", 2)(x)[0] is x


@pytest.mark.parametrize("pool", ["mean", "max", "last"])
def test_padding_is_never_seen(pool) -> None:
    model = classifier(pool).double()
    tokens, targets = batch()
    out = model(tokens, targets=targets, logits="none")
    assert out.logits is None
    assert int(out.count) == 3
    alone = 0.0
    for row, size in enumerate((50, 37, 1)):
        logits = model(tokens[row : row + 1, :size], logits="last").logits[0, 0]
        alone -= logits.log_softmax(-1)[targets[row, size - 1]]
    assert torch.isclose(out.loss_sum, alone, rtol=1e-10)


@pytest.mark.parametrize("pool", ["mean", "max", "last"])
@pytest.mark.parametrize("freeze", [False, True])
def test_streamed_gradients_equal_whole(pool, freeze) -> None:
    model = classifier(pool, freeze=freeze).double()
    tokens, targets = batch()
    model(tokens, targets=targets, logits="none").loss_sum.backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss, count, _ = streamed_loss(model, tokens, targets, chunk=13)
    loss.backward()
    assert int(count) == 3
    names = {name for name, p in model.named_parameters() if p.requires_grad} - {"backbone.lm_head.weight"}
    assert names == {"head.weight", "head.bias"} if freeze else len(names) > 10
    for name in names:
        actual = dict(model.named_parameters())[name].grad
        assert (actual - whole[name]).abs().max() <= 1e-10 * whole[name].abs().max() + 1e-14, name


def test_label_smoothing_is_for_training_only() -> None:
    tokens, targets = batch()
    plain, smooth = classifier(), classifier(label_smoothing=0.2)
    assert plain(tokens, targets=targets).loss_sum != smooth(tokens, targets=targets).loss_sum
    assert plain.eval()(tokens, targets=targets).loss_sum == smooth.eval()(tokens, targets=targets).loss_sum


def test_long_rows_keep_counting() -> None:
    pool = Pool("mean", 1)
    state = pool.init_state(1)._replace(positions=torch.tensor([2.0**30], dtype=torch.float64))
    _, after = pool(torch.ones(1, 1, 1), state)
    assert after.positions.item() == 2**30 + 1


def test_a_classifier_needs_classes() -> None:
    with pytest.raises(ValueError, match="classes"):
        Classifier(build_model(ModelConfig(d_model=8, num_layers=1, vocab_size=12)), HeadConfig())


@pytest.mark.parametrize("kind", ["mean", "max", "last"])
def test_one_position_equals_the_scan(kind) -> None:
    pool, generator = Pool(kind, 5), torch.Generator().manual_seed(0)
    before = pool(torch.randn(3, 7, 5, generator=generator, dtype=torch.float64) - 1)[1]
    x = torch.randn(3, 20, 5, generator=generator, dtype=torch.float64) - 1
    last = torch.tensor([0, 11, 19])
    for state in (None, before):
        scanned, end = pool(x, state)
        value, after = pool.upto(x, last, state)
        assert torch.allclose(value, scanned[torch.arange(3), last], rtol=1e-12)
        if end is not None:
            assert torch.allclose(after.value, end.value, rtol=1e-12)
            assert torch.equal(after.positions, end.positions)


def test_two_targets_in_a_row_are_noticed() -> None:
    tokens, targets = batch()
    targets[0, 3] = 1
    assert torch.isnan(classifier()(tokens, targets=targets, logits="none").loss_sum)
    assert torch.isfinite(classifier()(tokens, targets=targets, logits="all").loss_sum)


@pytest.mark.parametrize("kind", ["mean", "max"])
def test_sequences_that_begin_within_a_row_are_pooled_alone(kind) -> None:
    pool, generator = Pool(kind, 4), torch.Generator().manual_seed(0)
    before = pool(torch.randn(2, 3, 4, generator=generator, dtype=torch.float64))[1]
    x = torch.randn(2, 9, 4, generator=generator, dtype=torch.float64) - 2
    reset = torch.zeros(2, 9, dtype=torch.bool)
    reset[0, [2, 7]] = reset[1, 0] = True
    found, end = pool(x, before, reset=reset)
    first = PoolState(before.value[:1], before.positions[:1])
    parts = [pool(x[:1, :2], first), pool(x[:1, 2:7]), pool(x[:1, 7:])]
    alone, alone_end = pool(x[1:])
    assert torch.allclose(found[:1], torch.cat([part[0] for part in parts], 1), rtol=1e-12)
    assert torch.allclose(found[1:], alone, rtol=1e-12)
    assert end.positions.tolist() == [2, 9]
    assert torch.allclose(end.value, torch.cat([parts[2][1].value, alone_end.value]), rtol=1e-12)
