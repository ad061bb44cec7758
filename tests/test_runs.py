"""The ledger of trainings is what the result files say."""

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
specification: Any = importlib.util.spec_from_file_location("runs", ROOT / "scripts" / "runs.py")
runs = importlib.util.module_from_spec(specification)
specification.loader.exec_module(runs)


def test_the_page_is_current_and_has_every_training():
    assert runs.current(), "python scripts/runs.py"
    page = runs.PAGE.read_text(encoding="utf-8")
    folders = [path.parent for path in runs.RESULTS.rglob("manifest.json")]
    assert len(folders) > 15
    assert all(f"| `{folder.relative_to(runs.RESULTS).as_posix()}/`" in page for folder in folders)


@pytest.fixture
def results(tmp_path) -> Path:
    """One training that was stopped and went on, without a test loss yet."""
    folder = tmp_path / "long_h200"
    folder.mkdir()
    data = {
        "splits": {"train": {"bases": 50_000_000}},
        "length": 1024,
        "files": [{"name": f"{x}.fa.gz"} for x in "abc"],
    }
    result: dict[str, Any] = {"unit": "base", "stopped_by": "--max-time", "tokens_per_second": 2e6}
    result |= {"valid_bits": 1.65, "valid_perplexity": 3.138}
    manifest: dict[str, Any] = {
        "data": data,
        "result": result,
        "length_stages": [{}],
        "started": "2026-12-01T10:00:00+00:00",
    }
    manifest |= {"device": "NVIDIA H200", "commit": None, "torch": "2.11.0", "triton": "3.6.0"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    model = "model: {backbone: isotropic, mixer: mamba, d_model: 256, num_layers: 16}\n"
    (folder / "config.yaml").write_text(model + "train: {lr: 0.003, length: 1024}\n")
    (folder / "metrics.csv").write_text("step,tokens\n1,100\n2,1000000000\n")
    (tmp_path / "made.csv").write_text("path,field,value,note\nlong_h200/,commit,abc1234,said elsewhere\n")
    return tmp_path


def row(results: Path) -> dict[str, str]:
    lines = [line.strip("| ") for line in runs.page(results).splitlines() if line.startswith("|")]
    return next(csv.DictReader(["\t".join(line.split(" | ")) for line in (lines[0], lines[2])], delimiter="\t"))


def test_a_row_says_what_was_seen_how_long_and_with_what(results):
    assert row(results) == {
        "run": "`long_h200/`, stopped by --max-time",
        "data": "50.0 M bases, a, b and 1 more",
        "model": "16 x 256 mamba",
        "length": "1,024",
        "seen": "1,000 M, 20.0 times",
        "rate": "0.003",
        "seconds": "500 at 2.00 M/s",
        "validation": "1.6500 (3.138)",
        "test": "-",
        "bar": "-",
        "made with": "NVIDIA H200, abc1234, torch 2.11.0, triton 3.6.0, 2026-12-01",
    }


def test_the_bar_is_the_best_simple_model_on_the_same_symbols(results):
    scores = {"bits": 1.6, "perplexity": 3.031}
    markov = {"chosen_order": 16, "best": {"bits": 1.73, "perplexity": 3.317}}
    copies = [
        {"context": 1024, "bits": 1.72, "perplexity": 3.294},
        {"context": 1 << 20, "bits": 1.66, "perplexity": 3.16},
    ]
    path = results / "long_h200" / "evaluate-test.json"
    path.write_text(json.dumps({"model": scores, "markov": markov, "copies": copies}))
    assert (row(results)["test"], row(results)["bar"]) == ("1.6000 (3.031)", "1.6600 (3.160) copies within 1,048,576")
    path.write_text(json.dumps({"model": scores, "yardsticks": {"order 1": 5.2, "LPC-32": 2.6}}))
    assert row(results)["bar"] == "2.6000 LPC-32"


def test_trainings_of_which_a_row_was_kept_have_a_table_of_their_own(results):
    assert "## Sizes" not in runs.page(results)
    head = "run,parameters,bases,passes,seconds,valid_nats,test_nats,test_perplexity,train_nats"
    head += ",device,torch,triton,commit,started"
    row = "250k-2,262720,111700000,2.00,31,1.2,1.1,3.004,1.0,NVIDIA H200,2.11.0,3.6.0,abc-dirty,2026-12-01T03:59:58"
    (results / "sizes_h200.csv").write_text(f"{head}\n{row}\n")
    with (results / "made.csv").open("a") as file:
        file.write("sizes_h200.csv,commit,def5678,said elsewhere\n")
    assert runs.page(results).endswith(
        "| `sizes_h200.csv`, 250k-2 | 262,720 | 112 M, 2.0 times | 31 | 1.4427 | 1.7312 | 1.5870 (3.004) | "
        "NVIDIA H200, def5678, torch 2.11.0, triton 3.6.0, 2026-12-01 |\n"
    )
