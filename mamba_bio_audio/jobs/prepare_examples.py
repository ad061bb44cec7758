"""`mba prepare examples`: files to try the tools with."""

from __future__ import annotations

from typing import Any

from mamba_bio_audio.jobs.contract import Result
from mamba_bio_audio.jobs.prepare import PrepareOptions
from mamba_bio_audio.text import table

COMMAND = "prepare examples"
PANEL = "Data"


class ExamplesOptions(PrepareOptions):
    """Options of `mba prepare examples`."""


class ExamplesResult(Result):
    """What was written.

    Attributes:
        folder: where it lies.
        found: each file or folder in it, and what it is.
    """

    folder: str
    found: dict[str, str]

    def text(self) -> str:
        """A line for each, and where to go on."""
        return f"{table(list(self.found.items()))}\nnext: the guides of the documentation, or mba demo"

    def to_json(self) -> Any:
        """The files alone."""
        return self.found


def run(options: ExamplesOptions) -> ExamplesResult:
    """Write small files to try every command with: slices of genomes, calls, labels. They come with the package."""
    from mamba_bio_audio.pipelines.dna.examples import write_examples

    return ExamplesResult(folder=str(options.out), found=write_examples(options.out, force=options.force))
