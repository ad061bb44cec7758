"""Pushes an exported folder to the Hugging Face Hub, through the extra [hub]."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mamba_bio_audio import __version__
from mamba_bio_audio.errors import InputError, NetworkError

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")


class Push:
    """A push that has been checked: the name is valid, the extra is installed, and the Hub knows the token.

    Args:
        repository: OWNER/NAME, or NAME of one's own.

    Raises:
        InputError: it is no such name, the extra or a token is missing, or the Hub refuses the token.
        NetworkError: the Hub cannot be reached.
    """

    def __init__(self, repository: str) -> None:
        parts = repository.split("/")
        if len(parts) > 2 or not all(_NAME.fullmatch(part) and not re.search(r"--|\.\.", part) for part in parts):
            raise InputError(
                f"--push {repository}: not a repository; give OWNER/NAME of letters, digits, '.', '_' and '-'"
            )
        try:
            from huggingface_hub import HfApi
        except ImportError:
            raise InputError("--push needs huggingface_hub; install it: pip install 'mamba-bio-audio[hub]'") from None
        self.repository = repository
        self.api: Any = HfApi()
        if self.api.token is None and _stored_token() is None:
            raise InputError(
                "--push needs a token of the Hugging Face Hub; log in with `hf auth login`, or set HF_TOKEN"
            )
        with _asking("nothing was exported"):
            self.api.whoami()

    def push(self, folder: Path, files: Sequence[str], *, private: bool) -> str:
        """Upload files of a folder, and nothing else in it; a repository that does not exist is made. Returns its address.

        Raises:
            InputError: the Hub refuses, as where the token may not write there.
            NetworkError: the connection failed.
        """
        with _asking(f"the export is complete in {folder}; to push it, repeat the command with --force"):
            made = self.api.create_repo(self.repository, private=private, exist_ok=True)
            self.api.upload_folder(
                repo_id=made.repo_id,
                folder_path=folder,
                allow_patterns=[re.sub(r"([*?[])", r"[\1]", name) for name in files],
                commit_message=f"Export of mamba-bio-audio {__version__}",
            )
        return str(made)


def _stored_token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


@contextmanager
def _asking(kept: str) -> Iterator[None]:
    """Turn what the client raises into one message; which library it connects with depends on its version."""
    try:
        yield
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise InputError(
                f"--push: the Hub refuses this token (HTTP {status}); give one that may write; {kept}"
            ) from error
        lines = str(error).splitlines() or [""]
        raise NetworkError(f"--push: {type(error).__name__}: {lines[0]}; {kept}") from error
