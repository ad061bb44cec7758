"""One writer at a time, with the owner named, and nothing left of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import locked

HOLD = """
import sys
from pathlib import Path
from mamba_bio_audio.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(out: Path) -> subprocess.Popen[str]:
    """Another process that holds `out` until its standard input is closed."""
    command = [sys.executable, "-c", HOLD, str(out)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_second_writer_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = holder(out)
    with pytest.raises(InputError, match=rf"run: in use by process {process.pid} on .* since .*mba"), locked(out):
        pass
    process.communicate("")
    with locked(out):
        pass
    assert list(tmp_path.iterdir()) == []


def test_same_output_by_another_path_is_the_same_output(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with locked(tmp_path / "run"), pytest.raises(InputError, match="in use"), locked(tmp_path / "link"):
        pass


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = holder(out)
    process.kill()
    process.communicate()
    assert (tmp_path / ".run.lock").exists()
    with locked(out):
        pass
    assert list(tmp_path.iterdir()) == []


def test_folders_made_for_the_lock_go_with_it(tmp_path: Path) -> None:
    with locked(tmp_path / "runs" / "a" / "mine"):
        assert (tmp_path / "runs" / "a").is_dir()
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "runs" / "mine"):
        (tmp_path / "runs" / "mine").mkdir()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine"]


def test_a_file_in_the_place_of_the_parent_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"choose another --out"), locked(tmp_path / "file" / "run"):
        pass
