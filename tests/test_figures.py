"""Every figure of the documents stands in a committed result file, as `scripts/figures.py` finds it."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
specification: Any = importlib.util.spec_from_file_location("figures", ROOT / "scripts" / "figures.py")
figures = importlib.util.module_from_spec(specification)
sys.modules["figures"] = figures
specification.loader.exec_module(figures)


def section(files: list[str], text: str, tmp_path: Path, monkeypatch) -> Any:
    """The last section of a page of that text, which sees these files."""
    (tmp_path / "page.md").write_text(text)
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    found = figures.sections("page.md")[-1]
    found.files.extend(files)
    return found


@pytest.mark.parametrize("page", figures.pages())
def test_every_figure_is_tied_to_a_file(page):
    missing = [
        f"{page}:{figure.line}: {figure.text} {figure.unit} ({figure.context!r}): {why}"
        for section in figures.sections(page)
        for figure, why in figures.untied(section)
    ]
    assert not missing, "name its file, or say in a comment what the figure is (scripts/figures.py):\n" + "\n".join(
        missing
    )


def test_what_is_said_beside_the_paper_s_claims_is_tied():
    """The only section of its page with figures of ours."""
    parts = figures.sections("docs/reproduction.md")
    (claims,) = (part for part in parts if part.title.startswith("The paper's claims"))
    assert len(claims.figures) > 20
    assert not [(figure.line, figure.text, why) for figure, why in figures.untied(claims)]


def test_pages_that_are_left_out_exist():
    assert all((ROOT / page).is_file() for page in figures.ELSEWHERE)


TABLE = """# Results

`rates.csv`

| model | length | tokens/s | GiB |
|---|---|---|---|
| 16x256 | 1,024 | 1.57 M | 9.18 |
| 24x512 | 2,048 | 0.43 M | {} |
"""
RATES = (
    "model,length,tokens_per_second,peak_gib,torch\n16x256,1024,1573000,9.18,2.11.0\n24x512,2048,427100,19.29,2.11.0\n"
)


@pytest.fixture
def results(tmp_path, monkeypatch):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "rates.csv").write_text(RATES)
    (folder / "run.json").write_text('{"model": {"bits": 1.7191, "deep": [1, {"x": 2.5}]}, "LPC-32": 2.658}')
    (folder / "log.txt").write_text("99.9 % of 1,024 blocks: 48.9 ms\n")
    monkeypatch.setattr(figures, "RESULTS", folder)
    caches = (figures.records, figures.numbers, figures._rounding_to)
    for one in caches:
        one.cache_clear()
    yield folder
    for one in caches:
        one.cache_clear()


def test_a_row_is_found_in_its_record(results, tmp_path, monkeypatch):
    assert figures.untied(section([], TABLE.format("19.29"), tmp_path, monkeypatch)) == []


@pytest.mark.parametrize("wrong", ["19.30", "9.18", "1,573,000.0"])
def test_another_records_figure_is_no_tie(results, tmp_path, monkeypatch, wrong):
    ((figure, _),) = figures.untied(section([], TABLE.format(wrong), tmp_path, monkeypatch))
    assert figure.text == wrong


@pytest.mark.parametrize(
    ("sentence", "wrong"),
    [
        ("It has 1.72 bits", "1.73 bits"),
        ("99.9 % of the blocks took 48.9 ms", "47.9 ms"),
        ("linear prediction 2.66", "2.67"),
        ("It runs at 1.573 M tokens/s", "1.574"),
    ],
)
def test_running_text(results, tmp_path, monkeypatch, sentence, wrong):
    files = ["rates.csv", "run.json", "log.txt"]
    assert figures.untied(section(files, f"{sentence}.\n", tmp_path, monkeypatch)) == []
    spoilt = sentence.rsplit(" ", len(wrong.split()))[0] if wrong in sentence else sentence
    for number in figures.NUMBER.findall(wrong):
        spoilt = figures.NUMBER.sub(number[1], spoilt)
    assert figures.untied(section(files, f"{spoilt}.\n", tmp_path, monkeypatch))


def test_without_its_file_a_figure_is_not_tied(results, tmp_path, monkeypatch):
    ((figure, why),) = figures.untied(section([], "It has 1.72 bits.\n", tmp_path, monkeypatch))
    assert (figure.unit, why) == ("bits", "the section names no file")


def test_a_comment_names_files_settings_and_what_follows(results, tmp_path, monkeypatch):
    text = (
        "It gains 0.94 bits, {gain} % of 2.66; the bar is 0.003 nats.\n\n"
        "<!-- figures: from run.json; settings 0.003 nats; computed 0.94 bits = 2.658 - {{run.json:model/bits}};\n"
        "computed {gain} % = 100 * (1 - 1.7191 / 2.658) -->\n"
    )
    assert figures.untied(section([], text.format(gain="35.3"), tmp_path, monkeypatch)) == []
    ((_, why),) = figures.untied(section([], text.format(gain="35.4"), tmp_path, monkeypatch))
    assert "35.3" in why


@pytest.mark.parametrize("expression", ["2.659 - 1", "__import__('os')", "max(1, 2)", "'a' * 9"])
def test_what_is_computed_is_arithmetic_of_what_files_hold(results, expression):
    with pytest.raises(ValueError):
        figures.compute(expression, figures.numbers(("run.json",)))


def test_cells(results):
    assert figures.cell("run.json:model/deep/1/x") == 2.5
    assert figures.cell("rates.csv:model=24x512:length") == 2048
    with pytest.raises(ValueError, match="names 2 rows"):
        figures.cell("rates.csv::length")


def test_a_comment_that_names_no_result_is_an_error(results, tmp_path, monkeypatch):
    with pytest.raises(AssertionError, match=r"gone\.csv"):
        section([], "Text\n\n<!-- figures: from gone.csv -->\n", tmp_path, monkeypatch)


def test_settings_versions_and_names_are_no_figures(results, tmp_path, monkeypatch):
    text = (
        "12 layers x 128 at 2^20 with torch 2.11.0 and triton 3.6.0 on 2026-11-30, commit 5ba7a5c, figure 8, order 12, seed 1, "
        "sc09, hg38@1.4m, 16 x 256, section 4.3.1\n"
    )
    assert section([], text, tmp_path, monkeypatch).figures == []


def test_a_wrong_last_digit_is_mostly_seen():
    """Of figures in tables, at least four of five; in running text a number is only looked for in the files."""
    seen, count = 0, 0
    for part in figures.sections("docs/results/variants.md"):
        for at, figure in enumerate(part.figures):
            if figure.column < 0 or at % 3:
                continue
            last = max(place for place, sign in enumerate(figure.text) if sign.isdigit())
            other = str((int(figure.text[last]) + 1 + at % 9) % 10)
            changed = figure._replace(text=figure.text[:last] + other + figure.text[last + 1 :])
            spoilt = [*part.figures[:at], changed, *part.figures[at + 1 :]]
            missing = [lost for lost, _ in figures.untied(part, spoilt)]
            seen += changed in missing
            count += 1
    assert count > 50
    assert seen > 0.8 * count, (seen, count)
