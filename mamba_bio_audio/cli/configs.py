"""`mba configs`: list and show recipes."""

from __future__ import annotations

from typing import Annotated

import typer

from mamba_bio_audio.cli.options import DebugOption, JsonOption
from mamba_bio_audio.files import to_json
from mamba_bio_audio.text import show


def configs(
    recipe: Annotated[str | None, typer.Argument(help="Show this recipe, merged with its bases.")] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List the recipes, or show one."""
    from mamba_bio_audio.plain_yaml import dump
    from mamba_bio_audio.run.config import merge_recipe, recipe_names

    if recipe is not None:
        merged = merge_recipe(recipe)
        show(to_json(merged) if as_json else dump(merged), end="")
        return
    rows = {name: merge_recipe(name).get("description", "") for name in recipe_names()}
    if as_json:
        show(to_json(rows))
        return
    width = max(map(len, rows))
    for name, description in rows.items():
        show(f"{name:<{width}}  {description}")
