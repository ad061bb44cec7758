"""Trainings that cannot fit are refused with numbers before anything is read or built."""

import json

import numpy as np
import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import locked
from mamba_bio_audio.machine import available_memory, check_memory, own_memory
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.size import count_parameters
from mamba_bio_audio.run import preflight
from mamba_bio_audio.run.begin import Session
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.dry_run import dry_run
from mamba_bio_audio.run.export import export
from mamba_bio_audio.run.preflight import check_fits, free_memory, least_memory, memory_for_run
from mamba_bio_audio.run.train import train
from mamba_bio_audio.training.probe import Probe


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
            InputError, match=r"takes at least [\d,.e+]+ GiB, and this machine has [\d,.]+ GiB free; lower"
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
    with pytest.raises(InputError, match=r"the GPU has 0\.0 GiB free"):
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


def test_a_dry_run_does_not_count_its_own_memory_twice(tmp_path, monkeypatch):
    """Fails before: the estimate is of a whole process, and this one's memory, which the run has, counted as taken."""
    assert 100 << 20 < own_memory() < 1 << 36
    monkeypatch.setattr(preflight, "available_memory", lambda: 1 << 30)
    monkeypatch.setattr("mamba_bio_audio.run.dry_run.probe", lambda *_: Probe((1 << 30) + (50 << 20), 0.1))
    assert dry_run(small(tmp_path), tmp_path / "run", Session("cpu")).parameters > 0
    monkeypatch.setattr("mamba_bio_audio.machine._STATM", tmp_path / "nothing")
    assert own_memory() == 0
    with pytest.raises(InputError, match="takes at least"):
        dry_run(small(tmp_path), tmp_path / "run", Session("cpu"))


def small(tmp_path, *overrides: str, recipe: str = "dna/tiny"):
    tiny = [
        "model.d_model=8",
        "model.num_layers=1",
        "train.length=32",
        "train.tokens_per_step=64",
        "train.micro_batch=2",
    ]
    more = ["train.steps=2", "train.validate_every=2", "train.validation_tokens=64", "train.checkpoint_every=2"]
    fasta = tmp_path / "toy.fa"
    if not fasta.exists():
        rng = np.random.default_rng(0)
        fasta.write_text(">one\n" + "".join(rng.choice(list("ACGT"), 6000)) + "\n")
    data = [f"data.path={fasta}", "data.block_bases=500"]
    return load_config(recipe, [*tiny, *more, *data, *overrides])


@pytest.fixture
def no_probe(monkeypatch):
    """The estimate takes a process of its own; what is refused is refused without it."""
    monkeypatch.setattr("mamba_bio_audio.run.dry_run.probe", lambda *_: Probe(1 << 20, 0.1))


def both(config, run, **options) -> str:
    """The error that the training and its dry run share."""
    errors = []
    for command in (dry_run, train):
        with pytest.raises(InputError) as error:
            command(config, run, Session("cpu", **options))
        errors.append(str(error.value))
    assert errors[0] == errors[1]
    return errors[0]


def test_a_dry_run_refuses_what_the_run_would(tmp_path, no_probe, monkeypatch):
    config = small(tmp_path)
    run = tmp_path / "runs" / "new"
    assert dry_run(config, run, Session("cpu")).parameters == count_parameters(
        config.model.model_copy(update={"vocab_size": 12})
    )
    assert not run.parent.exists()
    assert "nothing to resume" in both(config, run, resume=True)
    assert "give one of them" in both(config, run, resume=True, force=True)
    (tmp_path / "file").touch()
    assert "is a file" in both(config, tmp_path / "file" / "run")
    assert "not UTF-8" in both(config, tmp_path / "\udcff")
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "config.yaml").touch()
    assert "is not empty" in both(config, foreign)
    assert "does not replace it" in both(config, foreign, force=True)
    assert "holds" in both(config, tmp_path, force=True)
    with locked(run):
        assert "in use by" in both(config, run)
    read_only = tmp_path / "read-only"
    read_only.mkdir()
    monkeypatch.setattr("mamba_bio_audio.files.locks.os.open", refuse)
    assert "cannot be written to" in both(config, read_only / "run")


def refuse(*_: object) -> int:
    raise PermissionError(13, "Permission denied")


def test_a_dry_run_of_a_resumed_run(tmp_path, no_probe):
    config, run = small(tmp_path), tmp_path / "run"
    train(config, run, Session("cpu", quiet=True))
    before = sorted(path.name for path in tmp_path.iterdir())
    assert "is not empty" in both(config, run)
    assert "already complete" in both(config, run, resume=True)
    assert "another configuration" in both(small(tmp_path, "model.num_layers=2"), run, resume=True)
    assert dry_run(small(tmp_path, "train.steps=4"), run, Session("cpu", resume=True)).parameters > 0
    assert dry_run(config, run, Session("cpu", force=True)).parameters > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert json.loads((run / "manifest.json").read_text())["result"]["step"] == 2


def test_a_dry_run_opens_the_pretrained_model(tmp_path, no_probe):
    rng = np.random.default_rng(0)
    for name in "xy":
        records = [f">r{n}\n{''.join(rng.choice(list('ACGT'), 600))}\n" for n in range(12)]
        (tmp_path / f"{name}.fa").write_text("".join(records))
    recipe = tmp_path / "classes.yaml"
    recipe.write_text("extends: dna/tiny\nhead: {}\ndata: {kind: dna-classes, reverse_complement: true}\n")
    data = f"data.path=[{tmp_path / 'x.fa'}, {tmp_path / 'y.fa'}]"

    def classifier(*overrides: str):
        config = small(tmp_path, "data.block_bases=null", data, *overrides, recipe=str(recipe))
        return config, tmp_path / "run"

    assert "no such run" in both(*classifier(f"head.pretrained={tmp_path / 'none'}"))
    export(build_model(ModelConfig(d_model=16, num_layers=1, vocab_size=12), seed=0), tmp_path / "wide")
    assert "model.d_model is 8, not 16" in both(*classifier(f"head.pretrained={tmp_path / 'wide'}"))
    config, run = classifier(f"head.pretrained={tmp_path / 'wide'}", "model.d_model=16")
    assert dry_run(config, run, Session("cpu")).parameters > 0


def test_a_dry_run_refuses_more_memory_than_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr("mamba_bio_audio.run.dry_run.probe", lambda *_: Probe(1 << 50, 0.1))
    with pytest.raises(InputError, match=r"training on 2 x 32 positions at a time takes at least 1,048,576\.0 GiB"):
        dry_run(small(tmp_path), tmp_path / "run", Session("cpu"))
