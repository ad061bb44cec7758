"""What heads are asked: losses by hand, what is not known is not scored, and the laws of a model for every task."""

import math

import pytest
import torch
from torch import nn

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.heads import Classifier
from mamba_bio_audio.models.streamed import streamed_loss
from mamba_bio_audio.models.tasks import OUTPUTS, TASKS, Constants, outputs_of
from mamba_bio_audio.training.graphed import GraphedLoss

PAD = 4
COMPLEMENT = (0, 1, 2, 3, -1, 5, 6, 10, 9, 8, 7, 11)
HEADS = {
    "classes": {"classes": ("a", "b", "c"), "class_weights": (1.0, 2.0, 0.5)},
    "multilabel": {"classes": ("a", "b", "c")},
    "regression": {"classes": ("x", "y"), "mean": (3.0, -1.0), "scale": (2.0, 0.5)},
    "bases": {"classes": ("none", "gene"), "complement": COMPLEMENT},
    "tracks": {"classes": ("x", "y"), "loss": "poisson", "mean": (3.0, 0.5), "complement": COMPLEMENT},
}
LENGTHS = (50, 37, 1)


def model_of(task: str) -> Classifier:
    torch.manual_seed(0)
    model = Classifier(
        build_model(ModelConfig(d_model=16, num_layers=2, vocab_size=12)), HeadConfig(task=task, **HEADS[task])
    )
    nn.init.normal_(model.head.weight)
    return model.double()


def batch(model: Classifier) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of several lengths, some of whose targets are not known."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(7, 11, (len(LENGTHS), max(LENGTHS)), generator=generator)
    shape = (*tokens.shape, len(model.labels)) if model.outputs.floating else tokens.shape
    values = torch.randint(0, 2, shape, generator=generator)
    targets = values.double() if model.outputs.floating else values
    nothing = math.nan if model.outputs.floating else -100
    for row, size in enumerate(LENGTHS):
        tokens[row, size:] = PAD
        targets[row, size:] = nothing
        if model.task.rows:
            targets[row, : size - 1] = nothing
    if model.outputs.floating:
        targets[0, LENGTHS[0] - 1, 1] = math.nan
    return tokens, targets


def test_losses_by_hand():
    def loss(kind: str, scores, targets, **head):
        names = tuple("abc"[: len(scores)])
        config = HeadConfig(classes=names, **head)
        constants = Constants.of(config)
        given = torch.tensor([scores], dtype=torch.float64)
        wanted = torch.tensor([targets], dtype=torch.float64) if OUTPUTS[kind].floating else torch.tensor([targets])
        found, count = OUTPUTS[kind].loss(given, wanted, config, constants)
        return float(found), int(count)

    p = [math.exp(x) for x in (0.0, 1.0)]
    nats = math.log(sum(p)) - 1
    assert loss("classes", [0.0, 1.0], 1) == (pytest.approx(nats), 1)
    assert loss("classes", [0.0, 1.0], 1, class_weights=(1.0, 3.0)) == (pytest.approx(3 * nats), 1)
    sigmoid = 1 / (1 + math.exp(-2))
    known = -math.log(sigmoid) - math.log(1 - 0.5)
    assert loss("labels", [2.0, 0.0, 9.0], [1, 0, math.nan], task="multilabel") == (pytest.approx(known), 2)
    mse = {"task": "regression", "mean": (5.0, 0.0), "scale": (2.0, 1.0)}
    assert loss("numbers", [1.0, 4.0], [9.0, math.nan], **mse) == (pytest.approx(0.5), 1)
    poisson = {"task": "tracks", "loss": "poisson", "mean": (2.0,)}
    rate = 2 * math.exp(0.3)
    assert loss("numbers", [0.3], [4.0], **poisson) == (pytest.approx((rate - 4 * math.log(rate)) / 2), 1)


def test_values_are_in_the_units_of_the_data():
    model = model_of("regression")
    assert model.values(torch.tensor([1.0, 0.0])).tolist() == [5.0, -1.0]
    assert model_of("tracks").values(torch.zeros(2)).tolist() == [3.0, 0.5]
    assert model_of("classes").values(torch.randn(4, 3)).sum(-1) == pytest.approx([1.0] * 4)
    # A mean that no 32-bit number is.
    exact = HeadConfig(task="regression", classes=("x",), mean=(0.1,))
    assert OUTPUTS["numbers"].values(torch.zeros(1), exact).tolist() == [0.1]


@pytest.mark.parametrize("task", TASKS)
def test_padding_and_the_unknown_are_never_seen(task):
    model = model_of(task)
    tokens, targets = batch(model)
    out = model(tokens, targets=targets, logits="none")
    loss = count = 0
    for row, size in enumerate(LENGTHS):
        alone = model(tokens[row : row + 1, :size], targets=targets[row : row + 1, :size])
        loss, count = loss + alone.loss_sum, count + alone.count
    assert torch.isclose(out.loss_sum, loss, rtol=1e-10)
    assert int(out.count) == int(count) > 0
    out.loss_sum.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    # A perfect fit to a constant needs no input, so that the gradient of a constant target is that of its bias.
    assert float(model.head.bias.grad.abs().max()) > 0


@pytest.mark.parametrize("task", TASKS)
def test_chunks_and_recorded_steps_give_the_same_gradients(task):
    model = model_of(task)
    tokens, targets = batch(model)
    model(tokens, targets=targets, logits="none").loss_sum.backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    steps = GraphedLoss(model)
    ways = [lambda: steps(tokens, targets)[0]]
    if model.task.rows:
        ways.append(lambda: streamed_loss(model, tokens, targets, chunk=13)[0])
    for loss_of in ways:
        model.zero_grad()
        loss_of().backward()
        for name, gradient in whole.items():
            actual = dict(model.named_parameters())[name].grad
            assert (actual - gradient).abs().max() <= 1e-10 * gradient.abs().max() + 1e-14, name


def test_a_base_is_read_from_both_sides():
    """The head has of a base what a language model reads up to it on either strand; rows of any length."""
    model = model_of("bases")
    tokens, _ = batch(model)
    found = model(tokens).logits
    other = torch.tensor(COMPLEMENT)
    for row, size in enumerate(LENGTHS):
        own = tokens[row : row + 1, :size]
        forward, backward = (model.backbone.hidden(ids)[0] for ids in (own, other[own].flip(1)))
        read = torch.cat([forward, backward.flip(1)], -1)
        assert torch.allclose(found[row, :size], model.head(read)[0], rtol=1e-10)
    model.head.weight.data[:, :16] = 0
    changed = tokens.clone()
    changed[0, 30] = 7 + (changed[0, 30] - 6) % 4
    # With the other reading alone, what differs is the base and what stands before it.
    different = (model(tokens).logits != model(changed).logits).any(-1)[0]
    assert different[30]
    assert not different[31:].any()


def test_a_model_of_bases_has_no_state():
    model = model_of("tracks")
    assert (model.streaming, model_of("classes").streaming) == ("none", "constant")
    with pytest.raises(InputError, match="a model of tracks reads whole sequences"):
        model(batch(model)[0], reset=torch.zeros(3, 50, dtype=torch.bool))
    with pytest.raises(InputError, match=r"train.stream_chunk requires layers with a state of constant size"):
        streamed_loss(model, *batch(model), chunk=13)
    with pytest.raises(InputError, match=r"head.complement is missing"):
        Classifier(model.backbone, HeadConfig(task="bases", classes=("a", "b")))


@pytest.mark.parametrize("task", TASKS)
def test_every_target_that_is_measured_is_scored(task):
    model = model_of(task)
    tokens = batch(model)[0]
    targets = model.some_targets(tokens)
    out = model(tokens, targets=targets, logits="none")
    assert int(out.count) == model.targets_in(targets)
    assert torch.isfinite(out.loss_sum)


def test_columns_of_predictions():
    assert OUTPUTS["classes"].columns("ab") == ["predicted", "p_a", "p_b"]
    assert OUTPUTS["classes"].cells([0.25, 0.75], "ab") == ["b", "0.25", "0.75"]
    assert OUTPUTS["labels"].cells([0.5, 0.75], "ab") == ["a;b", "0.5", "0.75"]
    assert OUTPUTS["labels"].cells([0.1, 0.2], "ab") == ["-", "0.1", "0.2"]
    assert OUTPUTS["numbers"].columns("ab") == ["a", "b"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": "poisson"}, "loss is for numbers"),
        ({"task": "regression", "class_weights": "balanced"}, "class_weights is for classes"),
        ({"classes": ("one",)}, "name two or more"),
        ({"mean": (1.0,)}, "mean is for numbers"),
    ],
)
def test_settings_of_another_task(given, message):
    with pytest.raises(ValueError, match=message):
        HeadConfig(**given)


def test_outputs_of_a_task():
    assert outputs_of(HeadConfig(task="bases")).name == "classes"
    assert outputs_of(HeadConfig(task="bases", outputs="numbers")).name == "numbers"
    with pytest.raises(ValueError, match=r"head\.task=tracks has numbers as outputs, not classes"):
        outputs_of(HeadConfig(task="tracks", outputs="classes"))
