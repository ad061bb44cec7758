"""Results are kept for what is quoted: every file of `benchmarks/results/` is named, and no document names a missing one."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FILES = sorted(path.relative_to(RESULTS) for path in RESULTS.rglob("*") if path.is_file())
DOCUMENTS = [ROOT / "README.md", ROOT / "NOTICE", *sorted((ROOT / "docs").rglob("*.md"))]
# The log is a history, and names what once stood there.
PRESENT = [path for path in DOCUMENTS if path.name != "log.md"] + sorted((ROOT / "benchmarks").rglob("*.md"))
# Here every file that is named is a result; elsewhere those that are named with their folder or their machine.
TABLES = ("README.md", "benchmarks.md", "audio.md", "species.md")
# What commands write to folders of the user's.
OUTPUTS = {
    "RUN/sampling.json",
    "samples.json",
    "OUT.report.json",
    "metrics.csv",
    "manifest.json",
    "config.yaml",
    "predictions-test.tsv",
    "regions.tsv",
    "copies.tsv",
}


def names_in(path: Path) -> set[str]:
    """Everything in a text that looks like a path, without the folder of the results."""
    found = re.findall(r"[\w.*/-]*\w[\w.*/-]*", path.read_text(encoding="utf-8"))
    return {name.removeprefix("../").removeprefix("benchmarks/").removeprefix("results/") for name in found}


QUOTED = set().union(*map(names_in, [*DOCUMENTS, *sorted((ROOT / "tests").rglob("test_*.py"))]))


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_result_is_quoted(file):
    """By its name, or as part of a folder; a picture only by its path, audio by the folder that it lies in."""
    if file.parent == Path():
        assert any(fnmatch(file.name, name) for name in QUOTED if re.match(r"\w+", name))
        return
    folders = {".png": [], ".flac": [file.parent], ".wav": [file.parent]}.get(file.suffix, [*file.parents][:-1])
    assert str(file) in QUOTED or any(f"{folder}/" in QUOTED for folder in folders)


def test_results_stay_small():
    assert sum((RESULTS / file).stat().st_size for file in FILES) < 1_200_000


@pytest.mark.parametrize("document", PRESENT, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_only_results_that_exist(document):
    text = document.read_text(encoding="utf-8")
    for folder, name in re.findall(r"`((?:\.\./|benchmarks/)*(?:results/)?)([\w./*-]+\.(?:csv|txt|json|png))`", text):
        machine = re.search(r"_(h100|h200|cpu)\b", name)
        if folder or machine or (document.name in TABLES and name not in OUTPUTS):
            # What the tests keep is named by its own folder.
            assert list(RESULTS.glob(name)) or (name.startswith("tests/") and (ROOT / name).is_file()), name
    for name in re.findall(r"`(?:\.\./|benchmarks/)*results/([\w./-]+)/`", text):
        assert (RESULTS / name).is_dir(), name


def test_every_script_has_its_line_and_every_line_its_script():
    for folder in (ROOT / "benchmarks", ROOT / "benchmarks" / "device"):
        text = (folder / "README.md").read_text(encoding="utf-8")
        named = set(re.findall(r"`(?:\./)?(\w+\.(?:py|sh))", text))
        assert named == {path.name for path in folder.iterdir() if path.suffix in (".py", ".sh")}
