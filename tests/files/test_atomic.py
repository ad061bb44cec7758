"""Files are whole or absent, also on a full disk, whatever library meets it."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from mamba_bio_audio.files import atomic_path, write_json, write_text
from mamba_bio_audio.training import metrics

FULL = {
    "python": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "quota": OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    "other file": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/tmpabc"),
    "safetensors": RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    "libsndfile": soundfile.LibsndfileError(2),
    "torch": RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
}


def write_half(path: Path, error: BaseException) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize("kind", FULL)
def test_full_disk_keeps_what_was_there_and_is_one_error(kind, tmp_path):
    path = tmp_path / "good.txt"
    write_text(path, "good")
    with pytest.raises(OSError, match=r"no space left on the disk; the previous contents are kept") as error:
        write_half(path, FULL[kind])
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename == str(path)
    assert path.read_text() == "good"
    assert os.listdir(tmp_path) == ["good.txt"]


def test_other_errors_pass_unchanged(tmp_path):
    path = tmp_path / "good.txt"
    for error in (KeyError("x"), OSError(errno.EACCES, "denied"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as raised:
            write_half(path, error)
        assert raised.value is error
        assert os.listdir(tmp_path) == []


REAL = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from mamba_bio_audio.files import atomic_path, write_text
from mamba_bio_audio.files.tensors import save_tree

folder = Path(sys.argv[1])
large = {"w": torch.zeros(1_000_000)}


def with_path(write):
    def save(path):
        with atomic_path(path) as temporary:
            write(large, temporary)
    return save


for name, save in {
    "text": lambda path: write_text(path, "x" * 2_000_000),
    "safetensors": with_path(save_file),
    "torch": with_path(torch.save),
    "checkpoint": lambda path: save_tree(path, large),
}.items():
    path = folder / name
    path.write_text("good")
    try:
        save(path)
    except OSError as error:
        assert error.errno == 28 and error.filename == str(path), error
        assert path.read_text() == "good"
        path.unlink()
        assert not list(folder.iterdir())
        print(name, "kept")
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare to mount a small disk with")
def test_really_full_disk(tmp_path):
    """On a mounted disk of one megabyte: text, safetensors, torch.save and checkpoints."""
    mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path}"
    if subprocess.run(["unshare", "-Urm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    script = f'{mount} && exec "$0" -c "$1" {tmp_path}'
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script, sys.executable, REAL],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent.parent,
    )
    assert done.stdout.split("\n")[:-1] == [
        f"{name} kept" for name in ("text", "safetensors", "torch", "checkpoint")
    ], done.stderr


def test_metrics_row_on_a_full_disk_names_the_file():
    with pytest.raises(OSError, match="no space left on the disk") as error:
        metrics.append(Path("/dev/full"), {"step": 1})
    assert error.value.filename == "/dev/full"


def test_json_of_an_unwritable_folder_is_the_systems_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError):
        write_json(tmp_path / "file" / "a.json", {})
