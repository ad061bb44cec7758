"""Slopes of loss against size, from run folders as they come back."""

import csv
import json
import math

import pytest


def made(folder, nats):
    folder.mkdir()
    said = {"device": "NVIDIA H200", "torch": "2.11.0", "triton": "3.6.0", "commit": "abc", "started": "2026-12-01"}
    data = {"splits": {"train": {"bases": 1000}}}
    result = {"best_step": 3, "tokens_per_second": 1000.0}
    (folder / "manifest.json").write_text(json.dumps(said | {"data": data, "result": result}))
    (folder / "metrics.csv").write_text("step,tokens,train_nats\n2,3000,1.5\n3,4000,1.3\n3,4000,\n")
    for split in ("valid", "test"):
        text = json.dumps({"model": {"nats": nats, "perplexity": math.exp(nats)}})
        (folder / f"likelihood-{split}.json").write_text(text)


def test_slopes_of_sizes_at_equal_passes(script, tmp_path, capsys):
    sizes = script("sizes")
    parameters = {"250k": 262720, "1m4": 1401472, "7m": 7012608}
    for name, count in parameters.items():
        made(tmp_path / f"{name}-4", 2 - 0.03 * math.log(count))
    made(tmp_path / "7m-16", 1.5)
    (tmp_path / "3m5-4").mkdir()
    sizes.main(tmp_path, tmp_path / "out.csv")
    shown = capsys.readouterr().out
    assert "4 passes: -0.0300 nats for e times as many parameters, 3 sizes" in shown
    # 3.075, 2.925 and 2.804 by hand.
    assert "the paper, the same sizes: -0.0281" in shown
    assert "16 passes: " not in shown
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["250k-4", "1m4-4", "7m-4", "7m-16"]
    assert rows[0]["passes"] == "4.00"
    assert float(rows[0]["train_nats"]) == pytest.approx(1.4)
    with pytest.raises(SystemExit, match="no finished run"):
        sizes.main(tmp_path / "250k-4", tmp_path / "none.csv")
