"""Counts that keep the house in order: no circles between imports, no endless files or argument lists."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mamba_bio_audio"
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.parent != PACKAGE or path.stem != "__init__"
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
# Operations and their kernels have the signatures of their field, and are tied to a run on a GPU (tests/gpu_record.json).
OPERATIONS = ("mamba_bio_audio.kernels", "mamba_bio_audio.ops")
MOST_LINES = 500
MOST_ARGUMENTS = 8
# Public, keyword-only: everything that decides what is generated, and how variants are scored.
WITH_MORE = ["mamba_bio_audio.inference.generate.generate", "mamba_bio_audio.inference.variants.score_variants"]


def imports(name: str) -> set[str]:
    """Files of the package that a file imports, at its top or in functions; not those for type checkers alone."""
    found: set[str] = set()
    pending: list[ast.AST] = [TREES[name]]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return (found & set(FILES)) - {name}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        pending = [start]
        while pending:
            for following in graph.get(pending.pop(), set()) - seen:
                seen.add(following)
                pending.append(following)
        return seen

    reach = {name: reached(name) for name in graph}
    groups = {tuple(sorted(other for other in reach[name] if name in reach.get(other, set()))) for name in graph}
    return [list(group) for group in sorted(groups) if len(group) > 1]


GRAPH = {name: imports(name) for name in FILES}


def folder_of(name: str) -> str:
    """The folder that a file lies in; a file at the top of the package stands for itself."""
    path = FILES[name].relative_to(PACKAGE)
    return path.stem if len(path.parts) == 1 else path.parent.as_posix()


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_imports_are_found():
    assert "mamba_bio_audio.jobs.contract" in GRAPH["mamba_bio_audio.jobs.sample"]
    assert folder_of("mamba_bio_audio.jobs.sample") == folder_of("mamba_bio_audio.jobs") == "jobs"
    assert folder_of("mamba_bio_audio.text") == "text"


def test_no_circle_between_files():
    assert circles(GRAPH) == []


def test_no_circle_between_folders():
    folders: dict[str, set[str]] = defaultdict(set)
    for name, others in GRAPH.items():
        folders[folder_of(name)] |= {folder_of(other) for other in others} - {folder_of(name)}
    assert circles(folders) == []


def test_files_are_short():
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in FILES.items()}
    assert not {name: count for name, count in lines.items() if count > MOST_LINES}


def test_argument_lists_are_short():
    long = []
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and not name.startswith(OPERATIONS):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if len([argument for argument in given if argument.arg not in ("self", "cls")]) > MOST_ARGUMENTS:
                    long.append(f"{name}.{node.name}")
    assert long == WITH_MORE
