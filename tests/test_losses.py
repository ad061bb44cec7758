"""The table of where we lose says what the result files say."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
specification: Any = importlib.util.spec_from_file_location("losses", ROOT / "scripts" / "losses.py")
losses = importlib.util.module_from_spec(specification)
sys.modules["losses"] = losses
specification.loader.exec_module(losses)


@pytest.mark.parametrize("page", losses.PLACES)
def test_the_table_is_that_of_the_files(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert losses.filled(page) == text, "python scripts/losses.py --write"


def test_it_stands_in_the_page_of_benchmarks():
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert len(losses.BLOCK.findall(text)) == 1
    assert text.count("\n| speed") > 3


@pytest.mark.parametrize("claim", losses.CLAIMS, ids=lambda claim: claim.__name__)
def test_every_claim_has_a_best_and_a_worst_row_of_files_that_exist(claim):
    found = claim()
    assert found.best != found.worst
    assert "**" in found.worst
    assert "**" not in found.best
    for name in found.file.split("`")[1::2]:
        assert (losses.RESULTS / name).exists(), name


def test_ends_are_the_extremes():
    assert losses.ends([(1.5, "b"), (0.456, "c"), (2.0, "a")]) == ("2.00x: a", "**0.46x**: c")


def test_rows_that_are_not_there_are_an_error():
    with pytest.raises(LookupError, match=r"cpu\.csv"):
        losses.rows("cpu.csv", peer="nobody")
