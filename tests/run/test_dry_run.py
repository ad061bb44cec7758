"""A dry run refuses what the training would, and writes nothing."""

import json

import numpy as np
import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import locked
from mamba_bio_audio.machine import own_memory
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.size import count_parameters
from mamba_bio_audio.run import preflight
from mamba_bio_audio.run.begin import Session
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.dry_run import dry_run
from mamba_bio_audio.run.export import export
from mamba_bio_audio.run.train import train
from mamba_bio_audio.training.probe import Probe


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


def test_a_measurement_that_the_system_ends_is_told(tmp_path, monkeypatch):
    """Fails before: a pool of multiprocessing starts another process for one that is gone, and waits for ever."""
    monkeypatch.setattr("multiprocessing.spawn.get_preparation_data", lambda name: {"dir": "/nowhere"})
    with pytest.raises(InputError, match="most likely because memory ran out; lower train.micro_batch"):
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

    # It brings its architecture; what is checked later than that is checked by both.
    export(build_model(ModelConfig(d_model=16, num_layers=1, vocab_size=12), seed=0), tmp_path / "wide")
    wide = f"head.pretrained={tmp_path / 'wide'}"
    config, run = classifier(wide, "model.d_model=16")
    assert dry_run(config, run, Session("cpu")).parameters > 0
    other = config.model_copy(update={"model": config.model.model_copy(update={"d_model": 8})})
    assert "model.d_model is 8, not 16" in both(other, run)
    (tmp_path / "wide" / "model.safetensors").write_bytes(b"")
    assert "cannot be read as weights" in both(config, run)


def test_a_dry_run_refuses_more_memory_than_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr("mamba_bio_audio.run.dry_run.probe", lambda *_: Probe(1 << 50, 0.1))
    with pytest.raises(InputError, match=r"training on 2 x 32 positions at a time takes at least 1,048,576\.0 GiB"):
        dry_run(small(tmp_path), tmp_path / "run", Session("cpu"))
