"""Schedule, parameter groups and configuration of training."""

import math
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.heads import Classifier
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.training.config import TrainConfig
from mamba_bio_audio.training.module import LanguageModelModule
from mamba_bio_audio.training.optim import build_optimizer, parameter_groups
from mamba_bio_audio.training.progress import duration
from mamba_bio_audio.training.schedule import learning_rate
from mamba_bio_audio.training.steps import Steps


def config(**changes) -> TrainConfig:
    return TrainConfig(**({"steps": 10, "length": 64, "tokens_per_step": 1024, "lr": 1e-3} | changes))


def test_learning_rate_rises_linearly_then_follows_a_cosine():
    rates = [learning_rate(step, steps=1000, lr=8e-3, lr_min=1e-5, warmup=0.1) for step in range(1000)]
    assert rates[0] == pytest.approx(8e-5)
    assert rates[49] == pytest.approx(4e-3)
    assert rates[99] == pytest.approx(8e-3) == max(rates)
    assert rates[100] == pytest.approx(8e-3)
    assert rates[-1] == pytest.approx(1e-5)
    middle = 100 + 899 / 2
    assert rates[int(middle)] == pytest.approx((8e-3 + 1e-5) / 2, rel=1e-2)
    assert rates[100:] == sorted(rates[100:], reverse=True)


def test_learning_rate_of_few_steps():
    """Quarters of a half cosine, after a warm-up of two steps: the first step moves, the last one is at the floor."""
    quarters = [1, 0.85355339, 0.5, 0.14644661, 0]
    assert [learning_rate(step, steps=5, lr=1, lr_min=0, warmup=0) for step in range(5)] == pytest.approx(quarters)
    rates = [learning_rate(step, steps=7, lr=1, lr_min=0, warmup=2 / 7) for step in range(7)]
    assert rates == pytest.approx([0.5, *quarters[:1], *quarters[:5]])
    assert [learning_rate(step, steps=3, lr=1, lr_min=0, warmup=1 / 3) for step in range(3)] == [1, 1, 0]
    assert [learning_rate(step, steps=2, lr=1, lr_min=0, warmup=0.5) for step in range(2)] == [1, 1]


def test_a_floor_above_the_peak_is_a_constant_rate():
    rates = {learning_rate(step, steps=9, lr=1e-6, lr_min=1e-5, warmup=0) for step in range(9)}
    assert rates == {1e-6}


@pytest.mark.parametrize("mixer", ["mamba", "mamba-complex", "s4d"])
def test_only_matrices_decay(mixer):
    model = build_model(ModelConfig(d_model=16, num_layers=2, vocab_size=12, mixer=mixer))
    decay, no_decay = parameter_groups(model, 0.1)
    assert decay["weight_decay"] == 0.1
    assert no_decay["weight_decay"] == 0.0
    names = {id(p): name for name, p in model.named_parameters()}
    decaying = {names[id(p)].split(".", 2)[-1] for p in decay["params"]}
    allowed = {"mixer.in_proj.weight", "mixer.conv1d.weight", "mixer.x_proj.weight", "mixer.dt_proj.weight"}
    assert decaying <= allowed | {"mixer.out_proj.weight"}
    assert {"mixer.in_proj.weight", "mixer.out_proj.weight"} <= decaying
    kept = {names[id(p)].split(".")[-1] for p in no_decay["params"]}
    assert {"A_log", "D"} <= kept
    assert id(model.embedding.weight) in {id(p) for p in no_decay["params"]}
    assert len(decay["params"]) + len(no_decay["params"]) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out():
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    groups = parameter_groups(model, 0.1)
    assert [len(group["params"]) for group in groups] == [0, 1]


def test_tokens_per_step_must_fit_length_and_devices():
    with pytest.raises(ValidationError, match="multiple of length times the number of devices"):
        config(tokens_per_step=1000)
    with pytest.raises(ValidationError, match="must divide the 16 sequences"):
        config(micro_batch=5)
    with pytest.raises(
        ValidationError, match=r"multiple of length times the number of devices .* sequences \(64 x 3\)"
    ):
        config(devices=3)
    with pytest.raises(ValidationError, match=r"sequence_parallel \(3\) must divide the 4 devices"):
        config(devices=2, nodes=2, sequence_parallel=3)
    with pytest.raises(ValidationError, match="sequence_parallel is exact"):
        config(devices=2, sequence_parallel=2, truncate_chunk=8)
    # 16 sequences: 4 groups of 2 devices have 4 each.
    shared = config(devices=4, nodes=2, sequence_parallel=2, micro_batch=2)
    assert shared.data_parallel == 4
    assert shared.accumulate("cpu") == 2


def test_chunks_are_exact_or_truncated():
    assert config(stream_chunk=16).chunk == config(truncate_chunk=16).chunk == 16
    assert config().chunk is None
    with pytest.raises(ValidationError, match="one of them"):
        config(stream_chunk=16, truncate_chunk=16)
    with pytest.raises(ValidationError, match="set stream_chunk"):
        config(stream_offload=True)
    with pytest.raises(ValidationError):
        config(stream_chunk=0)
    with pytest.raises(ValueError, match="must be resolved"):
        _ = config(stream_chunk="auto").chunk


def test_micro_batch_suits_the_device():
    big = config(tokens_per_step=2**20, length=1024)
    assert big.micro_batch_for("cpu") == 16
    assert big.micro_batch_for("cuda") == 256
    assert config(tokens_per_step=2**20, length=2**20).micro_batch_for("cpu") == 1
    # 15 sequences: the largest divisor that is not above 2^14 / 2^12 = 4.
    assert config(tokens_per_step=15 * 4096, length=4096).micro_batch_for("cpu") == 3
    assert config(micro_batch=4).micro_batch_for("cuda") == 4


def test_devices_that_share_sequences_take_as_many_more_at_once():
    """Each holds a part of every sequence, so that P devices have room for P times as many."""
    alone = config(tokens_per_step=2**20, length=4096, devices=4)
    shared = config(tokens_per_step=2**20, length=4096, devices=4, sequence_parallel=2)
    assert (alone.micro_batch_for("cpu"), shared.micro_batch_for("cpu")) == (4, 8)
    assert (alone.accumulate("cpu"), shared.accumulate("cpu")) == (16, 16)
    # Never more than a group has in a step, here four of sixteen.
    assert config(tokens_per_step=16 * 4096, length=4096, devices=4).micro_batch_for("cuda") == 4
    # One sequence that fills two devices.
    assert config(tokens_per_step=2**20, length=2**19, devices=2, sequence_parallel=2).micro_batch_for("cuda") == 1


def scheduled(**changes):
    """A trainer's worth of what `Steps` reads, and the optimiser that it belongs to."""
    module = LanguageModelModule(nn.Linear(2, 2), config(**changes))
    found = module.configure_optimizers()
    trainer = SimpleNamespace(lr_scheduler_configs=[SimpleNamespace(**found["lr_scheduler"])])
    return trainer, found["optimizer"], found["lr_scheduler"]["scheduler"]


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
def test_the_logged_rate_is_that_of_the_step(warmup):
    """In the warm-up, at the peak and along the cosine: what the optimiser used, not what it will use next."""
    trainer, optimizer, scheduler = scheduled(steps=20, warmup=warmup)
    used = []
    for step in range(1, 21):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        assert Steps._rate(trainer, step) == pytest.approx(used[-1], rel=1e-12)
        expected = learning_rate(step - 1, steps=20, lr=1e-3, lr_min=1e-5, warmup=warmup)
        assert used[-1] == pytest.approx(expected, rel=1e-12)
    assert len(set(used)) >= 19


def test_patience_goes_on_where_it_was(tmp_path, monkeypatch):
    """A run stopped after two of three bad validations ends after one more, and one that was over does not start again."""
    monkeypatch.setattr(Steps, "_restore", lambda self, trainer, module: None)  # weights and optimiser
    module = LanguageModelModule(nn.Linear(2, 2), config(patience=3))
    strategy = SimpleNamespace(broadcast=lambda value: value)
    trainer = SimpleNamespace(is_global_zero=False, global_step=6, should_stop=None, strategy=strategy)
    quiet = SimpleNamespace(start=lambda: None, install=lambda: None)

    def steps():
        found = Steps(config(patience=3), 1, tmp_path, [], quiet, quiet, [])
        found.setup(trainer, module, "fit")
        return found

    before, resumed, over = steps(), steps(), steps()
    before.best, before.best_step, before.stale = 1.25, 4, 2
    resumed.load_state_dict(before.state_dict())
    assert (resumed.best, resumed.best_step, resumed.stale) == (1.25, 4, 2)
    resumed.on_train_start(trainer, module)
    assert trainer.should_stop is False
    resumed.stale += 1
    over.load_state_dict(resumed.state_dict())
    over.on_train_start(trainer, module)
    assert trainer.should_stop is True


def test_duration():
    assert duration(61) == "1:01"
    assert duration(3661) == "1:01:01"
    assert duration(math.nan) == "?"


def test_the_last_rate_stays():
    """The schedule is asked for the step after the last one too."""
    rates = [learning_rate(step, steps=10, lr=1, lr_min=0.1, warmup=0.2) for step in range(9, 40)]
    assert rates == pytest.approx([0.1] * 31)


def test_the_head_of_a_classifier_has_its_own_rate():
    backbone = build_model(ModelConfig(d_model=8, num_layers=1, vocab_size=12))
    model = Classifier(backbone, HeadConfig(classes=("a", "b")))
    rates = {
        id(parameter): group["lr"]
        for group in build_optimizer(model, config(lr_head=5e-3)).param_groups
        for parameter in group["params"]
    }
    found = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    assert {name for name, rate in found.items() if rate == 5e-3} == {"head.weight", "head.bias"}
    assert {rate for name, rate in found.items() if not name.startswith("head.")} == {1e-3}


def test_state_spaces_have_their_own_rate():
    """A, the fixed B and C, D and the step size, without weight decay; convolution, projections and norms go on at `lr`."""
    model = build_model(UNetConfig(d_model=4, num_layers=1, pools=(2,), mixer="s4d", vocab_size=12))
    groups = build_optimizer(model, config(lr_ssm=5e-3, weight_decay=0.1)).param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    own = {name for name, parameter in model.named_parameters() if rates[id(parameter)] == 5e-3}
    assert {name.split(".")[-1] for name in own} == {"A_log", "A_imag", "B", "C", "D", "dt"}
    assert len(own) == 6 * 3
    assert {rates[id(parameter)] for name, parameter in model.named_parameters() if name not in own} == {1e-3}
    assert all(group["weight_decay"] == 0 for group in groups if group["lr"] == 5e-3)


def test_near_divisors_are_named_once():
    with pytest.raises(ValidationError, match=r"divide the 16 sequences per device and step; near values: 1, 2, 4, 8 "):
        config(micro_batch=3)


@pytest.mark.parametrize(
    "changes",
    [
        {"stream_chunk": 7},
        {"stream_chunk": 16, "stream_offload": True},
        {"truncate_chunk": 16},
        {"devices": 2},
        {"nodes": 2},
    ],
)
def test_graphs_are_of_equal_parts_on_one_device(changes):
    assert config(cuda_graph=True).cuda_graph is True
    assert config(cuda_graph=True, stream_chunk=16).can_record
    assert config(cuda_graph=False, **changes).cuda_graph is False
    with pytest.raises(ValidationError, match="cuda_graph=true requires steps on one device, whole or in chunks"):
        config(cuda_graph=True, **changes)


@pytest.mark.parametrize(("sums", "nats"), [([6.0, 4.0], 1.5), ([0.0, 0.0], 0.0)])
def test_logged_nats_are_those_of_one_symbol(tmp_path, sums, nats):
    """Also where a step has scored none."""
    steps = Steps(config(), 1, tmp_path, [], None, None, [])
    steps._module = SimpleNamespace(grad_norm=1.0, train_sums=lambda: torch.tensor(sums))
    assert steps._train_nats(SimpleNamespace(world_size=1), 1, everywhere=False) == nats


def test_what_layers_keep_is_told_once():
    kept = {(1, 2): "a state every 16 positions"}
    more = {**kept, (3, 2): "more"}
    layers = [SimpleNamespace(), *(SimpleNamespace(keeper=SimpleNamespace(chosen=chosen)) for chosen in (kept, more))]
    module = SimpleNamespace(model=SimpleNamespace(modules=lambda: layers))
    told = []
    steps = SimpleNamespace(_told=set(), progress=SimpleNamespace(tell=told.append))
    for _ in range(2):
        Steps._tell_what_is_kept(steps, module)
    assert told == [f"for backward, layers keep {text}" for text in ("a state every 16 positions", "more")]
