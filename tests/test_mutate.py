"""The mutation script: which faults it puts in, where, and that it knows real files and tests."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
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
        changed = mutant.of(SOURCE).decode().splitlines()
        assert [i for i, (a, b) in enumerate(zip(lines, changed, strict=True), 1) if a != b] == [mutant.line]
    assert found["constant: 7 -> (8)"].of(SOURCE).decode().splitlines()[1] == "LIMIT: int = (8)  # of cafés"


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
    mutants = [mutate.Mutant("a.py", line, "constant: 1 -> (2)", 0, 0, "") for line in (1, 2, 3)]
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
    trial = mutate.Trial(order, {"some.py": ["test_some.py"]}, jobs=1, deadline=time.monotonic() + 300)
    trial.run()
    found = mutate.report(trial.outcomes)
    assert (found["killed"], found["tried"]) == (1, 3)
    assert len(found["survivors"]) == 2
    assert all("some.py:6" in survivor for survivor in found["survivors"])
    assert (tmp_path / "some.py").read_text().startswith("def seen():\n    return 1\n")


def started(tmp_path: Path, test: str, *options: str) -> subprocess.Popen[str]:
    """The script on a tree of its own with one possible fault, in `some.py`."""
    tree = tmp_path / "tree"
    (tree / "scripts").mkdir(parents=True)
    (tmp_path / "tmp").mkdir()
    shutil.copy(ROOT / "scripts" / "mutate.py", tree / "scripts")
    (tree / "some.py").write_text("def one():\n    return 1\n")
    (tree / "test_some.py").write_text(textwrap.dedent(test))
    command = [sys.executable, str(tree / "scripts" / "mutate.py"), "--files", "some.py", "--tests", "test_some.py"]
    return subprocess.Popen(
        [*command, "--json", str(tmp_path / "found.json"), *options],
        env=os.environ | {"TMPDIR": str(tmp_path / "tmp"), "FIFO": str(tmp_path / "fifo")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(script: subprocess.Popen[str], tmp_path: Path) -> dict[str, Any]:
    """What it wrote, when it has ended in good order."""
    _, errors = script.communicate(timeout=240)
    assert (script.returncode, errors) == (0, "")
    assert not any((tmp_path / "tmp").glob("mutants-*"))
    return json.loads((tmp_path / "found.json").read_text())


@pytest.mark.slow  # starts pytest twice or thrice
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_trial_and_what_its_tests_started(tmp_path, number):
    os.mkfifo(tmp_path / "fifo")
    test = """
        import os, subprocess, some

        def test_it():
            if some.one() != 1:
                fifo = os.open(os.environ["FIFO"], os.O_WRONLY)  # open until the child ends
                os.set_inheritable(fifo, True)
                os.write(fifo, b"x")
                subprocess.run(["sleep", "1000"], close_fds=False)
    """
    script = started(tmp_path, test, "--jobs", "2")
    with open(tmp_path / "fifo", "rb") as fifo:
        assert fifo.read(1) == b"x"
        script.send_signal(number)
        found = ended(script, tmp_path)
        # The end of the file: nobody holds it open for writing any more.
        assert fifo.read() == b""
    assert (found["killed"], found["tried"], found["possible"], found["broken"]) == (0, 0, 1, [])


@pytest.mark.slow  # starts pytest
def test_the_budget_includes_the_tests_as_they_are(tmp_path):
    script = started(tmp_path, "def test_it():\n    import time\n    time.sleep(1000)\n", "--minutes", "0.05")
    found = ended(script, tmp_path)
    assert (found["tried"], found["broken"]) == (0, [])


def test_when_the_time_is_up_tests_end_and_do_not_count(tmp_path, monkeypatch):
    (tmp_path / "some.py").write_text("def one():\n    return 1\n")
    monkeypatch.setattr(mutate, "ROOT", tmp_path)
    trial = mutate.Trial(mutate.drawn(["some.py"], 0), {"some.py": ["x"]}, jobs=2, deadline=time.monotonic() + 3600)
    start, started = subprocess.Popen, []

    def begin(command, **options):
        started.append(start(["sleep", "1000"], **options))
        trial.stop()
        return started[0]

    monkeypatch.setattr(mutate.subprocess, "Popen", begin)
    trial.usual["x",] = 1.0
    trial.run()
    assert [process.returncode for process in started] == [-signal.SIGKILL]
    assert trial.outcomes == []
