"""What runs on a GPU only is what the last GPU run tested, or is listed as untested, and the README says so."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "gpu_record.py"
specification: Any = importlib.util.spec_from_file_location("gpu_record", SCRIPT)
gpu_record = importlib.util.module_from_spec(specification)
specification.loader.exec_module(gpu_record)


def test_the_record_of_this_tree():
    if not gpu_record.RECORD.exists():
        assert os.environ.get("CI") != "true", "no GPU run is recorded: scripts/gpu_record.py"
        pytest.skip("no GPU run is recorded yet")
    record = gpu_record.read(gpu_record.RECORD)
    assert not gpu_record.complaints(record, ROOT, (ROOT / "README.md").read_text())
    assert {"commit", "date", "gpu", "torch", "triton", "passed", "skipped", "failed"} <= record.keys()


def test_what_is_watched():
    """Every pattern names files, and all kernels and operations are among them."""
    found = gpu_record.watched(ROOT)
    assert all(list(ROOT.glob(pattern)) for pattern in gpu_record.WATCHED)
    for folder in ("kernels", "ops"):
        paths = {p.relative_to(ROOT).as_posix() for p in (ROOT / "mamba_bio_audio" / folder).rglob("*.py")}
        assert len(paths) > 5
        assert paths <= found.keys()
    assert {f"mamba_bio_audio/{name}.py" for name in ("training/graphed", "inference/decoding")} <= found.keys()


@pytest.fixture
def tree(tmp_path):
    """Two watched files and a record of them."""
    folder = tmp_path / "mamba_bio_audio" / "kernels" / "scan"
    folder.mkdir(parents=True)
    (folder / "one.py").write_text("1\n")
    (tmp_path / "mamba_bio_audio" / "ops").mkdir()
    (tmp_path / "mamba_bio_audio" / "ops" / "two.py").write_text("2\n")
    files = gpu_record.watched(tmp_path)
    assert len(files) == 2
    return tmp_path, {"passed": 3, "skipped": 0, "failed": 0, "files": files, "untested": {}}


SAYS = f"... {gpu_record.README_SENTENCE} ..."


def test_nothing_to_complain_of(tree):
    root, record = tree
    assert gpu_record.complaints(record, root, "") == []


@pytest.mark.parametrize("how", ["changed", "new"])
def test_what_no_gpu_has_run_must_be_listed_and_told(tree, how):
    root, record = tree
    path = root / "mamba_bio_audio" / "kernels" / ("scan/one.py" if how == "changed" else "two.py")
    path.write_text("3\n")
    name = path.relative_to(root).as_posix()
    (complaint,) = gpu_record.complaints(record, root, "")
    assert name in complaint
    marked = gpu_record.mark(record, root, "no GPU at hand")
    assert marked["untested"] == {name: "no GPU at hand"}
    (complaint,) = gpu_record.complaints(marked, root, "")
    assert "README.md must say" in complaint
    assert gpu_record.complaints(marked, root, SAYS) == []
    # What was listed keeps its reason, and leaves the list when it is as it was.
    path.write_text("4\n")
    assert gpu_record.mark(marked, root, "later")["untested"] == {name: "no GPU at hand"}
    if how == "changed":
        path.write_text("1\n")
        assert gpu_record.mark(marked, root, "later")["untested"] == {}


def test_a_few_tests_that_did_not_end_are_told(tree):
    root, record = tree
    record = record | {"passed": 20, "pending": ["tests/test_a.py::test_a"]}
    (complaint,) = gpu_record.complaints(record, root, "")
    assert "README.md must say" in complaint
    assert gpu_record.complaints(record, root, SAYS) == []


def test_a_list_that_is_too_long_or_a_readme_that_says_too_much(tree):
    root, record = tree
    listed = record | {"untested": {"mamba_bio_audio/ops/two.py": "changed"}}
    (complaint,) = gpu_record.complaints(listed, root, SAYS)
    assert "is what the last GPU run tested" in complaint
    (complaint,) = gpu_record.complaints(record, root, SAYS)
    assert "take out of README.md" in complaint


@pytest.mark.parametrize("counts", [{"failed": 1}, {"passed": 0}, {"pending": ["tests/test_a.py::test_a"]}])
def test_runs_that_failed_count_for_nothing(tree, counts, tmp_path):
    root, record = tree
    (complaint,) = gpu_record.complaints(record | counts, root, "")
    assert "recorded GPU run" in complaint
    file = tmp_path / "record.json"
    file.write_text(json.dumps(record | counts | {"commit": "1" * 40}))
    done = subprocess.run([sys.executable, SCRIPT, "accept", file], capture_output=True, text=True)
    assert done.returncode == 1
    assert "none may fail" in done.stderr


def test_which_tests_it_runs():
    files = gpu_record.gpu_test_files(ROOT)
    assert {
        "tests/kernels/mixer/test_recompute.py",
        "tests/training/test_graphed.py",
        "tests/jobs/test_doctor.py",
    } <= set(files)
    file = "tests/kernels/norm/test_gpu.py"
    assert file in files
    names = gpu_record.gpu_tests(ROOT, [file])
    assert len(names) == 12
    assert all(name.startswith(f"{file}::test_gpu[") for name in names)


SOME = """
import os, pathlib, pytest, signal, time
def test_a(): pass
def test_b(): pytest.skip('no')
def test_c(): assert pathlib.Path('mended').exists()
def test_d(): pass
@pytest.fixture
def broken():
    yield
    raise OSError
def test_e(broken): pass
def test_f():
    if not pathlib.Path('mended').exists():
        os._exit(3)
def test_g():
    pathlib.Path('pid').write_text(str(os.getpid()))
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(300)
"""
MACHINE = {"commit": "1" * 40, "date": "2026-12-01", "gpu": "G", "torch": "2", "triton": "3"}


def names_of(letters):
    return [f"tests/test_some.py::test_{letter}" for letter in letters]


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """Runs tests of a tree that need no GPU."""
    for name in ("mamba_bio_audio/ops/one.py", "tests/conftest.py", "tests/test_other.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "tests" / "test_some.py").write_text(SOME)
    monkeypatch.setattr(gpu_record, "gpu_test_files", lambda root: ["tests/test_some.py"])

    def run(letters, before=None):
        monkeypatch.setattr(gpu_record, "gpu_tests", lambda root, files: names_of(letters))
        record = gpu_record.run(tmp_path, tmp_path / "record.json", MACHINE, 1, 5, before)
        assert gpu_record.read(tmp_path / "record.json") == record
        return record

    return tmp_path, run


def test_what_a_run_lacks_another_one_makes_up_for(suite):
    """After a failure, or the death of a process, another one goes on; what failed once is told although it passed later."""
    root, run = suite
    first = run("abcfd")
    assert list(first["ended"]["passed"]) == names_of("ad")
    assert list(first["ended"]["skipped"]) == names_of("b")
    assert first["failures"] == names_of("c")
    assert first["pending"] == names_of("f")
    assert gpu_record.lacks(first) == "2 passed, 1 failed and 1 unfinished tests"
    (root / "mended").touch()
    second = run("acdfe", first)
    assert list(second["ended"]["passed"]) == names_of("adcf")
    assert (second["ended"]["skipped"], second["pending"]) == ({}, [])
    assert gpu_record.lacks(second) == "4 passed, 1 failed and 0 unfinished tests"
    assert second["runs"] == [
        MACHINE | {"passed": 2, "skipped": 1, "failed": 1, "failures": names_of("c")},
        MACHINE | {"passed": 2, "skipped": 0, "failed": 1, "failures": names_of("e")},
    ]


def test_a_run_that_is_told_to_end_leaves_what_it_has(suite):
    root, run = suite
    record = run("agd")
    assert list(record["ended"]["passed"]) == names_of("a")
    assert record["pending"] == names_of("gd")
    assert not Path("/proc", (root / "pid").read_text()).exists()


def test_which_tests_of_a_run_before_count():
    files = {
        "files": {"ops.py": "1"},
        "test_files": {"tests/conftest.py": "1", "tests/test_a.py": "1", "tests/test_b.py": "1"},
    }
    now = MACHINE | files
    names = [f"tests/test_{letter}.py::test" for letter in "abc"]
    before = now | {"ended": {"passed": dict.fromkeys(names[:2], 1.0), "skipped": {names[2]: 0.1}}}
    changed = now | {"test_files": files["test_files"] | {"tests/test_b.py": "2"}}
    assert gpu_record.done_before(before, now) == ({names[0]: 1.0, names[1]: 1.0}, {}, {})
    assert gpu_record.done_before(before, changed) == ({names[0]: 1.0}, {}, {})
    others = [{"gpu": "H"}, {"files": {"ops.py": "2"}}, {"files": {}}, {"test_files": {"tests/conftest.py": "2"}}]
    for other, told in zip(others, ["gpu", "ops.py", "ops.py", "tests/conftest.py"], strict=True):
        with pytest.raises(SystemExit, match=f"another {told}; run all"):
            gpu_record.done_before(before, now | other)
    del before["ended"]
    with pytest.raises(SystemExit, match="does not name the tests"):
        gpu_record.done_before(before, now)


def test_the_slowest_begin_first_after_those_that_were_never_timed(suite, monkeypatch):
    root, _ = suite
    began = []
    monkeypatch.setattr(
        gpu_record, "run_tests", lambda root, names, *rest: began.extend(names) or gpu_record.Ends({}, {}, {})
    )
    timed = {"passed": dict(zip(names_of("abc"), [3.0, 9.0, 5.0], strict=True)), "skipped": {}}
    monkeypatch.setattr(gpu_record, "RECORD", root / "before.json")
    gpu_record.write(gpu_record.RECORD, {"ended": timed})
    monkeypatch.setattr(
        gpu_record, "gpu_tests", lambda root, files: [*names_of("abcde"), "tests/test_other.py::test_f"]
    )
    gpu_record.run(root, root / "record.json", MACHINE, 1, 5)
    assert began == ["tests/test_other.py::test_f", *names_of("debca")]


def test_what_needs_a_gpu_is_marked():
    """A test that only asks `torch.cuda.is_available()` would never be part of a GPU run."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        text = path.read_text()
        if "torch.cuda.is_available()" in text:
            assert "mark.gpu" in text, path
