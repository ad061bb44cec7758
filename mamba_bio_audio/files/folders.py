"""Folders that a command makes, and may therefore replace.

A marker (`.mba.json`) in the folder names the command and the files it made there. `--force` replaces a folder only if
the same command made it and nothing else has been put there since, and never one that contains an input of the command
or the current directory. The old folder is moved aside (`.NAME.mba-old`) and deleted once the new one is in place.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files.atomic import check_folder, read_json, write_json
from mamba_bio_audio.files.locks import locked

MARKER = ".mba.json"
_PROGRAM = "mamba-bio-audio"


class Maker(NamedTuple):
    """A command that makes folders.

    Attributes:
        command: as a user types it, for example "prepare audio".
        patterns: shell patterns, relative to the folder, of what it and later commands write there over time (`*` does
            not match `/`). Empty if the folder appears complete, because the marker then lists the files themselves.
    """

    command: str
    patterns: tuple[str, ...] = ()


def mark(folder: Path, maker: Maker, files: Sequence[str] = ()) -> None:
    """Write the marker, which says that `maker` made this folder and `files` (relative paths) in it."""
    write_json(folder / MARKER, {"program": _PROGRAM, "command": maker.command, "files": sorted(files)})


def read_marker(folder: Path) -> dict[str, Any] | None:
    """The marker of a folder; None if this program wrote none there, or it is only a link to one."""
    path = folder / MARKER
    if path.is_symlink():
        return None
    try:
        marker = read_json(path)
    except (OSError, ValueError):
        return None
    if not isinstance(marker, dict) or marker.get("program") != _PROGRAM or not isinstance(marker.get("files"), list):
        return None
    return marker


def check_outside(out: Path, inputs: Iterable[Path | str]) -> None:
    """Refuse an output that is, or contains, an input of the command or the current directory.

    An input folder includes everything that links in it lead to, unless `out` itself is in that folder.

    Raises:
        InputError: it is, or contains, one of these.
    """
    place = Path(os.path.realpath(out))
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise InputError("the current directory has been deleted; change to another one") from None
    if _lies_in(here, place):
        raise InputError(f"{out}: contains the current directory, so it is not replaced; choose another --out")
    for given in inputs:
        around = Path(os.path.realpath(given)) in place.parents
        for source in (given,) if around or not place.is_dir() else (given, *_links(given)):
            if _lies_in(source, place):
                raise InputError(f"{out}: holds {source}, an input of this command; choose another --out")


def _lies_in(path: Path | str, folder: Path) -> bool:
    """Whether a path is `folder`, which is real, or inside it; also under another name, as on case-insensitive disks."""
    real = Path(os.path.realpath(path))
    places = (real, *real.parents)
    if folder in places:
        return True
    return folder.exists() and any(place.exists() and place.samefile(folder) for place in places)


def _links(folder: Path | str) -> Iterator[str]:
    """The links in a folder, at any depth."""
    for base, folders, names in os.walk(folder):
        paths = (os.path.join(base, name) for name in (*folders, *names))
        yield from (path for path in paths if os.path.islink(path))


def check_replaceable(out: Path, maker: Maker) -> None:
    """Refuse to replace a folder unless `maker` made everything in it.

    Raises:
        InputError: it has no marker or that of another command, or contains anything else.
    """
    marker = read_marker(out)
    if marker is None:
        raise InputError(
            f"{out}: not marked as made by mba {maker.command} ({MARKER} is missing), so --force does not replace it; "
            "choose another --out, or move the folder away yourself"
        )
    if marker.get("command") != maker.command:
        raise InputError(
            f"{out}: made by mba {marker.get('command')}, so --force of mba {maker.command} does not replace it; choose "
            "another --out"
        )
    foreign = foreign_files(out, maker, marker["files"])
    if foreign:
        more = f" and {len(foreign) - 1:,} more" if len(foreign) > 1 else ""
        raise InputError(
            f"{out}: holds {foreign[0]}{more}, not made by mba {maker.command}, which --force would delete; move it "
            "away, or choose another --out"
        )


def foreign_files(folder: Path, maker: Maker, files: Iterable[str]) -> list[str]:
    """Files in a folder that `maker` did not make, as sorted relative paths."""
    own = {MARKER, *files}

    def matches(relative: str) -> bool:
        parts = relative.split("/")
        if re.fullmatch(r"\..+\.\d+\.tmp|\.tmp\w{6}", parts[-1]):
            # A temporary file of `atomic_path`, or of safetensors, left behind by a killed process.
            return True
        patterns = [pattern.split("/") for pattern in maker.patterns]
        return any(len(own) == len(parts) and all(map(fnmatchcase, parts, own)) for own in patterns)

    found = []
    for base, folders, names in os.walk(folder):
        # A link to a folder is listed as a folder, and not entered.
        links = [name for name in folders if os.path.islink(os.path.join(base, name))]
        for name in [*names, *links]:
            relative = os.path.relpath(os.path.join(base, name), folder).replace(os.sep, "/")
            if not (relative in own or matches(relative)):
                found.append(relative)
    return sorted(found)


def _work(out: Path) -> Path:
    return out.with_name(f".{out.name}.mba-new")


def _old(out: Path) -> Path:
    return out.with_name(f".{out.name}.mba-old")


def is_occupied(out: Path) -> bool:
    """Whether `out` is a folder that is not empty."""
    return out.is_dir() and any(out.iterdir())


def check_out(out: Path, maker: Maker, inputs: Iterable[Path | str], *, force: bool) -> bool:
    """Whether `out` holds an earlier result that may be replaced; False if it is new or empty.

    Raises:
        InputError: it holds something else, or `force` was not given.
    """
    check_folder(out)
    check_outside(out, inputs)
    if not is_occupied(out):
        if os.path.ismount(out):
            raise InputError(f"{out}: a mount point cannot be replaced; give --out a folder inside it")
        return False
    if not force:
        raise InputError(f"{out} is not empty; choose another --out, or replace an earlier result with --force")
    check_replaceable(out, maker)
    return True


@contextmanager
def new_folder(
    out: Path, maker: Maker, *, inputs: Iterable[Path | str] = (), force: bool = False, dry_run: bool = False
) -> Iterator[Path]:
    """A folder that becomes `out` when the block ends well, whole; on any other end nothing is left of it.

    What a killed process leaves is removed by the next call.

    Args:
        out: the output; new or empty, or with `force` made by the same command.
        maker: the command; it needs no patterns, since the marker lists all files.
        inputs: files and folders that the command reads.
        dry_run: only check `out`, and yield a temporary folder that is deleted at the end.

    Raises:
        InputError: `out` holds something else, or another process is writing it.
    """
    out = Path(os.path.realpath(out))
    inputs = [*inputs]
    check_out(out, maker, inputs, force=force)
    if dry_run:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    with locked(out):
        restore(out, maker)
        check_out(out, maker, inputs, force=force)
        work = _work(out)
        _remove_ours(work)
        work.mkdir()
        try:
            # Marked at once, so that what a killed process leaves is recognised as ours.
            mark(work, maker)
            yield work
            mark(work, maker, [file.relative_to(work).as_posix() for file in work.rglob("*") if not file.is_dir()])
            put_in_place(work, out, maker)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise


def put_in_place(work: Path, out: Path, maker: Maker) -> None:
    """Rename the finished folder `work` to `out`, then delete the earlier result there.

    Raises:
        InputError: `out` contains anything that `maker` did not make, even if added while `work` was being made.
    """
    if is_occupied(out):
        check_replaceable(out, maker)
        _remove_ours(_old(out), maker)
        os.rename(out, _old(out))
    elif out.exists():
        out.rmdir()
    try:
        os.rename(work, out)
    except BaseException:
        if _old(out).exists():
            os.rename(_old(out), out)
        raise
    _remove_ours(_old(out), maker)


def check_file(
    out: Path,
    command: str,
    ours: Callable[[Path], bool],
    inputs: Iterable[Path | str] = (),
    *,
    force: bool,
    option: str = "--out",
) -> None:
    """Refuse an output file that may not be written.

    Args:
        out: the file.
        command: the command that makes it, as a user types it.
        ours: whether an existing file, judged by its contents, was made by that command.
        inputs: files and folders that the command reads.
        force: whether an earlier result may be replaced.
        option: that names the file.

    Raises:
        InputError: it is a folder or an input, exists without `force`, or was not made by this command.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder; give a file")
    if not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}; create it, or choose another {option}")
    place = os.path.realpath(out)
    for given in inputs:
        if os.path.realpath(given) == place:
            raise InputError(f"{out}: an input of this command; choose another {option}")
    if not out.exists():
        return
    if not force:
        raise InputError(f"{out} exists; choose another {option}, or replace it with --force")
    if not out.is_file() or not ours(out):
        raise InputError(
            f"{out}: not made by mba {command}, so --force does not replace it; choose another {option}, or move the file "
            "away yourself"
        )


def begins_with(*starts: str) -> Callable[[Path], bool]:
    """A test for `check_file`: the file starts with one of these texts, or is empty and so no loss."""

    def ours(path: Path) -> bool:
        with path.open("rb") as file:
            head = file.read(max(map(len, starts)))
        return not head or any(head.startswith(start.encode()) for start in starts)

    return ours


@contextmanager
def replacing(out: Path, maker: Maker, stands: Callable[[Path], bool]) -> Iterator[None]:
    """Remake a folder in place over a long time, keeping the old one aside until the new one `stands`.

    The caller holds the lock and has called `check_out`. However the block ends, the old folder is then deleted if the
    new one stands, and put back otherwise. After a kill the next `restore` decides.

    Args:
        stands: whether a folder is worth more than its predecessor, for example because it holds weights.

    Raises:
        InputError: `out` contains anything that `maker` did not make, even if added since `check_out`.
    """
    if is_occupied(out):
        check_replaceable(out, maker)
        _remove_ours(_old(out), maker)
        os.rename(out, _old(out))
    try:
        yield
    finally:
        restore(out, maker, stands)


@contextmanager
def growing_folder(
    out: Path, maker: Maker, whole: str, *, inputs: Iterable[Path | str] = (), force: bool = False
) -> Iterator[Path]:
    """Yield a folder that is made in place over a long time, and that the same command continues after a kill.

    Args:
        maker: the command, with patterns for everything it makes.
        whole: the file written last; a folder that holds it is complete.
        inputs: files and folders that the command reads.
        force: remake a complete folder; the old one is deleted when the new one is complete.

    Raises:
        InputError: `out` is complete, holds something else, or is being written by another process.
    """
    out = Path(os.path.realpath(out))
    inputs = [*inputs]

    def stands(folder: Path) -> bool:
        return (folder / whole).exists()

    def occupied() -> bool:
        check_folder(out)
        check_outside(out, inputs)
        if not is_occupied(out):
            return False
        if not force and (stands(out) or read_marker(out) is None):
            raise InputError(f"{out} is not empty; choose another --out, or replace an earlier result with --force")
        check_replaceable(out, maker)
        return True

    occupied()
    with locked(out):
        restore(out, maker, stands)
        anew = occupied() and force
        with replacing(out, maker, stands) if anew else nullcontext():
            out.mkdir(exist_ok=True)
            try:
                mark(out, maker)
                yield out
            finally:
                # The command failed before it made anything.
                if [path.name for path in out.iterdir()] == [MARKER]:
                    shutil.rmtree(out)


def restore(out: Path, maker: Maker, stands: Callable[[Path], bool] = lambda folder: True) -> None:
    """Settle an interrupted replacement of `out`: delete the old folder if `out` stands, otherwise put it back.

    Raises:
        InputError: what would be deleted contains anything that `maker` did not make.
    """
    old = _old(out)
    if not old.is_dir():
        return
    if is_occupied(out) and stands(out):
        _remove_ours(old, maker)
        return
    if out.is_dir():
        if is_occupied(out):
            if read_marker(out) is None:
                raise InputError(
                    f"{old}: left over from an interrupted --force; move either {out.name} or {old.name} away"
                )
            check_replaceable(out, maker)
        shutil.rmtree(out)
    os.rename(old, out)


def _remove_ours(folder: Path, maker: Maker | None = None) -> None:
    """Delete a folder left by this module, and made by `maker` if that is given; without a marker only if it is empty."""
    if not folder.is_dir() or folder.is_symlink():
        if folder.exists() or folder.is_symlink():
            raise InputError(f"{folder}: in the way, and not made by this program; move it away")
        return
    if is_occupied(folder) and read_marker(folder) is None:
        raise InputError(f"{folder}: in the way, and not made by this program; move it away")
    if maker is not None and is_occupied(folder):
        check_replaceable(folder, maker)
    shutil.rmtree(folder)
