"""The folder of what can be made again."""

from pathlib import Path

import pytest

from mamba_bio_audio.files.cache import cache_folder


def test_cache_of_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MAMBA_BIO_AUDIO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    for platform, place in (("linux", ".cache"), ("darwin", "Library/Caches"), ("win32", "local")):
        monkeypatch.setattr("sys.platform", platform)
        assert cache_folder() == tmp_path / place / "mamba_bio_audio"
