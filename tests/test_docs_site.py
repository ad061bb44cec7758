"""The documentation site: every page has its place, every command its page, and the commands of the guides run as written."""

import gzip
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import typer
import yaml
from Bio import bgzf

from mamba_bio_audio.cli.main import app
from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.run.keys import all_keys
from mamba_bio_audio.run.recipes import recipe_names, variants_of

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
specification: Any = importlib.util.spec_from_file_location("docs_site", ROOT / "scripts" / "docs_site.py")
docs_site = importlib.util.module_from_spec(specification)
specification.loader.exec_module(docs_site)
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    return docs_site.pages()


def in_navigation(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    inner = entry.values() if isinstance(entry, dict) else entry
    return [page for part in inner for page in in_navigation(part)]


def test_every_page_has_its_place_and_every_place_its_page(generated):
    listed = set(in_navigation(docs_site.on_config({"nav": SITE["nav"]})["nav"]))
    written = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert listed == written | set(generated)
    assert not written & set(generated)


def test_every_command_and_option_has_its_line(generated):
    root = typer.main.get_command(app)
    leaves = {}
    for name, found in root.commands.items():
        leaves |= (
            {f"{name} {verb}": one for verb, one in found.commands.items()}
            if hasattr(found, "commands")
            else {name: found}
        )
    assert set(leaves) == set(docs_site.commands())
    for name, found in leaves.items():
        text = generated[f"commands/{name.replace(' ', '-')}.md"]
        for parameter in found.params:
            if parameter.param_type_name == "option":
                assert f"| `{parameter.opts[0]}" in text, (name, parameter.name)
        assert found.help.strip().splitlines()[0] in text
        assert "<class" not in text


def test_every_recipe_and_key_has_its_line(generated):
    for name in recipe_names():
        assert f"## {name}\n" in generated["recipes.md"]
        for variant in variants_of(name):
            assert f"`@{variant}`" in generated["recipes.md"]
    for key in all_keys():
        assert f"| `{key.path}` |" in generated["keys.md"]


def test_pictures_of_results_are_found_from_every_page():
    page = type("Page", (), {"file": type("File", (), {"src_uri": "results/variants.md"})})
    text = docs_site.on_page_markdown("![x](../../benchmarks/results/brca1_h200/brca1.png)", page)
    assert text == "![x](../results-of/brca1_h200/brca1.png)"
    for path in DOCS.rglob("*.md"):
        for name in docs_site._pictures(path.read_text(encoding="utf-8")):
            assert (ROOT / "benchmarks" / "results" / name).is_file()


def test_links_between_pages_lead_somewhere(generated):
    """What `make docs` checks too, without building."""
    headings = {}
    texts = {str(path.relative_to(DOCS)): path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md")} | generated
    for page, text in texts.items():
        found = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
        headings[page] = {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in found}
    for page, text in texts.items():
        for target, anchor in re.findall(r"\]\(([\w./-]+\.md)(?:#([\w-]+))?\)", text):
            there = str((Path("/") / Path(page).parent / target).resolve()).lstrip("/")
            assert there in texts, (page, target)
            assert not anchor or anchor in headings[there], (page, target, anchor)


GUIDES = ("index.md", "guide-pretrain.md", "guide-classify.md", "guide-score.md", "guide-sound.md")
# What is left of a packaged slice, and how much is sampled.
SHARE, LENGTH, LINES = 12, 64, 12
SHORTER = {
    "pretrain": [
        "train.steps=2",
        "train.validate_every=2",
        "train.validation_tokens=1024",
        "train.tokens_per_step=1024",
    ],
    "classify": [
        "data.block_bases=2048",
        "train.length=256",
        "train.steps=2",
        "train.validate_every=2",
        "train.tokens_per_step=2048",
        "data.evaluation_windows=4",
        "train.length_warmup=[]",
    ],
}


@pytest.mark.parametrize("guide", GUIDES)
def test_the_commands_of_a_guide_run_as_written(guide, tmp_path, monkeypatch, capsys):
    """In order; only less is trained and sampled, and what takes minutes or comes from a network is left out."""
    monkeypatch.chdir(tmp_path)
    Path("recordings").mkdir()
    noise = np.random.default_rng(0)
    for number in range(6):
        tone = np.sin(np.arange(16_000) * (0.05 + 0.01 * number)) + noise.normal(0, 0.05, 16_000)
        soundfile.write(f"recordings/{number}.wav", 0.3 * tone, 16_000)
    text = (DOCS / guide).read_text(encoding="utf-8")
    lines = [
        line for block in re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL) for line in block.splitlines()
    ]
    assert len(lines) >= 4
    for line in lines:
        words = shlex.split(line)
        if words[:2] == ["python", "-c"]:
            subprocess.run([sys.executable, *words[1:]], check=True, env={"PYTHONPATH": str(ROOT), "PATH": ""})
            if Path("genomes").is_dir():
                _shorten(Path("genomes"))
            if Path("genome.fa").is_file():
                Path("genome.fa").write_text("\n".join(Path("genome.fa").read_text().splitlines()[:LINES]) + "\n")
            continue
        if words[0] != "mba" or words[1:2] in (["demo"], ["doctor"]):
            assert words[0] in ("mba", "pip"), line
            continue
        if "--length" in words:
            words[words.index("--length") + 1] = str(LENGTH)
        shorter = [part for setting in SHORTER.get(words[1], ()) for part in ("--set", setting)]
        with pytest.raises(SystemExit) as stop:
            command([*words[1:], *shorter])
        assert not stop.value.code, (line, capsys.readouterr().err)


def _shorten(folder: Path) -> None:
    """The beginning of each packaged slice but the smallest."""
    for path in sorted(folder.iterdir()):
        if path.suffix == ".gz" and path.name != "phage_lambda.fa.gz":
            lines = gzip.decompress(path.read_bytes()).decode().splitlines()
            with bgzf.open(str(path), "wb") as file:
                file.write(("\n".join(lines[: len(lines) // SHARE]) + "\n").encode())
        else:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_each_guide_shows_a_picture_that_exists():
    for guide in GUIDES[1:]:
        shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (DOCS / guide).read_text(encoding="utf-8"))
        assert shown, guide
        for name in shown:
            assert (DOCS / name).resolve().is_file(), name
