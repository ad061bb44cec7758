"""`mba configs`: list the packaged recipes and their variants, or show one."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from mamba_bio_audio.jobs.contract import Cli, Options, Result

COMMAND = "configs"
PANEL = "Train"


class ConfigsOptions(Options):
    """Options of `mba configs`."""

    recipe: Annotated[str | None, Cli(argument=True)] = Field(
        None, description="Show this recipe, merged with its bases and variants."
    )


class ConfigsResult(Result):
    """Descriptions by recipe and `recipe@variant`, or the keys of one recipe."""

    recipe: str | None
    found: dict[str, Any]

    def text(self) -> str:
        """A line for each recipe and below it for each of its variants, or one recipe as YAML."""
        from mamba_bio_audio.plain_yaml import dump

        if self.recipe is not None:
            return dump(self.found).rstrip("\n")
        names = [name.rpartition("@") for name in self.found]
        shown = [f"  @{variant}" if at else variant for _, at, variant in names]
        width = max(map(len, shown))
        lines = [f"{name:<{width}}  {text}" for name, text in zip(shown, self.found.values(), strict=True)]
        return "\n".join(
            [*lines, "", "Combine variants with hyphens: dna/hg38@7m-len1m-paper. mba configs NAME shows every key."]
        )

    def to_json(self) -> Any:
        """The descriptions, or the recipe, alone."""
        return self.found


def run(options: ConfigsOptions) -> ConfigsResult:
    """List the recipes and their variants, or show one."""
    from mamba_bio_audio.run.config import merge_recipe
    from mamba_bio_audio.run.recipes import recipe_names, variants_of

    if options.recipe is not None:
        return ConfigsResult(recipe=options.recipe, found=merge_recipe(options.recipe))
    found = {}
    for name in recipe_names():
        found[name] = merge_recipe(name).get("description", "")
        found |= {f"{name}@{variant}": text for variant, text in variants_of(name).items()}
    return ConfigsResult(recipe=None, found=found)
