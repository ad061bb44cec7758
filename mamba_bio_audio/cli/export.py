"""`mba export`: weights for others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mamba_bio_audio.cli.options import DebugOption, ForceOption, RunArgument, WhichOption
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import check_folder
from mamba_bio_audio.text import show


def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    which: WhichOption = "best",
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Write safetensors, config.json and a model card; Hugging Face opens the folder where the model is one of its own."""
    from mamba_bio_audio import checkpoint
    from mamba_bio_audio import export as exports

    check_folder(out)
    if out.exists() and any(out.iterdir()) and not force:
        raise InputError(f"{out} is not empty; choose another --out, or --force to replace its files")
    model = checkpoint.load(run, which)
    exports.export(model, out, evaluations=checkpoint.read_evaluations(run))
    opens = not hasattr(model, "labels") and exports.opens_in_transformers(model.model_config)
    how = "transformers.MambaForCausalLM and mba.load" if opens else "mba.load"
    show(f"{out}: {model.num_parameters():,} parameters, opens with {how}")
