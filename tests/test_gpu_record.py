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


def test_a_list_that_is_too_long_or_a_readme_that_says_too_much(tree):
    root, record = tree
    listed = record | {"untested": {"mamba_bio_audio/ops/two.py": "changed"}}
    (complaint,) = gpu_record.complaints(listed, root, SAYS)
    assert "is what the last GPU run tested" in complaint
    (complaint,) = gpu_record.complaints(record, root, SAYS)
    assert "take out of README.md" in complaint


@pytest.mark.parametrize("counts", [{"failed": 1}, {"passed": 0}])
def test_runs_that_failed_count_for_nothing(tree, counts, tmp_path):
    root, record = tree
    (complaint,) = gpu_record.complaints(record | counts, root, "")
    assert "recorded GPU run" in complaint
    file = tmp_path / "record.json"
    file.write_text(json.dumps(record | counts | {"commit": "1" * 40}))
    done = subprocess.run([sys.executable, SCRIPT, "accept", file], capture_output=True, text=True)
    assert done.returncode == 1
    assert "without failures" in done.stderr


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


def test_counts_of_several_processes(tmp_path):
    """What a process that died did not get to has failed."""
    (tmp_path / "test_some.py").write_text(
        "import os, pytest\n"
        "def test_a(): pass\n"
        "def test_b(): pytest.skip('no')\n"
        "def test_c(): assert 0\n"
        "def test_d(): pass\n"
        "@pytest.fixture\ndef broken(): raise OSError\n"
        "def test_e(broken): pass\n"
        "def test_f(): os._exit(3)\n"
    )
    names = [f"test_some.py::test_{letter}" for letter in "acbfde"]
    counts = gpu_record.run_tests(tmp_path, names, 2, minutes=3)
    # a, b and d in one process; c, f and e in the other, of which nothing is known.
    assert counts[:3] == (2, 1, 3)
    assert counts.failures == ["3 that did not end, of " + " ".join(names[1::2])]
    counts = gpu_record.run_tests(tmp_path, names[:3] + names[-1:], 1, minutes=3)
    assert counts[:3] == (1, 1, 2)
    assert counts.failures == ["test_some::test_c", "test_some::test_e"]


def test_what_needs_a_gpu_is_marked():
    """A test that only asks `torch.cuda.is_available()` would never be part of a GPU run."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        text = path.read_text()
        if "torch.cuda.is_available()" in text:
            assert "mark.gpu" in text, path
