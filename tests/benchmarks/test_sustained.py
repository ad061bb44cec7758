"""Throughput of a run beside its bare step, from files as they are left on the GPU machine."""

import csv
import json

import pytest


@pytest.fixture
def sustained(script):
    return script("sustained")


@pytest.fixture
def bare(sustained, tmp_path):
    path = tmp_path / "bare.csv"
    for _ in range(2):
        sustained.bare(path, batch=1, seconds=0.01, device="cpu", layers=1, width=8)
    with path.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2
    path.write_text("mtokens_per_s\n2.0\n4.0\n")
    return path


def test_steps_that_fit(sustained, bare, capsys):
    sustained.steps(bare, seconds=10, tokens_per_step=100_000, share=0.5)
    assert int(capsys.readouterr().out.split()[-1]) == 150


def test_report(sustained, bare, tmp_path):
    run, markov = tmp_path / "run", tmp_path / "markov.csv"
    run.mkdir()
    (run / "manifest.json").write_text(json.dumps({"result": {"tokens_per_second": 2.7e6}}))
    (run / "metrics.csv").write_text("step,tokens\n1,1000\n2,30000000\n")
    for split, scored in (("valid", 50), ("test", 70)):
        (run / f"likelihood-{split}.json").write_text(json.dumps({"model": {"perplexity": 3.0}, "scored": scored}))
    markov.write_text(
        "yardstick,split,locus,size,chosen,scored,perplexity\nmarkov,valid,all,11,False,50,3.6\n"
        "markov,valid,all,12,True,50,3.2\nmarkov,test,all,12,True,99,3.3\ncopies,test,all,1024,,99,3.1\n"
    )
    sustained.report(run, bare, wall=20, out=tmp_path / "out.json", markov=markov)
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["sustained_to_bare"] == pytest.approx(0.9)
    assert found["command_to_bare"] == pytest.approx(0.5)
    assert found["valid"]["perplexity_to_markov"] == pytest.approx(3.0 / 3.2)
    # Scored on other bases: not compared.
    assert "perplexity_to_markov" not in found["test"]
