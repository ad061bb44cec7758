"""The documentation site: every page has its place, every command its page, and the commands of the guides run as written."""

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import typer
import yaml

from mamba_bio_audio.cli.main import app
from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.pipelines.dna.kmers import fit_kmers
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


GUIDES = (
    "../README.md", "tour.md", "index.md", "guide-pretrain.md", "guide-classify.md", "guide-finetune.md", "guide-score.md",
    "guide-variants.md", "guide-sound.md", "guide-length.md",
)  # fmt: skip
# How much is sampled, lines of the genome that is scored, and of the calls.
LENGTH, LINES, CALLS = 64, 3, 4
SMALL = ("model.d_model=8", "model.num_layers=1")
TRAINING = ("train.validate_every=2", "train.validation_tokens=1024", "train.steps=2")
# By command, or by guide and command; later settings win.
SHORTER = {
    "pretrain": (*TRAINING, "train.tokens_per_step=1024"),
    "classify": (
        *SMALL,
        "train.length=256",
        "train.steps=2",
        "train.validate_every=2",
        "train.tokens_per_step=2048",
        "data.evaluation_windows=4",
        "train.length_warmup=[]",
    ),
    "finetune": ("train.steps=2", "train.validate_every=2", "train.tokens_per_step=1024"),
    "../README.md pretrain": SMALL,
    "guide-pretrain.md pretrain": SMALL,
    "guide-length.md pretrain": (
        *SMALL,
        "train.length=256",
        "train.stream_chunk=64",
        "train.length_warmup=[{length: 64, steps: 1}]",
    ),
}
MORE = {"guide-length.md evaluate": ["--blocks", "2", "--no-baselines"]}


@pytest.fixture(scope="module")
def small_model(tmp_path_factory) -> str:
    """Stands in for the packaged model."""
    run = tmp_path_factory.mktemp("small") / "run"
    settings = ("data.path=demo", *SHORTER["pretrain"], *SMALL)
    with pytest.raises(SystemExit) as stop:
        command(["pretrain", "dna/tiny", "--quiet", "--out", str(run), *(p for s in settings for p in ("--set", s))])
    assert not stop.value.code
    return str(run)


@pytest.mark.parametrize("guide", GUIDES)
def test_the_commands_of_a_guide_run_as_written(guide, small_model, tmp_path, monkeypatch, capsys):
    """In order; only less is trained, scored and sampled, and by a smaller model than the packaged one but in first steps.

    What takes minutes, several GPUs or a network is left out.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(fit_kmers.__kwdefaults__, "sizes", (1, 2, 3))
    if guide == "guide-sound.md":
        _record(Path("recordings"))
    text = (DOCS / guide).read_text(encoding="utf-8")
    lines = [
        line for block in re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL) for line in block.splitlines()
    ]
    assert len(lines) >= 3
    for line in lines:
        words = shlex.split(line if guide == "index.md" else line.replace("human42mb-1m4", small_model))
        # `srun` and `pip` among them; that the settings of such lines exist is a test of its own (test_readme.py).
        if words[0] != "mba" or words[1] in ("demo", "doctor", "compare") or "train.devices" in line:
            continue
        if "--length" in words:
            words[words.index("--length") + 1] = str(LENGTH)
        if "--repeats" in words:
            words[words.index("--repeats") + 1] = "2"
        for what in (words[1], f"{guide} {words[1]}"):
            words += [part for setting in SHORTER.get(what, ()) for part in ("--set", setting)] + MORE.get(what, [])
        with pytest.raises(SystemExit) as stop:
            command(words[1:])
        assert not stop.value.code, (line, capsys.readouterr().err)
        if words[1:3] == ["prepare", "examples"]:
            _shorten(Path("examples"), scored=guide in ("../README.md", "guide-score.md"))
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if guide == "../README.md" else ():
        capsys.readouterr()
        exec(compile(block, guide, "exec"), {})
        assert len(capsys.readouterr().out.strip().strip("ACGT")) == 0


def _record(folder: Path) -> None:
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number in range(6):
        tone = np.sin(np.arange(16_000) * (0.05 + 0.01 * number)) + noise.normal(0, 0.05, 16_000)
        soundfile.write(folder / f"{number}.wav", 0.3 * tone, 16_000)


def _shorten(folder: Path, scored: bool) -> None:
    """The first of the calls and, where it is scored, the beginning of the genome; splits need the slices as they are."""
    for name, most in (("genome.fa", LINES if scored else None), ("calls.vcf", CALLS)):
        lines = (folder / name).read_text().splitlines()
        (folder / name).write_text("\n".join(lines[:most]) + "\n")


def test_each_guide_shows_a_picture_that_exists():
    for guide in GUIDES[3:]:
        shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (DOCS / guide).read_text(encoding="utf-8"))
        assert shown, guide
        for name in shown:
            assert (DOCS / name).resolve().is_file(), name
