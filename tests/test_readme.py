"""What README and documents name exists: commands, options, recipes, targets. What runs as written: tests/test_docs_site.py."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from mamba_bio_audio.cli.main import app
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.recipes import recipe_names, variants_of

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = sorted((ROOT / "docs").rglob("*.md"))


def commands_of(document: Path) -> list[list[str]]:
    """What follows `mba` in the console blocks of a document, wherever it stands in a line."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"[|>]", line):
                words = shlex.split(part, comments=True)
                for name in ("mba", "mamba_bio_audio"):
                    if name in words:
                        found.append(words[words.index(name) + 1 :])
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_of_the_documents_are_understood(document):
    """They need genomes, GPUs or a network, so they are not run; every option, recipe and setting in them exists."""
    for arguments in commands_of(document):
        verb, rest = typer.main.get_command(app), list(arguments)
        while hasattr(verb, "commands"):
            verb = verb.commands[rest.pop(0)]
        context = verb.make_context(verb.name, list(rest))
        if arguments[0] in ("pretrain", "classify"):
            made = context.params["recipe"].startswith("synthetic/")
            settings = [*(context.params["overrides"] or []), *([] if made else ["data.path=."])]
            load_config(
                context.params["recipe"],
                [text for text in settings if not text.startswith(("head.pretrained", "data.intervals"))],
            )


def test_there_are_commands_in_the_documents():
    assert sum(len(commands_of(document)) for document in DOCUMENTS) >= 12


@pytest.mark.parametrize("document", [ROOT / "README.md", *DOCUMENTS], ids=lambda path: path.name)
def test_commands_named_in_the_text_exist(document):
    """In running text and tables, `mba ...` names a command, and the options behind it are that command's."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    root = typer.main.get_command(app)
    for span in re.findall(r"`mba ([^`]+)`", text):
        verb, words = root, span.replace("\\|", "|").split()
        while hasattr(verb, "commands") and words and words[0][0] not in "-.":
            assert words[0] in verb.commands, f"mba {span}"
            verb = verb.commands[words.pop(0)]
        known = {option for parameter in verb.params for option in parameter.opts} | {"--help"}
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0].rstrip(",.;:") in known, f"mba {span}"


def test_readme_names_every_make_target_and_recipe():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"`make (\w+)`", README)
    assert targets
    for target in targets:
        assert f"\n{target}:" in makefile
    page = (ROOT / "docs" / "headlines.md").read_text(encoding="utf-8")
    for name in recipe_names():
        assert f"`{name}`" in page, name
        for variant in variants_of(name):
            assert f"`@{variant}`" in page or variant.isdecimal() or name == "dna/hg38", f"{name}@{variant}"


@pytest.mark.parametrize(
    "name", [name + variant for name in recipe_names() for variant in ("", *(f"@{part}" for part in variants_of(name)))]
)
def test_every_recipe_loads(name, tmp_path):
    config = load_config(name, [] if name.startswith("synthetic/") else [f"data.path={tmp_path}"])
    assert config.description
    assert config.train.sequences_per_step >= 1


def test_the_paper_recipes_follow_the_paper():
    """Gu & Dao 2023, section E.3.2; docs/architecture.md keeps to the published numbers."""
    shapes = {
        name: (config.model.num_layers, config.model.d_model)
        for name in (f"dna/hg38@{variant}" for variant in variants_of("dna/hg38"))
        if re.fullmatch(r"dna/hg38@[\d.]+[km]", name)
        for config in [load_config(name, ["data.path=demo"])]
    }
    assert sorted(shapes.values()) == [(8, 64), (10, 96), (12, 128), (14, 192), (16, 256), (20, 384), (24, 512)]
    for name in shapes:
        train = load_config(name, ["data.path=demo"]).train
        assert (train.length, train.sequences_per_step, train.steps) == (1024, 1024, 10_000)
        assert (train.lr, train.betas, train.weight_decay) == (8e-3, (0.9, 0.95), 0.1)
        assert (train.warmup, train.clip) == (0.1, 1.0)
