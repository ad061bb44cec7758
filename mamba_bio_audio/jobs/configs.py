"""`mba configs`: list the packaged recipes and their variants, or show one."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from mamba_bio_audio.jobs.contract import Cli, Options, Result

COMMAND = "configs"
PANEL = "Train"


class ConfigsOptions(Options):
    """Options of `mba configs`."""

    recipe: Annotated[str | None, Cli(argument=True)] = Field(
        None, description="Show this recipe, merged with its bases and variants."
    )
    everything: Annotated[bool, Cli(flag="--all")] = Field(
        False, description="List every key that a recipe can have, with type, default and help."
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> ConfigsOptions:
        if self.everything and self.recipe is not None:
            raise ValueError("--all lists the keys of every recipe; leave the name out")
        return self


class ConfigsResult(Result):
    """Descriptions by recipe and `recipe@variant`, the keys of one recipe, or all keys there are, as `run/keys.py` has them."""

    recipe: str | None
    found: dict[str, Any]
    keys: list[dict[str, str]] | None = None

    def text(self) -> str:
        """A line for each recipe and below it for each of its variants; one recipe as YAML; or two lines for each key."""
        from mamba_bio_audio.plain_yaml import dump

        if self.keys is not None:
            return "\n".join(_two_lines(key) for key in self.keys)
        if self.recipe is not None:
            return dump(self.found).rstrip("\n")
        names = [name.rpartition("@") for name in self.found]
        shown = [f"  @{variant}" if at else variant for _, at, variant in names]
        width = max(map(len, shown))
        lines = [f"{name:<{width}}  {text}" for name, text in zip(shown, self.found.values(), strict=True)]
        return "\n".join(
            [
                *lines,
                "",
                "Combine variants with hyphens: dna/hg38@7m-len1m-paper. mba configs NAME shows a recipe, --all every key.",
            ]
        )

    def to_json(self) -> Any:
        """The descriptions, the recipe, or the keys, alone."""
        return self.found if self.keys is None else self.keys


def _two_lines(key: dict[str, str]) -> str:
    default = key["default"] if key["default"] == "required" else f"default {key['default']}"
    of = f"; {key['of']} only" if key["of"] else ""
    return f"{key['path']}  {key['takes']}; {default}{of}\n    {key['help']}"


def run(options: ConfigsOptions) -> ConfigsResult:
    """List the recipes and their variants, show one, or list all keys."""
    from mamba_bio_audio.run.config import merge_recipe
    from mamba_bio_audio.run.recipes import recipe_names, variants_of

    if options.everything:
        from mamba_bio_audio.run.keys import all_keys

        return ConfigsResult(recipe=None, found={}, keys=[key._asdict() for key in all_keys()])
    if options.recipe is not None:
        return ConfigsResult(recipe=options.recipe, found=merge_recipe(options.recipe))
    found = {}
    for name in recipe_names():
        found[name] = merge_recipe(name).get("description", "")
        found |= {f"{name}@{variant}": text for variant, text in variants_of(name).items()}
    return ConfigsResult(recipe=None, found=found)
