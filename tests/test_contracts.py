"""`docs/contracts.md` says what the docstrings of the contracts say. `WRITE_CONTRACTS=1` writes it anew."""

import ast
import inspect
import os
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mamba_bio_audio"
PAGE = ROOT / "docs" / "contracts.md"
HEAD = """\
# Contracts

What the parts of the package promise each other. Generated from the docstrings of these files: change those, then
run `WRITE_CONTRACTS=1 python -m pytest tests/test_contracts.py`.
"""
# From the layers up.
ORDER = (
    "layers/contract.py",
    "models/contract.py",
    "pipelines/contract.py",
    "pipelines/sample_writer.py",
    "pipelines/corpus.py",
    "jobs/contract.py",
)


def signature(node: ast.FunctionDef) -> str:
    """`name(arguments) -> type` on one line."""
    arguments = ast.unparse(node.args)
    arguments = arguments.removeprefix("self, ").removeprefix("cls, ").removeprefix("self").removeprefix("cls")
    return f"{node.name}({arguments})" + ("" if node.returns is None else f" -> {ast.unparse(node.returns)}")


def body(node: ast.AST) -> str:
    return inspect.cleandoc(ast.get_docstring(node, clean=False) or "")


def described(node: ast.ClassDef | ast.FunctionDef) -> str:
    """One class or function of a contract as Markdown."""
    if isinstance(node, ast.FunctionDef):
        return f"### `{signature(node)}`\n\n```text\n{body(node)}\n```\n"
    lines = [f"### `{node.name}`\n", f"```text\n{body(node)}\n```\n"]
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and not item.name.startswith("_") and body(item):
            name = signature(item)
            if any(isinstance(mark, ast.Name) and mark.id == "property" for mark in item.decorator_list):
                name = name.replace("()", "", 1)
            lines.append(f"- `{name}`\n{textwrap.indent(body(item), '  ')}\n")
    return "\n".join(lines)


def page() -> str:
    parts = [HEAD]
    for name in ORDER:
        tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"))
        parts.append(f"## `{name}`\n\n```text\n{body(tree)}\n```\n")
        parts += [
            described(node)
            for node in tree.body
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_") and body(node)
        ]
    return "\n".join(parts)


def test_every_contract_has_its_place():
    found = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("contract.py")}
    assert found <= set(ORDER)


def test_the_page_says_what_the_docstrings_say():
    text = page()
    if os.environ.get("WRITE_CONTRACTS"):
        PAGE.write_text(text, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == text, "run WRITE_CONTRACTS=1 python -m pytest tests/test_contracts.py"
