"""The mutation script: which faults it puts in, where, and that it knows real files and tests."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
specification: Any = importlib.util.spec_from_file_location("mutate", ROOT / "scripts" / "mutate.py")
mutate = importlib.util.module_from_spec(specification)
specification.loader.exec_module(mutate)

SOURCE = b'''"""A file."""
LIMIT: int = 7  # of caf\xc3\xa9s


@decorated(maxsize=3)
def f(x: Literal[4], y=True):
    """Says 5."""
    if x < LIMIT and y and g:
        raise ValueError(f"{x + 1} of", 9)
    assert x > 2
    forget(x)
    return -x if y else g(x, scale=0.5)
'''


def test_every_fault_is_one_change():
    found = {mutant.what: mutant for mutant in mutate.mutants_of("f.py", SOURCE)}
    assert set(found) == {
        "constant: 7 -> (8)",
        "constant: 7 -> (3)",
        "constant: True -> (False)",
        "condition: x < LIMIT and y and g -> (not (x < LIMIT and y and g))",
        "and, or: x < LIMIT and y and g -> (x < LIMIT or y or g)",
        "part of a condition: x < LIMIT and y and g -> (x < LIMIT and y)",
        "comparison: x < LIMIT -> (x <= LIMIT)",
        "call left out: forget(x) -> pass",
        "branches: -x if y else g(x, scale=0.5) -> (g(x, scale=0.5) if y else -x)",
        "sign or not: -x -> (x)",
        "argument left out: g(x, scale=0.5) -> (g(x))",
        "constant: 0.5 -> (1.5)",
        "constant: 0.5 -> (0.25)",
    }
    lines = SOURCE.decode().splitlines()
    for mutant in found.values():
        changed = mutant.text.splitlines()
        assert [i for i, (a, b) in enumerate(zip(lines, changed, strict=True), 1) if a != b] == [mutant.line]
    assert found["constant: 7 -> (8)"].text.splitlines()[1] == "LIMIT: int = (8)  # of cafés"


def test_a_draw_takes_from_all_files_alike_and_is_that_of_the_seed():
    files = ["mamba_bio_audio/training/schedule.py", "mamba_bio_audio/training/optim.py"]
    order = mutate.drawn(files, seed=1)
    for i in range(0, 20, 2):
        assert {mutant.file for mutant in order[i : i + 2]} == set(files)
    assert order == mutate.drawn(files, seed=1)
    assert order != mutate.drawn(files, seed=2)


def test_the_list_names_what_is_there():
    for file, tests in mutate.CRITICAL.items():
        assert (ROOT / file).is_file(), file
        assert tests
        assert all((ROOT / test).exists() for test in tests), tests


def test_a_report_counts_what_takes_too_long_as_killed():
    mutants = [mutate.Mutant("a.py", line, "constant: 1 -> (2)", "") for line in (1, 2, 3)]
    outcomes = [mutate.Outcome(m, end, 1.0) for m, end in zip(mutants, ("killed", "timeout", "survived"), strict=True)]
    found = mutate.report(outcomes)
    assert (found["killed"], found["tried"], found["score"]) == (2, 3, 0.667)
    assert found["survivors"] == ["a.py:3 constant: 1 -> (2)"]


@pytest.mark.slow  # starts pytest three times
def test_a_trial_finds_what_tests_see_and_what_they_do_not(tmp_path, monkeypatch):
    (tmp_path / "some.py").write_text("def seen():\n    return 1\n\n\ndef unseen():\n    return 5\n")
    (tmp_path / "test_some.py").write_text("from some import seen\ndef test_it(): assert seen() == 1\n")
    monkeypatch.setattr(mutate, "ROOT", tmp_path)
    monkeypatch.setenv("MBA_SHARED_DATA", str(tmp_path))
    order = mutate.drawn(["some.py"], seed=0)
    trial = mutate.Trial(order, {"some.py": ["test_some.py"]}, jobs=1, seconds=300)
    trial.run()
    found = mutate.report(trial.outcomes)
    assert (found["killed"], found["tried"]) == (1, 3)
    assert len(found["survivors"]) == 2
    assert all("some.py:6" in survivor for survivor in found["survivors"])
    assert (tmp_path / "some.py").read_text().startswith("def seen():\n    return 1\n")
