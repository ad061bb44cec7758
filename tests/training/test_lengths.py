"""Length warm-up: which steps are at which length, and what the data gives there."""

import itertools

import pytest
import torch
from pydantic import ValidationError

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.data import DataModule
from mamba_bio_audio.pipelines.dna.config import DnaDataConfig
from mamba_bio_audio.run.config import load_config, merge_recipe
from mamba_bio_audio.training.config import TrainConfig
from mamba_bio_audio.training.lengths import length_at, length_stages, positions_until, stretches


def config(*stages: dict, **changes) -> TrainConfig:
    base = {"steps": 20, "length": 64, "tokens_per_step": 512, "micro_batch": 4, "lr": 1e-3}
    return TrainConfig(**(base | changes), length_warmup=stages)


def test_the_papers_sweep():
    """2 epochs at every power of two from 2^10, 2^24 positions a step, 34,021 segments of 2^17 (paper, E.3.3)."""
    train = TrainConfig.model_validate(merge_recipe("dna/hg38@1.4m-len1m-paper")["train"])

    def windows(length: int) -> int:
        return 34_021 * 2**17 // length if length <= 2**17 else 2 * 34_021

    stages = length_stages(train, windows)
    steps = [stage.stop - stage.start for stage in stages]
    assert [stage.length for stage in stages] == [2**power for power in range(10, 21)]
    assert steps[:8] == [532] * 8  # 531.6
    assert steps[8:10] == [2127, 4253]  # 2126.3, 4252.6
    assert stages[-1].stop == 20_000
    assert stages[0].sequences_per_step == 16_384
    assert stages[-1].sequences_per_step == 16
    assert stages[-1].describe()["epochs"] == pytest.approx(2, rel=0.12)


@pytest.mark.parametrize("size", ["1.4m", "7m"])
def test_recipes_of_the_papers_lengths(size):
    for name, power in {"1k": 10, "4k": 12, "16k": 14, "64k": 16, "256k": 18, "1m": 20}.items():
        recipe = merge_recipe(f"dna/hg38@{size}-len{name}-paper")
        assert (
            recipe["model"]
            == {"1.4m": {"d_model": 128, "num_layers": 12}, "7m": {"d_model": 256, "num_layers": 16}}[size]
        )
        assert recipe["data"]["windows"] == "grow-ends"
        train = TrainConfig.model_validate(recipe["train"])
        assert (train.length, train.tokens_per_step, train.steps, train.lr) == (2**power, 2**24, 20_000, 8e-3)
        assert [(stage.length, stage.epochs) for stage in train.length_warmup] == [(2**k, 2) for k in range(10, power)]


def test_length_of_a_step():
    stages = length_stages(
        config({"length": 16, "steps": 3}, {"length": 32, "epochs": 0.5}), lambda length: 800 // length
    )
    # Half of 25 windows at 16 a step is one step.
    assert [(stage.start, stage.stop) for stage in stages] == [(0, 3), (3, 4), (4, 20)]
    assert [length_at(stages, step) for step in (1, 3, 4, 5, 20)] == [16, 16, 32, 64, 64]


def test_without_warm_up_there_is_one_stage():
    train = config()
    stages = length_stages(train, lambda length: 7)
    assert stages == [(64, 0, 20, 8, 7)]
    assert stretches(stages, train, 5, "cpu") == [(64, 4, 0, 40, None)]


def test_positions_per_micro_batch_are_constant():
    train = config({"length": 16, "steps": 3}, {"length": 32, "steps": 2})
    stages = length_stages(train, lambda length: 100)
    assert stretches(stages, train, 0, "cpu") == [(16, 16, 0, 0, 6), (32, 8, 1, 0, 4), (64, 4, 2, 0, None)]
    assert stretches(stages, train, 1, "cpu")[0] == (16, 16, 0, 32, 4)
    assert stretches(stages, train, 3, "cpu") == [(32, 8, 1, 0, 4), (64, 4, 2, 0, None)]
    assert stretches(stages, train, 4, "cpu")[0] == (32, 8, 1, 16, 2)
    assert stretches(stages, train, 5, "cpu") == [(64, 4, 2, 0, None)]
    assert stretches(stages, train, 7, "cpu") == [(64, 4, 2, 16, None)]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"length": 16}], "either epochs or steps"),
        ([{"length": 16, "steps": 1, "epochs": 1}], "either epochs or steps"),
        ([{"length": 24, "steps": 1}], "proper divisor of length"),
        ([{"length": 64, "steps": 1}], "proper divisor of length"),
        ([{"length": 128, "steps": 1}], "proper divisor of length"),
        ([{"length": 32, "steps": 1}, {"length": 16, "steps": 1}], "must increase"),
        ([{"length": 16, "steps": 1}, {"length": 16, "steps": 1}], "must increase"),
        ([{"length": 16, "steps": 15}, {"length": 32, "steps": 5}], "none are left at full length"),
    ],
)
def test_impossible_stages_are_refused(stages, message):
    with pytest.raises(ValidationError, match=message):
        config(*stages)


def test_sequences_shorter_than_the_devices_that_share_them_are_refused():
    with pytest.raises(ValidationError, match="cannot share 1 positions"):
        config({"length": 1, "steps": 1}, devices=2, sequence_parallel=2)


def test_epochs_that_take_every_step_are_refused():
    with pytest.raises(InputError, match=r"takes 25 steps \(25 at 16\) and train.steps is 20.*raise train.steps above"):
        length_stages(config({"length": 16, "epochs": 1}), lambda length: 800)
    with pytest.raises(InputError, match="no window of length 16"):
        length_stages(config({"length": 16, "epochs": 1}), lambda length: 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_data_continue_anywhere_whatever_the_workers(workers, tmp_path):
    """From every step on the batches are those of the uninterrupted training."""
    letters = torch.randint(4, (6000,), generator=torch.Generator().manual_seed(0)).tolist()
    (tmp_path / "g.fa").write_text(">a\n" + "".join("ACGT"[i] for i in letters) + "\n")
    train = config({"length": 16, "steps": 3}, {"length": 32, "steps": 2})

    def batches(step: int, workers: int, count: int) -> list[torch.Tensor]:
        data = DataModule(
            DnaDataConfig(path=str(tmp_path / "g.fa"), num_workers=workers, reverse_complement=True),
            length=64,
            batch_size=4,
            seed=1,
        )
        stages = length_stages(train, lambda length: len(data.training_windows(length)))
        data.stretches = stretches(stages, train, step, "cpu")
        return [batch["tokens"] for batch in itertools.islice(data.train_dataloader(), count)]

    whole = batches(0, 0, 16)
    assert [tuple(batch.shape) for batch in whole] == [(16, 16)] * 6 + [(8, 32)] * 4 + [(4, 64)] * 6
    for step in (0, 3, 4) if workers else range(7):
        found = batches(step, workers, 16 - 2 * step)
        assert all(torch.equal(a, b) for a, b in zip(found, whole[2 * step :], strict=True))


def test_the_papers_fine_tuning_keeps_the_sequences():
    """64 sequences at every length, an epoch of 1,024 steps at each power of two from 2^14 (paper, E.3.4)."""
    train = load_config("dna/apes-paper", ["data.path=."]).train
    stages = length_stages(train, lambda length: 1000)
    assert [stage.length for stage in stages] == [2**power for power in range(14, 21)]
    assert [stage.stop - stage.start for stage in stages] == [1024] * 6 + [4096]
    assert {stage.sequences_per_step for stage in stages} == {64}
    # Derived in the facts sheet: 343 billion positions.
    assert positions_until(stages, train.steps) == pytest.approx(343e9, rel=0.01)
    assert positions_until(stages, 1030) == 64 * (1024 * 2**14 + 6 * 2**15)
    parts = stretches(stages, train, 1030, "cuda")
    assert parts[0] == (2**15, 1, 1, 6 * 64, 1018 * 64)
    assert parts[-1] == (2**20, 1, 6, 0, None)
