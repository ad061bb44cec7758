"""Models compared on the same batches: what is trained, chosen, told apart, and continued."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.jobs import compare, pretrain
from mamba_bio_audio.jobs.compare import CompareOptions
from mamba_bio_audio.jobs.compare_results import ArmResult, Spread
from mamba_bio_audio.run import compare as core
from mamba_bio_audio.run import saved
from mamba_bio_audio.run.config import load_config

SMALL = (
    "data.vocab=4", "data.examples=60", "model.d_model=8", "model.num_layers=1", "train.length=8", "train.steps=6",
    "train.tokens_per_step=64", "train.lr=1e-2", "train.validate_every=2", "train.validation_tokens=160",
)  # fmt: skip


def options(out: Path, **more: Any) -> CompareOptions:
    given: dict[str, Any] = {
        "recipe": "synthetic/induction",
        "mixers": "mamba,s4d-real",
        "rates": "1e-2,3e-2",
        "seeds": "0,1",
        "overrides": SMALL,
        "out": out,
        "device": "cpu",
        "quiet": True,
    }
    return CompareOptions(**given | more)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(core, "MEASURING", 0.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A comparison, and its folder."""
    out = tmp_path_factory.mktemp("compare") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "MEASURING", 0.0)
        return compare.run(options(out)), out


def test_each_model_has_the_best_of_the_rates_and_every_seed(whole):
    found, out = whole
    assert not found.unfinished
    runs = {(row.arm, row.rate, row.seed): row for row in found.runs}
    for arm in found.arms:
        tried = {rate: runs[arm.name, rate, 0].valid_nats for rate in (1e-2, 3e-2)}
        assert arm.rate == min(tried, key=tried.__getitem__)
        at_rate = [runs[arm.name, arm.rate, seed] for seed in (0, 1)]
        assert arm.test.mean == pytest.approx(sum(row.test_nats for row in at_rate) / 2)
        assert (arm.test.low, arm.test.high) == tuple(sorted(row.test_nats for row in at_rate))
        assert arm.at_edge
    # Two rates with the first seed, and the second seed at the chosen one.
    assert len(runs) == 2 * 3
    assert found.arms[0].against_best == "best"
    assert [arm.test.mean for arm in found.arms] == sorted(arm.test.mean for arm in found.arms)
    text = found.text()
    assert "mamba" in text
    assert "6 steps, 384 symbols, 2 seeds" in text
    for name, rows in (("compare.csv", found.arms), ("runs.csv", found.runs)):
        with (out / name).open() as file:
            assert len(list(csv.DictReader(file))) == len(rows)
    assert (out / "compare.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((out / "compare.json").read_text())["arms"][0]["name"] == found.arms[0].name


def test_a_run_is_the_training_that_pretrain_makes(whole, tmp_path):
    found, out = whole
    row = next(row for row in found.runs if (row.arm, row.rate, row.seed) == ("s4d-real", 3e-2, 0))
    overrides = (*SMALL, "model.mixer=s4d-real", "train.lr=3e-2")
    asked = pretrain.PretrainOptions(
        recipe="synthetic/induction", overrides=overrides, out=tmp_path / "run", device="cpu", quiet=True
    )
    assert pretrain.run(asked).valid_nats == pytest.approx(row.valid_nats, rel=1e-5)
    theirs = load_file(tmp_path / "run" / "model.safetensors")
    ours = load_file(out / row.folder / "model.safetensors")
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-6)
    assert saved.load(out / row.folder).config.train.lr == 3e-2


def test_a_comparison_that_was_stopped_goes_on_as_if_it_had_not_been(whole, tmp_path, monkeypatch):
    found, _ = whole
    out, checks = tmp_path / "out", []

    def over(self):
        checks.append(0)
        # In the middle of runs, between them, and between the trials and what follows.
        return len(checks) % 5 == 0

    monkeypatch.setattr(core.Comparison, "_over", property(over))
    calls, left = 0, []
    while not left or left[-1]:
        calls += 1
        left.append(compare.run(options(out, max_time=1e9)).unfinished)
    assert calls > 5
    assert not (out / "unfinished.safetensors").exists()
    again = json.loads((out / "compare.json").read_text())
    assert again["runs"] == json.loads(json.dumps([row.model_dump(mode="json") for row in found.runs]))


def test_a_finished_comparison_is_shown_again_and_others_do_not_mix_with_it(whole, monkeypatch):
    found, out = whole
    monkeypatch.setattr(core.Comparison, "run", lambda self: pytest.fail("trained again"))
    again = compare.run(options(out))
    assert again.to_json()["arms"] == found.to_json()["arms"]
    with pytest.raises(InputError, match="is not empty"):
        compare.run(options(out, rates="1e-2"))


def test_models_trained_in_a_process_of_their_own_are_taken_into_a_comparison(whole, tmp_path, monkeypatch):
    found, out = whole
    part = tmp_path / "part"
    alone = compare.run(options(part, only="s4d-real"))
    # Other processes used the device, so there is no speed, and no word on the other models.
    assert [(row.name, row.seconds, row.in_equal_time) for row in alone.arms] == [("s4d-real", None, None)]
    assert not alone.unfinished
    assert not (part / "compare.json").exists()
    monkeypatch.setattr(core.Comparison, "_train", lambda *_: pytest.fail("trained again"))
    shutil.rmtree(shutil.copytree(out, tmp_path / "slow") / "speed")
    none = compare.run(options(tmp_path / "soon", take=(tmp_path / "slow",), max_time=1e-6))
    assert "6 runs are finished, speeds of 2 models are to be measured; the same command goes on" in none.text()
    again = compare.run(options(tmp_path / "out", take=(part, out)))
    assert again.runs == found.runs
    assert again.equal_seconds is not None
    assert (tmp_path / "out" / "compare.json").exists()
    with pytest.raises(InputError, match=r"--take .*part: is no folder of this comparison"):
        compare.run(options(tmp_path / "other", take=(part,), rates="1e-2"))


def test_runs_of_a_device_that_is_not_here_are_brought_together(whole, tmp_path, monkeypatch):
    found, out = whole
    monkeypatch.setattr(compare, "resolve_device", lambda asked: "cpu")
    parts = [shutil.copytree(out, tmp_path / name) for name in ("whole", "less")]
    for part in parts:
        settings = json.loads((part / "settings.json").read_text())
        (part / "settings.json").write_text(json.dumps(settings | {"device": "cuda"}))
        for manifest in part.glob("runs/*/manifest.json"):
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"device": "a GPU"}))
    again = compare.run(options(tmp_path / "again", device="auto", take=(parts[0],)))
    assert again.runs == found.runs
    assert not again.unfinished
    assert (again.device, again.machine["device"]) == ("cuda", "a GPU")
    shutil.rmtree(parts[1] / found.runs[0].folder)
    less = compare.run(options(tmp_path / "some", device="auto", take=(parts[1],)))
    assert "nothing was trained, for there is no cuda device here: 4 runs" in less.text()
    assert "the same command goes on where there is one" in less.text()
    with pytest.raises(InputError, match="whole: is no folder of this comparison"):
        compare.run(options(tmp_path / "other", take=(parts[0],)))


def test_rates_are_taken_as_they_are_written(tmp_path):
    plan = compare.plan_of(options(tmp_path, rates="0.0123456789,1e9"))
    assert plan.rates["mamba"] == (0.0123456789, 1e9)
    assert [run.folder for run in plan.sweep("mamba")] == ["mamba-lr0.0123456789-seed0-6", "mamba-lr1e09-seed0-6"]


def test_time_that_is_over_is_told(tmp_path):
    found = compare.run(options(tmp_path / "out", max_time=1e-6))
    assert found.unfinished == 4
    assert found.exit_code == 0
    assert "stopped by --max-time: 0 runs are finished, at least 4 are to come" in found.text()
    with pytest.raises(InputError, match="was begun with other settings"):
        compare.run(options(tmp_path / "out", rates="1e-2"))


def test_the_time_is_looked_at_between_recordings(tmp_path, monkeypatch):
    """As many models need half a minute alone, and minutes beside other processes; what was done is saved."""
    recorded = []

    def record(lane, block):
        recorded.append(lane)
        monkeypatch.setattr(core.Comparison, "_over", True)

    monkeypatch.setattr(core.Lane, "record", record)
    asked = options(tmp_path / "out", overrides=(*SMALL, "train.cuda_graph=true"), only="mamba", together=2)
    assert compare.run(asked).unfinished
    assert len(recorded) == 1
    assert (tmp_path / "out" / core.UNFINISHED).exists()


def test_batches_are_those_of_the_data_whatever_they_are(tmp_path):
    genome = tmp_path / "g.fa"
    genome.write_text(">a\n" + "ACGTTGCA" * 200 + "\n>b\n" + "ACCGTAGA" * 200 + "\n")
    overrides = (
        f"data.path={genome}", "data.block_bases=200", "model.d_model=8", "model.num_layers=1", "train.length=32",
        "train.tokens_per_step=64", "train.steps=2", "train.validate_every=2", "train.validation_tokens=64",
    )  # fmt: skip
    more: dict[str, Any] = {"recipe": "dna/tiny", "overrides": overrides, "rates": "1e-2", "seeds": "3", "mixers": ""}
    arms = ("wide=model.ssm.expand=3", "plain=")
    found = compare.run(options(tmp_path / "out", **more, arm=arms))
    assert {arm.name for arm in found.arms} == {"wide", "plain"}
    assert found.arms[1].against_best == "one seed"
    row = next(row for row in found.runs if row.arm == "plain")
    asked = pretrain.PretrainOptions(
        recipe="dna/tiny",
        overrides=(*overrides, "train.lr=1e-2"),
        seed=3,
        out=tmp_path / "run",
        device="cpu",
        quiet=True,
    )
    assert pretrain.run(asked).valid_nats == pytest.approx(row.valid_nats, rel=1e-5)
    assert row.valid_right is None


def test_data_that_have_changed_do_not_go_on(tmp_path):
    genome = tmp_path / "g.fa"
    genome.write_text(">a\n" + "ACGTTGCA" * 200 + "\n")
    overrides = (
        f"data.path={genome}", "data.block_bases=200", "model.d_model=8", "model.num_layers=1", "train.length=32",
        "train.tokens_per_step=64", "train.steps=2", "train.validate_every=2", "train.validation_tokens=64",
    )  # fmt: skip
    asked = options(tmp_path / "out", recipe="dna/tiny", overrides=overrides, max_time=1e-6)
    assert compare.run(asked).unfinished
    genome.write_text(">a\n" + "ACCGTAGA" * 200 + "\n")
    with pytest.raises(InputError, match=r"g.fa: not the file that .*out was trained on"):
        compare.run(asked)


def arm(name: str, low: float, high: float) -> ArmResult:
    spread = Spread(mean=(low + high) / 2, low=low, high=high)
    values: dict[str, Any] = {"parameters": 1, "rate": 1, "memory_bytes": None, "tokens_per_second": 1, "seconds": 1}
    return ArmResult(
        name=name, settings=(), at_edge=False, valid=spread, test=spread, in_equal_time=None, against_best="", **values
    )


def test_models_are_told_apart_where_the_gap_exceeds_the_spread():
    best = arm("a", 1.0, 1.2)
    assert compare._against(best, best, 3) == "best"
    assert compare._against(arm("b", 1.25, 1.35), best, 3) == "not separated"
    assert compare._against(arm("b", 1.32, 1.34), best, 3) == "worse"
    assert compare._against(arm("b", 1.3, 1.6), best, 3) == "worse"
    assert compare._against(arm("b", 1.2, 1.6), best, 3) == "not separated"
    assert compare._against(arm("b", 9, 9), best, 1) == "one seed"


def test_a_diverged_training_is_neither_chosen_nor_averaged():
    assert Spread.of([1.0, None]).mean is None
    assert Spread.of([1.0, None]).text() == "diverged"
    assert Spread.of([1.0, 3.0]).text() == "2.0000 (1.0000 to 3.0000)"


def test_a_model_of_which_nothing_is_a_number_is_not_the_best_and_answers_nothing(tmp_path):
    found = compare.run(options(tmp_path / "out", rates="1e30", seeds="0", only="mamba"))
    (row,), (run,) = found.arms, found.runs
    assert (row.against_best, row.test.mean, row.test_right.mean) == ("diverged", None, None)
    assert (run.valid_nats, run.valid_right) == (None, None)
    # The folder's name, in which a plus may not stand, is that of the run.
    assert load_config(str(tmp_path / "out" / run.folder / "config.yaml")).train.lr == 1e30
    assert "1 seed:" in found.text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"arm": ("a=data.vocab=5",)}, "arm a: data.vocab=5: models differ in model"),
        ({"arm": ("a b=",)}, "arm 'a b': a name is a letter, digit or _"),
        ({"mixers": "mamba,mamab"}, "(?s)arm mamab: .*there is no 'mamab'"),
        ({"arm": ("a=train.length=4",)}, "arm a: train.length must be the same in all arms"),
        # All arms are trained in one precision, so an arm's own must not be passed over in silence.
        ({"arm": ("a=train.precision=bf16",)}, "arm a: train.precision must be the same in all arms"),
        ({"overrides": (*SMALL, "train.ema=0.9")}, "train.ema: mba compare trains whole sequences"),
        ({"overrides": (*SMALL, "train.micro_batch=1")}, "set train.micro_batch=8"),
        ({"arm": ("a=@papper",)}, "has no variant 'papper'"),
    ],
)
def test_mistakes(tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        compare.run(options(tmp_path / "out", **more))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"mixers": "mamba"}, "needs two models"),
        ({"arm": ("mamba=",)}, "two models are called 'mamba'"),
        ({"seeds": "0,0"}, "different whole numbers"),
        ({"seeds": "1,01"}, "different whole numbers"),
        ({"only": "mamba2"}, "no model is called 'mamba2'"),
        ({"rates": "0"}, "numbers above 0"),
        ({"rates": "1e-3,.001"}, "different numbers above 0"),
    ],
)
def test_bad_usage(tmp_path, more, message):
    with pytest.raises(ValidationError, match=message):
        options(tmp_path, **more)


def test_settings_of_an_arm():
    found = CompareOptions(
        recipe="r", mixers="mamba", arm=("x=@a,@b,model.pools=[4, 4],train.betas=[0.9,0.9],model.d_model=3", "y=")
    ).settings()
    assert found["mamba"] == ([], ["model.mixer=mamba"])
    assert found["x"] == (["a", "b"], ["model.pools=[4, 4]", "train.betas=[0.9,0.9]", "model.d_model=3"])
    assert found["y"] == ([], [])


def test_commas_belong_to_values_unless_a_setting_follows():
    nested = "model.options={transformer: {heads: 2, window: 8}, mamba2: {d_state: 8}}"
    text = f"x=@a, model.pattern=mamba*7,transformer, {nested},train.clip=1,"
    found = CompareOptions(recipe="r", mixers="mamba", arm=(text,)).settings()
    assert found["x"] == (["a"], ["model.pattern=mamba*7,transformer", nested, "train.clip=1"])
