"""The data of a run: opening them, and checking that they are what the run was trained on."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.run.config import RunConfig
from mamba_bio_audio.text import show

if TYPE_CHECKING:
    from mamba_bio_audio.pipelines.data import DataModule


def open_data(
    config: RunConfig,
    device: str,
    *,
    length: int | None = None,
    batch_size: int | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> DataModule:
    """The data module of a run; not yet set up.

    Args:
        config: the run's configuration.
        device: "cpu" or "cuda".
        length: symbols per window; None is the training length.
        batch_size: windows per batch; None is the training's micro-batch on `device`.
        progress: called with (what, done, total) while files are indexed, read and compared.
    """
    # With Lightning, which takes seconds to import.
    from mamba_bio_audio.pipelines.data import DataModule

    train = config.train
    data = DataModule(
        config.data,
        length=length or train.length,
        batch_size=batch_size or train.micro_batch_for(device),
        seed=config.seed,
        progress=progress,
    )
    data.task = None if config.head is None else config.head.task
    data.classes = config.model.classes
    return data


def progress_lines(quiet: bool) -> Callable[[str, int, int | None], None] | None:
    """A progress callback that writes a line to standard error every ten seconds; None for quiet."""
    if quiet:
        return None
    told = time.monotonic()

    def tell(what: str, done: int, total: int | None) -> None:
        nonlocal told
        if time.monotonic() - told > 10:
            told = time.monotonic()
            show(f"{what}: {done:,}" + ("" if total is None else f" of {total:,}"), file=sys.stderr)

    return tell


def check_same_data(before: dict[str, Any], now: dict[str, Any], run: Path) -> None:
    """Refuse other files or splits than those that a run was trained on.

    Args:
        before: the data in the run's manifest; what it does not hold is not compared.
        now: summary of the data.
        run: run folder, for messages.

    Raises:
        InputError: they differ.
    """
    hashes = {file["name"]: file["sha256"] for file in before.get("files", [])}
    for file in now["files"]:
        if hashes and hashes.get(file["name"]) != file["sha256"]:
            raise InputError(
                f"{file['path']}: not the file that {run} was trained on (SHA-256 {file['sha256'][:12]}..., "
                f"{hashes.get(file['name'], 'none')[:12]}... in its manifest); restore it"
            )
    if before.get("splits_sha256") not in (None, now["splits_sha256"]):
        raise InputError(f"{run}: the run was trained on other splits; restore {now['split_source']}")


class DataWatch:
    """Notices files that change while a training reads them.

    Args:
        data: set up.
        described: its `summary()`.
        describe: makes the summary anew from the files as they are then.
        run: run folder, for messages.
    """

    def __init__(
        self, data: DataModule, described: dict[str, Any], describe: Callable[[], dict[str, Any]], run: Path
    ) -> None:
        self._described = described
        self._describe = describe
        self._run = run
        self._files = data.corpus.files
        self._seen = self._look()

    def check(self) -> None:
        """Compare sizes and times of the files, and their contents only where these have changed.

        Raises:
            InputError: a file is gone or holds something else; the message says what was kept and how to continue.
        """
        now = self._look()
        changed = [path for path, status in now.items() if status != self._seen[path]]
        if not changed:
            return
        try:
            check_same_data(self._described, self._describe(), self._run)
        except InputError as error:
            raise InputError(
                f"{changed[0]}: the file changed during the training. The last checkpoint and the best weights were saved "
                f"before the change was noticed, and nothing since; restore the file and use --resume to continue "
                f"({error})"
            ) from None
        # The same contents, touched or copied back.
        self._seen = now

    def _look(self) -> dict[str, tuple[int, int] | None]:
        return {path: _size_and_time(path) for path in self._files}


def _size_and_time(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
