"""What the `mba prepare` commands share: options, progress on a terminal, and the result."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal

from pydantic import Field

from mamba_bio_audio.jobs.common import counters
from mamba_bio_audio.jobs.contract import Cli, DryRun, Force, Options, Result
from mamba_bio_audio.pipelines.audio.prepare_settings import (
    BAD_FILES_HELP,
    CHANNELS_HELP,
    UNHEALTHY_HELP,
    Channels,
    Unhealthy,
)
from mamba_bio_audio.pipelines.reporter import Reporter
from mamba_bio_audio.text import show, table

Url = Annotated[str | None, Cli(metavar="ADDRESS")]
At = Cli(flag="--from", metavar="PATH")
BadFiles = Annotated[Literal["error", "exclude"], Field(description=BAD_FILES_HELP)]
ChannelsOption = Annotated[Channels, Field(description=CHANNELS_HELP)]
UnhealthyOption = Annotated[Unhealthy, Field(description=UNHEALTHY_HELP)]
Downloads = Annotated[Path | None, Field(description="Folder for downloaded files; by default OUT.downloads.")]
# Of compressed DNA; archives of recordings have another default.
MaxUnpackedGb = Annotated[
    float | None,
    Field(
        gt=0,
        allow_inf_nan=False,
        description="Refuse a compressed file that unpacks to more gigabytes; by default 1,000, or 200 times its size.",
    ),
]
MaxArchiveGb = Annotated[
    float, Field(ge=0, allow_inf_nan=False, description="Refuse an archive that unpacks to more gigabytes.")
]


class PrepareOptions(Options):
    """Options of every `mba prepare` command."""

    out: Path = Field(description="Folder to make; use it as data.path.")
    force: Force = False


class CheckedOptions(PrepareOptions):
    """Options of the commands that check everything from files at hand."""

    dry_run: DryRun = False


class Prepared(Result):
    """A prepared folder.

    Attributes:
        manifest: contents of its manifest.json.
        rows: the same as lines for people: (what, value).
        last_line: what to do with the folder.
    """

    manifest: dict[str, Any]
    rows: list[tuple[str, str]]
    last_line: str

    def text(self) -> str:
        """The table, and the next step."""
        return f"{table(self.rows)}\n{self.last_line}"

    def to_json(self) -> Any:
        """The manifest alone."""
        return self.manifest


def prepared(
    options: PrepareOptions,
    manifest: dict[str, Any],
    summary_rows: Callable[[dict[str, Any]], Sequence[tuple[str, str]]],
    next_step: str,
) -> Prepared:
    """The result of a preparation; `next_step` is a verb and a recipe, such as "pretrain dna/tiny"."""
    last_line = f"next: mba {next_step} --set {quote(f'data.path={options.out}')}"
    if isinstance(options, CheckedOptions) and options.dry_run:
        last_line = f"--dry-run: {options.out} was not written"
    return Prepared(manifest=manifest, rows=list(summary_rows(manifest)), last_line=last_line)


@contextmanager
def terminal(options: PrepareOptions) -> Iterator[Reporter]:
    """A reporter that writes notes to standard error and shows a bar for each part that runs; silent with --quiet."""
    with counters(options.quiet) as tell:

        class Terminal(Reporter):
            def note(self, text: str) -> None:
                if not options.quiet:
                    show(text, file=sys.stderr)

            def progress(self, what: str, done: int, total: int | None) -> None:
                tell(what, done, total)

        yield Terminal()
