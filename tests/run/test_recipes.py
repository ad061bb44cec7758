"""Recipes and their variants: every name that ever worked still means the same, and mistakes are explained."""

import csv
import hashlib
import json
from pathlib import Path

import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.run.config import RunConfig, load_config, merge_recipe
from mamba_bio_audio.run.recipes import locate, recipe_files, recipe_names, variants_of

# Recipes that stood in files of their own before there were variants, with what they were then: the first 16 digits of
# the SHA-256 of the validated configuration without its defaults and its description, as canonical JSON. Those of our own in
# audio are as they have been since 2026-11-30, and `attention` says since then that its MLP is as it was; `paper` is as it
# always was.
with (Path(__file__).parent / "recipes.csv").open() as table:
    HASHES = {row["recipe"]: row["sha256"] for row in csv.DictReader(table)}


def loaded(recipe: str) -> RunConfig:
    """A recipe, on data that are there; what is made when it is asked for has no files."""
    return load_config(recipe, [] if recipe.startswith("synthetic/") else ["data.path=."])


def fails(recipe: str) -> str:
    with pytest.raises(InputError) as error:
        merge_recipe(recipe)
    return str(error.value)


@pytest.mark.parametrize("name", HASHES)
def test_every_recipe_is_what_it_was_by_its_old_and_its_new_name(name):
    family, at, variants = name.partition("@")
    found = {}
    for spelling in (name, name.replace("@", "-"), family + at + variants.replace("-", "@")):
        config = loaded(spelling)
        values = config.model_dump(mode="json", exclude_defaults=True, exclude={"description"})
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        found[spelling] = (hashlib.sha256(text.encode()).hexdigest()[:16], config.name)
    assert set(found.values()) == {(HASHES[name], name.replace("/", "-").replace("@", "-"))}


def test_packaged_recipes_and_their_variants():
    names = recipe_names()
    assert len(names) <= 22
    for family in names:
        variants = variants_of(family)
        for variant, description in variants.items():
            assert description, f"{family}@{variant}"
            assert loaded(f"{family}@{variant}").name
            # With a hyphen it must mean the variant, and no other recipe.
            assert locate(f"{family}-{variant}") == (family, [variant])


def test_order_of_variants_does_not_matter():
    keys = ("model", "data", "train")
    one, other = (merge_recipe(f"dna/hg38@{variants}") for variants in ("7m-len1m-paper", "paper@len1m@7m"))
    assert [one[key] for key in keys] == [other[key] for key in keys]
    assert one["description"].endswith("330B tokens; windows as published")


@pytest.mark.parametrize(
    ("recipe", "parts"),
    [
        ("dna/hg38@3.5n-paper", ["dna/hg38 has no variant '3.5n'; did you mean 3.5m? its variants: 250k, 700k, 1.4m"]),
        ("dna/hg38-7m-papper", ["recipe dna/hg38-7m-papper: ", "no variant 'papper'; did you mean paper?"]),
        ("dna/hg38@", ["no variant ''"]),
        ("dna/hg38@7m--paper", ["no variant ''"]),
        ("dna/tiny@7m", ["dna/tiny has no variant '7m'; its variants: none"]),
        ("dna/apes@paper", ["did you mean dna/apes-paper?"]),
        ("dna/hg83@7m", ["recipe dna/hg83: did you mean dna/hg38?"]),
        ("dna/hg83-7m-len1m-paper", ["did you mean dna/hg38?"]),
        ("dna/hg38@7m-19m", ["the variants 7m and 19m set model.d_model to different values; choose one"]),
        ("dna/hg38@paper-hyenadna", ["the variants paper and hyenadna set data.windows"]),
        ("audio/sc09@lti-attention", ["the variants lti and attention set model.stages"]),
    ],
)
def test_mistakes_in_names_are_explained(recipe, parts):
    message = fails(recipe)
    assert [part for part in parts if part not in message] == []


MINE = """\
extends: dna/hg38@7m
description: mine
data: {path: demo}
train: {steps: 7}
variants:
  short:
    description: of 512 bases
    train: {length: 512}
  long: {train: {length: 4096}, seed: 3}
  8: {train: {steps: 8}}
"""


def test_recipes_of_a_user_have_variants_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my recipes").mkdir()
    recipe = "my recipes/mine.yaml"
    Path(recipe).write_text(MINE)
    config = load_config(recipe)
    assert (config.model.d_model, config.train.length, config.name) == (256, 1024, "mine")
    config = load_config(f"{recipe}@short-8", ["train.lr=1e-3"])
    assert (config.model.d_model, config.train.length, config.train.steps, config.train.lr) == (256, 512, 8, 1e-3)
    assert (config.name, config.description) == ("mine-short-8", "mine; of 512 bases")
    assert "no variant 'shrt'; did you mean short?" in fails(f"{recipe}@shrt")
    # A base that is a file is looked for beside the recipe that names it, with its variants.
    Path("my recipes/next.yml").write_text("extends: mine.yaml@long\nmodel: {num_layers: 2}\n")
    config = load_config("my recipes/next.yml")
    assert (config.seed, config.train.length, config.model.num_layers, config.name) == (3, 4096, 2, "next")
    assert recipe_files("my recipes/next.yml") == ["my recipes/next.yml", recipe]
    assert recipe_files(f"{recipe}@short") == [recipe]
    # Variants belong to the recipe that lists them.
    assert "next.yml has no variant 'long'; its variants: none" in fails("my recipes/next.yml@long")
    # An @ may stand in the name of a file.
    Path("a@b.yaml").write_text(MINE)
    assert load_config("a@b.yaml@8").train.steps == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variants: 3\n", "variants must be a mapping from names to keys"),
        ("variants: {a-b: {seed: 1}}\n", "variants.a-b: a variant's name has letters, digits, _ and dots only"),
        ("variants: {a: 1}\n", "variants.a must be a mapping of keys"),
        ("variants: {a: {extends: dna/tiny}}\n", "variants.a.extends: move this key out of the variant"),
        ("extends: mine.yaml@a\nvariants: {a: {seed: 1}}\n", "extends itself"),
        ("extends: dna/hg38@nope\n", "no variant 'nope'"),
    ],
)
def test_mistakes_in_recipes_are_explained(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(text)
    assert message in fails("mine.yaml@a")


def test_unknown_keys_of_a_variant_are_mistakes(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: dna/tiny\nvariants: {a: {model: {dmodel: 3}}}\n")
    with pytest.raises(InputError, match=r"model.dmodel: unknown key; did you mean d_model\?"):
        load_config(f"{tmp_path / 'mine.yaml'}@a", ["data.path=demo"])
