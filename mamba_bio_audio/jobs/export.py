"""`mba export`: a folder that `mba.load`, and where possible Hugging Face's transformers, opens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import Maker, new_folder
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
    force: Force = False


class ExportResult(Result):
    """The exported folder.

    Attributes:
        opens_with: functions that open the folder.
        doubts: scores that the model card leaves out or cannot vouch for.
    """

    out: Path
    parameters: int
    opens_with: list[str]
    doubts: list[str]

    def text(self) -> str:
        """One line."""
        return f"{self.out}: {self.parameters:,} parameters, opens with {' and '.join(self.opens_with)}"

    def notes(self) -> str:
        """The doubts."""
        return "\n".join(self.doubts)


def run(options: ExportOptions) -> ExportResult:
    """Write safetensors, config.json, a model card and, for DNA, a tokenizer; transformers opens the models that it knows."""
    from mamba_bio_audio.run import export as exports
    from mamba_bio_audio.run import saved

    if (options.out / "config.yaml").exists():
        raise InputError(f"{options.out} is a run folder; export to another --out")
    with new_folder(options.out, MAKER, inputs=[options.run], force=options.force) as folder:
        model = saved.load(options.run, options.which)
        scores = saved.read_evaluations(options.run)
        doubts = exports.export(model, folder, evaluations=scores, precision=options.precision)
    known = not model.labels and exports.opens_in_transformers(model.model_config)
    return ExportResult(
        out=options.out,
        parameters=model.num_parameters(),
        opens_with=[*(["transformers.MambaForCausalLM"] if known else []), "mba.load"],
        doubts=doubts,
    )
