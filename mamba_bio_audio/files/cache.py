"""Where files are kept that can be made again: indexes of genomes, judges of generated digits."""

import os
import sys
from pathlib import Path

from mamba_bio_audio.errors import InputError

CACHE_VARIABLE = "MAMBA_BIO_AUDIO_CACHE"


def cache_folder() -> Path:
    """Folder for indexes and other files that can be recreated.

    `$MAMBA_BIO_AUDIO_CACHE`, or else `mamba_bio_audio` in `$XDG_CACHE_HOME`, or in the system's folder for caches:
    `~/.cache`, on macOS `~/Library/Caches`, on Windows `%LOCALAPPDATA%`.

    Raises:
        InputError: this user has no home folder, and none of the variables is set.
    """
    configured = os.environ.get(CACHE_VARIABLE)
    base = configured or os.environ.get("XDG_CACHE_HOME")
    if not base and sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
    if not base:
        base = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    expanded = os.path.expanduser(base)
    if expanded.startswith("~"):
        raise InputError(f"{base}: there is no home folder; set {CACHE_VARIABLE} to a folder for the cache")
    return Path(os.path.abspath(expanded), *([] if configured else ["mamba_bio_audio"]))
