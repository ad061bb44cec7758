"""`mba export`: weights for others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mamba_bio_audio.cli.options import DebugOption, ForceOption, RunArgument, WhichOption
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import Maker, new_folder
from mamba_bio_audio.text import show

MAKER = Maker("export")


def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    which: WhichOption = "best",
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Write safetensors, config.json, a model card and, for DNA, a tokenizer; transformers opens what it knows."""
    from mamba_bio_audio.run import export as exports
    from mamba_bio_audio.run import saved

    if (out / "config.yaml").exists():
        raise InputError(f"{out} is a run folder; export to another --out")
    with new_folder(out, MAKER, inputs=[run], force=force) as folder:
        model = saved.load(run, which)
        notes = exports.export(model, folder, evaluations=saved.read_evaluations(run))
    for note in notes:
        show(note, file=sys.stderr)
    opens = not hasattr(model, "labels") and exports.opens_in_transformers(model.model_config)
    how = "transformers.MambaForCausalLM and mba.load" if opens else "mba.load"
    show(f"{out}: {model.num_parameters():,} parameters, opens with {how}")
