"""The length benchmark on a CPU at tiny sizes, with a stand-in for the peer's model."""

import csv

import pytest
import torch


@pytest.fixture
def bench(script, mamba_ssm, monkeypatch):
    bench = script("bench_length")
    bench.network.cache_clear()
    monkeypatch.setattr(bench, "MODELS", {"1x8": (1, 8, 8)})
    monkeypatch.setattr(bench, "batch", lambda length, device: torch.randint(7, 11, (2, length)))
    monkeypatch.setattr(bench, "has_peer", lambda device: True)
    yield bench
    bench.network.cache_clear()


def test_rows_of_every_mode(bench, tmp_path, monkeypatch):
    trained, failing = [], bench.training_step

    def training_step(model, tokens, chunk):
        trained.append((tokens.shape[1], chunk))
        if tokens.shape[1] == 32 == chunk:
            raise torch.OutOfMemoryError("full")
        failing(model, tokens, chunk)

    monkeypatch.setattr(bench, "training_step", training_step)
    plan = [
        *[("1x8", "streamed", power) for power in (4, 6)],
        *[("1x8", "whole", power) for power in (5, 4, 6)],
        ("1x8", "mamba_ssm", 4),
        ("1x8", "compare", 4),
    ]
    bench.run(plan, tmp_path / "length.csv", "cpu", seconds=100)
    with (tmp_path / "length.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["mode"], int(row["length"])) for row in rows] == [(mode, 1 << power) for _, mode, power in plan]
    assert trained == [*[(16, 8)] * 4, *[(64, 8)] * 4, (32, 32), *[(16, 16)] * 4]
    assert [row["note"] for row in rows] == [
        *[""] * 2, "out of memory", "", "out of memory: not tried, 2^5 did not fit", *[""] * 2,
    ]  # fmt: skip
    for row in rows:
        measured = row["mode"] != "compare" and not row["note"]
        assert bool(row["seconds"]) == measured
        assert row["torch"] == torch.__version__
        if measured:
            speed = 2 * int(row["length"]) / float(row["seconds"])
            assert float(row["tokens_per_second"]) == pytest.approx(speed, rel=0.01)
    assert float(rows[-1]["difference"]) < 1e-5
    assert (tmp_path / "length.png").stat().st_size > 10_000


def test_no_row_begins_late(bench, tmp_path, capsys):
    rows = bench.run([("1x8", "whole", 4), ("1x8", "whole", 5)], tmp_path / "length.csv", "cpu", seconds=0)
    assert rows == []
    assert "not begun in time: 1x8 whole 2^4, 1x8 whole 2^5" in capsys.readouterr().out


def test_the_rows_of_the_acceptance_come_first(script):
    plan = script("bench_length").PLAN
    assert plan[:3] == tuple(("16x256", "streamed", power) for power in (20, 22, 24))
    assert set(plan[3:7]) == {
        ("16x256", "whole", 17),
        ("16x256", "mamba_ssm", 17),
        ("16x256", "mamba_ssm", 20),
        ("24x512", "streamed", 20),
    }
    assert len(set(plan)) == len(plan)
