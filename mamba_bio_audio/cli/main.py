"""The `mba` command, made from the jobs: errors as one clear message, exit codes 0, 1, 2 and 130."""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
import traceback
import warnings
from contextlib import suppress
from typing import Annotated

import typer

from mamba_bio_audio import __version__
from mamba_bio_audio.cli.adapter import ByPanel, add_commands, job_modules
from mamba_bio_audio.errors import InputError, NetworkError, explain
from mamba_bio_audio.signals import Interrupted, interrupt_on_signals
from mamba_bio_audio.text import printable, show

app = typer.Typer(
    cls=ByPanel,
    help="Long-context Mamba foundation models for genomes and raw audio.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        show(f"mamba-bio-audio {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


add_commands(app, job_modules())


def run(arguments: list[str] | None = None) -> None:
    """Entry point of `mba`; turns exceptions and signals into messages and exit codes."""
    if arguments is None:
        # The process ends with the command: looking for garbage among all that torch imports takes it half a second.
        atexit.register(gc.freeze)
        arguments = sys.argv[1:]
    debug = "--debug" in arguments
    _prepare_streams()
    warnings.formatwarning = _warning
    try:
        with interrupt_on_signals():
            app(arguments, prog_name="mba")
    except Interrupted as stopped:
        show(f"mba: stopped by {stopped}", file=sys.stderr)
        sys.exit(130)
    except InputError as error:
        _fail(error, 2, debug)
    except NetworkError as error:
        _fail(error, 1, debug)
    except Exception as error:
        _fail(error, 1, debug)


class _Messages(io.TextIOWrapper):
    """Standard error whose reader may disappear (a lost terminal, a `tee` stopped by Ctrl-C) without ending the work."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def _prepare_streams() -> None:
    # Where the caller closed a stream (`>&-`), the next file to be opened would get its number, and receive whatever
    # libraries print.
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    elif sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _Messages(sys.stderr.buffer, sys.stderr.encoding, line_buffering=True)
    # Characters that the terminal's encoding lacks are escaped, instead of ending a command that has done its work.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Warnings of this package as one line for people, those of others as Python writes them."""
    if f"{os.sep}mamba_bio_audio{os.sep}" in filename:
        return printable(f"mba: {message}", lines=True) + "\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _fail(error: Exception, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    if isinstance(error, InputError | NetworkError):
        text = str(error)
    elif (explained := explain(error)) is not None:
        text, code = explained
    else:
        name = type(error).__name__
        if isinstance(error, OSError) and error.filename is not None and str(error.filename) not in str(error):
            name = f"{error.filename}: {name}"
        text = f"{name}: {error}" + ("" if debug else "\n(--debug shows where)")
    show(f"mba: {text}", file=sys.stderr)
    sys.exit(code)
