"""`mba export`: a folder that `mba.load`, and where possible Hugging Face's transformers, opens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import MARKER, Maker, new_folder
from mamba_bio_audio.files.folders import read_marker
from mamba_bio_audio.jobs.contract import Cli, Force, Options, Result, Which

COMMAND = "export"
PANEL = "Use"
MAKER = Maker("export")


class ExportOptions(Options):
    """Options of `mba export`."""

    run: Annotated[Path, Cli(argument=True, metavar="RUN")] = Field(
        description="Run folder, export, Hugging Face Mamba folder, or the name of a packaged model (mba models)."
    )
    out: Path = Field(description="Folder to write.")
    which: Which = "best"
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Precision of the exported weights; bf16 halves the file, and rounds them."
    )
    push: Annotated[str | None, Cli(metavar="OWNER/NAME")] = Field(
        None,
        description="Then push what was exported to this repository of the Hugging Face Hub (needs huggingface_hub).",
    )
    private: bool = Field(False, description="With --push: a repository that is made is private.")
    force: Force = False

    @model_validator(mode="after")
    def _private_needs_push(self) -> ExportOptions:
        if self.private and self.push is None:
            raise ValueError("--private goes with --push OWNER/NAME")
        return self


class ExportResult(Result):
    """The exported folder.

    Attributes:
        opens_with: functions that open the folder.
        doubts: scores that the model card leaves out or cannot vouch for, and fitted settings that are left out.
        pushed: address of the repository on the Hugging Face Hub that it was pushed to.
    """

    out: Path
    parameters: int
    opens_with: list[str]
    doubts: list[str]
    pushed: str | None = None

    def text(self) -> str:
        """A line, and one more if it was pushed."""
        line = f"{self.out}: {self.parameters:,} parameters, opens with {' and '.join(self.opens_with)}"
        return line if self.pushed is None else f"{line}\npushed to {self.pushed}"

    def notes(self) -> str:
        """The doubts."""
        return "\n".join(self.doubts)


def run(options: ExportOptions) -> ExportResult:
    """Write safetensors, config.json, a model card and, for DNA, a tokenizer; transformers opens the models that it knows."""
    from mamba_bio_audio.run import export as exports
    from mamba_bio_audio.run import hub, saved
    from mamba_bio_audio.run.sampling import read_fitted

    if (options.out / "config.yaml").exists():
        raise InputError(f"{options.out} is a run folder; export to another --out")
    push = None if options.push is None else hub.Push(options.push)
    with new_folder(options.out, MAKER, inputs=[options.run], force=options.force) as folder:
        model = saved.load(options.run, options.which)
        scores, fitted = saved.read_evaluations(options.run), read_fitted(options.run)
        doubts = exports.export(model, folder, evaluations=scores, precision=options.precision, fitted=fitted)
    known = None if model.labels else exports.opens_in_transformers(model.model_config)
    result = ExportResult(
        out=options.out,
        parameters=model.num_parameters(),
        opens_with=[*([f"transformers.{known}"] if known else []), "mba.load"],
        doubts=doubts,
    )
    if push is None:
        return result
    made = read_marker(options.out)
    assert made is not None
    files = [name for name in made["files"] if name != MARKER]
    return result.model_copy(update={"pushed": push.push(options.out, files, private=options.private)})
