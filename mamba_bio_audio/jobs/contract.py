"""What a job is: typed options in, a typed result out; the command line is made from both (`cli/adapter.py`).

A job is one file in `jobs/` with

    COMMAND = "prepare genome"             the words of its command
    PANEL = "Data"                         where `mba --help` lists it, one of `PANELS`
    class GenomeOptions(Options): ...      fields with defaults, bounds and descriptions: the command's options
    class GenomeResult(Result): ...        what is shown as text, and with --json as JSON
    def run(options: GenomeOptions) -> GenomeResult

Its module top imports neither torch nor Lightning, because `mba --help` imports every job. Whatever a job writes appears
whole, is locked while it grows, resumes by equal options, and never replaces what that job did not make (`files/`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

PANELS = ("Start", "Data", "Train", "Use", "Measure")
# Help of the first word of commands of two words.
GROUPS = {"prepare": "Check, index and split data."}


@dataclass(frozen=True)
class Cli:
    """How a field looks on the command line, where that is not `--its-name`.

    Attributes:
        flag: the option's spelling.
        metavar: what stands for its value in the help.
        argument: given by position, not by name.
        text: given as text, which a validator of the options turns into the value.
    """

    flag: str | None = None
    metavar: str | None = None
    argument: bool = False
    text: bool = False


class Options(BaseModel):
    """Options of a job; frozen. Every command also takes --quiet, --json and --debug.

    Rules between fields are pydantic validators that raise `ValueError`; the command line reports them as bad usage.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    quiet: bool = Field(False, description="Show no progress.")

    def check_json(self) -> None:
        """Refuse --json where standard output is taken, as by records that are written there.

        Raises:
            InputError: it is.
        """


class Result(BaseModel):
    """Result of a job, JSON-able."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    def text(self) -> str:
        """The result for people, for standard output; empty where there is nothing to say."""
        raise NotImplementedError

    def notes(self) -> str:
        """What belongs on standard error, such as how to continue a job that was stopped."""
        return ""

    def to_json(self) -> Any:
        """The result as plain values; keys that were not set are left out."""
        return self.model_dump(mode="json", exclude_unset=True)

    @property
    def silent(self) -> bool:
        """Whether nothing is printed, as in all but the first of several processes that work together."""
        return False

    @property
    def exit_code(self) -> int:
        """0 done, 1 failed, 130 stopped by a signal after saving."""
        return 0


# Fields that mean the same for every job that has them.
RunFolder = Annotated[
    Path,
    Field(description="Run folder, an export of one, or the name of a packaged model (mba models)."),
    Cli(argument=True, metavar="RUN"),
]
Overrides = Annotated[
    tuple[str, ...],
    Field(description="Override a configuration key; repeatable."),
    Cli(flag="--set", metavar="KEY=VALUE"),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], Field(description="Device to run on; auto uses the GPU if there is one.")
]
Which = Annotated[
    Literal["best", "last", "ema", "best-samples"],
    Field(
        description="Weights: best by validation loss, last, last moving average, or (audio) best by generated samples."
    ),
]
Resume = Annotated[bool, Field(description="Continue from where an interrupted command stopped.")]
Force = Annotated[bool, Field(description="Replace existing output.")]
DryRun = Annotated[bool, Field(description="Run every check, show what would be done, and write nothing.")]
