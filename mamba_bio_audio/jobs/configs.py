"""`mba configs`: list the packaged recipes, or show one."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from mamba_bio_audio.jobs.contract import Cli, Options, Result

COMMAND = "configs"
PANEL = "Start"


class ConfigsOptions(Options):
    """Options of `mba configs`."""

    recipe: Annotated[str | None, Cli(argument=True)] = Field(
        None, description="Show this recipe, merged with its bases."
    )


class ConfigsResult(Result):
    """Descriptions by recipe, or the keys of one recipe."""

    recipe: str | None
    found: dict[str, Any]

    def text(self) -> str:
        """A line for each recipe, or one recipe as YAML."""
        from mamba_bio_audio.plain_yaml import dump

        if self.recipe is not None:
            return dump(self.found).rstrip("\n")
        width = max(map(len, self.found))
        return "\n".join(f"{name:<{width}}  {description}" for name, description in self.found.items())

    def to_json(self) -> Any:
        """The descriptions, or the recipe, alone."""
        return self.found


def run(options: ConfigsOptions) -> ConfigsResult:
    """List the recipes, or show one."""
    from mamba_bio_audio.run.config import merge_recipe, recipe_names

    if options.recipe is not None:
        return ConfigsResult(recipe=options.recipe, found=merge_recipe(options.recipe))
    found = {name: merge_recipe(name).get("description", "") for name in recipe_names()}
    return ConfigsResult(recipe=None, found=found)
