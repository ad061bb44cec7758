"""The table of faults names tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "reliability.md"


def rows() -> list[list[str]]:
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if row[0] != "fault"]


def test_every_row_names_tests_that_exist() -> None:
    known: dict[str, set[str]] = {}
    for row in rows():
        assert len(row) == 4, row
        named = re.findall(r"`([^`]+)`", row[3])
        assert named, f"no test for: {row[0]}"
        for test in named:
            path, _, name = test.partition("::")
            if path not in known:
                nodes = ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
                known[path] = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
            assert not name or name in known[path], f"{test} does not exist"


def test_the_table_is_there() -> None:
    assert len(rows()) > 80
