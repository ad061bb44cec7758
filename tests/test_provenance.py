"""Every result says where, when and with which torch, triton and commit it was made; the commit is of this history."""

import csv
import json
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FIELDS = ("device", "torch", "triton", "commit", "date")
# Columns and keys in which results say it.
NAMES = {"device": ("device", "gpu", "platform"), "date": ("date", "started")}
# What a text says of itself within its first lines.
IN_TEXT = {
    "device": r"H[12]00|\b(?:CPU|Xeon|EPYC)\b",
    "torch": r"torch:? v?(\d+\.\d+[\w.+]*)|H[12]00 (\d+\.\d+\.\d+\+cu\d+)",
    "triton": r"[Tt]riton (\d+\.\d+[\w.]*)",
    "commit": r"(?:commit|at|top of|beside) ([0-9a-f]{7,12}(?:-dirty)?)\b",
    "date": r"2026-\d\d-\d\d",
}
DATA = (".csv", ".json", ".txt")
# From this day on nothing may be missing.
COMPLETE_SINCE = "2026-12-01"


@cache
def supplied() -> dict[tuple[str, str], str]:
    """`benchmarks/results/made.csv`: what files do not say themselves, by (path, field)."""
    with (RESULTS / "made.csv").open(newline="") as table:
        return {(row["path"], row["field"]): row["value"] for row in csv.DictReader(table)}


def of_file(path: Path) -> dict[str, set[str]]:
    """What a file says of itself."""
    found: dict[str, set[str]] = {field: set() for field in FIELDS}
    if path.suffix == ".csv":
        with path.open(newline="") as table:
            rows = list(csv.DictReader(table))
    elif path.suffix == ".json":
        value = json.loads(path.read_text())
        arms = list(value.get("arms", {}).values()) if isinstance(value, dict) else []
        rows = [{key: str(item or "") for key, item in part.items()} for part in [value, *arms]]
    else:
        text = "\n".join(path.read_text(encoding="utf-8").splitlines()[:6])
        for field, pattern in IN_TEXT.items():
            found[field] = {next(filter(None, match.groups()), "") or match[0] for match in re.finditer(pattern, text)}
        return found
    for field in FIELDS:
        names = NAMES.get(field, (field,))
        for row in rows:
            values = [row[name] for name in names if row.get(name)]
            found[field].update(values[:1])
    return found


def made(path: Path) -> dict[str, set[str]]:
    """The same, with what `manifest.json` beside it and `made.csv` say of the file or its folders."""
    found = of_file(path)
    name = str(path.relative_to(RESULTS))
    manifest = path.parent / "manifest.json"
    more = of_file(manifest) if manifest.is_file() and path != manifest else {}
    for field in FIELDS:
        for key in (name, *(f"{parent}/" for parent in path.relative_to(RESULTS).parents if parent != Path())):
            if (key, field) in supplied():
                found[field] = {supplied()[key, field]}
                break
        else:
            found[field] = found[field] or more.get(field, set())
    return found


FILES = sorted(path for path in RESULTS.rglob("*") if path.suffix in DATA and path.name != "made.csv")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(RESULTS)))
def test_every_result_says_where_it_comes_from(path):
    found = made(path)
    on_cpu = all(re.search(r"cpu|CPU|Xeon|EPYC|Linux", device) for device in found["device"])
    missing = [field for field in FIELDS if not found[field] and not (field == "triton" and on_cpu)]
    assert not missing, f"write {missing} into the file, or into benchmarks/results/made.csv"
    if any("not recorded" in values for values in found.values()):
        assert max(found["date"])[:10] < COMPLETE_SINCE


def test_the_readme_says_which_versions_the_figures_are_of():
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    versions: dict[str, set[str]] = {"torch": set(), "triton": set(), "torch of a CPU": set()}
    for path in FILES:
        found = made(path)
        of_gpu = {device for device in found["device"] if "H100" in device or "H200" in device}
        # Files that have rows of both are asked as those of a CPU.
        for field in ("torch", "triton") if of_gpu == found["device"] else ("torch of a CPU",):
            given = (value.split("+")[0] for value in found[field.split()[0]])
            versions[field].update(value for value in given if value != "none")
    assert versions == {"torch": {"2.11.0"}, "triton": {"3.6.0"}, "torch of a CPU": {"2.11.0", "2.14.1"}}
    assert "GPU figures are of torch 2.11.0 and triton 3.6.0" in readme
    assert "CPU figures of torch 2.14.1 or 2.11.0" in readme


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def history() -> set[str]:
    """All commits that this tree comes from, by their first seven digits."""
    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("a shallow clone, or no repository: the history is not here")
    return {line[:7] for line in git("rev-list", "HEAD").stdout.split()}


def test_every_commit_is_in_history(history):
    unknown: dict[str, list[str]] = {}
    for path in FILES:
        for commit in made(path)["commit"]:
            plain = commit.removesuffix("-dirty")
            stands = supplied().get((plain, "commit"), plain)
            if stands != "not recorded" and stands[:7] not in history:
                unknown.setdefault(commit, []).append(str(path.relative_to(RESULTS)))
    assert not unknown


def test_nothing_superfluous_is_supplied():
    for name, field in supplied():
        assert field in FIELDS
        if not re.fullmatch(r"(?:package )?[0-9a-f]{7,12}", name):
            assert (RESULTS / name).exists(), name


# The log tells of drafts, too, which never came into the history.
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name != "log.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commits_that_pages_name_are_in_history(page, history):
    named = set(
        re.findall(
            r"\b(?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{7}(?:[0-9a-f]{5})?(?=-dirty\b|\b)", page.read_text("utf-8")
        )
    )
    assert not {name for name in named if name[:7] not in history}
