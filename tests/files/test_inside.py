"""Files of a folder, and none that a link or a name leads to elsewhere."""

import os

import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import inside


def test_own_files_may_be_there_or_not(tmp_path):
    folder = tmp_path / "run"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "a.json").touch()
    (folder / "link.json").symlink_to(folder / "below" / "a.json")
    link = tmp_path / "link"
    link.symlink_to(folder)
    for place in (folder, link):
        for name in ("below/a.json", "link.json", "none.json"):
            assert inside(place, name) == place / name


def test_nothing_from_elsewhere(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    secret = tmp_path / "secret"
    secret.write_text("key")
    (tmp_path / "run2").mkdir()
    (tmp_path / "run2" / "a").touch()
    (folder / "direct").symlink_to(secret)
    (folder / "twice").symlink_to(folder / "direct")
    (folder / "dangling").symlink_to(tmp_path / "none")
    (folder / "up").symlink_to(tmp_path)
    for name in ("direct", "twice", "dangling", "up/secret", "../secret", str(secret), "../run2/a"):
        with pytest.raises(InputError, match="leads out of"):
            inside(folder, name)
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(InputError, match="not a regular file"):
            inside(folder, name)
