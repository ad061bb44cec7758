"""Trainings that cannot fit are refused with numbers before anything is read or built."""

import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.machine import available_memory, check_memory
from mamba_bio_audio.run import preflight
from mamba_bio_audio.run.begin import Session
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.dry_run import dry_run
from mamba_bio_audio.run.preflight import check_fits, free_memory, least_memory, memory_for_run
from mamba_bio_audio.run.train import train


def config(*overrides: str, recipe: str = "dna/tiny"):
    return load_config(recipe, ["data.path=demo", *overrides])


def test_the_least_is_below_what_a_tiny_training_takes_and_grows_with_each_setting():
    small = least_memory(config(), "cpu")
    assert 1 << 20 < small < 1 << 28
    for more in ("model.num_layers=8", "model.d_model=128", "train.tokens_per_step=32768", "train.ema=0.99"):
        assert least_memory(config(more), "cpu") > small, more
    assert least_memory(config("train.stream_chunk=64"), "cpu") < small
    assert least_memory(config("train.precision=bf16"), "cpu") < small


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.d_model=100000", "model.num_layers=1000"],
        ["model.d_model=8", "model.ssm.expand=1024", "model.ssm.dt_rank=1000000", "model.num_layers=10"],
        ["train.length=100000000000", "train.tokens_per_step=100000000000"],
        ["train.length=1000000000000", "train.tokens_per_step=1000000000000", "train.stream_chunk=auto"],
        ["train.length=1000000", "train.tokens_per_step=1000000000000", "train.micro_batch=1000000"],
    ],
)
def test_what_no_machine_holds_is_refused_by_every_command(overrides, tmp_path):
    impossible = config(*overrides)
    for command in (
        lambda: check_fits(impossible, "cpu"),
        lambda: dry_run(impossible, None, Session("cpu")),
        lambda: train(impossible, tmp_path / "run", Session("cpu")),
    ):
        with pytest.raises(
            InputError, match=r"takes at least [\d,.e+]+ GiB, but this machine has only [\d,.]+ GiB free; lower"
        ):
            command()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "override",
    [
        "model.num_layers=1000000",
        "model.d_model=1000000000",
        "train.steps=1e18",
        "train.length=1e18",
        "model.vocab_multiple=1e9",
    ],
)
def test_sizes_beyond_all_reason_are_configuration_mistakes(override):
    with pytest.raises(InputError, match="less than or equal to"):
        config(override)


def test_a_wrong_micro_batch_of_very_many_sequences_is_told_at_once():
    with pytest.raises(
        InputError, match=r"micro_batch \(7\) must divide the 1000000000000000 sequences .* 4, 5, 8, 10"
    ):
        config("train.length=1", "train.tokens_per_step=1e15", "train.micro_batch=7")


def test_memory_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.setattr("mamba_bio_audio.machine._CGROUP", tmp_path)
    free = available_memory()
    assert free is not None
    assert 0 < free < 1 << 50
    # A container's limit counts where it is less; pages of files do not.
    for name, text in {
        "memory.max": "1000000",
        "memory.current": "900000",
        "memory.stat": "inactive_file 50000\nactive_file 7000",
    }.items():
        (tmp_path / name).write_text(text)
    assert available_memory() == 157_000
    (tmp_path / "memory.max").write_text("max")
    assert available_memory() > 1 << 20
    check_memory(10, "it", "lower it", available=None)
    check_memory(None, "it", "lower it", available=1)
    check_memory(10, "it", "lower it", available=10)
    with pytest.raises(InputError, match="lower it"):
        check_memory(11, "it", "lower it", available=10)


def test_a_gpu_is_asked_for_its_own_memory(monkeypatch):
    monkeypatch.setattr(preflight.torch.cuda, "mem_get_info", lambda number: (1 << 20, 1 << 30))
    with pytest.raises(InputError, match=r"the GPU has only 0\.0 GiB free"):
        check_fits(config(), "cuda")


def test_free_memory_of_a_gpu_is_that_of_the_process_s_own(monkeypatch):
    """Fails before: every rank asked the first GPU, and what a measurement had left with torch counted as taken."""
    monkeypatch.setattr(preflight.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(preflight.torch.cuda, "mem_get_info", lambda number: ((10, 20)[number], 100))
    monkeypatch.setattr(preflight.torch.cuda, "memory_reserved", lambda number: (70, 5)[number])
    monkeypatch.setattr(preflight.torch.cuda, "memory_allocated", lambda number: (1, 5)[number])
    for rank, free in (("", 79), ("0", 79), ("1", 20), ("7", 79), ("x", 79)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert free_memory("cuda") == memory_for_run("cuda") == free, rank
