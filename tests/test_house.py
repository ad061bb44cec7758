"""Tests that the house stands: layout, import arrows, packaging, start-up."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mamba_bio_audio"

# Left to right as in docs/architecture.md; an import may point to its own level or to the right.
ARROWS = [
    {"__main__", "cli"},
    {"jobs"},
    {"run"},
    {"training", "inference", "evaluation"},
    {"pipelines", "models"},
    {"layers"},
    {"ops"},
    {"kernels"},
    {"errors", "files", "machine", "plain_yaml", "signals", "text"},
]
LEVEL = {name: level for level, names in enumerate(ARROWS) for name in names}


def imported_parts(path: Path) -> set[str]:
    """First components below the package of everything that a file imports from it."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "mamba_bio_audio":
                names = [f"mamba_bio_audio.{alias.name}" for alias in node.names if alias.name != "__version__"]
        parts |= {name.split(".")[1] for name in names if name.startswith("mamba_bio_audio.")}
    return parts


def test_imports_follow_the_arrows():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        assert own in LEVEL, f"{own} has no place in docs/architecture.md"
        name = path.relative_to(PACKAGE).as_posix()
        wrong += [f"{name} imports {part}" for part in sorted(imported_parts(path)) if LEVEL[part] < LEVEL[own]]
    assert not wrong, f"against the arrows: {wrong}"


# Questions after the kind of data or of model that are still asked above pipelines, by file. Fewer only.
QUESTIONS = {
    "run/export.py": 1,
    "run/saved.py": 2,  # load_language_model, load_classifier: asked here so that nobody else has to
}


def questions(path: Path) -> list[str]:
    """Where a file asks which kind of data or model it deals with.

    That is: an instance of a domain's class or of a classifier, an attribute that only one codec or data set has, a
    comparison with the name of a domain, of its unit, or of a kind of data.
    """
    domains = {path.parent.name for path in (PACKAGE / "pipelines").glob("*/domain.py")}
    names = {name for domain in domains for name in (domain, f"{domain}-classes")} | {"base", "bases"}
    theirs, found = {"Classifier"}, []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and set((node.module or "").split(".")[2:3]) & domains:
            theirs |= {alias.asname or alias.name for alias in node.names}
    for node in ast.walk(ast.parse(path.read_text())):
        asked = False
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
            subject, what = ast.unparse(node.args[0]), node.args[1]
            if node.func.id == "isinstance":
                asked = bool(theirs & {part.id for part in ast.walk(what) if isinstance(part, ast.Name)})
            elif node.func.id in ("hasattr", "getattr"):
                asked = re.search(r"(codec|data|corpus|domain)$", subject) is not None
        elif isinstance(node, ast.Compare | ast.MatchValue):
            values = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
            asked = (
                bool(values & names)
                or re.search(r"\b(data\.kind|codec\.name|domain\.name)\b", ast.unparse(node)) is not None
            )
        if asked:
            found.append(f"line {getattr(node, 'lineno', 0)}: {ast.unparse(node)}")
    return found


def test_above_pipelines_nobody_asks_which_domain_it_is(tmp_path):
    toy = tmp_path / "toy.py"
    toy.write_text(
        "from mamba_bio_audio.pipelines.dna.genome import Genome\n"
        "isinstance(data, int | Genome)\nisinstance(data, dict)\nisinstance(model, Classifier)\n"
        "config.data.kind == other\nkind == 'audio'\nname == 'x'\ngetattr(data.codec, 'zero_level', 0)\nunit == 'base'\n"
    )
    assert [text.split(":")[0] for text in questions(toy)] == [
        "line 2",
        "line 4",
        "line 5",
        "line 6",
        "line 8",
        "line 9",
    ]
    asked = {}
    for folder in ("cli", "jobs", "run", "training", "inference", "evaluation"):
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            name = path.relative_to(PACKAGE).as_posix()
            if len(found := questions(path)) > QUESTIONS.get(name, 0):
                asked[name] = found
    assert not asked, f"ask the domain instead (pipelines/contract.py): {asked}"


def test_no_file_names_a_folder_of_one_machine():
    """Data lies beside the checkout, or where an environment variable says."""
    anywhere = re.compile(r"(?<![\w.])/work/\w")
    for folder in ("tests", "scripts", "benchmarks", "mamba_bio_audio"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".sh", ".json", ".yaml", ".csv", ".toml") and path != Path(__file__):
                found = anywhere.search(path.read_text())
                assert not found, f"{path}: {found[0]}"


def test_nothing_refers_to_a_file_outside_of_the_repository():
    """Only the folder of real data may lie beside it; the log quotes what was said at the time, results what was run."""
    outside = re.compile(
        r"\.\./shared|\bshared/(?!data)|\b(design|paper-facts|kernels-design|peer-baselines)\.md|\bissue \d"
    )
    allowed = {Path(__file__), ROOT / "tests" / "conftest.py", ROOT / "docs" / "log.md", ROOT / "CONTRIBUTING.md"}
    for folder in ("tests", "scripts", "benchmarks", "mamba_bio_audio", "docs"):
        for path in {*(ROOT / folder).rglob("*"), ROOT / "README.md", ROOT / "CHANGELOG.md"} - allowed:
            if path.suffix in (".py", ".sh", ".yaml", ".md") and "kernels" not in path.parts:
                found = outside.search(path.read_text(encoding="utf-8"))
                assert not found, f"{path}: {found[0]}"


def test_nothing_is_imported_through_the_root_links():
    links = {"kernels", "pipelines", "cli", "configs"}
    for path in [
        *PACKAGE.rglob("*.py"),
        *(ROOT / "tests").rglob("*.py"),
        *(ROOT / "benchmarks").rglob("*.py"),
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                assert node.module.split(".")[0] not in links, path
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & links, path


def test_root_links_are_relative():
    for name in ("kernels", "pipelines", "cli", "configs"):
        link = ROOT / name
        assert link.is_symlink()
        assert os.readlink(link) == f"mamba_bio_audio/{name}"


def test_kernels_is_not_a_regular_package():
    assert not list((PACKAGE / "kernels").rglob("__init__.py"))


def test_hugging_face_kernels_stays_importable_at_the_root():
    if importlib.util.find_spec("kernels") is None or (PACKAGE / "kernels").samefile(
        Path(importlib.util.find_spec("kernels").submodule_search_locations[0])
    ):
        pytest.skip("Hugging Face's kernels is not installed")
    code = "import kernels; print(kernels.__file__); from transformers import MambaForCausalLM"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "site-packages" in out.stdout.splitlines()[0]


def test_help_imports_no_torch():
    code = (
        "import sys\n"
        "from mamba_bio_audio.cli.main import run\n"
        "try:\n    run(['--help'])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'lightning', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    for command in ("pretrain", "evaluate", "sample", "prepare", "demo", "export", "configs", "doctor"):
        assert command in out.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy, so that no old build folder can add to it."""
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    ignore = shutil.ignore_patterns(".*", "build", "*.egg-info", "runs", "__pycache__")
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignore)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, "."],
        cwd=source,
        check=True,
        env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(out)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, stdout=subprocess.DEVNULL)
    return next(out.glob("*.whl"))


def test_the_source_distribution_holds_the_package_and_no_tests_that_cannot_run(wheel):
    with tarfile.open(next(wheel.parent.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    packaged = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packaged <= names
    assert {"LICENSE", "NOTICE", "CITATION.cff", "pyproject.toml"} <= names
    assert not {name for name in names if name.startswith(("tests", "benchmarks", "docs", "kernels", "cli"))}


def test_wheel_is_complete(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = [
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "*.yaml", "*.fa.gz", "py.typed")
        for path in PACKAGE.rglob(pattern)
    ]
    # A packaged model is nothing without its weights and its card.
    wanted += [path.relative_to(ROOT).as_posix() for path in PACKAGE.glob("packaged/*/[!.]*")]
    assert not set(wanted) - names
    assert not {name for name in names if name.startswith(("tests", "benchmarks", "kernels/", "cli/"))}
    assert any(name.endswith("licenses/NOTICE") for name in names)


def test_wheel_works_outside_the_repository(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    # Reuse the dependencies of this environment, behind the new one's own packages.
    (site / "dependencies.pth").write_text(str(Path(pytest.__file__).parent.parent))
    python = tmp_path / "venv" / "bin" / "python"
    code = (
        "import mamba_bio_audio, torch\n"
        f"assert {str(site)!r} in mamba_bio_audio.__file__, mamba_bio_audio.__file__\n"
        "from mamba_bio_audio.run.config import load_config\n"
        "from mamba_bio_audio.run.recipes import recipe_names\n"
        "assert 'dna/tiny' in recipe_names()\n"
        "from mamba_bio_audio.ops import rms_norm\n"
        "rms_norm(torch.ones(1, 2, 3), torch.ones(3))\n"
        "from mamba_bio_audio.cli.main import run\n"
        "run(['configs'])\n"
    )
    # A developer's PYTHONPATH would put the tree before the wheel.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    out = subprocess.run([python, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert "dna/tiny" in out.stdout
