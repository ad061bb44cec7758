"""Ties the figures of the documents to numbers of committed result files.

    python scripts/figures.py                 what is not tied, page by page
    python scripts/figures.py docs/audio.md   the same of one page; --all also says where each figure was found

A figure is a number with a fraction, an exponent, a per cent sign or a unit of time, memory or speed, also where the unit
stands over its column. It is tied if a file that its section names holds a number that rounds to it; units scale as they say
(% by 100, M by 1e-6, ms, us, GiB), and not otherwise. In a table there are two rules more against chance. The record
(row of a CSV file, small JSON file, line of a text) must hold at least two fifths as many of the row's other numbers and
names as the record that holds most of them, and its field must be one of the three that explain most of the column.

A section is what stands below a heading; it also sees what the sections around it name before it begins. Where naming a file is
not enough, a comment says the rest, for its section:

    <!-- figures: from a.csv b/; settings 0.02, 64 ms; published .875; computed 7.6 = 100 * (1 - 3.181 / 3.443) -->

`from` names files out of sight; `settings` are chosen or asked for, not measured, and so are `columns` of tables (A | B);
`published` are others' figures; `elsewhere` names tables by their first column that another test ties, `loose` those whose
rows gather what lies in many files. `computed` follows from numbers that such a file holds, whole numbers and single cells:
{gue_h200.csv:task=tf_0,part=all:auroc}, {piano_h200/evaluate-test.json:model/bits}. A figure is listed as it is
written, with its unit where it has one.
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import operator
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent
# Fields of a column that count, and what share of the numbers that the best record has of a row any other must have.
FIELDS, SHARE = 3, 0.4
# Numbers of a JSON file that is taken as one record.
SMALL_JSON = 80
RESULTS = ROOT / "benchmarks" / "results"
# Pages whose numbers are no results, or are tied by tests of their own; every other page is checked here.
ELSEWHERE = {
    "docs/log.md": "a history: what it says was true on its day",
    "docs/contracts.md": "generated from docstrings: tolerances",
    "docs/architecture.md": "how things are built: limits",
    "docs/api.md": "generated from docstrings: defaults and tolerances",
    "docs/mixers.md": "generated from the registry: sizes and settings",
    "docs/reliability.md": "guarantees, each with its test",
    "docs/reproduction.md": "the paper's figures: tests/test_reproduction.py",
    "docs/results/runs.md": "generated from result files: tests/test_runs.py",
    "docs/headlines.md": "each figure has a claim: tests/test_claims.py",
}


def pages() -> list[str]:
    """Every page that is checked here, from the root of the tree."""
    found = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
    return [page for page in found if page not in ELSEWHERE]


UNITS = (
    r"%|ms\b|us\b|s\b|seconds\b|minutes\b|hours\b|GiB\b|GB\b|MB\b|nats\b|bits\b|times\b|x\b|"
    r"M\b|Mb\b|[\w ]{0,12}/s\b|samples a second|bases a second"
)
NUMBER = re.compile(
    r"(?<![\w^.,/@-])(?P<sign>-?)(?P<number>\d[\d,]*(?:\.\d+)?(?:e-?\d+)?|\.\d+)(?![\w^@]|[-./]\d|\.\w)"
)
NOT_FIGURES = re.compile(
    r"https?://\S+|\]\([^)]*\)|\b\d{4}-\d\d-\d\d\b|\b\d+\.\d+\.\d+\S*|"
    r"\btorch \d[\d.]*\S*|\b[Tt]riton \d[\d.]*|\bPython \d[\d.]*|"
    r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{7,12}(?:-dirty)?\b|\(arXiv [^)]*\)|\b[\d.]+[kKmMbB]\b|"
    r"\b(?:figures?|sections?|tables?|orders?|seeds?|steps?|k|E|issue|N) [\d.=]+(?: (?:and|to|or) \d+)*|"
    r"\b\d[\d,]* x [\d,]+(?: x [\d,]+)?|\b\d+x\d+(?: \(\d+, \d+\))?|\(\d[\d, ]*\)|2\^\d+|\b\d+(?:st|nd|rd|th)\b"
)
SCALES = {
    "%": (1.0, 100.0),
    "M": (1.0, 1e-6),
    "Mb": (1.0, 1e-6),
    "ms": (1.0, 1e3),
    "us": (1.0, 1e6),
    "GiB": (1.0, 2.0**-30),
}
OPERATORS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}


class Figure(NamedTuple):
    page: str
    section: str
    text: str  # as it is written, without its unit
    unit: str
    line: int
    row: int  # row of a table, or sentence
    column: int  # column of a table, -1 in running text
    number: int  # in its cell
    table: int
    context: str
    header: str = ""
    title: str = ""  # of the first column of its table
    above: str = ""  # the text over a table, whose units count where neither cell nor header has one

    @property
    def place(self) -> tuple[int, int, int]:
        return self.table, self.column, self.number

    @property
    def value(self) -> float:
        return abs(float(self.text.replace(",", "")))

    @property
    def half(self) -> float:
        """Half a unit of the last place that is written."""
        number, _, exponent = self.text.replace(",", "").partition("e")
        decimals = len(number.partition(".")[2])
        return 0.5 * 10.0 ** (int(exponent or 0) - decimals)

    @property
    def scales(self) -> tuple[float, ...]:
        if self.unit:
            return SCALES.get(self.unit.partition(" ")[0], (1.0,))
        return (
            1.0,
            *(SCALES[unit][1] for unit in ("%", "M", "ms") if re.search(rf"(?:\s|^){unit}(?:\s|[,;.(]|$)", self.above)),
        )


class Section(NamedTuple):
    page: str
    title: str
    files: list[str]  # grows while the section is read; sections below it see what was named so far
    figures: list[Figure]
    keys: dict[int, set[float]]  # of a row: all its numbers that are no figures
    words: dict[int, frozenset[str]]  # what is read in a row's first cell and in code
    settings: set[str]
    columns: set[str]  # of tables, that hold what is asked for
    loose: set[str]  # first columns of tables whose rows gather what lies in several files
    computed: dict[str, str]

    def below(self, title: str) -> Section:
        """A section inside this one, which sees what was named and said here so far."""
        said = (set(self.settings), set(self.columns), set(self.loose), dict(self.computed))
        return Section(self.page, title, [*self.files], [], {}, {}, *said)


class Numbers(NamedTuple):
    """All numbers of some files, with the record and the field that each stands in."""

    values: NDArray[np.float64]
    records: NDArray[np.int64]
    fields: NDArray[np.int64]
    files: tuple[str, ...]
    names: list[str]  # of records
    words: list[frozenset[str]]


# --- the documents


def _unit_of(text: str, start: int, end: int, header: str) -> str:
    """The unit behind a number, or behind the numbers that it is listed with; then before the bracket; then over the column."""
    listed = r"(?:\**(?:,| to| and| or| against|;)\s\**-?[\d.,]*\d){0,4}\**"
    found = re.match(rf"{listed}\s?({UNITS})", text[end:])
    found = found or re.search(rf"\s({UNITS})\** \((?:[\d.]+ to )?$", text[:start])
    found = found or re.search(rf"(?:^|[\s,(])({UNITS})(?:$|[\s,)/])", header) or re.search(r"(%)", header)
    return {"Mb": "M"}.get(found[1], found[1]).strip() if found else ""


def _read(
    section: Section,
    line: int,
    row: int,
    text: str,
    header: str = "",
    column: int = -1,
    table: int = 0,
    title: str = "",
    more: str = "",
) -> None:
    """Put the figures of a cell or a sentence into their section, and its other numbers beside them."""
    blank = NOT_FIGURES.sub(lambda found: " " * len(found.group()), text)
    starts, number = set(), 0
    for found in NUMBER.finditer(blank):
        written = found["number"].rstrip(",")
        unit = _unit_of(blank, found.start("number"), found.end(), header)
        if ("." in written or "e-" in written or unit) and column != 0:
            context = " ".join(text[max(0, found.start() - 30) : found.end() + 12].split())
            at = line + text.count("\n", 0, found.start())
            section.figures.append(
                Figure(
                    section.page,
                    section.title,
                    written,
                    unit,
                    at,
                    row,
                    column,
                    number,
                    table,
                    context,
                    header,
                    title,
                    more,
                )
            )
            starts.add(found.start("number"))
            number += 1
    keys = section.keys.setdefault(row, set())
    keys.update(2.0 ** float(power) for power in re.findall(r"2\^(\d+)", text))
    for found in re.finditer(r"(?<![\w.^])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", text):
        if found.start() not in starts:
            keys.add(float(found.group().replace(",", "").rstrip(".")))


def sections(page: str) -> list[Section]:
    """The page cut at its headings, each part with the files that it and the parts around it name."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", _blank_lines, text, flags=re.DOTALL | re.MULTILINE)
    current = Section(page, "", [], [], {}, {}, set(), set(), set(), {})
    found, levels = [current], [(0, current)]
    row, table, line, above = 0, 0, 1, ""
    header: list[str] = []
    for block in re.split(r"(\n\s*\n|\n(?=[|#])|(?<=\|)\n)", text):
        if comment := re.search(r"<!-- figures:(.*?)-->", block, flags=re.DOTALL):
            _read_comment(comment[1], current)
        plain = re.sub(r"<!--.*?-->", _blank_lines, block, flags=re.DOTALL)
        if heading := re.match(r"(#+) (.*)", plain):
            while len(levels) > 1 and levels[-1][0] >= len(heading[1]):
                levels.pop()
            current = levels[-1][1].below(heading[2])
            levels.append((len(heading[1]), current))
            found.append(current)
        for code, link in re.findall(r"`([^`]+)`|\]\(([^)]+)\)", plain):
            current.files.extend(_files_named(code or link))
        plain = re.sub(r"`[^`]*`", lambda span: re.sub(r"[^\n]", " ", span.group()), plain)
        if plain.startswith("|"):
            cells = [cell.strip() for cell in plain.strip().strip("|").split("|")]
            if not header:
                header, table = cells, table + 1
            elif not re.fullmatch(r"[\s:|-]+", plain):
                row += 1
                first = block.strip().strip("|").split("|")[0]
                current.words[row] = _words(first) | _words(" ".join(re.findall(r"`([^`]+)`", block)))
                for column, cell in enumerate(cells):
                    over = header[column] if column < len(header) else ""
                    _read(current, line, row, cell, over, column, table, header[0], above)
        elif plain.strip():
            header, above = [], plain
            at = 0
            for sentence in re.split(r"(?<=[.;])(\s+)(?=[A-Z`*(\[])", plain):
                row += 1
                _read(current, line + plain.count("\n", 0, at), row, sentence)
                at += len(sentence)
        line += block.count("\n")
    return found


def _blank_lines(found: re.Match[str]) -> str:
    return "\n" * found.group().count("\n")


def _files_named(text: str) -> list[str]:
    name = re.sub(r"^(?:\.\./)*(?:benchmarks/)?(?:results/)?", "", text.strip())
    if not re.fullmatch(r"[\w./*-]+", name) or name.strip("./") in ("", "README.md"):
        return []
    if name.startswith(("tests/", "docs/", "/")):
        return []
    paths = sorted(RESULTS.glob(name.rstrip("/")))
    return [
        str(path.relative_to(RESULTS))
        for found in paths
        for path in (sorted(found.rglob("*")) if found.is_dir() else [found])
    ]


def _read_comment(body: str, section: Section) -> None:
    for part in filter(None, (part.strip() for part in body.split(";"))):
        verb, _, rest = part.partition(" ")
        if verb == "from":
            names = rest.split()
            missing = [name for name in names if not _files_named(name)]
            assert not missing, f"{section.page}, {section.title}: no result {missing}"
            section.files.extend(file for name in names for file in _files_named(name))
        elif verb == "loose":
            section.loose.update(rest.split(" | "))
        elif verb in ("columns", "elsewhere"):
            section.columns.update(rest.split(" | "))
        elif verb in ("settings", "published"):
            section.settings.update(" ".join(item.split()) for item in rest.split(", "))
        elif verb == "computed":
            left, _, right = rest.partition("=")
            section.computed[left.strip()] = right.strip()
        else:
            raise ValueError(f"{section.page}, {section.title}: a comment of figures has no part `{verb}`")


# --- the files


class Record(NamedTuple):
    name: str
    fields: dict[str, float]
    words: frozenset[str]


@cache
def records(file: str) -> list[Record]:
    """What a file holds, record by record; a small JSON file is one."""
    path, own = RESULTS / file, _words(file)
    if path.suffix == ".csv":
        with path.open(newline="") as rows:
            return [
                Record(f"{file}:{at}", _plain(row), own | _words(" ".join(filter(None, row.values()))))
                for at, row in enumerate(csv.DictReader(rows), 2)
            ]
    if path.suffix == ".json":
        parts = list(_of_json(file, json.loads(path.read_text())))
        if sum(len(part.fields) for part in parts) > SMALL_JSON:
            return [part._replace(words=part.words | own) for part in parts]
        fields = {f"{part.name}/{key}": value for part in parts for key, value in part.fields.items()}
        return [Record(file, {key.partition(":")[2]: value for key, value in fields.items()}, own)]
    if path.suffix in (".txt", ".yaml"):
        lines = path.read_text(encoding="utf-8").splitlines()
        fields_of = ({str(i): value for i, value in enumerate(_numbers(line))} for line in lines)
        return [
            Record(f"{file}:{at}", fields, own | _words(line))
            for at, (line, fields) in enumerate(zip(lines, fields_of, strict=True), 1)
        ]
    return []


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z][a-z0-9]+", text.lower()))


def _numbers(text: str) -> list[float]:
    found = re.findall(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?", text)
    return [abs(float(number.replace(",", ""))) for number in found]


def _plain(row: dict[str, str]) -> dict[str, float]:
    # A cell may hold several numbers, as a step's shape does.
    return {
        (f"{key}.{i}" if i else key): value for key, cell in row.items() for i, value in enumerate(_numbers(cell or ""))
    }


def _of_json(name: str, value: Any, key: str = "") -> Iterator[Record]:
    nodes = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    own: dict[str, float] = {}
    for child, inner in nodes:
        if isinstance(inner, bool):
            continue
        if isinstance(inner, int | float):
            own[str(child)] = abs(float(inner))
        elif isinstance(inner, str):
            own |= {f"{child}.{i}": number for i, number in enumerate(_numbers(inner))}
        else:
            yield from _of_json(name, inner, f"{key}/{child}")
    if own:
        yield Record(f"{name}:{key}", own, _words(key))


@cache
def numbers(files: tuple[str, ...]) -> Numbers:
    values, of_record, of_field, names, words = [], [], [], [], []
    fields: dict[str, int] = {}
    for file in files:
        for name, record, own_words in records(file):
            words.append(own_words)
            for field, value in record.items():
                values.append(value)
                of_record.append(len(names))
                of_field.append(fields.setdefault(f"{file.rsplit('/', 1)[-1]}:{field}", len(fields)))
            names.append(name)
    return Numbers(np.array(values, float), np.array(of_record, int), np.array(of_field, int), files, names, words)


# --- the ties


def _candidates(figure: Figure, data: Numbers) -> NDArray[np.int64]:
    return _rounding_to(data.files, figure.value, figure.half, figure.scales)


@cache
def _rounding_to(files: tuple[str, ...], value: float, half: float, scales: tuple[float, ...]) -> NDArray[np.int64]:
    held = numbers(files).values
    close = np.zeros(len(held), bool)
    for scale in scales:
        close |= np.abs(held * scale - value) <= half * (1 + 1e-6) + 1e-12
    return np.flatnonzero(close)


def cell(text: str) -> float:
    """The number of `FILE:key=value,key=value:field` (a row of a CSV file) or `FILE:path/to/leaf` (JSON)."""
    file, *rest = text.split(":")
    if file.endswith(".json"):
        value: Any = json.loads((RESULTS / file).read_text())
        for key in rest[0].split("/"):
            value = value[int(key) if isinstance(value, list) else key]
        return float(value)
    wanted = dict(part.split("=", 1) for part in rest[0].split(",") if part)
    with (RESULTS / file).open(newline="") as table:
        rows = [row for row in csv.DictReader(table) if all(row[key] == value for key, value in wanted.items())]
    if len(rows) != 1:
        raise ValueError(f"{text} names {len(rows)} rows")
    return float(rows[0][rest[1]])


def compute(expression: str, data: Numbers) -> float:
    """The value of sums, products and powers of {cells}, of numbers that the files hold, and of whole ones.

    >>> compute("100 * (7 - 2) / 10", numbers(()))
    50.0
    """
    cells = [cell(name) for name in re.findall(r"\{([^}]*)\}", expression)]
    replaced = re.sub(r"\{[^}]*\}", "CELL", expression)
    there = iter(cells)

    def of(node: ast.AST) -> float:
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            left = of(node.left)
            return OPERATORS[type(node.op)](left, of(node.right))
        if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](of(node.operand))
        if isinstance(node, ast.Name) and node.id == "CELL":
            return next(there)
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            written = ast.get_source_segment(replaced, node) or ""
            there_is = (len(_candidates(Figure("", "", written, unit, 0, 0, -1, 0, 0, ""), data)) for unit in SCALES)
            if "." in written and not any(there_is):
                raise ValueError(f"no file of the section holds {written}")
            return float(node.value)
        raise ValueError(f"`{expression}` is more than arithmetic")

    return of(ast.parse(replaced, mode="eval").body)


def untied(section: Section, figures: list[Figure] | None = None) -> list[tuple[Figure, str]]:
    """Figures of a section that no file explains, each with the reason."""
    data = numbers(tuple(dict.fromkeys(section.files)))
    figures = section.figures if figures is None else figures
    left: list[Figure] = []
    missing: list[tuple[Figure, str]] = []
    for figure in figures:
        names = {figure.text, f"{figure.text} {figure.unit}"}
        if names & section.settings or {figure.header, figure.title} & section.columns:
            continue
        formula = next((section.computed[name] for name in names if name in section.computed), None)
        if formula is not None:
            try:
                value = abs(compute(formula, data))
            except (ValueError, KeyError, OSError) as error:
                missing.append((figure, str(error)))
                continue
            if abs(value - figure.value) > figure.half * (1 + 1e-6):
                missing.append((figure, f"{formula} is {value:.6g}"))
            continue
        left.append(figure)
    found = {figure: _candidates(figure, data) for figure in left}
    places = {figure: set(data.records[found[figure]].tolist()) for figure in set(left)}
    # How many numbers of each row, figures and keys alike, a record holds.
    shared: dict[int, Counter[int]] = {}
    for row in {figure.row for figure in left}:
        others = [places[figure] for figure in left if figure.row == row]
        others += [set(data.records[data.values == key].tolist()) for key in section.keys.get(row, ())]
        shared[row] = Counter(record for holders in others for record in holders)
        words = section.words.get(row, frozenset())
        for record in shared[row] if words else ():
            shared[row][record] += len(words & data.words[record])
    fields: dict[tuple[int, int, int], Counter[int]] = {}
    for figure in left:
        own = fields.setdefault(figure.place, Counter())
        own.update(set(data.fields[found[figure]].tolist()))
    for figure in left:
        if not len(found[figure]):
            missing.append(
                (figure, "no file that the section names holds it" if section.files else "the section names no file")
            )
        if not len(found[figure]) or figure.column < 0 or figure.title in section.loose:
            continue
        rest = shared[figure.row].copy()
        rest.subtract(places[figure])
        # What stands over a column counts like what stands before its row.
        over = _words(figure.header)
        for key in _numbers(re.sub(r"2\^(\d+)", lambda power: str(2 ** int(power[1])), figure.header)):
            rest.update(set(data.records[data.values == key].tolist()))
        for record in rest if over else ():
            rest[record] += len(over & data.words[record])
        most = max(rest.values())
        usual = {field for field, _ in fields[figure.place].most_common(FIELDS)}
        if not any(
            rest[record] >= most * SHARE and field in usual
            for record, field in zip(
                data.records[found[figure]].tolist(), data.fields[found[figure]].tolist(), strict=True
            )
        ):
            missing.append((figure, "found, but not where the other numbers of its row are"))
    return missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("pages", nargs="*", default=pages())
    parser.add_argument("--all", action="store_true", help="also show where each figure was found")
    options = parser.parse_args()
    for page in options.pages:
        count, lost = 0, 0
        for section in sections(page):
            count += len(section.figures)
            data = numbers(tuple(dict.fromkeys(section.files)))
            for figure, why in untied(section):
                lost += 1
                print(f"{page}:{figure.line}: {figure.text} {figure.unit} ({figure.context!r}): {why}")
            if options.all:
                for figure in section.figures:
                    places = [data.names[at] for at in data.records[_candidates(figure, data)][:3].tolist()]
                    print(f"    {page}:{figure.line}: {figure.text} {figure.unit}: {', '.join(places)}")
        print(f"{page}: {lost} of {count} figures are not tied")


if __name__ == "__main__":
    main()
