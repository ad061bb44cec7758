"""The verdict on training equivalence, from folders as `arm` leaves them."""

import csv
import json

import pytest

LOSSES = {"torch-seed0": 1.2000, "triton-seed0": 1.2020, "triton-seed1": 1.2021, "triton-seed2": 1.2019}


@pytest.fixture
def judge(script, tmp_path):
    def run(losses, *, steps=100, reached=100, kernels=None):
        for name, nats in losses.items():
            folder = tmp_path / "arms" / name
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "metrics.csv").open("w", newline="") as file:
                rows = csv.writer(file)
                rows.writerows([("step", "loss", "valid_nats"), (50, 1.4, 1.3), (75, 1.3, ""), (reached, 1.2, nats)])
            ran = kernels or {"triton": "triton (mixer, scan)", "torch": "torch (asked for)"}[name.split("-")[0]]
            manifest = dict.fromkeys(("device", "torch", "commit", "started", "seed", "precision"))
            (folder / "manifest.json").write_text(json.dumps(manifest | {"precision_settings": {"kernels": ran}}))
            (folder / "arm.json").write_text(json.dumps({"step": reached, "steps": steps}))
        script("train_equivalence").compare(tmp_path / "arms", tmp_path / "verdict")
        with (tmp_path / "verdict.csv").open() as file:
            assert {row["arm"] for row in csv.DictReader(file)} == set(losses)
        return json.loads((tmp_path / "verdict.json").read_text())

    return run


def test_within_the_limit(judge):
    verdict = judge(LOSSES)
    assert verdict["passed"]
    assert verdict["step"] == 100
    assert verdict["difference_nats"] == pytest.approx(0.0020)
    assert verdict["limit_nats"] == 0.003


def test_seeds_that_differ_widen_the_limit(judge):
    losses = LOSSES | {"triton-seed0": 1.2060}
    assert not judge(losses)["passed"]
    verdict = judge(losses | {"triton-seed1": 1.2000, "triton-seed2": 1.2120})
    assert verdict["limit_nats"] == pytest.approx(0.012)
    assert verdict["passed"]


def test_an_unfinished_arm_or_one_without_its_kernels_does_not_pass(judge):
    assert not judge(LOSSES, reached=90)["passed"]
    verdict = judge(LOSSES, kernels="torch (no C compiler)")
    assert not verdict["kernels_as_named"]
    assert not verdict["passed"]


def test_one_arm_alone_has_no_verdict(judge):
    assert "passed" not in judge({"triton-seed0": 1.2})
